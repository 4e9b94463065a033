"""Turn the data that a caller of `ligo_convert.grow` passes into batches of arrays.

Input: batches, single examples, texts with a tokenizer, a torch `DataLoader` or a `datasets` dataset.
Output: a list of batches of one shape, checked against the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ligo_convert.data.examples import IGNORED, Batch
from ligo_convert.data.masking import MaskedExamples, Masking
from ligo_convert.errors import RecipeError

WHERE = "data"

_TEXTS = "a list of texts with `tokenizer=`"
_EXPECTED = {
    "text": f"token ids [batch, sequence], a mapping with `input_ids`, or {_TEXTS}",
    "images": "a pair (images [batch, channels, height, width], labels [batch]), or a mapping with `pixel_values` and `labels`",
}


@dataclass(frozen=True, kw_only=True)
class BatchFormat:
    """The batches that one model can learn from.

    Attributes:
        reads: kind of input.
        task: task of the model, such as `causal-lm`.
        causal: whether a token sees only those before it.
        labels: number of classes, or size of the vocabulary; every id must be smaller. None for images without classes.
        image: channels, height and width; None for text.
        longest: most tokens in a sequence; None where the model sets no limit.
        sequence_length: tokens in a sequence that is cut from texts.
        batch_size: examples in a batch that is made from single examples.
        seed: decides which tokens are masked.
    """

    reads: Literal["text", "images"]
    task: str
    causal: bool
    labels: int | None
    image: tuple[int, int, int] | None
    longest: int | None
    sequence_length: int
    batch_size: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class _Arrays:
    """One item of the data. `is_batch` is False for a single example without the batch dimension."""

    arrays: Batch
    is_batch: bool


def read_batches(data: object, wanted: BatchFormat, *, tokenizer: Any = None, limit: int) -> list[Batch]:
    """Read at most `limit` batches from `data`.

    Args:
        data: an iterable; see the module.
        wanted: format of the batches.
        tokenizer: a tokenizer of transformers; texts need it.
        limit: number of batches after which reading stops, so that an endless iterable ends.

    Raises:
        RecipeError: data that the model cannot learn from. The message names what was expected.
    """
    batches: list[Batch] = []
    for batch in _grouped(_items(data, wanted, tokenizer), wanted):
        batches.append(batch)
        if len(batches) == limit:
            break
    if wanted.reads == "text":
        batches = _evened(batches, wanted)
    if wanted.task == "masked-lm" and any("labels" not in batch for batch in batches):
        raise RecipeError(
            "a masked language model learns from `labels`",
            where=WHERE,
            expected=f"mappings with masked `input_ids` and `labels` (-100 for tokens without a loss), or {_TEXTS}",
        )
    if any(batch.keys() != batches[0].keys() for batch in batches):
        raise RecipeError("every batch must have the same arrays", where=WHERE, expected=sorted(batches[0]))
    lengths = sorted({array.shape[1] for batch in batches for array in batch.values() if array.ndim == 2})
    if len(lengths) > 1:
        raise RecipeError(
            "the sequences have several lengths",
            where=WHERE,
            expected="one length",
            found=", ".join(map(str, lengths[:8])),
            hint=f"pass {_TEXTS}: they are joined and cut to one length",
        )
    return batches


# Items.


def _items(data: object, wanted: BatchFormat, tokenizer: Any) -> Iterator[_Arrays]:
    """Yield every item of the data as arrays; texts are joined and cut into sequences."""
    texts: list[str] = []
    number = 0
    for item in _iterate(data):
        text = _text_of(item) if wanted.reads == "text" else None
        if text is None:
            yield _text_arrays(item, wanted) if wanted.reads == "text" else _image_arrays(item, wanted)
            continue
        texts.append(text)
        # Enough texts for a few sequences are tokenized at a time, so that a long dataset is not read to its end.
        if sum(map(len, texts)) >= 16 * wanted.sequence_length * wanted.batch_size:
            yield from _sequences(texts, wanted, tokenizer, number)
            texts, number = [], number + 1
    if texts:
        yield from _sequences(texts, wanted, tokenizer, number)


def _grouped(items: Iterator[_Arrays], wanted: BatchFormat) -> Iterator[Batch]:
    """Yield batches as they are, and single examples stacked `wanted.batch_size` at a time; the last stack may be smaller."""
    waiting: list[Batch] = []

    def stacked() -> Batch:
        nonlocal waiting
        waiting = _evened(waiting, wanted) if wanted.reads == "text" else waiting
        shapes = {name: {example[name].shape for example in waiting if name in example} for name in waiting[0]}
        if any(len(found) > 1 for found in shapes.values()) or any(one.keys() != shapes.keys() for one in waiting):
            raise RecipeError(
                "the examples differ in shape",
                where=WHERE,
                expected="one shape",
                found="; ".join(f"{name} {sorted(found)[:4]}" for name, found in shapes.items()),
                hint=f"pass {_TEXTS}: they are joined and cut to one length",
            )
        return {name: np.stack([example[name] for example in waiting]) for name in shapes}

    for item in items:
        if item.is_batch:
            yield item.arrays
            continue
        waiting.append(item.arrays)
        if len(waiting) == wanted.batch_size:
            yield stacked()
            waiting = []
    if waiting:
        yield stacked()


def _iterate(data: object) -> Iterator[Any]:
    if isinstance(data, str):
        raise RecipeError("data is a single text", where=WHERE, expected=_TEXTS)
    if isinstance(data, Mapping):
        if "input_ids" in data or "pixel_values" in data:
            raise RecipeError("data is a single batch", where=WHERE, expected="a list of batches")
        raise RecipeError(
            "data is a mapping", where=WHERE, expected="an iterable", hint='pass one split, such as data["train"]'
        )
    if not isinstance(data, Iterable):
        # A dataset of torch has items by number.
        if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
            return (data[number] for number in range(len(data)))
        raise RecipeError(f"data is a {type(data).__name__}", where=WHERE, expected="an iterable of batches or texts")
    return iter(data)


def _text_of(item: object) -> str | None:
    """Return the text of an item: the item itself, its `text` field, or its only field besides numbers."""
    if isinstance(item, str):
        return item
    if not isinstance(item, Mapping) or "input_ids" in item:
        return None
    if isinstance(item.get("text"), str):
        return str(item["text"])
    # A row with lists or more texts has metadata among them: its only string may be an id.
    fields = [value for value in item.values() if value is not None and not isinstance(value, int | float)]
    return fields[0] if len(fields) == 1 and isinstance(fields[0], str) else None


def _text_arrays(item: object, wanted: BatchFormat) -> _Arrays:
    given = _named(item)
    if "input_ids" not in given:
        raise _unusable(item, wanted)
    arrays: dict[str, np.ndarray] = {}
    for name in ("input_ids", "labels"):
        if given.get(name) is None:
            continue
        array = _array(given[name])
        # A label of a whole sequence belongs to a classifier, which this model is not.
        if name == "labels" and array.ndim != arrays["input_ids"].ndim:
            continue
        if array.ndim not in (1, 2) or not array.size or not np.issubdtype(array.dtype, np.integer):
            raise RecipeError(
                f"{name} are not token ids [batch, sequence]", where=WHERE, found=f"{array.dtype} {list(array.shape)}"
            )
        _check_ids(array, wanted, name=name)
        arrays[name] = array.astype(np.int64)
    ids = arrays["input_ids"]
    if wanted.longest is not None and ids.shape[-1] > wanted.longest:
        raise RecipeError(
            "a sequence is too long for the model",
            where=WHERE,
            expected=f"at most {wanted.longest} tokens",
            found=ids.shape[-1],
        )
    if "labels" in arrays and arrays["labels"].shape != ids.shape:
        raise RecipeError(
            "`labels` and `input_ids` differ in shape",
            where=WHERE,
            expected=list(ids.shape),
            found=list(arrays["labels"].shape),
        )
    if given.get("attention_mask") is not None:
        arrays |= _padded(_array(given["attention_mask"]), arrays, wanted)
    if "labels" in arrays and wanted.causal:
        # Nothing predicts the first token.
        arrays["labels"][..., 0] = IGNORED
    _check_labels(arrays.get("labels"), ids, wanted)
    return _Arrays(arrays=arrays, is_batch=ids.ndim == 2)


def _padded(mask: np.ndarray, arrays: Mapping[str, np.ndarray], wanted: BatchFormat) -> dict[str, np.ndarray]:
    """Return the arrays that padding changes: labels of a causal model, the mask of any other. Raises RecipeError."""
    ids = arrays["input_ids"]
    if mask.shape != ids.shape:
        raise RecipeError(
            "`attention_mask` and `input_ids` differ in shape",
            where=WHERE,
            expected=list(ids.shape),
            found=list(mask.shape),
        )
    padding = mask == 0
    if not padding.any():
        return {}
    if (padding[..., :-1] & ~padding[..., 1:]).any():
        raise RecipeError(
            "a sequence is padded before its text",
            where=WHERE,
            expected="padding after the text",
            hint="tokenizer.padding_side = 'right'",
        )
    labels = arrays.get("labels")
    if wanted.causal:
        # What comes after a token changes nothing for it, so the padding needs no mask, but it must not count.
        return {"labels": np.where(padding, IGNORED, ids if labels is None else labels)}
    counted = {} if labels is None else {"labels": np.where(padding, IGNORED, labels)}
    return {"attention_mask": (~padding).astype(np.int64), **counted}


def _evened(batches: list[Batch], wanted: BatchFormat) -> list[Batch]:
    """Return batches of the same arrays, where padding has added one to some of them."""
    names = {name for batch in batches for name in batch}
    added: dict[str, Callable[[np.ndarray], np.ndarray]] = {"attention_mask": np.ones_like}
    if wanted.causal:
        added["labels"] = _labels
    return [
        {**{name: make(batch["input_ids"]) for name, make in added.items() if name in names}, **batch}
        for batch in batches
    ]


def _labels(ids: np.ndarray) -> np.ndarray:
    """Return the labels of sequences of a causal model that has no others: every token but the first."""
    labels = ids.copy()
    labels[..., 0] = IGNORED
    return labels


def _named(item: object) -> Mapping[str, Any]:
    """Return an item by the names of its arrays. A `TensorDataset` gives its tensors without names: ids, and perhaps labels."""
    if isinstance(item, Mapping):
        return item
    if isinstance(item, tuple | list) and 0 < len(item) <= 2:
        dims = [getattr(part, "ndim", 0) for part in item]
        # Two plain sequences in a list are a batch of two rows; a tuple of two is a sequence with its labels.
        if all(dim == 2 for dim in dims) or (isinstance(item, tuple) and all(dim == 1 for dim in dims)):
            return dict(zip(("input_ids", "labels"), item, strict=False))
    return {"input_ids": item}


def _check_labels(labels: np.ndarray | None, ids: np.ndarray, wanted: BatchFormat) -> None:
    """Refuse a batch that gives no loss, or another loss than its labels ask for. Raises RecipeError."""
    if wanted.task == "causal-lm":
        if ids.shape[-1] < 2:
            raise RecipeError("a sequence of one token has no next token", where=WHERE, expected="at least 2 tokens")
        if labels is not None and (labels[..., 1:] == IGNORED).all():
            raise RecipeError("a batch has no token with a label", where=WHERE, expected="labels other than -100")
    elif labels is not None and (labels == IGNORED).all():
        raise RecipeError("a batch has no token with a label", where=WHERE, expected="labels other than -100")


def _image_arrays(item: object, wanted: BatchFormat) -> _Arrays:
    if isinstance(item, Mapping):
        labels = next((item[name] for name in ("labels", "label") if name in item), None)
        pixels = item.get("pixel_values")
    elif isinstance(item, tuple | list) and len(item) == 2:
        pixels, labels = item
    else:
        pixels, labels = None, None
    if pixels is None or (labels is None and wanted.labels is not None):
        raise _unusable(item, wanted)
    images = _array(pixels)
    # A model without a head asks for no class.
    classes = np.zeros(images.shape[:-3], dtype=np.int64) if labels is None else _array(labels)
    if images.ndim not in (3, 4) or not np.issubdtype(images.dtype, np.floating) or images.shape[-3:] != wanted.image:
        raise RecipeError(
            "the images do not fit the model",
            where=WHERE,
            expected=f"floating point, [batch, {', '.join(map(str, wanted.image or ()))}]",
            found=f"{images.dtype} {list(images.shape)}",
            hint="prepare them with the model's own transform: timm.data.create_transform, or AutoImageProcessor of transformers",
        )
    if classes.shape != images.shape[:-3] or not np.issubdtype(classes.dtype, np.integer):
        raise RecipeError(
            "the labels do not fit the images",
            where=WHERE,
            expected=f"whole numbers {list(images.shape[:-3])}",
            found=f"{classes.dtype} {list(classes.shape)}",
        )
    _check_ids(classes, wanted, name="labels")
    arrays: dict[str, np.ndarray] = {"pixel_values": images.astype(np.float32), "labels": classes.astype(np.int64)}
    return _Arrays(arrays=arrays, is_batch=images.ndim == 4)


def _check_ids(array: np.ndarray, wanted: BatchFormat, *, name: str) -> None:
    if wanted.labels is None:
        return
    ids = array[array != IGNORED] if name == "labels" else array
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < wanted.labels:
        raise RecipeError(
            f"{name} out of range",
            where=WHERE,
            expected=f"0 to {wanted.labels - 1}",
            found=f"{int(ids.min())} to {int(ids.max())}",
            hint="use the model's own tokenizer" if wanted.reads == "text" else "",
        )


def _unusable(item: object, wanted: BatchFormat) -> RecipeError:
    found = f"a mapping with {', '.join(map(str, item))}" if isinstance(item, Mapping) else f"a {type(item).__name__}"
    return RecipeError(
        "the model cannot learn from this data", where=WHERE, expected=_EXPECTED[wanted.reads], found=found
    )


def _array(value: Any) -> np.ndarray:
    """Return a tensor, an array or nested lists as an array. Raises RecipeError for lists of unequal length."""
    if hasattr(value, "detach"):  # a tensor of torch, which this module does not import
        tensor = value.detach().cpu()
        return np.asarray(tensor.float() if tensor.is_floating_point() else tensor)
    try:
        return np.asarray(value)
    except ValueError:
        raise RecipeError("lists of unequal length in a batch", where=WHERE, expected="one length") from None


# Texts.


def _sequences(texts: Sequence[str], wanted: BatchFormat, tokenizer: Any, number: int) -> Iterator[_Arrays]:
    """Tokenize texts, join them and cut them into sequences of `sequence_length` tokens; the remainder is dropped.

    Args:
        number: counts the calls, so that no two mask alike.
    """
    if tokenizer is None or not callable(tokenizer):
        raise RecipeError(
            "data holds texts, which need a tokenizer" if tokenizer is None else "tokenizer is not a tokenizer",
            where="tokenizer",
            hint="pass tokenizer=transformers.AutoTokenizer.from_pretrained(...) of the same model",
        )
    frame = _frame(tokenizer) if wanted.task == "masked-lm" else ()
    length = wanted.sequence_length - len(frame)
    if length < 1 or (wanted.longest is not None and wanted.sequence_length > wanted.longest):
        raise RecipeError(
            "the model cannot read sequences of this length",
            where="sequence_length",
            expected=f"{1 + len(frame)} to {wanted.longest}" if wanted.longest else f"at least {1 + len(frame)}",
            found=wanted.sequence_length,
        )
    end = next((mark for mark in (tokenizer.eos_token_id, tokenizer.sep_token_id) if mark is not None), None)
    separator = [] if end is None or frame else [end]
    joined: list[int] = []
    for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        joined += [*ids, *separator]
    blocks = np.asarray(joined[: len(joined) // length * length], dtype=np.uint32).reshape(-1, length)
    if not len(blocks):
        return
    _check_ids(blocks, wanted, name="token ids")
    if frame:
        assert wanted.labels is not None, "text has a vocabulary"
        first, last = (np.full((len(blocks), 1), token, dtype=np.uint32) for token in frame)
        masked = MaskedExamples(
            blocks=np.concatenate([first, blocks, last], axis=1),
            masking=Masking(seed=wanted.seed),
            name=f"texts/{number}",
            mask_id=tokenizer.mask_token_id,
            special=tuple(sorted(set(tokenizer.all_special_ids))),
            vocabulary=min(wanted.labels, len(tokenizer)),
        )
        arrays: Batch = masked.take(range(len(blocks)))
    else:
        arrays = {"input_ids": blocks.astype(np.int64)}
    for row in range(len(blocks)):
        example: dict[str, np.ndarray] = {name: array[row] for name, array in arrays.items()}
        yield _Arrays(arrays=example, is_batch=False)


def _frame(tokenizer: Any) -> tuple[int, int]:
    """Return the ids that a sequence begins and ends with. Raises RecipeError for a tokenizer that cannot mask."""
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if None in (first, last, tokenizer.mask_token_id):
        raise RecipeError(
            "the tokenizer lacks a first, last or mask token, which a masked language model needs", where="tokenizer"
        )
    return first, last
