"""Width methods: the maps by which one axis of a model grows, and a claim about whether the function survives.

Input: a `WidthRequest` (sizes of one axis, the norm on it, how the head reads it). Output: the maps of `maps.Axis`, and a
`verdict.Claim` made from the sizes alone. No method knows a family. `WIDTHS` holds every method by name; `@width_method` adds one.

Sources: Net2Net arXiv:1511.05641, bert2BERT arXiv:2110.07143, LiGO arXiv:2303.00980, LEMON arXiv:2310.07999, HyperCloning
arXiv:2409.12903, SPARKLING arXiv:2602.02472. docs/reference/exact-starts.md derives the exact maps; docs/extending/adding-a-method.md
explains how to add a method.
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

# A change that growth makes to the source's weights first (`growth.rewrites`).
Rewrite = Literal["centre", "mean-preserving"]


@dataclass(frozen=True, kw_only=True)
class WidthRequest:
    """One axis to grow.

    Attributes:
        axis: name of the axis.
        old: size in the source.
        new: size in the target.
        norm: the norm between the writers and the readers of this axis; None if there is none.
        tied_head: True if the head shares the embedding's weights, and so reads with the write map.
        seed: seed of every random draw.
        place: position of the norm. `pre`: before a residual branch. `post`: after the residual sum. `embedded`: before a residual
            branch, and the stream begins with the output of a norm. `summed`: directly after a sum of embeddings. `activated`: directly
            after an activation, or of a stream that others read without a norm. The last two have no skip connection around them.
        norms: number of norms that the stream passes in the whole source.
        fixed_epsilon: True if the library's code fixes the norm's epsilon, so that the config cannot rescale it.
        affine: False if the norm has no gain, which could take a factor.
    """

    axis: str
    old: int
    new: int
    norm: Literal["layernorm", "rmsnorm"] | None
    tied_head: bool
    seed: int
    place: Literal["pre", "post", "embedded", "summed", "activated"] = "pre"
    norms: int = 0
    fixed_epsilon: bool = False
    affine: bool = True

    def generator(self, purpose: str) -> np.random.Generator:
        """Return the generator of this axis for one purpose."""
        return generator(self.seed, purpose, self.axis)


WidthBuilder = Callable[[WidthRequest], Axis]


@dataclass(frozen=True, kw_only=True)
class WidthMethod:
    """One entry of the table of width methods.

    Attributes:
        build: makes the maps of one axis.
        claim: predicts the verdict of one axis from its sizes.
        paper: where the method was published; `-` if nowhere.
        summary: one line for `ligo-convert methods`.
        preserving: True if the method promises the source's function, and refuses where it cannot keep the promise.
        advance: maps of a second term, which multiplies the difference between the next layer and the layer itself (AKI).
        rewrite: the change to the source that the method needs, where it is exact or applicable.
        rescales: True if weights are rescaled where the library's code multiplies by a size that grows (queries by the head size, Gemma's
            embeddings by the width). False for methods that copy the old block unchanged.
    """

    build: WidthBuilder
    claim: Callable[[WidthRequest], Claim]
    paper: str
    summary: str
    preserving: bool
    advance: WidthBuilder | None
    rewrite: Rewrite | None
    rescales: bool


# Name -> method, in the order of definition, which `ligo-convert methods` and the docs show.
WIDTHS: dict[str, WidthMethod] = {}


def width_method(
    name: str,
    *,
    claim: Callable[[WidthRequest], Claim],
    summary: str,
    paper: str = "-",
    preserving: bool = False,
    advance: WidthBuilder | None = None,
    rewrite: Rewrite | None = None,
    rescales: bool = True,
) -> Callable[[WidthBuilder], WidthBuilder]:
    """Register the decorated function as the width method `name`. The arguments are the fields of `WidthMethod`."""

    def register(build: WidthBuilder) -> WidthBuilder:
        assert name not in WIDTHS, f"width method {name!r} is defined twice"
        WIDTHS[name] = WidthMethod(
            build=build,
            claim=claim,
            paper=paper,
            summary=summary,
            preserving=preserving,
            advance=advance,
            rewrite=rewrite,
            rescales=rescales,
        )
        return build

    return register


# Using the table.


def width_axis(name: str, request: WidthRequest) -> Axis:
    """Return the maps of one axis under the method `name`; the identity where the axis does not grow."""
    return identity_axis(request.old) if request.old == request.new else WIDTHS[name].build(request)


def width_claim(name: str, request: WidthRequest) -> Claim:
    """Return the claim of the method `name` for one axis.

    Raises:
        CannotPreserve: the method promises the function and cannot preserve it at these sizes.
    """
    if request.old == request.new:
        return Claim(verdict="exact", reason="does not grow")
    return WIDTHS[name].claim(request)


def advance_axis(name: str, request: WidthRequest) -> Axis | None:
    """Return the maps of the method's second term; None for a method with one term."""
    build = WIDTHS[name].advance
    if build is None:
        return None
    if request.old == request.new:
        nothing = Map(index=np.arange(request.old), weight=np.zeros(request.old), tail=np.zeros((0, request.old)))
        return _second_term(nothing, identity_axis(request.old).read)
    return build(request)


