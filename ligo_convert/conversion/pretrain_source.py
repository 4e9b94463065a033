"""Train the source of a recipe that has `source.pretrain` instead of `source.model`.

Input: a plan and a staging directory.
Output: a checkpoint in the staging directory, opened like any other source.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.checkpoints.writer import safetensors_pieces
from ligo_convert.conversion.fit_plan import PretrainPlan
from ligo_convert.conversion.plan import Plan, make_plan, stream_width
from ligo_convert.conversion.splits import load_pretraining_splits, tokenizer_directory
from ligo_convert.conversion.step_results import begin_step, keep_result, staged_results
from ligo_convert.environment import choose_device, compute_threads
from ligo_convert.errors import SourceError, VerificationError
from ligo_convert.families.schema import Family
from ligo_convert.hub.resolve import open_source
from ligo_convert.io.cache import CacheEntry, ResultCache, files_in
from ligo_convert.io.staging import Staging
from ligo_convert.io.strict_json import json_bytes, strict_json
from ligo_convert.outputs.layout import TRAINED_SOURCE
from ligo_convert.progress import Progress
from ligo_convert.training.state import StagedState

if TYPE_CHECKING:
    import torch

# The file of a cache entry that holds the figures of the training.
FIGURES = "trained.json"


@dataclass(frozen=True, kw_only=True)
class CacheKeys:
    """The cache shared with other runs, and this run's keys in it.

    Attributes:
        trained: key of the source that the recipe trains.
        learned: key of the fit.
    """

    cache: ResultCache
    trained: str
    learned: str


def train_source(
    stack: contextlib.ExitStack,
    plan: Plan,
    staging: Staging,
    device: str,
    progress: Progress,
    *,
    train_examples: int | None = None,
    shared: CacheKeys | None = None,
) -> tuple[CheckpointReader, dict[str, str], Plan]:
    """Train the recipe's source and open it until `stack` closes.

    Args:
        train_examples: see `load_pretraining_splits`.
        shared: cache in which another run may have left the same source.

    Returns:
        The open source, SHA-256 of its files by name, and the plan made again from its real headers.
    """
    device, directory = choose_device(device), staging.path / TRAINED_SOURCE
    if "pretrain" not in staged_results(staging):

        def train() -> dict[str, Any]:
            assert plan.pretrain is not None, "without a source the recipe has source.pretrain"
            begin_step(staging, state=_state(staging).name)
            with compute_threads(plan.threads):
                return _train(
                    plan, plan.pretrain, staging, device=device, progress=progress, train_examples=train_examples
                )

        if shared is None:
            figures = train()
        else:
            with shared.cache.lock_entry("source", f"{shared.trained}-{device}") as entry:
                cached = _stage_cached(staging, entry)
                figures = train() if cached is None else cached
                if cached is None:
                    files = files_in(directory)
                    entry.store({**files, FIGURES: json.dumps(figures).encode()})
        made = [name for name in staging.files() if name.startswith(f"{TRAINED_SOURCE}/")]
        keep_result(staging, "pretrain", figures, files=made)
    source = stack.enter_context(open_source(str(directory), base=directory))
    digests = source.digest()
    # What is read from here on is compared with these digests; they must be those of the files that were staged.
    _require_written(digests, {name: staging.digest(f"{TRAINED_SOURCE}/{name}") for name in digests}, directory)
    return source, digests, make_plan(plan.recipe, source, check_disk=False)


def draw_source(
    stack: contextlib.ExitStack, plan: Plan, staging: Staging, progress: Progress, *, seed: int
) -> tuple[CheckpointReader, dict[str, str], Plan]:
    """Draw the weights of the recipe's source instead of training them, and open it as `train_source` does.

    Args:
        seed: seed of the weights.
    """
    from ligo_convert.training.pretrain import drawn_model

    assert plan.pretrain is not None, "without a source the recipe has source.pretrain"
    family, directory = plan.inventory.family, staging.path / TRAINED_SOURCE
    config = stage_source_config(plan, plan.pretrain, staging, progress)
    stage_source_weights(family, drawn_model(family, config, seed=seed), staging)
    source = stack.enter_context(open_source(str(directory), base=directory))
    return source, source.digest(), make_plan(plan.recipe, source, check_disk=False)


def _require_written(found: Mapping[str, str], written: Mapping[str, str | None], directory: Path) -> None:
    """Raise VerificationError if a file on the disk is not the one that was written."""
    for name, digest in found.items():
        if digest != written[name]:
            raise VerificationError(
                "the bytes on disk differ from the bytes written",
                where=directory / name,
                expected=written[name],
                found=digest,
                hint="run the same command again: the source is then trained again",
            )


def _stage_cached(staging: Staging, entry: CacheEntry) -> dict[str, Any] | None:
    """Stage a source that another run trained. Return the figures of its training; None if there is none, or a damaged one."""
    staged = entry.restore(
        lambda name, blocks, sha256: staging.write_bytes(f"{TRAINED_SOURCE}/{name}", blocks, sha256=sha256)
    )
    if not staged:
        return None
    data = staging.read(f"{TRAINED_SOURCE}/{FIGURES}")
    staging.remove(f"{TRAINED_SOURCE}/{FIGURES}")
    with contextlib.suppress(SourceError):
        match strict_json(data or b"", label=FIGURES):
            case {"steps": int(), "tokens": int(), "last_loss": float(), "validation_loss": float(), **more} as figures:
                if not more:
                    return figures
    entry.discard(f"{FIGURES} does not hold the figures of a training")
    return None


def _state(staging: Staging) -> StagedState:
    return StagedState(staging, "pretrain-state")


def _train(
    plan: Plan,
    pretrain_plan: PretrainPlan,
    staging: Staging,
    *,
    device: str,
    progress: Progress,
    train_examples: int | None,
) -> dict[str, Any]:
    """Train the source into the staging directory. Return the figures of `outputs.metrics.PretrainOutcome`."""
    from ligo_convert.training.fit import autocast_pays
    from ligo_convert.training.pretrain import PretrainSettings, pretrain

    settings, family = pretrain_plan.settings, plan.inventory.family
    config = stage_source_config(plan, pretrain_plan, staging, progress)
    tokens_per_step = settings.batch_size * plan.family.sequence(config, settings.sequence_length)
    directory = staging.path / TRAINED_SOURCE
    splits = load_pretraining_splits(plan, pretrain_plan, directory, progress=progress, train_examples=train_examples)
    width = stream_width(plan, plan.start.source)
    store = _state(staging)
    with progress.task("training the source", settings.steps, unit="steps") as task:

        def on_step(step: int, line: Mapping[str, Any]) -> None:
            task.reach(step)
            progress.measure("source", line)
            task.note(f"loss {line['loss']:.3f}")

        tensors, outcome, loss = pretrain(
            family,
            config,
            splits,
            PretrainSettings(
                steps=settings.steps,
                batch_size=settings.batch_size,
                tokens_a_step=tokens_per_step,
                learning_rate=settings.learning_rate,
                seed=settings.seed,
                # `compare` trains the target on the same split. Another order keeps the grown models from meeting the batches
                # in the order in which the source learned them.
                order="batches" if train_examples is None else "source",
                autocast=autocast_pays(device, pretrain_plan.fit.settings.precision, width=width),
            ),
            device=device,
            store=store,
            on_step=on_step,
        )
    stage_source_weights(family, tensors, staging)
    store.drop()
    return {
        "steps": settings.steps,
        "tokens": settings.steps * tokens_per_step,
        "last_loss": outcome.log[-1]["loss"],
        "validation_loss": loss,
    }


def stage_source_weights(
    family: Family, tensors: Mapping[str, torch.Tensor] | Mapping[str, np.ndarray], staging: Staging
) -> None:
    """Stage the weights of a source: float32, by the names of the library."""
    pieces = []
    for name, tensor in tensors.items():
        values = tensor if isinstance(tensor, np.ndarray) else tensor.cpu().numpy()
        array = np.ascontiguousarray(values, dtype="<f4")
        spec = TensorSpec(name=family.written(name), dtype="F32", shape=array.shape)
        pieces.append((spec, array.reshape(-1).view(np.uint8).data))
    staging.write_bytes(f"{TRAINED_SOURCE}/model.safetensors", safetensors_pieces(pieces, {"format": "pt"}))


def stage_source_config(plan: Plan, pretrain: PretrainPlan, staging: Staging, progress: Progress) -> dict[str, object]:
    """Stage the source's config, and its tokenizer where it reads text. Return the config."""
    from ligo_convert.data.tokenizers import load_tokenizer
    from ligo_convert.families.configs import written_config

    family, path = plan.inventory.family, f"{TRAINED_SOURCE}/config.json"
    if family.library == "timm":
        config = family.complete(plan.start.source)
        staging.write_bytes(path, json_bytes(written_config(family, config, {})))
        return config
    config = {
        **family.complete(pretrain.settings.config),
        "architectures": [family.architecture],
        "dtype": "float32",
    }
    if family.reads == "images":
        staging.write_bytes(path, json_bytes(config))
        return config
    for name, data in _tokenizer_files(plan, pretrain, config, progress).items():
        staging.write_bytes(f"{TRAINED_SOURCE}/{name}", data)
    # The tokenizer needs a config beside it to load; its token ids then belong into that config.
    staging.write_bytes(path, json_bytes(config))
    tokenizer = load_tokenizer(staging.path / TRAINED_SOURCE)
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = {**config, **ids}
    staging.write_bytes(path, json_bytes(config))
    return config


def _tokenizer_files(
    plan: Plan, pretrain: PretrainPlan, config: Mapping[str, object], progress: Progress
) -> dict[str, bytes]:
    """Return the files of the tokenizer that the recipe names, or of one trained on its data."""
    from ligo_convert.checkpoints.files import TOKENIZER_FILES
    from ligo_convert.data.train_tokenizer import train_tokenizer

    data = pretrain.fit.settings.data
    if data.tokenizer is not None:
        folder = tokenizer_directory(plan, None)
        return {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    with progress.task("training a tokenizer"):
        return train_tokenizer(
            data,
            base=plan.recipe.base,
            vocabulary=plan.family.sizes(config)[plan.family.vocabulary],
            seed=pretrain.settings.seed,
            model_type=plan.family.model_type,
            context=pretrain.settings.sequence_length,
        )
