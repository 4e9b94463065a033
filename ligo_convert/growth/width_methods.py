"""Starts: the width and depth maps that growth begins from, one small function each, and the tables they are found in.

A width start takes one axis (its sizes, the norm on it, how the head reads it) and gives the four maps of `maps.Axis`; its
claim says, from the sizes alone, whether the function survives. A depth start gives, for every new layer, the old layer it
takes and whether it is silent. Nothing here knows a family.

Sources: Net2Net arXiv:1511.05641, StackBERT (Gong et al., ICML 2019), bert2BERT arXiv:2110.07143, LiGO arXiv:2303.00980,
LEMON arXiv:2310.07999, HyperCloning arXiv:2409.12903. The exact maps are derived in docs/reference/exact-starts.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ligo_convert.growth.maps import (
    Axis,
    Map,
    corner,
    identity_axis,
    mean_preserving_cells,
    plain_axis,
    scale_like,
    selection,
)
from ligo_convert.growth.verdict import CannotPreserve, Claim, generator


@dataclass(frozen=True, kw_only=True)
class WidthRequest:
    """One axis to grow.

    Attributes:
        axis: its name. old, new: its sizes.
        norm: the normalisation that reads of this axis pass through; None where there is none between write and read.
        place: where that norm stands: `pre` a branch, with the stream going on beside it; `post` a branch, so that the stream is what
            norms put out; right behind a sum of embeddings (`summed`) or an activation (`activated`), with nothing beside it.
        tied_head: whether the head is the embedding, so that it reads with the write map.
        seed: of everything drawn.
        norms: how many norms the stream passes through the whole source.
        fixed_epsilon: whether the norm's epsilon is fixed in the library's code, so that it cannot follow the variance.
    """

    axis: str
    old: int
    new: int
    norm: Literal["layernorm", "rmsnorm"] | None
    tied_head: bool
    seed: int
    place: Literal["pre", "post", "summed", "activated"] = "pre"
    norms: int = 0
    fixed_epsilon: bool = False

    def generator(self, purpose: str) -> np.random.Generator:
        return generator(self.seed, purpose, self.axis)


@dataclass(frozen=True, kw_only=True)
class WidthMethod:
    """One line of the width table."""

    build: Callable[[WidthRequest], Axis]
    claim: Callable[[WidthRequest], Claim]
    preserving: bool  # promises the function, and refuses where it cannot
    paper: str
    summary: str
    # AKI's second term: rows that are added take their difference to the next layer.
    advance: Callable[[WidthRequest], Axis] | None = None
    # What is written into a stream that a LayerNorm reads loses its mean first, where that changes nothing in the source.
    centres: bool = False
    # New entries of a post-norm stream are to carry its mean, where there are enough of them.
    mean_preserving: bool = False
    # Dot products are rescaled when the head size grows (all starts but those that copy the corner literally).
    rescales: bool = True


# Width.


def _tile(request: WidthRequest) -> np.ndarray:
    return np.arange(request.new, dtype=np.int64) % request.old


def _normed(request: WidthRequest, *, write: Map, read: Map, gain: Map, shift: Map, kappa: float) -> Axis:
    """The maps of a normed stream whose variance (RMSNorm: mean square) `write` multiplies with kappa: gains take the root of it.

    The config's epsilon takes kappa. Where it is fixed in the library's code, the stream is written larger by one over the root instead,
    and has the variance that it had.
    """
    root = float(np.sqrt(kappa))
    written = write.scaled(1 / root) if request.fixed_epsilon else write
    return Axis(write=written, read=read, gain=gain.scaled(root), shift=shift, scale=scale_like(write))


def _copies(index: np.ndarray, old: int) -> np.ndarray:
    return np.bincount(index, minlength=old)


def _uneven_split(index: np.ndarray, old: int, rng: np.random.Generator) -> np.ndarray:
    """Reads of copied entries: random, summing to one over the copies of each, so that copies learn apart (LEMON, section 4)."""
    draw = rng.uniform(0.5, 1.5, size=len(index))
    draw /= np.bincount(index, weights=draw, minlength=old)[index]
    # An entry without a second copy is read as it was, to the bit.
    return np.where(_copies(index, old)[index] == 1, 1.0, draw)


def copy(request: WidthRequest) -> Axis:
    assert request.old == request.new
    return identity_axis(request.old)


def copy_claim(request: WidthRequest) -> Claim:
    raise CannotPreserve(
        f"{request.axis} grows from {request.old} to {request.new}, and `copy` is for an axis that does not grow"
    )


def lemon(request: WidthRequest) -> Axis:
    """LEMON's exact map. Under LayerNorm k whole tiles and mean rows ("average expansion"), under RMSNorm zero rows.

    With k = new // old and kappa = k old / new: mean' = mean and var' = kappa var (LayerNorm), meansquare' = kappa meansquare
    (RMSNorm), so gains times sqrt(kappa) and epsilon times kappa cancel; the entries past the tiles are exactly zero after the
    norm, so their reads C are free: drawn, to break the symmetry.
    """
    if request.norm is None:
        index = _tile(request)
        read = selection(index, request.old, _uneven_split(index, request.old, request.generator("split")))
        return plain_axis(selection(index, request.old), read)
    old, times, rest = request.old, request.new // request.old, request.new % request.old
    index = np.tile(np.arange(old), times)
    mean = np.full((rest, old), 1.0 / old)
    rng = request.generator("free reads")
    return _normed(
        request,
        write=selection(index, old, tail=mean if request.norm == "layernorm" else np.zeros((rest, old))),
        read=selection(index, old, _uneven_split(index, old, rng), tail=rng.normal(0, old**-0.5, size=(rest, old))),
        gain=selection(index, old, tail=mean),
        shift=selection(index, old, tail=np.zeros((rest, old))),
        kappa=times * old / request.new,
    )


def lemon_claim(request: WidthRequest) -> Claim:
    times = request.new // request.old
    if request.norm is None:
        return Claim(verdict="exact", reason="copied entries, reads that sum to one over the copies")
    if request.place != "pre" and request.new % request.old:
        raise CannotPreserve(
            f"{request.axis} grows from {request.old} to {request.new}: where the norm comes after the sum (post-norm) only whole"
            " multiples are exact; `mean-preserving` is the nearest start there, then `zero`"
        )
    kind = "mean rows under LayerNorm" if request.norm == "layernorm" else "zero rows under RMSNorm"
    return Claim(
        verdict="exact",
        reason=f"{times} tile(s) and {kind}, {_rescaled(request)}",
        epsilon=1.0 if request.fixed_epsilon else times * request.old / request.new,
        head=1.0 / times if request.tied_head else 1.0,
    )


def _rescaled(request: WidthRequest) -> str:
    if not request.new % request.old:
        return "norms as they are"
    return "the stream rescaled" if request.fixed_epsilon else "gains and epsilon rescaled"


def hyperclone(request: WidthRequest) -> Axis:
    """HyperCloning: whole tiles, reads divided evenly."""
    index = _tile(request)
    return plain_axis(
        selection(index, request.old), selection(index, request.old, 1.0 / _copies(index, request.old)[index])
    )


def hyperclone_claim(request: WidthRequest) -> Claim:
    if request.new % request.old:
        raise CannotPreserve(
            f"{request.axis} grows from {request.old} to {request.new}, which is no whole multiple; "
            + (
                "`lemon` takes any ratio"
                if request.place == "pre"
                else "`mean-preserving` is the nearest start there, then `zero`"
            )
        )
    times = request.new // request.old
    head = 1.0 / times if request.tied_head and request.norm else 1.0
    return Claim(verdict="exact", reason=f"{times} whole tiles", head=head)


def net2net(request: WidthRequest) -> Axis:
    """Net2Net and bert2BERT's FPI: random entries copied, reads divided by the number of copies."""
    index = _net2net_index(request)
    return plain_axis(
        selection(index, request.old), selection(index, request.old, 1.0 / _copies(index, request.old)[index])
    )