def _second_term(write: Map, read: Map) -> Axis:
    """Return the maps of an axis in a second term. A LayerScale follows from the first term, so its map here is not used."""
    return Axis(write=write, read=read, gain=write, shift=write, scale=write)


# Shared by several methods.


def _tile(request: WidthRequest) -> np.ndarray:
    return np.arange(request.new, dtype=np.int64) % request.old


def _copies(index: np.ndarray, old: int) -> np.ndarray:
    """Return how often each old entry is copied: [old] int64."""
    return np.bincount(index, minlength=old)


def _even_split(index: np.ndarray, old: int) -> np.ndarray:
    """Return read weights that share an entry evenly among its copies: [new]."""
    shares: np.ndarray = 1.0 / _copies(index, old)[index]
    return shares


def _uneven_split(index: np.ndarray, old: int, rng: np.random.Generator) -> np.ndarray:
    """Return random read weights that sum to one over the copies of each entry, so that copies get different gradients: [new].

    Source: LEMON, section 4.
    """
    draw = rng.uniform(0.5, 1.5, size=len(index))
    draw /= np.bincount(index, weights=draw, minlength=old)[index]
    # An entry without a second copy keeps the weight 1 exactly.
    return np.where(_copies(index, old)[index] == 1, 1.0, draw)


def _normed(request: WidthRequest, *, write: Map, read: Map, gain: Map, shift: Map, kappa: float) -> Axis:
    """Return the maps of a normed stream, compensated for the factor `kappa` by which `write` changes its variance.

    The gain takes sqrt(kappa), and the config's epsilon takes kappa (`Claim.epsilon`). Where the library's code fixes epsilon,
    the stream is written larger by 1 / sqrt(kappa) instead, so that its variance does not change. Where the norm has no gain, its output
    is larger by that factor, and the reads take sqrt(kappa).

    Args:
        kappa: new variance over old variance; under RMSNorm of the mean square.
    """
    root = float(np.sqrt(kappa))
    written = write.scaled(1 / root) if request.fixed_epsilon else write
    if not request.affine:
        # `shift` is the map of the norm's output, which hidden states are compared by.
        read, shift = read.scaled(root), shift.scaled(1 / root)
    return Axis(write=written, read=read, gain=gain.scaled(root), shift=shift, scale=scale_like(write))


# copy


def copy_claim(request: WidthRequest) -> Claim:
    """Refuse: this claim is asked for only where the axis grows."""
    raise CannotPreserve(
        f"{request.axis} grows from {request.old} to {request.new}, and `copy` is for an axis that does not grow"
    )


@width_method("copy", claim=copy_claim, summary="the axis does not grow", preserving=True)
def copy(request: WidthRequest) -> Axis:
    """Copy every entry. Only for an axis that does not grow."""
    assert request.old == request.new
    return identity_axis(request.old)


# net2net


def net2net_claim(request: WidthRequest) -> Claim:
    """Claim exactness where no norm reads the axis."""
    if request.norm:
        return Claim(verdict="lossy", reason=f"uneven copies change the statistics of the {request.norm}")
    return Claim(verdict="exact", reason="copied entries, reads divided by the number of copies")


def _net2net_index(request: WidthRequest) -> np.ndarray:
    added = request.generator("copied").integers(0, request.old, size=request.new - request.old)
    return np.concatenate([np.arange(request.old), added])


@width_method(
    "net2net",
    claim=net2net_claim,
    paper="Net2Net, arXiv:1511.05641; FPI of bert2BERT, arXiv:2110.07143",
    summary="random entries copied, reads divided by the number of copies",
)
def net2net(request: WidthRequest) -> Axis:
    """Copy random entries and divide their reads by the number of copies."""
    index = _net2net_index(request)
    return plain_axis(selection(index, request.old), selection(index, request.old, _even_split(index, request.old)))


# hyperclone


