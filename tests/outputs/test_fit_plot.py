"""Laws of the picture of a fit: a PNG without dates, the same for the same numbers, that shows every figure it is given."""

from __future__ import annotations

import io
import itertools
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import pytest

from ligo_convert.outputs.fit_plot import _GAP, _limits, _smoothed, fit_picture
from ligo_convert.outputs.plotting import spread_labels

LOSSES: Mapping[str, Any] = {"source": 3.28, "initial": 3.342, "best": (30, 3.243)}


def log(steps: int = 30, every: int = 10) -> list[dict[str, Any]]:
    lines = []
    for step in range(1, steps + 1):
        line: dict[str, Any] = {
            "step": step,
            "loss": 3.35 - 0.1 * step / steps + 0.02 * math.sin(7 * step),
            "learning_rate": {"width": 3e-5 * (1 - step / steps), "depth": 1e-2 * (1 - step / steps)},
            "gradient_norm": 1.0,
            "tokens": 2048 * step,
            "seconds": 0.3,
        }
        if step % every == 0:
            line["validation_loss"] = 3.35 - 0.1 * step / steps
        lines.append(line)
    return lines


def picture(lines: list[dict[str, Any]] | None = None, *, losses: Mapping[str, Any] = LOSSES, **more: Any) -> bytes:
    named = {"title": "gpt2, grown", "unit": "nats a token", **losses, **more}
    return fit_picture(log() if lines is None else lines, **named)


def chunks(data: bytes) -> list[tuple[str, bytes]]:
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + content)
        found.append((kind.decode(), content))
        at += 12 + length
    return found


def drawn_texts(monkeypatch: pytest.MonkeyPatch, *args: Any, **more: Any) -> list[str]:
    """The texts that a picture shows, as matplotlib draws them."""
    from matplotlib.backends.backend_agg import RendererAgg

    texts: list[str] = []
    real: Any = RendererAgg.draw_text

    def draw_text(self: Any, gc: Any, x: float, y: float, text: str, *rest: Any, **options: Any) -> None:
        texts.append(text)
        # What is outside the picture is not shown.
        assert 0 <= x < self.width, text
        assert 0 <= y < self.height, text
        width, _, _ = self.get_text_width_height_descent(text, rest[0], False)
        if not rest[1]:
            assert x + width <= self.width, f"{text} is cut off"
        real(self, gc, x, y, text, *rest, **options)

    monkeypatch.setattr(RendererAgg, "draw_text", draw_text)
    picture(*args, **more)
    return texts


def test_the_picture_holds_nothing_but_pixels() -> None:
    found = chunks(picture())
    assert {kind for kind, _ in found} == {"IHDR", "pHYs", "IDAT", "IEND"}
    width, height = struct.unpack(">II", found[0][1][:8])
    assert (width, height) == (1600, 1040)


def test_the_same_numbers_give_the_same_bytes() -> None:
    assert picture() == picture()
    assert picture() != picture(losses={**LOSSES, "source": 3.27})


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    picture()
    assert dict(matplotlib.rcParams) == before
    import sys

    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


def test_every_figure_is_named_and_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = drawn_texts(monkeypatch)
    for wanted in ("source 3.280", "start 3.342", "kept 3.243", "gpt2, grown"):
        assert wanted in texts
    for wanted in ("loss, nats a token", "steps", "training, mean of 3 steps", "validation", "kept: step 30"):
        assert wanted in texts
    assert "training, mean of 11 steps" in drawn_texts(monkeypatch, log(100))
    assert "source 30.000 \u2191" in drawn_texts(monkeypatch, losses={**LOSSES, "source": 30.0})
    assert {"peak rates", "width 2.9e-05", "depth 0.0097"} <= set(texts)


def test_figures_that_are_not_known_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = drawn_texts(monkeypatch, losses={"source": None, "initial": None, "best": (30, None)})
    assert not [text for text in texts if text.startswith(("source", "start", "kept"))]


