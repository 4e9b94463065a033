"""TODO: one sentence."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.errors import RecipeError
from ligo_convert.families.inventory import Inventory
from ligo_convert.families.schema import WITHOUT_LOSS, Family
from ligo_convert.growth.growth_plan import GrowthPlan
from ligo_convert.growth.initialize import learned_parameters
from ligo_convert.recipes.recipe import Recipe

# Resident memory of a process that has imported what a run needs, before it holds a tensor.
BASE_BYTES = 850_000_000

COPY_BASE_BYTES = 120_000_000

# What activations of one micro batch may take; micro batches are chosen by it.
ACTIVATION_BYTES = 1_500_000_000


# Memory.


def physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def activation_bytes(family: Family, config: Mapping[str, object], sequence_length: int) -> int:
    """Bytes that one sequence's forward and backward pass hold: logits and their softmax, and what every layer keeps."""
    sizes = family.sizes(config)
    layers = sum(sizes[axis] for axis in family.depth_axes)
    headed = any(
        family.vocabulary in dim.parts and dim.role == "write" for row in family.rows for dim in row.layout.dims
    )
    logits = 4 * 4 * sequence_length * sizes[family.vocabulary] if headed else 0
    inner = sum(sizes[stream] for stream in family.roles if stream in sizes and stream not in family.never_grown)
    # Kernels for attention do not keep its matrix, unless heads are mixed: then there are six of them a head, with what softmax keeps.
    mixed = [
        row for row in family.rows if len(row.layout.dims) == 2 and row.layout.dims[0].parts == row.layout.dims[1].parts
    ]
    matrices = 6 * max((sizes[row.layout.dims[0].parts[0]] for row in mixed), default=0)
    return logits + layers * (4 * sequence_length * 4 * inner + (8 + 4 * matrices) * sequence_length**2)


def choose_micro_batch(recipe: Recipe, family: Family, start: GrowthPlan) -> int:
    fit = recipe.fit
    if fit is None:
        return 4
    least = 2 if family.task in WITHOUT_LOSS else 1
    if fit.micro_batch_size is not None or fit.batch_size < least:
        asked = min(fit.micro_batch_size or fit.batch_size, fit.batch_size)
        if asked < least:
            key = "batch_size" if fit.batch_size < least else "micro_batch_size"
            raise RecipeError(
                f"fit.{key}: a model without a loss of its own is learned by comparing sequences",
                where=recipe.where("fit", key),
                expected="at least 2",
                found=asked,
            )
        return asked
    one = activation_bytes(family, start.target, family.sequence(start.target, fit.sequence_length))
    return max(least, min(fit.batch_size, ACTIVATION_BYTES // one))


def estimate_memory(
    recipe: Recipe,
    family: Family,
    inventory: Inventory,
    start: GrowthPlan,
    specs: tuple[TensorSpec, ...],
    *,
    measures: bool,
    micro_batch: int,
) -> int:
    """Peak resident bytes of a run: the larger of learning, measuring and writing."""
    largest = max(spec.elements for spec in specs)
    row = max(
        sum(inventory.stored[name].elements for name in _row_names(family, inventory, pattern))
        for pattern in (row.pattern for row in inventory.rows)
    )
    if not measures:
        return COPY_BASE_BYTES + 3 * largest * 4 if start.copies_only else BASE_BYTES + 4 * (row + 3 * largest)
    source = 4 * sum(spec.elements for spec in inventory.stored.values())
    target = 4 * sum(spec.elements for spec in specs)
    fit = recipe.fit
    length = family.sequence(start.target, fit.sequence_length if fit else 128)
    activations = micro_batch * activation_bytes(family, start.target, length)
    if fit is None:
        # What rounding costs is measured on a second copy.
        copies = 2 if any(spec.dtype in ("F16", "BF16") for spec in specs) else 1
        return BASE_BYTES + source + copies * target + activations + 4 * (row + 2 * largest)
    # Parameters, gradients, two moments, the best so far and the start; a saved state is written from them, not copied.
    operator = 4 * 6 * learned_parameters(start)
    return BASE_BYTES + source + 2 * target + operator + activations + 4 * 4 * row


def _row_names(family: Family, inventory: Inventory, pattern: str) -> list[str]:
    row = next(row for row in inventory.rows if row.pattern == pattern)
    return [row.name(layer) for layer in inventory.family.layers(row, inventory.config)]
