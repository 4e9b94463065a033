"""Break every guard of `docs/promises.md` in a copy of the repository, and require its tests to fail.

A guard whose tests still pass is not proved. The tests of a guard must also pass while the guard is whole: they run once on an unchanged
copy first.

    python scripts/mutate_guards.py                      # all guards
    python scripts/mutate_guards.py --only P2 P18        # the guards of two promises
    python scripts/mutate_guards.py --jobs 2 --json result.json

Exit code 0 if every guard is proved, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.promises import PROMISES, Guard  # noqa: E402  needs the path above

# A broken guard may let a test wait for something that never comes.
LONGEST_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class Result:
    """What happened to the tests of one guard.

    Attributes:
        promise: number of the promise.
        keeps: what the guard keeps.
        file: file of the guard, below `ligo_convert`.
        outcome: "proved" (its tests fail without it), "not proved" (they pass), or why nothing was learnt.
        seconds: wall time of the tests.
        last: last line that pytest printed.
    """

    promise: str
    keeps: str
    file: str
    outcome: str
    seconds: float
    last: str


def main() -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", nargs="+", metavar="PROMISE", help="numbers of promises, such as P2")
    parser.add_argument("--jobs", type=int, default=1, help="copies to test at the same time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    asked = parser.parse_args()
    chosen = [
        (promise.number, guard)
        for promise in PROMISES
        if asked.only is None or promise.number in asked.only
        for guard in promise.guards
    ]
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="ligo-guards-") as folder, ThreadPoolExecutor(asked.jobs) as pool:
        plain = run_tests(Path(folder) / "plain", None, sorted({test for _, guard in chosen for test in guard.tests}))
        if plain.returncode:
            sys.stdout.write(plain.stdout + "the tests of the guards must pass before a guard is broken\n")
            return 1
        for result in pool.map(lambda item: try_guard(Path(folder), *item), chosen):
            results.append(result)
            sys.stdout.write(f"{result.outcome:10} {result.seconds:6.1f} s  {result.promise:4} {result.keeps}\n")
            sys.stdout.flush()
    proved = sum(result.outcome == "proved" for result in results)
    sys.stdout.write(f"{proved} of {len(results)} guards proved\n")
    if asked.json is not None:
        asked.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n", encoding="utf-8")
    return 0 if proved == len(results) else 1


def try_guard(folder: Path, promise: str, guard: Guard) -> Result:
    """Break one guard in a copy of the repository and run its tests."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as copy:
        done = run_tests(Path(copy) / "repository", guard, list(guard.tests))
    # pytest: 0 all passed, 1 a test failed, 2 and more: it could not run them, as when the broken file is not Python.
    outcome = {0: "not proved", 1: "proved"}.get(done.returncode, f"pytest exited with {done.returncode}")
    lines = done.stdout.strip().splitlines() or [""]
    return Result(
        promise=promise,
        keeps=guard.keeps,
        file=guard.file,
        outcome=outcome,
        seconds=time.monotonic() - started,
        last=lines[-1][:200],
    )


def run_tests(copy: Path, guard: Guard | None, tests: list[str]) -> subprocess.CompletedProcess[str]:
    """Copy the repository, break `guard` in the copy, and run `tests` there."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "slow or not slow"]
    command += [f"--basetemp={copy}-temporary", *tests]
    with repository(copy, guard):
        try:
            return subprocess.run(
                command,
                cwd=copy,
                env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LONGEST_SECONDS if guard is not None else None,
                check=False,
            )
        except subprocess.TimeoutExpired:
            # A test that waits for ever is red: the suite's own limit ends it.
            return subprocess.CompletedProcess(command, 1, stdout="timed out", stderr=None)


@contextmanager
def repository(copy: Path, guard: Guard | None) -> Iterator[None]:
    """Copy the files under version control to `copy`, with `guard` broken, for the duration of the block."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    if guard is not None:
        path = copy / "ligo_convert" / guard.file
        path.write_text(break_guard(path.read_text(encoding="utf-8"), guard), encoding="utf-8")
    try:
        yield
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def break_guard(source: str, guard: Guard) -> str:
    """Return the source with the guard broken. Raises ValueError unless its text stands there exactly once."""
    count = source.count(guard.text)
    if count != 1:
        raise ValueError(f"{guard.file}: the text of the guard stands there {count} times: {guard.text.strip()[:80]}")
    return source.replace(guard.text, guard.broken)


if __name__ == "__main__":
    sys.exit(main())
