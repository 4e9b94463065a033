"""Digests: the checksum of each part of a file is that part's, wherever the bytes are cut."""

from __future__ import annotations

import itertools
import zlib

from hypothesis import given
from hypothesis import strategies as st

from ligo_convert.checkpoints.digests import PartChecksums


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    data=st.binary(min_size=40, max_size=40),
)
def test_every_part_gets_its_own_checksum_wherever_the_bytes_are_cut(
    sizes: list[int], cuts: list[int], data: bytes
) -> None:
    ends = list(itertools.accumulate(sizes, initial=1))  # as of a file: the first part is never empty
    places = [0, *sorted({cut for cut in cuts if 0 < cut < ends[-1]}), ends[-1]]
    parts = PartChecksums([(str(number), end) for number, end in enumerate(ends)])
    found = [part for begin, end in itertools.pairwise(places) for part in parts.update(memoryview(data[begin:end]))]
    whole = [data[begin:end] for begin, end in itertools.pairwise([0, *ends])]
    assert found == [(str(number), zlib.crc32(part)) for number, part in enumerate(whole)]
