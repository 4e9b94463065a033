"""Laws of the page of results: it is what the figures give, nothing is lost on the way to it, and nothing foreign acts in it."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.comparisons import MANY, broken, comparison, curve

from ligo_convert.comparison.methods import METHODS
from ligo_convert.comparison.plot import comparison_png
from ligo_convert.recipes.recipe import load_recipe

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "results"
HOSTILE = "a|b`c](javascript:alert(1))<script>x</script>![i](http://x.y)\n# h\x1b[2J\u202e"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_results", ROOT / "scripts" / "make_results.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up.
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


script = _script()


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


def rows_of(page: str, name: str) -> list[list[str]]:
    """The cells of the lines of tables that begin with a method's name."""
    return [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith(f"| `{name}` |")]


def pictures_in(page: str) -> list[str]:
    return re.findall(r"^!\[[^\]]*\]\(([^)]+)\)$", page, re.MULTILINE)


# --- the page in the repository -----------------------------------------------------------------------------------------


def test_the_page_is_what_the_figures_give() -> None:
    result = make(DOCS, "--check")
    assert result.exit_code == 0, result.output
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    kinds = json.loads((DOCS / "results.json").read_bytes())["kinds"]
    assert pictures_in(page) == [f"pictures/{kind}.png" for kind in kinds]
    for name in pictures_in(page):
        assert (DOCS / name).read_bytes().startswith(b"\x89PNG"), name


# --- what is made --------------------------------------------------------------------------------------------------------


def test_every_method_and_figure_is_on_the_page(tmp_path: Path) -> None:
    data = comparison(MANY, seeds=(0, 1, 2))
    page = made(tmp_path / "docs", f"gpt2-seeds={finished(tmp_path / 'run', data)}")
    for name, method in data["methods"].items():
        (row,) = rows_of(page, name)
        assert row[1] == ("`net2net/stack`" if method["start"] else "drawn")
        assert row[2] == " ".join(["`plain`", *(f"`+{option}`" for option in method["options"])])
        losses = [run["final"]["loss"] for run in method["seeds"].values()]
        assert row[4] == f"{sum(losses) / 3:.4f} +- 0.0040"
        for way, cell in zip(("paper", "net"), row[-2:], strict=True):
            saved = method["savings"][way]
            reached = sum(run["savings"]["paper"] is not None for run in method["seeds"].values())
            never = f"{reached} of 3 seeds" if reached else "not reached"
            assert cell == ("-" if name == "scratch" else never if saved is None else f"{saved:.1f} % +- 1.2"), name
    assert "## Text decoder: GPT-2, several seeds" in page
    assert "source took 14.5 % of these FLOPs; its loss is 3.9000." in page
    assert "- `aki`: it needs a width that is a multiple of the source's" in page
    assert "No fairness warnings." in page
    assert data["flops_convention"] in page
    (picture,) = pictures_in(page)
    assert (tmp_path / "docs" / picture).exists()


