"""Laws of the tables that `compare` prints at its end: the verdict first, every entry, bounds as bounds, nothing foreign acts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.comparisons import CONTROLS, GROWN, Grown, measured

from ligo_convert.cli.comparison_report import print_comparison
from ligo_convert.comparison.tables import break_even, savings

HOSTILE = "[bold]x[/bold]\x1b[2J\u202e"


def printed(capsys: pytest.CaptureFixture[str], data: dict[str, Any], width: int = 200) -> tuple[str, str]:
    print_comparison(data, Path("out/compare"), width=width)
    found = capsys.readouterr()
    return found.out, found.err


def test_the_verdict_comes_first_and_every_entry_follows(capsys: pytest.CaptureFixture[str]) -> None:
    warning = {"rule": "few", "text": "too few rates", "methods": ["ligo"]}
    data = measured(GROWN | {"below": Grown(paper=90.0)}, seeds=(0, 1), fairness_warnings=[warning])
    out, err = printed(capsys, data, width=600)
    assert out.index(data["verdict"]["text"][0]) < out.index("Savings at equal loss")
    for sentence in data["verdict"]["text"]:
        assert sentence in out
    for name in (*GROWN, *CONTROLS, "scratch", "below"):
        assert [line for line in out.splitlines() if line.startswith(name)], name
    for heading in ("Savings at equal loss", "Losses at equal budget", "Sources", "Break-even"):
        assert heading in out
    (row,) = [line for line in out.splitlines() if line.startswith("below") and "3." in line]
    assert "at least 60.0 %" in row
    assert "at least 75.0 %" in row
    assert "out/compare/report.html" in out
    assert "aki skipped" in out
    assert "fairness: too few rates (ligo)" in err
    assert "None" not in out


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_in_80_columns_no_word_is_broken(seeds: tuple[int, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """With sources of several strengths and bounds: every line fits, and every word of a table's cells stands in one piece."""
    grown = {
        "lemon/interpolate": Grown(paper=20.0, source="1", base="lemon/interpolate"),
        "lemon/interpolate from 16": Grown(paper=95.0, source="16", base="lemon/interpolate", spread=0.5),
        "mean-preserving/stack": Grown(paper=-30.0, source="1", base="mean-preserving/stack", spread=2.0),
    }
    data = measured(grown, sources={"1": (0.2, 3.9), "16": (3.2, 3.2)}, seeds=seeds)
    out, _ = printed(capsys, data, width=80)
    assert max(map(len, out.splitlines())) <= 80
    words = set(out.split())
    for name in ("lemon/interpolate", "mean-preserving/stack", "1x", "16x", "scratch", "at", "least", "source"):
        assert name in words, name
    (row,) = [line for line in out.splitlines() if line.startswith("lemon/interpolate") and " 16x " in line][:1]
    assert "(source" not in row
    for table in (savings(data), break_even(data)):
        for cells in table.rows:
            assert set(re.findall(r"[-+]?\d+\.\d", cells.cells[-2])) <= set(re.findall(r"[-+]?\d+\.\d", out))


def test_columns_that_have_no_room_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    data = measured(seeds=(0, 1, 2))
    assert "Not shown in 52 columns: FLOPs" in printed(capsys, data, width=52)[0]
    assert "Not shown" not in printed(capsys, data, width=120)[0]


def test_names_are_explained_and_the_next_command_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    grown = {"lemon": Grown(paper=30.0), "stackbert": Grown(paper=10.0, source=None)}
    text = " ".join(printed(capsys, measured(grown))[0].split())
    assert "lemon what lemon does, in a line" in text
    assert "4 layers never grown: n_layer 4" in text
    assert "set `growth: {width: net2net, depth: stack}` in the recipe, then `ligo-convert run gpt2.yaml`" in text
    # An operator that is learned, a method without a source, and one that saves nothing are no such growth.
    assert "ligo-convert run" not in printed(capsys, measured({"ligo": Grown(paper=30.0)}))[0]
    assert "ligo-convert run" not in printed(capsys, measured({"stackbert": Grown(paper=30.0, source=None)}))[0]
    assert "no method saves FLOPs" in printed(capsys, measured({"lemon": Grown(paper=-30.0)}))[0]


def test_what_others_wrote_does_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    data = measured(GROWN | {HOSTILE: Grown(paper=45.0)}, skipped={HOSTILE: HOSTILE})
    out, _ = printed(capsys, data, width=60)
    assert "\x1b[2J" not in out
    assert "\u202e" not in out
    assert "[bold]" in out
