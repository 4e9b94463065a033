"""The picture of a fit: loss against steps, with the losses that it is to be measured by.

What comes in: the lines of the fit's log and the four losses on the held-out slice. What goes out: a PNG, 1600 pixels wide, readable at
half of that. The same numbers give the same bytes under the same matplotlib; nothing in the file says when or where it was made.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ligo_convert.errors import printable

# Okabe and Ito's palette, told apart by every kind of colour vision; lines differ in their dashes too.
_TRAINING, _VALIDATION, _RATE = "#8fb8d8", "#0072b2", "#6b6b6b"

_LEVELS = {
    "source": ("source", "#009e73", (0, (6, 2))),
    "random_target": ("random target", "#d55e00", (0, (1, 1.5))),
    "initial": ("start", "#b8860b", (0, (4, 1.5, 1, 1.5))),
    "fitted": ("fitted", "#0072b2", "solid"),
}

_WIDTH, _HEIGHT, _DPI = 8.0, 5.2, 200  # inches, inches, pixels an inch

# A level further off than this many times the height of the rest is named at the edge, not drawn.
_SQUASH = 1.5

_GAP = 0.052  # between two labels, as a part of the height

_RATES = {"width": "solid", "depth": (0, (3, 1.5))}


def fit_picture(
    log: Sequence[Mapping[str, Any]], *, losses: Mapping[str, float | None], title: str, best_step: int | None = None
) -> bytes:
    """A PNG of how the operator was learned.

    Args:
        log: a line a step: `step`, `loss`, `learning_rate` {group: rate}, and at times `validation_loss`; nats a token.
        losses: `source`, `initial`, `fitted`, `random_target` on the test slice; None where unknown. title: any text.
        best_step: the step whose operator was kept, 0 for the start; None: the one of the lowest validation loss in the log.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI, facecolor="white")
    canvas: Any = FigureCanvasAgg(figure)
    upper, lower = figure.subplots(
        2,
        1,
        sharex=True,
        height_ratios=(5, 1),
        gridspec_kw={"hspace": 0.08, "left": 0.09, "right": 0.77, "top": 0.91, "bottom": 0.11},
    )
    known = {name: float(value) for name, value in losses.items() if name in _LEVELS and value is not None}
    finite = {name: value for name, value in known.items() if math.isfinite(value)}
    steps = [int(line["step"]) for line in log]
    training = [float(line["loss"]) for line in log]
    marked = [(int(line["step"]), float(line["validation_loss"])) for line in log if "validation_loss" in line]
    low, high = _limits([*training, *(loss for _, loss in marked)], finite)
    upper.set_ylim(low, high)
    upper.set_xlim(0, 1.01 * max([*steps, 1]))
    upper.plot(
        steps,
        training,
        color=_TRAINING,
        linewidth=1.0,
        marker="." if len(steps) == 1 else "",
        label="training batch",
        zorder=2,
    )
    if marked:
        upper.plot(
            *zip(*marked, strict=True),
            color=_VALIDATION,
            linewidth=1.4,
            marker="o",
            markersize=3.5,
            clip_on=False,
            label="validation slice",
            zorder=4,
        )
        _mark_best(upper, marked, best_step)
    _draw_levels(upper, finite, low, high)
    upper.set_ylabel("loss, nats a token")
    _draw_title(upper, canvas, title)
    upper.legend(loc="best", fontsize=8.5, frameon=True, framealpha=0.9, edgecolor="none")
    _draw_rates(lower, steps, log)
    lower.set_xlabel("steps of learning the operator")
    for axes in (upper, lower):
        axes.grid(color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    lower.xaxis.get_major_locator().set_params(integer=True)
    if finite:
        figure.text(0.99, 0.02, "horizontal lines: test slice", ha="right", fontsize=8, color=_RATE)
    buffer = io.BytesIO()
    canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _limits(curve: Sequence[float], levels: Mapping[str, float]) -> tuple[float, float]:
    """Where the loss axis begins and ends: the curve and every level that does not squash it."""
    shown = sorted(value for value in curve if math.isfinite(value))
    if not shown:
        shown = sorted(levels.values()) or [0.0, 1.0]
    # A few wild batches must not squash the rest.
    low, high = shown[0], shown[min(len(shown) - 1, math.ceil(0.98 * len(shown)))]
    # The levels that learning moves between come first; then those that leave the rest at a readable height.
    for name in ("initial", "fitted", "source", "random_target"):
        value = levels.get(name)
        if value is None:
            continue
        height = max(high - low, 0.02)
        if name in ("initial", "fitted") or low - _SQUASH * height <= value <= high + _SQUASH * height:
            low, high = min(low, value), max(high, value)
    height = max(high - low, 0.02)
    middle = (low + high) / 2
    return middle - 0.56 * height, middle + 0.56 * height


def _draw_levels(axes: Any, levels: Mapping[str, float], low: float, high: float) -> None:
    """Every level as a line with its name at the right edge; one beyond the axis as its name and an arrow."""
    names = sorted(levels, key=lambda name: levels[name])
    at = [(min(max(levels[name], low), high) - low) / (high - low) for name in names]
    at = [min(max(place, 0.02), 0.98) for place in at]
    for name, place in zip(names, _spread(at), strict=True):
        text, colour, dashes = _LEVELS[name]
        value = levels[name]
        inside = low <= value <= high
        arrow = "" if inside else " \u2191" if value > high else " \u2193"
        if inside:
            axes.axhline(value, color=colour, linestyle=dashes, linewidth=1.3, zorder=3)
        axes.annotate(
            f"{text} {value:.3f}{arrow}",
            xy=(1.0, (min(max(value, low), high) - low) / (high - low)),
            xytext=(1.04, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            fontsize=8.5,
            fontweight="bold",
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.8,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            }
            if inside
            else None,
            annotation_clip=False,
        )


def _spread(places: Sequence[float]) -> list[float]:
    """Ascending places moved apart until neighbours are `_GAP` apart, as little as may be."""
    groups: list[list[float]] = []  # each: the wanted places, less the offsets within the group
    for place in places:
        groups.append([place])
        while (
            len(groups) > 1
            and _centre(groups[-1]) - _extent(groups[-1]) - _centre(groups[-2]) - _extent(groups[-2]) < _GAP
        ):
            last = groups.pop()
            groups[-1].extend(last)
    spread = []
    for group in groups:
        first = _centre(group) - _extent(group)
        spread += [first + number * _GAP for number in range(len(group))]
    return spread


def _centre(group: Sequence[float]) -> float:
    return sum(group) / len(group)


def _extent(group: Sequence[float]) -> float:
    return _GAP * (len(group) - 1) / 2


def _mark_best(axes: Any, marked: Sequence[tuple[int, float]], best_step: int | None) -> None:
    if best_step == 0:
        axes.plot([], [], linestyle="none", label="no step was better than the start")
        return
    finite = [pair for pair in marked if math.isfinite(pair[1]) and best_step in (None, pair[0])]
    if not finite:
        return
    step, loss = min(finite, key=lambda pair: pair[1])
    axes.plot(
        [step], [loss], marker="o", markersize=9, color="none", markeredgecolor="black", markeredgewidth=1.2,
        linestyle="none", clip_on=False,
        label=f"best step: {step}, {loss:.3f}", zorder=5,
    )  # fmt: skip


def _draw_rates(axes: Any, steps: Sequence[int], log: Sequence[Mapping[str, Any]]) -> None:
    """The schedule: every group's rate as a part of its peak, the peaks written beside it."""
    groups = dict.fromkeys(group for line in log for group in line.get("learning_rate", {}))
    peaks = []
    for group in groups:
        rates = [float(line.get("learning_rate", {}).get(group, math.nan)) for line in log]
        peak = max((rate for rate in rates if math.isfinite(rate)), default=0.0)
        peaks.append(f"{group} {peak:.2g}")
        if peak > 0:
            axes.plot(
                steps, [rate / peak for rate in rates], color=_RATE, linewidth=1.0, linestyle=_RATES.get(group, "solid")
            )
    axes.set_ylim(0, 1.12)
    axes.set_yticks([0, 1], ["0", "peak"])
    axes.set_ylabel("rate", fontsize=9)
    if peaks:
        axes.annotate(
            "\n".join(["peak rates", *peaks]), xy=(1.03, 0.5), xycoords="axes fraction", fontsize=8.5, color=_RATE, va="center",
            annotation_clip=False, parse_math=False,
        )  # fmt: skip


def _draw_title(axes: Any, canvas: Any, title: str) -> None:
    """The title on one line, made small enough to fit; what the font may not have is shown as its code."""
    text = "".join(
        character if character < "\u0250" else character.encode("unicode_escape").decode("ascii")
        for character in printable(title)
    )
    text = text if len(text) <= 100 else f"{text[:97]}..."
    drawn = axes.set_title(text, loc="left", fontsize=11, parse_math=False)
    width, room = drawn.get_window_extent(canvas.get_renderer()).width, 0.89 * _WIDTH * _DPI
    if width > room:
        drawn.set_fontsize(11 * room / width)
