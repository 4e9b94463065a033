"""The laws of the starts, on the maps themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ligo_convert.growth.depth_methods import DEPTHS, depth_map
from ligo_convert.growth.maps import Axis
from ligo_convert.growth.verdict import CannotPreserve
from ligo_convert.growth.width_methods import WIDTHS, WidthRequest, width_axis, width_claim
from ligo_convert.recipes.schema import GrowthConfig

SIZES = st.tuples(st.integers(1, 12), st.integers(0, 30)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def request(old: int, new: int, norm: str | None = None, *, tied: bool = False, seed: int = 0) -> WidthRequest:
    return WidthRequest(axis="embed", old=old, new=new, norm=norm, tied_head=tied, seed=seed)  # type: ignore[arg-type]


def normed(x: np.ndarray, gain: np.ndarray, shift: np.ndarray, epsilon: float, kind: str) -> np.ndarray:
    centred = x - x.mean() if kind == "layernorm" else x
    scaled = centred / np.sqrt((centred**2).mean() + epsilon)
    return scaled * gain + (shift if kind == "layernorm" else 0.0)


def test_a_recipe_may_name_every_method() -> None:
    names = GrowthConfig.model_json_schema()["properties"]
    assert names["width"]["enum"] == [
        *("copy", "net2net", "hyperclone", "lemon", "sparkling", "aki", "zero", "mean-preserving", "direct", "random")
    ]
    assert names["depth"]["enum"] == [
        *("copy", "stack", "top", "middle", "interpolate", "identity", "drawn", "silent-drawn", "direct", "random")
    ]
    assert names["width"]["enum"] == list(WIDTHS)
    assert names["depth"]["enum"] == list(DEPTHS)


@pytest.mark.parametrize("name", ["lemon", "hyperclone", "net2net", "zero"])
@given(sizes=SIZES, seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_read_undoes_write(name: str, sizes: tuple[int, int], seed: int) -> None:
    old, new = sizes
    if name == "hyperclone":
        new = old * max(1, new // old)
    axis = width_axis(name, request(old, new, seed=seed))
    np.testing.assert_allclose(axis.read.matrix().T @ axis.write.matrix(), np.eye(old), atol=1e-12)


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("name", ["lemon", "zero", "hyperclone"])
@given(sizes=SIZES, seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_the_law_of_a_preserving_width(name: str, kind: str, sizes: tuple[int, int], seed: int) -> None:
    """read^T . norm'(write . x) = norm(x) for all x, with each side's gain, shift and epsilon."""
    old, new = sizes
    old += 1  # the LayerNorm of one entry is nothing but its shift
    new += 1
    if name == "hyperclone":
        new = old * max(1, new // old)
    asked = request(old, new, kind, seed=seed)
    axis, claim = width_axis(name, asked), width_claim(name, asked)
    assert claim.verdict == "exact"
    rng = np.random.default_rng(seed)
    x, gain, shift = rng.normal(1.0, 2.0, old), rng.normal(1, 0.3, old), rng.normal(0, 0.3, old)
    if WIDTHS[name].rewrite == "centre" and kind == "layernorm":
        x -= x.mean()  # what is written loses its mean first (`rewrites`)
    wide = normed(
        axis.write.matrix() @ x,
        axis.gain.matrix() @ gain,
        axis.shift.matrix() @ shift,
        1e-5 * claim.epsilon,
        kind,
    )
    np.testing.assert_allclose(axis.read.matrix().T @ wide, normed(x, gain, shift, 1e-5, kind), atol=1e-10)


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
@given(sizes=SIZES)
@settings(max_examples=40, deadline=None)
def test_a_tied_head_reads_with_the_write_map(kind: str, sizes: tuple[int, int]) -> None:
    """logits' = (E write^T) (head . norm'(write x)) = E norm(x)."""
    old, new = sizes[0] + 1, sizes[1] + 1
    asked = request(old, new, kind, tied=True)
    axis, claim = width_axis("lemon", asked), width_claim("lemon", asked)
    rng = np.random.default_rng(0)
    x, gain, shift = rng.normal(size=old), rng.normal(1, 0.3, old), rng.normal(0, 0.3, old)
    scale = claim.head
    wide = normed(
        axis.write.matrix() @ x,
        scale * axis.gain.matrix() @ gain,
        scale * axis.shift.matrix() @ shift,
        1e-5 * claim.epsilon,
        kind,
    )
    np.testing.assert_allclose(axis.write.matrix().T @ wide, normed(x, gain, shift, 1e-5, kind), atol=1e-10)


def test_copies_are_read_unevenly_so_that_they_learn_apart() -> None:
    axis = width_axis("lemon", request(8, 20))
    weights = axis.read.weight
    assert len(np.unique(weights[weights != 1])) == (weights != 1).sum()
    even = width_axis("hyperclone", request(8, 16))
    assert set(even.read.weight) == {0.5}


def test_hyperclone_takes_whole_multiples_only() -> None:
    with pytest.raises(CannotPreserve, match="not a whole multiple"):
        width_claim("hyperclone", request(8, 20))
    with pytest.raises(CannotPreserve, match="does not grow"):
        width_claim("copy", request(8, 16))


@pytest.mark.parametrize(("new", "factor"), [(96, 0.4**0.5), (128, 0.5), (160, 0.4), (192, 1 / 3)])
def test_sparkling_keeps_the_root_mean_square_of_what_reads_its_copies(new: int, factor: float) -> None:
    """Equation 16 of arXiv:2602.02472; above twice the width the paper's factor is exact at whole multiples only."""
    axis, rng = width_axis("sparkling", request(64, new)), np.random.default_rng(0)
    np.testing.assert_allclose(axis.read.weight, factor)
    weights, entries = rng.normal(size=(512, 64)), rng.normal(size=(64, 512))
    wide = (weights @ axis.read.matrix().T) @ (axis.write.matrix() @ entries)
    kept = np.sqrt((wide**2).mean() / ((weights @ entries) ** 2).mean())
    assert kept == pytest.approx(1.0, abs=0.03)
    # What the entries hold keeps its root mean square, too.
    assert np.sqrt(((axis.write.matrix() @ entries) ** 2).mean() / (entries**2).mean()) == pytest.approx(1.0, abs=0.03)
    assert (width_claim("sparkling", request(64, new)).verdict == "exact") == (new % 64 == 0)


