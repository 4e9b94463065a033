"""The part of a run that needs a model in memory: pretraining a source, fitting the operator, measuring what growth kept.

What comes in: a plan, the source, a staging directory. What goes out: the operator, staged, and the figures. Each step that is finished is
staged with its results, so that a run that goes on does not do it again.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ligo_convert.errors import OutputBusy, RecipeError, SourceError
from ligo_convert.fs import make_folder, write_file
from ligo_convert.initial import initial_operator, random_operator
from ligo_convert.operator import Operator, describe, stored_arrays
from ligo_convert.plan import Plan
from ligo_convert.progress import Progress
from ligo_convert.recipe import Fit
from ligo_convert.shelf import Shelf, blocks_of, files_in
from ligo_convert.source import Source, open_source
from ligo_convert.staging import WORK, Staging
from ligo_convert.start import drawn_names
from ligo_convert.stored import read_operator, read_safetensors
from ligo_convert.stream import compute_dtype
from ligo_convert.tensors import DTYPE_NAMES, TensorSpec
from ligo_convert.tokenization import known_files
from ligo_convert.writer import rehash, safetensors_pieces

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ligo_convert.examples import Examples, Slices

OPERATOR = "ligo/operator.safetensors"
FIT_LOG = "ligo/fit.jsonl"
FIT_PICTURE = "ligo/fit.png"
TRAINED_SOURCE = "ligo/source"
RESULTS = f"{WORK}/results.json"
FIT_STATE = "fit-state"
MEASURED_BLOCKS = 16
RANDOM_EXAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class Learned:
    """The operator to apply, and what is known of it.

    Attributes:
        metrics: parameters, loss, flops, preservation, fit: plain JSON. log: one line a step. data: the slice, None without one.
    """

    operator: Operator
    metrics: Mapping[str, Any]
    log: tuple[Mapping[str, Any], ...]
    data: Mapping[str, Any] | None


class FolderState:
    """A training state as a file in a folder of this process's own (`training.StateStore`)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, arrays: dict[str, np.ndarray], text: str) -> None:
        make_folder(self.path.parent)
        write_file(self.path, _state_pieces(arrays, text), replace=True)

    def load(self) -> tuple[dict[str, np.ndarray], str] | None:
        return _read_state(self.path)


class StagedState:
    """A training state in a staging directory (`training.StateStore`)."""

    def __init__(self, staging: Staging, name: str) -> None:
        self.staging, self.name = staging, f"{WORK}/{name}.safetensors"

    def save(self, arrays: dict[str, np.ndarray], text: str) -> None:
        self.staging.write_bytes(self.name, _state_pieces(arrays, text))

    @property
    def path(self) -> Path:
        return self.staging.path / self.name

    def load(self) -> tuple[dict[str, np.ndarray], str] | None:
        return _read_state(self.path)

    def drop(self) -> None:
        self.staging.remove(self.name)


_TEXT = "state"


def _state_pieces(arrays: Mapping[str, np.ndarray], text: str) -> Iterator[Buffer]:
    tensors = []
    for name, array in sorted(arrays.items()):
        flat = np.ascontiguousarray(array)
        spec = TensorSpec(name=name, dtype={4: "F32", 8: "F64"}[flat.itemsize], shape=flat.shape)
        tensors.append((spec, flat.reshape(-1).view(np.uint8).data))
    # A tensor, not metadata: a long log does not fit a header.
    data = text.encode()
    tensors.append((TensorSpec(name=_TEXT, dtype="U8", shape=(len(data),)), memoryview(data)))
    return safetensors_pieces(tensors, {"format": "pt"})


def _read_state(path: Path) -> tuple[dict[str, np.ndarray], str] | None:
    if not path.exists():
        return None
    arrays, _ = read_safetensors(path)
    return arrays, arrays.pop(_TEXT).tobytes().decode()


def staged_results(staging: Staging) -> dict[str, Any]:
    """What finished steps have left behind."""
    path = staging.path / RESULTS
    return json.loads(path.read_text()) if path.exists() else {}


