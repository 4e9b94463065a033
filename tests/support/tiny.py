"""Tiny real models of every family: configs, random sources with every parameter away from its initial value.

A module of `support/cases/` puts a family through the whole grid: starts, exact maps, the explicit operator matrix, learning.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

import numpy as np
import torch
import transformers
from support import cases
from support.case import Case

from ligo_convert.families.configs import flat_config, written_config
from ligo_convert.families.parameters import model_parameters
from ligo_convert.families.registry import FAMILIES, find_family
from ligo_convert.families.schema import Family
from ligo_convert.growth.apply import Grower, RowSource
from ligo_convert.growth.growth_plan import GrowthPlan, GrowthSettings, plan_growth
from ligo_convert.growth.operator import Operator
from ligo_convert.training.functional_model import table_parameters, untie
from ligo_convert.training.model_tensors import parameters_of, tensors_of

_MODULES = [importlib.import_module(f"{cases.__name__}.{found.name}") for found in pkgutil.iter_modules(cases.__path__)]
ALL_CASES: dict[str, Case] = {name: case for module in _MODULES for name, case in module.CASES.items()}
CASES: dict[str, Case] = {name: case for name, case in ALL_CASES.items() if case.thorough}
GRIDS: list[str] = [name for name, case in ALL_CASES.items() if case.thorough or case.grid]
# Family -> configs of published checkpoints.
FULL_SIZE: dict[str, list[dict[str, object]]] = {
    module.__name__.rpartition(".")[2]: module.FULL_SIZE for module in _MODULES if hasattr(module, "FULL_SIZE")
}
# Name of a published model -> millions of parameters, where the name does not say them; other config keys that decide their number.
STATED: dict[str, float] = {name: size for module in _MODULES for name, size in getattr(module, "STATED", {}).items()}
BESIDE: dict[str, dict[str, object]] = {
    name: keys for module in _MODULES for name, keys in getattr(module, "BESIDE", {}).items()
}
CONFIGS: dict[str, Mapping[str, object]] = {name: case.config for name, case in CASES.items()}
TARGETS: dict[str, dict[str, dict[str, object]]] = {
    name: {
        kind: dict(changes)
        for kind, changes in {
            "even": case.even,
            "uneven": case.uneven,
            "depth": case.depth,
            "both": case.both,
            **case.others,
        }.items()
    }
    for name, case in ALL_CASES.items()
}


def family_of(config: Mapping[str, object]) -> Family:
    """The family of a config, narrowed to the class that it names or decides."""
    named = config.get("architectures")
    family = find_family(config, where="case").for_architecture(named[0] if isinstance(named, list) else None)
    return family.for_config(config)


def config_of(name: str, *, tied: bool = True, **changes: object) -> dict[str, object]:
    """The complete config of a case, as families read it; from transformers, as the library itself writes it."""
    case = ALL_CASES[name]
    family = FAMILIES[case.family or name]
    if family.library == "timm":
        return {**family.defaults, **flat_config(case.config), **changes}
    architecture = case.architecture or family.architecture
    made = library_config(
        {"model_type": family.model_type, **case.config, "tie_word_embeddings": tied, **changes}
    ).to_dict()
    made["architectures"] = [architecture]
    if "tie_word_embeddings" in made:
        # T5's class ties whatever the config says; files have what they were written with.
        made["tie_word_embeddings"] = tied
    return {key: value for key, value in made.items() if key != "transformers_version"}


def library_config(config: Mapping[str, object]) -> transformers.PreTrainedConfig:
    data = dict(config)
    return transformers.AutoConfig.for_model(str(data.pop("model_type")), **data)


def empty_model(config: Mapping[str, object]) -> torch.nn.Module:
    """The library's own model of a config, in evaluation mode."""
    family = family_of(config)
    if family.library == "timm":
        import timm

        made = written_config(family, config, {})
        arguments = {**made["model_args"], "num_classes": made["num_classes"], "in_chans": family.sizes(config)["rgb"]}
        return timm.create_model(made["architecture"], **arguments).eval()
    made = library_config(config)
    if family.experts:
        made._experts_implementation = "eager"  # the others take no float64
    model = getattr(transformers, family.architecture)(made, **family.chosen.options).eval()
    untie(family, config, model)
    return model


