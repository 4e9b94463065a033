"""Learn the tensor rings of Mango (`growth.ring`) as an operator is learned: by the target's own loss.

Input: an initial operator, source tensors, data splits. Output: the target's tensors of the best step. There is no operator to store: a
ring is no sum of the terms that `growth.operator` holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from ligo_convert.errors import LigoError
from ligo_convert.families.schema import Family, Row
from ligo_convert.growth.apply import Grower
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.ring import Module, Ring, initial_cores, rings_of
from ligo_convert.training.fit import FitSettings, GrownTarget, SplitSource, Tensors, fetch_from, learn
from ligo_convert.training.functional_model import Objective
from ligo_convert.training.loop import StateStore, TrainResult


def contracted(cores: Mapping[str, torch.Tensor], stacked: torch.Tensor) -> torch.Tensor:
    """Contract a ring's cores with the stacked matrices: [B, I, O, L] -> [B, I', O', L'] (Mango, arXiv:2310.10699)."""
    mixed = torch.einsum("pbcq,biol->pqciol", cores["module"], stacked)
    mixed = torch.einsum("qoxr,pqciol->prcixl", cores["inner"], mixed)
    mixed = torch.einsum("rlys,prcixl->pscixy", cores["layer"], mixed)
    return torch.einsum("sizp,pscixy->czxy", cores["stream"], mixed)


class RingTarget:
    """The target's tensors as those of the start plus what the rings add, computed ring by ring.

    Args:
        start: grows the start's tensors, which do not change.
        rank: rank of every ring.
        seed: seed of the noise on the cores.
    """

    def __init__(self, start: GrownTarget, *, rank: int, seed: int) -> None:
        self.family, self.config, self.rows, self.dtype = start.family, start.config, start.rows, start.dtype
        self.start = start.tensors()
        self.stacked = start.stacked
        self.old, self.new = start.grower.old, start.grower.new
        self.operator = start.grower.operator
        self.rings = rings_of(self.family, self.operator.source, self.config)
        self.cores = {
            ring.name: {
                name: torch.nn.Parameter(torch.tensor(core, dtype=self.dtype, device=start.grower.device))
                for name, core in initial_cores(ring, rank=rank, seed=seed).items()
            }
            for ring in self.rings
        }

    def parameters(self, *names: str) -> dict[str, torch.nn.Parameter]:
        """Return the cores with these names, of all rings."""
        return {f"{ring}/{name}": cores[name] for ring, cores in self.cores.items() for name in names}

    def tensors(self, *, leaves: bool = False) -> Tensors:
        """Return every target tensor by name. With `leaves`, each is a leaf that collects its own gradient."""
        grown = {name: tensor.clone() for name, tensor in self.start.items()}
        with torch.no_grad():
            for ring in self.rings:
                added = contracted(self.cores[ring.name], self._source(ring))
                for module, piece in scattered(ring, added):
                    for layer, matrix in enumerate(piece):
                        self._part(grown[module.row.name(layer)], module, self.new).add_(matrix)
        if leaves:
            for tensor in grown.values():
                tensor.requires_grad_()
        return grown

    def backward(self, leaves: Tensors) -> None:
        """Propagate the gradients of the target's tensors to the cores, one ring at a time, and free them."""
        for ring in self.rings:
            pieces = []
            for module in ring.modules:
                gradients = [leaves[module.row.name(layer)].grad for layer in range(ring.new[2])]
                assert all(gradient is not None for gradient in gradients), f"no gradient reaches {module.row.pattern}"
                whole = torch.stack([gradient for gradient in gradients if gradient is not None])
                pieces.append(self._part(whole, module, self.new))
            gradient = gathered(ring, pieces)
            contracted(self.cores[ring.name], self._source(ring)).backward(gradient)  # type: ignore[no-untyped-call]
        for tensor in leaves.values():
            tensor.grad = None

    def _source(self, ring: Ring) -> torch.Tensor:
        return gathered(
            ring, [self._part(self.stacked[module.row.pattern], module, self.old) for module in ring.modules]
        )

    def _part(self, tensor: torch.Tensor, module: Module, sizes: Mapping[str, int]) -> torch.Tensor:
        """Return a view of a module in the tensor of its row, whose last two dims are the matrix."""
        dims = module.row.layout.dims
        fused = module.row.layout.fused_dim
        if fused is None:
            return tensor
        lengths = [sizes[part] for part in dims[fused].parts]
        begin = sum(lengths[: module.piece])
        return tensor.narrow(fused - len(dims), begin, lengths[module.piece])


def gathered(ring: Ring, pieces: list[torch.Tensor]) -> torch.Tensor:
    """Stack the matrices of a ring, [layers, ...] each, into one tensor: [B, I, O, L]."""
    found = []
    for module, piece in zip(ring.modules, pieces, strict=True):
        matrices = piece.transpose(-1, -2) if module.transposed else piece
        # [layers, slices, inner, stream]
        sliced = matrices.reshape(matrices.shape[0], module.slices, -1, matrices.shape[-1])
        found.append(sliced.permute(1, 3, 2, 0))
    return torch.cat(found)


def scattered(ring: Ring, tensor: torch.Tensor) -> Iterator[tuple[Module, torch.Tensor]]:
    """Yield the matrices of a ring out of one tensor [B, I, O, L], as `gathered` took them: (module, [layers, ...])."""
    begin = 0
    for module in ring.modules:
        sliced = tensor[begin : begin + module.slices].permute(3, 0, 2, 1)
        matrices = sliced.flatten(1, 2)
        yield module, matrices.transpose(-1, -2) if module.transposed else matrices
        begin += module.slices


def fit_ring(
    initial: Operator,
    family: Family,
    stacked: Tensors,
    slices: SplitSource,
    settings: FitSettings,
    *,
    rank: int = 1,
    objective: Objective | None = None,
    device: str = "cpu",
    store: StateStore | None = None,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[Tensors, TrainResult]:
    """Learn the rings of a growth, starting from what `initial` grows.

    Args:
        family: narrowed to the target's class.
        stacked: source tensors from `fit.stacked_source`.
        settings: the maps of entries learn at `width_rate`; those of layers and modules at `depth_rate`.
        rank: rank of every ring.
        objective: the loss; None for the target's task loss.
        store: where the training state is kept, so that a run can resume.
        on_step: called after every step with the number of finished steps and the log line.

    Returns:
        The target's tensors with the lowest validation loss, by canonical name, and how training went.

    Raises:
        LigoError: the source has no matrix to map.
    """
    dtype = next(iter(stacked.values())).dtype
    rows: tuple[Row, ...] = family.rows_for(initial.target)
    grower = Grower(initial, family, device=device, dtype=dtype, fetch=fetch_from(stacked))
    target = RingTarget(GrownTarget(grower, rows, stacked), rank=rank, seed=initial.seed)
    if not target.rings:
        raise LigoError("a source without layers has no matrices for a tensor ring: learn an operator instead")
    outcome = learn(
        target,
        target.parameters("inner", "stream"),
        target.parameters("module", "layer"),
        slices,
        settings,
        objective=objective,
        device=device,
        store=store,
        on_step=on_step,
    )
    with torch.no_grad():
        for name, parameter in target.parameters("inner", "stream", "module", "layer").items():
            parameter.copy_(outcome.best[name])
    return target.tensors(), outcome
