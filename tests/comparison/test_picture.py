"""Laws of the pictures of a comparison: the same for the same numbers, every entry named, every mark a finished run."""

from __future__ import annotations

import itertools
import os
import re
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support.comparisons import BUDGET, CONTROLS, FINAL, GROWN, Control, Grown, measured

from ligo_convert.comparison.frontier import End
from ligo_convert.comparison.picture import (
    _limits,
    _lines,
    _loss_figure,
    _range,
    _sources_figure,
    comparison_png,
    comparison_svg,
    scratch_loss,
    sources_png,
    sources_svg,
)
from ligo_convert.comparison.record import SeedRuns

HOSTILE = "</svg><script>alert(1)</script>-->$\\frac{1$ \x1b[2J\u202e\u6a21"

TWO = {"small": (0.15, 3.9), "zoo": (0.7, 3.6)}
MANY = {
    **{f"method-{number}@{source}": Grown(paper=5.0 * number, source=source, base=f"method-{number}")
       for number in range(8) for source in TWO},
    "ligo@small": Grown(paper=50.0, base="ligo"),
    "ligo@zoo": Grown(paper=60.0, source="zoo", base="ligo"),
    "ligo+token-drop": Grown(paper=45.0),
}  # fmt: skip
SMALLER = {f"{number} layers": Control(quarter=3.6 + number / 50, whole=3.5) for number in (1, 2, 4, 6)}


def drawn_texts(monkeypatch: pytest.MonkeyPatch, data: dict[str, Any]) -> list[str]:
    """The texts that a picture shows, all of them inside it."""
    from matplotlib.backends.backend_agg import RendererAgg

    texts: list[str] = []
    real: Any = RendererAgg.draw_text

    def draw_text(
        self: Any, gc: Any, x: float, y: float, text: str, prop: Any, angle: float, *more: Any, **options: Any
    ) -> None:
        width, _, _ = self.get_text_width_height_descent(text, prop, False)
        assert x >= 0, text
        assert 0 <= y < self.height, text
        assert angle or x + width <= self.width, f"{text} is cut off"
        texts.append(text)
        real(self, gc, x, y, text, prop, angle, *more, **options)

    monkeypatch.setattr(RendererAgg, "draw_text", draw_text)
    comparison_png(data)
    return texts


def many(**more: Any) -> dict[str, Any]:
    return measured(MANY, SMALLER, sources=TWO, **more)


def test_the_picture_holds_nothing_but_pixels() -> None:
    data, at, kinds = comparison_png(measured()), 8, set()
    assert struct.unpack(">II", data[16:24]) == (2000, 976)
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kinds.add(data[at + 4 : at + 8])
        at += 12 + length
    assert kinds == {b"IHDR", b"pHYs", b"IDAT", b"IEND"}


@pytest.mark.parametrize("draw", [comparison_png, comparison_svg])
def test_the_same_numbers_give_the_same_bytes(draw: Any) -> None:
    other = measured()
    other["methods"]["ligo"]["ends"][1]["loss"] += 0.01
    assert draw(measured()) == draw(measured())
    assert draw(measured()) != draw(other)


def test_another_process_draws_the_same() -> None:
    code = "from support.comparisons import *; from ligo_convert.comparison.picture import *; print(comparison_svg(measured()))"
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.rstrip("\n") == comparison_svg(measured())


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    comparison_svg(measured())
    sources_svg(many())
    assert dict(matplotlib.rcParams) == before
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


def test_every_entry_is_named_beside_both_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = Counter(drawn_texts(monkeypatch, many(seeds=(0, 1, 2))))
    names = [*MANY, *SMALLER, *(f"source {name}" for name in TWO), "scratch"]
    # A source that ends before the first end of a method lies above the panels.
    assert all(texts[name] + texts[f"{name} \u2191"] == 2 for name in names), texts
    assert texts["held-out loss, nats a token"] == 1
    assert texts["saved"] == 2
    assert [text for text in texts if "Small marks: 3 seeds." in text]
    assert texts["100"] == 2, "scratch's budget has its tick"


