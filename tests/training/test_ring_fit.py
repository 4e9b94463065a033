"""The tensor rings of Mango: the map is the explicit one, its gradient the true one, and a fit lowers the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.tiny import config_of, family_of
from torch.utils.flop_counter import FlopCounterMode
from training.test_fit import Slices, loss_of, prepared, settings

from ligo_convert.growth.apply import Grower
from ligo_convert.growth.initialize import initial_operator
from ligo_convert.growth.ring import CORES, initial_cores, ring_flops, rings_of
from ligo_convert.training.fit import GrownTarget, fetch_from
from ligo_convert.training.functional_model import LibraryModel, mean_loss
from ligo_convert.training.ring_fit import RingTarget, contracted, fit_ring, gathered, scattered
from ligo_convert.training.tasks import on_device

FAMILIES = ["gpt2", "llama", "phi3", "qwen3", "bert", "vit", "cait"]


def ring_target(family: str, *, rank: int, random: bool = False, **growth: object):
    found, inventory, start, rows, stacked = prepared(family, dtype=torch.float64, **growth)
    operator = initial_operator(start, dtype=np.float64)
    grower = Grower(operator, found, dtype=torch.float64, fetch=fetch_from(stacked))
    plain = GrownTarget(grower, rows, stacked)
    target = RingTarget(plain, rank=rank, seed=0)
    if random:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in target.parameters(*CORES).values():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return found, inventory, start, stacked, plain, target


@pytest.mark.parametrize("rank", [1, 3])
def test_the_contraction_is_one_sum_over_all_indices(rank: int) -> None:
    rng = np.random.default_rng(rank)
    cores = {
        name: rng.normal(size=(rank, *sizes, rank))
        for name, sizes in zip(CORES, [(3, 3), (2, 4), (2, 3), (3, 5)], strict=True)
    }
    stacked = rng.normal(size=(3, 3, 2, 2))
    explicit = np.einsum("pbcq,qoxr,rlys,sizp,biol->czxy", *(cores[name] for name in CORES), stacked)
    found = contracted({name: torch.tensor(core) for name, core in cores.items()}, torch.tensor(stacked))
    np.testing.assert_allclose(found.numpy(), explicit, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_target_is_the_start_plus_what_the_rings_add(family: str) -> None:
    """Every matrix is put into the tensor of its ring, and taken out again, by hand."""
    found, _, start, stacked, plain, target = ring_target(family, rank=2, random=True)
    before, after = plain.tensors(), target.tensors()
    stream = found.norm.stream
    old, new = found.sizes(start.source), found.sizes(start.target)
    mapped: set[str] = set()
    for ring in target.rings:
        cores = {name: core.detach() for name, core in target.cores[ring.name].items()}
        slices: list[torch.Tensor] = []
        places = []
        for module in ring.modules:
            layout = module.row.layout
            sizes = [old[part] for part in layout.dims[layout.fused_dim].parts] if layout.fused_dim is not None else []
            for number in range(module.slices):
                places.append((module, number))
                layers = []
                for layer in stacked[module.row.pattern]:
                    if layout.fused_dim is not None:
                        layer = torch.split(layer, sizes, layout.fused_dim)[module.piece]
                    if found.norm.stream in layout.dims[0].parts:
                        layer = layer.T
                    layers.append(layer[number * ring.old[1] : (number + 1) * ring.old[1]].T)
                slices.append(torch.stack(layers, -1))
        explicit = contracted(cores, torch.stack(slices))
        assert explicit.shape == (len(places), ring.new[0], ring.new[1], ring.new[2])
        for (module, number), added in zip(places, explicit, strict=True):
            layout = module.row.layout
            for layer in range(ring.new[2]):
                name = module.row.name(layer)
                mapped.add(name)
                change = after[name] - before[name]
                if layout.fused_dim is not None:
                    parts = [new[part] for part in layout.dims[layout.fused_dim].parts]
                    change = torch.split(change, parts, layout.fused_dim)[module.piece]
                if found.norm.stream in layout.dims[0].parts:
                    change = change.T
                rows = change[number * ring.new[1] : (number + 1) * ring.new[1]]
                torch.testing.assert_close(rows, added[..., layer].T, rtol=1e-10, atol=1e-12, msg=name)
    # Every matrix between the stream and an inner stream of a layer is in a ring, and nothing else.
    for row in found.rows_for(start.target):
        parts = [part for dim in row.layout.dims for part in dim.parts]
        layered = row.depth is not None and len(row.layout.dims) == 2 and parts.count(stream) == 1
        for layer in found.layers(row, start.target):
            assert (row.name(layer) in mapped) == layered, row.name(layer)
            if not layered:
                assert torch.equal(after[row.name(layer)], before[row.name(layer)])


def test_mlps_of_whole_multiples_share_the_ring_of_attention() -> None:
    """The tensor of the paper has 2k + 4 slices, with an MLP of k times the width."""
    config = config_of("gpt2")
    family = family_of(config)
    (ring,) = rings_of(family, config, family.resize(config, {"n_embd": 40, "n_head": 5, "n_layer": 3}))
    assert ring.slices == 4 + 2 * 4
    assert [module.slices for module in ring.modules] == [1, 1, 1, 1, 4, 4]
    assert (ring.old, ring.new) == ((16, 16, 2), (40, 40, 3))
    # An MLP of another multiple has a ring of its own; so have keys and values of grouped queries.
    two = rings_of(family, config, family.resize(config, {"n_embd": 40, "n_head": 5, "n_inner": 100}))
    assert [ring.slices for ring in two] == [4, 2]
    llama = config_of("llama")
    groups = rings_of(
        family_of(llama), llama, {**llama, "hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4}
    )
    assert [ring.slices for ring in groups] == [2, 2, 3]
    assert ring_flops(family, config, {**config, "n_embd": 32, "n_head": 4}, rank=2) > 0


@pytest.mark.parametrize("rank", [1, 3])
def test_a_ring_begins_as_the_start(rank: int) -> None:
    *_, plain, target = ring_target("vit", rank=rank)
    before = plain.tensors()
    for name, tensor in target.tensors().items():
        assert torch.equal(tensor, before[name]), name
    (ring,) = target.rings
    cores = initial_cores(ring, rank=rank, seed=0)
    # With its modules switched on, a ring of rank one copies.
    identity = torch.zeros_like(target.cores[ring.name]["module"])
    identity[0, :, :, 0] = torch.eye(ring.slices, dtype=torch.float64)
    if rank == 1:
        maps = {name: torch.tensor(core) for name, core in cores.items()} | {"module": identity}
        sizes = (ring.slices, *ring.old)
        source = torch.randn(sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        grown = contracted(maps, source)
        torch.testing.assert_close(grown[:, :8, :16, 0] * 3, source[:, :8, :, 0])
    else:
        assert all(np.abs(cores[name][1, :, :, 2]).max() > 0 for name in CORES if name != "module")


def test_gathering_and_scattering_are_inverse() -> None:
    *_, target = ring_target("phi3", rank=1)
    for ring in target.rings:
        tensor = torch.randn(ring.slices, *ring.new, dtype=torch.float64)
        assert torch.equal(gathered(ring, [piece for _, piece in scattered(ring, tensor)]), tensor)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "vit"])
def test_the_gradient_of_the_cores_is_the_true_one(family: str) -> None:
    """Ring by ring against autograd through rings and model at once, in float64."""
    found, inventory, start, stacked, plain, target = ring_target(family, rank=2, random=True)
    loss = loss_of(found, inventory, start, stacked)
    batch = on_device(Slices(family).train.take(range(4)), "cpu", torch.float64)
    leaves = target.tensors(leaves=True)
    loss(leaves, batch).backward()
    target.backward(leaves)
    whole = dict(plain.tensors())
    for ring in target.rings:
        added = contracted(target.cores[ring.name], target._source(ring))
        for module, piece in scattered(ring, added):
            for layer, matrix in enumerate(piece):
                name, fused = module.row.name(layer), module.row.layout.fused_dim
                if fused is not None:
                    sizes = [target.new[part] for part in module.row.layout.dims[fused].parts]
                    blank = list(torch.split(torch.zeros_like(plain.tensors()[name]), sizes, fused))
                    blank[module.piece] = matrix
                    matrix = torch.cat(blank, fused)
                whole[name] = whole[name] + matrix
    parameters = target.parameters(*CORES)
    for (name, parameter), expected in zip(
        parameters.items(), torch.autograd.grad(loss(whole, batch), list(parameters.values())), strict=True
    ):
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-8, msg=name)


@pytest.mark.parametrize("family", ["gpt2", "bert", "vit"])
def test_a_fit_lowers_the_loss(family: str) -> None:
    found, _, start, _, stacked = prepared(family, **({"width": "mean-preserving"} if family == "bert" else {}))
    slices = Slices(family)
    seen: list[int] = []
    tensors, outcome = fit_ring(
        initial_operator(start),
        found,
        stacked,
        slices,
        settings(steps=15),
        rank=2,
        on_step=lambda step, line: seen.append(step),
    )
    assert seen == list(range(1, 16))
    losses = [line["validation_loss"] for line in outcome.log if "validation_loss" in line]
    assert outcome.best_step > 0
    model = LibraryModel(found, start.target)
    reached = mean_loss(
        model.loss, tensors, slices.validation, batch_size=8, device="cpu", dtype=torch.float32, autocast=False
    )
    assert reached == pytest.approx(outcome.best_loss, abs=1e-4)
    before = mean_loss(
        model.loss,
        GrownTarget(
            Grower(initial_operator(start), found, fetch=fetch_from(stacked)), found.rows_for(start.target), stacked
        ).tensors(),
        slices.validation,
        batch_size=8,
        device="cpu",
        dtype=torch.float32,
        autocast=False,
    )
    assert reached < before - 0.05, losses


@pytest.mark.parametrize("rank", [1, 3])
def test_the_cost_of_a_ring_is_what_torch_counts(rank: int) -> None:
    for family in ("vit", "llama"):
        *_, target = ring_target(family, rank=rank)
        for ring in target.rings:
            cores = {name: core.detach() for name, core in target.cores[ring.name].items()}
            with FlopCounterMode(display=False) as counter:
                contracted(cores, target._source(ring))
            assert counter.get_total_flops() == ring.flops(rank), ring.name
        assert sum(ring.flops(rank) for ring in target.rings) == ring_flops(
            target.family, target.operator.source, target.config, rank=rank
        )
