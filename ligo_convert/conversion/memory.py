"""Choose the micro batch, decide whether models run in memory or streamed, and estimate the peak memory of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from ligo_convert.checkpoints.tensors import DTYPE_BYTES, TensorSpec
from ligo_convert.conversion.fit_plan import FitPlan
from ligo_convert.environment import BASE_BYTES, memory_limit
from ligo_convert.errors import RecipeError
from ligo_convert.families.inventory import Inventory
from ligo_convert.families.schema import WITHOUT_LOSS, Family, Row
from ligo_convert.growth.growth_plan import GrowthPlan
from ligo_convert.growth.initialize import learned_parameters
from ligo_convert.growth.stream import compute_dtype, source_name, stored_dtypes
from ligo_convert.outputs.loading import whole_bytes
from ligo_convert.recipes.recipe import Recipe
from ligo_convert.recipes.schema import SEQUENCE_LENGTH

# Resident memory of a process without torch after its imports, before it holds a tensor.
COPY_BASE_BYTES = 120_000_000

# Memory budget for the activations of one micro batch.
ACTIVATION_BYTES = 1_500_000_000

# Sequences of one forward pass where nothing is fitted.
MEASURING_BATCH = 4

# Models run in memory only if the limit exceeds the estimate by this factor: a run that is killed is worse than a slower one.
MARGIN = 1.15

# How models are run to measure preservation.
Method = Literal["in memory", "streamed"]


@dataclass(frozen=True, kw_only=True)
class ModelLoad:
    """The models and data that a run may hold in memory.

    Attributes:
        family: the target's family.
        inventory: the source's tensors.
        specs: the target's tensors.
        micro_batch: sequences or images of one forward pass.
        fit: the fit of the operator; None where nothing is fitted.
    """

    family: Family
    inventory: Inventory
    start: GrowthPlan
    specs: tuple[TensorSpec, ...]
    micro_batch: int
    fit: FitPlan | None


def physical_memory() -> int:
    """Return the memory that this process may use, in bytes: the machine's, or less where a cgroup limits it."""
    return memory_limit()


def activation_bytes(family: Family, config: Mapping[str, object], sequence_length: int) -> int:
    """Estimate the bytes held by the forward and backward pass of one sequence: logits, softmax, and saved activations."""
    sizes = family.sizes(config)
    layers = sum(sizes[axis] for axis in family.depth_axes)
    logits = 4 * 4 * sequence_length * sizes[family.vocabulary] if _has_token_head(family) else 0
    return logits + layers * _layer_bytes(family, sizes, sequence_length)


def _has_token_head(family: Family) -> bool:
    """Return whether the output has one entry per token id."""
    return any(family.vocabulary in dim.parts and dim.role == "write" for row in family.rows for dim in row.layout.dims)


def _layer_bytes(family: Family, sizes: Mapping[str, int], sequence_length: int) -> int:
    """Estimate the bytes of the activations of one layer, for one sequence."""
    inner = sum(sizes[stream] for stream in family.roles if stream in sizes and stream not in family.never_grown)
    # Fused attention stores no attention matrix. Talking heads do: six matrices per head, softmax included.
    mixed = [
        row for row in family.rows if len(row.layout.dims) == 2 and row.layout.dims[0].parts == row.layout.dims[1].parts
    ]
    matrices = 6 * max((sizes[row.layout.dims[0].parts[0]] for row in mixed), default=0)
    return 4 * sequence_length * 4 * inner + (8 + 4 * matrices) * sequence_length**2


