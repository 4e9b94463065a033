"""Count the FLOPs of a training step in each stage: trained tensors, skipped layers and tokens, a teacher's forward pass.

Input: a family, a config, a stage of a strategy.
Output: FLOPs, counted as in `families.flops`. This module does not import torch: the same code predicts the cost of a comparison and
counts the work done.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ligo_convert.families.flops import forward_flops, is_below, partial_step_flops
from ligo_convert.families.notation import size_keys
from ligo_convert.families.schema import Family, Row
from ligo_convert.training.dropping import NOTHING, Dropping, kept_tokens, skipped_layers
from ligo_convert.training.runs import Run, Stage

Config = Mapping[str, object]


def with_layers(family: Family, config: Config, layers: int) -> dict[str, object]:
    """Return the config of the same model with `layers` layers along its first depth axis; 0 keeps all layers.

    A list with one entry per layer is cut; in a deeper model, layer i takes the entry of layer `shared_layer(i)`.
    """
    axis = family.depth_axes[0]
    if not layers:
        return dict(config)
    found = {**config, size_keys(family.axes[axis])[0]: layers}
    for key, along in family.per_layer_keys.items():
        values = config.get(key)
        if along == axis and isinstance(values, list):
            own = len(values)
            found[key] = [values[shared_layer(layer, own, layers)] for layer in range(layers)]
    return found


def shared_layer(layer: int, layers: int, height: int) -> int:
    """Return the layer of a model of `layers` layers that stands for layer `layer` of a sub-model of `height` layers.

    A lower sub-model has the lowest layers; a higher one applies every layer again in place (arXiv:2401.09192).
    """
    return layer if height <= layers else layer * layers // height


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step of one stage: which tensors it trains, and its FLOPs.

    Attributes:
        family: model family.
        stage: the stage.
        tokens: tokens per step.
        length: tokens per sequence; for an image, its patches.
        added: names of tensors with added entries, for a stage that trains only those.
        dropping: layers and tokens to skip.
        teacher: config of the source, for a stage in which it teaches.
    """

    family: Family
    stage: Stage
    tokens: int
    length: int
    added: Collection[str] = ()
    dropping: Dropping = NOTHING
    teacher: Config | None = None

    @property
    def layers(self) -> int:
        return self.family.sizes(self.stage.config)[self.family.depth_axes[0]]

    def learns(self, row: Row, layer: int | None, height: int, *, late: bool = False) -> bool:
        """Return whether a tensor learns in a sub-model.

        Args:
            row: row of the tensor in the family's table.
            layer: layer of the tensor; None for a tensor outside the layers.
            height: number of layers of the sub-model.
            late: whether the step lies after the stage's `until`.
        """
        if self.stage.trains == "added":
            return row.name(layer) in self.added
        if self.stage.trains == "all" or late:
            return True
        if row.depth == self.family.depth_axes[0]:
            assert layer is not None
            return height - self.stage.top <= layer < height
        # Parameters below the top layers are frozen, including a head that is tied to the embedding.
        return row.depth is not None or not is_below(self.family, row)

    def flops(self, height: int, dropped: Collection[int] = (), *, late: bool = False) -> int:
        """Return the FLOPs of a step.

        Args:
            height: number of layers of the sub-model.
            dropped: layers that are skipped.
            late: whether the step lies after the stage's `until`.
        """
        family, axis = self.family, self.family.depth_axes[0]
        config = with_layers(family, self.stage.config, height)
        kept = kept_tokens(self.dropping, self.length) / self.length
        skipping = skipped_layers(height) if self.dropping.tokens else range(0)
        owners = {row.pattern: row for row in family.rows}
        aliases = family.tied if family.is_tied(config) else {}

        def share(along: str, layer: int) -> float:
            if along != axis:
                return 1.0
            return 0.0 if layer in dropped else kept if layer in skipping else 1.0

        def trained(row: Row, layer: int | None) -> bool:
            return self.learns(owners[aliases.get(row.pattern, row.pattern)], layer, height, late=late)

        total = partial_step_flops(
            family,
            config,
            tokens=self.tokens,
            sequence_length=self.length,
            trained=None if self.stage.trains == "all" else trained,
            share=share,
        )
        if self.stage.teacher and not late and self.teacher is not None:
            total += forward_flops(family, self.teacher, tokens=self.tokens, sequence_length=self.length)
        return total

    def mean_flops(self, *, late: bool = False) -> float:
        """Return the FLOPs of a step, the mean over the sub-models, without skipped layers."""
        if late:
            return self.flops(self.layers, late=True)
        heights = self.stage.submodels or (self.layers,)
        return sum(self.flops(height) for height in heights) / len(heights)


def run_flops(
    family: Family,
    run: Run,
    *,
    sequence_length: int,
    added: Collection[str] = (),
    teacher: Config | None = None,
    done: int | None = None,
) -> float:
    """Return the FLOPs of a run, the mean over its sub-models, without skipped layers.

    Args:
        done: number of its first steps that count; None for all.
    """
    done = run.steps if done is None else done
    total = 0.0
    for stage, span in zip(run.stages, run.spans, strict=True):
        if span.start >= done:
            break
        step = Step(
            family=family,
            stage=stage,
            tokens=run.batch_size * sequence_length,
            length=sequence_length,
            added=added,
            teacher=teacher,
        )
        end = min(span.stop, done)
        turn = end if stage.until is None else min(stage.until, end)
        if turn > span.start:
            total += (turn - span.start) * step.mean_flops()
        if end > turn:
            total += (end - turn) * step.mean_flops(late=True)
    return total
