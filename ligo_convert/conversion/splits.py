"""TODO: one sentence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.conversion.plan import Plan
from ligo_convert.progress import Progress

if TYPE_CHECKING:
    from ligo_convert.data.examples import DataSplits


# Data.


def tokenizer_directory(plan: Plan, source: CheckpointReader | None) -> Path:
    """Where the tokenizer of the fit lies: the recipe's, else the source's own."""
    assert plan.recipe.fit is not None
    named = plan.recipe.fit.data.tokenizer
    if named is not None:
        place = plan.recipe.base / Path(named).expanduser()
        return place if place.is_dir() else _tokenizer_from_hub(named)
    assert source is not None
    return source.root


def _tokenizer_from_hub(name: str) -> Path:
    from ligo_convert.hub.download import fetch_tokenizer

    return fetch_tokenizer(name)


def load_splits(
    plan: Plan, tokenizer: Path | None, *, progress: Progress, pretraining: bool = False, examples: int | None = None
) -> DataSplits:
    """The recipe's data as slices, for the fit or for training a source. Held-out text is the same at every sequence length of a recipe.

    Args:
        examples: how many sequences of the fit's length, or images, to train on; None for what the steps ask for.
    """
    from ligo_convert.data.masking import Masking
    from ligo_convert.data.tokens import token_splits

    fit, pretrain = plan.recipe.fit, plan.recipe.source.pretrain
    assert fit is not None
    settings = pretrain if pretraining else fit
    assert settings is not None
    asked = settings.steps * settings.batch_size
    if plan.family.reads == "images":
        return _load_image_splits(plan, examples or asked, progress)
    assert tokenizer is not None
    lengths = [fit.sequence_length, *([pretrain.sequence_length] if pretrain else [])]
    whole = math.lcm(*lengths)
    with progress.task("reading text", unit="tokens") as task:
        return token_splits(
            fit.data,
            tokenizer,
            base=plan.recipe.base,
            sequence_length=settings.sequence_length,
            train_tokens=examples * fit.sequence_length if examples else asked * settings.sequence_length,
            heldout_tokens=-(-fit.heldout_tokens // whole) * whole,
            seed=fit.seed,
            vocabulary=plan.family.sizes(plan.start.source)[plan.family.vocabulary],
            masking=None if plan.family.task == "causal-lm" else Masking(seed=fit.seed),
            on_progress=lambda done, total: task.reach(done / max(1, total)),
        )


def _load_image_splits(plan: Plan, train_images: int, progress: Progress) -> DataSplits:
    from ligo_convert.data.images import Preparation, image_splits
    from ligo_convert.families.configs import image_preprocessing

    fit, family, config = plan.recipe.fit, plan.family, plan.start.target
    assert fit is not None
    assert fit.data.images is not None
    sizes = family.sizes(config)
    preparation = Preparation(channels=sizes["rgb"], **image_preprocessing(config))
    with progress.task("reading images", unit="images") as task:
        return image_splits(
            fit.data.images,
            base=plan.recipe.base,
            preparation=preparation,
            classes=sizes[family.labels],
            train_images=train_images,
            heldout_images=fit.heldout_images,
            seed=fit.seed,
            on_progress=lambda done, total: task.reach(done / max(1, total)),
        )
