"""Weights of a model that does not fit in memory: each is read, or grown, when the library's code uses it, and freed after that use.

Input: a reader of source bytes, an inventory; for the target, an operator.
Output: canonical name -> `StreamedTensor`, in place of the weights that `LibraryModel` takes. The library's own modules run unchanged, so
the figures are those of the model in memory. Peak memory is the activations and one weight, with the source tensors it grows from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

import torch
from torch.utils._pytree import tree_map_only

from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.families.inventory import Inventory
from ligo_convert.families.schema import Family, Row
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.stream import Growth, Loader, Read

Tensors = Mapping[str, torch.Tensor]

Load = Callable[[], torch.Tensor]

# What a weight is like is known without its values.
_DESCRIBE = {
    torch.Tensor.size,
    torch.Tensor.dim,
    torch.Tensor.numel,
    torch.Tensor.stride,
    torch.Tensor.is_floating_point,
    torch.Tensor.element_size,
}


class StreamedTensor(torch.Tensor):
    """A weight with a shape, a dtype and a device, but without storage. Every operation on it loads its values for that operation.

    Args:
        load: returns the values, of this shape, dtype and device.
    """

    _load: Load

    @staticmethod
    def __new__(cls, load: Load, *, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Self:
        made: Self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=torch.device(device))
        made._load = load
        return made

    def load(self) -> torch.Tensor:
        """Return the values."""
        loaded = self._load()
        # The library must never compute with other shapes than those it was built with.
        assert (loaded.shape, loaded.dtype) == (self.shape, self.dtype), (loaded.shape, loaded.dtype, self.shape)
        return loaded

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function of torch on the values: the same call, on the same kind of tensor, as with the weights in memory."""
        if func in _DESCRIBE or func.__name__ == "__get__":  # `__get__`: an attribute, such as the shape
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return _on_values(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch calls it as a class method, as its documentation shows
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run what reaches the kernels without passing `__torch_function__`, such as the attribute `T`."""
        return _on_values(func, args, kwargs)


def _on_values(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> Any:
    args, kwargs = tree_map_only(StreamedTensor, StreamedTensor.load, (args, dict(kwargs or {})))
    return func(*args, **kwargs)


def streamed_source(
    read: Read, inventory: Inventory, *, device: str, dtype: torch.dtype | None = None
) -> dict[str, StreamedTensor]:
    """Return the source's weights, each read from its file when it is used.

    Args:
        read: name on disk -> bytes of the tensor.
        device: where the model runs.
        dtype: dtype of the arithmetic; None for that of `growth.stream.compute_dtype`.
    """
    loader = Loader(read, inventory.family, inventory, device, dtype=dtype)
    family = inventory.family
    return {
        spec.name: _weight(partial(loader.load, row.pattern, layer), spec, loader)
        for row, layer, spec in family.tensors_of(inventory.rows, inventory.config, dtype="F32")
    }


def streamed_target(
    read: Read,
    family: Family,
    inventory: Inventory,
    operator: Operator,
    *,
    device: str,
    dtype: torch.dtype | None = None,
) -> dict[str, StreamedTensor]:
    """Return the weights that `operator` grows from the source, each grown when it is used.

    Args:
        read: name on disk -> bytes of the source's tensor.
        family: the family, narrowed to the target's class.
        inventory: the source's tensors.
        device: where the model runs.
        dtype: as in `streamed_source`.
    """
    loader = Loader(read, family, inventory, device, dtype=dtype)
    growth = Growth(loader, operator)

    def grown(row: Row, layer: int | None) -> torch.Tensor:
        tensor = growth.tensor(row, layer)
        growth.release()  # the next weight to be used belongs to another row
        return tensor

    return {
        spec.name: _weight(partial(grown, row, layer), spec, loader)
        for row, layer, spec in family.tensors_of(family.rows_for(operator.target), operator.target, dtype="F32")
    }


def _weight(load: Load, spec: TensorSpec, loader: Loader) -> StreamedTensor:
    return StreamedTensor(load, shape=spec.shape, dtype=loader.dtype, device=loader.device)


def loaded(parameters: Mapping[str, StreamedTensor]) -> Tensors:
    """Return streamed weights with their values, for a model that fits in memory.

    They are parts of one block of memory: between blocks of their own, what growth needs for a moment would leave gaps.
    """
    first = next(iter(parameters.values()))
    # Parts begin at multiples of 64 bytes, as tensors of their own do.
    sizes = [-(-tensor.numel() // 16) * 16 for tensor in parameters.values()]
    parts = torch.split(torch.empty(sum(sizes), dtype=first.dtype, device=first.device), sizes)
    held = {}
    for (name, tensor), part in zip(parameters.items(), parts, strict=True):
        held[name] = part[: tensor.numel()].view(tensor.shape)
        held[name].copy_(tensor.load())
    return held


def rounded(parameters: Tensors, stored: Mapping[str, torch.dtype]) -> Tensors:
    """Return the weights as the dtypes of `stored` hold them, in their own dtype. Each is rounded when it is used."""

    def load(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return tensor.to(dtype).to(tensor.dtype)

    return {
        name: StreamedTensor(
            partial(load, tensor, stored[name]),
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            device=str(tensor.device),
        )
        for name, tensor in parameters.items()
    }
