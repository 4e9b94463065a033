"""What the tests of size bombs call in a process of its own: each takes plain data."""

from __future__ import annotations

from pathlib import Path


def decode_image(path: str, size: int) -> None:
    """Decode and resize an image as a model of `size` pixels reads it."""
    from ligo_convert.data.images import Preparation

    prepared = Preparation(
        size=(size, size), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=0.9
    )
    print(prepared.pixels(Path(path)).shape)


def tokenise(folder: str, text: str) -> None:
    """Load a tokenizer, and encode a text with it."""
    from ligo_convert.data.tokenizers import encoder, load_tokenizer

    print(len(encoder(load_tokenizer(Path(folder)))([text])[0]))


def count_matches(pattern: str, base: str) -> None:
    """Expand a glob."""
    from ligo_convert.io.globs import expand

    print(len(expand(pattern, Path(base))))


def read_rows(path: str, count: int) -> None:
    """Read the first texts of a Parquet file or a file of JSON lines, as a fit does."""
    import itertools

    from ligo_convert.data.hf_datasets import parquet_rows, reordered
    from ligo_convert.data.text_files import regular_file, shuffled_chunks

    file = regular_file(Path(path))
    assert file is not None
    rows = reordered(parquet_rows([file.path], 0), 0) if path.endswith("parquet") else shuffled_chunks([file], 0)
    print(sum(len(row) for row in itertools.islice(rows, count)))