@pytest.mark.parametrize("name", WIDTHS)
def test_a_start_for_an_axis_that_does_not_grow_is_the_identity(name: str) -> None:
    axis = width_axis(name, request(6, 6, "layernorm"))
    assert axis.is_identity
    assert width_claim(name, request(6, 6)).verdict == "exact"


@pytest.mark.parametrize("name", ["net2net", "lemon", "zero", "direct", "random"])
def test_the_same_seed_gives_the_same_maps_and_another_others(name: str) -> None:
    def arrays(axis: Axis) -> list[np.ndarray]:
        return [axis.write.matrix(), axis.read.matrix(), axis.gain.matrix()]

    one, again = (arrays(width_axis(name, request(6, 10, "rmsnorm"))) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    if name in ("net2net", "lemon"):
        other = arrays(width_axis(name, request(6, 10, "rmsnorm", seed=1)))
        assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_kept_rows_of_aki_are_the_layers_own_and_added_rows_the_next_layers() -> None:
    advance = WIDTHS["aki"].advance
    assert advance is not None
    asked = request(4, 7)
    own, added = width_axis("aki", asked).write.matrix(), advance(asked).write.matrix()
    assert not added[:4].any()
    np.testing.assert_array_equal(added[4:], own[4:])


DEPTH_ROWS = [
    ("stack", 3, 6, (0, 1, 2, 0, 1, 2)),
    ("stack", 3, 5, (0, 1, 2, 0, 1)),
    ("interpolate", 3, 6, (0, 0, 1, 1, 2, 2)),
    ("interpolate", 5, 9, (0, 0, 1, 1, 2, 2, 3, 3, 4)),
    ("identity", 3, 6, (0, 0, 1, 1, 2, 2)),
    ("copy", 4, 4, (0, 1, 2, 3)),
    ("top", 3, 4, (0, 1, 2, 2)),
    ("top", 3, 5, (0, 1, 2, 1, 2)),
    ("top", 3, 6, (0, 1, 2, 0, 1, 2)),
    ("top", 2, 5, (0, 1, 0, 0, 1)),
    # MIDAS: of n blocks of b layers, block ceil(n / 2) again.
    ("middle", 3, 4, (0, 1, 1, 2)),
    ("middle", 4, 5, (0, 1, 1, 2, 3)),
    ("middle", 6, 8, (0, 1, 2, 3, 2, 3, 4, 5)),
    ("middle", 8, 10, (0, 1, 2, 3, 2, 3, 4, 5, 6, 7)),
    ("middle", 5, 7, (0, 1, 0, 1, 2, 3, 4)),
    ("middle", 7, 9, (0, 1, 2, 3, 2, 3, 4, 5, 6)),
    ("middle", 2, 4, (0, 1, 0, 1)),
    ("middle", 2, 8, (0, 1, 0, 1, 0, 1, 0, 1)),
    ("middle", 3, 8, (0, 1, 2, 0, 2, 0, 1, 2)),
    ("drawn", 2, 5, (0, 0, 0, 1, 1)),
    ("silent-drawn", 2, 5, (0, 0, 0, 1, 1)),
    *((name, 1, 8, (0,) * 8) for name in ("stack", "top", "middle", "interpolate", "identity", "drawn", "direct")),
]


@pytest.mark.parametrize(("name", "old", "new", "expected"), DEPTH_ROWS)
def test_where_layers_come_from(name: str, old: int, new: int, expected: tuple[int, ...]) -> None:
    assert depth_map(name, old, new).source == expected


@given(old=st.integers(1, 12), more=st.integers(0, 30))
def test_where_new_layers_are_silent_or_drawn_every_old_layer_acts_once_and_in_order(old: int, more: int) -> None:
    for name in ("identity", "drawn", "silent-drawn"):
        found = depth_map(name, old, old + more)
        flags = found.drawn if name == "drawn" else found.silent
        acting = [source for source, new in zip(found.source, flags, strict=True) if not new]
        assert acting == list(range(old)), name
        assert found.drawn == (
            found.silent if name == "silent-drawn" else (False,) * (old + more) if name == "identity" else flags
        )
        # As many new layers above each old one, give or take one.
        counts = [found.source.count(layer) for layer in range(old)]
        assert max(counts) - min(counts) <= 1, name


@given(old=st.integers(1, 12), more=st.integers(1, 30))
def test_copies_of_the_top_or_the_middle_keep_every_old_layer(old: int, more: int) -> None:
    for name in ("top", "middle"):
        found = depth_map(name, old, old + more)
        assert len(found.source) == old + more
        assert set(found.source) == set(range(old)), name
    assert depth_map("top", old, old + more).source[:old] == tuple(range(old))


@pytest.mark.parametrize("name", DEPTHS)
def test_a_depth_that_does_not_grow_is_left_alone(name: str) -> None:
    found = depth_map(name, 4, 4)
    assert found.source == (0, 1, 2, 3)
    assert not any(found.silent)
    assert not any(found.drawn)


@given(sizes=SIZES, seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_behind_an_activation_new_entries_give_back_the_mean_that_they_put_off(
    sizes: tuple[int, int], seed: int
) -> None:
    """Whatever new entries hold: read by a decoder, old and new ones come out without a mean, as the old ones alone would."""
    old, new = sizes[0] + 1, sizes[1] + 1
    asked = WidthRequest(
        axis="transformed", old=old, new=new, norm="layernorm", tied_head=True, seed=seed, place="activated", norms=5
    )
    for name in ("zero", "mean-preserving"):
        if old == new or (name == "mean-preserving" and new % old == 0):
            continue
        axis = width_axis(name, asked)
        tiles = new // old if name == "mean-preserving" and np.count_nonzero(axis.shift.matrix()) > old else 1
        entries = np.random.default_rng(seed).normal(1.0, 2.0, new)
        wide = normed(entries, axis.gain.matrix() @ np.ones(old), np.zeros(new), 0.0, "layernorm")
        assert axis.read.matrix().T @ wide @ np.ones(old) / tiles == pytest.approx(0, abs=1e-9 * new)


def test_behind_an_activation_new_entries_are_of_two_old_ones_with_the_energy_of_one() -> None:
    asked = WidthRequest(
        axis="transformed", old=64, new=96, norm="layernorm", tied_head=True, seed=0, place="activated", norms=5
    )
    added = width_axis("zero", asked).write.matrix()[64:]
    np.testing.assert_allclose((added**2).sum(1), 1.0)
    assert ((added != 0).sum(1) == 2).all()
    assert (added.sum(0) > 0).all(), "twice as many old entries as new ones: every one is in one of them"


def test_an_epsilon_that_cannot_follow_leaves_the_variance_where_it_was() -> None:
    asked = replace(request(8, 11, "layernorm"), fixed_epsilon=True)
    axis, claim = width_axis("lemon", asked), width_claim("lemon", asked)
    assert claim.epsilon == 1.0
    x = np.random.default_rng(0).normal(1.0, 2.0, 8)
    assert (axis.write.matrix() @ x).var() == pytest.approx(x.var())
    wide = normed(axis.write.matrix() @ x, axis.gain.matrix() @ np.ones(8), np.zeros(11), 0.3, "layernorm")
    np.testing.assert_allclose(
        axis.read.matrix().T @ wide, normed(x, np.ones(8), np.zeros(8), 0.3, "layernorm"), atol=1e-12
    )
