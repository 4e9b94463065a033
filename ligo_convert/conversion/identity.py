"""Compute the digests by which two runs are recognised as the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.conversion.plan import Plan
from ligo_convert.conversion.splits import tokenizer_directory
from ligo_convert.conversion.target import target_model_config
from ligo_convert.data.masking import PROBABILITY
from ligo_convert.data.tokens import content_digest
from ligo_convert.families.registry import family_source
from ligo_convert.io.strict_json import sha256_of
from ligo_convert.progress import Progress
from ligo_convert.recipes.schema import FitConfig, OutputConfig


@dataclass(frozen=True, kw_only=True)
class RunDigests:
    """SHA-256 digests, in hex, of a recipe together with the contents that it names.

    Attributes:
        whole: the run: recipe, source, data, tokenizer and target.
        learned: what the operator depends on: the same without output dtype and shard size.
        trained: what a source trained by the recipe depends on.
        parts: digest of the data, the config of `target.model` and the state of a training, where the recipe names them; for messages.
    """

    whole: str
    learned: str
    trained: str
    parts: Mapping[str, object]


def compute_digests(
    plan: Plan,
    source: CheckpointReader | None,
    digests: Mapping[str, str],
    progress: Progress,
    *,
    training: Mapping[str, str] | None = None,
) -> RunDigests:
    """Compute the digests of a run.

    Args:
        source: the open source; None where the recipe trains it.
        digests: SHA-256 of the source's files, by name.
        training: SHA-256 of the files of a training's state that the run takes along, by name; None where it takes none.
    """
    recipe, fit = plan.recipe, plan.fit
    data, target = None, None
    if fit is not None and fit.data is not None:
        # The source's own tokenizer is already among the source's files.
        tokenizer = tokenizer_directory(plan, source) if fit.settings.data.tokenizer is not None else None
        with progress.task("digesting the data"):
            data = content_digest(fit.data, tokenizer=tokenizer)
    if recipe.target.model is not None:
        target = target_model_config(recipe)
    # The operator does not depend on how the results are rounded and cut into files, nor on the optimizer's state.
    growth = recipe.growth.model_copy(update={"state": None})
    learning = recipe.model_copy(update={"output": OutputConfig(dir=recipe.output.dir), "growth": growth})
    trained: dict[str, object] = {"data": data}
    if plan.pretrain is not None:
        # What is held out depends on the fit, and so does the text that is left to train on.
        held = plan.pretrain.fit.settings.model_dump(
            mode="json", include={"sequence_length", "heldout_tokens", "heldout_images", "seed"}
        )
        trained |= {"pretrain": plan.pretrain.settings.model_dump(mode="json"), "held": held}
        trained |= _seen_otherwise(plan.pretrain.fit.settings)
    whole = {**digests, **(training or {})}
    return RunDigests(
        whole=with_family(recipe.digest(source=whole, data=data, target=target), plan.family.name),
        learned=with_family(learning.digest(source=digests, data=data, target=target), plan.family.name),
        trained=with_family(sha256_of(trained), plan.family.name),
        parts={
            name: value
            for name, value in (
                ("data", data),
                ("target.model", None if target is None else sha256_of(target)),
                ("state of the training", None if training is None else sha256_of(dict(training))),
            )
            if value is not None
        },
    )


def _seen_otherwise(fit: FitConfig) -> dict[str, object]:
    """Return what changes the examples that the training of a source sees, beside the files of the data and the held-out splits.

    What is as it was before these keys existed is left out, so that earlier digests stay.
    """
    keys = {
        "hub": fit.data.hub and fit.data.hub.model_dump(mode="json"),
        "dataset": fit.data.dataset and fit.data.dataset.model_dump(mode="json", exclude={"path"}),
        "column": fit.data.column,
        "format": fit.data.format,
        "packing": fit.data.packing,
        "augment": fit.data.augment,
        "mask_probability": fit.mask_probability if fit.mask_probability != PROBABILITY else None,
    }
    return {key: value for key, value in keys.items() if value is not None}


def with_family(digest: str, family: str) -> str:
    """Combine a digest with that of the file that defines the family; a built-in family leaves it unchanged."""
    source = family_source(family)
    return digest if source is None else sha256_of({"digest": digest, "family": source.sha256})
