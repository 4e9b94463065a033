"""Draw a comparison: loss against FLOPs, without and with the cost of the source, and savings against the cost of the source.

Input: the contents of compare.json.
Output: PNG files, or the same figures as SVG elements for an HTML page.
Every point is a finished run; lines join the runs of one entry. Equal data and an equal matplotlib version give equal bytes; the files
contain no date and no machine name.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ligo_convert.comparison.frontier import finite
from ligo_convert.comparison.methods import SCRATCH
from ligo_convert.comparison.naming import entry_text
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

LOSS_UNITS = {
    "causal-lm": "nats a token",
    "masked-lm": "nats a masked token",
    "image-classification": "nats an image",
}

WAYS = {"paper": "source left out (paper)", "net": "source charged (net)"}

_WIDTH, _HEIGHT, _DPI = 12.5, 6.1, 160  # inches, inches, pixels per inch

_LEFT = {"paper": 0.65, "net": 6.85}  # inches

_BOTTOM, _TOP = 0.095, 0.845  # fractions of the figure's height

# Label positions to the right of a panel, in inches: the line sample, the saving, the name; and the maximal width of a name.
_SAMPLE, _SAVED, _NAME, _ROOM = (0.13, 0.42), 1.14, 1.23, 1.6

_END = 0.1  # inches of space after a name

_FONT, _LONGEST = 8.5, 36

_GAP = 0.04  # minimal distance of two labels, as a fraction of the panel's height

_STRONG = {"ligo": "#0072b2"}

# The palette of Okabe and Ito without black (scratch), the blue above and yellow, which is invisible on white; plus Tol's wine.
# These colours can be distinguished with every kind of colour vision.
_COLOURS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255")

_SOURCE = "*"  # marker of a source

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_DASHES: tuple[Any, ...] = ("solid", (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)))

_CONTROL_COLOURS, _CONTROL_DASHES = ("#6b6b6b", "#9a9a9a", "#444444"), ((0, (5, 2)), (0, (2, 2)))

_TICKS = (
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
    10,
    15,
    20,
    30,
    40,
    50,
    60,
    80,
    100,
    150,
    200,
    300,
    500,
    1000,
    2000,
    5000,
    10000,
)  # per cent of scratch

_TICK_GAP = 0.11  # minimal distance of two ticks, as a fraction of the panel's width

# A run that ends above the highest end of scratch by more than this fraction of scratch's range is cut off: its name gets an arrow.
_SQUASH = 0.5

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One entry in the plot.

    Attributes:
        name: name of the entry.
        kind: `scratch`, `method` or `control`.
        colour: colour of line and markers.
        dashes: dash pattern, as matplotlib takes it.
        marker: shape of the markers.
        runs: ends of (FLOPs, loss) per seed, without the source.
        mean: ends of means over the seeds.
        source: FLOPs of training the source; 0 for an entry without one; None if unknown.
        saved: text of the saving by panel.
    """

    name: str
    kind: str
    colour: str
    dashes: Any
    marker: str
    runs: tuple[Points, ...]
    mean: Points
    source: float | None
    saved: Mapping[str, str]

    @property
    def width(self) -> float:
        return 2.4 if self.kind == "scratch" or self.name in _STRONG else 1.5

    def points(self, panel: str, points: Points | None = None) -> Points:
        """Return the points in a panel: moved by the source's cost in `net`; none there if it is unknown."""
        points = self.mean if points is None else points
        if panel == "paper":
            return points
        return () if self.source is None else tuple((flops + self.source, loss) for flops, loss in points)


# The figures.


def comparison_png(data: Mapping[str, Any]) -> bytes:
    """Return loss against FLOPs as a PNG without metadata."""
    return png_bytes(_loss_figure(data)[1])


def comparison_svg(data: Mapping[str, Any]) -> str:
    """Return loss against FLOPs as one `<svg>` element with an ARIA label. Text is drawn as outlines, so no font is needed."""
    return _svg(_loss_figure(data)[0], comparison_text(data), "loss")


def sources_png(data: Mapping[str, Any]) -> bytes | None:
    """Return savings against the source's cost as a PNG without metadata; None if no method was tried with two sources of known cost."""
    figure = _sources_figure(data)
    return None if figure is None else png_bytes(figure[1])


def sources_svg(data: Mapping[str, Any]) -> str | None:
    """Return savings against the source's cost as one `<svg>` element; None like `sources_png`."""
    figure = _sources_figure(data)
    return None if figure is None else _svg(figure[0], sources_text(data), "sources")


