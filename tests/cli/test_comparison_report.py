"""Laws of the tables that `compare` prints at its end: the verdict first, every entry, bounds as bounds, nothing foreign acts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.comparisons import CONTROLS, GROWN, Grown, measured

from ligo_convert.cli.comparison_report import print_comparison

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


def test_what_others_wrote_does_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    data = measured(GROWN | {HOSTILE: Grown(paper=45.0)}, skipped={HOSTILE: HOSTILE})
    out, _ = printed(capsys, data, width=60)
    assert "\x1b[2J" not in out
    assert "\u202e" not in out
    assert "[bold]" in out
