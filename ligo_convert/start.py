"""From a recipe's `growth` to the operator that learning begins at, and what that start promises.

What comes in: a family, the source's and the target's config, the names of the starts. What goes out: a `Start`, decided from
the configs alone (its verdict, its reasons, what it changes in the target's config), and, asked for separately because it
makes arrays, the initial `Operator`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ligo_convert.errors import RecipeError, SourceError
from ligo_convert.family import Family, Row
from ligo_convert.maps import Axis, corner, dense, identity_axis, kronecker, plain_axis
from ligo_convert.methods import (
    DEPTHS,
    WIDTHS,
    CannotPreserve,
    Claim,
    DepthMap,
    Verdict,
    WidthRequest,
    advance_axis,
    depth_map,
    width_axis,
    width_claim,
)
from ligo_convert.operator import ROLES, Keying, Operator, Term

_RANK: dict[Verdict, int] = {"exact": 0, "near": 1, "lossy": 2}


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The recipe's `growth`, as this floor needs it."""

    width: str
    depth: str
    keying: Keying
    tie: str | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why a start is what it is; `breaks` where it is not a start's own doing and a promise cannot stand beside it."""

    verdict: Verdict
    text: str
    breaks: bool = False


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a start will do, known before a weight is read.

    Attributes:
        source, target: the configs; the target's with the start's own edits (epsilon, lists with an entry a layer).
        verdict, reasons: of the map; one reason for every axis that grows, worst first.
        requests: axis -> width request. depths: depth axis -> where its layers come from. head: factor on the head's norm.
    """

    family: Family
    growth: Growth
    source: Mapping[str, object]
    target: Mapping[str, object]
    verdict: Verdict
    reasons: tuple[str, ...]
    requests: Mapping[str, WidthRequest]
    depths: Mapping[str, DepthMap]
    head: float

    @property
    def grows_width(self) -> bool:
        return any(map(_grows, self.requests.values()))

    @property
    def copies_only(self) -> bool:
        """Whether every target tensor is a source tensor, byte for byte (but for its dtype)."""
        silent = any(any(found.silent) or any(found.drawn) for found in self.depths.values())
        return not self.grows_width and not silent


def plan_start(
    family: Family,
    growth: Growth,
    source: Mapping[str, object],
    target: Mapping[str, object],
    *,
    asked: Mapping[str, object],
    where: str,
) -> Start:
    """Decide what the starts do from configs alone.

    Args:
        source, target: configs, the target's as `Family.resize` gave it. asked: what the recipe itself set in the target.

    Raises:
        RecipeError: a start that promises the function and cannot keep it here, or `copy` for an axis that grows.
    """
    old, new = family.sizes(source), family.sizes(target)
    tied = family.is_tied(target)
    growing = tuple(axis for axis in family.axes if axis not in family.kept and axis not in family.depth_axes)
    requests = {
        axis: WidthRequest(
            axis=axis,
            old=old[axis],
            new=new[axis],
            norm=family.norm.kind if axis == family.norm.stream else None,
            tied_head=tied,
            seed=growth.seed,
        )
        for axis in growing
    }
    claims = {}
    for axis, request in requests.items():
        try:
            claims[axis] = width_claim(growth.width, request)
        except CannotPreserve as error:
            raise RecipeError(f"growth.width: {growth.width}: {error}", where=where) from None
    reasons = [
        Reason(verdict=claim.verdict, text=f"{axis} {old[axis]} to {new[axis]} by {growth.width}: {claim.reason}")
        for axis, claim in claims.items()
        if old[axis] != new[axis]
    ]
    depths, depth_reasons = _plan_depth(family, growth, source, old, new, where)
    reasons += depth_reasons
    changed = family.changed_function(source, target)
    if changed:
        reasons.append(Reason(verdict="lossy", text="the target's config changes " + ", ".join(changed), breaks=True))
    if growth.tie == "paper" and any(map(_grows, requests.values())):
        reasons.append(Reason(verdict="lossy", text="tie: paper reads with the write maps"))
    final, edits = _edit_config(family, source, target, claims, asked, depths, where)
    reasons += edits
    broken = [reason for reason in reasons if reason.breaks]
    grows = any(map(_grows, requests.values()))
    if grows and WIDTHS[growth.width].advance:
        _refuse_two_at_once(family, growth, requests, where)
    if broken and grows and WIDTHS[growth.width].preserving:
        raise RecipeError(
            f"growth.width: {growth.width} promises the source's function, and {broken[0].text}", where=where
        )
    return Start(
        family=family,
        growth=growth,
        source=source,
        target=final,
        verdict=max((reason.verdict for reason in reasons), key=_RANK.__getitem__, default="exact"),
        reasons=tuple(reason.text for reason in sorted(reasons, key=lambda reason: -_RANK[reason.verdict])),
        requests=requests,
        depths=depths,
        head=math.prod(claim.head for claim in claims.values()),
    )


def _grows(request: WidthRequest) -> bool:
    return request.old != request.new


def _refuse_two_at_once(family: Family, growth: Growth, requests: Mapping[str, WidthRequest], where: str) -> None:
    """What is added along two factors of a stream at once is no product, and a second term cannot hold it."""
    for stream in family.streams:
        grown = [axis for axis in family.factors(stream) if axis in requests and _grows(requests[axis])]
        if len(grown) > 1:
            raise RecipeError(
                f"growth.width: {growth.width}: {stream} would grow along {' and '.join(grown)} at once",
                where=where,
                hint="grow one of them, or take net2net",
            )


def _plan_depth(
    family: Family,
    growth: Growth,
    source: Mapping[str, object],
    old: Mapping[str, int],
    new: Mapping[str, int],
    where: str,
) -> tuple[dict[str, DepthMap], list[Reason]]:
    depths, reasons = {}, []
    for axis in family.depth_axes:
        grows = old[axis] != new[axis]
        if grows and growth.depth == "copy":
            raise RecipeError(
                f"growth.depth: copy: {axis} grows from {old[axis]} to {new[axis]}, and `copy` is for a depth that does not grow",
                where=where,
            )
        depths[axis] = depth_map(growth.depth, old[axis], new[axis])
        if grows:
            start = DEPTHS[growth.depth]
            text = f"{axis} {old[axis]} to {new[axis]} by {growth.depth}: {start.reason}"
            reasons.append(Reason(verdict=start.verdict, text=text))
    moved = [key for key in family.index_keys if family.complete(source).get(key)]
    if reasons and moved:
        if growth.depth == "identity":
            raise RecipeError(
                f"growth.depth: identity: {moved[0]} makes a layer depend on its index, so moving layers changes the function",
                where=where,
            )
        reasons.append(Reason(verdict="lossy", text=f"{moved[0]} makes a layer depend on its index"))
    return depths, reasons


def epsilon_of(family: Family, config: Mapping[str, object]) -> float:
    """The norm's epsilon that a config states. Raises SourceError where it is no positive number."""
    value = family.complete(config)[family.norm.epsilon]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise SourceError(f"{family.norm.epsilon} is {value!r}, and must be a positive number", where="config.json")
    return float(value)


