"""Laws of the picture of a comparison: the same for the same numbers, every method named, every mark where its curve gets there."""

from __future__ import annotations

import itertools
import math
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
from support.comparisons import MANY, SOURCE_FLOPS, broken, comparison

from ligo_convert.comparison.plot import (
    _draw_figure,
    _limits,
    _lines,
    _mean,
    comparison_png,
    comparison_svg,
    reached,
    scratch_loss,
)
from ligo_convert.outputs.plotting import spread_labels

HOSTILE = "</svg><script>alert(1)</script>-->$\\frac{1$ \x1b[2J\u202e\u6a21"


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


def marks(data: dict[str, Any]) -> list[list[tuple[float, float]]]:
    """The circles of each panel, in FLOPs and loss."""
    found = []
    for axes in _draw_figure(data)[0].axes:
        label = axes.get_xlabel()
        unit = 10.0 ** int(re.findall(r"\{(-?\d+)\}", label)[0]) if label else 1.0
        circles = [line for line in axes.lines if line.get_marker() == "o"]
        found.append([(line.get_xdata()[0] * unit, line.get_ydata()[0]) for line in circles])
    return found


def test_the_picture_holds_nothing_but_pixels() -> None:
    data, at, kinds = comparison_png(comparison()), 8, set()
    assert struct.unpack(">II", data[16:24]) == (2000, 976)
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kinds.add(data[at + 4 : at + 8])
        at += 12 + length
    assert kinds == {b"IHDR", b"pHYs", b"IDAT", b"IEND"}


@pytest.mark.parametrize("draw", [comparison_png, comparison_svg])
def test_the_same_numbers_give_the_same_bytes(draw: Any) -> None:
    data, other = comparison(), comparison()
    other["methods"]["ligo"]["curve"][20]["loss"] += 0.01
    assert draw(data) == draw(comparison())
    assert draw(data) != draw(other)


