"""Run the comparisons for docs/results/results.md one after another within a time limit; the same command resumes them.

    python scripts/run_results.py out/results --images DIR --minutes 50
    python scripts/run_results.py out/results --only gpt2,gpt2-seeds

`ligo-convert compare recipes/compare_gpt2.yaml --costs` says what a kind costs.

Input: a folder for the comparisons, and CIFAR-10's training images with one folder per class (without them the vision kind is skipped).
Output: one finished comparison per kind, from which `scripts/make_results.py` makes the page.

When the time is up, the running comparison is asked to stop. It keeps its progress.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import click

RECIPES = Path(__file__).parent.parent / "recipes"
STOPPED = 128 + signal.SIGTERM

# All methods of interest run with one seed; scratch, the smaller models, the best methods and LiGO with three, from the strongest source.
METHODS = {
    "gpt2": "late,midas,lemon,ligo,direct,lemon/interpolate,lemon/interpolate+fit",
    "bert": "late,interpolate,ligo,direct,bert2bert-aki",
    "cait": "late,lemon,ligo,interpolate",
}
# From the strongest source, and at fewer budgets.
STRONGEST = (
    *("--set", "compare.source_strengths=[16]"),
    *("--set", "compare.budget_fractions=[0.2, 1]"),
    *("--set", "compare.scratch_fractions=[0.3, 0.6, 1]"),
)
FEW = {"gpt2": "late,lemon,ligo", "bert": "late,ligo,bert2bert-aki", "cait": "late,lemon,ligo"}
# Kind -> arguments of `ligo-convert compare`, and the kind whose finished jobs it goes on from.
COMMANDS: dict[str, tuple[tuple[str, ...], str | None]] = {
    **{kind: ((f"compare_{kind}.yaml", "--methods", names), None) for kind, names in METHODS.items()},
    **{
        f"{kind}-seeds": ((f"compare_{kind}.yaml", "--methods", names, "--seeds", "0,1,2", *STRONGEST), kind)
        for kind, names in FEW.items()
    },
}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--images", help="Folder of images for the vision kind.")
@click.option("--minutes", type=float, help="Stop when they are over.")
@click.option("--only", help="Kinds, commas between; default: all.")
def main(folder: Path, images: str | None, minutes: float | None, only: str | None) -> None:
    """Run the comparisons that are not finished."""
    end = time.monotonic() + 60 * minutes if minutes is not None else None
    kinds = only.split(",") if only else list(COMMANDS)
    unknown = [kind for kind in kinds if kind not in COMMANDS]
    if unknown:
        raise click.BadParameter(f"no kind {unknown[0]!r}; there are {', '.join(COMMANDS)}", param_hint="--only")
    for kind in kinds:
        (recipe, *options), earlier = COMMANDS[kind]
        if earlier is not None and (folder / earlier).is_dir():
            options += ["--reuse", str(folder / earlier)]
        if kind.startswith("cait"):
            if images is None:
                click.echo(f"{kind}: left out, there is no --images DIR", err=True)
                continue
            options += ["--set", f"fit.data.images={Path(images).absolute()}"]
        click.echo(f"{kind}: begins", err=True)
        code = _run([str(RECIPES / recipe), *options, "--out", str(folder / kind)], end)
        if code == STOPPED:
            click.echo(f"{kind}: time is up; the same command goes on", err=True)
            return
        if code:
            sys.exit(code)


def _run(arguments: list[str], end: float | None) -> int:
    """Run one comparison and return its exit code, or STOPPED if no time is left."""
    left = None if end is None else end - time.monotonic()
    if left is not None and left <= 0:
        return STOPPED
    with subprocess.Popen([sys.executable, "-m", "ligo_convert", "compare", *arguments]) as process:
        try:
            return process.wait(left)
        except subprocess.TimeoutExpired:
            process.terminate()
            return process.wait()


if __name__ == "__main__":
    main()
