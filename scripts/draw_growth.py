"""Draw the pictures of docs/growing.md from the growth methods themselves.

    python scripts/draw_growth.py [--into docs/pictures]

Output: `width.png`, the write and read maps of an axis, and `depth.png`, the layer that each new layer copies, for several methods.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from ligo_convert.families.registry import FAMILIES
from ligo_convert.growth.depth_methods import depth_map
from ligo_convert.growth.growth_plan import GrowthSettings, plan_growth
from ligo_convert.growth.initialize import initial_operator
from ligo_convert.outputs.plotting import DARK, GREY, new_figure, png_bytes

# Okabe and Ito's palette: a colour for each layer of the source.
LAYERS = ("#0072b2", "#009e73", "#d55e00")

DEPTH_METHODS = {"stack": "stack", "interpolate": "interpolate", "identity": "identity", "drawn": "silent-drawn"}
WIDTH_METHODS = ("net2net", "lemon", "zero")

OLD, NEW = 4, 6


@click.command()
@click.option("--into", type=click.Path(path_type=Path), default=Path(__file__).parent.parent / "docs" / "pictures")
def main(into: Path) -> None:
    """Draw the pictures."""
    into.mkdir(parents=True, exist_ok=True)
    (into / "width.png").write_bytes(width_picture())
    (into / "depth.png").write_bytes(depth_picture())


def maps_of(method: str) -> tuple[np.ndarray, np.ndarray]:
    """Return write and read map [new, old] of the axis between the two layers of an MLP."""
    family = FAMILIES["gpt2"]
    source = {
        **family.defaults,
        "n_embd": 4,
        "n_head": 2,
        "n_layer": 1,
        "n_inner": OLD,
        "vocab_size": 8,
        "n_positions": 4,
    }
    changes = {"n_inner": NEW}
    settings = GrowthSettings(width=method, depth="copy", keying="shared", tie=None, seed=0)
    plan = plan_growth(family, settings, source, family.resize(source, changes), asked=changes, where="")
    [axis] = initial_operator(plan, dtype=np.float64).terms[0].widths["mlp"]
    return axis.write.matrix(), axis.read.matrix()


def width_picture() -> bytes:
    """Draw the maps of the methods side by side."""
    figure, canvas = new_figure(9.0, 2.9, 150)
    axes = figure.subplots(
        1, 2 * len(WIDTH_METHODS), gridspec_kw={"left": 0.03, "right": 0.99, "bottom": 0.08, "top": 0.78, "wspace": 0.3}
    )
    for number, method in enumerate(WIDTH_METHODS):
        for place, (what, matrix) in enumerate(zip(("write map", "read map"), maps_of(method), strict=True)):
            drawn = axes[2 * number + place]
            drawn.imshow(matrix, cmap="Blues", vmin=0, vmax=1.3, aspect="equal")
            for (row, column), value in np.ndenumerate(matrix):
                if value:
                    colour = "white" if value > 0.75 else DARK
                    drawn.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=7.5, color=colour)
            drawn.set_xticks(np.arange(OLD + 1) - 0.5, labels=[])
            drawn.set_yticks(np.arange(NEW + 1) - 0.5, labels=[])
            drawn.grid(color="#d0d0d0", linewidth=0.5)
            drawn.tick_params(length=0)
            drawn.set_title(what, fontsize=9, color=DARK)
            drawn.set_xlabel("4 old entries", fontsize=8, color=GREY)
            if not place:
                drawn.set_ylabel("6 new entries", fontsize=8, color=GREY)
                drawn.text(-0.5, -1.6, method, fontsize=11, color=DARK, fontweight="bold", va="bottom")
    return png_bytes(canvas)


def depth_picture() -> bytes:
    """Draw the layers of a source and of targets with twice as many."""
    from matplotlib.patches import Rectangle

    figure, canvas = new_figure(9.0, 3.2, 150)
    axes: Any = figure.add_axes((0.02, 0.04, 0.96, 0.92))
    axes.set_xlim(0, 1 + 2 * len(DEPTH_METHODS))
    axes.set_ylim(-0.2, 7.0)
    axes.axis("off")
    columns: list[tuple[str, list[tuple[int, bool, bool]]]] = [
        ("source", [(layer, False, False) for layer in range(3)])
    ]
    for shown, method in DEPTH_METHODS.items():
        found = depth_map(method, 3, 6)
        columns.append(
            (method if shown == "drawn" else shown, list(zip(found.source, found.silent, found.drawn, strict=True)))
        )
    for place, (name, layers) in enumerate(columns):
        left = 0.1 + 1.8 * place
        axes.text(left + 0.7, 6.35, name, ha="center", fontsize=10.5, fontweight="bold", color=DARK)
        for height, (layer, silent, drawn) in enumerate(layers):
            colour = "#dddddd" if drawn else LAYERS[layer]
            axes.add_patch(
                Rectangle(
                    (left, height), 1.4, 0.85, facecolor="white" if silent else colour, edgecolor=colour, linewidth=2,
                    linestyle="--" if silent else "solid",
                )
            )  # fmt: skip
            text = "drawn" if drawn else f"layer {layer + 1}"
            axes.text(
                left + 0.7, height + 0.42, f"{text}, silent" if silent else text, ha="center", va="center", fontsize=8.5,
                color=DARK if silent or drawn else "white",
            )  # fmt: skip
    return png_bytes(canvas)


if __name__ == "__main__":
    main()
