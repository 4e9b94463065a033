"""Carry out a recipe: open and check the source, plan, learn the operator, write and verify the weights, record the run.

Input: a recipe.
Output: a verified output directory. Everything is staged in a directory beside it and moved into place at the end; after an
interruption the same command resumes from the staged files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.writer import safetensors_pieces
from ligo_convert.conversion.identity import RunDigests, compute_digests
from ligo_convert.conversion.learn import learn
from ligo_convert.conversion.library_check import check_plan
from ligo_convert.conversion.plan import Plan, make_plan, open_planned, plan_carried
from ligo_convert.conversion.pretrain_source import CacheKeys, train_source
from ligo_convert.conversion.resume import finished_statement, reuse_finished
from ligo_convert.conversion.run_facts import run_facts
from ligo_convert.conversion.run_record import ConversionResult, RunFacts, filled_recipe, finite, run_key, run_record
from ligo_convert.conversion.source_checks import scan_source
from ligo_convert.conversion.write import Clock, WriteJob, now, write_job
from ligo_convert.environment import choose_device, peak_rss_bytes
from ligo_convert.errors import OutputBusy, RecipeError
from ligo_convert.growth.operator_file import describe, stored_arrays
from ligo_convert.io.cache import ResultCache
from ligo_convert.io.files import do, write_file
from ligo_convert.io.staging import Staging
from ligo_convert.outputs.layout import TRAINED_SOURCE
from ligo_convert.outputs.metrics import Completion
from ligo_convert.outputs.optimizer_state import TrainingFiles, find_training_files, write_training_files
from ligo_convert.outputs.side_files import write_fit_plot, write_record
from ligo_convert.progress import Progress
from ligo_convert.recipes.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A planned recipe and its source.

    Attributes:
        source: the open source; None where the recipe trains it.
        digests: SHA-256 of the source's files, by name.
        identity: digests by which the run is recognised.
        training: the state of a training beside the source, where the recipe takes it along.
    """

    plan: Plan
    source: CheckpointReader | None
    digests: Mapping[str, str]
    identity: RunDigests
    training: TrainingFiles | None = None

    @property
    def key(self) -> str:
        return run_key(self.identity.whole)

    @property
    def facts(self) -> dict[str, str]:
        """What tells this run from another, for messages."""
        return run_facts(filled_recipe(self.plan), self.digests, self.plan.family.name, others=self.identity.parts)


def convert(
    recipe: Recipe, *, device: str = "auto", progress: Progress | None = None, cache: ResultCache | None = None
) -> ConversionResult:
    """Carry out a recipe. After an interruption, the same call resumes where the run stopped.

    Args:
        cache: cache of trained sources and fits, shared with other runs.

    Raises:
        LigoError: its class names the cause; the output directory is then absent or unchanged.
    """
    progress, clock, out = progress or Progress(), Clock(), Path(recipe.output.dir)
    cache = None if cache is None else cache.with_progress(progress)
    with contextlib.ExitStack() as stack:
        with clock.running("plan"):
            finished = finished_statement(out)
            opened = _open(stack, recipe, progress, check_disk=finished is None, fresh=finished is None)
        plan, key = opened.plan, opened.key
        if finished is not None:
            return reuse_finished(
                out,
                finished,
                key,
                facts=opened.facts,
                family=plan.family.name,
                label=plan.label,
                progress=progress,
            )
        for warning in plan.warnings:
            progress.warn(warning)
        staging = stack.enter_context(Staging.open(out, key=key, facts=opened.facts, progress=progress))
        if staging.resumed:
            progress.say("resuming from the staged files of an earlier run")
        shared = None if cache is None else _cache_keys(cache, opened.identity)
        source, digests = opened.source, opened.digests
        if source is None:
            with clock.running("pretrain"):
                source, digests, plan = train_source(stack, plan, staging, device, progress, shared=shared)
        with clock.running("fit"):
            learned = learn(
                plan, source, staging, device=lambda: choose_device(device), progress=progress, shared=shared
            )
        carried = plan_carried(plan.start, source)
        job = WriteJob(
            family=plan.family,
            inventory=plan.inventory,
            operator=learned.operator,
            specs=plan.specs,
            shards=plan.shards,
            allow_nonfinite=recipe.source.allow_nonfinite,
            carried=carried,
        )
        # Where source and target do not fit in memory, the plan counts on the result being loaded one weight at a time, too.
        streams = plan.measuring != "in memory"
        weights, checks = write_job(job, source, staging, clock, progress, loads=plan.uses_library, streams=streams)
        trained: tuple[str, ...] = ()
        if opened.training is not None:
            with clock.running("write"):
                trained = write_training_files(
                    opened.training,
                    plan.family,
                    plan.inventory,
                    learned.operator,
                    staging,
                    progress,
                    policy=str(recipe.growth.state),
                )
        facts = RunFacts(digests=digests, recipe_digest=opened.identity.whole, key=key, started=clock.started)
        with clock.running("write"):
            record = run_record(plan, source, learned, facts, staging, training=opened.training)
            write_fit_plot(record, learned.log, staging)
        completion = Completion(
            verification=checks,
            files=carried.json(training=trained),
            seconds=clock.seconds,
            peak_rss_bytes=peak_rss_bytes(),
        )
        metrics = replace(learned.metrics, completion=completion)
        record = replace(record, metrics=metrics.json(), finished=now())
        write_record(record, record.recipe, weights, staging)
        staging.commit()
    return ConversionResult(out=out, family=plan.family.name, label=plan.label, metrics=metrics.json(), changed=True)


