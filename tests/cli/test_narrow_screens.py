"""Laws of what `families` and `describe` print in a terminal of 80 and of 160 columns: every line fits, and no name is broken."""

from __future__ import annotations

import pytest
from rich.console import Console

from ligo_convert.cli import reports
from ligo_convert.cli.format import config_edits
from ligo_convert.cli.inspect import describe_family, families_list
from ligo_convert.families.registry import FAMILIES

WIDTHS = (80, 160)


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    found: int = request.param
    monkeypatch.setattr(reports, "out_console", lambda: Console(highlight=False, width=found))
    return found


def test_one_line_a_family(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    reports.families_report(families_list())
    heading, *lines, empty, hint = capsys.readouterr().out.splitlines()
    assert (heading.split()[:3], empty) == (["name", "architecture", "task"], "")
    assert ("norms" in heading) == (width == 160)
    assert [line.split()[:2] for line in lines] == [[one.name, one.architecture] for one in FAMILIES.values()]
    assert max(map(len, (heading, *lines, hint))) <= width


@pytest.mark.parametrize("name", list(FAMILIES))
def test_no_name_of_a_tensor_is_broken(name: str, width: int, capsys: pytest.CaptureFixture[str]) -> None:
    family = FAMILIES[name]
    reports.describe_report(describe_family(name))
    lines = capsys.readouterr().out.splitlines()
    longest = max(len(row.pattern) for row in family.rows)
    # A name that is longer than a line stands alone in its line.
    assert max(map(len, lines)) <= max(width, longest)
    _, rows = "\n".join(lines).split("\nrows")
    for row in family.rows:
        assert row.pattern in rows.split()
    shape = "x".join(map(str, family.shape(family.rows[0], family.sizes(family.defaults))))
    (shown,) = [line for line in rows.splitlines() if line.startswith(family.rows[0].pattern)]
    # Beside the name if there is room for every row.
    if width == 80 or longest < 60:
        assert (shape in shown) == (width == 160)


def test_a_list_with_an_entry_a_layer_is_told_by_its_kinds() -> None:
    kinds = ["sliding_attention", "full_attention"]
    shown = config_edits(
        {"layer_types": {"source": kinds, "target": kinds * 20}, "hidden_size": {"source": 16, "target": 24}}
    )
    assert shown == (
        "layer_types ['sliding_attention', 'full_attention'] -> [40 layers: 20 sliding_attention, 20 full_attention], hidden_size 16 -> 24"
    )
