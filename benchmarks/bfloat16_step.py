"""Measure the speed of a training step in bfloat16 relative to float32, by model width.

    python benchmarks/bfloat16_step.py

Output: per shape, the median, smallest and largest ratio of float32 to bfloat16 step times. The two steps of a pair run one after the
other.
"""

from __future__ import annotations

import statistics
import time

import click
import torch

from ligo_convert.families.registry import FAMILIES
from ligo_convert.training.functional_model import LibraryModel
from ligo_convert.training.pretrain import drawn_model

# Width, layers, vocabulary size; the last shape is GPT2-Base.
SHAPES = ((128, 6, 1024), (256, 6, 4096), (512, 8, 8192), (768, 12, 50257))


def ratios(width: int, layers: int, vocabulary: int, *, pairs: int) -> list[float]:
    family = FAMILIES["gpt2"]
    shape = {"n_embd": width, "n_layer": layers, "n_head": width // 32, "vocab_size": vocabulary, "n_positions": 128}
    config = {"model_type": "gpt2", **family.defaults, **shape}
    model = LibraryModel(family, config)
    drawn = drawn_model(family, config, seed=0)
    parameters = {name: torch.tensor(values, requires_grad=True) for name, values in drawn.items()}
    tokens = torch.randint(0, vocabulary, (4 if width > 512 else 16, 128))

    def step(autocast: bool) -> float:
        began = time.monotonic()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model.loss(parameters, tokens)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in parameters.values():
            parameter.grad = None
        return time.monotonic() - began

    step(False)
    step(True)
    return [step(False) / step(True) for _ in range(pairs)]


@click.command()
@click.option("--pairs", default=6, show_default=True)
def main(pairs: int) -> None:
    """Print the ratio for every shape."""
    for shape in SHAPES:
        found = ratios(*shape, pairs=pairs)
        click.echo(
            f"width {shape[0]}: float32 / bfloat16 {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
        )


if __name__ == "__main__":
    main()
