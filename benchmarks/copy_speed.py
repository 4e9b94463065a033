"""Measure the overhead of a conversion that only copies tensors: wall and CPU time relative to a plain byte copy of the same target.

    python scripts/make_source.py gpt2 /tmp/gpt2-base
    python benchmarks/copy_speed.py /tmp/gpt2-base --runs 5

The conversion stacks L layers to 2 L layers, so every target tensor is a source tensor. The plain copy reads the same bytes of the
source and writes the same bytes of the target, without digests or checks and with one fsync. The two kinds of run alternate, so that
other load on the machine affects both alike. The output is the median, smallest and largest ratio of the pairs. Absolute times are not
meaningful.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from ligo_convert.families.inventory import claim_tensors
from ligo_convert.families.registry import find_family

PLAIN = """
import json, os, sys
plan, out = json.load(open(sys.argv[1])), sys.argv[2]
inputs = {}
with open(out, "wb") as target:
    for path, start, length in plan:
        source = inputs.setdefault(path, os.open(path, os.O_RDONLY))
        while length:
            data = os.pread(source, min(length, 8 << 20), start)
            target.write(data)
            start, length = start + len(data), length - len(data)
    target.flush()
    os.fsync(target.fileno())
"""


def timed(command: list[str]) -> tuple[float, float, int]:
    """Run a command and return its wall seconds, CPU seconds and peak memory in bytes."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, after.ru_maxrss * 1024


def byte_plan(source: Path) -> tuple[list[tuple[str, int, int]], str, int]:
    """Return (file, start, length) of every target tensor in order, the config key of the depth, and the target's depth."""
    from ligo_convert.hub.resolve import open_source

    with open_source(str(source.absolute()), base=source, weights=False) as opened:
        family = find_family(opened.config, where=str(source))
        inventory = claim_tensors(
            family, opened.config, {n: t.spec for n, t in opened.tensors.items()}, label=source.name
        )
        (axis,) = family.depth_axes
        key, old = family.axes[axis], family.sizes(opened.config)[axis]
        pieces = []
        for row in inventory.rows:
            for layer in (None,) if row.depth is None else range(2 * old):
                tensor = opened.tensors[inventory.stored[row.name(None if layer is None else layer % old)].name]
                pieces.append((str(source / tensor.file.name), tensor.start, tensor.end - tensor.start))
    return pieces, key, 2 * old


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--runs", default=5, show_default=True)
def main(source: Path, runs: int) -> None:
    """Compare against SOURCE, a directory with a supported checkpoint."""
    pieces, key, layers = byte_plan(source.absolute())
    with tempfile.TemporaryDirectory(dir=source.absolute().parent) as folder:
        work = Path(folder)
        (work / "plan.json").write_text(json.dumps(pieces))
        (work / "plain.py").write_text(PLAIN)
        recipe = {
            "version": 1,
            "source": {"model": str(source.absolute())},
            "target": {"config": {key: layers}},
            "growth": {"width": "copy", "depth": "stack"},
            "output": {"dir": str(work / "out")},
        }
        (work / "recipe.yaml").write_text(json.dumps(recipe))
        plain = [sys.executable, str(work / "plain.py"), str(work / "plan.json"), str(work / "plain.bin")]
        ours = [sys.executable, "-m", "ligo_convert", "run", str(work / "recipe.yaml")]
        pairs = []
        for number in range(runs + 1):
            reference = timed(plain)
            result = timed(ours)
            if number:  # the first pair only warms the page cache
                pairs.append((reference, result))
            (work / "plain.bin").unlink()
            shutil.rmtree(work / "out")
    click.echo(f"{source.name}: {sum(length for _, _, length in pieces) / 1e9:.2f} GB written, {runs} pairs")
    for name, at in (("wall", 0), ("cpu", 1)):
        ratios = [ours_[at] / plain_[at] for plain_, ours_ in pairs]
        click.echo(f"{name} / plain copy: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    click.echo(f"peak memory: {max(ours_[2] for _, ours_ in pairs) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
