"""Apply a stored operator to a checkpoint of the sizes that it was fitted for.

Input: an operator file, a source, an output directory.
Output: an output directory like any other; its record names the operator.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.writer import plan_shards, rehash, safetensors_pieces
from ligo_convert.conversion.identity import with_family
from ligo_convert.conversion.library_check import check_target
from ligo_convert.conversion.plan import SIDE_FILE_BYTES, check_apart, shard_bytes
from ligo_convert.conversion.resume import finished_statement, reuse_finished
from ligo_convert.conversion.run_facts import run_facts
from ligo_convert.conversion.run_record import ConversionResult, family_source_json, operator_record, source_record
from ligo_convert.conversion.source_checks import scan_source
from ligo_convert.conversion.write import Clock, WriteJob, now, write_job
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
from ligo_convert.io.files import check_room
from ligo_convert.io.staging import Staging
from ligo_convert.io.strict_json import sha256_of
from ligo_convert.outputs.carried import carried_files, widths_of
from ligo_convert.outputs.layout import OPERATOR
from ligo_convert.outputs.metrics import Completion, Flops, Parameters, RunMetrics
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
) -> ConversionResult:
    """Grow a source with a stored operator. A finished output of the same operator and source stays unchanged.

    Args:
        file: the operator file.
        model: the source: a directory or a Hub id.
        out: the output directory.
        publish: how the output will be published; a source whose licence forbids it is refused before any work.

    Raises:
        LigoError: its class names the cause; the output directory is then absent or unchanged.
    """
    progress, clock = progress or Progress(), Clock()
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
            terms = len(operator.terms)
            carried = carried_files(source, widths_of(family, source.config, operator.target, operator.rewrites, terms))
            job = WriteJob(
                family=family,
                inventory=inventory,
                operator=operator,
                specs=specs,
                shards=plan_shards(specs, shard_bytes(family, 5 * 10**9)),
                allow_nonfinite=False,
                carried=carried,
            )
            if finished is None:
                check_room(out, job.shards.nbytes + SIDE_FILE_BYTES + source.model_files.nbytes)
                check_target(family, operator.target, specs, stored=source.stored_config, label=source.label)
            digests = scan_source(source, inventory, progress, allow_nonfinite=False)
        operator_digest = rehash(file)
        recipe = {"version": 1, "apply": {"operator": operator_digest, "source": digests}}
        key = with_family(sha256_of({"apply": recipe, "versions": versions()}), family.name)
        facts = run_facts({"apply": {"operator": operator_digest}}, digests, family.name)
        if finished is not None:
            return reuse_finished(
                out, finished, key, facts=facts, family=family.name, label=source.label, progress=progress
            )
        for warning in carried.warnings():
            progress.warn(warning)
        staging = stack.enter_context(Staging.open(out, key=key, facts=facts, progress=progress))
        staging.write_bytes(OPERATOR, safetensors_pieces(stored_arrays(operator), describe(operator)))
        weights, checks = write_job(job, source, staging, clock, progress, loads=True)
        metrics = RunMetrics(
            task=family.task,
            parameters=Parameters(
                source=family.parameters(inventory.rows, source.config), target=sum(spec.elements for spec in specs)
            ),
            flops=Flops(target_step=None, fit=0),
            completion=Completion(
                verification=checks,
                files=carried.json(),
                seconds=clock.seconds,
                peak_rss_bytes=peak_rss_bytes(),
            ),
        ).json()
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
        write_record(record, recipe, weights, staging)
        staging.commit()
    return ConversionResult(out=out, family=family.name, label=source.label, metrics=metrics, changed=True)


def _refuse_other_function(operator: Operator, family: Family, source: CheckpointReader) -> None:
    """Require that the source scales attention and indexes layers as the operator's source did: its maps depend on both."""
    made, found = family.complete(operator.source), family.complete(source.config)
    for key in (family.scale_key, *family.layer_index_keys):
        if key and bool(made.get(key)) != bool(found.get(key)):
            raise SourceError(
                f"{source.label} computes a different function than the operator's source",
                where=source.label,
                expected=f"{key} = {made.get(key)}",
                found=f"{key} = {found.get(key)}",
            )


def _fitted_to(operator: Operator, family: Family, source: CheckpointReader, file: Path) -> tuple[Operator, Inventory]:
    """Return the operator for this source, and the source's tensors. Sizes must match; other config keys are carried over."""
    other = find_family(source.config, where=f"{source.label}: config.json", names=source.tensors)
    if other.name != family.name:
        raise SourceError(
            "the operator belongs to another family",
            where=source.label,
            expected=family.name,
            found=other.name,
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
            f"{source.label} lacks tensors that {file.name} grows", where=source.label, expected=", ".join(absent[:4])
        )
    different = {axis: (wanted[axis], found[axis]) for axis in family.class_axes if wanted[axis] != found[axis]}
    if different or family.is_tied(operator.source) != family.is_tied(source.config):
        axes = different or {family.tie_key: (family.is_tied(operator.source), family.is_tied(source.config))}
        raise SourceError(
            f"{source.label} has other sizes than {file.name} was fitted for",
            where=source.label,
            expected=", ".join(f"{axis} {pair[0]}" for axis, pair in axes.items()),
            found=", ".join(f"{axis} {pair[1]}" for axis, pair in axes.items()),
        )
    _refuse_other_function(operator, family, source)
    changes = {key: value for key, value in operator.target.items() if operator.source.get(key) != value}
    key = family.norm.epsilon
    if key and key in changes:
        # The map scales epsilon by the same ratio for any source.
        ratio = epsilon_of(family, operator.target) / epsilon_of(family, operator.source)
        changes[key] = float(f"{epsilon_of(family, source.config) * ratio:.15g}")
    return replace(operator, source=source.config, target={**source.config, **changes}), inventory
