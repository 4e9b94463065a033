"""Measure what a training step of a small model costs on one CPU thread: in the optimizer, and in giving memory back.

    python benchmarks/small_step.py --runs 5

The model is the target of recipes/compare_bert.yaml with 1,024 tokens a step. Every child process times the forward and backward pass, a
step of torch's Muon and a step of `BatchedMuon`, with or without `keep_freed_memory`. The two kinds of child run one after the other.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import click

CHILD = """
import json, statistics, sys, time
import torch
from transformers import BertConfig, BertForMaskedLM
from ligo_convert.environment import keep_freed_memory
from ligo_convert.training.muon import BatchedMuon

if sys.argv[1] == "keep":
    keep_freed_memory()
torch.set_num_threads(1)
config = BertConfig(
    vocab_size=512, max_position_embeddings=16, hidden_size=48, num_attention_heads=3, num_hidden_layers=6, intermediate_size=192
)
model = BertForMaskedLM(config)
ids = torch.randint(0, 512, (64, 16))
inside = [parameter for name, parameter in model.named_parameters() if parameter.ndim == 2 and ".layer." in name]
kinds = {
    "torch": torch.optim.Muon(inside, adjust_lr_fn="match_rms_adamw"),
    "batched": BatchedMuon([{"params": inside}], momentum=0.95),
}
seconds = {"pass": [], **{name: [] for name in kinds}}
for _ in range(40):
    started = time.perf_counter()
    model(input_ids=ids, labels=ids).loss.backward()
    seconds["pass"].append(time.perf_counter() - started)
    for name, optimizer in kinds.items():
        started = time.perf_counter()
        optimizer.step()
        seconds[name].append(time.perf_counter() - started)
print(json.dumps({name: statistics.median(found[5:]) for name, found in seconds.items()}))
"""


def times(kind: str) -> dict[str, float]:
    command = [sys.executable, "-c", CHILD, kind]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@click.command()
@click.option("--runs", default=5, show_default=True, type=click.IntRange(min=1))
def main(runs: int) -> None:
    """Print the ratios of the times."""
    pairs = [(times("give back"), times("keep")) for _ in range(runs)]
    ratios = {
        "forward and backward pass, memory given back / kept": [back["pass"] / kept["pass"] for back, kept in pairs],
        "Muon's step, torch / batched": [kept["torch"] / kept["batched"] for _, kept in pairs],
        "torch's Muon / forward and backward pass": [kept["torch"] / kept["pass"] for _, kept in pairs],
        "BatchedMuon / forward and backward pass": [kept["batched"] / kept["pass"] for _, kept in pairs],
    }
    for name, found in ratios.items():
        click.echo(f"{name}: {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f}), {runs} runs")


if __name__ == "__main__":
    main()