def keep_result(staging: Staging, name: str, value: object) -> None:
    staging.write_bytes(RESULTS, json.dumps({**staged_results(staging), name: value}).encode())


# Data.


def tokenizer_directory(plan: Plan, source: Source | None) -> Path:
    """Where the tokenizer of the fit lies: the recipe's, else the source's own."""
    assert plan.recipe.fit is not None
    named = plan.recipe.fit.data.tokenizer
    if named is not None:
        place = plan.recipe.base / Path(named).expanduser()
        return place if place.is_dir() else _tokenizer_from_hub(named)
    assert source is not None
    return source.root


def _tokenizer_from_hub(name: str) -> Path:
    from ligo_convert.hub import fetch_tokenizer

    return fetch_tokenizer(name)


def slices_of(
    plan: Plan, tokenizer: Path | None, *, progress: Progress, pretraining: bool = False, examples: int | None = None
) -> Slices:
    """The recipe's data as slices, for the fit or for training a source. Held-out text is the same at every sequence length of a recipe.

    Args:
        examples: how many sequences of the fit's length, or images, to train on; None for what the steps ask for.
    """
    from ligo_convert.data import token_slices
    from ligo_convert.masking import Masking

    fit, pretrain = plan.recipe.fit, plan.recipe.source.pretrain
    assert fit is not None
    settings = pretrain if pretraining else fit
    assert settings is not None
    asked = settings.steps * settings.batch_size
    if plan.family.reads == "images":
        return _image_slices(plan, examples or asked, progress)
    assert tokenizer is not None
    lengths = [fit.sequence_length, *([pretrain.sequence_length] if pretrain else [])]
    whole = math.lcm(*lengths)
    with progress.task("reading text", unit="tokens") as task:
        return token_slices(
            fit.data,
            tokenizer,
            base=plan.recipe.base,
            sequence_length=settings.sequence_length,
            train_tokens=examples * fit.sequence_length if examples else asked * settings.sequence_length,
            heldout_tokens=-(-fit.heldout_tokens // whole) * whole,
            seed=fit.seed,
            vocabulary=plan.family.sizes(plan.start.source)[plan.family.vocabulary],
            masking=None if plan.family.task == "causal-lm" else Masking(seed=fit.seed),
            on_progress=lambda done, total: task.reach(done / max(1, total)),
        )


def _image_slices(plan: Plan, train_images: int, progress: Progress) -> Slices:
    from ligo_convert.configs import image_preprocessing
    from ligo_convert.images import Preparation, image_slices

    fit, family, config = plan.recipe.fit, plan.family, plan.start.target
    assert fit is not None
    assert fit.data.images is not None
    sizes = family.sizes(config)
    preparation = Preparation(channels=sizes["rgb"], **image_preprocessing(config))
    with progress.task("reading images", unit="images") as task:
        return image_slices(
            fit.data.images,
            base=plan.recipe.base,
            preparation=preparation,
            classes=sizes[family.labels],
            train_images=train_images,
            heldout_images=fit.heldout_images,
            seed=fit.seed,
            on_progress=lambda done, total: task.reach(done / max(1, total)),
        )


def same_data(staging: Staging, digest: str) -> None:
    """Work that was begun on one slice must not go on with another."""
    before = staged_results(staging).get("data_digest")
    if before is None:
        keep_result(staging, "data_digest", digest)
    elif before != digest:
        raise OutputBusy(
            "the data has changed since this output was begun",
            where=staging.path,
            expected=before,
            found=digest,
            hint="remove that directory to begin anew",
        )


# A source of our own.


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A shelf, and what this run's own source and its learned operator are called there."""

    shelf: Shelf
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
    shared: Shared | None = None,
) -> Iterator[Source]:
    """The recipe's `source.pretrain`, trained into the staging directory, opened as any source is.

    Args:
        examples: as of `slices_of`: the text that it is trained on, which may be more than its steps ask for.
        shared: where another run may have trained it.
    """
    directory = staging.path / TRAINED_SOURCE

    def train() -> dict[str, Any]:
        return _train_source(plan, staging, device=device, progress=progress, examples=examples)

    if "pretrain" not in staged_results(staging):
        if shared is None:
            trained = train()
        else:
            with shared.shelf.one("source", f"{shared.trained}-{device}") as place:
                trained = _taken_source(staging, place) if place.is_dir() else train()
                if not place.is_dir():
                    files = {f"model/{name}": path for name, path in files_in(directory).items()}
                    shared.shelf.put(place, {**files, "trained.json": json.dumps(trained).encode()})
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
    from ligo_convert.fit import autocast_pays
    from ligo_convert.pretrain import pretrain

    settings, fit = plan.recipe.source.pretrain, plan.recipe.fit
    assert settings is not None
    assert fit is not None
    config = _with_tokenizer(plan, staging, progress)
    a_step = settings.batch_size * plan.family.sequence(config, settings.sequence_length)
    slices = slices_of(plan, staging.path / TRAINED_SOURCE, progress=progress, pretraining=True, examples=examples)
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
            autocast=autocast_pays(device, fit.precision, width=_width(plan, plan.start.source)),
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
    from ligo_convert.checkpoint_files import TOKENIZER_FILES
    from ligo_convert.configs import written_config
    from ligo_convert.output import json_bytes
    from ligo_convert.tokenization import load_tokenizer, train_tokenizer

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


