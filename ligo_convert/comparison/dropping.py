"""Leaving out layers and tokens while a model is trained: a model of the library in, the same with some of its work left out.

Layers: progressive layer dropping (Zhang and He, arXiv:2010.13369, equations 5 and 6; what is left is not rescaled). Tokens: they skip the
middle layers (Hou et al., arXiv:2203.13240) and are drawn at random (random-LTD, arXiv:2211.11586). Which ones follows from seed and
step: the same for ever, whatever ran before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ligo_convert.comparison.strategies import Dropping, kept_tokens, skipped_layers
from ligo_convert.errors import RecipeError
from ligo_convert.training.functional_model import LibraryModel
from ligo_convert.training.tasks import IGNORED

DRAWS = "token_draws"  # of a batch: [batch, tokens] uniform; those with the highest draws leave


@contextmanager
def layer_drop(model: LibraryModel, axis: str, layers: tuple[int, ...]) -> Iterator[None]:
    """While this lasts these layers pass on what they are given.

    They are run and not listened to: whether a layer returns a tensor or a tuple depends on the library's version. No gradient goes
    through them.
    """

    def pass_on(_module: torch.nn.Module, args: tuple[Any, ...], found: Any) -> Any:
        return (args[0], *found[1:]) if isinstance(found, tuple) else args[0]

    names = model.layers(axis)
    with ExitStack() as stack:
        for layer in layers:
            handle = model.module.get_submodule(names[layer]).register_forward_hook(pass_on)
            stack.callback(handle.remove)
        yield


@contextmanager
def token_drop(model: LibraryModel, axis: str, dropping: Dropping, batch: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """While this lasts tokens skip the middle layers, by the batch's DRAWS: they come back, as they left, before the last."""
    names = model.layers(axis)
    skipping = skipped_layers(len(names))
    state: dict[str, torch.Tensor] = {}

    def leave(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        whole = args[0]
        state["whole"], state["rows"] = whole, _rows(whole, dropping, batch)
        return (_taken(whole, state["rows"]), *args[1:]), kwargs

    def follow(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if any(_is_mask(value) for value in (*args[1:], *kwargs.values())):
            raise RecipeError(
                f"token-drop: {model.family.name} gives its layers an attention mask, which tokens cannot leave",
                hint="leave the option out",
            )
        positions = kwargs.get("position_embeddings")
        if positions is not None:
            kwargs = {**kwargs, "position_embeddings": tuple(_taken(part, state["rows"]) for part in positions)}
        return args, kwargs

    def come_back(
        _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        rows = state["rows"].unsqueeze(-1).expand(-1, -1, args[0].shape[-1])
        # Not in place: the whole is what gradients of the layers below need.
        return (state["whole"].to(args[0].dtype).scatter(1, rows, args[0]), *args[1:]), kwargs

    with ExitStack() as stack:

        def hook(layer: int, function: Any) -> None:
            module = model.module.get_submodule(names[layer])
            handle = module.register_forward_pre_hook(function, with_kwargs=True)
            stack.callback(handle.remove)

        if skipping:
            hook(skipping.start, leave)
            for layer in skipping:
                hook(layer, follow)
            hook(skipping.stop, come_back)
        yield


def _rows(whole: torch.Tensor, dropping: Dropping, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Which tokens stay, in order: [batch, kept]. The first stays (a class token may be there), and those that are asked for."""
    count, length = whole.shape[:2]
    draws = batch[DRAWS][:, :length].clone()
    if draws.shape != (count, length):
        # A class token beside the patches.
        draws = torch.nn.functional.pad(draws, (length - draws.shape[1], 0), value=-1.0)
    draws[:, 0] = -1.0
    labels = batch.get("labels")
    if labels is not None and labels.ndim == 2:
        draws = torch.where(labels != IGNORED, draws - 1.0, draws)
    kept = draws.argsort(1)[:, : kept_tokens(dropping, length)]
    return kept.sort(1).values


def _taken(states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return states.expand(len(rows), -1, -1).gather(1, rows.unsqueeze(-1).expand(-1, -1, states.shape[-1]))


def _is_mask(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 4