def _edit_config(
    family: Family,
    source: Mapping[str, object],
    target: Mapping[str, object],
    claims: Mapping[str, Claim],
    asked: Mapping[str, object],
    depths: Mapping[str, DepthMap],
    where: str,
) -> tuple[dict[str, object], list[Reason]]:
    """The target's config with what the start changes in it: epsilon, and lists with an entry a layer."""
    final, reasons = dict(target), []
    key = family.norm.epsilon
    old_value = epsilon_of(family, source)
    ratio = math.prod(claim.epsilon for claim in claims.values())
    # To 15 digits: 7.5e-06, not 7.500000000000001e-06.
    wanted = float(f"{old_value * ratio:.15g}") if ratio != 1 else old_value
    if key in asked and asked[key] != wanted:
        chosen = asked[key]
        if isinstance(chosen, bool) or not isinstance(chosen, (int, float)) or chosen <= 0:
            raise RecipeError(f"{key} is {chosen!r}, and must be a positive number", where=where)
        # An epsilon matters where a variance is as small; within a factor of ten it is a shade, beyond it is a change.
        small: Verdict = "near" if 0.1 <= chosen / wanted <= 10 else "lossy"
        text = f"the recipe sets {key} = {chosen} where {wanted} would be exact"
        reasons.append(Reason(verdict=small, text=text, breaks=True))
    elif wanted != old_value:
        final[key] = wanted
    for name, axis in family.layer_lists.items():
        values = source.get(name)
        if isinstance(values, list) and name not in asked:
            final[name] = [values[layer] for layer in depths[axis].source]
    return final, reasons


