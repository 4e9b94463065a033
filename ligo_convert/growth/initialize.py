"""The operator that learning begins at, the form it is learned in, and what a stored one must be.

What comes in: a `GrowthPlan`. What goes out: `Operator` data in numpy: the start's own maps in factors; the same multiplied out into the
dense maps that learning changes; the operator of training from scratch. LiGO, arXiv:2303.00980, section 3; the ties of its Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ligo_convert.families.schema import Family, Row
from ligo_convert.growth.growth_plan import GrowthPlan, grows
from ligo_convert.growth.maps import ROLES, Axis, Map, dense, identity_axis, kronecker, plain_axis, selection
from ligo_convert.growth.operator import Keying, Operator, Term
from ligo_convert.growth.width_methods import WIDTHS, WidthRequest, advance_axis, width_axis


def initial_operator(start: GrowthPlan, *, dtype: type[np.floating] = np.float32) -> Operator:
    """The operator that learning begins at, in factors: nothing is multiplied out."""
    family, growth = start.family, start.growth
    maps = {name: width_axis(growth.width, request) for name, request in _requests(start).items()}
    maps.update(_kept(start))
    rows = _grown_rows(start)
    terms = [_term(start, maps, rows, advance=False)]
    if WIDTHS[growth.width].advance and start.grows_width:
        terms.append(_term(start, {**_advanced(start), **_kept(start)}, rows, advance=True))
    operator = Operator(
        family=family.name,
        head=family.chosen.name,
        source=dict(start.source),
        target=dict(start.target),
        keying=growth.keying,
        tie="paper" if growth.tie == "paper" else None,
        terms=tuple(terms),
        drawn_layers={axis: found.drawn for axis, found in start.depths.items()},
        silent_layers={axis: found.silent for axis, found in start.depths.items()},
        seed=growth.seed,
        drawn_rows=start.drawn_rows,
        unit_layers=dict(start.units),
        rewrites=start.rewrites,
    )
    if operator.tie:
        operator = _tied(operator, family)
    return operator.map_arrays(lambda _, array: np.asarray(array, dtype=dtype))


def _grown_rows(start: GrowthPlan) -> tuple[Row, ...]:
    """The target's rows that take something from the source: what is drawn whole needs no maps."""
    return tuple(row for row in start.family.rows_for(start.target) if row.pattern not in start.drawn_rows)


def _requests(start: GrowthPlan) -> dict[str, WidthRequest]:
    """Axis or stream -> its request; a stream's own stands before its axis's."""
    return {**start.requests, **start.streams}


def _kept(start: GrowthPlan) -> dict[str, Axis]:
    """The axes that do not grow; classes of a new head have no source to be mapped from."""
    family = start.family
    old, new = family.sizes(start.source), family.sizes(start.target)
    axes = {axis: identity_axis(old[axis]) for axis in family.never_grown}
    labels = family.labels
    if labels and old[labels] != new[labels]:
        nothing = selection(np.zeros(new[labels]), old[labels], np.zeros(new[labels]))
        axes[labels] = plain_axis(nothing, nothing)
    return axes


def _advanced(start: GrowthPlan) -> dict[str, Axis]:
    found = {name: advance_axis(start.growth.width, request) for name, request in _requests(start).items()}
    return {axis: maps for axis, maps in found.items() if maps is not None}


def _term(start: GrowthPlan, axes: Mapping[str, Axis], rows: tuple[Row, ...], *, advance: bool) -> Term:
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
        if row.pattern in start.drawn_rows:
            continue
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


def _stream_factors(start: GrowthPlan, stream: str, axes: Mapping[str, Axis], *, advance: bool) -> tuple[Axis, ...]:
    """The maps of a stream's factors. Streams that meet in a scaled dot product get dual maps along the head size."""
    family = start.family
    # A stream with maps of its own has one factor, its axis.
    names = (stream,) if stream in axes else family.factors(stream)
    factors = [axes[name] for name in names]
    if "scale" not in family.roles[stream]:
        factors = [replace(axis, scale=axis.write) for axis in factors]
    requests = _requests(start)
    if advance:
        # One factor of a product carries the difference to the next layer (the one that grows), the others are as they were.
        growing = [at for at, name in enumerate(names) if name in requests and grows(requests[name])]
        carrier = growing[0] if growing else 0
        factors = [axis if at == carrier else identity_axis(axis.old) for at, axis in enumerate(factors)]
    for first, second in family.dot_products:
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
    start: GrowthPlan, row: Row, old: Mapping[str, int], new: Mapping[str, int], *, advance: bool
) -> np.ndarray:
    """D [new, old] of one row: one-hot, zero where a branch end is silent or the layer is drawn."""
    if row.depth is None:
        scale = start.head if start.family.feeds_head(row) else 1.0
        return np.full((1, 1), 0.0 if advance else scale)
    found = start.depths[row.depth]
    matrix = np.zeros((new[row.depth], old[row.depth]))
    end = start.family.is_residual_output(row)
    units = start.units.get(row.pattern, ())
    if advance and start.family.is_scale(row):
        return matrix
    for layer, source in enumerate(found.source):
        if found.drawn[layer] or (end and found.silent[layer]) or layer in units:
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
        for key in found.widths:
            maps = found.widths[_owner(family, key, found.widths)]
            widths[key] = tuple(replace(axis, read=axis.write, gain=axis.write, shift=axis.write) for axis in maps)
        return Term(widths=widths, depths=found.depths)

    return replace(operator, terms=tuple(term(found) for found in operator.terms))


