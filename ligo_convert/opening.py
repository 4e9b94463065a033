"""The source of a run: opened, looked at from end to end, or trained where the recipe says so; and the digest of all a recipe names."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ligo_convert.data import content_digest
from ligo_convert.environment import choose_device
from ligo_convert.jsoncore import sha256_of
from ligo_convert.learning import Shared, tokenizer_directory, trained_source
from ligo_convert.plan import Plan, make_plan, target_model_config
from ligo_convert.progress import Progress
from ligo_convert.recipe import Output
from ligo_convert.shelf import Shelf
from ligo_convert.source import Source
from ligo_convert.staging import Staging
from ligo_convert.verify import check_copies, check_finite


def enter(stack: contextlib.ExitStack, source: Source | None) -> Source | None:
    return stack.enter_context(source) if source is not None else None


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Digests of a recipe with all that it names: `whole`; `learned`, of what its operator depends on; `trained`, its own source."""

    whole: str
    learned: str
    trained: str


def train_source(
    stack: contextlib.ExitStack,
    plan: Plan,
    staging: Staging,
    device: str,
    progress: Progress,
    *,
    examples: int | None = None,
    shared: Shared | None = None,
) -> tuple[Source, dict[str, str], Plan]:
    """The recipe's own source, trained and opened, with its digests and the plan that its real headers give."""
    trained = trained_source(
        plan, staging, device=choose_device(device), progress=progress, examples=examples, shared=shared
    )
    source = stack.enter_context(trained)
    return source, source.digest(), make_plan(plan.recipe, source, check_disk=False)


def examine(source: Source, plan: Plan, progress: Progress, *, memo: Shelf | None = None) -> dict[str, str]:
    """Digest the source and look at its values, side by side: both read everything, and neither needs the other."""
    with ThreadPoolExecutor(max_workers=1) as beside:
        digests = beside.submit(source.digest, memo=memo)
        check_copies(source, plan.inventory)
        check_finite(source, allow=plan.recipe.source.allow_nonfinite, progress=progress)
        return digests.result()


def digest_recipe(plan: Plan, source: Source | None, digests: Mapping[str, str], progress: Progress) -> str:
    """The recipe's digest, with those of the contents that it names: source, data and tokenizer, target."""
    return identify(plan, source, digests, progress).whole


def identify(plan: Plan, source: Source | None, digests: Mapping[str, str], progress: Progress) -> Identity:
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
    learning = recipe.model_copy(update={"output": Output(dir=recipe.output.dir)})
    trained: dict[str, object] = {"data": data}
    if recipe.source.pretrain is not None and recipe.fit is not None:
        # The text that is held out depends on the fit's sequences, and so does what is left to train on.
        held = recipe.fit.model_dump(
            mode="json", include={"sequence_length", "heldout_tokens", "heldout_images", "seed"}
        )
        trained |= {"pretrain": recipe.source.pretrain.model_dump(mode="json"), "held": held}
    return Identity(
        whole=recipe.digest(source=digests, data=data, target=target),
        learned=learning.digest(source=digests, data=data, target=target),
        trained=sha256_of(trained),
    )
