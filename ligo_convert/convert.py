"""The pipeline: recipe -> source -> plan -> operator -> fit -> grow -> write -> verify -> record.

Nothing is in the output directory's place until all of it has been written and verified; until then it lies in the
staging directory beside, and the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ligo_convert.data import content_digest
from ligo_convert.environment import choose_device, peak_rss_bytes, versions
from ligo_convert.errors import OutputBusy, RecipeError, SourceError, VerificationError
from ligo_convert.families import FAMILIES
from ligo_convert.family import Family, Inventory
from ligo_convert.fs import check_place, check_room, write_file
from ligo_convert.learning import OPERATOR, Learned, learn, tokenizer_directory, trained_source
from ligo_convert.operator import Operator, describe, stored_arrays
from ligo_convert.output import PROVENANCE, write_model_files, write_record
from ligo_convert.plan import Plan, check_apart, find_family, make_plan, open_planned
from ligo_convert.progress import Progress
from ligo_convert.provenance import Record, metrics_of, read_statement
from ligo_convert.recipe import Recipe
from ligo_convert.source import Source, open_source, read_config
from ligo_convert.staging import Staging, clear_leftovers
from ligo_convert.start import Start
from ligo_convert.stored import read_operator
from ligo_convert.stream import grow, target_specs
from ligo_convert.tensors import TensorSpec
from ligo_convert.values import nonfinite_count
from ligo_convert.verify import check_copies, check_digests, check_finite, check_loads, check_weights, verify
from ligo_convert.writer import ShardPlan, Writer, plan_shards, rehash, safetensors_pieces


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run ends with; `metrics` as `run --json` prints them, `changed` False where the output was there already, whole."""

    out: Path
    family: str
    label: str
    metrics: Mapping[str, Any]
    changed: bool

    def json(self) -> dict[str, Any]:
        """As `run --json` prints it. A figure that is NaN or infinite is null: JSON has no word for it."""
        return {"out": str(self.out), "family": self.family, "changed": self.changed, **_finite(self.metrics)}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is written from what: the part of a run that needs no recipe."""

    family: Family
    inventory: Inventory
    operator: Operator
    specs: tuple[TensorSpec, ...]
    shards: ShardPlan
    allow_nonfinite: bool


@dataclass(kw_only=True)
class _Clock:
    """Seconds by stage, and when it began."""

    started: str = field(default_factory=lambda: _now())
    seconds: dict[str, float] = field(default_factory=lambda: {"plan": 0.0, "fit": 0.0, "write": 0.0, "verify": 0.0})

    @contextlib.contextmanager
    def running(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = round(self.seconds[stage] + time.monotonic() - began, 3)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def convert(recipe: Recipe, *, device: str = "auto", progress: Progress | None = None) -> Outcome:
    """Carry out a recipe; run again after a stop, it goes on where it stopped.

    Raises:
        LigoError: of the class that says what went wrong; the output directory is then absent, or as it was.
    """
    progress, clock, out = progress or Progress(), _Clock(), Path(recipe.output.dir)
    with contextlib.ExitStack() as stack:
        with clock.running("plan"):
            finished = _finished_statement(out)
            source = _enter(stack, open_planned(recipe, weights=True))
            plan = make_plan(recipe, source, check_disk=finished is None)
            digests = _examine(source, plan, progress) if source is not None else {}
            recipe_digest = digest_recipe(plan, source, digests, progress)
            key = run_key(recipe_digest)
        if finished is not None:
            return _unchanged(out, finished, key, plan, progress)
        for warning in plan.warnings:
            progress.warn(warning)
        staging = stack.enter_context(Staging.open(out, key=key))
        if staging.resumed:
            progress.say("going on with what an earlier run has staged")
        with clock.running("fit"):
            if source is None:
                trained = trained_source(plan, staging, device=choose_device(device), progress=progress)
                source = stack.enter_context(trained)
                digests = source.digest()
                plan = make_plan(recipe, source, check_disk=False)
            learned = learn(plan, source, staging, device=lambda: choose_device(device), progress=progress)
        job = Job(
            family=plan.family,
            inventory=plan.inventory,
            operator=learned.operator,
            specs=plan.specs,
            shards=plan.shards,
            allow_nonfinite=recipe.source.allow_nonfinite,
        )
        loads = plan.measures or not plan.start.copies_only
        weights, checks = _write(job, source, staging, clock, progress, loads=loads)
        metrics = {
            **learned.metrics,
            "verification": checks,
            "seconds": dict(clock.seconds),
            "peak_rss_bytes": peak_rss_bytes(),
        }
        record = _record(plan, source, digests, recipe_digest, learned, metrics, staging, clock)
        write_record(record, recipe.public(), learned.log, weights, staging)
        staging.commit()
    return Outcome(out=out, family=plan.family.name, label=plan.label, metrics=metrics, changed=True)


def fit_operator(
    recipe: Recipe, file: Path, *, device: str = "auto", progress: Progress | None = None
) -> dict[str, Any]:
    """Learn the operator of a recipe and write it to `file`; nothing else stays. Returns the figures."""
    progress = progress or Progress()
    if recipe.fit is None:
        raise RecipeError("there is no `fit` in this recipe, so there is nothing to learn", where=recipe.path.name)
    if os.path.lexists(file):
        raise OutputBusy("the file is there already", where=file, hint="name another, or move this one away")
    with contextlib.ExitStack() as stack:
        source = _enter(stack, open_planned(recipe, weights=True))
        plan = make_plan(recipe, source, check_disk=False)
        digests = _examine(source, plan, progress) if source is not None else {}
        # Staged like an output, so that a fit that is stopped goes on; only the operator leaves the staging directory.
        key = run_key(digest_recipe(plan, source, digests, progress))
        staging = stack.enter_context(Staging.open(file.with_name(f"{file.name}.fit"), key=key))
        if source is None:
            trained = trained_source(plan, staging, device=choose_device(device), progress=progress)
            source = stack.enter_context(trained)
            digests = source.digest()
            plan = make_plan(recipe, source, check_disk=False)
        learned = learn(plan, source, staging, device=lambda: choose_device(device), progress=progress)
        source.recheck()
        operator = replace(
            learned.operator, notes={"source": digests, "data": learned.data, "loss": learned.metrics["loss"]}
        )
        write_file(file, safetensors_pieces(stored_arrays(operator), describe(operator)))
        staging.discard()
    return {"operator": str(file), "family": plan.family.name, **_finite(learned.metrics)}


def apply_operator(file: Path, model: str, out: Path, *, progress: Progress | None = None) -> Outcome:
    """Stream a source of the operator's shape through it.

    Args:
        file: of the operator. model: a directory or Hub id. out: the output directory.
    """
    progress, clock = progress or Progress(), _Clock()
    with clock.running("plan"):
        operator = read_operator(file)
        family = FAMILIES[operator.family]
        check_place(out)
    with contextlib.ExitStack() as stack:
        with clock.running("plan"):
            source = stack.enter_context(open_source(model, base=Path.cwd()))
            check_apart(out, source, where=str(out))
            operator, inventory = _fitted_to(operator, family, source, file)
            specs = target_specs(family, inventory, operator.target, dtype=None)
            job = Job(
                family=family,
                inventory=inventory,
                operator=operator,
                specs=specs,
                shards=plan_shards(specs, 5 * 10**9),
                allow_nonfinite=False,
            )
            check_room(out, job.shards.nbytes)
            digests = _digest(source, progress)
        check_finite(source, allow=False, progress=progress)
        check_copies(source, inventory)
        operator_digest = rehash(file)
        recipe = {"version": 1, "apply": {"operator": operator_digest, "source": digests}}
        key = _sha256({"apply": recipe, "versions": versions()})
        staging = stack.enter_context(Staging.open(out, key=key))
        staging.write_bytes(OPERATOR, safetensors_pieces(stored_arrays(operator), describe(operator)))
        weights, checks = _write(job, source, staging, clock, progress, loads=True)
        old = family.parameters(inventory.rows, source.config)
        metrics = {
            "parameters": {"source": old, "target": sum(spec.elements for spec in specs)},
            "loss": dict.fromkeys(("source", "initial", "fitted", "random_target")),
            "flops": {"fit": 0, "target_step": None},
            "preservation": dict.fromkeys(("verdict", "max_logit_difference", "loss_difference")),
            "fit": None,
            "verification": checks,
            "seconds": dict(clock.seconds),
            "peak_rss_bytes": peak_rss_bytes(),
        }
        record = Record(
            family=family.name,
            recipe=recipe,
            recipe_digest=_sha256(recipe),
            key=key,
            source=_source_record(source, digests, pretrained=False),
            data=None,
            operator=_operator_record(operator, staging, []),
            source_config=source.config,
            target_config=operator.target,
            metrics=metrics,
            versions=versions(),
            drawn=[],
            nonfinite_allowed=False,
            started=clock.started,
            finished=_now(),
        )
        write_record(record, recipe, (), weights, staging)
        staging.commit()
    return Outcome(out=out, family=family.name, label=source.label, metrics=metrics, changed=True)


# Steps.


def _enter(stack: contextlib.ExitStack, source: Source | None) -> Source | None:
    return stack.enter_context(source) if source is not None else None


def _digest(source: Source, progress: Progress) -> dict[str, str]:
    total = sum(file.size for file in source.files)
    with progress.task("digesting the source", total, unit="bytes") as task:
        return source.digest(task.advance)


def _examine(source: Source, plan: Plan, progress: Progress) -> dict[str, str]:
    """Digest the source and look at its values, side by side: both read everything, and neither needs the other."""
    with ThreadPoolExecutor(max_workers=1) as beside:
        digests = beside.submit(source.digest)
        check_copies(source, plan.inventory)
        check_finite(source, allow=plan.recipe.source.allow_nonfinite, progress=progress)
        return digests.result()


def digest_recipe(plan: Plan, source: Source | None, digests: Mapping[str, str], progress: Progress) -> str:
    """The recipe's digest, with those of the contents that it names: source, data and tokenizer, target."""
    recipe, data, target = plan.recipe, None, None
    if plan.data is not None:
        assert recipe.fit is not None
        # The source's own tokenizer is among the source's files.
        tokenizer = tokenizer_directory(plan, source) if recipe.fit.data.tokenizer is not None else None
        with progress.task("digesting the data"):
            data = content_digest(plan.data, tokenizer=tokenizer)
    if recipe.target.model is not None:
        target = read_config(recipe.target.model, revision=recipe.target.revision, base=recipe.base)
    return recipe.digest(source=digests, data=data, target=target)


