"""What the processes of a training do that another one leads: train every segment that it sends, on the batches that it sends.

Input: the processes of the training. Output: nothing; the leading process keeps the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ligo_convert.data.examples import ArrayExamples
from ligo_convert.environment import compute_threads
from ligo_convert.families.registry import FAMILIES
from ligo_convert.training.processes import Processes, ReceivedBatches, ReceivedStore
from ligo_convert.training.run_trainer import RunState, TrainSetup, run_segment
from ligo_convert.training.runs import Run


@dataclass(frozen=True, kw_only=True)
class Work:
    """A segment that the leader gives to the others.

    Attributes:
        family: name of the family.
        architecture: the library's class of the model.
        run: the run.
        state: arrays and text of the `RunState` with which the segment begins.
        steps: the steps of the segment.
        settings: fields of `TrainSetup` that are plain data.
        threads: CPU threads of a process.
    """

    family: str
    architecture: str
    run: Run
    state: tuple[dict[str, np.ndarray], str]
    steps: range
    settings: Mapping[str, Any]
    threads: int


def follow(processes: Processes) -> None:
    """Take part in every segment that the leader sends, until it sends none."""
    while (work := processes.receive()) is not None:
        setup = TrainSetup(
            family=FAMILIES[work.family].with_experts(work.run.stages[0].config).for_architecture(work.architecture),
            slices=ReceivedBatches(processes=processes),
            # The leader evaluates.
            examples=ArrayExamples(arrays={}),
            processes=processes,
            **work.settings,
        )
        with compute_threads(work.threads):
            run_segment(
                setup,
                work.run,
                RunState.read(*work.state, device=setup.device),
                work.steps,
                store=ReceivedStore(processes=processes),
            )