def test_making_it_again_changes_nothing(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    run = finished(tmp_path / "run", comparison())
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
    first, other = finished(tmp_path / "a", comparison()), finished(tmp_path / "b", comparison(schedule="cosine"))
    made(docs, f"cait={first}", f"gpt2={first}")
    before = json.loads((docs / "results.json").read_bytes())["kinds"]
    page = made(docs, f"gpt2={other}")
    after = json.loads((docs / "results.json").read_bytes())["kinds"]
    assert list(after) == list(before) == ["gpt2", "cait"]
    assert after["cait"] == before["cait"]
    assert after["gpt2"]["schedule"] == "cosine"
    assert pictures_in(page) == ["pictures/gpt2.png", "pictures/cait.png"]


def test_a_page_that_is_out_of_date_is_seen(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    assert make(docs, "--check").exit_code == 1  # nothing there
    made(docs, f"gpt2={finished(tmp_path / 'run', comparison())}")
    page = docs / "results.md"
    page.write_text(page.read_text(encoding="utf-8").replace("3.3000", "3.1000"), encoding="utf-8")
    before = files(docs)
    result = make(docs, "--check")
    assert result.exit_code == 1
    assert "is not what" in result.output
    assert files(docs) == before


def test_the_best_are_told_in_short(tmp_path: Path) -> None:
    data = comparison()
    for name, method in data["methods"].items():
        method["savings"]["net"] = {"scratch": 0.0, "stack": None, "net2net": 30.0, "lemon": 40.0, "ligo": 35.0}[name]
        method["savings"]["paper"] = None if name == "stack" else (method["savings"]["net"] or 0) + 14.5
        method["seeds"]["0"]["savings"] = dict(method["savings"])
    page = made(tmp_path / "docs", f"gpt2={finished(tmp_path / 'run', data)}")
    (row,) = [line for line in page.splitlines() if line.startswith("| [Text decoder: GPT-2](#text-decoder-gpt-2) |")]
    assert row.strip("| ").split(" | ")[1:] == [
        "3.300",
        "`lemon` 40.0 % (54.5 %)",
        "`lemon` 40.0 % (54.5 %)",
        "35.0 % (49.5 %)",
        "",
        "`net2net` 30.0 % (44.5 %)",
    ]
    order = [name for line in page.splitlines() for name in re.findall(r"^\| `(\w+)` \|", line)]
    assert order == ["lemon", "ligo", "net2net", "scratch", "stack"]


@pytest.mark.parametrize(
    "data",
    [
        comparison(charged=False),
        comparison({"scratch": MANY["scratch"]}),
        broken("ligo", [3.4, None]),
        broken("ligo", [None]),
        broken("scratch", [None]),
    ],
    ids=["source not known", "scratch alone", "a gap", "diverged", "scratch diverged"],
)
def test_what_is_not_known_is_said(tmp_path: Path, data: dict[str, Any]) -> None:
    for method in data["methods"].values():
        if method["final"]["loss"] is None:
            method["seeds"]["0"]["final"]["loss"] = None
    docs = tmp_path / "docs"
    page = made(docs, f"gpt2={finished(tmp_path / 'run', data)}")
    assert "None" not in page
    assert "nan" not in page.casefold().split()
    if data["source"]["flops"] is None:
        assert "The cost of training the source is not known; its loss is 3.9000." in page
        assert rows_of(page, "ligo")[0][-1] == "not known"
    if data["methods"].get("ligo", {}).get("final", {"loss": 0})["loss"] is None:
        assert "diverged" in rows_of(page, "ligo")[0]
    assert make(docs, "--check").exit_code == 0


def test_images_are_counted_by_patches_and_accuracy_is_shown(tmp_path: Path) -> None:
    data = comparison(task="image-classification", data={"digest": "0", "images": {"train": 9, "test": 512}})
    data["budget"] |= {"unit": "images", "examples": 60160}
    data["methods"]["ligo"]["seeds"]["0"]["final"]["accuracy"] = 0.4321
    page = made(tmp_path / "docs", f"cait={finished(tmp_path / 'run', data)}")
    assert "60,160 images, 10 patches per parameter" in page
    assert "Losses are nats an image, on 512 held-out images." in page
    assert rows_of(page, "ligo")[0][5] == "43.2 %"
    assert rows_of(page, "lemon")[0][5] == ""


# --- what goes in ----------------------------------------------------------------------------------------------------------


def test_curves_are_thinned_where_it_does_not_matter(tmp_path: Path) -> None:
    data = comparison(seeds=(0, 1))
    for method in data["methods"].values():
        for seed, run in method["seeds"].items():
            points = curve(7.0, run["final"]["loss"], seed=int(seed), points=400)
            # Seeds may end at different budget fractions.
            run["curve"] = points[: 400 - 100 * int(seed)]
            run["final"] = {**run["curve"][-1], "accuracy": None, "budget_fraction": 1.0}
        method["curve"] = method["seeds"]["0"]["curve"]
    figures = script.figures_of(data, "gpt2")
    for name, method in figures["methods"].items():
        steps = []
        for seed, run in method["seeds"].items():
            whole = data["methods"][name]["seeds"][seed]["curve"]
            pairs = [[point["flops"], point["loss"]] for point in whole]
            assert len(run["curve"]) <= script.POINTS + 2
            assert all(point in pairs for point in run["curve"])
            assert run["curve"][0] == pairs[0]
            assert run["curve"][-1] == pairs[-1]
            steps.append([pairs.index(point) for point in run["curve"]])
        # A mean over seeds takes points that lie at the same places.
        assert all(one == other for one, other in zip(*steps, strict=False))
    assert comparison_png(script.full(figures))
    assert (
        script.figures_of({**data, "methods": script.full(figures)["methods"]}, "gpt2")["methods"] == figures["methods"]
    )


def test_a_short_curve_is_kept_whole() -> None:
    data = comparison({"scratch": (7.1, 3.3, False)})
    points = [{"flops": float(at), "loss": 5.0 - at / 10} for at in range(script.POINTS)]
    data["methods"]["scratch"]["seeds"]["0"]["curve"] = points
    figures = script.figures_of(data, "gpt2")
    assert figures["methods"]["scratch"]["seeds"]["0"]["curve"] == [[point["flops"], point["loss"]] for point in points]


@pytest.mark.parametrize("kind", ["gpt2", "bert", "cait"])
def test_the_command_says_what_was_not_as_the_recipe_has_it(kind: str) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"compare_{kind}.yaml")
    settings, fit = recipe.compare, recipe.fit
    assert settings is not None
    assert fit is not None
    names = list(METHODS) if settings.methods is None else ["scratch", *settings.methods]
    data = comparison(
        dict.fromkeys(names, MANY["scratch"]),
        recipe=f"compare_{kind}.yaml",
        skipped={},
        grid={
            "learning_rates": settings.learning_rates,
            "schedules": settings.schedules,
            "tuning_fraction": settings.tuning_fraction,
            "budget_fractions": sorted({*settings.budget_fractions, 1.0}),
        },
    )
    data["budget"] |= {"steps": settings.steps, "batch_size": settings.batch_size or fit.batch_size}
    data["seeds"] = settings.seeds
    given = " --set fit.data.images=DIR" if kind == "cait" else ""
    plain = script.command_of(data, kind)
    assert plain == f"ligo-convert compare recipes/compare_{kind}.yaml{given} --out out/compare-{kind}"
    # The recipe's own head names the same command.
    assert plain in (ROOT / "recipes" / f"compare_{kind}.yaml").read_text(encoding="utf-8")

    del data["methods"]["stackbert"]
    data |= {"seeds": [5, 6], "grid": {**data["grid"], "tuning_fraction": 0.25}}
    data["budget"]["steps"] += 1
    other = script.command_of(data, f"{kind}-seeds")
    assert f"--methods {','.join(data['methods'])} --steps {data['budget']['steps']} --seeds 5,6" in other
    assert "--set compare.tuning_fraction=0.25" in other
    assert other.endswith(f"--out out/compare-{kind}-seeds")


def test_the_command_may_be_told(tmp_path: Path) -> None:
    told = "ligo-convert compare mine.yaml --set fit.steps=7 " + " ".join(f"--set a.key{at}=value" for at in range(12))
    page = made(tmp_path / "docs", f"gpt2={finished(tmp_path / 'run', comparison())}", "--command", f"gpt2={told}")
    (block,) = re.findall(r"^```\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)
    assert block.replace(" \\\n ", "") == told
    assert max(map(len, block.splitlines())) <= 130


def test_foreign_text_is_shown_and_does_nothing(tmp_path: Path) -> None:
    data = comparison({**MANY, HOSTILE: (3.9, 3.2, True)})
    method = data["methods"][HOSTILE]
    method |= {"strategy": HOSTILE, "options": [HOSTILE], "start": {"width": HOSTILE, "depth": HOSTILE}}
    data |= {
        "recipe": HOSTILE,
        "architecture": HOSTILE,
        "family": HOSTILE,
        "task": HOSTILE,
        "schedule": HOSTILE,
        "flops_convention": f"```\n{HOSTILE}",
        "skipped": {HOSTILE: HOSTILE},
        "fairness_warnings": [{"rule": HOSTILE, "text": HOSTILE, "methods": [HOSTILE]}],
        "versions": {"torch": HOSTILE, HOSTILE: "1"},
    }
    data["grid"]["schedules"] = [HOSTILE, "stable"]
    data["source"]["label"] = "/a/place/of/a/machine"
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
    run = finished(tmp_path / "run", comparison())
    result = make(tmp_path / "docs", *(argument.replace("RUN", str(run)) for argument in arguments))
    assert result.exit_code != 0
    assert told in " ".join(result.output.replace("│", " ").split())
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