def hyperclone_claim(request: WidthRequest) -> Claim:
    """Claim exactness at whole multiples; refuse other ratios."""
    if request.new % request.old:
        other = (
            "`lemon` takes any ratio"
            if request.place == "pre"
            else "`mean-preserving` is the nearest method there, then `zero`"
        )
        raise CannotPreserve(
            f"{request.axis} grows from {request.old} to {request.new}, which is not a whole multiple; {other}"
        )
    times = request.new // request.old
    head = 1.0 / times if request.tied_head and request.norm else 1.0
    return Claim(verdict="exact", reason=f"{times} whole tiles", head=head)


@width_method(
    "hyperclone",
    claim=hyperclone_claim,
    preserving=True,
    paper="HyperCloning, arXiv:2409.12903",
    summary="whole tiles, reads divided evenly; whole multiples only",
)
def hyperclone(request: WidthRequest) -> Axis:
    """Repeat the whole axis and divide the reads evenly."""
    index = _tile(request)
    return plain_axis(selection(index, request.old), selection(index, request.old, _even_split(index, request.old)))


# lemon


def lemon_claim(request: WidthRequest) -> Claim:
    """Claim exactness at any ratio under pre-norm, at whole multiples under post-norm."""
    times = request.new // request.old
    if request.norm is None:
        return Claim(verdict="exact", reason="copied entries, reads that sum to one over the copies")
    if request.place != "pre" and request.new % request.old:
        where = {
            "embedded": "embeddings pass a norm",
            "activated": "a norm reads an activation or an attention pool",
        }.get(request.place, "the norm comes after the sum (post-norm)")
        raise CannotPreserve(
            f"{request.axis} grows from {request.old} to {request.new}: where {where} only whole multiples are exact;"
            " `mean-preserving` is the nearest method there, then `zero`"
        )
    kind = "mean rows under LayerNorm" if request.norm == "layernorm" else "zero rows under RMSNorm"
    return Claim(
        verdict="exact",
        reason=f"{times} tile(s) and {kind}, {_norm_change(request)}",
        epsilon=1.0 if request.fixed_epsilon else times * request.old / request.new,
        head=_tied_head(request, times),
    )


def _tied_head(request: WidthRequest, times: int) -> float:
    """Return the factor on the last norm that a tied head needs: it reads `times` tiles with the write map, as `_normed` scales it."""
    root = float(np.sqrt(times * request.old / request.new)) if request.fixed_epsilon else 1.0
    return root / times if request.tied_head else 1.0


def _norm_change(request: WidthRequest) -> str:
    if not request.new % request.old:
        return "norms as they are"
    return "the stream rescaled" if request.fixed_epsilon else "gains and epsilon rescaled"


@width_method(
    "lemon",
    claim=lemon_claim,
    preserving=True,
    paper="LEMON, arXiv:2310.07999",
    summary="exact at any ratio (post-norm: whole multiples): tiles, mean or zero entries",
)
def lemon(request: WidthRequest) -> Axis:
    """Repeat the axis k times; fill the rest with the mean ("average expansion", LayerNorm) or with zeros (RMSNorm).

    With k = new // old and kappa = k old / new: mean' = mean and var' = kappa var (LayerNorm), meansquare' = kappa meansquare
    (RMSNorm), so a gain times sqrt(kappa) and an epsilon times kappa cancel the change. The entries after the tiles are exactly
    zero after the norm, so their reads are free. They are random, to break the symmetry.
    """
    if request.norm is None:
        index = _tile(request)
        read = selection(index, request.old, _uneven_split(index, request.old, request.generator("split")))
        return plain_axis(selection(index, request.old), read)
    old, times, rest = request.old, request.new // request.old, request.new % request.old
    index = np.tile(np.arange(old), times)
    mean = np.broadcast_to(1.0 / old, (rest, old))  # a view: `plan` builds these maps, too
    rng = request.generator("free reads")
    return _normed(
        request,
        write=selection(index, old, tail=mean if request.norm == "layernorm" else np.zeros((rest, old))),
        read=selection(index, old, _uneven_split(index, old, rng), tail=rng.normal(0, old**-0.5, size=(rest, old))),
        gain=selection(index, old, tail=mean),
        shift=selection(index, old, tail=np.zeros((rest, old))),
        kappa=times * old / request.new,
    )


# sparkling