def comparison_text(data: Mapping[str, Any]) -> str:
    """Return a description of the first figure for readers who do not see it; the values are in the tables."""
    names = ", ".join(printable(entry_text(name)) for name in (*data["methods"], *data["controls"]))
    level = scratch_loss(data)
    end = "" if level is None else f" Scratch ends at {level:.3f}."
    return f"Held-out loss against FLOPs of finished runs, with the source left out and charged, for {names}.{end}"


def sources_text(data: Mapping[str, Any]) -> str:
    """Return a description of the second figure."""
    names = ", ".join(printable(found["base"]) for found in _tried(data))
    return f"FLOPs saved against the cost of training the source, with the source left out and charged, for {names}."


def scratch_loss(data: Mapping[str, Any]) -> float | None:
    """Return scratch's loss after the whole budget; the last end that has one where the whole budget has none."""
    ends = [end for end in data["curve"] if finite(end["loss"]) is not None]
    whole = next((end for end in ends if end["step"] == data["budget"]["steps"]), ends[-1] if ends else None)
    return None if whole is None else float(whole["loss"])


def passing(budget: Mapping[str, Any]) -> str:
    """Return the unit of a sequence: `tokens` for text, `patches` for images."""
    unit = str(budget["unit"])
    return {"images": "patches"}.get(unit, unit)


def _svg(figure: Any, description: str, prefix: str) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    canvas: Any = FigureCanvasSVG(figure)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "ligo-convert", "svg.fonttype": "path"}):
        canvas.print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    # Inside an HTML page, the XML declarations before the element are invalid, and its comments contain unescaped foreign names.
    element = buffer.getvalue()
    element = re.sub(r"<!--.*?-->\n? *", "", element[element.index("<svg ") :].rstrip(), flags=re.DOTALL)
    # Two figures of one page must not share ids.
    element = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", element)
    return element.replace("<svg ", f'<svg role="img" aria-label="{html.escape(description)}" ', 1)


# Loss against FLOPs.


def _loss_figure(data: Mapping[str, Any]) -> tuple[Any, Any]:
    """Draw loss against FLOPs; return the figure with its Agg canvas."""
    figure, canvas = new_figure(_WIDTH, _HEIGHT, _DPI)
    renderer = canvas.get_renderer()
    lines, level, budget = _lines(data), scratch_loss(data), finite(data["budget"]["flops"]) or 1.0
    size, room = _names(figure, renderer, {_name(line, beyond=True): _weight(line.name) for line in lines})
    width = (_LEFT["net"] - _LEFT["paper"] - 0.55 - _NAME - room - _END) / _WIDTH
    low, high = _limits(lines)
    methods = [line for line in lines if line.kind == "method" and line.mean]
    for panel, heading in WAYS.items():
        axes = figure.add_axes((_LEFT[panel] / _WIDTH, _BOTTOM, width, _TOP - _BOTTOM))
        axes.set_title(heading, loc="left", fontsize=10.5, color=DARK)
        if panel == "net" and methods and all(line.source is None for line in methods):
            _draw_reason(axes)
            continue
        axes.set_xscale("log")
        axes.set_xlim(*_range(lines, panel, budget))
        axes.set_ylim(low, high)
        _set_ticks(axes)
        _draw_lines(axes, lines, level, panel, budget)
        _draw_labels(axes, lines, panel, budget, inch=1 / (width * _WIDTH), size=size)
        axes.set_xlabel("FLOPs, % of scratch's whole budget (logarithmic)", fontsize=9.5)
        style_axes(axes)
    figure.axes[0].set_ylabel(f"held-out loss, {LOSS_UNITS.get(str(data['task']), 'nats')}", fontsize=9.5)
    for text, up, font, colour in ((_title(data), 0.955, 12.0, DARK), (_legend(data, lines), 0.913, 8.5, GREY)):
        drawn = figure.text(0.012, up, text, fontsize=font, color=colour, ha="left", va="baseline", parse_math=False)
        shrink_to_fit(drawn, renderer, 0.976 * _WIDTH * _DPI)
    return figure, canvas


def _lines(data: Mapping[str, Any]) -> list[_Line]:
    """Return one line per entry: scratch, methods, controls, and the sources as controls with one end."""
    looks = _looks(data)
    lines = []
    for name, entry in (*data["methods"].items(), *data["controls"].items()):
        colour, dashes, marker = looks[name]
        lines.append(
            _Line(
                name=name,
                kind=str(entry["kind"]),
                colour=colour,
                dashes=dashes,
                marker=marker,
                runs=tuple(_points(run["ends"]) for run in (entry.get("seeds") or {}).values()),
                mean=_points(entry["ends"]),
                source=finite(entry["source_flops"]),
                saved={way: _saved(entry, way) for way in WAYS},
            )
        )
    for source in data["sources"]:
        points = _points([source])
        if points:
            name = f"source {source['name']}"
            lines.append(
                _Line(
                    name=name, kind="control", colour=DARK, dashes="solid", marker=_SOURCE, runs=(), mean=points, source=0.0,
                    saved=dict.fromkeys(WAYS, ""),
                )
            )  # fmt: skip
    return lines


