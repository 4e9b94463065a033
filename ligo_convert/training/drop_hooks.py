"""Skip layers or tokens while a library model trains.

Layers: progressive layer dropping (Zhang and He, arXiv:2010.13369, equations 5 and 6; the remaining layers are not rescaled).
Tokens: a random part of the tokens skips the middle layers (Hou et al., arXiv:2203.13240; random-LTD, arXiv:2211.11586).
Seed and step alone determine which layers and tokens are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ligo_convert.data.examples import IGNORED
from ligo_convert.errors import RecipeError
from ligo_convert.training.dropping import Dropping, kept_tokens, skipped_layers
from ligo_convert.training.functional_model import LibraryModel

DRAWS = "token_draws"  # key in a batch: [batch, tokens], uniform; the tokens with the highest draws are skipped


@contextmanager
def layer_drop(model: LibraryModel, axis: str, layers: tuple[int, ...]) -> Iterator[None]:
    """Within the context, the given layers return their input.

    The layers still run, because the type of their output (tensor or tuple) depends on the library version. Their output is discarded,
    and no gradient flows through them.
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
    """Within the context, tokens selected by the batch's DRAWS skip the middle layers and return unchanged before the last layer."""
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
                f"token-drop does not support {model.family.name}: its layers get an attention mask",
                hint="remove the option",
            )
        positions = kwargs.get("position_embeddings")
        if positions is not None:
            kwargs = {**kwargs, "position_embeddings": tuple(_taken(part, state["rows"]) for part in positions)}
        return args, kwargs

    def come_back(
        _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        rows = state["rows"].unsqueeze(-1).expand(-1, -1, args[0].shape[-1])
        # Not in place: autograd needs the complete tensor for the layers below.
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
    """Return the indices of the tokens that stay, ascending: [batch, kept]. The first token and labelled ones stay."""
    count, length = whole.shape[:2]
    draws = batch[DRAWS][:, :length].clone()
    if draws.shape != (count, length):
        # The model adds a class token before the patches.
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