def model_of(config: Mapping[str, object], *, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """A model whose every parameter, gains and biases too, is drawn: nothing is left at a value that hides a mistake."""
    family, model = family_of(config), empty_model(config).to(dtype)
    torch.manual_seed(seed)
    rows = {row.name(layer): row for row in family.rows for layer in family.layers(row, config)}
    # A parameter is drawn as the first of the tensors that it is made of: all of them have the same role.
    first = {found.name: found.tensors[0] for found in model_parameters(family, config)}
    with torch.no_grad():
        for name, parameter in table_parameters(family, model).items():
            layout = rows[first[name]].layout
            role = "shift" if layout.less_one else layout.dims[0].role
            scale = 0.3 if parameter.ndim > 1 else 0.2
            parameter.copy_({"gain": 1.0, "scale": 0.5}.get(role, 0.0) + scale * torch.randn_like(parameter))
    return model


def state_of(config: Mapping[str, object], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model as the library writes them to its files."""
    family = family_of(config)
    found = tensors_of(model_parameters(family, config), model.state_dict())
    return {family.written(name): tensor for name, tensor in found.items()}


def start_of(name: str, config: Mapping[str, object], changes: Mapping[str, object], **growth: object) -> GrowthPlan:
    found = family_of(config)
    asked = {"width": "copy", "depth": "copy", "keying": "shared", "tie": None, "seed": 0, **growth}
    target = found.resize(config, changes)
    return plan_growth(found, GrowthSettings(**asked), config, target, asked=changes, where="recipe")  # type: ignore[arg-type]


def operator_family(operator: Operator) -> Family:
    return FAMILIES[operator.family].with_experts(operator.source).for_architecture(operator.head)


def grown_state(
    operator: Operator, state: Mapping[str, torch.Tensor], *, dtype: torch.dtype = torch.float64
) -> dict[str, torch.Tensor]:
    """Every tensor of the target, layer by layer, as the stream grows them.

    Args:
        state: the source's tensors by their names on disk, or the state dict of the library's model.
    """
    family = operator_family(operator)
    known = model_parameters(family, operator.source) if family.in_model else ()
    if known and all(found.name in state for found in known):
        state = {family.written(name): tensor for name, tensor in tensors_of(known, state).items()}

    def fetch(pattern: str, layer: int | None) -> torch.Tensor:
        row = next(row for row in family.rows if row.pattern == pattern)
        name = family.written(row.name(layer))
        return (state[name] if name in state else state[family.tied[pattern]]).to(dtype)

    grower = Grower(operator, family, dtype=dtype, fetch=fetch)
    result = {}
    for row in family.rows_for(operator.target):
        source = RowSource()
        for layer in family.layers(row, operator.target):
            for old in grower.source_layers(row, layer):
                if old not in source.pieces:
                    source.pieces[old] = grower.prepare(row, old, fetch(row.pattern, old))
            result[family.written(row.name(layer))] = grower.grow_layer(row, layer, source)
    return result


def target_model(
    operator: Operator, state: Mapping[str, torch.Tensor], *, dtype: torch.dtype = torch.float64
) -> torch.nn.Module:
    """The library's model of the target with the grown tensors in it; every key must match."""
    family = operator_family(operator)
    model = empty_model({**operator.target, "architectures": [operator.head]}).to(dtype)
    on_disk = grown_state(operator, state, dtype=dtype)
    specs = [spec for _, _, spec in family.tensors_of(family.rows_for(operator.target), operator.target, dtype="F32")]
    assert set(on_disk) == {family.written(spec.name) for spec in specs}
    tensors = {spec.name: on_disk[family.written(spec.name)] for spec in specs}
    grown = parameters_of(model_parameters(family, operator.target), tensors)
    assert set(grown) == set(table_parameters(family, model))
    for alias, canonical in family.tied.items():
        if family.is_tied(operator.target) and canonical in grown:
            called = next((parameter for parameter, row in family.in_model.items() if row == alias), alias)
            grown[called] = grown[canonical]
    missing, unexpected = model.load_state_dict(grown, strict=False)
    assert not unexpected
    assert not set(missing) & set(grown)
    return model


def inputs_of(
    model: torch.nn.Module, vocabulary: int = 29, *, length: int = 10, batch: int = 3
) -> dict[str, torch.Tensor]:
    """Random inputs that fit the model: token ids, or images for a vision transformer."""
    rng = np.random.default_rng(1)
    if getattr(model, "main_input_name", "") == "pixel_values":
        shape = (batch, model.config.num_channels, model.config.image_size, model.config.image_size)  # type: ignore[union-attr]
        return {"pixel_values": torch.tensor(rng.normal(size=shape))}  # type: ignore[arg-type]
    if not isinstance(model, transformers.PreTrainedModel):
        side = model.patch_embed.img_size[0]  # type: ignore[union-attr, index]
        channels = model.patch_embed.proj.in_channels  # type: ignore[union-attr]
        return {"x": torch.tensor(rng.normal(size=(batch, channels, side, side)))}  # type: ignore[arg-type]
    ids = torch.tensor(rng.integers(3, vocabulary, size=(batch, length)))
    if model.config.is_encoder_decoder:
        return {
            "input_ids": ids,
            "decoder_input_ids": torch.tensor(rng.integers(3, vocabulary, size=(batch, length - 2))),
        }
    return {"input_ids": ids}


def logits(model: torch.nn.Module, vocabulary: int = 29, *, length: int = 10, batch: int = 3) -> torch.Tensor:
    """What a model computes: its logits, or, without a head, the cosines between its hidden states."""
    inputs = inputs_of(model, vocabulary, length=length, batch=batch)
    with torch.no_grad():
        found = model(
            **{
                name: value.to(next(model.parameters()).dtype) if value.is_floating_point() else value
                for name, value in inputs.items()
            }
        )
    bare = isinstance(found, torch.Tensor) and not model.num_classes
    if isinstance(found, torch.Tensor) and not bare:
        return found
    if bare or "last_hidden_state" in found:
        # A model without a head tells by angles: those between the states of all tokens or images, which know no basis.
        states = found if bare else found.last_hidden_state.flatten(0, 1)
        states = torch.nn.functional.normalize(states, dim=-1)
        return states @ states.T
    given = found.get("logits") if found.get("logits") is not None else found["prediction_logits"]
    assert isinstance(given, torch.Tensor)
    return given