# The operator.


def initial_operator(start: Start, *, dtype: type[np.floating] = np.float32) -> Operator:
    """The operator that learning begins at, in factors: nothing is multiplied out."""
    family, growth = start.family, start.growth
    axes = {axis: width_axis(growth.width, request) for axis, request in start.requests.items()}
    sizes = family.sizes(start.source)
    kept = {axis: identity_axis(sizes[axis]) for axis in family.kept}
    rows = family.rows_for(start.target, optional=[row.pattern for row in family.rows])
    terms = [_term(start, {**axes, **kept}, rows, advance=False)]
    if WIDTHS[growth.width].advance and start.grows_width:
        terms.append(_term(start, {**_advanced(start), **kept}, rows, advance=True))
    operator = Operator(
        family=family.name,
        source=dict(start.source),
        target=dict(start.target),
        keying=growth.keying,
        tie="paper" if growth.tie == "paper" else None,
        terms=tuple(terms),
        drawn_layers={axis: found.drawn for axis, found in start.depths.items()},
        silent_layers={axis: found.silent for axis, found in start.depths.items()},
        seed=growth.seed,
    )
    if operator.tie:
        operator = _tied(operator, family)
    return operator.map_arrays(lambda _, array: np.asarray(array, dtype=dtype))


def _advanced(start: Start) -> dict[str, Axis]:
    found = {axis: advance_axis(start.growth.width, request) for axis, request in start.requests.items()}
    return {axis: maps for axis, maps in found.items() if maps is not None}


def _term(start: Start, axes: Mapping[str, Axis], rows: tuple[Row, ...], *, advance: bool) -> Term:
    family = start.family
    old, new = family.sizes(start.source), family.sizes(start.target)
    streams = dict.fromkeys(stream for row in rows for stream in row.layout.streams)
    widths: dict[str, tuple[Axis, ...]] = {}
    for stream in streams:
        factors = _stream_factors(start, stream, axes, advance=advance)
        # What does not grow is left out: a stream without maps is passed on.
        if not all(axis.is_identity for axis in factors):
            widths.update(dict.fromkeys(stream_keys(family, stream, start.growth.keying, old, new, rows), factors))
    depths: dict[str, np.ndarray] = {}
    for row in rows:
        for key in row.piece_keys():
            depths[key] = _depth_matrix(start, row, old, new, advance=advance)
    return Term(widths=widths, depths=depths)


def stream_keys(
    family: Family, stream: str, keying: Keying, old: Mapping[str, int], new: Mapping[str, int], rows: tuple[Row, ...]
) -> list[str]:
    """The names under which the maps of a stream are kept: by layer unless shared, or seen outside the layers, or never grown."""
    if keying == "shared" or stream in family.global_streams:
        return [stream]
    axes = dict.fromkeys(row.depth for row in rows if row.depth and stream in row.layout.streams)
    sizes = old if keying == "source" else new
    return [f"{stream}@{axis}.{layer}" for axis in axes for layer in range(sizes[axis])]


