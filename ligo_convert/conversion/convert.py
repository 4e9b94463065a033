"""The pipeline: recipe -> source -> plan -> operator -> fit -> grow -> write -> verify -> record.

Nothing is in the output directory's place until all of it has been written and verified; until then it lies in the
staging directory beside, and the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ligo_convert.checkpoints.writer import safetensors_pieces
from ligo_convert.conversion.identity import compute_digests, digest_recipe
from ligo_convert.conversion.learn import learn
from ligo_convert.conversion.plan import make_plan, open_planned
from ligo_convert.conversion.pretrain_source import TRAINED_SOURCE, CacheKeys, train_source
from ligo_convert.conversion.resume import finished_statement, reuse_finished
from ligo_convert.conversion.run_record import ConversionResult, finite, run_key, run_record
from ligo_convert.conversion.source_checks import enter_or_none, scan_source
from ligo_convert.conversion.write import Clock, WriteJob, write_job
from ligo_convert.environment import choose_device, peak_rss_bytes
from ligo_convert.errors import OutputBusy, RecipeError
from ligo_convert.growth.operator_file import describe, stored_arrays
from ligo_convert.io.cache import ResultCache
from ligo_convert.io.files import do, write_file
from ligo_convert.io.staging import Staging
from ligo_convert.outputs.side_files import write_record
from ligo_convert.progress import Progress
from ligo_convert.recipes.recipe import Recipe


def convert(
    recipe: Recipe, *, device: str = "auto", progress: Progress | None = None, shelf: ResultCache | None = None
) -> ConversionResult:
    """Carry out a recipe; run again after a stop, it goes on where it stopped.

    Args:
        shelf: what this run has in common with others: digests, trained sources, fits.

    Raises:
        LigoError: of the class that says what went wrong; the output directory is then absent, or as it was.
    """
    progress, clock, out = progress or Progress(), Clock(), Path(recipe.output.dir)
    shelf = None if shelf is None else shelf.with_progress(progress)
    with contextlib.ExitStack() as stack:
        with clock.running("plan"):
            finished = finished_statement(out)
            source = enter_or_none(stack, open_planned(recipe, weights=True))
            plan = make_plan(recipe, source, check_disk=finished is None)
            digests = scan_source(source, plan, progress, memo=shelf) if source is not None else {}
            identity = compute_digests(plan, source, digests, progress)
            key = run_key(identity.whole)
            shared = None
            if shelf is not None:
                shared = CacheKeys(shelf=shelf, trained=run_key(identity.trained), learned=run_key(identity.learned))
        if finished is not None:
            return reuse_finished(out, finished, key, family=plan.family.name, label=plan.label, progress=progress)
        for warning in plan.warnings:
            progress.warn(warning)
        staging = stack.enter_context(Staging.open(out, key=key))
        if staging.resumed:
            progress.say("going on with what an earlier run has staged")
        with clock.running("fit"):
            if source is None:
                source, digests, plan = train_source(stack, plan, staging, device, progress, shared=shared)
            learned = learn(
                plan, source, staging, device=lambda: choose_device(device), progress=progress, shared=shared
            )
        job = WriteJob(
            family=plan.family,
            inventory=plan.inventory,
            operator=learned.operator,
            specs=plan.specs,
            shards=plan.shards,
            allow_nonfinite=recipe.source.allow_nonfinite,
        )
        loads = plan.measures or not plan.start.copies_only
        weights, checks = write_job(job, source, staging, clock, progress, loads=loads)
        metrics = {
            **learned.metrics,
            "verification": checks,
            "seconds": dict(clock.seconds),
            "peak_rss_bytes": peak_rss_bytes(),
        }
        record = run_record(plan, source, digests, identity.whole, learned, metrics, staging, clock)
        write_record(record, record.recipe, learned.log, weights, staging)
        staging.commit()
    return ConversionResult(out=out, family=plan.family.name, label=plan.label, metrics=metrics, changed=True)


def fit_operator(
    recipe: Recipe, file: Path, *, device: str = "auto", progress: Progress | None = None
) -> dict[str, Any]:
    """Learn the operator of a recipe and write it to `file`. Returns the figures.

    A source that the recipe trains itself is kept beside it, in `file` with `.source` after its name; nothing else stays.
    """
    progress = progress or Progress()
    if recipe.fit is None:
        raise RecipeError("there is no `fit` in this recipe, so there is nothing to learn", where=recipe.path.name)
    if os.path.lexists(file):
        raise OutputBusy("the file is there already", where=file, hint="name another, or move this one away")
    kept = file.with_name(f"{file.name}.source")
    if recipe.source.pretrain is not None and os.path.lexists(kept):
        raise OutputBusy("the trained source's place is taken", where=kept, hint="move it away")
    with contextlib.ExitStack() as stack:
        source = enter_or_none(stack, open_planned(recipe, weights=True))
        plan = make_plan(recipe, source, check_disk=False)
        digests = scan_source(source, plan, progress) if source is not None else {}
        # Staged like an output, so that a fit that is stopped goes on; only the operator leaves the staging directory.
        key = run_key(digest_recipe(plan, source, digests, progress))
        staging = stack.enter_context(Staging.open(file.with_name(f"{file.name}.fit"), key=key))
        if source is None:
            source, digests, plan = train_source(stack, plan, staging, device, progress)
        learned = learn(plan, source, staging, device=lambda: choose_device(device), progress=progress)
        source.recheck()
        operator = replace(
            learned.operator,
            notes={**learned.operator.notes, "source": digests, "data": learned.data, "loss": learned.metrics["loss"]},
        )
        write_file(file, safetensors_pieces(stored_arrays(operator), describe(operator)))
        if recipe.source.pretrain is not None:
            do("rename_new", staging.path / TRAINED_SOURCE, kept)
        staging.discard()
    trained = {"source": str(kept)} if recipe.source.pretrain is not None else {}
    return {"operator": str(file), **trained, "family": plan.family.name, **finite(learned.metrics)}
