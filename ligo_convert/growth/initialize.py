"""Build initial growth operators, and convert them to the dense form that is learned.

Input: a `GrowthPlan`. Output: `Operator` data in numpy: the maps of the growth methods as factors; the same maps multiplied out into the
dense matrices that learning changes; the operator of training from scratch.

Source: LiGO, arXiv:2303.00980, section 3; the ties of its Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ligo_convert.families.schema import Family, Row
from ligo_convert.growth.growth_plan import GrowthPlan, grows
from ligo_convert.growth.maps import ROLES, Axis, Map, dense, identity_axis, kronecker, plain_axis, selection
from ligo_convert.growth.operator import Keying, Operator, Term, draws_row
from ligo_convert.growth.twins import Symmetry, parted_entries, symmetry_of
from ligo_convert.growth.width_methods import WIDTHS, WidthRequest, advance_axis, width_axis


def initial_operator(plan: GrowthPlan, *, dtype: type[np.floating] = np.float32) -> Operator:
    """Return the operator of the plan's growth methods, in factors: nothing is multiplied out."""
    family, growth = plan.family, plan.growth
    maps, rows = _axis_maps(plan), _grown_rows(plan)
    terms = [_term(plan, axes, rows, advance=number > 0) for number, axes in enumerate(maps)]
    operator = Operator(
        family=family.name,
        head=family.chosen.name,
        source=dict(plan.source),
        target=dict(plan.target),
        keying=growth.keying,
        tie="paper" if growth.tie == "paper" else None,
        terms=tuple(terms),
        drawn_layers={axis: found.drawn for axis, found in plan.depths.items()},
        silent_layers={axis: found.silent for axis, found in plan.depths.items()},
        seed=growth.seed,
        drawn_rows=plan.drawn_rows,
        unit_layers=dict(plan.units),
        rewrites=plan.rewrites,
        parted=parted_entries(family, maps[0], _silent(plan)),
    )
    if operator.tie:
        operator = _tied(operator, family)
    return operator.map_arrays(lambda _, array: np.asarray(array, dtype=dtype))


def symmetry(plan: GrowthPlan) -> Symmetry:
    """Return the twins and dead entries of the plan's start."""
    terms = _axis_maps(plan)
    if plan.growth.tie == "paper":
        terms = [{name: _read_as_written(axis) for name, axis in axes.items()} for axes in terms]
    drawn = any(any(found.drawn) for found in plan.depths.values())
    return symmetry_of(plan.family, terms, _silent(plan), drawn=drawn)


def _silent(plan: GrowthPlan) -> dict[str, tuple[bool, ...]]:
    """Return depth axis -> which layers are silent copies. In a silent layer that is drawn there is nothing to part."""
    return {
        axis: tuple(silent and not drawn for silent, drawn in zip(found.silent, found.drawn, strict=True))
        for axis, found in plan.depths.items()
    }


def _axis_maps(plan: GrowthPlan) -> list[dict[str, Axis]]:
    """Return the maps of every axis, and of every stream with its own request, for each term of the operator."""
    width = plan.growth.width
    terms = [{name: width_axis(width, request) for name, request in _requests(plan).items()} | _kept(plan)]
    if WIDTHS[width].advance and plan.grows_width:
        terms.append({**_advanced(plan), **_kept(plan)})
    return terms


def _grown_rows(plan: GrowthPlan) -> tuple[Row, ...]:
    """Return the target's rows that take weights from the source. Rows drawn as a whole need no maps."""
    return tuple(row for row in plan.family.rows_for(plan.target) if row.pattern not in plan.drawn_rows)


def _requests(plan: GrowthPlan) -> dict[str, WidthRequest]:
    """Return axis or stream -> width request. A stream's own request overrides that of its axis."""
    return {**plan.requests, **plan.streams}


def _kept(plan: GrowthPlan) -> dict[str, Axis]:
    """Return the maps of axes that never grow. The classes of a new head take nothing from the source."""
    family = plan.family
    old, new = family.sizes(plan.source), family.sizes(plan.target)
    axes = {axis: identity_axis(old[axis]) for axis in family.never_grown}
    labels = family.labels
    if labels and old[labels] and old[labels] != new[labels]:
        nothing = selection(np.zeros(new[labels]), old[labels], np.zeros(new[labels]))
        axes[labels] = plain_axis(nothing, nothing)
    return axes


def _advanced(plan: GrowthPlan) -> dict[str, Axis]:
    found = {name: advance_axis(plan.growth.width, request) for name, request in _requests(plan).items()}
    return {axis: maps for axis, maps in found.items() if maps is not None}