def _stream_factors(start: Start, stream: str, axes: Mapping[str, Axis], *, advance: bool) -> tuple[Axis, ...]:
    """The maps of a stream's factors. Streams that meet in a scaled dot product get dual maps along the head size."""
    family = start.family
    names = family.factors(stream)
    factors = [axes[axis] for axis in names]
    if advance:
        # One factor of a product carries the difference to the next layer (the one that grows), the others are as they were.
        growing = [at for at, axis in enumerate(names) if axis in start.requests and _grows(start.requests[axis])]
        carrier = growing[0] if growing else 0
        factors = [axis if at == carrier else identity_axis(axis.old) for at, axis in enumerate(factors)]
    for first, second in family.products:
        if stream not in (first, second):
            continue
        last = family.factors(stream)[-1]
        request_last = start.requests.get(last)
        if request_last is None or request_last.old == request_last.new or not WIDTHS[start.growth.width].rescales:
            continue
        scaled = not family.scale_key or bool(family.complete(start.source).get(family.scale_key))
        root = float(np.sqrt(request_last.new / request_last.old)) if scaled else 1.0
        axis = factors[-1]
        written = axis.write.scaled(root) if stream == first else axis.read
        factors[-1] = replace(axis, write=written, gain=written, shift=written)
    return tuple(factors)


def _depth_matrix(
    start: Start, row: Row, old: Mapping[str, int], new: Mapping[str, int], *, advance: bool
) -> np.ndarray:
    """D [new, old] of one row: one-hot, zero where a branch end is silent or the layer is drawn."""
    if row.depth is None:
        scale = start.head if start.family.feeds_head(row) else 1.0
        return np.full((1, 1), 0.0 if advance else scale)
    found = start.depths[row.depth]
    matrix = np.zeros((new[row.depth], old[row.depth]))
    end = start.family.is_branch_end(row)
    for layer, source in enumerate(found.source):
        if found.drawn[layer] or (end and found.silent[layer]):
            continue
        if advance:
            matrix[layer, source] -= 1.0
            matrix[layer, min(source + 1, old[row.depth] - 1)] += 1.0
        else:
            matrix[layer, source] = 1.0
    return matrix


def _tied(operator: Operator, family: Family) -> Operator:
    """The paper's ties: what is read, and a norm's gain and shift, use the map that the stream is written with."""

    def term(found: Term) -> Term:
        widths = {}
        for key, factors in found.widths.items():
            maps = found.widths[_owner(family, key, found.widths)]
            widths[key] = tuple(
                Axis(write=axis.write, read=axis.write, gain=axis.write, shift=axis.write, drawn=axis.drawn)
                for axis in maps
            )
        return Term(widths=widths, depths=found.depths)

    return replace(operator, terms=tuple(term(found) for found in operator.terms))


def _owner(family: Family, key: str, widths: Mapping[str, tuple[Axis, ...]]) -> str:
    """Whose map a stream uses under the paper's ties: the one whose content it carries, at the same layer, where the sizes agree.

    Under grouped queries a context is longer than the value it carries, and keeps a map of its own.
    """
    stream, at, layer = key.partition("@")
    partner = family.carries.get(stream, stream) + at + layer
    sizes = [math.prod(getattr(axis, end) for axis in widths[key]) for end in ("old", "new")]
    found = [math.prod(getattr(axis, end) for axis in widths.get(partner, ())) for end in ("old", "new")]
    return partner if found == sizes else key


def random_operator(start: Start) -> Operator:
    """The operator of training from scratch: every tensor of the target drawn as the library initialises."""
    operator = initial_operator(start)
    old, new = start.family.sizes(start.source), start.family.sizes(start.target)
    widths = {}
    for stream in start.family.roles:
        if stream not in (*start.family.kept, "1"):
            nothing = corner(old[stream], new[stream]).scaled(0.0)
            widths[stream] = (plain_axis(nothing, nothing, drawn=np.ones(new[stream], dtype=bool)),)
    term = Term(widths=widths, depths=operator.terms[0].depths)
    return replace(operator, terms=(term,), keying="shared", tie=None, silent_layers={})