def run_key(recipe_digest: str) -> str:
    """What makes two runs the same: the recipe, the contents it names, the versions."""
    return _sha256({"recipe": recipe_digest, "versions": versions()})


def _sha256(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":"), default=dict).encode()).hexdigest()


def _write(
    job: Job, source: Source, staging: Staging, clock: _Clock, progress: Progress, *, loads: bool
) -> tuple[dict[str, str], dict[str, Any]]:
    """Stream the target into the staging directory and verify it there: digests, table, finite values, the real library."""
    with clock.running("write"), progress.task("writing", job.shards.nbytes, unit="bytes") as task:
        with Writer(staging, job.shards, on_bytes=task.advance) as writer:
            wanted = frozenset(spec.name for spec in writer.pending())
            specs = {spec.name: spec for spec in job.specs}
            for name, data in grow(source.read, job.family, job.inventory, job.operator, job.specs, wanted=wanted):
                bad = 0 if job.allow_nonfinite else nonfinite_count(data, specs[name].dtype)
                if bad:
                    raise SourceError(
                        f"{bad} of {specs[name].elements} grown values are NaN or infinite",
                        where=name,
                        hint="a wider output.dtype may hold them; source.allow_nonfinite: true writes them all the same",
                    )
                writer.put(name, data)
            weights = writer.close()
        write_model_files(job.family, job.operator.target, job.specs, source, staging)
        source.recheck()
    with clock.running("verify"):
        check_digests(staging.path, weights)
        checks: dict[str, Any] = {
            "digests": len(weights),
            # Values were looked at as they were written, and the digests say that these are the same bytes; where non-finite ones are
            # allowed they are counted here.
            **check_weights(
                staging.path,
                specs,
                allow_nonfinite=job.allow_nonfinite,
                progress=progress,
                values=job.allow_nonfinite,
            ),
            "loaded": None,
        }
        if loads:
            with progress.task("loading in transformers"):
                checks["loaded"] = check_loads(staging.path, job.family)
    return weights, checks


