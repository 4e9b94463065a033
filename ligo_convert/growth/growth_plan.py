"""Decide from configs alone what a recipe's `growth` section will do.

Input: a family, the configs of source and target, the names of the methods. Output: a `GrowthPlan`: the verdict with its reasons, the
changes to the target's config, and the requests from which `growth.initialize` makes the operator. No arrays and no weights are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ligo_convert.errors import RecipeError, SourceError, brief
from ligo_convert.families.schema import Family
from ligo_convert.growth.depth_methods import DEPTHS, DepthMap, depth_map
from ligo_convert.growth.operator import Keying
from ligo_convert.growth.verdict import RANK, CannotPreserve, Claim, Verdict, worst
from ligo_convert.growth.width_methods import WIDTHS, WidthRequest, preserves_mean, width_claim

# Names of the changes made to a source before it grows (`growth.rewrites`, `growth.mean_preserving`).
REWRITES = ("centre", "mean-preserving")


@dataclass(frozen=True, kw_only=True)
class GrowthSettings:
    """The keys of the recipe's `growth` section that decide the initial operator.

    Attributes:
        width: name of the width method.
        depth: name of the depth method.
        keying: which layers own width maps.
        tie: `paper`, or None.
        seed: seed of every random draw.
    """

    width: str
    depth: str
    keying: Keying
    tie: str | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One reason for the verdict.

    Attributes:
        verdict: the verdict that this reason leads to.
        text: one clause for the plan.
        breaks: True if the recipe, not the method, changes the function, so that a preserving method must refuse.
    """

    verdict: Verdict
    text: str
    breaks: bool = False


@dataclass(frozen=True, kw_only=True)
class GrowthPlan:
    """The effect of the growth methods, known before any weight is read.

    Attributes:
        family: narrowed to the target's class.
        growth: the recipe's settings.
        source: config of the source.
        target: config of the target, with the edits of the methods (epsilon, lists with one entry per layer).
        verdict: the worst verdict of all reasons.
        reasons: one text for every growing axis and every config change, worst first.
        requests: axis -> width request.
        streams: stream -> its own width request, where it differs from the request of its axis.
        depths: depth axis -> origin of its layers.
        head: factor on the gain and shift of the norm that feeds a tied head.
        inner: stream of `Norm.inner` -> factor on what is written to it.
        units: pattern of a norm's row -> target layers in which the norm has no affine (post-norm).
        drawn_rows: patterns of rows that are initialised randomly as a whole (a new head).
        rewrites: names of the changes made to the source first.
    """

    family: Family
    growth: GrowthSettings
    source: Mapping[str, object]
    target: Mapping[str, object]
    verdict: Verdict
    reasons: tuple[str, ...]
    requests: Mapping[str, WidthRequest]
    streams: Mapping[str, WidthRequest]
    depths: Mapping[str, DepthMap]
    head: float
    inner: Mapping[str, float]
    units: Mapping[str, tuple[int, ...]]
    drawn_rows: tuple[str, ...]
    rewrites: tuple[str, ...]

    @property
    def grows_width(self) -> bool:
        """Return True if any axis of the target has another size."""
        return any(map(grows, self.requests.values()))

    @property
    def terms(self) -> int:
        """Return the number of terms of the initial operator."""
        return 2 if WIDTHS[self.growth.width].advance and self.grows_width else 1

    @property
    def copies_only(self) -> bool:
        """Return True if every target tensor equals a source tensor, apart from its dtype."""
        silent = any(any(found.silent) or any(found.drawn) for found in self.depths.values())
        return not self.grows_width and not silent and not self.drawn_rows