def choose_micro_batch(recipe: Recipe, family: Family, start: GrowthPlan) -> int:
    """Return the sequences or images of one forward pass. Raises RecipeError where the objective needs more than the recipe allows."""
    fit = recipe.fit
    if fit is None:
        return MEASURING_BATCH
    least = 2 if family.task in WITHOUT_LOSS else 1
    if fit.micro_batch_size is not None or fit.batch_size < least:
        asked = min(fit.micro_batch_size or fit.batch_size, fit.batch_size)
        if asked < least:
            key = "batch_size" if fit.batch_size < least else "micro_batch_size"
            raise RecipeError(
                f"fit.{key}: a model without a task loss is fitted by comparing sequences of a batch",
                where=recipe.where("fit", key),
                expected="at least 2",
                found=asked,
            )
        return asked
    one = activation_bytes(family, start.target, family.sequence(start.target, fit.sequence_length))
    return max(least, min(fit.batch_size, ACTIVATION_BYTES // one))


def estimate_memory(load: ModelLoad, *, measuring: Method | None) -> int:
    """Return the peak resident memory of a run, in bytes: the larger of fitting, measuring and writing.

    Args:
        measuring: how models are run; None where none is run.
    """
    family, inventory, start, specs = load.family, load.inventory, load.start, load.specs
    largest = max(spec.elements for spec in specs)
    # Where every target layer grows from one source layer, one layer of a row is in memory at a time; else all of them.
    one_layer = load.fit is None and start.terms == 1
    row = max(
        sum(inventory.stored[name].elements for name in names[: 1 if one_layer else None])
        for names in (_row_names(inventory, row) for row in inventory.rows)
    )
    wide = DTYPE_BYTES[compute_dtype(inventory)]
    if measuring is None and start.copies_only:
        return COPY_BASE_BYTES + 3 * largest * wide
    writing = BASE_BYTES + wide * (row + 3 * largest)
    if measuring is None:
        return writing
    if measuring == "streamed":
        # Loading the result streamed needs less.
        return max(writing, BASE_BYTES + wide * _streamed_elements(load))
    source = wide * sum(spec.elements for spec in inventory.stored.values())
    target = wide * sum(spec.elements for spec in specs)
    if load.fit is None:
        measured = BASE_BYTES + source + target + wide * _streamed_elements(load)
        return max(measured, whole_bytes(sum(spec.nbytes for spec in specs)))
    activations = load.micro_batch * activation_bytes(family, start.target, load.fit.positions)
    # Parameters, gradients, two moments, the best and the initial operator. A saved state is written from them, not copied.
    operator = wide * 6 * learned_parameters(start)
    return BASE_BYTES + source + 2 * target + operator + activations + 4 * wide * row


def state_memory(load: ModelLoad) -> int:
    """Estimate the peak resident memory of growing an optimizer's state, in bytes: it is grown after the weights, and not streamed."""
    source = sum(spec.elements for spec in load.inventory.stored.values())
    target = sum(spec.elements for spec in load.specs)
    # Two moments in float32 of the source, those of the target, and the file that is made of them.
    return BASE_BYTES + 2 * 4 * (source + 2 * target)


def _streamed_elements(load: ModelLoad) -> int:
    """Estimate the elements in memory while streamed models are measured: states of all layers, one layer's activations, one weight."""
    family, start = load.family, load.start
    old, new = family.sizes(start.source), family.sizes(start.target)
    positions = family.sequence(start.target, SEQUENCE_LENGTH)
    tokens = load.micro_batch * positions
    stream = family.norm.stream
    # The source's states are kept after every layer, to find where the target departs.
    states = tokens * sum(old[stream] * old[axis] for axis in family.depth_axes)
    # The outputs of the source, the target and the rounded target, and two temporary arrays of this size for their losses.
    outputs = 5 * tokens * (new[family.vocabulary] if _has_token_head(family) else new[stream])
    inner = load.micro_batch * _layer_bytes(family, new, positions) // 4
    # A weight is read, widened, joined with its new entries, and possibly rewritten first.
    weight = max(
        3 * prod(family.shape(row, old)) + 3 * prod(family.shape(row, new)) for row in family.rows_for(start.target)
    )
    return states + outputs + inner + weight


def measuring_reads(load: ModelLoad, measuring: Method | None) -> int:
    """Return the bytes of the source that measuring reads: for the source, for the target that grows from it, and for every run of it."""
    family, inventory, target = load.family, load.inventory, load.start.target
    once = sum(spec.nbytes for spec in inventory.stored.values())
    if measuring is None or load.fit is not None:
        return once if measuring else 0
    # A target tensor grows from the tensor of one layer. A streamed target that is stored in a narrower dtype grows again as stored.
    narrow = any(DTYPE_BYTES[spec.dtype] < DTYPE_BYTES[compute_dtype(inventory)] for spec in load.specs)
    grown = sum(
        source_name(family, inventory, row, None if row.depth is None else row.first).nbytes
        for row, _, _ in family.tensors_of(family.rows_for(target), target, dtype="F32")
        if stored_dtypes(family, inventory, row)
    )
    return once + (2 if narrow and measuring == "streamed" else 1) * grown


def _row_names(inventory: Inventory, row: Row) -> list[str]:
    """Return the tensor names of one row of the source."""
    return [row.name(layer) for layer in inventory.family.layers(row, inventory.config)]