def _fitted_to(operator: Operator, family: Family, source: Source, file: Path) -> tuple[Operator, Inventory]:
    """The operator for this source: its sizes must be the ones learned from; what else its config says is carried over."""
    if find_family(source.config, where=f"{source.label}: config.json") is not family:
        raise SourceError(
            "the operator is of another family",
            where=source.label,
            expected=family.name,
            found=source.config.get("model_type"),
        )
    inventory = family.check(
        source.config, {name: tensor.spec for name, tensor in source.tensors.items()}, label=source.label
    )
    wanted, found = family.sizes(operator.source), family.sizes(source.config)
    different = {axis: (wanted[axis], found[axis]) for axis in family.axes if wanted[axis] != found[axis]}
    if different or family.is_tied(operator.source) != family.is_tied(source.config):
        axes = different or {family.tie_key: (family.is_tied(operator.source), family.is_tied(source.config))}
        raise SourceError(
            f"{source.label} has not the shape that {file.name} was made for",
            where=source.label,
            expected=", ".join(f"{axis} {pair[0]}" for axis, pair in axes.items()),
            found=", ".join(f"{axis} {pair[1]}" for axis, pair in axes.items()),
        )
    changes = {key: value for key, value in operator.target.items() if operator.source.get(key) != value}
    return replace(operator, source=source.config, target={**source.config, **changes}), inventory