def plan_growth(
    family: Family,
    growth: GrowthSettings,
    source: Mapping[str, object],
    target: Mapping[str, object],
    *,
    asked: Mapping[str, object],
    where: str,
    source_family: Family | None = None,
) -> GrowthPlan:
    """Decide what the growth methods do, from configs alone.

    Args:
        family: narrowed to the target's class.
        source: config of the source.
        target: config of the target, as `Family.resize` returned it.
        asked: the keys that the recipe itself sets in the target's config.
        where: location in the recipe, for errors.
        source_family: the family narrowed to the source's class, if that is another one.

    Raises:
        RecipeError: a method promises the function and cannot preserve it here, or `copy` is used for an axis that grows.
    """
    old, new = family.sizes(source), family.sizes(target)
    tied = family.is_tied(target)
    growing = tuple(axis for axis in family.axes if axis not in family.never_grown and axis not in family.depth_axes)
    requests = {axis: _request(family, growth, axis, old, new, tied) for axis in growing}
    beside = {"summed": family.norm.summed_streams, "activated": family.norm.activated_streams}
    streams = {
        stream: replace(requests[family.norm.stream], place=place)  # type: ignore[arg-type]
        for place, found in beside.items()
        for stream in found
    }
    # A norm behind an activation asks for more than the norms before the branches, in a class that has it.
    behind = {
        stream: request
        for stream, request in streams.items()
        if request.place == "activated" and family.norm.placement == "pre" and stream in family.roles
    }
    every = {}
    for axis, request in {**requests, **behind}.items():
        try:
            every[axis] = width_claim(growth.width, request)
        except CannotPreserve as error:
            raise RecipeError(f"growth.width: {growth.width}: {error}", where=where) from None
    claims = {axis: every[axis] for axis in requests}
    reasons = [
        Reason(verdict=claim.verdict, text=f"{axis} {old[axis]} to {new[axis]} by {growth.width}: {claim.reason}")
        for axis, claim in every.items()
        if old[axis] != new[axis]
    ]
    depths, depth_reasons = _plan_depth(family, growth, source, old, new, where)
    reasons += depth_reasons
    units = _units(family, depths)
    drawn_rows = _drawn_rows(family, source_family or family, target, old, new)
    head = math.prod(claim.head for claim in claims.values())
    head *= _head_factor(family, old, new, tied=tied and WIDTHS[growth.width].rescales)
    if head != 1 and not family.norm.affine:
        text = f"the head is tied, and no norm before it has a gain that could take a factor back (set {family.tie_key} to false)"
        reasons.append(Reason(verdict="lossy", text=text, breaks=True))
    rewrites = _rewrites(family, growth, requests)
    beside_norms = [name for name in family.norm.beside if name in family.roles_for(target)]
    if rewrites and beside_norms:
        # The rewrites change what is written to the residual stream alone.
        text = f"{' and '.join(beside_norms)}: a norm of its own, which {growth.width} does not keep"
        reasons.append(Reason(verdict="lossy", text=text, breaks=True))
    changed = family.changed_function(source, target)
    if changed:
        reasons.append(Reason(verdict="lossy", text="the target's config changes " + ", ".join(changed), breaks=True))
    if growth.tie == "paper" and any(map(grows, requests.values())):
        reasons.append(Reason(verdict="lossy", text="tie: paper reads with the write maps"))
    final, edits = _edit_config(family, source, target, claims, asked, depths, where)
    reasons += edits
    broken = [reason for reason in reasons if reason.breaks]
    widens = any(map(grows, requests.values()))
    if widens and WIDTHS[growth.width].advance:
        _refuse_two_at_once(family, growth, requests, where)
    if broken and widens and WIDTHS[growth.width].preserving:
        raise RecipeError(
            f"growth.width: {growth.width} promises the source's function, and {broken[0].text}",
            where=where,
            hint=_keep_hint(family, source, changed),
        )
    return GrowthPlan(
        family=family,
        growth=growth,
        source=source,
        target=final,
        verdict=worst(*(reason.verdict for reason in reasons)),
        reasons=tuple(reason.text for reason in sorted(reasons, key=lambda reason: -RANK[reason.verdict])),
        requests=requests,
        streams=streams,
        units=units,
        drawn_rows=drawn_rows,
        rewrites=rewrites,
        depths=depths,
        inner=_inner_factors(family, claims, source, final),
        head=head,
    )