def sparkling_scale(old: int, new: int) -> float:
    """Return the factor on the reads of copied entries that keeps the root mean square of what reads them.

    With c = new / old - 1 and independent entries of mean zero, a reader of entries of which c old are copied once has (1 + 3c) times its
    old variance. Above c = 1 the paper counts all entries as copied c times.

    Source: SPARKLING, arXiv:2602.02472, equations 16 and 17 (both sides copied).
    """
    return float(np.sqrt(old / (3 * new - 2 * old))) if new <= 2 * old else old / new


def sparkling_claim(request: WidthRequest) -> Claim:
    """Claim exactness at whole multiples, where the factor is one over the number of copies."""
    scale = sparkling_scale(request.old, request.new)
    head = scale if request.tied_head and request.norm else 1.0
    if request.new % request.old:
        return Claim(verdict="lossy", reason="some entries count twice: only the root mean square is kept", head=head)
    return Claim(verdict="exact", reason=f"{request.new // request.old} whole tiles", head=head)


@width_method(
    "sparkling",
    claim=sparkling_claim,
    paper="SPARKLING, arXiv:2602.02472",
    summary="copies, one factor on all reads that keeps the root mean square; twins, for an optimizer whose state is carried",
)
def sparkling(request: WidthRequest) -> Axis:
    """Copy the entries in order and scale all reads by one factor that keeps the root mean square of activations (copy-copy).

    Copies are twins: the paper parts them by the optimizer, whose state is kept for old entries and reset for new ones
    (`growth.moments`, policy `carry`), and by a warm-up of the new entries alone. Ours: a tied head, which reads with the write map, takes
    the factor through the gain and shift of the last norm; a head size that grows takes it on the keys.
    """
    index = _tile(request)
    scale = np.full(request.new, sparkling_scale(request.old, request.new))
    return plain_axis(selection(index, request.old), selection(index, request.old, scale))


# aki


def aki_claim(request: WidthRequest) -> Claim:
    """Claim nothing: added entries compute what the next layer computes."""
    return Claim(verdict="lossy", reason="added entries come from the next layer")


def aki_advance(request: WidthRequest) -> Axis:
    """Return the maps of AKI's second term, which writes only the added entries.

    The depth matrix of this term is (next layer - own layer), so the sum of both terms holds the next layer's entries.
    """
    index = _net2net_index(request)
    added = np.concatenate([np.zeros(request.old), np.ones(request.new - request.old)])
    return _second_term(selection(index, request.old, added), net2net(request).read)


@width_method(
    "aki",
    claim=aki_claim,
    paper="AKI of bert2BERT, arXiv:2110.07143",
    summary="as net2net, the added entries taken from the next layer",
    advance=aki_advance,
)
def aki(request: WidthRequest) -> Axis:
    """Return the maps of AKI's first term, which are those of `net2net` (advanced knowledge initialisation)."""
    return net2net(request)


# zero


def zero_claim(request: WidthRequest) -> Claim:
    """Claim exactness unless the stream's mean reaches a LayerNorm and cannot be centred away."""
    epsilon = request.old / request.new if request.norm and not request.fixed_epsilon else 1.0
    if request.place != "pre":
        where = {"embedded": "of the embeddings", "activated": "behind an activation or an attention pool"}.get(
            request.place, "after the sum (post-norm)"
        )
        return Claim(
            verdict="near",
            reason=f"the output of a norm {where} keeps its mean: no linear map removes it",
            epsilon=epsilon,
        )
    if request.norm == "layernorm" and request.tied_head:
        return Claim(
            verdict="near",
            reason="the residual stream keeps its mean: a tied head does not allow centring",
            epsilon=epsilon,
            head=_tied_head(request, 1),
        )
    head = _tied_head(request, 1) if request.norm else 1.0
    return Claim(verdict="exact", reason="old block in the corner, norms rescaled", epsilon=epsilon, head=head)


@width_method(
    "zero",
    claim=zero_claim,
    summary="old block in the corner, zeros elsewhere, norms rescaled, centred where exact",
    rewrite="centre",
)
def zero(request: WidthRequest) -> Axis:
    """Keep the old block in the corner, fill the rest with zeros, and multiply gains by sqrt(old / new).

    Under LayerNorm var' = kappa (var + (1 - kappa) mean^2) with kappa = old / new, so the map is exact for a stream of mean zero.
    LayerNorm ignores the mean, so the rewrite `centre` removes it from what is written, unless the head is tied to the embedding
    and would see the change. A norm without a skip connection around it gets the mean in the new entries instead: mean' = mean,
    var' = kappa var. Behind an activation the statistics can only be kept approximately.
    """
    block = corner(request.old, request.new)
    if request.norm is None:
        return plain_axis(block, block)
    if request.place == "activated":
        return _after_activation(request)
    write = block
    if request.place == "summed" and request.norm == "layernorm":
        mean = np.full((request.new - request.old, request.old), 1.0 / request.old)
        write = selection(np.arange(request.old), request.old, tail=mean)
    return _normed(request, write=write, read=block, gain=block, shift=block, kappa=request.old / request.new)


