"""What models are trained for: what goes in, what of their output is their function, and their loss.

What comes in: batches as `examples` gives them, moved to a device. What goes out: arguments for the library's model, one output tensor,
a mean loss. One line of `TASKS` a task.

    causal-lm              next-token loss, mean nats a token
    masked-lm              loss on masked tokens (Devlin et al., arXiv:1810.04805, section 3.1), mean nats a masked token
    image-classification   cross-entropy of the class, mean nats an image
    encoder                no head, so no loss of its own; its function is the last hidden state (see `objectives`)
    sequence-classification   a head whose labels no text has: its function are the logits, and it learns as an encoder does
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ligo_convert.data.examples import random_slice
from ligo_convert.families.schema import Family

Tensors = Mapping[str, torch.Tensor]

IGNORED = -100  # the label of a token that is not asked for, as the library has it


@dataclass(frozen=True, kw_only=True)
class TaskFunctions:
    """One line of the table.

    Attributes:
        inputs: batch -> keyword arguments of the model. output: what the model returns -> one tensor.
        loss: (output, batch) -> scalar; None for a model without a loss of its own.
        states: what the model returns -> its last hidden states; None where those are its output, or nobody asks.
        accuracy: (output, batch) -> the share of right answers; None where that is not what such a model is judged by.
    """

    inputs: Callable[[Tensors], dict[str, Any]]
    output: Callable[[Any], torch.Tensor]
    loss: Callable[[torch.Tensor, Tensors], torch.Tensor] | None
    accuracy: Callable[[torch.Tensor, Tensors], torch.Tensor] | None = None
    states: Callable[[Any], torch.Tensor] | None = None


def _tokens(batch: Tensors) -> dict[str, Any]:
    return {"input_ids": batch["input_ids"]}


def _unmasked(batch: Tensors) -> dict[str, Any]:
    """The text as it was before tokens were masked."""
    labels = batch.get("labels")
    ids = batch["input_ids"]
    return {"input_ids": ids if labels is None else torch.where(labels == IGNORED, ids, labels)}


def _causal(batch: Tensors) -> dict[str, Any]:
    return {"input_ids": batch["input_ids"], "use_cache": False}


def _logits(found: Any) -> torch.Tensor:
    return found.logits  # type: ignore[no-any-return]


def _masked_logits(found: Any) -> torch.Tensor:
    # The class with a next-sentence head beside names them otherwise.
    logits = found.get("logits")
    return found["prediction_logits"] if logits is None else logits  # type: ignore[no-any-return]


def _next_token_loss(logits: torch.Tensor, batch: Tensors) -> torch.Tensor:
    return cross_entropy(_wide(logits[:, :-1]).flatten(0, 1), batch["input_ids"][:, 1:].flatten())


def _masked_loss(logits: torch.Tensor, batch: Tensors) -> torch.Tensor:
    return cross_entropy(_wide(logits).flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED)


def _class_loss(logits: torch.Tensor, batch: Tensors) -> torch.Tensor:
    return cross_entropy(_wide(logits), batch["labels"])


def _class_accuracy(logits: torch.Tensor, batch: Tensors) -> torch.Tensor:
    return (logits.argmax(-1) == batch["labels"]).double().mean()


def _masked_accuracy(logits: torch.Tensor, batch: Tensors) -> torch.Tensor:
    asked = batch["labels"] != IGNORED
    return ((logits.argmax(-1) == batch["labels"]) & asked).sum().double() / asked.sum()


def _wide(logits: torch.Tensor) -> torch.Tensor:
    """At least float32: a softmax in bfloat16 loses the loss's second decimal."""
    return logits if logits.dtype == torch.float64 else logits.float()


TASKS: dict[str, TaskFunctions] = {
    "causal-lm": TaskFunctions(inputs=_causal, output=_logits, loss=_next_token_loss),
    "masked-lm": TaskFunctions(inputs=_tokens, output=_masked_logits, loss=_masked_loss, accuracy=_masked_accuracy),
    "encoder": TaskFunctions(inputs=_unmasked, output=lambda found: found.last_hidden_state, loss=None),
    "sequence-classification": TaskFunctions(
        inputs=lambda batch: {**_unmasked(batch), "output_hidden_states": True},
        output=_logits,
        loss=None,
        states=lambda found: found.hidden_states[-1],
    ),
    "image-classification": TaskFunctions(
        inputs=lambda batch: {"pixel_values": batch["pixel_values"]},
        output=lambda found: found,
        loss=_class_loss,
        accuracy=_class_accuracy,
    ),
}


def weight(batch: Tensors) -> float:
    """What a batch counts in a mean over batches: its labels where tokens have them, else its rows."""
    labels = batch.get("labels")
    if labels is not None and labels.ndim == 2:
        return float((labels != IGNORED).sum())
    return float(len(next(iter(batch.values()))))


def random_batch(family: Family, config: Mapping[str, object], *, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs for where there is no data: seeded random token ids or images that fit the source, with random labels."""
    sizes, complete = family.sizes(config), family.complete(config)
    if family.task == "image-classification":
        rng = np.random.Generator(np.random.Philox(seed))
        side = complete["img_size"]
        shape = (count, sizes["rgb"], side, side)
        pixels = rng.standard_normal(shape, dtype=np.float32)  # type: ignore[arg-type]
        return {"pixel_values": pixels, "labels": rng.integers(0, sizes[family.labels], size=count)}
    length = min(128, family.longest(config) or 128)
    ids = random_slice(vocabulary=sizes[family.vocabulary], sequence_length=length, blocks=count, seed=seed)
    tokens = ids.astype(np.int64)
    return {"input_ids": tokens} if family.task == "causal-lm" else {"input_ids": tokens, "labels": tokens}


def on_device(batch: Mapping[str, np.ndarray], device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A batch as tensors; pixels in the model's dtype."""
    found = {name: torch.as_tensor(np.asarray(array), device=device) for name, array in batch.items()}
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in found.items()}