def _term(plan: GrowthPlan, axes: Mapping[str, Axis], rows: tuple[Row, ...], *, advance: bool) -> Term:
    family = plan.family
    old, new = family.sizes(plan.source), family.sizes(plan.target)
    streams = dict.fromkeys(stream for row in rows for stream in row.layout.streams)
    widths: dict[str, tuple[Axis, ...]] = {}
    for stream in streams:
        factors = _stream_factors(plan, stream, axes, advance=advance)
        # Streams that do not grow have no maps.
        if not all(axis.is_identity for axis in factors):
            widths.update(dict.fromkeys(stream_keys(family, stream, plan.growth.keying, old, new, rows), factors))
    depths: dict[str, np.ndarray] = {}
    for row in rows:
        if row.pattern in plan.drawn_rows:
            continue
        for key in row.piece_keys():
            depths[key] = _depth_matrix(plan, row, old, new, advance=advance)
    return Term(widths=widths, depths=depths)


def stream_keys(
    family: Family, stream: str, keying: Keying, old: Mapping[str, int], new: Mapping[str, int], rows: tuple[Row, ...]
) -> list[str]:
    """Return the keys of a stream's maps in `Term.widths`: one key per layer, or one for a shared or global stream."""
    if keying == "shared" or stream in family.global_streams:
        return [stream]
    axes = dict.fromkeys(row.depth for row in rows if row.depth and stream in row.layout.streams)
    sizes = old if keying == "source" else new
    return [f"{stream}@{axis}.{layer}" for axis in axes for layer in range(sizes[axis])]


def _stream_factors(plan: GrowthPlan, stream: str, axes: Mapping[str, Axis], *, advance: bool) -> tuple[Axis, ...]:
    """Return the maps of a stream's factors. The two streams of a scaled dot product get dual maps along the head size."""
    family = plan.family
    # A stream with its own maps has one factor.
    names = (stream,) if stream in axes else family.factors(stream)
    factors = [axes[name] for name in names]
    if "scale" not in family.roles[stream]:
        factors = [replace(axis, scale=axis.write) for axis in factors]
    requests = _requests(plan)
    if advance:
        # The growing factor takes the difference to the next layer; the other factors stay unchanged.
        growing = [number for number, name in enumerate(names) if name in requests and grows(requests[name])]
        advanced = growing[0] if growing else 0
        factors = [axis if number == advanced else identity_axis(axis.old) for number, axis in enumerate(factors)]
    for first, second in family.dot_products:
        if stream not in (first, second):
            continue
        last = family.factors(stream)[-1]
        request_last = plan.requests.get(last)
        if request_last is None or request_last.old == request_last.new or not WIDTHS[plan.growth.width].rescales:
            continue
        scaled = not family.scale_key or bool(family.complete(plan.source).get(family.scale_key))
        root = float(np.sqrt(request_last.new / request_last.old)) if scaled else 1.0
        axis = factors[-1]
        written = axis.write.scaled(root) if stream == first else axis.read
        factors[-1] = replace(axis, write=written, gain=written, shift=written)
    # A new query without weights attends evenly and mixes old values: what reads it is not free, as it is where values are zero, too.
    content = family.content_of.get(stream)
    for number, name in enumerate(names if content else ()):
        if name in family.norm.axes and name not in family.factors(content or ""):
            read = factors[number].read
            factors[number] = replace(factors[number], read=replace(read, tail=np.zeros_like(read.tail)))
    if stream in plan.inner:
        factors[-1] = replace(factors[-1], write=factors[-1].write.scaled(plan.inner[stream]))
    return tuple(factors)


def _depth_matrix(
    plan: GrowthPlan, row: Row, old: Mapping[str, int], new: Mapping[str, int], *, advance: bool
) -> np.ndarray:
    """Return D [new, old] of one row: one-hot, with zero rows for drawn layers and for the branch outputs of silent layers."""
    if row.depth is None:
        scale = plan.head if plan.family.feeds_head(row) else 1.0
        if WIDTHS[plan.growth.width].rescales and row.pattern not in plan.family.tied:
            scale /= plan.family.width_change(row.pattern, old, new)
        return np.full((1, 1), 0.0 if advance else scale)
    found = plan.depths[row.depth]
    matrix = np.zeros((new[row.depth], old[row.depth]))
    end = plan.family.is_residual_output(row)
    units = plan.units.get(row.pattern, ())
    if advance and plan.family.is_scale(row):
        return matrix
    for layer, origin in enumerate(found.source):
        if layer < row.first:
            continue
        # A silent copy of the first layer takes from the second what the first lacks.
        source = max(origin, row.first)
        if draws_row(plan.family, row, drawn=found.drawn[layer], silent=found.silent[layer]):
            continue
        if (end and found.silent[layer]) or layer in units:
            continue
        if advance:
            matrix[layer, source] -= 1.0
            matrix[layer, min(source + 1, old[row.depth] - 1)] += 1.0
        else:
            matrix[layer, source] = 1.0
    return matrix


