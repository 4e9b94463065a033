"""Load the recipe's data as train, validation and test slices.

Input: a plan, and the tokenizer's folder where the family reads text.
Output: `DataSplits`. The fit and the training of a source hold out the same examples.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.conversion.fit_plan import FitPlan, PretrainPlan
from ligo_convert.conversion.plan import Plan
from ligo_convert.families.schema import CAUSAL
from ligo_convert.progress import Progress

if TYPE_CHECKING:
    from ligo_convert.data.examples import DataSplits
    from ligo_convert.data.token_store import TokenFolder


def tokenizer_directory(plan: Plan, source: CheckpointReader | None) -> Path:
    """Return the tokenizer's folder: `fit.data.tokenizer` where the recipe names one, else the source's folder."""
    named = plan.required_fit.settings.data.tokenizer
    if named is not None:
        directory = plan.recipe.base / Path(named).expanduser()
        return directory if directory.is_dir() else _tokenizer_from_hub(named)
    assert source is not None, "a recipe without a tokenizer uses its source's"
    return source.root


def _tokenizer_from_hub(name: str) -> Path:
    from ligo_convert.hub.download import fetch_tokenizer

    return fetch_tokenizer(name)


def load_splits(
    plan: Plan,
    tokenizer: Path | None,
    *,
    progress: Progress,
    train_examples: int | None = None,
    token_folder: TokenFolder | None = None,
) -> DataSplits:
    """Load the data of the fit.

    Args:
        tokenizer: folder of the tokenizer; None for a family that reads images.
        train_examples: sequences or images to train on; None for as many as the steps of the fit need. If the data holds fewer, they are
            repeated in further epochs, and this is said.
        token_folder: where tokens are kept on the disk, for long training; None for memory.
    """
    fit = plan.required_fit
    settings = fit.settings
    length = settings.sequence_length
    examples = train_examples or settings.steps * settings.batch_size
    if plan.family.reads == "images":
        splits = _load_images(plan, fit, examples, progress)
    else:
        splits = _load_text(
            plan,
            fit,
            tokenizer,
            progress,
            sequence_length=length,
            train_tokens=examples * length,
            token_folder=token_folder,
        )
    _say_epochs(splits, examples, progress)
    return splits


def load_pretraining_splits(
    plan: Plan,
    pretrain: PretrainPlan,
    tokenizer: Path | None,
    *,
    progress: Progress,
    train_examples: int | None = None,
) -> DataSplits:
    """Load the data that the source is trained on.

    Args:
        tokenizer: folder of the tokenizer; None for a family that reads images.
        train_examples: sequences of the fit's length, or images, to train on; None for as many as the steps need.
    """
    settings, fit = pretrain.settings, pretrain.fit
    needed = settings.steps * settings.batch_size
    if plan.family.reads == "images":
        splits = _load_images(plan, fit, train_examples or needed, progress)
    else:
        length = settings.sequence_length
        train_tokens = train_examples * fit.settings.sequence_length if train_examples else needed * length
        splits = _load_text(plan, fit, tokenizer, progress, sequence_length=length, train_tokens=train_tokens)
    _say_epochs(splits, needed, progress)
    return splits


def _say_epochs(splits: DataSplits, examples: int, progress: Progress) -> None:
    """Say how often training on `examples` examples repeats the training split, where it does."""
    epochs = examples / len(splits.train)
    if epochs > 1:
        progress.say(
            f"the training split has {splits.sizes['train']:,} {splits.unit}, all that the data holds:"
            f" {examples:,} examples are {epochs:.1f} epochs"
        )


def _load_text(
    plan: Plan,
    fit: FitPlan,
    tokenizer: Path | None,
    progress: Progress,
    *,
    sequence_length: int,
    train_tokens: int,
    token_folder: TokenFolder | None = None,
) -> DataSplits:
    assert tokenizer is not None, "text needs a tokenizer"
    from ligo_convert.data.masking import Masking
    from ligo_convert.data.tokens import SplitSizes, token_splits

    settings = fit.settings
    with progress.task("reading text", unit="tokens") as task:
        return token_splits(
            settings.data,
            tokenizer,
            base=plan.recipe.base,
            sizes=SplitSizes(
                sequence_length=sequence_length, train_tokens=train_tokens, heldout_tokens=fit.heldout_tokens
            ),
            seed=settings.seed,
            vocabulary=plan.family.sizes(plan.start.source)[plan.family.vocabulary],
            masking=None
            if plan.family.task in CAUSAL
            else Masking(seed=settings.seed, probability=settings.mask_probability),
            token_folder=token_folder,
            on_progress=lambda done, total: task.reach(done / max(1, total)),
        )


def _load_images(plan: Plan, fit: FitPlan, train_images: int, progress: Progress) -> DataSplits:
    from ligo_convert.data.augment import augmented
    from ligo_convert.data.images import Preparation, image_splits
    from ligo_convert.families.configs import image_preprocessing

    settings, family, config = fit.settings, plan.family, plan.start.target
    assert settings.data.images is not None, "a family that reads images has fit.data.images"
    sizes = family.sizes(config)
    preparation = Preparation(channels=sizes["rgb"], **image_preprocessing(family.complete(config), plan.processor))
    with progress.task("reading images", unit="images") as task:
        splits = image_splits(
            settings.data.images,
            base=plan.recipe.base,
            preparation=preparation,
            classes=family.class_count(config),
            train_images=train_images,
            heldout_images=settings.heldout_images,
            seed=settings.seed,
            on_progress=lambda done, total: task.reach(done / max(1, total)),
        )
    return augmented(splits, settings.data.augment or (), seed=settings.seed)
