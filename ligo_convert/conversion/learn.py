"""Make the growth operator: initialise it, measure it, and fit it where the recipe says so.

Input: a plan, the source, a staging directory.
Output: the operator, staged with its log and its figures. A finished step is staged, so that a resumed run does not repeat it.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.writer import rehash, safetensors_pieces
from ligo_convert.conversion.fit_plan import FitPlan
from ligo_convert.conversion.plan import Plan
from ligo_convert.conversion.pretrain_source import CacheKeys
from ligo_convert.conversion.splits import load_splits, tokenizer_directory
from ligo_convert.conversion.step_results import begin_step, keep_result, same_data, staged_results
from ligo_convert.data.tokenizers import known_files
from ligo_convert.environment import compute_threads
from ligo_convert.growth.growth_plan import drawn_names
from ligo_convert.growth.initialize import initial_operator, random_operator
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.operator_file import describe, read_operator, stored_arrays
from ligo_convert.growth.stream import compute_dtype
from ligo_convert.io.staging import Staging
from ligo_convert.outputs.layout import FIT_LOG, OPERATOR
from ligo_convert.outputs.metrics import (
    COPIES,
    Accuracies,
    Flops,
    Losses,
    Parameters,
    Preservation,
    PretrainOutcome,
    RunMetrics,
    metrics_from_json,
)
from ligo_convert.progress import Progress
from ligo_convert.training.state import StagedState

if TYPE_CHECKING:
    from ligo_convert.conversion.model_pair import ModelPair
    from ligo_convert.data.examples import DataSplits

FIT_STATE = "fit-state"

MEASURED_BLOCKS = 16


@dataclass(frozen=True, kw_only=True)
class Learned:
    """The operator to apply, and how it was made.

    Attributes:
        operator: the fitted operator; the initial one where nothing was fitted.
        metrics: figures of planning, measuring and fitting.
        log: one line per optimiser step of the fit.
        data: digest, kind, sizes and tokenizer of the training data; None where nothing was fitted.
    """

    operator: Operator
    metrics: RunMetrics
    log: tuple[Mapping[str, Any], ...] = ()
    data: Mapping[str, Any] | None = None


def learn(
    plan: Plan,
    source: CheckpointReader,
    staging: Staging,
    *,
    device: Callable[[], str],
    progress: Progress,
    shared: CacheKeys | None = None,
) -> Learned:
    """Make the operator and stage it with its log.

    Args:
        device: chooses the device; called only where a model is run.
        shared: cache in which another run may have left the same fit.
    """
    learned = _staged(staging)
    if learned is not None:
        return learned
    begin_step(staging, state=StagedState(staging, FIT_STATE).name)
    learned = _initial(plan, staging)
    if plan.measures:
        chosen = device()
        with compute_threads(plan.threads):
            learned = _with_models(plan, source, learned, staging, chosen, progress, shared)
    _stage(learned, plan, staging)
    return learned


def _staged(staging: Staging) -> Learned | None:
    """Return what an interrupted run has staged; None where it did not finish this step."""
    result = staged_results(staging).get("learned")
    if result is None:
        return None
    lines = (staging.read(FIT_LOG) or b"").decode().splitlines()
    return Learned(
        operator=read_operator(staging.path / OPERATOR),
        metrics=metrics_from_json(result["metrics"]),
        log=tuple(_read_line(line) for line in lines),
        data=result["data"],
    )


def _stage(learned: Learned, plan: Plan, staging: Staging) -> None:
    operator = learned.operator
    files = [OPERATOR]
    staging.write_bytes(OPERATOR, safetensors_pieces(stored_arrays(operator), describe(operator)))
    if plan.fit is not None:
        staging.write_bytes(FIT_LOG, "".join(_log_line(line) + "\n" for line in learned.log).encode())
        files.append(FIT_LOG)
    keep_result(staging, "learned", {"metrics": learned.metrics.json(), "data": learned.data}, files=files)
    StagedState(staging, FIT_STATE).drop()


def _initial(plan: Plan, staging: Staging) -> Learned:
    """Return the initial operator, with the figures that the plan knows."""
    wide = compute_dtype(plan.inventory) == "F64"
    operator = initial_operator(plan.start, dtype=np.float64 if wide else np.float32)
    trained = staged_results(staging)["pretrain"] if plan.pretrain is not None else None
    metrics = RunMetrics(
        task=plan.family.task,
        parameters=Parameters(**plan.parameters),
        flops=Flops(**plan.flops),
        preservation=Preservation(
            planned=plan.start.verdict, reasons=list(plan.start.reasons), unmeasured=_why_unmeasured(plan)
        ),
        pretrain=PretrainOutcome(**trained) if trained is not None else None,
    )
    return Learned(operator=replace(operator, notes={"drawn": drawn_names(plan.start)}), metrics=metrics)


def _why_unmeasured(plan: Plan) -> str | None:
    """Return why the run measures no preservation; None where it does."""
    if plan.measures:
        return None
    if plan.start.copies_only:
        return COPIES
    return "this machine has too little memory to run source and target, even one weight at a time"


def _with_models(
    plan: Plan,
    source: CheckpointReader,
    initial: Learned,
    staging: Staging,
    device: str,
    progress: Progress,
    shared: CacheKeys | None,
) -> Learned:
    """Measure the initial operator; fit it and measure again where the recipe has a `fit` section."""

    from ligo_convert.conversion.model_pair import ModelPair

    if plan.fit is not None:
        state = StagedState(staging, FIT_STATE)
        with _shared_fit(state, staging, shared, device):
            with progress.task("reading the source", plan.read_bytes, unit="bytes") as task:
                pair = ModelPair(plan, source, initial.operator, device=device, on_read=task.advance)
            splits, data = _load_data(plan, plan.fit, source, staging, progress)
            fitted = _fit(plan, plan.fit, pair, splits, initial, state, progress)
            return replace(fitted, data=data)
    with progress.task("measuring the initial operator", plan.read_bytes, unit="bytes") as task:
        pair = ModelPair(plan, source, initial.operator, device=device, on_read=task.advance)
        measured = pair.preservation(pair.grow(initial.operator), pair.random_examples())
    return replace(initial, metrics=_with_preservation(initial.metrics, measured))


@contextlib.contextmanager
def _shared_fit(state: StagedState, staging: Staging, shared: CacheKeys | None, device: str) -> Iterator[None]:
    """Take the training state of the same fit from the cache, or leave it there for other runs.

    A finished fit is cached as its last training state: a run that loads it has no step left to do.
    """
    if shared is None:
        yield
        return
    with shared.cache.lock_entry("fit", f"{shared.learned}-{device}") as entry:
        if staging.digest(state.name) is None:
            entry.restore(lambda name, blocks, sha256: staging.write_bytes(state.name, blocks, sha256=sha256))
        yield
        if entry.digests() is None:
            entry.store({FIT_STATE: state.path})


def _load_data(
    plan: Plan, fit: FitPlan, source: CheckpointReader, staging: Staging, progress: Progress
) -> tuple[DataSplits, dict[str, Any]]:
    """Return the data of the fit, and what the record states about it."""
    tokenizer = tokenizer_directory(plan, source) if plan.family.reads == "text" else None
    splits = load_splits(plan, tokenizer, progress=progress)
    same_data(staging, splits.digest)
    assert fit.data is not None, "a plan that is carried out has its data"
    files = {path.name: rehash(path) for path in known_files(tokenizer)} if tokenizer is not None else {}
    record = {"digest": splits.digest, "kind": fit.data.kind, splits.unit: dict(splits.sizes), "tokenizer": files}
    return splits, record


def _fit(
    plan: Plan,
    fit: FitPlan,
    pair: ModelPair,
    splits: DataSplits,
    initial: Learned,
    state: StagedState,
    progress: Progress,
) -> Learned:
    """Measure the initial operator, fit it, and measure the result."""
    from ligo_convert.data.examples import head

    test = splits.test
    with progress.task("measuring the initial operator", 4) as task:
        grown = pair.grow(initial.operator)
        measured = pair.preservation(grown, head(test, MEASURED_BLOCKS))
        task.advance()
        source_loss, source_accuracy = pair.source_loss(test), pair.accuracy(pair.source, test)
        task.advance()
        initial_loss, initial_accuracy = pair.loss(grown, test), pair.accuracy(grown, test)
        task.advance()
        del grown  # one target in memory at a time
        random_loss = pair.loss(pair.grow(random_operator(plan.start)), test)
        task.advance()
    operator, result, outcome = pair.fit(fit, splits, store=state, progress=progress)
    with progress.task("measuring the fitted operator"):
        best = pair.grow(operator)
        fitted_loss, fitted_accuracy = pair.loss(best, test), pair.accuracy(best, test)
    metrics = replace(
        _with_preservation(initial.metrics, measured),
        loss=Losses(source=source_loss, initial=initial_loss, fitted=fitted_loss, random_target=random_loss),
        accuracy=Accuracies(source=source_accuracy, initial=initial_accuracy, fitted=fitted_accuracy),
        fit=outcome,
    )
    return replace(initial, operator=operator, metrics=metrics, log=tuple(result.log))


def _with_preservation(metrics: RunMetrics, measured: Mapping[str, Any]) -> RunMetrics:
    assert metrics.preservation is not None, "a plan has a planned verdict"
    return replace(metrics, preservation=replace(metrics.preservation, **measured))


def _log_line(line: Mapping[str, Any]) -> str:
    """Return a log line as JSON, which has no NaN or infinity: such a figure becomes null."""
    figures = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()
    }
    return json.dumps(figures, allow_nan=False)


def _read_line(text: str) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in json.loads(text).items()}