def _net2net_index(request: WidthRequest) -> np.ndarray:
    added = request.generator("copied").integers(0, request.old, size=request.new - request.old)
    return np.concatenate([np.arange(request.old), added])


def net2net_claim(request: WidthRequest) -> Claim:
    if request.norm:
        return Claim(verdict="lossy", reason=f"uneven copies change the statistics of the {request.norm}")
    return Claim(verdict="exact", reason="copied entries, reads divided by the number of copies")


def aki(request: WidthRequest) -> Axis:
    """bert2BERT's advanced knowledge initialisation, first term: as `net2net`."""
    return net2net(request)


def aki_advance(request: WidthRequest) -> Axis:
    """AKI's second term: only the added entries are written; the operator multiplies it with (next layer - own layer)."""
    index = _net2net_index(request)
    added = np.concatenate([np.zeros(request.old), np.ones(request.new - request.old)])
    return plain_axis(selection(index, request.old, added), net2net(request).read)


def aki_claim(request: WidthRequest) -> Claim:
    return Claim(verdict="lossy", reason="added entries come from the next layer")


def zero(request: WidthRequest) -> Axis:
    """The old block in the corner, zeros elsewhere; gains times sqrt(old / new), and what is written centred where that is exact.

    Under LayerNorm var' = kappa (var + (1 - kappa) mean^2) with kappa = old / new, so the map is exact where what is normalised has no
    mean. LayerNorm does not see the mean, so writes may be centred (`rewrites`), unless the head is tied to the embedding: it would
    see it. In front of a norm with nothing beside it the new entries take the mean instead: mean' = mean, var' = kappa var. Behind an
    activation no map reaches the mean, and statistics can only be kept about as they are.
    """
    block = corner(request.old, request.new)
    if request.norm is None:
        return plain_axis(block, block)
    if request.place == "activated":
        return _behind_activation(request)
    write = block
    if request.place == "summed" and request.norm == "layernorm":
        mean = np.full((request.new - request.old, request.old), 1.0 / request.old)
        write = selection(np.arange(request.old), request.old, tail=mean)
    return _normed(request, write=write, read=block, gain=block, shift=block, kappa=request.old / request.new)


