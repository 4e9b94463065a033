"""TODO: one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ligo_convert.growth.verdict import Verdict

# Depth.


@dataclass(frozen=True, kw_only=True)
class DepthMap:
    """Where the layers of one depth axis come from.

    Attributes:
        source: for every new layer, the old layer it takes.
        silent: new layers whose branch ends are zero: they pass their input on.
        drawn: new layers drawn as the library initialises.
    """

    source: tuple[int, ...]
    silent: tuple[bool, ...]
    drawn: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class DepthMethod:
    """One line of the depth table."""

    build: Callable[[int, int], DepthMap]
    verdict: Verdict
    reason: str
    paper: str
    summary: str


def _plain(source: list[int]) -> DepthMap:
    none = (False,) * len(source)
    return DepthMap(source=tuple(source), silent=none, drawn=none)


def copy_depth(old: int, new: int) -> DepthMap:
    assert old == new
    return _plain(list(range(old)))


def stack(old: int, new: int) -> DepthMap:
    """StackBERT: layer i takes layer i mod old."""
    return _plain([layer % old for layer in range(new)])


def interpolate(old: int, new: int) -> DepthMap:
    """Every layer repeated in place: layer i takes layer i old // new."""
    return _plain([layer * old // new for layer in range(new)])


def identity(old: int, new: int) -> DepthMap:
    """As `interpolate`, the repeated layers silent: they add nothing to the residual stream yet (LLaMA-Pro, LEMON)."""
    source = interpolate(old, new).source
    silent = tuple(layer > 0 and source[layer - 1] == source[layer] for layer in range(new))
    return DepthMap(source=source, silent=silent, drawn=(False,) * new)


def direct_depth(old: int, new: int) -> DepthMap:
    """DirectCopy: the old layers at the bottom, drawn ones above."""
    source = tuple(min(layer, old - 1) for layer in range(new))
    return DepthMap(source=source, silent=(False,) * new, drawn=tuple(layer >= old for layer in range(new)))


def random_depth(old: int, new: int) -> DepthMap:
    return DepthMap(source=interpolate(old, new).source, silent=(False,) * new, drawn=(True,) * new)


DEPTHS: dict[str, DepthMethod] = {
    "copy": DepthMethod(
        build=copy_depth,
        verdict="exact",
        reason="the depth does not grow",
        paper="-",
        summary="the depth does not grow",
    ),
    "stack": DepthMethod(
        build=stack,
        verdict="lossy",
        reason="layers are applied again",
        paper="StackBERT, Gong et al., ICML 2019",
        summary="layer i takes layer i mod L: the whole stack again",
    ),
    "interpolate": DepthMethod(
        build=interpolate,
        verdict="lossy",
        reason="layers are applied again",
        paper="Interpolation, a baseline of arXiv:2303.00980",
        summary="layer i takes layer i L // L': every layer again in place",
    ),
    "identity": DepthMethod(
        build=identity,
        verdict="exact",
        reason="new layers add nothing to the residual stream yet",
        paper="LLaMA-Pro, arXiv:2401.02415; LEMON, arXiv:2310.07999",
        summary="as interpolate, the new layers silent",
    ),
    "direct": DepthMethod(
        build=direct_depth,
        verdict="lossy",
        reason="drawn layers above the old ones",
        paper="DirectCopy, a baseline of arXiv:2303.00980",
        summary="the old layers at the bottom, those above drawn as the library initialises",
    ),
    "random": DepthMethod(
        build=random_depth,
        verdict="lossy",
        reason="drawn afresh",
        paper="-",
        summary="every layer drawn as the library initialises",
    ),
}


def depth_map(name: str, old: int, new: int) -> DepthMap:
    """Where the layers come from under the start `name`; every layer itself where the depth does not grow."""
    return copy_depth(old, new) if old == new else DEPTHS[name].build(old, new)
