"""Grow the state of an optimizer with the weights: Adam's moments and step counts, and the momentum of Muon or SGD.

Input: an operator, a family, the state of every tensor of the source. Output: the state of the tensors of the target. A tensor without an
entry has no state: the optimizer gives it a fresh one, with its own step count and so its own bias correction. New layers that copy a layer
copy its state, too, under the policies that map state; under the others they have none.

Adam counts steps for each tensor, so entries that are new in an old tensor cannot have a bias correction of their own. With both moments at
zero their first step would be (1 - b1) / sqrt(1 - b2) of the learning rate, 3.2 times for the usual betas. Their second moment is therefore
estimated from the old entries of the tensor, as Adafactor does it (arXiv:1804.04235): row mean times column mean over the mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from ligo_convert.environment import compute_threads
from ligo_convert.errors import RecipeError, SourceError
from ligo_convert.families.schema import Family, Row
from ligo_convert.growth.apply import Grower, Pieces
from ligo_convert.growth.new_parameters import added_parts, continued
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.state_maps import POLICIES, gradient_operator, squared

State = dict[str, torch.Tensor]

States = Mapping[str, Mapping[str, torch.Tensor]]

# What an optimizer keeps for a tensor -> the power of the gradient that it averages. `step` counts.
KINDS: Mapping[str, int] = {
    "exp_avg": 1,
    "momentum_buffer": 1,
    "exp_avg_sq": 2,
    "max_exp_avg_sq": 2,
}
STEP = "step"


def grown_moments(
    operator: Operator,
    family: Family,
    moments: States,
    *,
    policy: str,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, State]:
    """Return the optimizer state of the target.

    Args:
        operator: the operator that grows the weights.
        family: narrowed to the target's class.
        moments: canonical name (`Row.name`) of a source tensor -> its state: `KINDS` in the tensor's shape, and `step`. A name that is
            missing has no state.
        policy: a name of `POLICIES`.
        device: where state is grown.
        dtype: dtype of the arithmetic and of the result.

    Returns:
        Canonical name of a target tensor -> its state, for the tensors that have one.

    Raises:
        RecipeError: there is no such policy.
        SourceError: a state has an unknown part, or another shape than its tensor.
    """
    return dict(grow_moments(operator, family, moments, policy=policy, device=device, dtype=dtype))


def grow_moments(
    operator: Operator,
    family: Family,
    moments: States,
    *,
    policy: str,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[str, State]]:
    """Yield what `grown_moments` returns, one tensor after the other, in the order of the family's table."""
    if policy not in POLICIES:
        raise RecipeError(f"state: there is no policy {policy!r}", where="growth.state", expected=", ".join(POLICIES))
    _check_states(operator, family, moments)
    maps, new_alone = POLICIES[policy].maps, POLICIES[policy].new_alone
    if maps == "none":
        return
    carried = None
    if maps == "old" or new_alone:
        carried = _Carried(operator, family, moments, device=device, dtype=dtype)
    if carried is not None and maps == "old":
        yield from ((name, state) for name in carried.parts if (state := carried.state(name)))
        return
    chosen = gradient_operator(operator, family) if maps == "gradients" else operator
    mapped = _Mapped(chosen, family, device=device, dtype=dtype)
    for row in family.rows_for(operator.target):
        if row.pattern in operator.drawn_rows:
            continue
        for layer in family.layers(row, operator.target):
            with compute_threads(1):
                state = mapped.state(row, layer, moments)
            if carried is not None:
                state = carried.over(state, row.name(layer))
            if state:
                yield row.name(layer), state


def require_rule(kind: object, *, where: str) -> None:
    """Raise SourceError for a part of a state that has no rule of growth, such as Adafactor's rows and columns."""
    if kind != STEP and kind not in KINDS:
        raise SourceError(
            f"the optimizer keeps {str(kind)!r}, which has no rule of growth",
            where=where,
            expected=", ".join((*KINDS, STEP)),
            hint="grow the weights without the optimizer's state",
        )


def _check_states(operator: Operator, family: Family, moments: States) -> None:
    """Raise SourceError for a state that cannot belong to its tensor."""
    known = {spec.name: spec for _, _, spec in family.tensors_of(family.rows, operator.source, dtype="F32")}
    for name, state in moments.items():
        for kind, value in state.items():
            require_rule(kind, where=name)
            if kind != STEP and name in known and tuple(value.shape) != known[name].shape:
                raise SourceError(
                    f"the optimizer's {kind} has another shape than its tensor",
                    where=name,
                    expected=known[name].shape,
                    found=tuple(value.shape),
                )


def _state_of(family: Family, moments: States, row: Row, layer: int | None) -> Mapping[str, torch.Tensor]:
    """Return the state of a source tensor; empty if it has none. An untied head takes that of the embedding it was tied to."""
    name = row.name(layer)
    return moments.get(name) or moments.get(family.tied.get(name, ""), {})


def _steps(states: Sequence[Mapping[str, torch.Tensor]]) -> State:
    """Return the step count of a tensor that continues others: the largest of theirs."""
    counts = [float(state[STEP]) for state in states if STEP in state]
    return {STEP: torch.tensor(max(counts), dtype=torch.float32)} if counts else {}