def _looks(data: Mapping[str, Any]) -> dict[str, tuple[str, Any, str]]:
    """Return colour, dashes and marker by entry: a colour per method, a marker per source, and no two entries alike."""
    bases: dict[str, int] = {}
    sources: dict[Any, int] = {}
    looks: dict[str, tuple[str, Any, str]] = {}
    for name, entry in data["methods"].items():
        if entry["kind"] == "scratch":
            looks[name] = ("#000000", "solid", "o")
            continue
        base = str(entry["base"])
        root = base.partition("+")[0]
        number = 0 if root in _STRONG else bases.setdefault(base, len(bases))
        marker = _MARKERS[sources.setdefault(entry["source"], len(sources)) % len(_MARKERS)]
        colour = _STRONG.get(root) or _COLOURS[number % len(_COLOURS)]
        order = list(_DASHES) if base == root else [*_DASHES[1:], _DASHES[0]]
        turn = number // len(_COLOURS)
        choices = [(colour, dashes, shape) for shape in (marker, *_MARKERS) for dashes in (*order[turn % 4 :], *order)]
        looks[name] = next((choice for choice in choices if choice not in looks.values()), choices[0])
    for number, name in enumerate(data["controls"]):
        colour = _CONTROL_COLOURS[number % len(_CONTROL_COLOURS)]
        dashes = _CONTROL_DASHES[number // len(_CONTROL_COLOURS) % len(_CONTROL_DASHES)]
        looks[name] = (colour, dashes, _MARKERS[1 + number % (len(_MARKERS) - 1)])
    return looks


def _points(ends: Iterable[Mapping[str, Any]]) -> Points:
    pairs = ((finite(end.get("flops")), finite(end.get("loss"))) for end in ends)
    return tuple((flops, loss) for flops, loss in pairs if flops is not None and flops > 0 and loss is not None)


def _saved(entry: Mapping[str, Any], way: str) -> str:
    """Return the text of a method's saving: a dash where there is none, empty for scratch and controls."""
    found = entry["headline"][way]
    if entry["kind"] != "method":
        return ""
    saved = None if found is None else finite(found["saved"])
    if saved is None:
        return "\u2013"
    sign = {"at least": "\u2265", "at most": "\u2264"}.get(found["bound"], "")
    star = "" if found["step"] is None else "*"
    return f"{sign}{saved:.0f} %{star}".replace("-", "\u2212")


def _range(lines: Sequence[_Line], panel: str, budget: float) -> tuple[float, float]:
    """Return the limits of the FLOPs axis of a panel, in per cent of scratch's budget: from the first end of a method to the last end.

    Sources have an end of their own, which counts only where they are charged.
    """
    shown = [line for line in lines if line.marker != _SOURCE or panel == "net"]
    first = _first(lines)
    across = [flops for line in shown for flops, _ in line.points(panel) if flops >= 0.85 * first] or [budget]
    return 100 * min(across) / budget / 1.12, 100 * max(across) / budget * 1.12


def _first(lines: Sequence[_Line]) -> float:
    """Return the FLOPs from which on there is something to compare: the first end of a method without its source."""
    return min((flops for line in lines if line.kind == "method" for flops, _ in line.mean), default=0.0)


def _limits(lines: Sequence[_Line]) -> tuple[float, float]:
    """Return the limits of the loss axis: all lower losses, scratch's ends from the first end of a method on, and ends not far above."""
    first = _first(lines)
    shown = [loss for line in lines for flops, loss in line.mean if flops >= 0.99 * first]
    if not shown:
        return 0.0, 1.0
    scratch = [loss for line in lines if line.kind == "scratch" for flops, loss in line.mean if flops >= 0.99 * first]
    low, high = min(shown), max(scratch or shown)
    room = _SQUASH * limit_height(low, high)
    high = max(loss for loss in (*shown, high) if loss <= high + room)
    height = limit_height(low, high)
    return low - 0.05 * height, low + 1.05 * height


def _set_ticks(axes: Any) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    low, high = axes.get_xlim()
    ticks: list[float] = []
    # 100 % is scratch's budget and always has its tick.
    for tick in sorted((tick for tick in _TICKS if low <= tick <= high), key=lambda tick: (tick != 100, -tick)):
        if all(abs(math.log(tick / other)) >= _TICK_GAP * math.log(high / low) for other in ticks):
            ticks.append(tick)
    ticks.sort()
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())


