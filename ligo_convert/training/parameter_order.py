"""Tell which parameter each number in an optimizer's state belongs to.

Input: a library's model, the groups of an optimizer's state. Output: the names of its parameters, group by group. A state names its
parameters by number; which number a parameter has follows from the order in which the training loop gave them to the optimizer. `ORDERS`
holds the orders that are known. The shapes of the state say which of them it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import transformers

from ligo_convert.errors import SourceError

Groups = list[list[str]]

Shape = tuple[int, ...]


def _trainer(model: torch.nn.Module) -> Groups:
    """Return the groups of transformers' Trainer: with weight decay, then without."""
    # The method does not use its object.
    decayed = set(transformers.Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    names = [name for name, _ in model.named_parameters()]
    return [[name for name in names if name in decayed], [name for name in names if name not in decayed]]


def _one_group(model: torch.nn.Module) -> Groups:
    return [[name for name, _ in model.named_parameters()]]


def _matrices_first(model: torch.nn.Module) -> Groups:
    named = list(model.named_parameters())
    return [[name for name, found in named if found.ndim > 1], [name for name, found in named if found.ndim < 2]]


# What the order is, for messages -> the groups of a model's parameters.
ORDERS: Mapping[str, Callable[[torch.nn.Module], Groups]] = {
    "the two groups of transformers' Trainer": _trainer,
    "one group in the order of model.parameters()": _one_group,
    "matrices, then the rest": _matrices_first,
}


def named_groups(
    model: torch.nn.Module, groups: Sequence[Sequence[int]], shapes: Mapping[int, Shape], *, label: str
) -> Groups:
    """Return the names of the parameters of every group.

    Args:
        model: the library's model, whose parameters may be on the meta device.
        groups: the numbers of the parameters of every group, in order.
        shapes: number -> shape of the parameter's state, where it has one.
        label: name of the file, for messages.

    Raises:
        SourceError: no known order fits.
    """
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for order in ORDERS.values():
        found = order(model)
        # An empty group may be left out.
        for candidate in (found, [group for group in found if group]):
            if [len(group) for group in candidate] != [len(group) for group in groups]:
                continue
            pairs = [
                (number, name)
                for numbers, names in zip(groups, candidate, strict=True)
                for number, name in zip(numbers, names, strict=True)
            ]
            if all(shapes.get(number, wanted[name]) == wanted[name] for number, name in pairs):
                return candidate
    raise SourceError(
        f"the optimizer's state has {sum(map(len, groups))} parameters in {len(groups)} group(s), and fits no known order of the"
        f" model's {len(wanted)} parameters",
        where=label,
        expected="; ".join(ORDERS),
        hint="make the optimizer from model.named_parameters(), so that its state holds the names (torch 2.6)",
    )
