"""Shared helpers for figures: colours, axes style, text that any font can show, label placement, PNG output.

The same numbers give the same bytes under the same matplotlib version. PNG files carry no date and no program name.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from ligo_convert.errors import printable

DARK, GREY, GRID = "#262626", "#6b6b6b", "#e6e6e6"

MIN_HEIGHT = 0.02  # smallest range of a loss axis, in nats


def new_figure(width: float, height: float, dpi: int) -> tuple[Any, Any]:
    """Create a white figure and its Agg canvas.

    Args:
        width: inches.
        height: inches.
        dpi: pixels per inch.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    return figure, FigureCanvasAgg(figure)


def png_bytes(canvas: Any) -> bytes:
    """Render a canvas as a PNG without metadata."""
    buffer = io.BytesIO()
    canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def style_axes(axes: Any) -> None:
    """Apply the common style: a light grid behind the data, no upper and right spine."""
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def plain_text(text: object, longest: int) -> str:
    """Return one line that any font can show: unusual characters as escape codes, cut to `longest` characters."""
    shown = "".join(
        character if character < "\u0250" else character.encode("unicode_escape").decode("ascii")
        for character in printable(text)
    )
    return shown if len(shown) <= longest else f"{shown[: longest - 3]}..."


def shrink_to_fit(drawn: Any, renderer: Any, room: float) -> None:
    """Reduce the font size of a drawn text so that it is at most `room` pixels wide."""
    width = drawn.get_window_extent(renderer).width
    if width > room:
        drawn.set_fontsize(drawn.get_fontsize() * room / width)


def limit_height(low: float, high: float) -> float:
    """Return the range between two losses, at least MIN_HEIGHT."""
    return max(high - low, MIN_HEIGHT)


def spread_labels(
    positions: Sequence[float], *, gap: float, low: float = -math.inf, high: float = math.inf
) -> list[float]:
    """Move ascending positions apart until neighbours are `gap` apart, each as little as possible, within `low` and `high`.

    >>> spread_labels([0.2, 0.9], gap=0.1)
    [0.2, 0.9]
    """
    groups: list[
        tuple[float, list[float]]
    ] = []  # the first position of a group, and the positions its members asked for
    for position in positions:
        groups.append(_place_group([position], gap, low, high))
        while len(groups) > 1 and groups[-1][0] - (groups[-2][0] + gap * (len(groups[-2][1]) - 1)) < gap - 1e-12:
            _, above = groups.pop()
            _, below = groups.pop()
            groups.append(_place_group([*below, *above], gap, low, high))
    return [first + number * gap for first, members in groups for number in range(len(members))]


def _place_group(members: list[float], gap: float, low: float, high: float) -> tuple[float, list[float]]:
    extent = gap * (len(members) - 1)
    return max(min(fmean(members) - extent / 2, high - extent), low), members
