"""A family at a size of a few thousand parameters, and the shapes that several families share. Each has its own in `support/cases/`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Case:
    """One family at a size of a few thousand parameters.

    Attributes:
        config: config keys (timm: of the flat config, with the architecture). architecture: the library's class, where not the usual one.
        even, uneven, depth, both: what a target changes; `even` is whole multiples everywhere, `uneven` nowhere. others: more, by name.
        tolerance: of exactness in float64, relative to the largest logit; a library may compute some of it in float32.
        thorough: whether every test of `CASES` runs it. A family that differs from another in its names alone needs the grid of
            `test_parity`, a round trip and the comparison at real sizes, and not each of the others.
        grid: whether the whole grids of `test_parity` and `test_operator` run it nevertheless: a structure of its own, which some tests of
            the thorough cases cannot have (layers with masks of several kinds, branches without a norm before them).
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
    thorough: bool = True
    grid: bool = False


LLAMA: Mapping[str, object] = {
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
BERT: Mapping[str, object] = {
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
# A vision transformer of transformers.
PATCHES: Mapping[str, object] = {
    "config": {
        "image_size": 16,
        "patch_size": 8,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "layer_norm_eps": 1e-5,
    },
    "even": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4},
    "uneven": {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3},
    "depth": {"num_hidden_layers": 4},
    "both": {"hidden_size": 40, "intermediate_size": 56, "num_attention_heads": 5, "num_hidden_layers": 3},
}
IMAGE: Mapping[str, object] = {"img_size": 16, "patch_size": 8, "num_classes": 5, "embed_dim": 16, "num_heads": 2}
VIT: Mapping[str, object] = {
    "config": {"architecture": "vit_tiny_patch16_224", "model_args": {**IMAGE, "depth": 2}},
    "even": {"embed_dim": 32, "num_heads": 4},
    "uneven": {"embed_dim": 24, "num_heads": 3},
    "depth": {"depth": 4},
    "both": {"embed_dim": 40, "num_heads": 5, "depth": 3},
}


def like(shared: Mapping[str, object], *, config: Mapping[str, object], **changes: object) -> Case:
    """A case that is another's but for these config keys."""
    return Case(**{**shared, "config": {**shared["config"], **config}, **changes})  # type: ignore[arg-type, dict-item]


def llama(width: int, mlp: int, layers: int, heads: int, kv_heads: int) -> dict[str, object]:
    """Config keys of the sizes of a model with Llama's keys."""
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }
