"""Plot a comparison as loss against FLOPs in two panels: without the cost of the source, and with it.

Input: the contents of compare.json.
Output: a PNG, 2000 pixels wide, or the same figure as an SVG element for an HTML page.
Each line is labelled at its end with the method's name and saving. Equal data and an equal matplotlib version give equal bytes; the file
contains no date and no machine name.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ligo_convert.errors import printable
from ligo_convert.outputs.plotting import (
    DARK,
    GREY,
    limit_height,
    new_figure,
    plain_text,
    png_bytes,
    shrink_to_fit,
    spread_labels,
    style_axes,
)

SCRATCH = "scratch"

LOSS_UNITS = {
    "causal-lm": "nats a token",
    "masked-lm": "nats a masked token",
    "image-classification": "nats an image",
}

_WIDTH, _HEIGHT, _DPI = 12.5, 6.1, 160  # inches, inches, pixels per inch

_PANELS = {"paper": "source left out (paper)", "net": "source charged (net)"}

_LEFT = {"paper": 0.65, "net": 6.85}  # inches

_BOTTOM, _TOP = 0.095, 0.845  # fractions of the figure's height

# Label positions to the right of a panel, in inches: the line sample, the saving, the name; and the maximal width of a name.
_SAMPLE, _SAVED, _NAME, _ROOM = (0.13, 0.45), 0.93, 1.02, 1.75

_END = 0.1  # inches of space after a name

_FONT, _LONGEST = 8.5, 36

_GAP = 0.04  # minimal distance of two labels, as a fraction of the panel's height

# The two most important lines: colour, line width, drawing order. Variants with options (`ligo+fit`) keep the colour of their method.
_STRONG = {"scratch": ("#000000", 2.0, 6), "ligo": ("#0072b2", 2.8, 7)}

# The palette of Okabe and Ito without the two colours above and without yellow, which is invisible on white; plus Tol's wine.
# These colours can be distinguished with every kind of colour vision.
_COLOURS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255")

_DASHES: tuple[Any, ...] = (
    "solid",
    (0, (5, 1.5)),
    (0, (1.5, 1)),
    (0, (6, 1.5, 1.5, 1.5)),
    (0, (3, 1, 1, 1, 1, 1)),
)

# The top of the loss axis is scratch's loss after the fraction _FROM of its FLOPs, or _SPREAD times the largest distance of a final loss
# from scratch's, whichever is lower. It always shows scratch from the fraction _ALWAYS on. The first steps are cut off, because
# their high losses would compress the rest of the plot.
_FROM, _SPREAD, _ALWAYS = 0.25, 6.0, 0.6

# A line that ends above the axis by more than this fraction of the axis height is cut off and labelled at the top edge.
_SQUASH = 0.6

Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One method in the plot.

    Attributes:
        name: name of the method.
        colour: colour of the line.
        dashes: dash pattern of the line, as matplotlib takes it.
        width: width of the line in points.
        order: drawing order; higher is in front.
        runs: one curve of (FLOPs, loss) per seed, without the source; the loss is NaN where it is not finite.
        mean: mean curve of the runs.
        source: FLOPs of training the source, 0 for a method that uses no source.
        saved: saving in per cent by panel, None where scratch's loss was not reached.
    """

    name: str
    colour: str
    dashes: Any
    width: float
    order: float
    runs: tuple[Curve, ...]
    mean: Curve
    source: float
    saved: Mapping[str, float | None]

    @property
    def diverged(self) -> bool:
        return bool(self.mean) and not math.isfinite(self.mean[-1][1])

    def last(self) -> tuple[float, float] | None:
        return next((point for point in reversed(self.mean) if math.isfinite(point[1])), None)


def comparison_png(data: Mapping[str, Any]) -> bytes:
    """Return the figure as a PNG without metadata."""
    _, canvas = _draw_figure(data)
    return png_bytes(canvas)


def comparison_svg(data: Mapping[str, Any]) -> str:
    """Return the figure as one `<svg>` element with an ARIA label for screen readers. Text is drawn as outlines, so no font is needed."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    figure, _ = _draw_figure(data)
    canvas: Any = FigureCanvasSVG(figure)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "ligo-convert", "svg.fonttype": "path"}):
        canvas.print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    # Inside an HTML page, the XML declarations before the element are invalid, and its comments contain unescaped foreign names.
    element = buffer.getvalue()
    element = re.sub(r"<!--.*?-->\n? *", "", element[element.index("<svg ") :].rstrip(), flags=re.DOTALL)
    return element.replace("<svg ", f'<svg role="img" aria-label="{html.escape(_description(data))}" ', 1)


def scratch_loss(data: Mapping[str, Any]) -> float | None:
    """Return scratch's final loss, the mean over the seeds with a finite one; None if no seed has one."""
    method = data["methods"][SCRATCH]
    finals = [run["final"]["loss"] for run in (method.get("seeds") or {}).values()] or [method["final"]["loss"]]
    found = [number for number in map(finite, finals) if number is not None]
    return fmean(found) if found else None


