"""Let the library read the configs of source and target before any work: the first act of a run that uses the library.

Input: source and target of a run, as configs. Output: nothing, or an error that names the config key at fault.
A plan checks what needs no library. This imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.conversion.plan import Plan
from ligo_convert.errors import RecipeError, SourceError
from ligo_convert.families.schema import Family
from ligo_convert.outputs.side_files import target_config


@dataclass(frozen=True, kw_only=True)
class _Model:
    """A model as the library will be asked to build it, and to read it from its config.json."""

    family: Family
    config: Mapping[str, object]
    written: Mapping[str, object]


def check_plan(plan: Plan, source: CheckpointReader | None) -> None:
    """Require that the library accepts the source and the target of a plan.

    Args:
        source: the open source; None if the recipe trains it.

    Raises:
        SourceError: the library refuses the source's config.
        RecipeError: the library refuses the config of a source that the recipe trains, or what the recipe changes.
    """
    from ligo_convert.training.library_config import RefusedConfig

    recipe, stored = plan.recipe, source.stored_config if source is not None else {}
    try:
        _check(_model(plan.inventory.family, plan.start.source, plan.specs, stored))
    except RefusedConfig as error:
        if recipe.source.pretrain is not None:
            where = recipe.where("source", "pretrain", "config", *((error.key,) if error.key else ()))
            raise RecipeError(error.what, where=where) from None
        raise SourceError(error.what, where=f"{plan.label}/config.json") from None
    try:
        _check(_model(plan.family, plan.start.target, plan.specs, stored))
    except RefusedConfig as error:
        # The library accepts the source, so it refuses what the recipe changes.
        section = ("target", "model") if recipe.target.model is not None else ("target", "config")
        raise RecipeError(
            error.what, where=recipe.where(*section, *((error.key,) if error.key in plan.asked else ()))
        ) from None


def check_target(
    family: Family,
    target: Mapping[str, object],
    specs: tuple[TensorSpec, ...],
    *,
    stored: Mapping[str, object],
    label: str,
) -> None:
    """Require that the library accepts a target that a stored operator makes of a source. Raises SourceError, which names the source."""
    from ligo_convert.training.library_config import RefusedConfig

    try:
        _check(_model(family, target, specs, stored))
    except RefusedConfig as error:
        raise SourceError(error.what, where=f"{label}/config.json") from None


def _model(
    family: Family, config: Mapping[str, object], specs: tuple[TensorSpec, ...], stored: Mapping[str, object]
) -> _Model:
    return _Model(family=family, config=config, written=target_config(family, config, specs, stored=stored))


def _check(model: _Model) -> None:
    from ligo_convert.training.functional_model import LibraryModel
    from ligo_convert.training.library_config import check_written_config

    if model.family.library == "transformers":
        check_written_config(model.family, model.written)
    LibraryModel(model.family, model.config)
