"""Sources by strength: `4` and `ligo from 4` in the record, words in what people read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.comparisons import Grown, measured

from ligo_convert.comparison.compare import _write
from ligo_convert.comparison.page import _entry
from ligo_convert.comparison.picture import _lines, _name
from ligo_convert.comparison.tables import comparison_tables
from ligo_convert.conversion.run_record import finite
from ligo_convert.io.staging import Staging
from ligo_convert.progress import Progress

STRENGTHS = {"1": (0.15, 3.9), "4": (0.6, 3.6)}
METHODS = {"ligo": Grown(paper=40.0, source="1"), "ligo from 4": Grown(paper=70.0, source="4", base="ligo")}


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return measured(METHODS, sources=STRENGTHS)


def test_strengths_are_words_in_what_people_read(record: dict[str, Any]) -> None:
    assert "ligo from 4" in record["methods"], "the names in the record are fixed"
    assert [source["name"] for source in record["sources"]] == ["1", "4"]
    cells = [cell for table in comparison_tables(record) for row in table.rows for cell in row.cells]
    verdict = " ".join(record["verdict"]["text"])
    labels = [_name(line, beyond=False) for line in _lines(record)]
    headings = [_entry(name, entry)["name"] for name, entry in record["methods"].items()]
    for text in (*cells, *labels, *headings, verdict):
        assert not re.search(r"from \d\b|source `?\d\b(?!x)", text), text
    assert {"ligo (source 4x)", "4x", "1x"} <= set(cells)
    assert {"ligo", "ligo (source 4x)", "source 1x", "source 4x"} <= set(labels)
    assert "`ligo (source 4x)` saves most" in verdict
    assert "The source trained `1x` (15 % of scratch's FLOPs) pays for itself with one target, by `ligo`." in verdict


def test_the_only_source_needs_no_name() -> None:
    record = measured({"ligo": METHODS["ligo"]}, sources={"1": STRENGTHS["1"]})
    assert "The source (15 % of scratch's FLOPs) pays for itself with one target" in " ".join(record["verdict"]["text"])


def test_savings_against_the_sources_cost_are_a_file(record: dict[str, Any], tmp_path: Path) -> None:
    """Where there are two sources; a comparison with one has no such file (`test_compare`)."""
    with Staging.open(tmp_path / "out", key="key", progress=Progress()) as staging:
        _write(finite(record), staging)
        assert set(staging.files()) == {"compare.png", "sources.png", "report.html"}
        assert (staging.read("sources.png") or b"").startswith(b"\x89PNG")