class _Mapped:
    """State that grows by linear maps: those of an operator for first moments, their squares for second moments."""

    def __init__(self, operator: Operator, family: Family, *, device: str, dtype: torch.dtype) -> None:
        self.family, self.device, self.dtype = family, device, dtype
        self.growers = {
            1: Grower(replace(operator, rewrites=()), family, device=device, dtype=dtype),
            2: Grower(squared(replace(operator, rewrites=())), family, device=device, dtype=dtype),
        }

    def state(self, row: Row, layer: int | None, moments: States) -> State:
        """Return the state of one target tensor; empty if no source tensor with a state reaches it."""
        used = self._used(row, layer)
        states = {old: _state_of(self.family, moments, row, None if row.depth is None else old) for old in used}
        states = {old: state for old, state in states.items() if state}
        result = _steps(list(states.values()))
        for kind in dict.fromkeys(kind for state in states.values() for kind in state if kind != STEP):
            power = KINDS[kind]
            pieces = {
                old: self.growers[1].pieces(row, state[kind].to(device=self.device, dtype=self.dtype))
                for old, state in states.items()
                if kind in state
            }
            grown = self._grown(self.growers[power], row, layer, pieces, fill=power == 2)
            # Second moments have no sign; the signs of parted rows are drawn.
            grown = self.growers[1].with_parted(row, grown, layer)
            result[kind] = grown.abs() if power == 2 else grown
        return result

    def _used(self, row: Row, layer: int | None) -> list[int]:
        """Return the source layers that reach a target layer, in rising order; [0] for a row without a depth axis."""
        grower = self.growers[1]
        return sorted(
            {
                old
                for term in grower.operator.terms
                for key in row.piece_keys()
                for old in torch.nonzero(grower.depth_matrix(term, key)[layer or 0]).flatten().tolist()
            }
        )

    def _grown(
        self, grower: Grower, row: Row, layer: int | None, tensors: Mapping[int, Pieces], *, fill: bool
    ) -> torch.Tensor:
        """Return sum_j D[i, j] B_j X_j A_j^T for state X. Unlike weights it has no rewrites, no drawn and no constant part."""
        out = []
        for number, ((_, dims), key) in enumerate(zip(row.layout.pieces(), row.piece_keys(), strict=True)):
            total = torch.zeros([grower.new.get(dim.parts[0], 1) for dim in dims], dtype=self.dtype, device=self.device)
            reached = [torch.zeros(size, dtype=torch.bool, device=self.device) for size in total.shape]
            for term in grower.operator.terms:
                weights = grower.depth_matrix(term, key)[layer or 0]
                for old, pieces in tensors.items():
                    if weights[old] == 0:
                        continue
                    source = None if row.depth is None else old
                    total = total + weights[old] * grower.widen(term, row, dims, pieces[number], source, layer)
                    for position, dim in enumerate(dims):
                        ones = torch.ones(pieces[number].shape[position], dtype=self.dtype, device=self.device)
                        reached[position] |= grower.widen(term, row, (dim,), ones, source, layer) != 0
            out.append(_filled(total, reached) if fill else total)
        return grower.join(row, out)


def _filled(second: torch.Tensor, reached: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return second moments with an estimate in the entries that nothing has reached.

    Args:
        second: zero in those entries.
        reached: for every dim, which of its entries are reached; an entry of the tensor is if it is in every dim.
    """
    if all(bool(along.all()) for along in reached) or not all(bool(along.any()) for along in reached):
        return second
    block = second[torch.meshgrid(*(along.nonzero().flatten() for along in reached), indexing="ij")]
    mean = block.mean()
    if mean <= 0:
        return second
    estimate = mean
    inside = torch.ones((), dtype=torch.bool, device=second.device)
    for position, along in enumerate(reached):
        others = [dim for dim in range(block.ndim) if dim != position]
        factor = torch.ones(len(along), dtype=second.dtype, device=second.device)
        factor[along] = (block.mean(others) if others else block) / mean
        shape = [-1 if dim == position else 1 for dim in range(second.ndim)]
        estimate = estimate * factor.view(shape)
        inside = inside & along.view(shape)
    return torch.where(inside, second, estimate)


class _Carried:
    """State of tensors that continue a source tensor: unchanged in old entries, fresh in new ones."""

    def __init__(self, operator: Operator, family: Family, moments: States, *, device: str, dtype: torch.dtype) -> None:
        self.family, self.moments, self.device, self.dtype = family, moments, device, dtype
        self.sources, self.parts = continued(family, operator), added_parts(family, operator)

    def state(self, name: str) -> State:
        """Return the state of a target tensor; empty if it has none."""
        state, part = self._source_state(name), self.parts[name]
        if not state:
            return {}
        index, result = self._index(name), _steps([state])
        for kind in state:
            if kind == STEP:
                continue
            grown = torch.zeros(part.shape, dtype=self.dtype, device=self.device)
            grown[self._places(name)] = state[kind].to(device=self.device, dtype=self.dtype)
            if KINDS[kind] == 2:
                reached = [torch.zeros(size, dtype=torch.bool, device=self.device) for size in part.shape]
                for along, chosen in zip(reached, index, strict=True):
                    along[torch.tensor(chosen, device=self.device)] = True
                grown = _filled(grown, reached)
            result[kind] = grown
        return result

    def over(self, mapped: State, name: str) -> State:
        """Return a mapped state of a target tensor with the old entries as they were."""
        own = self.state(name)
        for kind in own.keys() & mapped.keys() - {STEP}:
            places = self._places(name)
            whole = mapped[kind].clone()
            whole[places] = own[kind][places]
            own[kind] = whole
        return {**mapped, **own}

    def _source_state(self, name: str) -> Mapping[str, torch.Tensor]:
        source = self.sources.get(name)
        if source is None or not self.parts[name].old_elements:
            return {}
        return _state_of(self.family, self.moments, *source)

    def _index(self, name: str) -> list[np.ndarray]:
        """Return the old entries along every dim."""
        return [np.concatenate([np.arange(begin, end) for begin, end in ranges]) for ranges in self.parts[name].old]

    def _places(self, name: str) -> tuple[torch.Tensor, ...]:
        return tuple(torch.tensor(along, device=self.device) for along in np.ix_(*self._index(name)))
