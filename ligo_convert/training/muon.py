"""Muon with the matrices of one shape orthogonalized together.

`torch.optim.Muon` takes one matrix after another, in bfloat16. On a CPU, where bfloat16 products are slow, that takes as long as the
forward and backward pass of a small model. `BatchedMuon` has the same rule, options and state. It takes float32 on a CPU, and one batched
product for all matrices of a shape.

Source: Jordan et al., 2024; update scaled as in arXiv:2502.16982.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch

# Elements of one batch: larger ones gain no speed, and take memory for several copies.
BATCH_ELEMENTS = 1 << 24


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon` with batched products. Its updates are scaled to the root mean square of AdamW's."""

    def __init__(self, params: Iterable[dict[str, Any]], *, momentum: float) -> None:
        super().__init__(params, momentum=momentum, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step. Gradients must have been computed; `closure` is not supported."""
        if closure is not None:
            raise NotImplementedError("BatchedMuon takes no closure")
        for group in self.param_groups:
            for parameters in _batches([p for p in group["params"] if p.grad is not None]):
                self._step_together(parameters, group)

    def _step_together(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Take a step for matrices of one shape."""
        momentum, rate = group["momentum"], float(group["lr"])
        directions = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter.grad)
            buffer = state["momentum_buffer"]
            buffer.lerp_(parameter.grad, 1 - momentum)
            directions.append(parameter.grad.lerp(buffer, momentum) if group["nesterov"] else buffer)
        updates = orthogonal(
            torch.stack(directions), group["ns_coefficients"], steps=group["ns_steps"], eps=group["eps"]
        )
        scale = 0.2 * math.sqrt(max(parameters[0].shape))
        for parameter, update in zip(parameters, updates.to(parameters[0].dtype), strict=True):
            parameter.mul_(1 - rate * group["weight_decay"]).add_(update, alpha=-rate * scale)


def orthogonal(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], *, steps: int, eps: float
) -> torch.Tensor:
    """Return the matrices with singular values near one, by Newton-Schulz iteration (Jordan et al., 2024).

    Args:
        matrices: [n, rows, columns].
        coefficients: a, b, c of the iteration X <- aX + b(XX')X + c(XX')(XX')X.
        steps: number of iterations.
        eps: least norm that a matrix is divided by.

    Returns:
        [n, rows, columns], in float32 on a CPU and in bfloat16 elsewhere.
    """
    a, b, c = coefficients
    tall = matrices.shape[-2] > matrices.shape[-1]
    found = matrices.to(torch.float32 if matrices.device.type == "cpu" else torch.bfloat16)
    found = found.mT if tall else found
    found = found / found.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.mT if tall else found


def _batches(parameters: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yield the parameters by shape, dtype and device, in order, in batches of at most `BATCH_ELEMENTS` elements (at least one matrix)."""
    alike: dict[tuple[object, ...], list[torch.Tensor]] = {}
    for parameter in parameters:
        alike.setdefault((parameter.shape, parameter.dtype, parameter.device), []).append(parameter)
    for same in alike.values():
        rest, count = iter(same), max(1, BATCH_ELEMENTS // max(1, same[0].numel()))
        while batch := list(islice(rest, count)):
            yield batch
