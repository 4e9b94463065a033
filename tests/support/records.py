"""A record as the pipeline makes it, to render and to read again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ligo_convert.outputs.provenance import Record

COMMIT = "607a30d783dfa663caf39e06633721c8d4cfcd7e"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


SOURCE_CONFIG = {
    "model_type": "gpt2",
    "_name_or_path": "gpt2-old",
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "layer_norm_epsilon": 1e-5,
    "summary_type": "cls_index",
}
TARGET_CONFIG = {
    **{key: value for key, value in SOURCE_CONFIG.items() if key != "summary_type"},
    "n_embd": 1024,
    "n_head": 16,
    "n_layer": 24,
    "layer_norm_epsilon": 7.5e-6,
    "n_inner": [4096, None],
}
METRICS: dict[str, Any] = {
    "task": "causal-lm",
    "parameters": {"source": 124439808, "target": 354823168},
    "loss": {"source": 3.2811, "initial": 3.3425, "fitted": 3.2433, "random_target": 10.9512},
    "accuracy": {"source": None, "initial": None, "fitted": None},
    "flops": {"fit": 443000000000000, "target_step": 4430000000000},
    "preservation": {
        "verdict": "near",
        "planned": "lossy",
        "measured": "near",
        "unmeasured": None,
        "reasons": [
            "layer 12 to 24 by stack: layers are applied again",
            "embed 768 to 1024 by lemon: tiles and mean entries",
        ],
        "max_logit_difference": 0.0123456,
        "mean_logit_difference": 0.00091,
        "logit_scale": 132.5,
        "loss_difference": -0.00217,
        "departs_at": 12,
        "compared": "logits",
        "tokens": 2048,
        "images": 0,
        "dtype": "float32",
        "inputs": "data",
        "rounding": {"dtype": "bfloat16", "max_logit_difference": 0.52, "loss_difference": 0.0004},
    },
    "fit": {
        "steps": 100,
        "best_step": 70,
        "best_validation_loss": 3.267,
        "seed": 0,
        "precision": "float32",
        "device": "cpu",
        "threads": 4,
    },
    "verification": {"digests": 1, "tensors": 292, "finite": True, "loaded": {"class": "GPT2LMHeadModel"}},
    "seconds": {"plan": 0.214, "fit": 811.5, "write": 9.25, "verify": 6.0},
    "peak_rss_bytes": 9876543210,
}
RECIPE: dict[str, Any] = {
    "version": 1,
    "source": {"model": "openai-community/gpt2", "revision": "main", "allow_nonfinite": False},
    "target": {"config": {"n_embd": 1024, "n_head": 16, "n_layer": 24}},
    "growth": {"width": "lemon", "depth": "stack", "seed": 0, "operator": {"keying": None, "tie": None}},
    "fit": {
        "steps": 100,
        "batch_size": 16,
        "sequence_length": 128,
        "data": {"hub": {"id": "Salesforce/wikitext", "name": "wikitext-2-raw-v1", "split": "train", "column": "text"}},
    },
    "output": {"dir": "out", "dtype": "bfloat16", "max_shard_size": "5GB"},
}

RECORD = Record(
    family="gpt2",
    recipe=RECIPE,
    recipe_digest=digest("recipe"),
    key=digest("key"),
    source={
        "label": "openai-community/gpt2",
        "revision": COMMIT,
        "files": {"model.safetensors": digest("weights"), "config.json": digest("config")},
        "pretrained_here": False,
        "license": "mit",
    },
    data={
        "digest": digest("data"),
        "kind": "hub",
        "tokens": {"train": 204800, "validation": 16384, "test": 16384},
        "tokenizer": {"vocab.json": digest("vocab"), "merges.txt": digest("merges")},
    },
    operator={
        "digest": digest("operator"),
        "head": "GPT2LMHeadModel",
        "keying": "shared",
        "tie": None,
        "parted": {},
        "parameters": {"width": 1234567, "depth": 6912},
        "starts": ["lemon(embed:768->1024)", "lemon(heads:12->16)", "stack(layer:12->24)"],
    },
    source_config=SOURCE_CONFIG,
    target_config=TARGET_CONFIG,
    metrics=METRICS,
    versions={"torch": "2.15.0", "ligo-convert": "0.1.0", "python": "3.11.7"},
    drawn=[],
    nonfinite_allowed=False,
    started="2026-01-02T03:04:05Z",
    finished="2026-01-02T03:18:00Z",
)

OUTPUTS = {
    name: digest(name)
    for name in (
        "model.safetensors",
        "config.json",
        "README.md",
        "ligo/recipe.yaml",
        "ligo/operator.safetensors",
        "ligo/fit.jsonl",
        "ligo/fit.png",
        "ligo/new_parameters.json",
    )
}
FILES = {name: 1000 * number for number, name in enumerate(OUTPUTS, start=1) if name != "README.md"}


def unfitted() -> Record:
    """Whole tensors copied, nothing learned, nothing measured."""
    nothing = dict.fromkeys(METRICS["loss"])
    planned = dict.fromkeys(METRICS["preservation"])
    return with_metrics(
        replace(RECORD, data=None, recipe={key: value for key, value in RECIPE.items() if key != "fit"}),
        loss=nothing,
        flops={"fit": 0, "target_step": 4430000000000},
        fit=None,
        preservation={**planned, "planned": "exact", "reasons": [], "tokens": 0},
    )


def with_metrics(record: Record, **changes: Any) -> Record:
    return replace(record, metrics={**record.metrics, **changes})


def with_source(record: Record, **changes: Any) -> Record:
    return replace(record, source={**record.source, **changes})


def local(record: Record, label: str = "gpt2-tiny") -> Record:
    recipe: Mapping[str, Any] = {**record.recipe, "source": {"model": "./source", "allow_nonfinite": False}}
    return replace(with_source(record, label=label, revision=None), recipe=recipe)