def test_another_process_draws_the_same() -> None:
    code = "from support.comparisons import *; from ligo_convert.comparison.plot import *; print(comparison_svg(comparison()))"
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.rstrip("\n") == comparison_svg(comparison())


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    comparison_png(comparison())
    comparison_svg(comparison())
    assert dict(matplotlib.rcParams) == before
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_every_method_is_named_beside_both_panels(seeds: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    texts = Counter(drawn_texts(monkeypatch, comparison(MANY, seeds=seeds)))
    assert all(texts[name] == 2 for name in MANY), texts
    assert texts["held-out loss, nats a token"] == 1
    assert texts["saved"] == 2
    assert bool([text for text in texts if "3 seeds" in text]) == (len(seeds) > 1)


@pytest.mark.parametrize(
    ("task", "unit"), [("masked-lm", "nats a masked token"), ("image-classification", "nats an image")]
)
def test_the_loss_has_its_unit(task: str, unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"held-out loss, {unit}" in drawn_texts(monkeypatch, comparison(task=task))


def test_what_was_saved_stands_beside_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    data = comparison()
    data["methods"]["ligo"]["savings"] = {"paper": 42.1, "net": -27.5}
    data["methods"]["stack"]["savings"] = {"paper": None, "net": None}
    texts = drawn_texts(monkeypatch, data)
    assert {"42 %", "\u221228 %"} <= set(texts)
    assert texts.count("\u2013") == 2


def test_labels_do_not_overlap() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure, _ = _draw_figure(comparison(MANY))
    canvas: Any = FigureCanvasAgg(figure)
    boxes = [text.get_window_extent(canvas.get_renderer()) for axes in figure.axes for text in axes.texts]
    assert len(boxes) > 2 * 2 * len(MANY)
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_the_mark_stands_where_the_curve_gets_there() -> None:
    data = comparison()
    level = scratch_loss(data)
    assert level is not None
    paper, net = marks(data)
    assert len(paper) == len(net) == len(data["methods"])
    for (name, method), (flops, loss), (charged, _) in zip(data["methods"].items(), paper, net, strict=True):
        assert loss == pytest.approx(level)
        before = [point for point in method["curve"] if point["flops"] < flops - 1]
        after = next(point for point in method["curve"] if point["flops"] >= flops - 1)
        assert all(point["loss"] > level for point in before), name
        assert after["loss"] <= level + 1e-9
        assert charged - flops == pytest.approx(SOURCE_FLOPS if method["needs_source"] else 0.0)


def test_a_curve_that_never_gets_there_has_no_mark() -> None:
    data = comparison()
    lift = data["methods"]["stack"]
    for point in lift["curve"]:
        point["loss"] += 1
    lift["savings"] = {"paper": None, "net": None}
    assert [len(panel) for panel in marks(data)] == [len(data["methods"]) - 1] * 2
    # Where another run than the one drawn got there, the mark stands where that saving says.
    lift["savings"] = {"paper": 25.0, "net": 10.0}
    end = data["methods"]["scratch"]["curve"][-1]["flops"]
    assert [flops for flops, _ in marks(data)[0] if flops == pytest.approx(0.75 * end)]


def test_reaching_is_the_first_time_and_between_points() -> None:
    assert reached(((0, 4.0), (10, 3.0), (20, 2.0), (30, 2.5)), 2.5) == 15
    assert reached(((5, 2.0), (10, 1.0)), 2.5) == 5
    assert reached(((0, 4.0), (10, 3.0)), 2.5) is None
    assert reached((), 2.5) is None
    # Nothing is known of what lay in a gap.
    assert reached(((0, 4.0), (10, math.nan), (20, 2.0)), 3.0) == 20
    assert reached(((0, 4.0), (10, 2.0 + 1e-12)), 2.0) == pytest.approx(10)


def test_without_the_cost_of_the_source_one_panel_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    data = comparison(charged=False)
    left, right = _draw_figure(data)[0].axes
    assert left.lines
    assert not right.lines
    assert [text for text in drawn_texts(monkeypatch, data) if "is not known" in text]


def test_the_first_steps_do_not_squash_the_end() -> None:
    for data in (comparison(), comparison(MANY)):
        lines = _lines(data)
        low, high = _limits(lines, scratch_loss(data))
        ends = [end[1] for line in lines if (end := line.last())]
        assert low < min(ends) <= max(ends) < high
        assert high < 4.5
        assert max(ends) - min(ends) > 0.08 * (high - low)


def test_a_run_that_went_astray_does_not_squash_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    data = broken("net2net", [50.0] * 10)
    assert _limits(_lines(data), scratch_loss(data))[1] < 5
    assert "net2net \u2191" in drawn_texts(monkeypatch, data)


def test_no_two_methods_look_alike() -> None:
    lines = _lines(comparison(MANY))
    assert len({(line.colour, str(line.dashes)) for line in lines}) == len(lines)
    by_name = {line.name: line for line in lines}
    assert by_name["scratch"].colour == "#000000"
    assert all(by_name["ligo"].width > line.width for line in lines if line.name != "ligo")
    assert by_name["ligo+layer-drop"].colour == by_name["ligo"].colour


@pytest.mark.parametrize("losses", [[None], [math.nan], [math.inf], [None] * 30, [None] * 48])
@pytest.mark.parametrize("name", ["scratch", "ligo"])
def test_losses_that_are_none_leave_gaps(
    name: str, losses: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = broken(name, losses)
    ElementTree.fromstring(comparison_svg(data))
    note = "no loss" if len(losses) == 48 else "diverged"
    assert f"{name} ({note})" in drawn_texts(monkeypatch, data)


def test_odd_comparisons_are_drawn_too() -> None:
    alone = comparison({"scratch": MANY["scratch"]})
    short, empty, still = comparison(), comparison(), comparison()
    for method in short["methods"].values():
        del method["curve"][1:]
        method["seeds"] = {}
    for method in empty["methods"].values():
        method.update(curve=[], seeds={}, final={"loss": None})
    for method in still["methods"].values():
        method["curve"] = [{**point, "loss": 3.0} for point in method["curve"]]
    for data in (alone, short, empty, still):
        assert comparison_png(data).startswith(b"\x89PNG")


def test_several_seeds_have_a_mean() -> None:
    assert _mean((((0.0, 4.0), (1.0, 2.0)), ((0.0, 5.0), (1.0, 3.0), (2.0, 1.0)))) == ((0.0, 4.5), (1.0, 2.5))
    data = comparison(seeds=(0, 1, 2))
    assert scratch_loss(data) == pytest.approx(MANY["scratch"][1] + 0.006)
    for line in _lines(data):
        assert len(line.runs) == 3
        assert line.mean[-1][1] == pytest.approx(sum(run[-1][1] for run in line.runs) / 3)


def test_the_drawing_is_one_element_that_asks_for_nothing() -> None:
    data = comparison()
    data["methods"][HOSTILE] = data["methods"].pop("stack")
    data["architecture"] = HOSTILE
    text = comparison_svg(data)
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("role") == "img"
    assert "ligo" in str(root.get("aria-label"))
    assert "<!--" not in text
    assert "\x1b" not in text
    assert set(re.findall(r"https?:[^\"]*", text)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert {element.tag.rpartition("}")[2] for element in root.iter()} <= {
        *("svg", "g", "path", "use", "defs", "clipPath", "rect", "style", "text")
    }


@pytest.mark.parametrize("name", [HOSTILE, "W" * 500, "\u6a21" * 30, ""], ids=["hostile", "long", "letters", "empty"])
def test_any_name_is_drawn_as_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = comparison()
    data["methods"][name] = data["methods"].pop("stack")
    texts = drawn_texts(monkeypatch, data)
    # Figures of the axis are mathematics; all else is text.
    assert all(character < "\u0250" or character in "\u2013\u2191\u2212" for text in texts for character in text)
    assert "\x1b" not in "".join(texts)
    assert max(map(len, texts)) <= 200


def test_labels_keep_apart_and_within() -> None:
    for places in ([0.5] * 4, [0.0, 0.0, 0.01], [0.98, 1.0, 1.0], [0.1, 0.11, 0.8, 0.81], [0.0] * 20, [1.0] * 25):
        spread = spread_labels(places, gap=0.04, low=0.0, high=1.0)
        assert all(after - before >= 0.04 - 1e-9 for before, after in itertools.pairwise(spread))
        assert min(spread) >= 0
        assert max(spread) <= 1 + 1e-9
    assert spread_labels([0.2, 0.9], gap=0.04) == [0.2, 0.9]


def test_the_picture_opens_in_another_program(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "compare.png").write_bytes(comparison_png(comparison()))
    with Image.open(tmp_path / "compare.png") as image:
        image.load()
        assert set(image.info) == {"dpi"}
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}
    assert {(0, 0, 0), (0, 114, 178), (213, 94, 0)} <= colours