def finite(value: object) -> float | None:
    """Return `value` as a float; None for anything that is not a finite number: null, NaN, infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def reached(curve: Curve, level: float) -> float | None:
    """Return the FLOPs at which a curve first reaches `level`, by linear interpolation between points; None if it never does.

    >>> reached(((0.0, 4.0), (10.0, 3.0), (20.0, 2.0)), 2.5)
    15.0
    """
    before: tuple[float, float] | None = None
    for flops, loss in curve:
        # The tolerance absorbs rounding, so that scratch reaches its own mean loss.
        if loss <= level + 1e-9:
            if before is None or before[1] <= loss:
                return flops
            part = min(max((before[1] - level) / (before[1] - loss), 0.0), 1.0)
            return before[0] + part * (flops - before[0])
        before = (flops, loss) if math.isfinite(loss) else None
    return None


def _draw_figure(data: Mapping[str, Any]) -> tuple[Any, Any]:
    """Draw the figure; return it with its Agg canvas."""
    figure, canvas = new_figure(_WIDTH, _HEIGHT, _DPI)
    renderer = canvas.get_renderer()
    lines, level = _lines(data), scratch_loss(data)
    charged = finite(data["source"].get("flops")) is not None
    furthest = max((flops + (line.source if charged else 0) for line in lines for flops, _ in line.mean), default=0.0)
    exponent = math.floor(math.log10(furthest)) if furthest > 0 else 0
    unit = 10.0**exponent
    low, high = _limits(lines, level)
    size, room = _names(figure, renderer, lines)
    width = (_LEFT["net"] - _LEFT["paper"] - 0.55 - _NAME - room - _END) / _WIDTH
    for panel, heading in _PANELS.items():
        axes = figure.add_axes((_LEFT[panel] / _WIDTH, _BOTTOM, width, _TOP - _BOTTOM))
        axes.set_title(heading, loc="left", fontsize=10.5, color=DARK)
        if panel == "net" and not charged:
            _draw_reason(axes)
            continue
        axes.set_xlim(0, 1.03 * (furthest / unit or 1.0))
        axes.set_ylim(low, high)
        _draw_curves(axes, lines, level, panel, unit)
        _draw_labels(axes, lines, panel, unit, inch=1 / (width * _WIDTH), size=size)
        axes.set_xlabel(f"FLOPs, $10^{{{exponent}}}$", fontsize=9.5)
        style_axes(axes)
    figure.axes[0].set_ylabel(f"held-out loss, {LOSS_UNITS.get(str(data['task']), 'nats')}", fontsize=9.5)
    for text, up, size, colour in ((_title(data), 0.955, 12, DARK), (_legend(data, lines), 0.913, 8.5, GREY)):
        drawn = figure.text(0.012, up, text, fontsize=size, color=colour, ha="left", va="baseline", parse_math=False)
        shrink_to_fit(drawn, renderer, 0.976 * _WIDTH * _DPI)
    return figure, canvas


def _lines(data: Mapping[str, Any]) -> list[_Line]:
    """Return one line per method, in the order of the data, each with its own colour and dash pattern."""
    lines: list[_Line] = []
    counts = {"": 0} | dict.fromkeys(_STRONG, 0)
    for name, method in data["methods"].items():
        base = name.partition("+")[0]
        kind = base if base in _STRONG else ""
        number = counts[kind]
        counts[kind] += 1
        if kind:
            colour, width, order = _STRONG[kind]
            dashes = "solid" if name == base else _DASHES[1 + number % (len(_DASHES) - 1)]
            width, order = (width, order) if name == base else (0.75 * width, order - 2)
        else:
            colour, width, order = _COLOURS[number % len(_COLOURS)], 1.5, 3
            # Neighbours in the palette also differ in their dashes, and no pair of colour and dashes repeats before all are used.
            dashes = _DASHES[(number + number // len(_COLOURS)) % len(_DASHES)]
        runs = tuple(_curve(run["curve"]) for run in (method.get("seeds") or {}).values())
        cost = finite(method["flops"].get("source"))
        if method["needs_source"] and cost is None:
            cost = finite(data["source"].get("flops"))
        lines.append(
            _Line(
                name=name,
                colour=colour,
                dashes=dashes,
                width=width,
                order=order,
                runs=runs,
                mean=_mean(runs) if len(runs) > 1 else _curve(method["curve"]),
                source=(cost or 0.0) if method["needs_source"] else 0.0,
                saved={panel: finite(method["savings"].get(panel)) for panel in _PANELS},
            )
        )
    return lines


def _curve(points: Iterable[Mapping[str, Any]]) -> Curve:
    """Return a curve of (FLOPs, loss); a loss that is not finite becomes NaN."""
    pairs = ((finite(point.get("flops")), finite(point.get("loss"))) for point in points)
    return tuple((flops, math.nan if loss is None else loss) for flops, loss in pairs if flops is not None)


def _mean(runs: Sequence[Curve]) -> Curve:
    """Return the mean of runs that were evaluated at the same steps, up to the end of the shortest run."""
    return tuple(
        (fmean(flops for flops, _ in points), sum(loss for _, loss in points) / len(points))
        for points in zip(*runs, strict=False)
    )


def _limits(lines: Sequence[_Line], level: float | None) -> tuple[float, float]:
    """Return the limits of the loss axis: they contain scratch after its first steps, all lower losses, and final losses not far above."""
    shown = [loss for line in lines for _, loss in line.mean if math.isfinite(loss)]
    if not shown:
        return (0.0, 1.0) if level is None else (level - 0.5, level + 0.5)
    ends = [end[1] for line in lines if (end := line.last())]
    scratch = [point for line in lines if line.name == SCRATCH for point in line.mean if math.isfinite(point[1])]
    far = max((flops for flops, _ in scratch), default=0.0)
    early, late = (
        max((loss for flops, loss in scratch if flops >= part * far), default=min(ends)) for part in (_FROM, _ALWAYS)
    )
    base = min(ends) if level is None else level
    low = min([*shown, base])
    spread = max(abs(end - base) for end in ends if end <= max(early, base))
    high = max(late, base, min(early, low + _SPREAD * spread))
    for loss in sorted(ends):
        if loss <= high + _SQUASH * limit_height(low, high):
            high = max(high, loss)
    height = limit_height(low, high)
    return low - 0.05 * height, low + 1.03 * height


def _draw_curves(axes: Any, lines: Sequence[_Line], level: float | None, panel: str, unit: float) -> None:
    if level is not None:
        axes.axhline(level, color="black", linestyle=(0, (6, 3)), linewidth=1.0, zorder=2)
    for line in lines:
        shift = line.source if panel == "net" else 0.0
        for run in line.runs if len(line.runs) > 1 else ():
            axes.plot(
                [(flops + shift) / unit for flops, _ in run], [loss for _, loss in run],
                color=line.colour, linewidth=0.6, alpha=0.45, zorder=2.5,
            )  # fmt: skip
        axes.plot(
            [(flops + shift) / unit for flops, _ in line.mean],
            [loss for _, loss in line.mean],
            color=line.colour,
            linestyle=line.dashes,
            linewidth=line.width,
            marker="." if len(line.mean) == 1 else "",
            zorder=line.order,
        )
        last = line.last()
        if last and (line.diverged or len(line.runs) > 1):
            axes.plot(
                [(last[0] + shift) / unit], [last[1]], marker="x" if line.diverged else "D", markersize=7 if line.diverged else 4,
                color=line.colour, markeredgewidth=1.6 if line.diverged else 0.5, linestyle="none", zorder=8,
            )  # fmt: skip
        at = None if level is None else _reached(line, lines, level)
        if at is not None and level is not None:
            axes.plot(
                [(at + shift) / unit], [level], marker="o", markersize=7 if line.width > 2 else 5.5, color="white",
                markeredgecolor=line.colour, markeredgewidth=1.6, linestyle="none", clip_on=False, zorder=line.order + 5,
            )  # fmt: skip


def _reached(line: _Line, lines: Sequence[_Line], level: float) -> float | None:
    """Return the FLOPs at which a line reaches scratch's loss; computed from the saving if only that is known.

    The drawn mean curve may miss the loss although every seed's own run reached it.
    """
    at = reached(line.mean, level)
    saved = line.saved["paper"]
    if at is None and saved is not None:
        scratch = next(other for other in lines if other.name == SCRATCH).last()
        at = None if scratch is None else (1 - saved / 100) * scratch[0]
    return at


def _draw_labels(axes: Any, lines: Sequence[_Line], panel: str, unit: float, *, inch: float, size: float) -> None:
    """Draw the labels beside the panel, ordered by final loss: a sample of the line, the saving, the name."""
    (_, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    ends = {line.name: line.last() for line in lines}
    heights = {name: math.inf if end is None else (end[1] - low) / (high - low) for name, end in ends.items()}
    ranked = sorted(lines, key=lambda line: (heights[line.name], line.name))
    gap = min(_GAP, 1.0 / max(len(lines), 1))
    places = spread_labels([min(max(heights[line.name], 0.0), 1.0) for line in ranked], gap=gap, low=0.0, high=1.0)
    sample, saved, name = [1 + at * inch for at in _SAMPLE], 1 + _SAVED * inch, 1 + _NAME * inch
    beside = {"transform": axes.transAxes, "clip_on": False}
    for line, place in zip(ranked, places, strict=True):
        end, height = ends[line.name], heights[line.name]
        if end is not None and height <= 1.0:
            across = (end[0] + (line.source if panel == "net" else 0.0)) / unit / right
            axes.plot(
                [across, 1.0, sample[0]], [height, height, place], color=line.colour, linewidth=0.6, alpha=0.6, zorder=1.5, **beside
            )  # fmt: skip
        if end is not None:
            axes.plot(
                sample, [place, place], color=line.colour, linestyle=line.dashes, linewidth=min(line.width, 2.2), **beside
            )  # fmt: skip
        shown = {
            "va": "center",
            "color": DARK,
            "fontsize": size * gap / _GAP,
            "fontweight": _weight(line),
            "parse_math": False,
        }
        axes.text(saved, place, _saved(line, panel), ha="right", **shown, **beside)
        axes.text(name, place, _name(line, beyond=1.0 < height < math.inf), ha="left", **shown, **beside)
    axes.text(saved, max(places) + 0.7 * gap, "saved", ha="right", va="bottom", fontsize=7.5, color=GREY, **beside)


def _names(figure: Any, renderer: Any, lines: Sequence[_Line]) -> tuple[float, float]:
    """Return the font size at which the longest name fits, in points, and the width of that name, in inches."""
    texts = [
        figure.text(0, 0, _name(line, beyond=True), fontsize=_FONT, fontweight=_weight(line), parse_math=False)
        for line in lines
    ]
    widest = max(text.get_window_extent(renderer).width for text in texts) / _DPI
    for text in texts:
        text.remove()
    return _FONT * min(1.0, _ROOM / widest), min(widest, _ROOM)


def _name(line: _Line, *, beyond: bool) -> str:
    note = " (no loss)" if line.last() is None else " (diverged)" if line.diverged else " \u2191" if beyond else ""
    return f"{plain_text(line.name, _LONGEST)}{note}"


def _weight(line: _Line) -> str:
    return "bold" if line.name in _STRONG else "normal"


def _saved(line: _Line, panel: str) -> str:
    saved = line.saved[panel]
    if line.name == SCRATCH or saved is None:
        return "" if line.name == SCRATCH else "\u2013"
    return f"{saved:.0f} %".replace("-", "\u2212")


def _draw_reason(axes: Any) -> None:
    """Print the reason in place of a panel that cannot be drawn."""
    axes.set_axis_off()
    axes.text(
        0.0, 0.9, "Not drawn: what the source's own training cost is not known,\nso that it cannot be charged.",
        transform=axes.transAxes, ha="left", va="top", fontsize=10, color=GREY,
    )  # fmt: skip


def passing(budget: Mapping[str, Any]) -> str:
    """Return the unit of a sequence: `tokens` for text, `patches` for images."""
    unit = str(budget["unit"])
    return {"images": "patches"}.get(unit, unit)


def _title(data: Mapping[str, Any]) -> str:
    budget = data["budget"]
    parts = [f"{data['architecture']} of {data['parameters']['target']:,} parameters"]
    per = finite(budget.get("tokens_per_parameter"))
    if per is not None:
        parts.append(f"{per:.3g} {passing(budget)} a parameter")
    return plain_text(", ".join(parts), 100)


def _legend(data: Mapping[str, Any], lines: Sequence[_Line]) -> str:
    level = scratch_loss(data)
    parts = [] if level is None else [f"Dashed: the loss that scratch ends with, {level:.3f}."]
    parts += ["Circles: where a line first reaches it.", "Saved: FLOPs fewer than scratch took."] if parts else []
    seeds = max((len(line.runs) for line in lines), default=1)
    parts += [f"Thin lines: {seeds} seeds; thick: their mean."] if seeds > 1 else []
    return " ".join(parts)


def _description(data: Mapping[str, Any]) -> str:
    """Return a description of the figure for screen readers; the values are in the table of the report."""
    names = ", ".join(printable(name) for name in data["methods"])
    level = scratch_loss(data)
    end = "" if level is None else f" Scratch ends at {level:.3f}."
    return f"Line chart of held-out loss against FLOPs, with the source left out and charged, for {names}.{end}"
