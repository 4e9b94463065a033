"""Train one model in several processes, started by torchrun: every process takes a share of each batch.

The first process leads. It reads the data, keeps the state and writes the output. It sends the others each segment of the run, its state,
and every batch; so they read no file. All of them sum their gradients and take the same step. The result depends on the number of processes
in its last bits only, and is the same for the same number.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import distributed

from ligo_convert.data.examples import Batch
from ligo_convert.errors import MachineError

# The leader tokenises text while the others wait. When a process fails, torchrun ends all of them.
_PATIENCE = datetime.timedelta(days=2)


@contextmanager
def _talking() -> Iterator[None]:
    """Raise MachineError where the processes cannot talk to each other: torch says that with a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise MachineError(
            "another process of this training has ended, or cannot be reached",
            where="torchrun",
            found=str(error).partition(". This is typically")[0],
            hint="see what that process printed, and run the same command again to resume",
        ) from error


class Batches(Protocol):
    """The part of `DataSplits` that a run trains on."""

    def batch(self, step: int, *, batch_size: int, seed: int, order: str = "batches") -> Batch: ...


class Store(Protocol):
    """A `training.loop.StateStore`."""

    def save(self, arrays: dict[str, np.ndarray], text: str) -> None: ...

    def load(self) -> tuple[dict[str, np.ndarray], str] | None: ...

    def discard(self, why: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of a training, as one of them sees them.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def send(self, value: object) -> None:
        """Send plain data to all other processes, which `receive` it."""
        assert self.leads, "only the first process sends"
        with _talking():
            distributed.broadcast_object_list([value], src=0)

    def receive(self) -> Any:
        """Return what the first process sends next."""
        found: list[Any] = [None]
        with _talking():
            distributed.broadcast_object_list(found, src=0)
        return found[0]

    def rows(self, count: int) -> range:
        """Return the rows of a batch of `count` examples that this process takes. `count` is a multiple of `size`."""
        share = count // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def sum_gradients(self, parameters: Mapping[str, torch.nn.Parameter], loss: float) -> float:
        """Sum the gradients of all processes in place. Return the sum of their losses.

        A parameter that has a gradient in no process keeps none.
        """
        own = list(parameters.values())
        facts = torch.tensor([loss, *(float(one.grad is not None) for one in own)], dtype=torch.float64)
        facts = facts.to(own[0].device)
        with _talking():
            distributed.all_reduce(facts)
        total, *counts = facts.tolist()
        used = [one for one, count in zip(own, counts, strict=True) if count]
        parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in used]
        flat = torch.cat([part.reshape(-1) for part in parts])
        with _talking():
            distributed.all_reduce(flat)
        for one, part in zip(used, torch.split(flat, [one.numel() for one in used]), strict=True):
            one.grad = part.view_as(one)
        return float(total)


@contextmanager
def joined(device: str) -> Iterator[Processes | None]:
    """Join the processes that torchrun has started, within the context. Yields None in a process that it has not started.

    Args:
        device: `cpu` or `cuda`; a process takes the GPU of its number on this machine.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if not distributed.is_torchelastic_launched() or size == 1:
        yield None
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Plain data travels through the CPU, gradients by the device's own way.
    with _talking():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=_PATIENCE)
    yield Processes(rank=distributed.get_rank(), size=size)
    # Not after an error: the others wait elsewhere then, and torchrun ends them.
    distributed.destroy_process_group()


@dataclass(frozen=True, kw_only=True)
class SentBatches:
    """Batches that the leader reads and sends to the others."""

    batches: Batches
    processes: Processes

    def batch(self, step: int, *, batch_size: int, seed: int, order: str = "batches") -> Batch:
        drawn = self.batches.batch(step, batch_size=batch_size, seed=seed, order=order)
        self.processes.send(dict(drawn))
        return drawn


@dataclass(frozen=True, kw_only=True)
class ReceivedBatches:
    """Batches that the leader sends."""

    processes: Processes

    def batch(self, step: int, *, batch_size: int, seed: int, order: str = "batches") -> Batch:
        found: Batch = self.processes.receive()
        return found


@dataclass(frozen=True, kw_only=True)
class SentStore:
    """The leader's storage of a training state. What it loads is sent to the others."""

    store: Store
    processes: Processes

    def save(self, arrays: dict[str, np.ndarray], text: str) -> None:
        self.store.save(arrays, text)

    def load(self) -> tuple[dict[str, np.ndarray], str] | None:
        found = self.store.load()
        self.processes.send(found)
        return found

    def discard(self, why: str) -> None:
        self.store.discard(why)


@dataclass(frozen=True, kw_only=True)
class ReceivedStore:
    """The training state that the leader has loaded. Only the leader saves."""

    processes: Processes

    def save(self, arrays: dict[str, np.ndarray], text: str) -> None:
        pass

    def load(self) -> tuple[dict[str, np.ndarray], str] | None:
        found: tuple[dict[str, np.ndarray], str] | None = self.processes.receive()
        return found

    def discard(self, why: str) -> None:
        pass
