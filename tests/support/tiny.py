"""Tiny real models of every family: configs, random sources with every parameter away from its initial value.

One entry of `CASES` puts a family through the whole grid: starts, exact maps, the explicit operator matrix, learning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import transformers

from ligo_convert.families.configs import flat_config, written_config
from ligo_convert.families.registry import FAMILIES
from ligo_convert.families.schema import Family
from ligo_convert.growth.apply import Grower, RowSource
from ligo_convert.growth.growth_plan import GrowthPlan, GrowthSettings, plan_growth
from ligo_convert.growth.operator import Operator


@dataclass(frozen=True, kw_only=True)
class Case:
    """One family at a size of a few thousand parameters.

    Attributes:
        config: config keys (timm: of the flat config, with the architecture). architecture: the library's class, where not the usual one.
        even, uneven, depth, both: what a target changes; `even` is whole multiples everywhere, `uneven` nowhere. others: more, by name.
        tolerance: of exactness in float64, relative to the largest logit; a library may compute some of it in float32.
    """

    config: Mapping[str, object]
    even: Mapping[str, object]
    uneven: Mapping[str, object]
    depth: Mapping[str, object]
    both: Mapping[str, object]
    others: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    architecture: str = ""
    family: str = ""
    tolerance: float = 1e-12


_LLAMA = {
    "config": {
        "vocab_size": 29,
        "max_position_embeddings": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "rms_norm_eps": 1e-5,
    },
    "even": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 8, "num_key_value_heads": 4},
    "uneven": {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 6, "num_key_value_heads": 3},
    "depth": {"num_hidden_layers": 5},
    "both": {
        "hidden_size": 40,
        "intermediate_size": 56,
        "num_attention_heads": 10,
        "num_key_value_heads": 5,
        "num_hidden_layers": 3,
    },
    "others": {"more groups": {"hidden_size": 24, "num_attention_heads": 6}},
    # transformers computes RMSNorm in float32 whatever the model's dtype.
    "tolerance": 1e-5,
}
_BERT = {
    "config": {
        "vocab_size": 29,
        "max_position_embeddings": 16,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "layer_norm_eps": 1e-12,
    },
    "even": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4},
    "uneven": {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 3},
    "depth": {"num_hidden_layers": 5},
    "both": {"hidden_size": 48, "intermediate_size": 72, "num_attention_heads": 6, "num_hidden_layers": 3},
}
_IMAGE = {"img_size": 16, "patch_size": 8, "num_classes": 5, "embed_dim": 16, "num_heads": 2}
_VIT = {
    "config": {"architecture": "vit_tiny_patch16_224", "model_args": {**_IMAGE, "depth": 2}},
    "even": {"embed_dim": 32, "num_heads": 4},
    "uneven": {"embed_dim": 24, "num_heads": 3},
    "depth": {"depth": 4},
    "both": {"embed_dim": 40, "num_heads": 5, "depth": 3},
}


def _case(shared: Mapping[str, object], *, config: Mapping[str, object], **changes: object) -> Case:
    """A case that is another's but for these config keys."""
    return Case(**{**shared, "config": {**shared["config"], **config}, **changes})  # type: ignore[arg-type, dict-item]


