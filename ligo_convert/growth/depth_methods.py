"""Depth methods: for every layer of the target, the source layer that it takes its weights from.

Input: two layer counts. Output: a `DepthMap`. `DEPTHS` holds every method by name; `@depth_method` adds one.

Sources: StackBERT (Gong et al., ICML 2019), MSLT arXiv:2011.13635, MIDAS arXiv:2409.19044, LLaMA-Pro arXiv:2401.02415, LEMON
arXiv:2310.07999, Deep Progressive Training arXiv:2511.04981, and the baselines of LiGO arXiv:2303.00980.
docs/extending/adding-a-method.md explains how to add a method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ligo_convert.growth.verdict import CannotPreserve, Verdict


@dataclass(frozen=True, kw_only=True)
class DepthMap:
    """The origin of every new layer of one depth axis.

    Attributes:
        source: [new] the old layer that each new layer copies.
        silent: [new] True for a layer that starts as the identity: its residual branches end in zero weights.
        drawn: [new] True for a layer that is initialised randomly, as the library does it. A layer can be drawn and silent: all of it is
            drawn but the ends of its branches, which are zero.
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
    """Return the map of the method `name`; the identity where the depth does not grow.

    A model without layers has none to copy: all new layers are drawn, and silent under a method that promises the function.

    Raises:
        CannotPreserve: the method copies layers, and the model has none.
    """
    if old == new:
        return copy_depth(old, new)
    if old == 0:
        method = DEPTHS[name]
        if not any(method.build(1, 2).drawn):
            raise CannotPreserve("the source has no layer to copy; `drawn` and `silent-drawn` draw the new layers")
        return DepthMap(source=(0,) * new, silent=(method.verdict == "exact",) * new, drawn=(True,) * new)
    return DEPTHS[name].build(old, new)


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
    "top",
    verdict="lossy",
    reason="the top layers are applied again",
    paper="MSLT, arXiv:2011.13635; gradual stacking in arXiv:2409.19044",
    summary="the top layers again, above the old ones",
)
def top(old: int, new: int) -> DepthMap:
    """Copy the top `new - old` layers above the old ones. Where more layers are added than there are, the whole stack is repeated."""
    added = new - old
    return _copies([layer if layer < old else max(0, layer - added) % old for layer in range(new)])


@depth_method(
    "middle",
    verdict="lossy",
    reason="the middle layers are applied again",
    paper="MIDAS, arXiv:2409.19044",
    summary="the middle block again, directly above itself",
)
def middle(old: int, new: int) -> DepthMap:
    """Repeat the middle block directly above itself (MIDAS).

    The paper adds one block of b layers at a time to a model of n blocks: block ceil(n / 2) is duplicated. Here b is the number of layers
    to add. Ours: where the old layers are no whole number of blocks, half of the rest is below the first block; where more layers are
    added than there are, the whole model is the block, until the rest fits.
    """
    source = list(range(old))
    while len(source) < new:
        block = min(new - len(source), len(source))
        blocks, rest = divmod(len(source), block)
        begin = (-(-blocks // 2) - 1) * block + rest // 2
        source[begin + block : begin + block] = source[begin : begin + block]
    return _copies(source)


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
    return DepthMap(source=source, silent=_repeats(source), drawn=(False,) * new)


def _repeats(source: tuple[int, ...]) -> tuple[bool, ...]:
    """Return which layers have the same source as the layer below."""
    return tuple(layer > 0 and source[layer - 1] == taken for layer, taken in enumerate(source))


@depth_method(
    "drawn",
    verdict="lossy",
    reason="drawn layers between the old ones",
    paper="Deep Progressive Training, arXiv:2511.04981",
    summary="the old layers spread as by interpolate, those between drawn as the library initialises",
)
def drawn(old: int, new: int) -> DepthMap:
    """Spread the old layers as `interpolate` does and initialise the layers between them randomly."""
    source = interpolate(old, new).source
    return DepthMap(source=source, silent=(False,) * new, drawn=_repeats(source))


@depth_method(
    "silent-drawn",
    verdict="exact",
    reason="drawn layers add nothing to the residual stream yet",
    paper="Deep Progressive Training, arXiv:2511.04981; silent as in LLaMA-Pro, arXiv:2401.02415",
    summary="as drawn, the new layers silent",
)
def silent_drawn(old: int, new: int) -> DepthMap:
    """Initialise the new layers randomly, as `drawn` does, and silence them, so that they add nothing to the residual stream."""
    source = interpolate(old, new).source
    return DepthMap(source=source, silent=_repeats(source), drawn=_repeats(source))


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