def learned_parameters(start: Start) -> int:
    """How many coefficients `learnable` makes of this start's operator, from sizes alone."""
    family, tied = start.family, start.growth.tie == "paper"
    old, new = family.sizes(start.source), family.sizes(start.target)
    rows = family.rows_for(start.target)
    terms = 2 if WIDTHS[start.growth.width].advance and start.grows_width else 1
    total = 0
    for stream in dict.fromkeys(stream for row in rows for stream in row.layout.streams):
        partner = family.carries.get(stream)
        if tied and partner and old[partner] == old[stream] and new[partner] == new[stream]:
            continue
        factors = [axis for axis in family.factors(stream) if axis not in family.fixed]
        if not any(axis in start.requests and _grows(start.requests[axis]) for axis in factors):
            continue
        one = math.prod(old[axis] for axis in factors) * math.prod(new[axis] for axis in factors)
        total += one * (1 if tied else len(family.roles[stream])) * len(stream_keys(family, stream, start.growth.keying, old, new, rows))
    modules = {
        _module(key) if tied else key: old[row.depth] * new[row.depth]
        for row in rows
        if row.depth is not None
        for key in row.piece_keys()
    }
    return terms * (total + sum(modules.values()))


def learnable(operator: Operator, family: Family) -> Operator:
    """The operator in the form that is learned: growing streams as dense maps, the others left as they are.

    A stream's factors are multiplied out, as the paper's B is, but for `fixed` axes, whose entries keep their places: rotary
    pairs must not be mixed. Maps that were one stay one, so ties and shared keys are kept.
    """
    done: dict[str, Axis] = {}

    def grown(key: str, factors: tuple[Axis, ...], widths: Mapping[str, tuple[Axis, ...]]) -> tuple[Axis, ...]:
        stream = key.partition("@")[0]
        names = family.factors(stream)
        split = len(names)
        while split > 0 and names[split - 1] in family.fixed:
            split -= 1
        product = list(factors[:split])
        if not operator.tie:
            return (_dense_axis(product, family.roles[stream]), *factors[split:])
        owner = _owner(family, key, widths)
        if owner not in done:
            made = dense(kronecker([axis.write for axis in product]))
            done[owner] = Axis(write=made, read=made, gain=made, shift=made, drawn=_drawn(product))
        return (done[owner], *factors[split:])

    def term(found: Term) -> Term:
        widths = {key: grown(key, factors, found.widths) for key, factors in found.widths.items()}
        if not operator.tie:
            return Term(widths=widths, depths=dict(found.depths))
        modules: dict[str, np.ndarray] = {}
        for key, array in found.depths.items():
            modules.setdefault(_module(key), array)
        return Term(widths=widths, depths={key: modules[_module(key)] for key in found.depths})

    return replace(operator, terms=tuple(term(found) for found in operator.terms))


def _module(key: str) -> str:
    """The module that a piece belongs to: the paper has one depth matrix for a module's weight and bias."""
    pattern, _, part = key.partition("/")
    return pattern.rpartition(".")[0] + "/" + part


def _dense_axis(factors: list[Axis], roles: frozenset[str]) -> Axis:
    """One axis for a product of axes, with a dense map of its own for every role in `roles`; the others are never asked for."""
    made = {role: dense(kronecker([axis.role(role) for axis in factors])) for role in ROLES if role in roles}
    other = next(iter(made.values()))
    return Axis(**{role: made.get(role, other) for role in ROLES}, drawn=_drawn(factors))


def _drawn(factors: list[Axis]) -> np.ndarray | None:
    """[new] bool over a product of axes: an entry is drawn where any of its factors is."""
    if all(axis.drawn is None for axis in factors):
        return None
    drawn = np.zeros(1, dtype=bool)
    for axis in factors:
        flags = axis.drawn if axis.drawn is not None else np.zeros(axis.new, dtype=bool)
        drawn = np.logical_or.outer(drawn, flags).reshape(-1)
    return drawn