# The operator.


def learn(
    plan: Plan,
    source: Source,
    staging: Staging,
    *,
    device: Callable[[], str],
    progress: Progress,
    shared: Shared | None = None,
) -> Learned:
    """Make the operator: the start, measured, and where the recipe says so fitted. Stages it with its log.

    Args:
        device: asked only where a model is run.
        shared: where another run may have fitted the same operator.
    """
    done = staged_results(staging).get("learned")
    if done is not None:
        operator = read_operator(staging.path / OPERATOR)
        log = [_read_line(line) for line in _log_lines(staging)]
        return Learned(operator=operator, metrics=done["metrics"], log=tuple(log), data=done["data"])
    wide = compute_dtype(plan.inventory) == "F64"
    initial = initial_operator(plan.start, dtype=np.float64 if wide else np.float32)
    initial = replace(initial, notes={"drawn": drawn_names(plan.start)})
    metrics: dict[str, Any] = {
        "task": plan.family.task,
        "parameters": plan.parameters,
        "loss": {"source": None, "initial": None, "fitted": None, "random_target": None},
        "accuracy": {"source": None, "initial": None, "fitted": None},
        "flops": plan.flops,
        "preservation": _planned_preservation(plan),
        "fit": None,
    }
    if plan.recipe.source.pretrain is not None:
        metrics["pretrain"] = staged_results(staging)["pretrain"]
    operator, log, data = initial, list[dict[str, Any]](), None
    if plan.measures:
        chosen, state = device(), StagedState(staging, FIT_STATE)
        with contextlib.ExitStack() as stack:
            if shared is not None and plan.recipe.fit is not None:
                # A fit that has ended is the state it ended in: whoever finds it goes on from there, with no step left.
                place = stack.enter_context(shared.shelf.one("fit", f"{shared.learned}-{chosen}"))
                if place.is_dir() and not state.path.exists():
                    staging.write_bytes(state.name, blocks_of(place / FIT_STATE))
            operator, log, data = _with_models(plan, source, initial, staging, chosen, progress, metrics)
            if shared is not None and plan.recipe.fit is not None and not place.is_dir():
                shared.shelf.put(place, {FIT_STATE: state.path})
    staging.write_bytes(OPERATOR, safetensors_pieces(stored_arrays(operator), describe(operator)))
    if plan.recipe.fit is not None:
        staging.write_bytes(FIT_LOG, "".join(_log_line(line) + "\n" for line in log).encode())
    keep_result(staging, "learned", {"metrics": metrics, "data": data})
    StagedState(staging, FIT_STATE).drop()
    return Learned(operator=operator, metrics=metrics, log=tuple(log), data=data)


def _log_line(line: Mapping[str, Any]) -> str:
    """A line of the log as JSON, which knows no NaN: a loss that is no number is null."""
    figures = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()
    }
    return json.dumps(figures, allow_nan=False)


