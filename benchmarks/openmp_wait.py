"""Measure the time of a training step when OpenMP threads wait by spinning, relative to sleeping, with and without other load.

    python benchmarks/openmp_wait.py --load 2

Each time is the median step of a child process that trains the quickstart's target shape while `--load` busy processes run.
Each ratio divides the time with spinning threads by the time with sleeping threads, of two children run one after the other.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

import click

CHILD = """
import numpy as np
from ligo_convert.families import FAMILIES
from ligo_convert.training.pretrain import pretrain

class Slices:
    validation = np.zeros((2, 128), dtype=np.uint32)
    def batch(self, step, batch_size, seed):
        return np.random.default_rng(step).integers(0, 1024, size=(batch_size, 128)).astype(np.uint32)

config = {"model_type": "gpt2", "vocab_size": 1024, "n_positions": 128, "n_embd": 128, "n_head": 4, "n_layer": 6}
seconds = []
pretrain(FAMILIES["gpt2"], config, Slices(), steps=25, batch_size=16, sequence_length=128, learning_rate=1e-3, seed=0,
         on_step=lambda step, line: seconds.append(line["seconds"]))
print(float(np.median(seconds[3:])))
"""


def step(policy: str) -> float:
    environment = {**os.environ, "OMP_WAIT_POLICY": policy}
    done = subprocess.run([sys.executable, "-c", CHILD], env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


@click.command()
@click.option("--load", default=0, show_default=True, help="Busy processes beside the measured one.")
@click.option("--runs", default=3, show_default=True)
def main(load: int, runs: int) -> None:
    """Print the ratio of a step with spinning threads to one with sleeping threads."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(load)]
    try:
        ratios = [step("ACTIVE") / step("PASSIVE") for _ in range(runs)]
    finally:
        for process in busy:
            process.kill()
    click.echo(
        f"load {load}: spinning / sleeping {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), {runs} pairs"
    )


if __name__ == "__main__":
    main()