def _head_factor(family: Family, old: Mapping[str, int], new: Mapping[str, int], *, tied: bool) -> float:
    """Return what the norm before a tied head takes over from the library's own factors (`Family.width_factors`).

    The shared tensor is divided by the change of the embedding's factor, which the head must not see; the head's own factor changes, too.
    """
    if not tied:
        return 1.0
    return math.prod(
        family.width_change(canonical, old, new) / family.width_change(alias, old, new)
        for alias, canonical in family.tied.items()
        if {alias, canonical} & {*family.width_factors}
    )


def _inner_factors(
    family: Family, claims: Mapping[str, Claim], source: Mapping[str, object], target: Mapping[str, object]
) -> dict[str, float]:
    """Return by how much to scale what is written to a stream that a norm of its own reads (`Norm.inner`).

    The config has one epsilon for all norms. Growth changes it with the residual stream by a factor r; a stream of which growth keeps c
    of the mean square would need c. Written sqrt(r / c) times larger, the stream sees its old epsilon: the norm removes the factor.
    """
    key = family.norm.epsilon
    if not key or not family.norm.inner:
        return {}
    ratio = epsilon_of(family, target) / epsilon_of(family, source)
    normed = {name for name, roles in family.roles_for(source).items() if "gain" in roles}
    own = {
        stream: math.prod(claims[axis].epsilon for axis in axes if axis in claims)
        for stream, axes in family.norm.inner.items()
        # Models of some configs have no such norm.
        if normed & {stream, *axes}
    }
    factors = {stream: ratio / kept for stream, kept in own.items()}
    return {stream: math.sqrt(factor) for stream, factor in factors.items() if not math.isclose(factor, 1)}


def _keep_hint(family: Family, source: Mapping[str, object], changed: tuple[str, ...]) -> str:
    """Return how to keep the function: the source's values of the changed keys."""
    values = family.complete(source)
    kept = ", ".join(f"{key}: {json.dumps(values.get(key), default=str)}" for key in changed)
    keep = f"keep the source's values in target.config ({kept}), also beside target.model; or " if changed else ""
    return f"{keep}choose a width that promises nothing, such as net2net"


def _request(
    family: Family, growth: GrowthSettings, axis: str, old: Mapping[str, int], new: Mapping[str, int], tied: bool
) -> WidthRequest:
    return WidthRequest(
        axis=axis,
        old=old[axis],
        new=new[axis],
        norm=family.norm.kind if axis in family.norm.axes else None,
        # Only the residual stream is read by a head.
        tied_head=tied and axis == family.norm.stream,
        seed=growth.seed,
        place=family.norm.place if axis == family.norm.stream else "pre",
        norms=family.norms(old) if axis == family.norm.stream else 0,
        # After the sum a larger branch would not fit the skip connection beside it, so the stream keeps its scale there.
        fixed_epsilon=not family.norm.epsilon and family.norm.placement == "pre",
        affine=family.norm.affine,
    )


def _units(family: Family, depths: Mapping[str, DepthMap]) -> dict[str, tuple[int, ...]]:
    """Return the target layers in which norms of a post-norm model have no affine, so that silent layers change nothing.

    A silent layer normalises an already normalised stream again. This changes nothing if no gain and shift come between. So the affine
    moves to the last norm of the layer's last silent copy (docs/reference/exact-starts.md).
    """
    if family.norm.placement != "post":
        return {}
    units: dict[str, tuple[int, ...]] = {}
    for row in family.rows:
        if row.depth is None or not family.is_post_norm(row):
            continue
        silent = (*depths[row.depth].silent, False)
        if row.module == family.norm.after_attention:
            layers = tuple(layer for layer, quiet in enumerate(silent) if quiet)
        else:
            layers = tuple(layer for layer, quiet in enumerate(silent[1:]) if quiet)
        if layers:
            units[row.pattern] = layers
    return units