def _owner(family: Family, key: str, widths: Mapping[str, tuple[Axis, ...]]) -> str:
    """Whose map a stream uses under the paper's ties: the one whose content it carries, at the same layer, where the sizes agree.

    Under grouped queries a context is longer than the value it carries, and keeps a map of its own.
    """
    stream, at, layer = key.partition("@")
    partner = family.content_of.get(stream, stream) + at + layer
    sizes = [math.prod(getattr(axis, end) for axis in widths[key]) for end in ("old", "new")]
    found = [math.prod(getattr(axis, end) for axis in widths.get(partner, ())) for end in ("old", "new")]
    return partner if found == sizes else key


def random_operator(start: GrowthPlan) -> Operator:
    """The operator of training from scratch: every tensor of the target drawn as the library initialises."""
    operator = initial_operator(start)
    return replace(
        operator,
        terms=(Term(widths={}, depths={}),),
        keying="shared",
        tie=None,
        silent_layers={},
        unit_layers={},
        rewrites=(),
        drawn_rows=tuple(row.pattern for row in start.family.rows_for(start.target)),
    )


def learned_parameters(start: GrowthPlan) -> int:
    """How many coefficients `learnable` makes of this start's operator, from sizes alone."""
    family, tied = start.family, start.growth.tie == "paper"
    old, new = family.sizes(start.source), family.sizes(start.target)
    rows = _grown_rows(start)
    roles = family.roles_for(start.target)
    terms = 2 if WIDTHS[start.growth.width].advance and start.grows_width else 1
    total = 0
    for stream in dict.fromkeys(stream for row in rows for stream in row.layout.streams):
        partner = family.content_of.get(stream)
        if tied and partner and old[partner] == old[stream] and new[partner] == new[stream]:
            continue
        factors = [axis for axis in family.factors(stream) if axis not in family.rotary_axes]
        if not any(axis in start.requests and grows(start.requests[axis]) for axis in factors):
            continue
        one = math.prod(old[axis] for axis in factors) * math.prod(new[axis] for axis in factors)
        total += (
            one
            * (1 if tied else len(roles[stream] - {"scale"}))
            * len(stream_keys(family, stream, start.growth.keying, old, new, rows))
        )
    modules = {
        _module(key) if tied else key: old[row.depth] * new[row.depth]
        for row in rows
        if row.depth is not None and row.pattern not in start.drawn_rows and not family.is_scale(row)
        for key in row.piece_keys()
    }
    return terms * (total + sum(modules.values()))


def learnable(operator: Operator, family: Family) -> Operator:
    """The operator in the form that is learned: growing streams as dense maps, the others left as they are.

    A stream's factors are multiplied out, as the paper's B is, but for `fixed` axes, whose entries keep their places: rotary
    pairs must not be mixed. Maps that were one stay one, so ties and shared keys are kept.
    """
    done: dict[str, Axis] = {}
    roles = family.roles_for(operator.target)

    def grown(key: str, factors: tuple[Axis, ...], widths: Mapping[str, tuple[Axis, ...]]) -> tuple[Axis, ...]:
        stream = key.partition("@")[0]
        names = family.factors(stream)
        split = len(names)
        while split > 0 and names[split - 1] in family.rotary_axes:
            split -= 1
        product = list(factors[:split])
        if not product:
            return factors
        if not operator.tie:
            return (_dense_axis(product, roles[stream]), *factors[split:])
        owner = _owner(family, key, widths)
        if owner not in done:
            made = dense(kronecker([axis.write for axis in product]))
            done[owner] = Axis(
                write=made, read=made, gain=made, shift=made, scale=_scale(product, made), drawn=_drawn(product)
            )
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
    made = {
        role: dense(kronecker([axis.role(role) for axis in factors]))
        for role in ROLES
        if role in roles and role != "scale"
    }
    other = next(iter(made.values()))
    made["scale"] = _scale(factors, other) if "scale" in roles else other
    return Axis(**{role: made.get(role, other) for role in ROLES}, drawn=_drawn(factors))


def _scale(factors: list[Axis], made: Map) -> Map:
    """The map of a LayerScale stays as the start has it: what is learned is the branch as it arrives, scale and all."""
    return factors[0].scale if len(factors) == 1 else made


def _drawn(factors: list[Axis]) -> np.ndarray | None:
    """[new] bool over a product of axes: an entry is drawn where any of its factors is."""
    if all(axis.drawn is None for axis in factors):
        return None
    drawn = np.zeros(1, dtype=bool)
    for axis in factors:
        flags = axis.drawn if axis.drawn is not None else np.zeros(axis.new, dtype=bool)
        drawn = np.logical_or.outer(drawn, flags).reshape(-1)
    return drawn