CASES: dict[str, Case] = {
    "gpt2": Case(
        config={
            "vocab_size": 29,
            "n_positions": 12,
            "n_embd": 16,
            "n_head": 2,
            "n_layer": 2,
            "layer_norm_epsilon": 1e-5,
        },
        even={"n_embd": 32, "n_head": 4},
        uneven={"n_embd": 24, "n_head": 3},
        depth={"n_layer": 5},
        both={"n_embd": 40, "n_head": 5, "n_layer": 3, "n_inner": 100},
        others={"head size": {"n_embd": 24, "n_head": 2}},
    ),
    "llama": _case(_LLAMA, config={"attention_bias": True}),
    "mistral": _case(_LLAMA, config={"sliding_window": 4}),
    "qwen2": _case(_LLAMA, config={}),
    "qwen3": _case(_LLAMA, config={"head_dim": 8}),
    "phi3": _case(_LLAMA, config={"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}),
    "starcoder2": _case(_LLAMA, config={"norm_epsilon": 1e-4, "use_bias": True}, tolerance=1e-7),
    "bert": _case(_BERT, config={}, architecture="BertForMaskedLM"),
    "bert full": _case(_BERT, config={}, architecture="BertForPreTraining", family="bert"),
    "bert encoder": _case(_BERT, config={}, architecture="BertModel", family="bert"),
    "roberta": _case(_BERT, config={"layer_norm_eps": 1e-9}, tolerance=1e-7),
    "vit": _case(_VIT, config={}),
    "deit": _case(_VIT, config={"architecture": "deit_tiny_distilled_patch16_224"}),
    "deit3": _case(_VIT, config={"architecture": "deit3_small_patch16_224"}, family="deit"),
    "cait": _case(
        _VIT,
        config={
            "architecture": "cait_xxs24_224",
            "model_args": {**_IMAGE, "depth": 2, "depth_token_only": 1},
        },
        depth={"depth": 4, "depth_token_only": 2},
    ),
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
    for name, case in CASES.items()
}


def family_of(config: Mapping[str, object]) -> Family:
    """The family of a config, narrowed to the class that it names."""
    named = config.get("architectures")
    return FAMILIES[str(config["model_type"])].for_architecture(named[0] if isinstance(named, list) else None)


def config_of(name: str, *, tied: bool = True, **changes: object) -> dict[str, object]:
    """The complete config of a case, as families read it; from transformers, as the library itself writes it."""
    case = CASES[name]
    family = FAMILIES[case.family or name]
    if family.library == "timm":
        return {**family.defaults, **flat_config(case.config), **changes}
    architecture = case.architecture or family.architecture
    made = library_config({"model_type": family.name, **case.config, "tie_word_embeddings": tied, **changes}).to_dict()
    made["architectures"] = [architecture]
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
    return getattr(transformers, family.architecture)(library_config(config), **family.chosen.options).eval()


def model_of(config: Mapping[str, object], *, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """A model whose every parameter, gains and biases too, is drawn: nothing is left at a value that hides a mistake."""
    family, model = family_of(config), empty_model(config).to(dtype)
    torch.manual_seed(seed)
    names = {name: row for row in family.rows for name in _names(family, row, config)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            role = names[name].layout.dims[0].role
            scale = 0.3 if parameter.ndim > 1 else 0.2
            parameter.copy_({"gain": 1.0, "scale": 0.5}.get(role, 0.0) + scale * torch.randn_like(parameter))
    return model


def _names(family: Family, row, config: Mapping[str, object]) -> list[str]:
    return [family.written(row.name(layer)) for layer in family.layers(row, config)]


def start_of(name: str, config: Mapping[str, object], changes: Mapping[str, object], **growth: object) -> GrowthPlan:
    found = family_of(config)
    asked = {"width": "copy", "depth": "copy", "keying": "shared", "tie": None, "seed": 0, **growth}
    target = found.resize(config, changes)
    return plan_growth(found, GrowthSettings(**asked), config, target, asked=changes, where="recipe")  # type: ignore[arg-type]


def operator_family(operator: Operator) -> Family:
    return FAMILIES[operator.family].for_architecture(operator.head)


def grown_state(
    operator: Operator, state: Mapping[str, torch.Tensor], *, dtype: torch.dtype = torch.float64
) -> dict[str, torch.Tensor]:
    """Every tensor of the target, layer by layer, as the stream grows them."""
    family = operator_family(operator)

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
    grown = grown_state(operator, state, dtype=dtype)
    assert set(grown) == {name for name, _ in model.named_parameters()}
    for alias, canonical in family.tied.items():
        if family.is_tied(operator.target) and canonical in grown:
            grown[alias] = grown[canonical]
    missing, unexpected = model.load_state_dict(grown, strict=False)
    assert not unexpected
    assert not set(missing) & set(grown)
    return model


def inputs_of(
    model: torch.nn.Module, vocabulary: int = 29, *, length: int = 10, batch: int = 3
) -> dict[str, torch.Tensor]:
    """Random inputs that fit the model: token ids, or images for a timm model."""
    rng = np.random.default_rng(1)
    if not isinstance(model, transformers.PreTrainedModel):
        side = model.patch_embed.img_size[0]  # type: ignore[union-attr, index]
        channels = model.patch_embed.proj.in_channels  # type: ignore[union-attr]
        return {"x": torch.tensor(rng.normal(size=(batch, channels, side, side)))}  # type: ignore[arg-type]
    return {"input_ids": torch.tensor(rng.integers(3, vocabulary, size=(batch, length)))}


def logits(model: torch.nn.Module, vocabulary: int = 29, *, length: int = 10, batch: int = 3) -> torch.Tensor:
    """What a model computes: its logits, or, without a head, the cosines between its hidden states."""
    inputs = inputs_of(model, vocabulary, length=length, batch=batch)
    with torch.no_grad():
        found = model(
            **{
                name: value.to(next(model.parameters()).dtype) if name == "x" else value
                for name, value in inputs.items()
            }
        )
    if isinstance(found, torch.Tensor):
        return found
    if "last_hidden_state" in found:
        # A model without a head tells by angles: those between the states of all tokens, which know no basis.
        states = torch.nn.functional.normalize(found.last_hidden_state.flatten(0, 1), dim=-1)
        return states @ states.T
    given = found.get("logits") if found.get("logits") is not None else found["prediction_logits"]
    assert isinstance(given, torch.Tensor)
    return given
