"""Depth methods: for every layer of the target, the source layer that it takes its weights from.

Input: two layer counts. Output: a `DepthMap`. `DEPTHS` holds every method by name; `@depth_method` adds one.

Sources: StackBERT (Gong et al., ICML 2019), LLaMA-Pro arXiv:2401.02415, LEMON arXiv:2310.07999, and the baselines of LiGO
arXiv:2303.00980. docs/extending/adding-a-method.md explains how to add a method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ligo_convert.growth.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class DepthMap:
    """The origin of every new layer of one depth axis.

    Attributes:
        source: [new] the old layer that each new layer copies.
        silent: [new] True for a layer that starts as the identity: its residual branches end in zero weights.
        drawn: [new] True for a layer that is initialised randomly, as the library does it.
    """

    source: tuple[int, ...]
    silent: tuple[bool, ...]
    drawn: tuple[bool, ...]


DepthBuilder = Callable[[int, int], DepthMap]  # (old layers, new layers) -> map


@dataclass(frozen=True, kw_only=True)
class DepthMethod:
    """One entry of the table of depth methods.

    Attributes:
        build: makes the map from the old and the new number of layers.
        verdict: how well the method preserves the function whenever the depth grows.
        reason: one clause for the plan and the model card.
        paper: where the method was published; `-` if nowhere.
        summary: one line for `ligo-convert methods`.
    """

    build: DepthBuilder
    verdict: Verdict
    reason: str
    paper: str
    summary: str


# Name -> method, in the order of definition, which `ligo-convert methods` and the docs show.
DEPTHS: dict[str, DepthMethod] = {}


def depth_method(
    name: str, *, verdict: Verdict, reason: str, summary: str, paper: str = "-"
) -> Callable[[DepthBuilder], DepthBuilder]:
    """Register the decorated function as the depth method `name`. The arguments are the fields of `DepthMethod`."""

    def register(build: DepthBuilder) -> DepthBuilder:
        assert name not in DEPTHS, f"depth method {name!r} is defined twice"
        DEPTHS[name] = DepthMethod(build=build, verdict=verdict, reason=reason, paper=paper, summary=summary)
        return build

    return register


def depth_map(name: str, old: int, new: int) -> DepthMap:
    """Return the map of the method `name`; the identity where the depth does not grow."""
    return copy_depth(old, new) if old == new else DEPTHS[name].build(old, new)


def _copies(source: list[int]) -> DepthMap:
    none = (False,) * len(source)
    return DepthMap(source=tuple(source), silent=none, drawn=none)


@depth_method("copy", verdict="exact", reason="the depth does not grow", summary="the depth does not grow")
def copy_depth(old: int, new: int) -> DepthMap:
    """Copy every layer. Only for a depth that does not grow."""
    assert old == new
    return _copies(list(range(old)))


@depth_method(
    "stack",
    verdict="lossy",
    reason="layers are applied again",
    paper="StackBERT, Gong et al., ICML 2019",
    summary="layer i takes layer i mod L: the whole stack again",
)
def stack(old: int, new: int) -> DepthMap:
    """Repeat the whole stack: new layer i takes old layer i mod old (StackBERT)."""
    return _copies([layer % old for layer in range(new)])


@depth_method(
    "interpolate",
    verdict="lossy",
    reason="layers are applied again",
    paper="Interpolation, a baseline of arXiv:2303.00980",
    summary="layer i takes layer i L // L': every layer again in place",
)
def interpolate(old: int, new: int) -> DepthMap:
    """Repeat every layer in place: new layer i takes old layer i * old // new."""
    return _copies([layer * old // new for layer in range(new)])


@depth_method(
    "identity",
    verdict="exact",
    reason="new layers add nothing to the residual stream yet",
    paper="LLaMA-Pro, arXiv:2401.02415; LEMON, arXiv:2310.07999",
    summary="as interpolate, the new layers silent",
)
def identity(old: int, new: int) -> DepthMap:
    """Repeat every layer in place and silence the repeats, so that they add nothing to the residual stream."""
    source = interpolate(old, new).source
    silent = tuple(layer > 0 and source[layer - 1] == source[layer] for layer in range(new))
    return DepthMap(source=source, silent=silent, drawn=(False,) * new)


@depth_method(
    "direct",
    verdict="lossy",
    reason="drawn layers above the old ones",
    paper="DirectCopy, a baseline of arXiv:2303.00980",
    summary="the old layers at the bottom, those above drawn as the library initialises",
)
def direct_depth(old: int, new: int) -> DepthMap:
    """Keep the old layers at the bottom and initialise the layers above them randomly (DirectCopy)."""
    source = tuple(min(layer, old - 1) for layer in range(new))
    return DepthMap(source=source, silent=(False,) * new, drawn=tuple(layer >= old for layer in range(new)))


@depth_method("random", verdict="lossy", reason="drawn afresh", summary="every layer drawn as the library initialises")
def random_depth(old: int, new: int) -> DepthMap:
    """Initialise every layer randomly."""
    return DepthMap(source=interpolate(old, new).source, silent=(False,) * new, drawn=(True,) * new)
