"""The source of a run: opened, looked at from end to end, or trained where the recipe says so; and the digest of all a recipe names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.conversion.plan import Plan
from ligo_convert.conversion.splits import tokenizer_directory
from ligo_convert.conversion.target import target_model_config
from ligo_convert.data.tokens import content_digest
from ligo_convert.families.registry import family_source
from ligo_convert.io.strict_json import sha256_of
from ligo_convert.progress import Progress
from ligo_convert.recipes.schema import OutputConfig


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Digests of a recipe with all that it names: `whole`; `learned`, of what its operator depends on; `trained`, its own source."""

    whole: str
    learned: str
    trained: str


def digest_recipe(plan: Plan, source: CheckpointReader | None, digests: Mapping[str, str], progress: Progress) -> str:
    """The recipe's digest, with those of the contents that it names: source, data and tokenizer, target."""
    return compute_digests(plan, source, digests, progress).whole


def compute_digests(
    plan: Plan, source: CheckpointReader | None, digests: Mapping[str, str], progress: Progress
) -> Identity:
    """What makes a run, its operator and its own source the same as another's."""
    recipe, data, target = plan.recipe, None, None
    if plan.data is not None:
        assert recipe.fit is not None
        # The source's own tokenizer is among the source's files.
        tokenizer = tokenizer_directory(plan, source) if recipe.fit.data.tokenizer is not None else None
        with progress.task("digesting the data"):
            data = content_digest(plan.data, tokenizer=tokenizer)
    if recipe.target.model is not None:
        target = target_model_config(recipe)
    # How results are cut into files and rounded is nothing that is learned.
    learning = recipe.model_copy(update={"output": OutputConfig(dir=recipe.output.dir)})
    trained: dict[str, object] = {"data": data}
    if recipe.source.pretrain is not None and recipe.fit is not None:
        # The text that is held out depends on the fit's sequences, and so does what is left to train on.
        held = recipe.fit.model_dump(
            mode="json", include={"sequence_length", "heldout_tokens", "heldout_images", "seed"}
        )
        trained |= {"pretrain": recipe.source.pretrain.model_dump(mode="json"), "held": held}
    return Identity(
        whole=with_family(recipe.digest(source=digests, data=data, target=target), plan.family.name),
        learned=with_family(learning.digest(source=digests, data=data, target=target), plan.family.name),
        trained=with_family(sha256_of(trained), plan.family.name),
    )


def with_family(digest: str, family: str) -> str:
    """Combine a digest with that of the file that defines the family; a built-in family leaves it unchanged."""
    source = family_source(family)
    return digest if source is None else sha256_of({"digest": digest, "family": source.sha256})
