"""The state of an optimizer beside a checkpoint, as trainings of other programs leave it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from support.tiny import inputs_of

Model = Any
MakeGroups = Callable[[Model], Any]


def trainer_groups(model: Model) -> list[dict[str, Any]]:
    """As transformers' Trainer makes them."""
    decayed = transformers.Trainer.get_decay_parameter_names(None, model)  # type: ignore[arg-type]
    named = list(model.named_parameters())
    return [
        {"params": [found for name, found in named if name in decayed], "weight_decay": 0.1},
        {"params": [found for name, found in named if name not in decayed], "weight_decay": 0.0},
    ]


def with_state(
    source: Path, groups: MakeGroups = trainer_groups, *, file: str = "optimizer.pt", steps: int = 3
) -> dict[str, dict[str, torch.Tensor]]:
    """Train a checkpoint for a few steps and write the optimizer's state beside it; return the state by name."""
    model: Model = transformers.AutoModelForCausalLM.from_pretrained(source)
    optimizer = torch.optim.AdamW(groups(model), lr=1e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        tokens = inputs_of(model)["input_ids"]
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    torch.save(optimizer.state_dict(), source / file)
    return {name: dict(optimizer.state[found]) for name, found in model.named_parameters()}
