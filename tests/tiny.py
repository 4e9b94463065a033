"""Tiny real models of every family: configs, random sources with every parameter away from its initial value."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import transformers

from ligo_convert.families import FAMILIES
from ligo_convert.growth import Grower
from ligo_convert.operator import Operator
from ligo_convert.start import Growth, Start, plan_start

CONFIGS: dict[str, dict[str, object]] = {
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 29,
        "n_positions": 12,
        "n_embd": 16,
        "n_head": 2,
        "n_layer": 2,
        "layer_norm_epsilon": 1e-5,
    },
    "llama": {
        "model_type": "llama",
        "vocab_size": 29,
        "max_position_embeddings": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "rms_norm_eps": 1e-5,
        "attention_bias": True,
    },
}

# family -> target -> config keys. `even` is whole multiples everywhere, `uneven` nowhere.
TARGETS: dict[str, dict[str, dict[str, object]]] = {
    "gpt2": {
        "even": {"n_embd": 32, "n_head": 4},
        "uneven": {"n_embd": 24, "n_head": 3},
        "head size": {"n_embd": 24, "n_head": 2},
        "depth": {"n_layer": 5},
        "both": {"n_embd": 40, "n_head": 5, "n_layer": 3, "n_inner": 100},
    },
    "llama": {
        "even": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 8, "num_key_value_heads": 4},
        "uneven": {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 6, "num_key_value_heads": 3},
        "more groups": {"hidden_size": 24, "num_attention_heads": 6},
        "depth": {"num_hidden_layers": 5},
        "both": {
            "hidden_size": 40,
            "intermediate_size": 56,
            "num_attention_heads": 10,
            "num_key_value_heads": 5,
            "num_hidden_layers": 3,
        },
    },
}


def config_of(family: str, *, tied: bool = True, **changes: object) -> dict[str, object]:
    """A complete config.json of the tiny model, as the library itself writes it."""
    made = library_config({**CONFIGS[family], "tie_word_embeddings": tied, **changes}).to_dict()
    return {key: value for key, value in made.items() if key != "transformers_version"}


def library_config(config: Mapping[str, object]) -> transformers.PreTrainedConfig:
    data = dict(config)
    return transformers.AutoConfig.for_model(str(data.pop("model_type")), **data)


def model_of(config: Mapping[str, object], *, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """A model whose every parameter, gains and biases too, is drawn: nothing is left at a value that hides a mistake."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(library_config(config)).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim > 1 else 0.2
            base = 1.0 if name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")) else 0.0
            parameter.copy_(base + scale * torch.randn_like(parameter))
    return model


def start_of(family: str, config: Mapping[str, object], changes: Mapping[str, object], **growth: object) -> Start:
    found = FAMILIES[family]
    asked = {"width": "copy", "depth": "copy", "keying": "shared", "tie": None, "seed": 0, **growth}
    target = found.resize(config, changes)
    return plan_start(found, Growth(**asked), config, target, asked=changes, where="recipe")  # type: ignore[arg-type]


def grown_state(
    operator: Operator, state: Mapping[str, torch.Tensor], *, dtype: torch.dtype = torch.float64
) -> dict[str, torch.Tensor]:
    """Every tensor of the target, layer by layer, as the stream grows them."""
    family = FAMILIES[operator.family]
    grower = Grower(operator, family, dtype=dtype)
    result = {}
    for row in family.rows_for(operator.target):
        cache: dict[object, object] = {}
        pattern = row.pattern if row.name(None if row.depth is None else 0) in state else family.tied[row.pattern]

        def load(layer: int | None, pattern: str = pattern, depth: str | None = row.depth) -> torch.Tensor:
            name = pattern if depth is None else pattern.replace("{" + depth + "}", str(layer))
            return state[name].to(dtype)

        for layer in family.layers(row, operator.target):
            result[row.name(layer)] = grower.grow_layer(row, layer, load, cache)  # type: ignore[arg-type]
    return result


def target_model(
    operator: Operator, state: Mapping[str, torch.Tensor], *, dtype: torch.dtype = torch.float64
) -> torch.nn.Module:
    """The library's model of the target with the grown tensors in it; every key must match."""
    model = transformers.AutoModelForCausalLM.from_config(library_config(operator.target)).to(dtype).eval()
    grown = grown_state(operator, state, dtype=dtype)
    for alias, canonical in FAMILIES[operator.family].tied.items():
        if FAMILIES[operator.family].is_tied(operator.target):
            grown[alias] = grown[canonical]
    missing, unexpected = model.load_state_dict(grown, strict=True)
    assert not missing
    assert not unexpected
    return model


def logits(model: torch.nn.Module, vocabulary: int = 29, *, length: int = 10, batch: int = 3) -> torch.Tensor:
    tokens = torch.tensor(np.random.default_rng(1).integers(0, vocabulary, size=(batch, length)))
    with torch.no_grad():
        found = model(input_ids=tokens).logits
    assert isinstance(found, torch.Tensor)
    return found
