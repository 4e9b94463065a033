"""Compare training objectives for models without a head: one fit per objective and learning rate, evaluated alike.

    python benchmarks/encoder_objectives.py ENCODER 'corpus/*.txt' --width net2net --depth stack

Input: the directory of an encoder (BERT, RoBERTa), text, and an inexact initialisation, so that the fit can improve it.
Output: one line per objective and learning rate with two errors on held-out text: the difference between the sentence cosines (of
mean-pooled states) of target and source, and the difference of the target's states, read back to the source's width, relative to the
size of the source's states.

All fits start from the same initialisation and use the same batches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.nn.functional import normalize

from ligo_convert.data.masking import Masking
from ligo_convert.data.tokens import SplitSizes, token_splits
from ligo_convert.families.inventory import claim_tensors
from ligo_convert.families.registry import find_family
from ligo_convert.growth.apply import Grower
from ligo_convert.growth.growth_plan import GrowthSettings, plan_growth
from ligo_convert.growth.initialize import initial_operator
from ligo_convert.growth.operator import Operator
from ligo_convert.hub.resolve import open_source
from ligo_convert.recipes.schema import DataConfig
from ligo_convert.training.fit import FitSettings, GrownTarget, fetch_from, fit, named_source, stacked_source
from ligo_convert.training.functional_model import LibraryModel
from ligo_convert.training.objectives import OBJECTIVES, objective_of, read_back, reconstruct
from ligo_convert.training.preservation import MeasuredModel
from ligo_convert.training.tasks import on_device

SEQUENCE, BATCH = 64, 16


@click.command()
@click.argument("encoder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("text")
@click.option("--width", default="net2net", show_default=True)
@click.option("--depth", default="stack", show_default=True)
@click.option(
    "--grow", type=(str, int), multiple=True, help="A config key of the target. Default: a third wider and deeper."
)
@click.option("--steps", default=60, show_default=True)
@click.option("--objective", "names", multiple=True, type=click.Choice(list(OBJECTIVES)), default=tuple(OBJECTIVES))
@click.option("--rate", "rates", type=float, multiple=True, default=(3e-5, 3e-4), show_default=True)
def main(
    encoder: Path,
    text: str,
    width: str,
    depth: str,
    grow: tuple[tuple[str, int], ...],
    steps: int,
    names: tuple[str, ...],
    rates: tuple[float, ...],
) -> None:
    """Compare the objectives on ENCODER with TEXT, a glob."""
    with open_source(str(encoder.absolute()), base=encoder) as source:
        family = find_family(source.config, where=str(encoder))
        inventory = claim_tensors(
            family, source.config, {name: t.spec for name, t in source.tensors.items()}, label="source"
        )
        family, config = inventory.family, source.config
        changes: dict[str, Any] = dict(grow) or {
            key: int(config[key]) * 4 // 3  # type: ignore[call-overload]
            for key in ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")
        }
        start = plan_growth(
            family,
            GrowthSettings(width=width, depth=depth, keying="shared", tie=None, seed=0),
            config,
            family.resize(config, changes),
            asked=changes,
            where="target",
        )
        rows = family.rows_for(start.target)
        stacked = stacked_source(source.read, family, inventory, rows, device="cpu", dtype=torch.float32)
        slices = token_splits(
            DataConfig(text=[text]),
            encoder,
            base=Path.cwd(),
            sizes=SplitSizes(
                sequence_length=SEQUENCE, train_tokens=steps * BATCH * SEQUENCE, heldout_tokens=128 * SEQUENCE
            ),
            seed=0,
            vocabulary=family.sizes(config)[family.vocabulary],
            masking=Masking(seed=0),
        )
    old = MeasuredModel(library=LibraryModel(family, config), parameters=named_source(inventory, stacked))
    library, initial = LibraryModel(family, start.target), initial_operator(start)
    back = read_back(initial, library, torch.float32)

    def judged(operator: Operator) -> str:
        grower = Grower(operator, family, fetch=fetch_from(stacked))
        parameters = GrownTarget(grower, rows, stacked).tensors()
        pooled: dict[str, list[torch.Tensor]] = {"old": [], "new": []}
        apart = []
        with torch.no_grad():
            for first in range(0, len(slices.test), BATCH):
                part = range(first, min(first + BATCH, len(slices.test)))
                batch = on_device(slices.test.take(part), "cpu", torch.float32)
                before, after = old.library.states(old.parameters, batch), library.states(parameters, batch)
                apart.append(float(reconstruct(before, after, back)))
                pooled["old"].append(before.mean(1))
                pooled["new"].append(after.mean(1))
        one, other = (normalize(torch.cat(found), dim=-1) for found in (pooled["old"], pooled["new"]))
        difference = (one @ one.T - other @ other.T).abs()
        return f"cosines off by {float(difference.mean()):.4f} (most {float(difference.max()):.4f}), states by {np.mean(apart):.4f}"

    click.echo(f"{changes}, width {width}, depth {depth}, {steps} steps of {BATCH} x {SEQUENCE} tokens")
    click.echo(f"{'start':12} {'':8} {judged(initial)}")
    for name in names:
        for rate in rates:
            settings = FitSettings(
                steps=steps,
                batch_size=BATCH,
                micro_batch_size=BATCH,
                tokens_a_step=BATCH * SEQUENCE,
                width_rate=rate,
                depth_rate=1e-2,
                weight_decay=0.0,
                warmup_steps=min(10, steps // 10),
                seed=0,
                evaluate_every=max(1, steps // 6),
                autocast=False,
            )
            objective = objective_of(library, old, initial, dtype=torch.float32, name=name)
            learned, outcome = fit(initial, family, inventory, stacked, slices, settings, objective=objective)
            click.echo(f"{name:12} {rate:<8g} {judged(learned)}, best step {outcome.best_step}")


if __name__ == "__main__":
    main()