def _log_lines(staging: Staging) -> list[str]:
    path = staging.path / FIT_LOG
    return path.read_text().splitlines() if path.exists() else []


def _read_line(text: str) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in json.loads(text).items()}


def _planned_preservation(plan: Plan) -> dict[str, Any]:
    return {
        "verdict": None,
        "planned": plan.start.verdict,
        "reasons": list(plan.start.reasons),
        "max_logit_difference": None,
        "mean_logit_difference": None,
        "logit_scale": None,
        "loss_difference": None,
        "departs_at": None,
        "compared": None,
        "tokens": 0,
        "images": 0,
        "rounding": None,
    }


def _with_models(
    plan: Plan,
    source: Source,
    initial: Operator,
    staging: Staging,
    device: str,
    progress: Progress,
    metrics: dict[str, Any],
) -> tuple[Operator, list[dict[str, Any]], dict[str, Any] | None]:
    """Measure the start, fit where asked, measure again."""
    import torch

    from ligo_convert.examples import head
    from ligo_convert.fit import GrownTarget, fetch_from, fit, named_source, stacked_source
    from ligo_convert.growth import Grower
    from ligo_convert.measure import Model, certificate, rounding
    from ligo_convert.models import LibraryModel, mean_loss
    from ligo_convert.objectives import objective_of
    from ligo_convert.torchio import TORCH_DTYPES

    torch.manual_seed(0)  # nothing here draws from torch; a library that did would still do it the same each time
    family, inventory, settings = plan.family, plan.inventory, plan.recipe.fit
    rows = family.rows_for(plan.start.target)
    dtype = TORCH_DTYPES[compute_dtype(inventory)]
    with progress.task("reading the source", len(rows), unit="rows"):
        stacked = stacked_source(source.read, family, inventory, rows, device=device, dtype=dtype)
    slices, data = None, None
    if settings is not None:
        tokenizer = tokenizer_directory(plan, source) if family.reads == "text" else None
        slices = slices_of(plan, tokenizer, progress=progress)
        same_data(staging, slices.digest)
        assert plan.data is not None
        files = {path.name: rehash(path) for path in known_files(tokenizer)} if tokenizer is not None else {}
        data = {"digest": slices.digest, "kind": plan.data.kind, slices.unit: dict(slices.sizes), "tokenizer": files}
        examples = head(slices.test, MEASURED_BLOCKS)
    else:
        examples = _random_examples(plan)
    old = Model(
        library=LibraryModel(inventory.family, plan.start.source, device=device),
        parameters=named_source(inventory, stacked),
    )
    try:
        library = LibraryModel(family, plan.start.target, device=device)
    except SourceError as error:
        # The source's own config has just been built: what cannot be is what the recipe changes.
        raise RecipeError(error.what, where=plan.recipe.where("target")) from None
    library.check_table(rows)
    objective = objective_of(library, old, initial, dtype=dtype)

    def grown(operator: Operator) -> Model:
        grower = Grower(operator, family, device=device, dtype=dtype, fetch=fetch_from(stacked))
        return Model(library=library, parameters=GrownTarget(grower, rows, stacked).tensors())

    def loss(model: Model) -> float:
        assert slices is not None
        return mean_loss(
            objective, model.parameters, slices.test, batch_size=plan.micro_batch, device=device, dtype=dtype
        )

    def accuracy(model: Model) -> float | None:
        """Top-1 on the test slice; None where the task has no such figure, or the head another task's classes."""
        measure = model.library.task.accuracy
        if measure is None or (model is old and plan.start.drawn_rows):
            return None
        assert slices is not None

        def share(parameters: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
            assert measure is not None
            return measure(model.library(parameters, batch), batch)

        return mean_loss(share, model.parameters, slices.test, batch_size=plan.micro_batch, device=device, dtype=dtype)

    def source_loss() -> float | None:
        """The source's own: nothing apart from itself where it has no head; unknown where it is asked for other classes."""
        if plan.start.drawn_rows:
            return None
        if old.library.task.loss is None:
            return 0.0
        assert slices is not None
        return mean_loss(
            old.library.loss, old.parameters, slices.test, batch_size=plan.micro_batch, device=device, dtype=dtype
        )

    with progress.task("measuring the start", 4 if slices is not None else 1) as task:
        new = grown(initial)
        depths = {axis: found.source for axis, found in plan.start.depths.items()}
        measured = certificate(old, new, initial, depths, examples, batch_size=plan.micro_batch, dtype=dtype)
        stored = {spec.dtype for spec in plan.specs}
        narrow = min(stored, key=lambda name: torch.finfo(TORCH_DTYPES[name]).bits)
        if torch.finfo(TORCH_DTYPES[narrow]).bits < torch.finfo(dtype).bits:
            measured["rounding"] = {
                "dtype": next(name for name, short in DTYPE_NAMES.items() if short == narrow),
                **rounding(new, TORCH_DTYPES[narrow], examples, batch_size=plan.micro_batch, wide=dtype),
            }
        metrics["preservation"] = {**metrics["preservation"], **measured}
        task.advance()
        if slices is None or settings is None:
            return initial, [], None
        metrics["loss"]["source"] = source_loss()
        metrics["accuracy"]["source"] = accuracy(old)
        task.advance()
        metrics["loss"]["initial"] = loss(new)
        metrics["accuracy"]["initial"] = accuracy(new)
        task.advance()
        del new
        metrics["loss"]["random_target"] = loss(grown(random_operator(plan.start)))
        task.advance()
    chosen = _fit_settings(plan, device)
    with progress.task("fitting the operator", settings.steps, unit="steps") as task:

        def on_step(step: int, line: Mapping[str, Any]) -> None:
            task.reach(step)
            validation = f", held out {line['validation_loss']:.3f}" if "validation_loss" in line else ""
            task.note(f"loss {line['loss']:.3f}{validation}")

        operator, outcome = fit(
            initial,
            family,
            inventory,
            stacked,
            slices,
            chosen,
            objective=objective,
            device=device,
            store=StagedState(staging, FIT_STATE),
            on_step=on_step,
        )
    with progress.task("measuring the fit"):
        # The best operator on the validation slice is kept; where that is the start, it is kept as it was.
        operator = operator if outcome.best_step else initial
        best = grown(operator)
        metrics["loss"]["fitted"] = loss(best)
        metrics["accuracy"]["fitted"] = accuracy(best)
    metrics["fit"] = {
        "steps": settings.steps,
        "best_step": outcome.best_step,
        "best_validation_loss": outcome.best_loss,
        "seed": settings.seed,
        "precision": "bfloat16" if chosen.autocast else "float32",
        "device": device,
    }
    return operator, outcome.log, data


def _width(plan: Plan, config: Mapping[str, object]) -> int:
    return plan.family.sizes(config)[plan.family.norm.stream]


def _random_examples(plan: Plan) -> Examples:
    from ligo_convert.examples import ArrayExamples
    from ligo_convert.tasks import random_batch

    return ArrayExamples(arrays=random_batch(plan.inventory.family, plan.start.source, count=RANDOM_EXAMPLES))


def warmup_steps(fit: Fit) -> int:
    """Steps to the peak rate: the recipe's, else a tenth of the fit, ten at most."""
    return fit.warmup_steps if fit.warmup_steps is not None else min(10, fit.steps // 10)


def _fit_settings(plan: Plan, device: str) -> Any:
    from ligo_convert.fit import Settings, autocast_pays

    fit = plan.recipe.fit
    assert fit is not None
    return Settings(
        steps=fit.steps,
        batch_size=fit.batch_size,
        micro_batch_size=plan.micro_batch,
        tokens_a_step=fit.batch_size * plan.family.sequence(plan.start.target, fit.sequence_length),
        width_rate=fit.learning_rate.width,
        depth_rate=fit.learning_rate.depth,
        weight_decay=fit.weight_decay,
        warmup_steps=warmup_steps(fit),
        seed=fit.seed,
        evaluate_every=fit.evaluate_every,
        autocast=autocast_pays(device, fit.precision, width=_width(plan, plan.start.target)),
    )