def _tied(operator: Operator, family: Family) -> Operator:
    """Apply the paper's ties: reads, gains and shifts use the write map of their stream."""

    def term(found: Term) -> Term:
        widths = {}
        for key in found.widths:
            maps = found.widths[_owner(family, key, found.widths)]
            widths[key] = tuple(map(_read_as_written, maps))
        return Term(widths=widths, depths=found.depths)

    return replace(operator, terms=tuple(term(found) for found in operator.terms))


def _read_as_written(axis: Axis) -> Axis:
    return replace(axis, read=axis.write, gain=axis.write, shift=axis.write)


def _owner(family: Family, key: str, widths: Mapping[str, tuple[Axis, ...]]) -> str:
    """Return the key of the map that a stream uses under the paper's ties: that of the stream with the same content, same layer, same size.

    With grouped queries a context is longer than the value that it mixes, and keeps its own map.
    """
    stream, at, layer = key.partition("@")
    partner = family.content_of.get(stream, stream) + at + layer
    sizes = [math.prod(getattr(axis, end) for axis in widths[key]) for end in ("old", "new")]
    found = [math.prod(getattr(axis, end) for axis in widths.get(partner, ())) for end in ("old", "new")]
    return partner if found == sizes else key


def random_operator(plan: GrowthPlan) -> Operator:
    """Return the operator of training from scratch: every target tensor is initialised randomly, as the library does it."""
    operator = initial_operator(plan)
    return replace(
        operator,
        terms=(Term(widths={}, depths={}),),
        keying="shared",
        tie=None,
        silent_layers={},
        unit_layers={},
        rewrites=(),
        parted={},
        drawn_rows=tuple(row.pattern for row in plan.family.rows_for(plan.target)),
    )


def learned_parameters(plan: GrowthPlan) -> int:
    """Return the number of coefficients in the `learnable` form of this plan's operator, from sizes alone."""
    family, tied = plan.family, plan.growth.tie == "paper"
    old, new = family.sizes(plan.source), family.sizes(plan.target)
    rows = _grown_rows(plan)
    roles = family.roles_for(plan.target)
    terms = 2 if WIDTHS[plan.growth.width].advance and plan.grows_width else 1
    total = 0
    for stream in dict.fromkeys(stream for row in rows for stream in row.layout.streams):
        partner = family.content_of.get(stream)
        if tied and partner and old[partner] == old[stream] and new[partner] == new[stream]:
            continue
        factors = [axis for axis in family.factors(stream) if axis not in family.rotary_axes]
        if not any(axis in plan.requests and grows(plan.requests[axis]) for axis in factors):
            continue
        one = math.prod(old[axis] for axis in factors) * math.prod(new[axis] for axis in factors)
        total += (
            one
            * (1 if tied else len(roles[stream] - {"scale"}))
            * len(stream_keys(family, stream, plan.growth.keying, old, new, rows))
        )
    modules = {
        _module(key) if tied else key: old[row.depth] * new[row.depth]
        for row in rows
        if row.depth is not None and row.pattern not in plan.drawn_rows and not family.is_scale(row)
        for key in row.piece_keys()
    }
    return terms * (total + sum(modules.values()))


def learnable(operator: Operator, family: Family) -> Operator:
    """Return the operator in the form that is learned: growing streams have dense maps, the others stay as they are.

    The factors of a stream are multiplied out, as in the paper's B. Rotary axes are excluded: their entries must not be mixed. Maps that
    were one object stay one object, so that ties and shared keys are kept.
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
    """Return the module of a piece. In the paper the weight and bias of a module share one depth matrix."""
    pattern, _, part = key.partition("/")
    return pattern.rpartition(".")[0] + "/" + part


def _dense_axis(factors: list[Axis], roles: frozenset[str]) -> Axis:
    """Return one axis for a product of axes, with its own dense map for every role in `roles`. Other roles are not used."""
    made = {
        role: dense(kronecker([axis.role(role) for axis in factors]))
        for role in ROLES
        if role in roles and role != "scale"
    }
    other = next(iter(made.values()))
    made["scale"] = _scale(factors, other) if "scale" in roles else other
    return Axis(**{role: made.get(role, other) for role in ROLES}, drawn=_drawn(factors))


def _scale(factors: list[Axis], made: Map) -> Map:
    """Keep the map of a LayerScale as initialised: the learned maps act on the branch output, which includes the scale."""
    return factors[0].scale if len(factors) == 1 else made


def _drawn(factors: list[Axis]) -> np.ndarray | None:
    """Return which entries of a product of axes are drawn: [new] bool. An entry is drawn if any of its factors is."""
    if all(axis.drawn is None for axis in factors):
        return None
    drawn = np.zeros(1, dtype=bool)
    for axis in factors:
        flags = axis.drawn if axis.drawn is not None else np.zeros(axis.new, dtype=bool)
        drawn = np.logical_or.outer(drawn, flags).reshape(-1)
    return drawn
