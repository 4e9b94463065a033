"""The part of a run that needs a model in memory: pretraining a source, fitting the operator, measuring what growth kept.

What comes in: a plan, the source, a staging directory. What goes out: the operator, staged, and the figures. Each step that is finished is
staged with its results, so that a run that goes on does not do it again.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.tensors import DTYPE_NAMES
from ligo_convert.checkpoints.writer import rehash, safetensors_pieces
from ligo_convert.conversion.plan import Plan, stream_width
from ligo_convert.conversion.pretrain_source import CacheKeys
from ligo_convert.conversion.splits import load_splits, tokenizer_directory
from ligo_convert.conversion.step_results import keep_result, same_data, staged_results
from ligo_convert.data.tokenizers import known_files
from ligo_convert.errors import RecipeError, SourceError
from ligo_convert.growth.growth_plan import drawn_names
from ligo_convert.growth.initialize import initial_operator, random_operator
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.operator_file import describe, read_operator, stored_arrays
from ligo_convert.growth.stream import compute_dtype
from ligo_convert.io.cache import blocks_of
from ligo_convert.io.staging import Staging
from ligo_convert.outputs.layout import FIT_LOG, OPERATOR
from ligo_convert.progress import Progress
from ligo_convert.recipes.schema import FitConfig
from ligo_convert.training.state import StagedState

if TYPE_CHECKING:
    from ligo_convert.data.examples import Examples

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


# The operator.


def learn(
    plan: Plan,
    source: CheckpointReader,
    staging: Staging,
    *,
    device: Callable[[], str],
    progress: Progress,
    shared: CacheKeys | None = None,
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
                place = stack.enter_context(shared.shelf.lock_entry("fit", f"{shared.learned}-{chosen}"))
                if place.is_dir() and not state.path.exists():
                    staging.write_bytes(state.name, blocks_of(place / FIT_STATE))
            operator, log, data = _with_models(plan, source, initial, staging, chosen, progress, metrics)
            if shared is not None and plan.recipe.fit is not None and not place.is_dir():
                shared.shelf.store(place, {FIT_STATE: state.path})
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
    source: CheckpointReader,
    initial: Operator,
    staging: Staging,
    device: str,
    progress: Progress,
    metrics: dict[str, Any],
) -> tuple[Operator, list[dict[str, Any]], dict[str, Any] | None]:
    """Measure the start, fit where asked, measure again."""
    import torch

    from ligo_convert.checkpoints.torch_io import TORCH_DTYPES
    from ligo_convert.data.examples import head
    from ligo_convert.growth.apply import Grower
    from ligo_convert.training.fit import GrownTarget, fetch_from, fit, named_source, stacked_source
    from ligo_convert.training.functional_model import LibraryModel, mean_loss
    from ligo_convert.training.objectives import objective_of
    from ligo_convert.training.preservation import MeasuredModel, certificate, rounding

    torch.manual_seed(0)  # nothing here draws from torch; a library that did would still do it the same each time
    family, inventory, settings = plan.family, plan.inventory, plan.recipe.fit
    rows = family.rows_for(plan.start.target)
    dtype = TORCH_DTYPES[compute_dtype(inventory)]
    with progress.task("reading the source", len(rows), unit="rows"):
        stacked = stacked_source(source.read, family, inventory, rows, device=device, dtype=dtype)
    slices, data = None, None
    if settings is not None:
        tokenizer = tokenizer_directory(plan, source) if family.reads == "text" else None
        slices = load_splits(plan, tokenizer, progress=progress)
        same_data(staging, slices.digest)
        assert plan.data is not None
        files = {path.name: rehash(path) for path in known_files(tokenizer)} if tokenizer is not None else {}
        data = {"digest": slices.digest, "kind": plan.data.kind, slices.unit: dict(slices.sizes), "tokenizer": files}
        examples = head(slices.test, MEASURED_BLOCKS)
    else:
        examples = _random_examples(plan)
    old = MeasuredModel(
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

    def grown(operator: Operator) -> MeasuredModel:
        grower = Grower(operator, family, device=device, dtype=dtype, fetch=fetch_from(stacked))
        return MeasuredModel(library=library, parameters=GrownTarget(grower, rows, stacked).tensors())

    def loss(model: MeasuredModel) -> float:
        assert slices is not None
        return mean_loss(
            objective, model.parameters, slices.test, batch_size=plan.micro_batch, device=device, dtype=dtype
        )

    def accuracy(model: MeasuredModel) -> float | None:
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


def _random_examples(plan: Plan) -> Examples:
    from ligo_convert.data.examples import ArrayExamples
    from ligo_convert.training.tasks import random_batch

    return ArrayExamples(arrays=random_batch(plan.inventory.family, plan.start.source, count=RANDOM_EXAMPLES))


def warmup_steps(fit: FitConfig) -> int:
    """Steps to the peak rate: the recipe's, else a tenth of the fit, ten at most."""
    return fit.warmup_steps if fit.warmup_steps is not None else min(10, fit.steps // 10)


def _fit_settings(plan: Plan, device: str) -> Any:
    from ligo_convert.training.fit import FitSettings, autocast_pays

    fit = plan.recipe.fit
    assert fit is not None
    return FitSettings(
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
        autocast=autocast_pays(device, fit.precision, width=stream_width(plan, plan.start.target)),
    )