def _drawn_rows(
    family: Family,
    source_family: Family,
    target: Mapping[str, object],
    old: Mapping[str, int],
    new: Mapping[str, int],
) -> tuple[str, ...]:
    """Return the rows of a head that the source lacks, or has for another number of classes."""
    labels = family.labels if family.labels and old[family.labels] != new[family.labels] else None
    parts = ("", *source_family.chosen.parts)
    return tuple(
        row.pattern
        for row in family.rows_for(target)
        if row.layout.part not in parts
        or (labels and labels in row.layout.streams)
        # Only layers that the source does not have need it.
        or (row.depth is not None and 0 < old[row.depth] <= row.first < new[row.depth])
    )


def _rewrites(family: Family, growth: GrowthSettings, requests: Mapping[str, WidthRequest]) -> tuple[str, ...]:
    request, rewrite = requests[family.norm.stream], WIDTHS[growth.width].rewrite
    if rewrite == "mean-preserving":
        if preserves_mean(request):
            return ("mean-preserving",)
        # Without enough new entries the maps are those of `zero`, so the source is centred as for `zero`.
        if request.place != "pre" and request.new % request.old:
            rewrite = "centre"
    # A tied head in a pre-norm model would see the change.
    free = request.place != "pre" or not request.tied_head
    exact = grows(request) and request.norm == "layernorm" and free
    return ("centre",) if rewrite == "centre" and exact else ()


def grows(request: WidthRequest) -> bool:
    """Return True if the axis has another size in the target."""
    return request.old != request.new


def _refuse_two_at_once(
    family: Family, growth: GrowthSettings, requests: Mapping[str, WidthRequest], where: str
) -> None:
    """Refuse a stream that grows along two factors: a second term cannot represent the added entries as a product."""
    for stream in family.streams:
        grown = [axis for axis in family.factors(stream) if axis in requests and grows(requests[axis])]
        if len(grown) > 1:
            raise RecipeError(
                f"growth.width: {growth.width}: {stream} would grow along {' and '.join(grown)} at once",
                where=where,
                hint="grow one axis only, or use net2net",
            )


def _plan_depth(
    family: Family,
    growth: GrowthSettings,
    source: Mapping[str, object],
    old: Mapping[str, int],
    new: Mapping[str, int],
    where: str,
) -> tuple[dict[str, DepthMap], list[Reason]]:
    depths, reasons = {}, []
    for axis in family.depth_axes:
        deepens = old[axis] != new[axis]
        if deepens and growth.depth == "copy":
            raise RecipeError(
                f"growth.depth: copy: {axis} grows from {old[axis]} to {new[axis]}, but `copy` is only for a depth that does not grow",
                where=where,
            )
        try:
            depths[axis] = depth_map(growth.depth, old[axis], new[axis])
        except CannotPreserve as error:
            raise RecipeError(f"growth.depth: {growth.depth}: {error}", where=where) from None
        if family.norm.placement == "post" and not old[axis] and any(depths[axis].silent):
            raise RecipeError(
                f"growth.depth: {growth.depth}: in a post-norm model without layers there is no norm for the new layers to continue",
                where=where,
                hint="use drawn, which promises nothing",
            )
        if deepens:
            method = DEPTHS[growth.depth]
            text = f"{axis} {old[axis]} to {new[axis]} by {growth.depth}: {method.reason}"
            reasons.append(Reason(verdict=method.verdict, text=text))
    # Config lists with one entry per layer move with their layers and replace what follows from their index.
    listed = [family.layer_list(source, key) is not None for key in family.per_layer_keys]
    moved = [
        key for key in family.layer_index_keys if family.complete(source).get(key) and not (listed and all(listed))
    ]
    if reasons and moved:
        if DEPTHS[growth.depth].verdict == "exact":
            raise RecipeError(
                f"growth.depth: {growth.depth}: {moved[0]} makes a layer depend on its index, so moving layers changes the function",
                where=where,
            )
        reasons.append(Reason(verdict="lossy", text=f"{moved[0]} makes a layer depend on its index"))
    return depths, reasons