def _draw_lines(axes: Any, lines: Sequence[_Line], level: float | None, panel: str, budget: float) -> None:
    if level is not None:
        axes.axhline(level, color="black", linestyle=(0, (1, 2)), linewidth=1.0, zorder=2)
    for line in lines:
        order = {"scratch": 6.0, "method": 5.0}.get(line.kind, 3.0)
        for run in line.runs if len(line.runs) > 1 else ():
            points = line.points(panel, run)
            axes.plot(
                [100 * flops / budget for flops, _ in points], [loss for _, loss in points], linestyle="none",
                marker=line.marker, markersize=3, color=line.colour, alpha=0.4, markeredgewidth=0, zorder=order - 1,
            )  # fmt: skip
        points = line.points(panel)
        axes.plot(
            [100 * flops / budget for flops, _ in points], [loss for _, loss in points], color=line.colour,
            linestyle=line.dashes, linewidth=line.width, marker=line.marker, markersize=9 if line.marker == _SOURCE else 5,
            markeredgecolor="white", markeredgewidth=0.5, zorder=order,
        )  # fmt: skip


def _draw_labels(axes: Any, lines: Sequence[_Line], panel: str, budget: float, *, inch: float, size: float) -> None:
    """Draw the labels beside the panel, ordered by the loss of the last end: a sample of the line, the saving, the name."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    ends = {line.name: points[-1] if (points := line.points(panel)) else None for line in lines}
    heights = {name: math.inf if end is None else (end[1] - low) / (high - low) for name, end in ends.items()}
    order = sorted(lines, key=lambda line: (heights[line.name], line.name))
    gap = min(_GAP, 1.0 / max(len(lines), 1))
    places = spread_labels([min(max(heights[line.name], 0.0), 1.0) for line in order], gap=gap, low=0.0, high=1.0)
    sample, saved, name = [1 + at * inch for at in _SAMPLE], 1 + _SAVED * inch, 1 + _NAME * inch
    beside = {"transform": axes.transAxes, "clip_on": False}
    for line, place in zip(order, places, strict=True):
        end, height = ends[line.name], heights[line.name]
        if end is not None and height <= 1.0:
            across = min(1.0, math.log(100 * end[0] / budget / left) / math.log(right / left))
            axes.plot(
                [across, 1.0, sample[0]], [height, height, place], color=line.colour, linewidth=0.6, alpha=0.6, zorder=1.5, **beside
            )  # fmt: skip
        if end is not None:
            axes.plot(
                sample, [place, place], color=line.colour, linestyle=line.dashes, linewidth=min(line.width, 2.2),
                marker=line.marker, markersize=4, markevery=[1], **beside,
            )  # fmt: skip
        shown = {
            "va": "center",
            "color": DARK,
            "fontsize": size * gap / _GAP,
            "fontweight": _weight(line.name),
            "parse_math": False,
        }
        axes.text(saved, place, line.saved[panel], ha="right", **shown, **beside)
        axes.text(name, place, _name(line, beyond=1.0 < height < math.inf), ha="left", **shown, **beside)
    axes.text(saved, max(places) + 0.7 * gap, "saved", ha="right", va="bottom", fontsize=7.5, color=GREY, **beside)


def _names(figure: Any, renderer: Any, names: Mapping[str, str]) -> tuple[float, float]:
    """Return the font size at which the longest name fits, in points, and the width of that name, in inches.

    `names` gives the weight of every name.
    """
    texts = [
        figure.text(0, 0, name, fontsize=_FONT, fontweight=weight, parse_math=False) for name, weight in names.items()
    ]
    widest = max(text.get_window_extent(renderer).width for text in texts) / _DPI
    for text in texts:
        text.remove()
    return _FONT * min(1.0, _ROOM / max(widest, 0.1)), min(widest, _ROOM)


def _name(line: _Line, *, beyond: bool) -> str:
    note = " (no loss)" if not line.mean else " \u2191" if beyond else ""
    return f"{plain_text(entry_text(line.name), _LONGEST)}{note}"


def _weight(name: str) -> str:
    return "bold" if name in (SCRATCH, *_STRONG) else "normal"


def _draw_reason(axes: Any) -> None:
    """Print the reason in place of a panel that cannot be drawn."""
    axes.set_axis_off()
    axes.text(
        0.0, 0.9, "Not drawn: the cost of training the source is unknown,\nso it cannot be charged.",
        transform=axes.transAxes, ha="left", va="top", fontsize=10, color=GREY,
    )  # fmt: skip


def _title(data: Mapping[str, Any]) -> str:
    budget = data["budget"]
    parts = [f"{data['architecture']} of {data['parameters']['target']:,} parameters"]
    per = finite(budget.get("tokens_per_parameter"))
    if per is not None:
        parts.append(f"{per:.3g} {passing(budget)} a parameter")
    return plain_text(", ".join(parts), 100)


def _legend(data: Mapping[str, Any], lines: Sequence[_Line]) -> str:
    level = scratch_loss(data)
    parts = ["Marks: finished runs; lines join runs of one entry; grey: smaller models, never grown."]
    parts += [] if level is None else [f"Dotted: scratch's final loss, {level:.3f}."]
    parts += ["Saved: at that loss; *: at the entry's own lowest loss."]
    seeds = max((len(line.runs) for line in lines), default=1)
    parts += [f"Small marks: {seeds} seeds."] if seeds > 1 else []
    return " ".join(parts)


# Savings against the cost of the source.


def _tried(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the methods that were tried with two sources of known cost or more."""
    return [found for found in data["sources_tried"] if len(found["points"]) > 1]


