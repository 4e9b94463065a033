"""A stored operator, applied to any checkpoint of the shape it was made for.

What comes in: an operator's file, a source, a place. What goes out: an output directory like any other, its record naming the operator.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.writer import plan_shards, rehash, safetensors_pieces
from ligo_convert.conversion.identity import with_family
from ligo_convert.conversion.plan import check_apart, shard_bytes
from ligo_convert.conversion.resume import finished_statement, reuse_finished
from ligo_convert.conversion.run_record import ConversionResult, family_source_json, operator_record, source_record
from ligo_convert.conversion.source_checks import check_copies, check_finite
from ligo_convert.conversion.write import Clock, WriteJob, digest_source, now, write_job
from ligo_convert.environment import peak_rss_bytes, versions
from ligo_convert.errors import SourceError
from ligo_convert.families.inventory import Inventory, claim_tensors
from ligo_convert.families.registry import find_family
from ligo_convert.families.schema import Family
from ligo_convert.growth.growth_plan import epsilon_of
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.operator_file import describe, family_of, read_operator, stored_arrays
from ligo_convert.growth.stream import target_specs
from ligo_convert.hub.licenses import license_to_publish
from ligo_convert.hub.resolve import open_source
from ligo_convert.io.cache import ResultCache
from ligo_convert.io.files import check_room
from ligo_convert.io.staging import Staging
from ligo_convert.io.strict_json import sha256_of
from ligo_convert.outputs.layout import OPERATOR
from ligo_convert.outputs.provenance import Record
from ligo_convert.outputs.side_files import write_record
from ligo_convert.progress import Progress
from ligo_convert.recipes.schema import PublishConfig


def apply_operator(
    file: Path,
    model: str,
    out: Path,
    *,
    publish: PublishConfig | None = None,
    progress: Progress | None = None,
    shelf: ResultCache | None = None,
) -> ConversionResult:
    """Stream a source of the operator's shape through it; over a finished output of the same, nothing changes.

    Args:
        file: of the operator. model: a directory or Hub id. out: the output directory.
        publish: how it is to be published afterwards: what that would refuse of the source is refused here, before any work.
        shelf: digests that other runs have taken.
    """
    progress, clock = progress or Progress(), Clock()
    shelf = None if shelf is None else shelf.with_progress(progress)
    with clock.running("plan"):
        operator = read_operator(file)
        family = family_of(operator)
        finished = finished_statement(out)
    with contextlib.ExitStack() as stack:
        with clock.running("plan"):
            source = stack.enter_context(open_source(model, base=Path.cwd()))
            check_apart(out, source, where=str(out))
            if publish is not None:
                license_to_publish(stated=publish.license, inherited=source.license, where=source.label)
            operator, inventory = _fitted_to(operator, family, source, file)
            specs = target_specs(family, inventory, operator.target, dtype=None)
            job = WriteJob(
                family=family,
                inventory=inventory,
                operator=operator,
                specs=specs,
                shards=plan_shards(specs, shard_bytes(family, 5 * 10**9)),
                allow_nonfinite=False,
            )
            if finished is None:
                check_room(out, job.shards.nbytes)
            digests = digest_source(source, progress, memo=shelf)
        check_finite(source, allow=False, progress=progress)
        check_copies(source, inventory)
        operator_digest = rehash(file)
        recipe = {"version": 1, "apply": {"operator": operator_digest, "source": digests}}
        key = with_family(sha256_of({"apply": recipe, "versions": versions()}), family.name)
        if finished is not None:
            return reuse_finished(out, finished, key, family=family.name, label=source.label, progress=progress)
        staging = stack.enter_context(Staging.open(out, key=key))
        staging.write_bytes(OPERATOR, safetensors_pieces(stored_arrays(operator), describe(operator)))
        weights, checks = write_job(job, source, staging, clock, progress, loads=True)
        old = family.parameters(inventory.rows, source.config)
        metrics = {
            "task": family.task,
            "parameters": {"source": old, "target": sum(spec.elements for spec in specs)},
            "loss": dict.fromkeys(("source", "initial", "fitted", "random_target")),
            "accuracy": dict.fromkeys(("source", "initial", "fitted")),
            "flops": {"fit": 0, "target_step": None},
            "preservation": dict.fromkeys(("verdict", "max_logit_difference", "loss_difference")),
            "fit": None,
            "verification": checks,
            "seconds": dict(clock.seconds),
            "peak_rss_bytes": peak_rss_bytes(),
        }
        record = Record(
            family=family.name,
            family_source=family_source_json(family.name),
            recipe=recipe,
            recipe_digest=with_family(sha256_of(recipe), family.name),
            key=key,
            source=source_record(source, digests, pretrained=False),
            data=None,
            operator=operator_record(operator, staging, []),
            source_config=source.config,
            target_config=operator.target,
            metrics=metrics,
            versions=versions(),
            drawn=list(operator.notes.get("drawn", [])),  # type: ignore[call-overload]
            nonfinite_allowed=False,
            started=clock.started,
            finished=now(),
        )
        write_record(record, recipe, (), weights, staging)
        staging.commit()
    return ConversionResult(out=out, family=family.name, label=source.label, metrics=metrics, changed=True)


def _refuse_other_function(operator: Operator, family: Family, source: CheckpointReader) -> None:
    """The maps hold the scale of dot products, and where layers go: a sibling that has another meaning for those is none."""
    made, found = family.complete(operator.source), family.complete(source.config)
    for key in (family.scale_key, *family.layer_index_keys):
        if key and bool(made.get(key)) != bool(found.get(key)):
            raise SourceError(
                f"{source.label} computes otherwise than the operator was made for",
                where=source.label,
                expected=f"{key} = {made.get(key)}",
                found=f"{key} = {found.get(key)}",
            )


def _fitted_to(operator: Operator, family: Family, source: CheckpointReader, file: Path) -> tuple[Operator, Inventory]:
    """The operator for this source: its sizes must be the ones learned from; what else its config says is carried over."""
    if find_family(source.config, where=f"{source.label}: config.json").name != family.name:
        raise SourceError(
            "the operator is of another family",
            where=source.label,
            expected=family.name,
            found=source.config.get("model_type"),
        )
    inventory = claim_tensors(
        family, source.config, {name: tensor.spec for name, tensor in source.tensors.items()}, label=source.label
    )
    wanted, found = family.sizes(operator.source), family.sizes(source.config)
    absent = [
        row.pattern
        for row in family.rows_for(operator.target)
        if row.layout.part not in ("", *inventory.family.chosen.parts) and row.pattern not in operator.drawn_rows
    ]
    if absent:
        raise SourceError(
            f"{source.label} lacks what {file.name} grows", where=source.label, expected=", ".join(absent[:4])
        )
    different = {axis: (wanted[axis], found[axis]) for axis in family.axes if wanted[axis] != found[axis]}
    if different or family.is_tied(operator.source) != family.is_tied(source.config):
        axes = different or {family.tie_key: (family.is_tied(operator.source), family.is_tied(source.config))}
        raise SourceError(
            f"{source.label} has not the shape that {file.name} was made for",
            where=source.label,
            expected=", ".join(f"{axis} {pair[0]}" for axis, pair in axes.items()),
            found=", ".join(f"{axis} {pair[1]}" for axis, pair in axes.items()),
        )
    _refuse_other_function(operator, family, source)
    changes = {key: value for key, value in operator.target.items() if operator.source.get(key) != value}
    key = family.norm.epsilon
    if key and key in changes:
        # The map scales epsilon, whatever the sibling's is.
        ratio = epsilon_of(family, operator.target) / epsilon_of(family, operator.source)
        changes[key] = float(f"{epsilon_of(family, source.config) * ratio:.15g}")
    return replace(operator, source=source.config, target={**source.config, **changes}), inventory