def epsilon_of(family: Family, config: Mapping[str, object]) -> float:
    """Return the norm's epsilon in a config.

    Raises:
        SourceError: it is not a positive number.
    """
    value = family.complete(config)[family.norm.epsilon]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise SourceError(
            f"{family.norm.epsilon} is {brief(value)}, and must be a positive number", where="config.json"
        )
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
    """Return the target's config with the edits of the methods (epsilon, lists with one entry per layer), and reasons."""
    final = dict(target)
    reasons: list[Reason] = []
    _edit_epsilon(family, source, claims, asked, where, final, reasons)
    for name, axis in family.per_layer_keys.items():
        deepens = len(depths[axis].source) != family.sizes(source)[axis]
        # A list that the library fills in is written out where its layers move.
        values = family.layer_list(source, name) if deepens else source.get(name)
        if isinstance(values, list) and name not in asked:
            if values:
                final[name] = [values[layer] for layer in depths[axis].source]
            else:
                # Without old layers the library fills in the entries of the new ones.
                del final[name]
        before, found = family.layer_list(source, name), depths[axis]
        # What a silent layer is does not matter to the function.
        moved = (
            [None if silent else before[layer] for layer, silent in zip(found.source, found.silent, strict=True)]
            if before
            else []
        )
        chosen = asked.get(name)
        if isinstance(chosen, list) and any(
            entry not in (None, own) for entry, own in zip(moved, chosen, strict=False)
        ):
            text = f"the recipe sets {name} otherwise than the layers move"
            reasons.append(Reason(verdict="lossy", text=text, breaks=True))
    return final, reasons


def _edit_epsilon(
    family: Family,
    source: Mapping[str, object],
    claims: Mapping[str, Claim],
    asked: Mapping[str, object],
    where: str,
    final: dict[str, object],
    reasons: list[Reason],
) -> None:
    key = family.norm.epsilon
    if not key:
        return  # fixed in the library's code
    old_value = epsilon_of(family, source)
    ratio = claims[family.norm.stream].epsilon
    # To 15 digits: 7.5e-06, not 7.500000000000001e-06.
    wanted = float(f"{old_value * ratio:.15g}") if ratio != 1 else old_value
    if key in asked and asked[key] != wanted:
        chosen = asked[key]
        if isinstance(chosen, bool) or not isinstance(chosen, (int, float)) or chosen <= 0:
            raise RecipeError(f"{key} is {brief(chosen)}, and must be a positive number", where=where)
        # Epsilon matters only for variances of its size: within a factor of ten the effect is small.
        small: Verdict = "near" if 0.1 <= chosen / wanted <= 10 else "lossy"
        text = f"the recipe sets {key} = {chosen} where {wanted} would be exact"
        reasons.append(Reason(verdict=small, text=text, breaks=True))
    elif wanted != old_value:
        final[key] = wanted


def drawn_names(plan: GrowthPlan) -> list[str]:
    """Return descriptions of everything that is initialised randomly, for provenance."""
    drawn = [axis for axis, request in plan.requests.items() if request.old != request.new]
    names = [f"{axis} (new entries)" for axis in drawn if plan.growth.width == "direct"]
    names += [f"{axis} (whole)" for axis in drawn if plan.growth.width == "random"]
    names += [
        f"{axis} ({'whole' if all(found.drawn) else 'new layers'})"
        for axis, found in plan.depths.items()
        if any(found.drawn)
    ]
    return names + [f"{pattern} (new head)" for pattern in plan.drawn_rows]
