"""Define each task: the model's inputs, the output that counts as its function, its loss and its accuracy.

Input: batches of `data.examples`, moved to a device.
Output: arguments for the library's model, one output tensor, a mean loss. `TASKS` has one entry per task:

    causal-lm                 next-token loss, mean nats per token
    masked-lm                 loss on masked tokens (Devlin et al., arXiv:1810.04805, section 3.1), mean nats per masked token
    image-classification      cross-entropy of the class, mean nats per image
    image-encoder             no head and no loss; the function is the last hidden state, in timm the pooled one (see `objectives`)
    encoder                   no head and no loss; the function is the last hidden state (see `objectives`)
    sequence-classification   a head, but text without labels: the function is the logits; fitted like an encoder
    token-classification      the same, with logits for each token
    question-answering        the same, with the logits of a span's first and last token
    text-to-text              an encoder and a decoder read the same text: the function is the decoder's logits; fitted like an encoder
    multiple-choice           the same; a text is measured as a question with one choice
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ligo_convert.data.examples import IGNORED, Batch, Examples, random_token_ids
from ligo_convert.families.configs import image_sides
from ligo_convert.families.schema import CAUSAL, Family

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class TaskFunctions:
    """The functions of one task.

    Attributes:
        inputs: batch -> keyword arguments of the model.
        output: the model's return value -> one tensor.
        loss: (output, batch) -> scalar mean loss; None for a task without a loss.
        accuracy: (output, batch) -> fraction of correct answers; None for a task without one.
        states: the model's return value -> last hidden states; None where `output` returns them or they are not used.
        answers: batch of arrays -> the tokens or classes that the loss asks for, in one dimension; None for a task without a loss.
    """

    inputs: Callable[[Tensors], dict[str, Any]]
    output: Callable[[Any], torch.Tensor]
    loss: Callable[[torch.Tensor, Tensors], torch.Tensor] | None
    accuracy: Callable[[torch.Tensor, Tensors], torch.Tensor] | None = None
    states: Callable[[Any], torch.Tensor] | None = None
    answers: Callable[[Batch], np.ndarray] | None = None


def _tokens(batch: Tensors) -> dict[str, Any]:
    return {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}


def _unmasked(batch: Tensors) -> dict[str, Any]:
    """Return the input ids before masking."""
    labels = batch.get("labels")
    ids = batch["input_ids"]
    return {**_tokens(batch), "input_ids": ids if labels is None else torch.where(labels == IGNORED, ids, labels)}


def _with_states(batch: Tensors) -> dict[str, Any]:
    return {**_unmasked(batch), "output_hidden_states": True}


def _both_sides(batch: Tensors) -> dict[str, Any]:
    """Return the text for the encoder, and the same text for the decoder."""
    ids = _unmasked(batch)
    return {**ids, "decoder_input_ids": ids["input_ids"], "use_cache": False, "output_hidden_states": True}


def _one_choice(batch: Tensors) -> dict[str, Any]:
    return {name: value[:, None] for name, value in _unmasked(batch).items()} | {"output_hidden_states": True}


def _causal(batch: Tensors) -> dict[str, Any]:
    return {"input_ids": batch["input_ids"], "use_cache": False}


def _pixels(batch: Tensors) -> dict[str, Any]:
    return {"pixel_values": batch["pixel_values"]}


def _logits(returned: Any) -> torch.Tensor:
    return returned.logits  # type: ignore[no-any-return]


def _image_logits(returned: Any) -> torch.Tensor:
    # timm's models return a tensor.
    return returned if isinstance(returned, torch.Tensor) else _logits(returned)


def _image_output(returned: Any) -> torch.Tensor:
    return returned if isinstance(returned, torch.Tensor) else returned.last_hidden_state


def _image_states(returned: Any) -> torch.Tensor:
    # An image of timm has one pooled state: a sequence of length one.
    return returned[:, None] if isinstance(returned, torch.Tensor) else _image_output(returned)


def _masked_logits(returned: Any) -> torch.Tensor:
    # The class with an additional next-sentence head calls them `prediction_logits`.
    logits = returned.get("logits")
    return returned["prediction_logits"] if logits is None else logits  # type: ignore[no-any-return]


def _next_token_loss(logits: torch.Tensor, batch: Tensors) -> torch.Tensor:
    # Padding, which comes after the text, has labels that do not count.
    labels = batch.get("labels", batch["input_ids"])
    return cross_entropy(_wide(logits[:, :-1]).flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def _masked_loss(logits: torch.Tensor, batch: Tensors) -> torch.Tensor:
    return cross_entropy(_wide(logits).flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED)


def _next_tokens(batch: Batch) -> np.ndarray:
    labels: np.ndarray = batch.get("labels", batch["input_ids"])[:, 1:]
    found: np.ndarray = labels[labels != IGNORED]
    return found


def _class_loss(logits: torch.Tensor, batch: Tensors) -> torch.Tensor:
    return cross_entropy(_wide(logits), batch["labels"])


def _class_accuracy(logits: torch.Tensor, batch: Tensors) -> torch.Tensor:
    return (logits.argmax(-1) == batch["labels"]).double().mean()


def _masked_accuracy(logits: torch.Tensor, batch: Tensors) -> torch.Tensor:
    masked = batch["labels"] != IGNORED
    return ((logits.argmax(-1) == batch["labels"]) & masked).sum().double() / masked.sum()


def _wide(logits: torch.Tensor) -> torch.Tensor:
    """Return logits in float32 or wider: a softmax in bfloat16 changes the second decimal of the loss."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _classifier(
    output: Callable[[Any], torch.Tensor], *, inputs: Callable[[Tensors], dict[str, Any]] = _with_states
) -> TaskFunctions:
    """Return the functions of a head whose loss needs labels, which text has not."""
    return TaskFunctions(inputs=inputs, output=output, loss=None, states=lambda returned: returned.hidden_states[-1])