def _behind_activation(request: WidthRequest, times: int = 1) -> Axis:
    """The axis between an activation and a LayerNorm (a masked language model's head), where no linear map reaches the statistics.

    A new entry is (z_i + z_j) / sqrt(2) of two old ones before the activation: an activation that is about homogeneous, such as ReLU and
    GELU, makes of it about as much energy as they have in the mean, whichever of them carries most. The mean that new entries put off by
    d moves every old entry by -d, and as all entries of a normalised vector sum to zero, the new ones sum to old times d: with the mean
    of the gains and a weight of 1 / old they give back what the old ones have lost, up to how far gains differ.

    Args:
        times: whole tiles.
    """
    old, rest = request.old, request.new - times * request.old
    index, nothing = np.tile(np.arange(old), times), np.zeros((rest, old))
    order = np.concatenate([request.generator("pairs").permutation(old) for _ in range(-(-2 * rest // old))])
    pairs = np.zeros((rest, old))
    for entry in range(rest):
        for chosen in order[2 * entry : 2 * entry + 2]:
            pairs[entry, chosen] += np.sqrt(0.5)
    mean = np.full((rest, old), 1.0 / old)
    return Axis(
        write=selection(index, old, tail=pairs),
        read=selection(index, old, np.full(len(index), 1.0 / times), tail=mean / times),
        gain=selection(index, old, tail=mean),
        shift=selection(index, old, tail=nothing),
        scale=scale_like(selection(index, old, tail=pairs)),
    )


def zero_claim(request: WidthRequest) -> Claim:
    epsilon = request.old / request.new if request.norm and not request.fixed_epsilon else 1.0
    if request.place != "pre":
        return Claim(
            verdict="near",
            reason="the mean of what a norm after the sum (post-norm) puts out stays in: no map of coordinates takes it away",
            epsilon=epsilon,
        )
    if request.norm == "layernorm" and request.tied_head:
        return Claim(
            verdict="near",
            reason="the mean of the residual stream stays in: a tied head does not allow centring",
            epsilon=epsilon,
        )
    return Claim(verdict="exact", reason="old block in the corner, norms rescaled", epsilon=epsilon)


def mean_preserving(request: WidthRequest) -> Axis:
    """Build `lemon`'s maps where they are exact; at an uneven post-norm width, leave room for entries that keep the stream's mean.

    `growth.mean_preserving` computes the contents of those entries.

    The old entries then have their own statistics in every norm, but for the square of a small number. Copies of one new entry hold
    the same: their reads are drawn and sum to zero, so that they learn apart.
    """
    if not preserves_mean(request):
        return zero(request) if request.place != "pre" and request.new % request.old else lemon(request)
    old, times, rest = request.old, request.new // request.old, request.new % request.old
    index, nothing = np.tile(np.arange(old), times), np.zeros((rest, old))
    tiles = selection(index, old, tail=nothing)
    if request.place == "activated":
        return _behind_activation(request, times)
    rng, cells = request.generator("free reads"), mean_preserving_cells(request.norms, rest)
    assert cells is not None
    free = rng.normal(0, old**-0.5, size=(rest, old))
    for cell in range(int(cells.max()) + 1):
        free[cells == cell] -= free[cells == cell].mean(0)
    return Axis(
        write=tiles,
        read=selection(index, old, _uneven_split(index, old, rng), tail=free),
        gain=tiles.scaled(np.sqrt(times * old / request.new)),
        shift=tiles,
        scale=scale_like(tiles),
    )


def preserves_mean(request: WidthRequest) -> bool:
    """Whether new entries of this stream can carry its mean, and need to: an uneven post-norm width, with enough new entries."""
    rest = request.new % request.old
    return request.place != "pre" and rest > 0 and mean_preserving_cells(request.norms, rest) is not None


def mean_preserving_claim(request: WidthRequest) -> Claim:
    if request.place == "pre" or request.norm is None or not request.new % request.old:
        return lemon_claim(request)
    if not preserves_mean(request):
        claim = zero_claim(request)
        return replace(claim, reason=f"too few new entries to carry the mean of the stream; as `zero`: {claim.reason}")
    times = request.new // request.old
    return Claim(
        verdict="near",
        reason="new entries carry the mean of the stream, so that norms after the sum (post-norm) find the old statistics",
        epsilon=times * request.old / request.new,
        head=1.0 / times if request.tied_head else 1.0,
    )


def direct(request: WidthRequest) -> Axis:
    """DirectCopy: the old block in the corner, the rest drawn as the library initialises."""
    block = corner(request.old, request.new)
    return plain_axis(block, block, drawn=np.arange(request.new) >= request.old)


def direct_claim(request: WidthRequest) -> Claim:
    return Claim(verdict="lossy", reason="drawn weights beside the old block")


def random(request: WidthRequest) -> Axis:
    """The whole axis drawn as the library initialises."""
    nothing = corner(request.old, request.new).scaled(0.0)
    return plain_axis(nothing, nothing, drawn=np.ones(request.new, dtype=bool))


def random_claim(request: WidthRequest) -> Claim:
    return Claim(verdict="lossy", reason="drawn afresh")


WIDTHS: dict[str, WidthMethod] = {
    "copy": WidthMethod(
        build=copy,
        claim=copy_claim,
        preserving=True,
        paper="-",
        summary="the axis does not grow",
    ),
    "net2net": WidthMethod(
        build=net2net,
        claim=net2net_claim,
        preserving=False,
        paper="Net2Net, arXiv:1511.05641; FPI of bert2BERT, arXiv:2110.07143",
        summary="random entries copied, reads divided by the number of copies",
    ),
    "hyperclone": WidthMethod(
        build=hyperclone,
        claim=hyperclone_claim,
        preserving=True,
        paper="HyperCloning, arXiv:2409.12903",
        summary="whole tiles, reads divided evenly; whole multiples only",
    ),
    "lemon": WidthMethod(
        build=lemon,
        claim=lemon_claim,
        preserving=True,
        paper="LEMON, arXiv:2310.07999",
        summary="exact at any ratio (post-norm: whole multiples): tiles, mean or zero entries",
    ),
    "aki": WidthMethod(
        build=aki,
        claim=aki_claim,
        preserving=False,
        paper="AKI of bert2BERT, arXiv:2110.07143",
        summary="as net2net, the added entries taken from the next layer",
        advance=aki_advance,
    ),
    "zero": WidthMethod(
        build=zero,
        claim=zero_claim,
        preserving=False,
        paper="-",
        summary="old block in the corner, zeros elsewhere, norms rescaled, centred where exact",
        centres=True,
    ),
    "mean-preserving": WidthMethod(
        build=mean_preserving,
        claim=mean_preserving_claim,
        preserving=False,
        paper="LEMON, arXiv:2310.07999, but for post-norm",
        summary="as lemon; at uneven post-norm widths new entries carry the mean through the norms",
        mean_preserving=True,
    ),
    "direct": WidthMethod(
        build=direct,
        claim=direct_claim,
        preserving=False,
        paper="DirectCopy, a baseline of arXiv:2303.00980",
        summary="old block in the corner, the rest drawn as the library initialises",
        rescales=False,
    ),
    "random": WidthMethod(
        build=random,
        claim=random_claim,
        preserving=False,
        paper="-",
        summary="the whole axis drawn as the library initialises",
        rescales=False,
    ),
}


def width_axis(name: str, request: WidthRequest) -> Axis:
    """The maps of one axis under the start `name`; the identity where the axis does not grow."""
    return identity_axis(request.old) if request.old == request.new else WIDTHS[name].build(request)


def width_claim(name: str, request: WidthRequest) -> Claim:
    """What the start `name` promises for one axis. Raises CannotPreserve."""
    if request.old == request.new:
        return Claim(verdict="exact", reason="does not grow")
    return WIDTHS[name].claim(request)


def advance_axis(name: str, request: WidthRequest) -> Axis | None:
    """The second term's maps, or None for a start that has one term."""
    build = WIDTHS[name].advance
    if build is None:
        return None
    if request.old == request.new:
        nothing = Map(index=np.arange(request.old), weight=np.zeros(request.old), tail=np.zeros((0, request.old)))
        return plain_axis(nothing, identity_axis(request.old).read)
    return build(request)
