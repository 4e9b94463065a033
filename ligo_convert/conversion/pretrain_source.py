"""TODO: one sentence."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.checkpoints.writer import safetensors_pieces
from ligo_convert.conversion.plan import Plan, make_plan, stream_width
from ligo_convert.conversion.splits import load_splits, tokenizer_directory
from ligo_convert.conversion.step_results import keep_result, staged_results
from ligo_convert.environment import choose_device
from ligo_convert.hub.resolve import open_source
from ligo_convert.io.cache import ResultCache, blocks_of, files_in
from ligo_convert.io.staging import Staging
from ligo_convert.progress import Progress
from ligo_convert.training.state import StagedState


def train_source(
    stack: contextlib.ExitStack,
    plan: Plan,
    staging: Staging,
    device: str,
    progress: Progress,
    *,
    examples: int | None = None,
    shared: CacheKeys | None = None,
) -> tuple[CheckpointReader, dict[str, str], Plan]:
    """The recipe's own source, trained and opened, with its digests and the plan that its real headers give."""
    trained = trained_source(
        plan, staging, device=choose_device(device), progress=progress, examples=examples, shared=shared
    )
    source = stack.enter_context(trained)
    return source, source.digest(), make_plan(plan.recipe, source, check_disk=False)


TRAINED_SOURCE = "ligo/source"


# A source of our own.


@dataclass(frozen=True, kw_only=True)
class CacheKeys:
    """A shelf, and what this run's own source and its learned operator are called there."""

    shelf: ResultCache
    trained: str
    learned: str


@contextlib.contextmanager
def trained_source(
    plan: Plan,
    staging: Staging,
    *,
    device: str,
    progress: Progress,
    examples: int | None = None,
    shared: CacheKeys | None = None,
) -> Iterator[CheckpointReader]:
    """The recipe's `source.pretrain`, trained into the staging directory, opened as any source is.

    Args:
        examples: as of `load_splits`: the text that it is trained on, which may be more than its steps ask for.
        shared: where another run may have trained it.
    """
    directory = staging.path / TRAINED_SOURCE

    def train() -> dict[str, Any]:
        return _train_source(plan, staging, device=device, progress=progress, examples=examples)

    if "pretrain" not in staged_results(staging):
        if shared is None:
            trained = train()
        else:
            with shared.shelf.lock_entry("source", f"{shared.trained}-{device}") as place:
                trained = _taken_source(staging, place) if place.is_dir() else train()
                if not place.is_dir():
                    files = {f"model/{name}": path for name, path in files_in(directory).items()}
                    shared.shelf.store(place, {**files, "trained.json": json.dumps(trained).encode()})
        keep_result(staging, "pretrain", trained)
    with open_source(str(directory), base=directory) as source:
        yield source


def _taken_source(staging: Staging, place: Path) -> dict[str, Any]:
    """A source that another run has trained, staged as if it had been trained here."""
    for name, path in files_in(place / "model").items():
        staging.write_bytes(f"{TRAINED_SOURCE}/{name}", blocks_of(path))
    trained: dict[str, Any] = json.loads((place / "trained.json").read_bytes())
    return trained


def _train_source(
    plan: Plan, staging: Staging, *, device: str, progress: Progress, examples: int | None
) -> dict[str, Any]:
    from ligo_convert.training.fit import autocast_pays
    from ligo_convert.training.pretrain import pretrain

    settings, fit = plan.recipe.source.pretrain, plan.recipe.fit
    assert settings is not None
    assert fit is not None
    config = _with_tokenizer(plan, staging, progress)
    a_step = settings.batch_size * plan.family.sequence(config, settings.sequence_length)
    slices = load_splits(plan, staging.path / TRAINED_SOURCE, progress=progress, pretraining=True, examples=examples)
    store = StagedState(staging, "pretrain-state")
    with progress.task("training a source", settings.steps, unit="steps") as task:

        def on_step(step: int, line: Mapping[str, Any]) -> None:
            task.reach(step)
            task.note(f"loss {line['loss']:.3f}")

        family = plan.inventory.family
        tensors, outcome, loss = pretrain(
            family,
            config,
            slices,
            steps=settings.steps,
            batch_size=settings.batch_size,
            tokens_a_step=a_step,
            learning_rate=settings.learning_rate,
            seed=settings.seed,
            # What is grown from it is compared with what is not: neither may meet the data again in the order it knows.
            order="batches" if examples is None else "source",
            device=device,
            autocast=autocast_pays(device, fit.precision, width=stream_width(plan, plan.start.source)),
            store=store,
            on_step=on_step,
        )
    pieces = []
    for name, tensor in tensors.items():
        array = np.ascontiguousarray(tensor.cpu().numpy(), dtype="<f4")
        spec = TensorSpec(name=family.written(name), dtype="F32", shape=array.shape)
        pieces.append((spec, array.reshape(-1).view(np.uint8).data))
    staging.write_bytes(f"{TRAINED_SOURCE}/model.safetensors", safetensors_pieces(pieces, {"format": "pt"}))
    store.drop()
    tokens = settings.steps * a_step
    return {"steps": settings.steps, "tokens": tokens, "last_loss": outcome.log[-1]["loss"], "validation_loss": loss}


def _with_tokenizer(plan: Plan, staging: Staging, progress: Progress) -> dict[str, object]:
    """Stage the trained source's tokenizer and config; return the config."""
    from ligo_convert.checkpoints.files import TOKENIZER_FILES
    from ligo_convert.data.tokenizers import load_tokenizer
    from ligo_convert.data.train_tokenizer import train_tokenizer
    from ligo_convert.families.configs import written_config
    from ligo_convert.outputs.side_files import json_bytes

    settings, fit = plan.recipe.source.pretrain, plan.recipe.fit
    assert settings is not None
    assert fit is not None
    family, directory = plan.inventory.family, staging.path / TRAINED_SOURCE
    if family.reads == "images":
        config = family.complete(plan.start.source)
        staging.write_bytes(f"{TRAINED_SOURCE}/config.json", json_bytes(written_config(family, config, {})))
        return config
    config = {**family.complete(settings.config), "architectures": [family.architecture], "dtype": "float32"}
    if fit.data.tokenizer is not None:
        found = tokenizer_directory(plan, None)
        files = {name: (found / name).read_bytes() for name in TOKENIZER_FILES if (found / name).is_file()}
    else:
        with progress.task("training a tokenizer"):
            vocabulary = plan.family.sizes(config)[plan.family.vocabulary]
            files = train_tokenizer(
                fit.data,
                base=plan.recipe.base,
                vocabulary=vocabulary,
                seed=settings.seed,
                model_type=plan.family.model_type,
                context=settings.sequence_length,
            )
    for name, data in files.items():
        staging.write_bytes(f"{TRAINED_SOURCE}/{name}", data)
    staging.write_bytes(f"{TRAINED_SOURCE}/config.json", json_bytes(config))
    tokenizer = load_tokenizer(directory)
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = {**config, **ids}
    staging.write_bytes(f"{TRAINED_SOURCE}/config.json", json_bytes(config))
    return config