TASKS: dict[str, TaskFunctions] = {
    "causal-lm": TaskFunctions(
        inputs=_causal,
        output=_logits,
        loss=_next_token_loss,
        answers=_next_tokens,
    ),
    "masked-lm": TaskFunctions(
        inputs=_tokens,
        output=_masked_logits,
        loss=_masked_loss,
        accuracy=_masked_accuracy,
        answers=lambda batch: batch["labels"][batch["labels"] != IGNORED],
    ),
    "encoder": TaskFunctions(inputs=_unmasked, output=lambda returned: returned.last_hidden_state, loss=None),
    "decoder": TaskFunctions(inputs=_causal, output=lambda returned: returned.last_hidden_state, loss=None),
    "sequence-classification": _classifier(_logits),
    "token-classification": _classifier(_logits),
    "question-answering": _classifier(lambda found: torch.stack([found.start_logits, found.end_logits], -1)),
    "multiple-choice": _classifier(_logits, inputs=_one_choice),
    "text-to-text": TaskFunctions(
        inputs=_both_sides, output=_logits, loss=None, states=lambda returned: returned.decoder_hidden_states[-1]
    ),
    "image-classification": TaskFunctions(
        inputs=_pixels,
        output=_image_logits,
        loss=_class_loss,
        accuracy=_class_accuracy,
        answers=lambda batch: batch["labels"],
    ),
    "image-encoder": TaskFunctions(
        inputs=_pixels,
        output=_image_output,
        loss=None,
        states=_image_states,
    ),
}


def frequency_loss(task: TaskFunctions, examples: Examples, *, batch_size: int = 256) -> float | None:
    """Return the loss, in nats, of knowing no more than how frequent each answer is in these examples: the entropy of the answers.

    None for a task without a loss. No predictor that ignores its input has a lower loss on these examples.
    """
    if task.answers is None:
        return None
    counts = np.zeros(0, dtype=np.int64)
    for first in range(0, len(examples), batch_size):
        rows = range(first, min(first + batch_size, len(examples)))
        found = np.bincount(task.answers(examples.take(rows)), minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def weight(batch: Tensors) -> float:
    """Return the weight of a batch in a mean over batches: its labelled tokens where tokens have labels, else its rows."""
    labels = batch.get("labels")
    if labels is not None and labels.ndim == 2:
        return float((labels != IGNORED).sum())
    return float(len(next(iter(batch.values()))))


def random_batch(family: Family, config: Mapping[str, object], *, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return seeded random token ids or images that fit a config, with random labels, for measuring without data."""
    sizes, complete = family.sizes(config), family.complete(config)
    if family.reads == "images":
        rng = np.random.Generator(np.random.Philox(seed))
        pixels = rng.standard_normal((count, sizes["rgb"], *image_sides(complete)), dtype=np.float32)
        return {"pixel_values": pixels, "labels": rng.integers(0, max(1, sizes.get(family.labels, 1)), size=count)}
    length = min(128, family.longest(config) or 128)
    ids = random_token_ids(vocabulary=sizes[family.vocabulary], sequence_length=length, blocks=count, seed=seed)
    tokens = ids.astype(np.int64)
    return {"input_ids": tokens} if family.task in CAUSAL else {"input_ids": tokens, "labels": tokens}


def on_device(batch: Mapping[str, np.ndarray], device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return a batch as tensors on `device`, with pixels in `dtype`."""
    tensors = {name: torch.as_tensor(np.asarray(array), device=device) for name, array in batch.items()}
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
