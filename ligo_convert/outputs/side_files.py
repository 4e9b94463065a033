"""Write the files of an output directory besides the weights: config, tokenizer, new parameters, recipe, card, provenance, digests.

Input: the record of a run, the source and the operator. Output: files in the staging directory.

No file contains a local path or a user's name. Only the log, its plot, the card and the provenance contain times.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ligo_convert.checkpoints.files import CARD
from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.tensors import DTYPE_NAMES, TensorSpec
from ligo_convert.checkpoints.writer import rehash
from ligo_convert.families.configs import written_config
from ligo_convert.families.schema import Family
from ligo_convert.growth.new_parameters import new_parameters
from ligo_convert.growth.operator import Operator
from ligo_convert.io.staging import Staging
from ligo_convert.io.strict_json import json_bytes
from ligo_convert.io.yaml_writer import dump_yaml
from ligo_convert.outputs.card import LOSSES, card
from ligo_convert.outputs.card_trained import trained_card
from ligo_convert.outputs.carried import CarriedFiles, contents
from ligo_convert.outputs.checksums import sums
from ligo_convert.outputs.fit_plot import fit_picture
from ligo_convert.outputs.layout import CHECKSUMS, FIT_PLOT, NEW_PARAMETERS, PROVENANCE, RECIPE
from ligo_convert.outputs.privacy import check_nothing_private
from ligo_convert.outputs.provenance import Record, statement_bytes
from ligo_convert.outputs.verify import check_digests
from ligo_convert.units import amount

# Config keys that the library writes for its own use. They may contain a path of another machine.
_DROPPED_KEYS = (
    "_name_or_path",
    "name_or_path",
    "torch_dtype",
    "transformers_version",
    "transformers_weights",
    "quantization_config",
    # Names and numbers of layers, which the library works out anew.
    "stage_names",
    "out_features",
    "out_indices",
)


def target_config(
    family: Family, target: Mapping[str, object], specs: tuple[TensorSpec, ...], *, stored: Mapping[str, object]
) -> dict[str, object]:
    """Return the target's config.json, from which the library builds the right class with the stored dtype.

    Args:
        family: the model family.
        target: the target's flattened config.
        specs: the tensors of the target; the dtype with the most bytes becomes the config's `dtype`.
        stored: the source's config.json as it is on disk.
    """
    if family.library == "timm":
        return written_config(family, target, stored)
    kept = {key: value for key, value in target.items() if key not in _DROPPED_KEYS}
    sizes: dict[str, int] = {}
    for spec in specs:
        sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.nbytes
    most = max(sizes, key=lambda name: sizes[name])
    dtype = next(name for name, short in DTYPE_NAMES.items() if short == most)
    return {**kept, "model_type": family.model_type, "architectures": [family.architecture], "dtype": dtype}


def write_model_files(
    family: Family,
    target: Mapping[str, object],
    specs: tuple[TensorSpec, ...],
    source: CheckpointReader,
    staging: Staging,
) -> None:
    """Write config.json."""
    config = target_config(family, target, specs, stored=source.stored_config)
    staging.write_bytes("config.json", json_bytes(config))


def write_carried(
    carried: CarriedFiles, source: CheckpointReader, family: Family, operator: Operator, staging: Staging
) -> None:
    """Write the files that are carried from the source, byte for byte or with their sizes rewritten."""
    for name, data in contents(carried, source, family, operator):
        staging.write_bytes(name, data)


def write_new_parameters(family: Family, operator: Operator, staging: Staging) -> None:
    """Write new_parameters.json, which lists the parameters that growth added."""
    staging.write_bytes(NEW_PARAMETERS, json_bytes(new_parameters(family, operator)))


def write_fit_plot(record: Record, log: tuple[Mapping[str, Any], ...], staging: Staging) -> None:
    """Write the plot of the fit, if the operator was trained.

    Args:
        record: the record of the run; of its metrics only those of the fit are used.
        log: one mapping a step of the fit; empty if the operator was not trained.
        staging: the staging directory of the output.
    """
    if not log:
        return
    fit = record.metrics["fit"]
    before, after = (amount(record.metrics["parameters"][which]) for which in ("source", "target"))
    plot = fit_picture(
        log,
        source=fit["source_validation_loss"],
        initial=fit["initial_validation_loss"],
        best=(fit["best_step"], fit["best_validation_loss"]),
        title=f"Fitting the growth operator: {record.source_name}, {before} to {after} parameters",
        unit=LOSSES[record.metrics["task"]][1],
    )
    staging.write_bytes(FIT_PLOT, plot)


_CARDS = {"growth": card, "training": trained_card}


def write_record(
    record: Record,
    recipe: Mapping[str, Any],
    weights: Mapping[str, str],
    staging: Staging,
) -> None:
    """Write the recipe, the card of a growth or a training, the provenance and finally SHA256SUMS, which lists all other files.

    Args:
        record: the record of the run, for card and provenance.
        recipe: the public recipe with every default filled in.
        weights: weight file -> SHA-256, computed while writing.
        staging: the staging directory of the output.
    """
    text = dump_yaml(recipe)
    # `card` and `statement_bytes` check their own text.
    check_nothing_private(text, where=RECIPE, names_in=())
    staging.write_bytes(RECIPE, text.encode())
    for name in (CARD, PROVENANCE, CHECKSUMS):
        staging.remove(name)
    # The digests of the bytes as they were written: a file that changed on the disk since is found below.
    digests = {name: staging.digest(name) or rehash(staging.path / name) for name in staging.files()}
    sizes = {name: (staging.path / name).stat().st_size for name in digests}
    text = _CARDS[record.kind](record, files=sizes, figure=FIT_PLOT in digests)
    staging.write_bytes(CARD, text.encode())
    digests[CARD] = staging.digest(CARD) or ""
    staging.write_bytes(PROVENANCE, statement_bytes(record, digests))
    digests[PROVENANCE] = staging.digest(PROVENANCE) or ""
    staging.write_bytes(CHECKSUMS, sums(digests))
    # The weights have been read back before; they are the large part.
    check_digests(staging.path, {name: digest for name, digest in digests.items() if name not in weights})
