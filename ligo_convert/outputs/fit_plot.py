"""Plot the fit of an operator: loss against steps on the validation split, from the initial operator on, and beside it the source.

Input: the lines of the fit's log; the losses of source, initial and kept operator on the validation split.
Output: a PNG, 1600 pixels wide, readable at half that size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ligo_convert.outputs.plotting import (
    GREY,
    limit_height,
    new_figure,
    plain_text,
    png_bytes,
    shrink_to_fit,
    spread_labels,
    style_axes,
)

# Okabe and Ito's palette, safe for colour-blind readers; lines also differ in their dashes.
_TRAINING, _VALIDATION = "#8fb8d8", "#0072b2"

# Losses on the validation split -> label, colour, dashes of a line over the whole width; None for a point of the curve.
_LEVELS: Mapping[str, tuple[str, str, Any]] = {
    "source": ("source", "#009e73", (0, (6, 2))),
    "initial": ("start", "#b8860b", (0, (1, 1.5))),
    "best": ("kept", _VALIDATION, None),
}

_WIDTH, _HEIGHT, _DPI = 8.0, 5.2, 200  # inches, inches, pixels an inch

# A level farther away than this many times the height of the rest is not drawn; its label stands at the edge with an arrow.
_SQUASH = 1.5

_GAP = 0.052  # between two labels, as a fraction of the axes height

_WINDOWS = 10  # the training loss is averaged over a window of this fraction of the steps

_RATES = {"width": "solid", "depth": (0, (3, 1.5))}


def fit_picture(
    log: Sequence[Mapping[str, Any]],
    *,
    source: float | None,
    initial: float | None,
    best: tuple[int, float | None],
    title: str,
    unit: str,
) -> bytes:
    """Draw how the operator was fitted, and return the PNG.

    Args:
        log: one line per step: `step`, `loss`, `learning_rate` {group: rate}, sometimes `validation_loss`.
        source: loss of the source on the validation split; None where unknown.
        initial: loss of the initial operator there; None where unknown.
        best: step of the operator that was kept, 0 for the initial one, and its loss there.
        title: any text.
        unit: unit of the losses, such as `nats a token`.
    """
    figure, canvas = new_figure(_WIDTH, _HEIGHT, _DPI)
    upper, lower = figure.subplots(
        2,
        1,
        sharex=True,
        height_ratios=(5, 1),
        gridspec_kw={"hspace": 0.08, "left": 0.09, "right": 0.8, "top": 0.91, "bottom": 0.11},
    )
    losses = {"source": source, "initial": initial, "best": best[1]}
    known = {name: float(value) for name, value in losses.items() if value is not None and math.isfinite(value)}
    if best[0] == 0:
        known.pop("best", None)
    steps = [int(line["step"]) for line in log]
    training = _smoothed([float(line["loss"]) for line in log])
    start = [(0, float(initial))] if initial is not None else []
    curve = start + [(int(line["step"]), float(line["validation_loss"])) for line in log if "validation_loss" in line]
    low, high = _limits([*training, *(loss for _, loss in curve)], known)
    upper.set_ylim(low, high)
    upper.set_xlim(0, 1.01 * max([*steps, 1]))
    upper.plot(
        steps,
        training,
        color=_TRAINING,
        linewidth=1.0,
        marker="." if len(steps) == 1 else "",
        label=f"training, mean of {_window(len(steps))} steps" if _window(len(steps)) > 1 else "training",
        zorder=2,
    )
    if curve:
        upper.plot(
            *zip(*curve, strict=True),
            color=_VALIDATION,
            linewidth=1.4,
            marker="o",
            markersize=3.5,
            clip_on=False,
            label="validation",
            zorder=4,
        )
    _mark_best(upper, best)
    _draw_levels(upper, known, low, high)
    upper.set_ylabel(f"loss, {unit}")
    heading = upper.set_title(plain_text(title, 100), loc="left", fontsize=11, parse_math=False)
    shrink_to_fit(heading, canvas.get_renderer(), 0.89 * _WIDTH * _DPI)
    upper.legend(loc="best", fontsize=8.5, frameon=True, framealpha=0.9, edgecolor="none")
    _draw_rates(lower, steps, log)
    lower.set_xlabel("steps")
    for axes in (upper, lower):
        style_axes(axes)
    lower.xaxis.get_major_locator().set_params(integer=True)
    return png_bytes(canvas)


def _window(steps: int) -> int:
    """Return the odd number of steps that the training loss is averaged over."""
    return 2 * (steps // (2 * _WINDOWS)) + 1


def _smoothed(losses: Sequence[float]) -> list[float]:
    """Return the mean of each loss and its neighbours within the window; what is not finite is left out of the means."""
    reach = _window(len(losses)) // 2
    found = []
    for at in range(len(losses)):
        near = [loss for loss in losses[max(0, at - reach) : at + reach + 1] if math.isfinite(loss)]
        found.append(fmean(near) if near else math.nan)
    return found


def _limits(curve: Sequence[float], levels: Mapping[str, float]) -> tuple[float, float]:
    """Return the lower and upper limit of the loss axis: the curve, and every level that leaves it readable."""
    shown = sorted(value for value in curve if math.isfinite(value))
    if not shown:
        shown = sorted(levels.values()) or [0.0, 1.0]
    # The highest 2 % of the batches do not count: outliers would flatten the rest.
    low, high = shown[0], shown[min(len(shown) - 1, math.ceil(0.98 * len(shown)))]
    # The points of the curve are always shown; the source only if the rest stays readable.
    for name in ("initial", "best", "source"):
        value = levels.get(name)
        if value is None:
            continue
        height = limit_height(low, high)
        if name != "source" or low - _SQUASH * height <= value <= high + _SQUASH * height:
            low, high = min(low, value), max(high, value)
    height = limit_height(low, high)
    middle = (low + high) / 2
    return middle - 0.56 * height, middle + 0.56 * height


def _draw_levels(axes: Any, levels: Mapping[str, float], low: float, high: float) -> None:
    """Label each level at the right edge; the source is a line too. A level outside the axis gets a label with an arrow only."""
    names = sorted(levels, key=lambda name: levels[name])
    heights = [(min(max(levels[name], low), high) - low) / (high - low) for name in names]
    heights = [min(max(height, 0.02), 0.98) for height in heights]
    for name, height in zip(names, spread_labels(heights, gap=_GAP), strict=True):
        text, colour, dashes = _LEVELS[name]
        value = levels[name]
        inside = low <= value <= high
        arrow = "" if inside else " \u2191" if value > high else " \u2193"
        if inside and dashes is not None:
            axes.axhline(value, color=colour, linestyle=dashes, linewidth=1.3, zorder=3)
        axes.annotate(
            f"{text} {value:.3f}{arrow}",
            xy=(1.0, (min(max(value, low), high) - low) / (high - low)),
            xytext=(1.04, height),
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


def _mark_best(axes: Any, best: tuple[int, float | None]) -> None:
    """Mark the operator that was kept."""
    step, loss = best
    if step == 0:
        axes.plot([], [], linestyle="none", label="no step was better than the start")
    elif loss is not None and math.isfinite(loss):
        axes.plot(
            [step], [loss], marker="o", markersize=9, color="none", markeredgecolor="black", markeredgewidth=1.2,
            linestyle="none", clip_on=False, label=f"kept: step {step}", zorder=5,
        )  # fmt: skip


def _draw_rates(axes: Any, steps: Sequence[int], log: Sequence[Mapping[str, Any]]) -> None:
    """Draw the schedule: the learning rate of each group relative to its peak, with the peaks as text."""
    groups = dict.fromkeys(group for line in log for group in line.get("learning_rate", {}))
    peaks = []
    for group in groups:
        rates = [float(line.get("learning_rate", {}).get(group, math.nan)) for line in log]
        peak = max((rate for rate in rates if math.isfinite(rate)), default=0.0)
        peaks.append(f"{group} {peak:.2g}")
        if peak > 0:
            axes.plot(
                steps, [rate / peak for rate in rates], color=GREY, linewidth=1.0, linestyle=_RATES.get(group, "solid")
            )
    axes.set_ylim(0, 1.12)
    axes.set_yticks([0, 1], ["0", "peak"])
    axes.set_ylabel("rate", fontsize=9)
    if peaks:
        axes.annotate(
            "\n".join(["peak rates", *peaks]), xy=(1.03, 0.5), xycoords="axes fraction", fontsize=8.5, color=GREY, va="center",
            annotation_clip=False, parse_math=False,
        )  # fmt: skip