# Finished outputs.


def _finished_statement(out: Path) -> dict[str, Any] | None:
    """The provenance of what lies in the output's place; None where nothing does. Raises OutputBusy where it is not ours."""
    try:
        return read_statement((out / PROVENANCE).read_bytes(), label=str(out / PROVENANCE))
    except (FileNotFoundError, NotADirectoryError):
        check_place(out)
        return None
    except (SourceError, VerificationError):
        raise OutputBusy("the output directory holds something else", where=out, hint="choose another") from None


def _unchanged(out: Path, statement: Mapping[str, Any], key: str, plan: Plan, progress: Progress) -> Outcome:
    """A finished output of the same run: verified, and left as it is. Raises OutputBusy where it is of another one."""
    clear_leftovers(out)
    found = statement["predicate"]["buildDefinition"]["internalParameters"]["key"]
    if found != key:
        raise OutputBusy(
            "the output directory holds the result of another recipe, source or version",
            where=out,
            hint="choose another output directory, or move this one away; nothing is ever overwritten",
        )
    verify(out, progress=progress)
    progress.say(f"{out} is finished and whole; nothing to do")
    metrics = metrics_of(statement)
    return Outcome(out=out, family=plan.family.name, label=plan.label, metrics=metrics, changed=False)


# The record.


def start_names(start: Start) -> list[str]:
    """The starts by name and parameters, enough to do them again: `lemon(embed:768->1024)`."""
    old, new = start.family.sizes(start.source), start.family.sizes(start.target)
    names = [
        f"{start.growth.width}({axis}:{old[axis]}->{new[axis]})" for axis in start.requests if old[axis] != new[axis]
    ]
    return names + [
        f"{start.growth.depth}({axis}:{old[axis]}->{new[axis]})" for axis in start.depths if old[axis] != new[axis]
    ]


def _source_record(source: Source, digests: Mapping[str, str], *, pretrained: bool) -> dict[str, Any]:
    return {
        "label": "a source trained by this recipe" if pretrained else source.label,
        "revision": source.revision,
        "files": dict(digests),
        "pretrained_here": pretrained,
        "license": source.license,
    }


def _operator_record(operator: Operator, staging: Staging, starts: list[str]) -> dict[str, Any]:
    count = {"width": 0, "depth": 0}
    for name, array in operator.arrays():
        if name.endswith((".tail", ".weight")):
            count["width"] += int(array.size)
        elif "/depth/" in name and "{" in name:
            count["depth"] += int(array.size)
    return {
        "digest": rehash(staging.path / OPERATOR),
        "keying": operator.keying,
        "tie": operator.tie,
        "parameters": count,
        "starts": starts,
    }


def _record(
    plan: Plan,
    source: Source,
    digests: Mapping[str, str],
    recipe_digest: str,
    learned: Learned,
    metrics: Mapping[str, Any],
    staging: Staging,
    clock: _Clock,
) -> Record:
    recipe = plan.recipe
    pretrained = recipe.source.pretrain is not None
    return Record(
        family=plan.family.name,
        recipe=recipe.public(),
        recipe_digest=recipe_digest,
        key=run_key(recipe_digest),
        source=_source_record(source, digests, pretrained=pretrained),
        data=learned.data,
        operator=_operator_record(learned.operator, staging, start_names(plan.start)),
        source_config=plan.start.source,
        target_config=plan.start.target,
        metrics=metrics,
        versions=versions(),
        drawn=_drawn(plan.start),
        nonfinite_allowed=recipe.source.allow_nonfinite,
        started=clock.started,
        finished=_now(),
    )


def _drawn(start: Start) -> list[str]:
    """What was drawn as the library initialises it, by axis."""
    drawn = [axis for axis, request in start.requests.items() if request.old != request.new]
    names = [f"{axis} (new entries)" for axis in drawn if start.growth.width == "direct"]
    names += [f"{axis} (whole)" for axis in drawn if start.growth.width == "random"]
    return names + [f"{axis} (whole)" for axis, found in start.depths.items() if any(found.drawn)]
