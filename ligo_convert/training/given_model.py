"""A model that a caller holds: whether it computes what its config says, and the settings that its grown model takes over.

Input: a model of transformers or timm. The library builds such a model again from its config and its parameters. An argument of the
constructor that no config holds, such as an activation or an epsilon of timm, would be lost unseen.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.func import functional_call

from ligo_convert.errors import SourceError
from ligo_convert.families.inventory import Inventory
from ligo_convert.families.parameters import model_names
from ligo_convert.families.schema import Family
from ligo_convert.growth.growth_plan import GrowthPlan
from ligo_convert.training.functional_model import PLAIN_EXPERTS, stateless, table_parameters
from ligo_convert.training.library_config import handed_on, library_config
from ligo_convert.training.preservation import EXACT, MeasuredModel
from ligo_convert.training.tasks import on_device, random_batch

_EXAMPLES = 2

# Argument of timm's constructors -> the module that drops with this rate, and its attribute.
_DROPS = {
    "drop_rate": ("head_drop", "p"),
    "pos_drop_rate": ("pos_drop", "p"),
    "patch_drop_rate": ("patch_drop", "prob"),
    "proj_drop_rate": ("blocks.0.attn.proj_drop", "p"),
    "attn_drop_rate": ("blocks.0.attn.attn_drop", "p"),
}


def check_given(model: torch.nn.Module, rebuilt: MeasuredModel, *, dtype: torch.dtype) -> None:
    """Require that a model computes what the library's own model of its config does, on one random batch.

    Both compute with the same parameters, in `dtype`. The model keeps its parameters and its mode.

    Raises:
        SourceError: the model cannot be run, or the two differ.
    """
    library = rebuilt.library
    batch = on_device(random_batch(library.family, library.config, count=_EXAMPLES), library.device, dtype)
    inputs = library.task.inputs(batch)
    tensors = library.named(rebuilt.parameters)
    for name, buffer in model.named_buffers():
        # A model cast to a narrow dtype has rounded buffers. Rounding is not another function.
        narrow = buffer.is_floating_point() and torch.finfo(buffer.dtype).bits < 32
        tensors[name] = library.buffers[name] if narrow and name in library.buffers else buffer.to(library.device)
    timm = library.family.library == "timm"
    with _evaluating(model), stateless(model), torch.no_grad():
        try:
            returned = functional_call(
                model,
                tensors,
                args=tuple(inputs.values()) if timm else (),
                kwargs={} if timm else {**inputs, "return_dict": True},
            )
            given = library.task.output(returned)
        except Exception as error:
            raise SourceError(
                f"the model cannot be run as a {library.family.architecture}: {type(error).__name__}: {error}",
                where="model",
            ) from error
        expected = library(rebuilt.parameters, batch)
    scale = max(1.0, float(expected.abs().max()))
    if given.shape != expected.shape or not float((given - expected).abs().max()) <= EXACT * scale:
        apart = (
            f"up to {float((given - expected).abs().max()):.2g} apart"
            if given.shape == expected.shape
            else "other shapes"
        )
        raise SourceError(
            f"the model computes something else than {library.family.library} builds from its config",
            where="model",
            expected=f"outputs within {EXACT * scale:.2g}",
            found=apart,
            hint="a setting that its config does not hold, such as an activation or an epsilon, cannot be grown",
        )


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, with named results; then put every module back into its own mode."""
    modes = {module: module.training for module in model.modules()}
    # The models of transformers ask their config for the form of inner results, too.
    config: Any = getattr(model, "config", None)
    form = getattr(config, "return_dict", None)
    model.eval()
    if form is not None:
        config.return_dict = True
    experts = getattr(config, "_experts_implementation", None)
    if experts is not None:
        model.set_experts_implementation(PLAIN_EXPERTS)  # type: ignore[operator]
    try:
        yield
    finally:
        if experts is not None:
            model.set_experts_implementation(experts)  # type: ignore[operator]
        if form is not None:
            config.return_dict = form
        for module, mode in modes.items():
            module.training = mode


def grown_config(family: Family, given: Any, target: Mapping[str, object]) -> Any:
    """Return the library's config object of a grown model: the given model's, with what decides the target's computation replaced.

    The form of its results, its attention implementation and the names of its labels stay.
    """
    made, config = library_config(family, target), copy.deepcopy(given)
    for key in handed_on(family, made.to_dict()):
        setattr(config, key, getattr(made, key))
    config.architectures = [family.architecture]
    config.name_or_path = ""
    return config


def drop_rates(model: torch.nn.Module) -> dict[str, float]:
    """Return the drop rates of a timm model as arguments of its constructor, those that are not zero."""
    modules = dict(model.named_modules())
    rates = {
        argument: float(getattr(modules[name], attribute))
        for argument, (name, attribute) in _DROPS.items()
        if name in modules and hasattr(modules[name], attribute)
    }
    # The rate of whole paths grows from block to block, and the argument is the last block's.
    paths = [float(module.drop_prob or 0.0) for module in modules.values() if hasattr(module, "drop_prob")]
    rates["drop_path_rate"] = max(paths, default=0.0)
    return {argument: rate for argument, rate in rates.items() if rate}


def copy_requires_grad(model: torch.nn.Module, made: torch.nn.Module, inventory: Inventory, plan: GrowthPlan) -> None:
    """Freeze the parameters of a grown model whose source is frozen; a new layer follows the layer that it comes from."""
    family = plan.family
    given, grown = table_parameters(inventory.family, model), table_parameters(family, made)
    old, new = model_names(inventory.family, plan.source), model_names(family, plan.target)
    for row in family.rows_for(plan.target):
        for layer in family.layers(row, plan.target):
            origin = None if row.depth is None or layer is None else plan.depths[row.depth].source[layer]
            name = row.name(origin)
            if name in inventory.stored and not given[old[name]].requires_grad:
                grown[new[row.name(layer)]].requires_grad_(False)
