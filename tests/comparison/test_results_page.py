"""Laws of the page of results: it is what the figures give, nothing is lost on the way to it, and nothing foreign acts in it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.comparisons import CONTROLS, GROWN, Control, Grown, measured
from support.scripts import ROOT, load_script

from ligo_convert.comparison.frontier import End
from ligo_convert.comparison.methods import METHODS
from ligo_convert.comparison.record import SeedRuns
from ligo_convert.recipes.recipe import load_recipe

DOCS = ROOT / "docs" / "results"
HOSTILE = "a|b`c](javascript:alert(1))<script>x</script>![i](http://x.y)\n# h\x1b[2J\u202e"


script = load_script("make_results")


def make(into: Path, *arguments: str) -> Result:
    return CliRunner().invoke(script.main, ["--into", str(into), *arguments])


def made(into: Path, *arguments: str) -> str:
    result = make(into, *arguments)
    assert result.exit_code == 0, result.output
    return (into / "results.md").read_text(encoding="utf-8")


def finished(where: Path, data: dict[str, Any]) -> Path:
    where.mkdir(parents=True)
    (where / "compare.json").write_text(json.dumps(data), encoding="utf-8")
    return where


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


TWO = {"small": (0.15, 3.9), "zoo": (0.7, 3.6)}
MANY = GROWN | {"ligo@zoo": Grown(paper=60.0, source="zoo", base="ligo"), "g_stack": Grown(paper=12.0, source=None)}


def many(**more: Any) -> dict[str, Any]:
    return measured(MANY, sources=TWO, **more)


def tables_of(page: str) -> dict[str, list[dict[str, str]]]:
    """The tables by their headings, each row by the headings of its columns."""
    found = {}
    for title, block in re.findall(r"(?:### |<summary>|## )([^\n<]+)(?:</summary>)?\n\n(\|(?:.*\n)+?)(?=\n)", page):
        lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines()]
        found[title] = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    return found


def row_of(page: str, table: str, name: str) -> dict[str, str]:
    (row,) = [row for row in tables_of(page)[table] if next(iter(row.values())) == f"`{name}`"]
    return row


def pictures_in(page: str) -> list[str]:
    return re.findall(r"^!\[[^\]]*\]\(([^)]+)\)$", page, re.MULTILINE)


# --- names ------------------------------------------------------------------------------------------------------------


def test_strengths_of_sources_are_words(tmp_path: Path) -> None:
    """In the record a source is called `4`; on the page it reads `4x`."""
    grown = {
        "ligo": Grown(paper=30.0, source="1", base="ligo"),
        "ligo from 4": Grown(paper=60.0, source="4", base="ligo"),
    }
    data = measured(grown, sources={"1": (0.2, 3.9), "4": (0.7, 3.6)})
    page = made(tmp_path / "docs", f"gpt2={finished(tmp_path / 'out', data)}")
    once, longer = tables_of(page)["What growing saves"]
    assert once["source"] == "`1x`"
    assert longer["source"] == "`4x`"
    assert row_of(page, "Savings at equal loss", "ligo (source 4x)")["Source"] == "`4x`"
    assert "ligo from 4" not in page


# --- the page in the repository -----------------------------------------------------------------------------------------


def test_the_page_is_what_the_figures_give() -> None:
    figures = json.loads((DOCS / "results.json").read_bytes())
    assert figures["format"] == script.FORMAT
    result = make(DOCS, "--check")
    assert result.exit_code == 0, result.output
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    assert {f"pictures/{kind}.png" for kind in figures["kinds"]} <= set(pictures_in(page))
    for name in pictures_in(page):
        assert (DOCS / name).read_bytes().startswith(b"\x89PNG"), name


# --- what is made --------------------------------------------------------------------------------------------------------


def test_every_entry_and_figure_is_on_the_page(tmp_path: Path) -> None:
    data = many(seeds=(0, 1, 2))
    page = made(tmp_path / "docs", f"gpt2-seeds={finished(tmp_path / 'run', data)}")
    found = tables_of(page)
    assert list(found) == [
        *(
            "What growing saves",
            "When not to grow",
            "Methods",
            "Savings at equal loss",
            "Losses at equal budget",
            "Break-even",
            "Sources",
            "How scratch was tuned",
        ),
        "Every finished run",
    ]
    names = [f"`{name}`" for name in (*data["methods"], *data["controls"])]
    assert sorted(row["Method"] for row in found["Savings at equal loss"]) == sorted(names)
    assert {row["Entry"] for row in found["Every finished run"]} == set(names)
    for name, method in data["methods"].items():
        if name != "scratch":
            row = row_of(page, "Savings at equal loss", name)
            assert row["Saved, net"] == f"{method['savings']['net']:.1f} % +- {method['std']['net']:.1f}"
            assert row["Saved, paper"] == f"{method['savings']['paper']:.1f} % +- {method['std']['paper']:.1f}"
    assert {row["name"] for row in found["Methods"]} == {f"`{name}`" for name in ("scratch", *MANY, *CONTROLS)} - {
        "`ligo@zoo`"
    }
    for sentence in data["verdict"]["text"]:
        assert f"- {sentence}" in page.splitlines()
    assert "## Text decoder: GPT-2, several seeds" in page
    assert "- `aki`: it needs a width that is a multiple of the source's" in page
    assert "No fairness warnings." in page
    assert data["flops_convention"] in page
    pictures = pictures_in(page)
    assert pictures == ["pictures/gpt2-seeds.png", "pictures/gpt2-seeds-sources.png"]
    assert all((tmp_path / "docs" / picture).exists() for picture in pictures)


def test_the_summary_tells_what_each_source_saves_and_when_not_to_grow(tmp_path: Path) -> None:
    page = made(tmp_path / "docs", f"gpt2={finished(tmp_path / 'run', many())}")
    assert [list(row.values()) for row in tables_of(page)["What growing saves"]] == [
        ["[Text decoder: GPT-2](#text-decoder-gpt-2)", "none", "-", "12.0 %", "`g_stack`", "12.0 %", "-", "-"],
        ["", "`small`", "15 %", "40.0 %", "`ligo`", "25.0 %", "1 target", "40.0 %"],
        ["", "`zoo`", "70 %", "60.0 %", "`ligo`", "-10.0 %", "2 targets", "60.0 %"],
    ]
    (row,) = tables_of(page)["When not to grow"]
    assert list(row.values()) == [
        "[Text decoder: GPT-2](#text-decoder-gpt-2)",
        "-",
        "40, 55, 63, 78, 100 %",
        "25, 115, 170 %",
    ]
    assert "- One seed: Text decoder: GPT-2." in page
    scale = "**All models here are small:** 0.77 million parameters, trained on 10.6 tokens (or image patches) per parameter."
    assert scale in " ".join(page.split())
    alone = made(tmp_path / "alone", f"gpt2={finished(tmp_path / 'other', measured({}, {}, sources={}))}")
    assert "What growing saves" not in tables_of(alone)
    assert list(tables_of(alone)["When not to grow"][0].values())[1:] == ["-", "-", "-"]


def test_methods_with_one_bound_stand_together(tmp_path: Path) -> None:
    data = measured({"ligo": Grown(paper=80.0), "lemon": Grown(paper=82.0), "direct": Grown(paper=10.0)})
    (row,) = tables_of(made(tmp_path / "docs", f"gpt2={finished(tmp_path / 'run', data)}"))["What growing saves"]
    assert (row["saved, source left out (paper)"], row["method"]) == ("at least 75.0 %", "`lemon`, `ligo`")


def test_a_figure_that_is_not_read_at_scratchs_loss_has_a_star(tmp_path: Path) -> None:
    data = measured({"ligo": Grown(paper=40.0, shares=(0.25, 0.48))})
    (row,) = tables_of(made(tmp_path / "docs", f"gpt2={finished(tmp_path / 'run', data)}"))["What growing saves"]
    assert row["saved, source left out (paper)"] == "40.0 % \\*"


def test_scratch_is_named_where_it_is_best(tmp_path: Path) -> None:
    data = measured({"ligo": Grown(paper=-30.0, source=None)}, {"small": Control(quarter=9.0, whole=8.0)}, sources={})
    (row,) = tables_of(made(tmp_path / "docs", f"gpt2={finished(tmp_path / 'run', data)}"))["When not to grow"]
    assert row["do not grow at"] == "25, 40, 63, 100 % (`scratch`)"
    assert row["growing is ahead at"] == "-"


def test_bounds_stay_bounds(tmp_path: Path) -> None:
    page = made(tmp_path / "docs", f"gpt2={finished(tmp_path / 'run', measured({'ligo': Grown(paper=80.0)}))}")
    (row,) = tables_of(page)["What growing saves"]
    assert (row["saved, source charged (net)"], row["pays from"]) == ("at least 60.0 %", "1 target")
    assert row_of(page, "Savings at equal loss", "ligo")["Saved, paper"] == "at least 75.0 %"


def test_making_it_again_changes_nothing(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    run = finished(tmp_path / "run", measured())
    page = made(docs, f"bert={run}")
    before = files(docs)
    assert sorted(before) == ["pictures/bert.png", "results.json", "results.md"]
    assert made(docs) == page  # without the directory
    assert files(docs) == before
    made(docs, f"bert={run}")
    assert files(docs) == before
    assert make(docs, "--check").exit_code == 0
    assert files(docs) == before


def test_a_kind_replaces_that_kind_alone(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    first, other = finished(tmp_path / "a", many()), finished(tmp_path / "b", measured(warmup_steps=77))
    made(docs, f"cait={first}", f"gpt2={first}")
    before = json.loads((docs / "results.json").read_bytes())["kinds"]
    page = made(docs, f"gpt2={other}")
    after = json.loads((docs / "results.json").read_bytes())["kinds"]
    assert list(after) == list(before) == ["gpt2", "cait"]
    assert after["cait"] == before["cait"]
    assert after["gpt2"]["warmup_steps"] == 77
    # Its only source needs no picture of its own any more.
    assert pictures_in(page) == ["pictures/gpt2.png", "pictures/cait.png", "pictures/cait-sources.png"]
    assert not (docs / "pictures" / "gpt2-sources.png").exists()


def test_figures_of_an_older_format_are_replaced_and_never_mixed(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "results.json").write_text('{"format": "ligo-results/2", "kinds": {"bert": {}}}')
    before = files(docs)
    for arguments in ([], ["--check"]):
        result = make(docs, *arguments)
        assert result.exit_code == 1
        assert "ligo-results/3" in result.output
        assert files(docs) == before
    made(docs, f"gpt2={finished(tmp_path / 'run', measured())}")
    assert list(json.loads((docs / "results.json").read_bytes())["kinds"]) == ["gpt2"]


def test_a_page_that_is_out_of_date_is_seen(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    assert make(docs, "--check").exit_code == 1  # nothing there
    made(docs, f"gpt2={finished(tmp_path / 'run', measured())}")
    page = docs / "results.md"
    page.write_text(page.read_text(encoding="utf-8").replace("3.300", "3.100"), encoding="utf-8")
    before = files(docs)
    result = make(docs, "--check")
    assert result.exit_code == 1
    assert "is not what" in result.output
    assert files(docs) == before


NOTHING = {0: SeedRuns(ends=[End(steps=1000, flops=1e13, loss=None)])}


@pytest.mark.parametrize(
    "data",
    [
        measured(sources={"small": (None, 3.9)}),
        measured({}, {}, sources={}),
        measured(replaced={"ligo": NOTHING}),
        measured(replaced={"scratch": NOTHING}),
        measured(replaced={"4 layers": NOTHING}),
        measured({"ligo": Grown(paper=0.0, above=3.0)}, {"small": Control(quarter=9.0, whole=8.0)}),
    ],
    ids=["source not known", "scratch alone", "diverged", "scratch diverged", "control diverged", "all above"],
)
def test_what_is_not_known_is_said(tmp_path: Path, data: dict[str, Any]) -> None:
    docs = tmp_path / "docs"
    page = made(docs, f"gpt2={finished(tmp_path / 'run', data)}")
    assert "None" not in page
    assert "nan" not in page.casefold().split()
    if data["sources"] and data["sources"][0]["flops"] is None:
        assert row_of(page, "Savings at equal loss", "ligo")["Saved, net"] == "source cost unknown"
        row = tables_of(page)["What growing saves"][-1]
        assert (row["its cost"], row["saved, source charged (net)"], row["pays from"]) == (
            "not known",
            "source cost unknown",
            "not known",
        )
    assert make(docs, "--check").exit_code == 0


def test_images_are_counted_by_patches_and_accuracy_is_shown(tmp_path: Path) -> None:
    data = measured(task="image-classification", data={"digest": "0", "images": {"train": 9, "test": 512}})
    data["budget"] |= {"unit": "images", "examples": 60160}
    data["methods"]["ligo"]["ends"][-1]["accuracy"] = 0.4321
    page = made(tmp_path / "docs", f"cait={finished(tmp_path / 'run', data)}")
    assert "60,160 images, 10.6 patches per parameter" in page
    assert "Losses are nats an image, on 512 held-out images." in page
    assert row_of(page, "Savings at equal loss", "ligo")["Accuracy"] == "43.2 %"
    assert row_of(page, "Savings at equal loss", "lemon")["Accuracy"] == "-"


# --- what goes in ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "bert", "cait"])
def test_the_command_says_what_was_not_as_the_recipe_has_it(kind: str) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"compare_{kind}.yaml")
    assert recipe.compare is not None
    settings = recipe.compare.model_dump(mode="json")
    names = settings["methods"] or [name for name in METHODS if name != "scratch"]
    data = measured(
        {name: Grown(paper=1.0, source=None) for name in names},
        recipe=f"compare_{kind}.yaml",
        settings=settings,
        skipped={},
    )
    data["budget"]["steps"] = settings["steps"]
    data["seeds"] = settings["seeds"]
    given = " --set fit.data.images=DIR" if kind == "cait" else ""
    plain = script.command_of(data, kind)
    assert plain == f"ligo-convert compare recipes/compare_{kind}.yaml{given} --out out/compare-{kind}"
    # The recipe's own head names the same command.
    assert plain in (ROOT / "recipes" / f"compare_{kind}.yaml").read_text(encoding="utf-8")

    data |= {"settings": settings | {"warmup_fraction": 0.25}, "seeds": [5, 6]}
    data["budget"]["steps"] = 7
    del data["methods"][names[-1]]
    other = script.command_of(data, f"{kind}-seeds")
    for part in (f"--methods {','.join(names[:-1])} --steps 7 --seeds 5,6", "--set compare.warmup_fraction=0.25"):
        assert part in other
    assert other.endswith(f"--out out/compare-{kind}-seeds")


def test_the_command_may_be_told(tmp_path: Path) -> None:
    told = "ligo-convert compare mine.yaml --set fit.steps=7 " + " ".join(f"--set a.key{at}=value" for at in range(12))
    page = made(tmp_path / "docs", f"gpt2={finished(tmp_path / 'run', measured())}", "--command", f"gpt2={told}")
    block = re.findall(r"^```\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)[0]
    assert block.replace(" \\\n ", "") == told
    assert max(map(len, block.splitlines())) <= 130


def test_foreign_text_is_shown_and_does_nothing(tmp_path: Path) -> None:
    grown = GROWN | {HOSTILE: Grown(paper=45.0, source=HOSTILE)}
    data = measured(
        grown,
        {HOSTILE + "c": Control(quarter=3.0, whole=2.9)},
        sources={"small": (0.15, 3.9), HOSTILE: (0.15, 3.9)},
        recipe=HOSTILE,
        architecture=HOSTILE,
        family=HOSTILE,
        flops_convention=f"```\n{HOSTILE}",
        skipped={HOSTILE: HOSTILE},
        fairness_warnings=[{"rule": HOSTILE, "text": HOSTILE, "methods": [HOSTILE]}],
        versions={"torch": HOSTILE, HOSTILE: "1"},
        chosen={"name": HOSTILE, HOSTILE: HOSTILE},
    )
    for name in (HOSTILE, "ligo"):
        data["methods"][name] |= {
            "strategy": HOSTILE,
            "options": [HOSTILE],
            "start": {"width": HOSTILE, "depth": HOSTILE},
        }
    data["sources"][0]["label"] = "/a/place/of/a/machine"
    docs = tmp_path / "docs"
    page = made(docs, f"gpt2={finished(tmp_path / 'run', data)}")
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "/a/place" not in (docs / "results.json").read_text()
    bare = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", re.sub(r"^(```+)(?:text)?\n.*?^\1$", "", page, flags=re.M | re.S))
    for sign in ("<script", "javascript:", "http://"):
        assert sign not in bare, sign
    assert page.count("\n# ") == 0
    # Every line of a table has as many cells as its head.
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert make(docs, "--check").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["llama=RUN"], "KIND is gpt2, bert, cait"),
        (["gpt2-Bad=RUN"], "KIND=DIR"),
        (["gpt2/../x=RUN"], "KIND=DIR"),
        (["RUN"], "KIND=DIR"),
        (["gpt2=RUN/nothing"], "no finished comparison"),
        (["gpt2=RUN", "--check"], "takes no directories"),
        (["--command", "gpt2=x"], "whose directory is given"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_written(tmp_path: Path, arguments: list[str], told: str) -> None:
    run = finished(tmp_path / "run", measured())
    result = make(tmp_path / "docs", *(argument.replace("RUN", str(run)) for argument in arguments))
    assert result.exit_code != 0
    assert told in " ".join(result.output.replace("\u2502", " ").split())
    assert not (tmp_path / "docs").exists()


@pytest.mark.parametrize("text", ["not json", '{"format": "another"}', "[]"])
def test_a_directory_without_a_comparison_is_refused(tmp_path: Path, text: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "compare.json").write_text(text)
    result = make(tmp_path / "docs", f"gpt2={run}")
    assert result.exit_code == 1
    assert "compare.json" in result.output
    assert not (tmp_path / "docs").exists()
