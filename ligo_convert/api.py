"""The operator in Python, without recipes and files: a model in, a larger model of the same class out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.checkpoints.torch_io import TORCH_DTYPES, tensor_from_bytes, tensor_to_bytes
from ligo_convert.conversion.plan import DEFAULT_KEYING
from ligo_convert.data.examples import ArrayExamples, Batch, Examples
from ligo_convert.errors import RecipeError, SourceError
from ligo_convert.families.registry import find_family
from ligo_convert.growth.growth_plan import GrowthSettings, plan_growth
from ligo_convert.growth.initialize import initial_operator
from ligo_convert.growth.stream import grow as grow_stream
from ligo_convert.growth.stream import target_specs
from ligo_convert.training.fit import FitSettings, fit, named_source, stacked_source
from ligo_convert.training.functional_model import LibraryModel, library_config
from ligo_convert.training.objectives import objective_of
from ligo_convert.training.preservation import MeasuredModel

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}

WHERE = "target"


@dataclass(frozen=True, kw_only=True)
class _Batches:
    """Batches of the caller's as the fit wants them: the last tenth, one batch at least, is held out."""

    batches: tuple[Batch, ...]
    validation: Examples

    def batch(self, step: int, *, batch_size: int, seed: int) -> Batch:
        return self.batches[step % len(self.batches)]


def grow(
    model: torch.nn.Module,
    target: Mapping[str, object],
    *,
    data: Iterable[Any] | None = None,
    width: str = "lemon",
    depth: str = "identity",
    steps: int = 100,
    learning_rate: Mapping[str, float] | None = None,
    keying: str = DEFAULT_KEYING,
    tie: str | None = None,
    seed: int = 0,
) -> torch.nn.Module:
    """Grow a transformers model.

    Args:
        model: of a supported family; it is not changed. target: config keys over the model's own, `{"n_layer": 24, ...}`.
        data: batches to fit the operator on: token ids [batch, sequence] (tensors, arrays, or mappings with `input_ids`, and `labels` for a
            masked language model, -100 where no token is asked for); every batch is one step, taken again in turn where there are fewer
            than `steps`. The last tenth, one batch at least, only chooses the best operator. None: no learning.
        width, depth: starts, as `ligo-convert methods` lists them. learning_rate: of `width` maps and `depth` weights.

    Returns:
        A model of the same class, dtype and device, in evaluation mode.

    Raises:
        RecipeError: a target that cannot be grown into, a start that cannot keep its promise, too few batches.
        SourceError: a model that is not supported.
    """
    if not hasattr(getattr(model, "config", None), "to_dict"):
        raise SourceError(
            f"{type(model).__name__} has no config that says what it is",
            where="model",
            expected="a model of transformers",
            hint="save a model of timm's with timm.models.save_for_hf, and grow it by a recipe",
        )
    config = model.config.to_dict()  # type: ignore[union-attr,operator]
    family = find_family(config, where=type(model).__name__)
    names = [head.architecture for head in family.heads]
    if type(model).__name__ not in names:
        raise SourceError(
            f"{type(model).__name__} is not supported", where="model", expected=" or ".join(dict.fromkeys(names))
        )
    device = next(model.parameters()).device.type
    held = {name: tensor.detach().cpu() for name, tensor in model.named_parameters()}
    specs = {
        name: TensorSpec(name=name, dtype=_NAMES[tensor.dtype], shape=tuple(tensor.shape))
        for name, tensor in held.items()
    }
    inventory = family.check(config, specs, label=type(model).__name__)
    family = inventory.family
    growth = GrowthSettings(width=width, depth=depth, keying="source" if tie else keying, tie=tie, seed=seed)  # type: ignore[arg-type]
    start = plan_growth(family, growth, config, family.resize(config, target, where=WHERE), asked=target, where=WHERE)
    operator = initial_operator(start)

    def read(name: str) -> bytearray:
        return bytearray(tensor_to_bytes(held[name], specs[name]))

    if data is not None:
        batches = _batches(data, family.task)
        rates = {"width": 3e-5, "depth": 1e-2, **(learning_rate or {})}
        rows = family.rows_for(start.target)
        stacked = stacked_source(read, family, inventory, rows, device=device, dtype=torch.float32)
        largest = max(len(batch["input_ids"]) for batch in batches.batches)
        settings = FitSettings(
            steps=steps,
            batch_size=largest,
            micro_batch_size=largest,
            tokens_a_step=batches.batches[0]["input_ids"].size,
            width_rate=rates["width"],
            depth_rate=rates["depth"],
            weight_decay=0.0,
            warmup_steps=min(10, steps // 10),
            seed=seed,
            evaluate_every=10,
            autocast=False,
        )
        target_model = LibraryModel(family, start.target, device=device)
        old = MeasuredModel(
            library=LibraryModel(family, start.source, device=device), parameters=named_source(inventory, stacked)
        )
        objective = objective_of(target_model, old, operator, dtype=torch.float32)
        operator, _ = fit(operator, family, inventory, stacked, batches, settings, objective=objective, device=device)
    made = type(model)(library_config(family, start.target), **family.chosen.options)
    planned = target_specs(family, inventory, start.target, dtype=None)
    by_name = {spec.name: spec for spec in planned}
    parameters = dict(made.named_parameters())
    with torch.no_grad():
        for name, data_bytes in grow_stream(read, family, inventory, operator, planned):
            grown = tensor_from_bytes(data_bytes, by_name[name])
            parameters[name].data = grown.to(device=device).clone()
    made.tie_weights()  # type: ignore[operator]
    return made.to(device).eval()


def _batches(data: Iterable[Any], task: str) -> _Batches:
    found = [_arrays(batch) for batch in data]
    if task == "masked-lm" and any("labels" not in batch for batch in found):
        raise RecipeError(
            "a masked language model learns from `labels`",
            where="data",
            expected="mappings with input_ids, some of them masked, and labels, -100 where no token is asked for",
        )
    lengths = sorted({array.shape[1] for batch in found for array in batch.values()})
    if len(lengths) > 1:
        raise RecipeError("sequences of several lengths", where="data", expected="one length", found=lengths)
    held = max(1, len(found) // 10)
    if len(found) < 2:
        raise RecipeError("two batches at least: one to learn on, one to choose by", where="data", found=len(found))
    kept = found[-held:]
    names = kept[0].keys()
    if any(batch.keys() != names for batch in found):
        raise RecipeError("every batch has the same arrays", where="data", expected=sorted(names))
    validation = ArrayExamples(arrays={name: np.concatenate([batch[name] for batch in kept]) for name in names})
    return _Batches(batches=tuple(found[:-held]), validation=validation)


def _arrays(batch: Any) -> dict[str, np.ndarray]:
    """`input_ids`, and `labels` where a batch has them, as arrays."""
    given = batch if isinstance(batch, Mapping) else {"input_ids": batch}
    arrays = {}
    mask = given.get("attention_mask")
    if mask is not None and not np.asarray(mask.cpu() if isinstance(mask, torch.Tensor) else mask).all():
        raise RecipeError(
            "a batch is padded", where="data", expected="texts cut or joined to one length, without padding"
        )
    for name in ("input_ids", "labels"):
        if name in given:
            value = given[name]
            array = np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value)
            if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
                raise RecipeError(
                    "a batch is token ids [batch, sequence]", where="data", found=f"{array.dtype} {list(array.shape)}"
                )
            arrays[name] = array.astype(np.int64)
    return arrays