def _after_activation(request: WidthRequest, times: int = 1) -> Axis:
    """Return the maps of the axis between an activation and a LayerNorm (the head of a masked language model).

    No linear map before the activation keeps the statistics after it. A new entry is (z_i + z_j) / sqrt(2) of two old entries: an
    approximately homogeneous activation, such as ReLU or GELU, gives it about their mean energy, so that no single entry
    dominates. If the new entries shift the mean by d, every old entry moves by -d. The entries of a normalised vector sum to zero,
    so the new ones sum to old times d. Read with the mean of the gains and the weight 1 / old, they return what the old entries
    have lost, up to the spread of the gains.

    Args:
        times: number of whole tiles in front of the new entries.
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


# mean-preserving


def preserves_mean(request: WidthRequest) -> bool:
    """Return True if new entries need to hold the stream's mean, and can: uneven post-norm width, enough new entries."""
    rest = request.new % request.old
    return (
        request.place not in ("pre", "embedded") and rest > 0 and mean_preserving_cells(request.norms, rest) is not None
    )


def mean_preserving_claim(request: WidthRequest) -> Claim:
    """Claim what `lemon` claims where it is exact; else `near`."""
    if request.place == "pre" or request.norm is None or not request.new % request.old:
        return lemon_claim(request)
    if not preserves_mean(request):
        claim = zero_claim(request)
        if request.place == "embedded":
            return replace(claim, reason=f"as `zero`: {claim.reason}")
        return replace(claim, reason=f"too few new entries to hold the mean of the stream; as `zero`: {claim.reason}")
    times = request.new // request.old
    return Claim(
        verdict="near",
        reason="new entries hold the mean of the stream, so that norms after the sum (post-norm) see the old statistics",
        epsilon=times * request.old / request.new,
        head=1.0 / times if request.tied_head else 1.0,
    )


@width_method(
    "mean-preserving",
    claim=mean_preserving_claim,
    paper="LEMON, arXiv:2310.07999, but for post-norm",
    summary="as lemon; at uneven post-norm widths new entries hold the mean through the norms",
    rewrite="mean-preserving",
)
def mean_preserving(request: WidthRequest) -> Axis:
    """Use `lemon` where it is exact; at an uneven post-norm width, reserve entries that preserve the stream's mean.

    `growth.mean_preserving` computes the contents of those entries from the source's norms. The old entries then keep their
    statistics in every norm, up to the square of a small number. New entries of the same cell hold the same value: their reads are
    random and sum to zero, so that they get different gradients. Without enough new entries the maps are those of `zero`.
    """
    if not preserves_mean(request):
        return zero(request) if request.place != "pre" and request.new % request.old else lemon(request)
    old, times, rest = request.old, request.new // request.old, request.new % request.old
    index, nothing = np.tile(np.arange(old), times), np.zeros((rest, old))
    tiles = selection(index, old, tail=nothing)
    if request.place == "activated":
        return _after_activation(request, times)
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


# direct and random


def direct_claim(request: WidthRequest) -> Claim:
    """Claim nothing: random weights change the function."""
    return Claim(verdict="lossy", reason="drawn weights beside the old block")


@width_method(
    "direct",
    claim=direct_claim,
    paper="DirectCopy, a baseline of arXiv:2303.00980",
    summary="old block in the corner, the rest drawn as the library initialises",
    rescales=False,
)
def direct(request: WidthRequest) -> Axis:
    """Keep the old block in the corner and initialise the rest randomly, as the library does it."""
    block = corner(request.old, request.new)
    return plain_axis(block, block, drawn=np.arange(request.new) >= request.old)


def random_claim(request: WidthRequest) -> Claim:
    """Claim nothing: no weight of the source is kept."""
    return Claim(verdict="lossy", reason="drawn afresh")


@width_method("random", claim=random_claim, summary="the whole axis drawn as the library initialises", rescales=False)
def random(request: WidthRequest) -> Axis:
    """Initialise the whole axis randomly, as the library does it."""
    nothing = corner(request.old, request.new).scaled(0.0)
    return plain_axis(nothing, nothing, drawn=np.ones(request.new, dtype=bool))
