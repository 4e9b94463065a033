"""A notebook in a real kernel: bars while something runs, and tables as the values of cells."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from support.source_models import GROWN, fit_section, recipe_text, write_checkpoint, write_text

from ligo_convert.comparison.study import StudyResult
from ligo_convert.conversion.run_record import ConversionResult
from ligo_convert.outputs.html import pairs_html

SECONDS = 120  # a kernel imports torch first, on a busy machine

CELLS = (
    "import ligo_convert",
    "ligo_convert.plan('recipe.yaml')",
    "ligo_convert.convert('recipe.yaml', progress=True)",
    "import torch, transformers\n"
    "model = transformers.AutoModelForCausalLM.from_pretrained('source')\n"
    "ligo_convert.grow(model, {'n_layer': 4}, data=[torch.arange(12).repeat(4, 1)] * 4, steps=2).ligo",
)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """The outputs of the cells."""
    place = tmp_path_factory.mktemp("notebook")
    write_checkpoint(place / "source")
    (place / "corpus").mkdir()
    write_text(place / "corpus" / "a.txt")
    (place / "recipe.yaml").write_text(recipe_text("./source", GROWN["gpt2"], fit=fit_section()))
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in CELLS])
    client = NotebookClient(
        notebook, timeout=SECONDS, startup_timeout=SECONDS, resources={"metadata": {"path": str(place)}}
    )
    client.execute()
    return [list(cell.outputs) for cell in notebook.cells]


def table_of(outputs: list[dict[str, Any]]) -> str:
    shown = [out["data"]["text/html"] for out in outputs if out["output_type"] == "execute_result"]
    assert len(shown) == 1
    return re.sub(r"<[^>]+>", " ", html.unescape(str(shown[0])))


@pytest.mark.slow
def test_results_are_tables(cells: list[list[dict[str, Any]]]) -> None:
    plan, converted, grown = map(table_of, cells[1:])
    for text in (plan, converted, grown):
        assert "preservation  exact" in re.sub(" +", "  ", text)
        assert "parameters" in text
    assert "Plan for" in plan
    assert "loss, fitted" in converted
    assert "best step" in grown


@pytest.mark.slow
def test_long_work_has_bars(cells: list[list[dict[str, Any]]]) -> None:
    kinds = {kind for out in cells[2] for kind in out.get("data", {})}
    assert "application/vnd.jupyter.widget-view+json" in kinds
    assert not [out for out in cells[2] if out["output_type"] == "stream"], "bars, not lines"


def test_what_no_notebook_here_makes_is_a_table_too() -> None:
    """A comparison, a choice, and a training, whose figures are others than those of a growth."""
    for record in ({"verdict": {"text": ["a < b"]}}, {"text": ["a < b"]}):
        assert "<p>a &lt; b</p>" in StudyResult(out=Path("out"), record=record, changed=True)._repr_html_()
    metrics = {"parameters": {"source": 10, "target": 2000}, "loss": {"first": 3.0, "test": 2.5}}
    shown = ConversionResult(out=Path("out"), family="gpt2", label="small", metrics=metrics, changed=True)._repr_html_()
    assert "small, trained" in shown
    assert "10 to 2k" in shown
    assert "2.5" in shown


def test_a_table_shows_any_text_as_text() -> None:
    shown = pairs_html("<b>", {"<script>": "\x1b[2J&", "none": None}, notes=["a < b"])
    assert "<script>" not in shown
    assert "\x1b" not in shown
    assert "&lt;script&gt;" in shown
    assert "none" not in shown
    assert "<p>a &lt; b</p>" in shown