def fit_operator(
    recipe: Recipe, file: Path, *, device: str = "auto", progress: Progress | None = None
) -> dict[str, Any]:
    """Fit the operator of a recipe, write it to `file`, and return the figures.

    A source that the recipe trains is kept beside the file, as `file` with the suffix `.source`. Nothing else remains.

    Raises:
        RecipeError: the recipe has no `fit` section.
        OutputBusy: `file`, or the trained source's directory, exists.
    """
    progress = progress or Progress()
    if recipe.fit is None:
        raise RecipeError("this recipe has no `fit` section: there is no operator to fit", where=recipe.path.name)
    if os.path.lexists(file):
        raise OutputBusy("this file exists", where=file, hint="choose another name, or move the file")
    kept = file.with_name(f"{file.name}.source")
    trains = recipe.source.pretrain is not None
    if trains and os.path.lexists(kept):
        raise OutputBusy("the directory for the trained source exists", where=kept, hint="move or delete it")
    with contextlib.ExitStack() as stack:
        opened = _open(stack, recipe, progress, check_disk=False, fresh=True)
        plan, source, digests = opened.plan, opened.source, opened.digests
        # Staged like an output, so that an interrupted fit resumes. Only the operator leaves the staging directory.
        staging = stack.enter_context(
            Staging.open(file.with_name(f"{file.name}.fit"), key=opened.key, facts=opened.facts, progress=progress)
        )
        if source is None:
            source, digests, plan = train_source(stack, plan, staging, device, progress)
        learned = learn(plan, source, staging, device=lambda: choose_device(device), progress=progress)
        source.recheck()
        figures = learned.metrics.json()
        operator = replace(
            learned.operator,
            notes={**learned.operator.notes, "source": digests, "data": learned.data, "loss": finite(figures["loss"])},
        )
        write_file(file, safetensors_pieces(stored_arrays(operator), describe(operator)))
        if trains:
            do("rename_new", staging.path / TRAINED_SOURCE, kept)
        staging.discard()
    trained = {"source": str(kept)} if trains else {}
    return {"operator": str(file), **trained, "family": plan.family.name, **finite(figures)}


def _open(
    stack: contextlib.ExitStack,
    recipe: Recipe,
    progress: Progress,
    *,
    check_disk: bool,
    fresh: bool,
) -> _Opened:
    """Open the recipe's source until `stack` closes, plan the run, and check and digest the source.

    Args:
        check_disk: see `make_plan`.
        fresh: whether there is work to do, so that the library has to accept the configs.
    """
    source = open_planned(recipe, weights=True)
    if source is not None:
        stack.enter_context(source)
    plan = make_plan(recipe, source, check_disk=check_disk)
    if fresh and plan.uses_library:
        check_plan(plan, source)
    digests: dict[str, str] = {}
    if source is not None:
        allow = recipe.source.allow_nonfinite
        digests = scan_source(source, plan.inventory, progress, allow_nonfinite=allow)
    training = None
    if recipe.growth.state is not None and source is not None:
        training = find_training_files(source.root, source.label)
    sums = None if training is None else training.sha256
    identity = compute_digests(plan, source, digests, progress, training=sums)
    return _Opened(plan=plan, source=source, digests=digests, identity=identity, training=training)


def _cache_keys(cache: ResultCache, identity: RunDigests) -> CacheKeys:
    """Return the keys of this run in the shared cache. A key covers the versions of the libraries, too."""
    return CacheKeys(cache=cache, trained=run_key(identity.trained), learned=run_key(identity.learned))
