"""The operator in Python, without recipes and files: a model in, a larger model of the same class out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ligo_convert.errors import RecipeError, SourceError
from ligo_convert.fit import Settings, fit, stacked_source
from ligo_convert.initial import initial_operator
from ligo_convert.models import library_config
from ligo_convert.plan import DEFAULT_KEYING, find_family
from ligo_convert.start import Growth, plan_start
from ligo_convert.stream import grow as grow_stream
from ligo_convert.stream import target_rows, target_specs
from ligo_convert.tensors import TensorSpec
from ligo_convert.torchio import TORCH_DTYPES, tensor_from_bytes, tensor_to_bytes

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
WHERE = "target"


@dataclass(frozen=True, kw_only=True)
class _Batches:
    """Token batches of the caller's as the fit wants them: the last tenth, one batch at least, is held out."""

    batches: tuple[np.ndarray, ...]
    validation: np.ndarray

    def batch(self, step: int, *, batch_size: int, seed: int) -> np.ndarray:
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
        data: batches of token ids [batch, sequence] (tensors, arrays or mappings with `input_ids`), to fit the operator on; every batch is
            one step, taken again in turn where there are fewer than `steps`. The last tenth, one batch at least, only chooses the best
            operator. None: no learning.
        width, depth: starts, as `ligo-convert methods` lists them. learning_rate: of `width` maps and `depth` weights.

    Returns:
        A model of the same class, dtype and device, in evaluation mode.

    Raises:
        RecipeError: a target that cannot be grown into, a start that cannot keep its promise, too few batches.
        SourceError: a model that is not supported.
    """
    config = model.config.to_dict()  # type: ignore[union-attr,operator]
    family = find_family(config, where=type(model).__name__)
    if type(model).__name__ != family.architecture:
        raise SourceError(f"{type(model).__name__} is not supported", where="model", expected=family.architecture)
    device = next(model.parameters()).device.type
    held = {name: tensor.detach().cpu() for name, tensor in model.named_parameters()}
    specs = {
        name: TensorSpec(name=name, dtype=_NAMES[tensor.dtype], shape=tuple(tensor.shape))
        for name, tensor in held.items()
    }
    inventory = family.check(config, specs, label=type(model).__name__)
    growth = Growth(width=width, depth=depth, keying="source" if tie else keying, tie=tie, seed=seed)  # type: ignore[arg-type]
    start = plan_start(family, growth, config, family.resize(config, target, where=WHERE), asked=target, where=WHERE)
    operator = initial_operator(start)

    def read(name: str) -> bytearray:
        return bytearray(tensor_to_bytes(held[name], specs[name]))

    if data is not None:
        batches = _batches(data)
        rates = {"width": 3e-5, "depth": 1e-2, **(learning_rate or {})}
        rows = target_rows(family, inventory, start.target)
        stacked = stacked_source(read, family, inventory, rows, device=device, dtype=torch.float32)
        size, length = batches.validation.shape
        settings = Settings(
            steps=steps,
            batch_size=size,
            micro_batch_size=max(len(batch) for batch in batches.batches),
            sequence_length=length,
            width_rate=rates["width"],
            depth_rate=rates["depth"],
            weight_decay=0.0,
            warmup_steps=min(10, steps // 10),
            seed=seed,
            evaluate_every=10,
            autocast=False,
        )
        operator, _ = fit(operator, family, inventory, stacked, batches, settings, device=device)
    made = type(model)(library_config(family, start.target))
    planned = target_specs(family, inventory, start.target, dtype=None)
    by_name = {spec.name: spec for spec in planned}
    parameters = dict(made.named_parameters())
    with torch.no_grad():
        for name, data_bytes in grow_stream(read, family, inventory, operator, planned):
            grown = tensor_from_bytes(data_bytes, by_name[name])
            parameters[name].data = grown.to(device=device).clone()
    made.tie_weights()  # type: ignore[operator]
    return made.to(device).eval()


def _batches(data: Iterable[Any]) -> _Batches:
    arrays = []
    for batch in data:
        ids = batch["input_ids"] if isinstance(batch, Mapping) else batch
        array = np.asarray(ids.cpu() if isinstance(ids, torch.Tensor) else ids)
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
            raise RecipeError(
                "a batch is token ids [batch, sequence]", where="data", found=f"{array.dtype} {list(array.shape)}"
            )
        arrays.append(array)
    held = max(1, len(arrays) // 10)
    if len(arrays) < 2:
        raise RecipeError("two batches at least: one to learn on, one to choose by", where="data", found=len(arrays))
    return _Batches(batches=tuple(arrays[:-held]), validation=np.concatenate(arrays[-held:]))
