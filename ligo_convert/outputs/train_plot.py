"""Plot a training: loss and learning rate against steps, with a line where the model grew.

Input: the lines of the training's log. Output: a PNG, 1600 pixels wide, readable at half that size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ligo_convert.outputs.plotting import (
    GREY,
    limit_height,
    new_figure,
    plain_text,
    png_bytes,
    shrink_to_fit,
    style_axes,
)

_TRAINING, _VALIDATION, _GROWTH = "#8fb8d8", "#0072b2", "#d55e00"

_WIDTH, _HEIGHT, _DPI = 8.0, 5.2, 200  # inches, inches, pixels an inch


def train_picture(
    log: Sequence[Mapping[str, Any]], *, growths: Sequence[Mapping[str, Any]], title: str, unit: str
) -> bytes:
    """Draw how a model was trained, and return the PNG.

    Args:
        log: `step`, `loss`, `learning_rate` {group: rate}, `validation_loss`; the line at the beginning of a stage has no `loss`.
        growths: `step` and `to` {axis: size} of every growth.
        title: any text.
        unit: unit of the loss, such as `nats a token`.
    """
    figure, canvas = new_figure(_WIDTH, _HEIGHT, _DPI)
    upper, lower = figure.subplots(
        2,
        1,
        sharex=True,
        height_ratios=(5, 1),
        gridspec_kw={"hspace": 0.08, "left": 0.09, "right": 0.97, "top": 0.91, "bottom": 0.11},
    )
    last = max((int(line["step"]) for line in log), default=1)
    for key, colour, label in (
        ("loss", _TRAINING, "training batch"),
        ("validation_loss", _VALIDATION, "validation split"),
    ):
        points = [(int(line["step"]), float(line[key])) for line in log if key in line and math.isfinite(line[key])]
        if points:
            upper.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=2.5, linewidth=1.3, label=label)
    shown = sorted(
        float(line[key])
        for line in log
        for key in ("loss", "validation_loss")
        if key in line and math.isfinite(line[key])
    )
    if shown:
        height = limit_height(shown[0], shown[-1])
        upper.set_ylim(shown[0] - 0.05 * height, shown[0] + 1.05 * height)
    upper.set_xlim(0, 1.01 * max(last, 1))
    for growth in growths:
        sizes = ", ".join(f"{axis} {size}" for axis, size in growth["to"].items())
        upper.axvline(growth["step"], color=_GROWTH, linestyle=(0, (4, 2)), linewidth=1.2)
        upper.annotate(
            plain_text(sizes, 60), xy=(growth["step"], 1.0), xycoords=("data", "axes fraction"), xytext=(4, -4),
            textcoords="offset points", rotation=90, va="top", fontsize=8, color=_GROWTH, parse_math=False,
        )  # fmt: skip
    upper.set_ylabel(f"loss, {unit}")
    heading = upper.set_title(plain_text(title, 100), loc="left", fontsize=11, parse_math=False)
    shrink_to_fit(heading, canvas.get_renderer(), 0.89 * _WIDTH * _DPI)
    if shown:
        upper.legend(loc="best", fontsize=8.5, frameon=True, framealpha=0.9, edgecolor="none")
    rates = [(int(line["step"]), max(line["learning_rate"].values())) for line in log if "learning_rate" in line]
    if rates:
        lower.plot(*zip(*rates, strict=True), color=GREY, linewidth=1.0)
    lower.set_ylim(bottom=0)
    lower.set_ylabel("rate", fontsize=9)
    lower.set_xlabel("steps")
    for axes in (upper, lower):
        style_axes(axes)
    lower.xaxis.get_major_locator().set_params(integer=True)
    return png_bytes(canvas)
