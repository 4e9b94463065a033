"""The jobs of a comparison: what each is, and the names under which results, operators and states are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ligo_convert.contenders import Contender


@dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of work.

    Attributes:
        kind: `probe` how fast it goes here; measure the `source`; learn an operator (`fit`); `train` to a horizon.
        before: the horizon of the run whose common stretch this one goes on from; 0 for none.
        flops: about what it costs, for progress.
    """

    kind: Literal["probe", "source", "fit", "train"]
    method: str = ""
    seed: int = 0
    learning_rate: float = 0.0
    shape: str = ""
    horizon: float = 0.0
    before: float = 0.0
    flops: float = 0.0

    @property
    def name(self) -> str:
        """What its result and its state are called."""
        parts = [self.kind, self.method, f"{self.seed}", f"{self.learning_rate:g}", self.shape, f"{self.horizon:g}"]
        return "-".join(part.replace("/", "_") for part in parts if part) if self.method else self.kind


def operator_name(method: Contender, seed: int) -> str:
    """Methods with the same name here learn the same operator."""
    rates = f"{method.fitting.width_rate:g}-{method.fitting.depth_rate:g}" if method.fitting else "recipe"
    return f"{method.width}-{method.depth}-{method.tie or 'untied'}-{rates}-{seed}"


def trunk_name(job: Job, horizon: float) -> str:
    """Of the state that a run to `horizon` leaves to longer ones of its method."""
    return f"trunk-{job.method.replace('/', '_')}-{job.seed}-{job.learning_rate:g}-{horizon:g}"