def _sources_figure(data: Mapping[str, Any]) -> tuple[Any, Any] | None:
    tried = _tried(data)
    if not tried:
        return None
    figure, canvas = new_figure(8.0, 5.0, _DPI)
    renderer = canvas.get_renderer()
    names = [plain_text(found["base"], _LONGEST) for found in tried]
    size, room = _names(figure, renderer, dict.fromkeys(names, "normal"))
    axes = figure.add_axes((0.8 / 8.0, 0.12, (8.0 - 0.8 - 0.75 - room) / 8.0, 0.72))
    axes.axhline(0.0, color="black", linewidth=1.0, zorder=2)
    ends = []
    for number, found in enumerate(tried):
        root = str(found["base"]).partition("+")[0]
        colour = _STRONG.get(root) or _COLOURS[number % len(_COLOURS)]
        marker = _MARKERS[number % len(_MARKERS)]
        for way, dashes, face in (("net", "solid", colour), ("paper", (0, (4, 2)), "white")):
            points = [
                (100 * point["fraction"], saved)
                for point in found["points"]
                if point[way] is not None and (saved := finite(point[way]["saved"])) is not None
            ]
            axes.plot(
                [share for share, _ in points], [saved for _, saved in points], color=colour, linestyle=dashes, linewidth=1.8,
                marker=marker, markersize=6, markerfacecolor=face, markeredgecolor=colour, zorder=4,
            )  # fmt: skip
            for bound, sign, offset in (("at least", "\u2265", 5), ("at most", "\u2264", -11)):
                for point in found["points"]:
                    if point[way] is not None and point[way]["bound"] == bound:
                        at = (100 * point["fraction"], point[way]["saved"])
                        axes.annotate(
                            sign, at, xytext=(0, offset), textcoords="offset points", ha="center", fontsize=10, color=colour
                        )  # fmt: skip
            ends += [(points[-1][1], names[number], colour)] if points and way == "net" else []
        for share in found["crossings"]:
            axes.plot([100 * share], [0.0], marker="|", markersize=14, color=colour, markeredgewidth=2, zorder=5)
    low, high = axes.get_ylim()
    ends.sort()
    places = spread_labels([(saved - low) / (high - low) for saved, _, _ in ends], gap=0.05, low=0.0, high=1.0)
    for (_, name, colour), place in zip(ends, places, strict=True):
        axes.text(
            1.03, place, name, transform=axes.transAxes, ha="left", va="center", color=colour, fontsize=size, parse_math=False
        )  # fmt: skip
    axes.set_xlabel("FLOPs of training the source, % of scratch's whole budget", fontsize=9.5)
    axes.set_ylabel("FLOPs saved, %", fontsize=9.5)
    style_axes(axes)
    note = "Solid: source charged (net). Dashed: source left out (paper). \u2265, \u2264: bounds."
    if any(found["crossings"] for found in tried):
        note += " Bars on the zero line: break-even for one target."
    for text, up, font, colour in ((_title(data), 0.94, 12.0, DARK), (note, 0.885, 8.5, GREY)):
        drawn = figure.text(0.012, up, text, fontsize=font, color=colour, ha="left", va="baseline", parse_math=False)
        shrink_to_fit(drawn, renderer, 0.976 * 8.0 * _DPI)
    return figure, canvas