def test_the_best_step_is_the_one_that_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = drawn_texts(monkeypatch, best=(0, 3.342))
    assert "no step was better than the start" in texts
    assert not [text for text in texts if text.startswith("kept")]
    assert {"kept: step 20", "kept 3.283"} <= set(drawn_texts(monkeypatch, best=(20, 3.283)))


def test_the_curve_begins_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: list[tuple[Any, ...]] = []
    real: Any = Axes.plot

    def plot(self: Any, *args: Any, **options: Any) -> Any:
        if options.get("label") == "validation":
            drawn.append(args)
        return real(self, *args, **options)

    monkeypatch.setattr(Axes, "plot", plot)
    picture()
    picture(losses={**LOSSES, "initial": None})
    (steps, losses), (later, _) = drawn
    assert (steps, later) == ((0, 10, 20, 30), (10, 20, 30))
    assert losses[0] == 3.342


def test_batches_are_smoothed() -> None:
    losses = [3.0, 4.0] * 50
    smooth = _smoothed(losses)
    assert len(smooth) == 100
    assert max(smooth[2:-2]) - min(smooth[2:-2]) < 0.25
    assert _smoothed([1.0, math.nan, 3.0]) == [1.0, pytest.approx(math.nan, nan_ok=True), 3.0]
    assert _smoothed(losses[:9]) == losses[:9]


@pytest.mark.parametrize(
    "lines",
    [
        log(1),
        log(1, every=1),
        [{**line, "loss": math.nan, "validation_loss": math.nan} for line in log(5)],
        [{**line, "loss": math.inf} if line["step"] == 3 else line for line in log(20)],
        [{**line, "learning_rate": {}} for line in log(5)],
        log(1500, every=100),
        [],
    ],
)
@pytest.mark.parametrize("losses", [LOSSES, {"source": math.nan, "best": (3, math.inf), "initial": None}])
def test_odd_logs_are_drawn_too(lines: list[dict[str, Any]], losses: dict[str, Any]) -> None:
    assert chunks(picture(lines, losses=losses))[-1][0] == "IEND"


@pytest.mark.parametrize("title", ["$\\frac{1$ _x_ {", "x\x1b[2J\u202e\n\ny", "\u6a21" * 200, "W" * 500, ""])
def test_any_title_is_drawn_as_text(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = drawn_texts(monkeypatch, title=title)
    shown = next((text for text in texts if title and text.startswith(title[0])), "")
    assert "\x1b" not in "".join(texts)
    assert "\u202e" not in "".join(texts)
    assert len(shown) <= 100
    assert all(character < "\u0250" or character in "\u2191\u2193\u2212" for text in texts for character in text)


def test_a_far_level_does_not_squash_the_curve() -> None:
    curve = [3.3 + 0.01 * step for step in range(10)]
    low, high = _limits(curve, {"source": 10.95, "initial": 3.342, "best": 3.243})
    assert high < 4
    assert low < 3.243 < 3.342 < high
    near = _limits(curve, {"source": 3.45, "initial": 3.342, "best": 3.243})
    assert near[1] > 3.45


def test_a_wild_batch_does_not_squash_the_curve() -> None:
    assert _limits([3.0] * 99 + [300.0], {})[1] < 4


def test_labels_keep_apart_and_move_no_more_than_they_must() -> None:
    for places in ([0.5, 0.5, 0.5, 0.5], [0.1, 0.11, 0.8, 0.81], [0.0, 0.04, 0.08, 0.12], [0.2, 0.9]):
        spread = spread_labels(places, gap=_GAP)
        assert all(after - before >= _GAP - 1e-9 for before, after in itertools.pairwise(spread))
        assert sum(spread) == pytest.approx(sum(places))
    assert spread_labels([0.2, 0.9], gap=_GAP) == [0.2, 0.9]


def test_the_picture_opens_in_another_program() -> None:
    from PIL import Image

    with Image.open(io.BytesIO(picture())) as image:
        image.load()
        assert image.size == (1600, 1040)
        assert set(image.info) == {"dpi"}
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}
    for wanted in ((0, 158, 115), (184, 134, 11), (0, 114, 178)):
        assert wanted in colours