@pytest.mark.parametrize(
    ("task", "unit"), [("masked-lm", "nats a masked token"), ("image-classification", "nats an image")]
)
def test_the_loss_has_its_unit(task: str, unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"held-out loss, {unit}" in drawn_texts(monkeypatch, measured(task=task))


def test_savings_keep_their_bounds_beside_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    grown = {
        "reached": Grown(paper=42.0),
        "below": Grown(paper=80.0),
        "own": Grown(paper=20.0, shares=(0.25, 0.4)),
        "above": Grown(paper=0.0, shares=(0.25, 0.3), above=0.2),
    }
    texts = drawn_texts(monkeypatch, measured(grown))
    # Right of each panel: paper, then net.
    assert {"42 %", "27 %", "\u226575 %", "\u226560 %", "20 %*", "\u221210 %*"} <= set(texts)
    assert [text for text in texts if text.startswith("\u2264")]
    assert texts.count("\u2013") == 0
    nothing = measured(
        {"ligo": GROWN["ligo"]}, replaced={"scratch": {0: SeedRuns(ends=[End(steps=1, flops=1e13, loss=None)])}}
    )
    assert drawn_texts(monkeypatch, nothing).count("\u2013") == 2


def test_labels_do_not_overlap() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure, _ = _loss_figure(many())
    canvas: Any = FigureCanvasAgg(figure)
    boxes = [
        text.get_window_extent(canvas.get_renderer()) for axes in figure.axes for text in axes.texts if text.get_text()
    ]
    assert len(boxes) > 2 * len(MANY)
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_every_mark_is_a_finished_run_and_net_moves_it_by_the_source() -> None:
    data = measured()
    paper, net = (
        {str(line.get_color()): line.get_xydata() for line in axes.lines if len(line.get_xdata()) == 4}
        for axes in _loss_figure(data)[0].axes
    )
    assert paper.keys() == net.keys()
    ligo = paper["#0072b2"]
    for (share, loss), (charged, same), end in zip(ligo, net["#0072b2"], data["methods"]["ligo"]["ends"], strict=True):
        assert share == pytest.approx(100 * end["flops"] / BUDGET)
        assert loss == same == end["loss"]
        assert charged - share == pytest.approx(15.0)
    assert (paper["#000000"] == net["#000000"]).all()


def test_without_the_cost_of_the_source_one_panel_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    data = measured({"ligo": GROWN["ligo"]}, sources={"small": (None, 3.9)})
    left, right = _loss_figure(data)[0].axes
    assert left.lines
    assert not right.lines
    assert [text for text in drawn_texts(monkeypatch, data) if "is unknown" in text]
    # Methods without a source are drawn there all the same.
    assert _loss_figure(measured(sources={"small": (None, 3.9)}))[0].axes[1].lines


def test_a_run_that_went_astray_does_not_squash_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    data = measured(GROWN | {"lost": Grown(paper=0.0, above=40.0)})
    lines = _lines(data)
    assert _limits(lines)[1] < 5
    assert "lost \u2191" in drawn_texts(monkeypatch, data)
    first = min(flops for line in lines if line.kind == "method" for flops, _ in line.mean)
    shown = [loss for line in lines if line.name != "lost" for flops, loss in line.mean if flops >= first]
    assert _limits(lines)[0] < min(shown) < max(shown) < _limits(lines)[1]


def test_what_lies_before_the_first_end_of_a_method_takes_no_room() -> None:
    """Sources count where they are charged; short runs of scratch are compared with nothing."""
    data = measured(GROWN)
    before, budget = _lines(data), data["budget"]["flops"]
    first = min(flops for line in before if line.kind == "method" for flops, _ in line.mean)
    ends = data["methods"]["scratch"]["ends"]
    ends.insert(0, {**ends[0], "flops": 0.3 * first, "loss": 9.0})
    lines = _lines(data)
    assert _limits(lines) == _limits(before)
    left, right = _range(lines, "paper", budget)
    assert (left, right) == _range(before, "paper", budget)
    assert 100 * 0.75 * first / budget < left < 100 * first / budget
    assert _range(lines, "net", budget)[1] > right


def test_no_two_entries_look_alike() -> None:
    lines = [line for line in _lines(many()) if line.marker != "*"]
    looks = {(line.colour, str(line.dashes), line.marker) for line in lines}
    assert len(looks) == len(lines)
    by_name = {line.name: line for line in lines}
    assert by_name["scratch"].colour == "#000000"
    assert by_name["ligo@small"].colour == by_name["ligo@zoo"].colour == by_name["ligo+token-drop"].colour
    assert by_name["ligo@small"].marker != by_name["ligo@zoo"].marker
    assert all(by_name[name].dashes != "solid" for name in SMALLER), "controls are dashed"


def test_entries_without_a_finite_loss_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    none, some = End(steps=1000, flops=1e13, loss=None), End(steps=2000, flops=2e13, loss=3.4)
    ends = {"scratch": [none], "4 layers": [none], "ligo": [none], "lemon": [none, some]}
    data = measured(replaced={name: {0: SeedRuns(ends=found)} for name, found in ends.items()})
    texts = drawn_texts(monkeypatch, data)
    assert {"scratch (no loss)", "4 layers (no loss)", "ligo (no loss)", "lemon"} <= set(texts)


def test_odd_comparisons_are_drawn_too() -> None:
    alone = measured({}, {}, sources={})
    one = measured(
        {"ligo": Grown(paper=40.0, shares=(0.3,))}, {"small": Control(quarter=3.6, whole=3.5, shares=(0.25,))}
    )
    nothing = {0: SeedRuns(ends=[End(steps=1, flops=1.0, loss=None)])}
    empty = measured(replaced=dict.fromkeys(("scratch", *GROWN, *CONTROLS), nothing))
    for data in (alone, one, empty):
        assert comparison_png(data).startswith(b"\x89PNG")
        assert sources_png(data) is None


def test_the_final_loss_is_that_of_the_whole_budget() -> None:
    assert scratch_loss(measured()) == pytest.approx(FINAL)
    more = {0: SeedRuns(ends=[End(steps=4000, flops=BUDGET, loss=3.3), End(steps=8000, flops=2 * BUDGET, loss=3.1)])}
    assert scratch_loss(measured(replaced={"scratch": more})) == pytest.approx(3.3)


def test_savings_are_drawn_against_the_cost_of_the_source() -> None:
    text, png = sources_svg(many()), sources_png(many())
    assert text is not None
    assert png is not None
    assert png.startswith(b"\x89PNG")
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img"
    assert "ligo" in str(root.get("aria-label"))
    (axes,) = _sources_figure(
        measured(
            {"a@small": Grown(paper=80.0, base="a"), "a@zoo": Grown(paper=60.0, source="zoo", base="a")}, sources=TWO
        )
    )[0].axes
    assert [text.get_text() for text in axes.texts].count("\u2265") == 2, "a bound is marked, net and paper"
    assert sources_svg(measured()) is None, "one source is no function of its cost"


def test_the_drawing_is_one_element_that_asks_for_nothing() -> None:
    data = many()
    data["methods"][HOSTILE] = data["methods"].pop("ligo@zoo")
    data["architecture"] = HOSTILE
    for found in data["sources_tried"]:
        found["base"] = HOSTILE
    for text in (comparison_svg(data), sources_svg(data) or ""):
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.get("role") == "img"
        assert "<!--" not in text
        assert "\x1b" not in text
        assert set(re.findall(r"https?:[^\"]*", text)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
        assert {element.tag.rpartition("}")[2] for element in root.iter()} <= {
            *("svg", "g", "path", "use", "defs", "clipPath", "rect", "style", "text")
        }
        ids = re.findall(r' id="([^"]*)"', text)
        assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', text)) <= set(ids)


@pytest.mark.parametrize("name", [HOSTILE, "W" * 500, "\u6a21" * 30, ""], ids=["hostile", "long", "letters", "empty"])
def test_any_name_is_drawn_as_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = measured()
    data["methods"][name] = data["methods"].pop("lemon")
    texts = drawn_texts(monkeypatch, data)
    assert all(
        character < "\u0250" or character in "\u2013\u2191\u2212\u2264\u2265" for text in texts for character in text
    )
    assert "\x1b" not in "".join(texts)
    assert max(map(len, texts)) <= 250


def test_the_picture_opens_in_another_program(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "compare.png").write_bytes(comparison_png(measured()))
    with Image.open(tmp_path / "compare.png") as image:
        image.load()
        assert set(image.info) == {"dpi"}
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}
    assert {(0, 0, 0), (0, 114, 178), (213, 94, 0)} <= colours
