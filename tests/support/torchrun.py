"""Several processes as torchrun starts them. Every wait has a bound, and nothing is left running."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

# Each process imports torch and transformers, and others may compute on the machine.
LONGEST_SECONDS = 300.0


@contextlib.contextmanager
def paused(process: int) -> Iterator[None]:
    """Hold one process, which then takes no part in what happens."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


class Torchrun:
    """A command line in several processes. As a context manager it kills at its end what still runs.

    Args:
        arguments: of `ligo-convert`, or of `program`.
        count: number of processes.
        folder: where it runs; its output goes to files there.
        program: what torchrun starts.
    """

    def __init__(
        self, *arguments: str, count: int, folder: Path, program: Sequence[str] = ("-m", "ligo_convert")
    ) -> None:
        self.streams = (folder / "torchrun.out", folder / "torchrun.err")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        with self.streams[0].open("w") as out, self.streams[1].open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, *program, *arguments],
                env=environment,
                cwd=folder,
                stdout=out,
                stderr=err,
            )

    def __enter__(self) -> Torchrun:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.kill()

    def ranks(self) -> dict[int, int]:
        """Rank -> process of those that torchrun has started and that run."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        found = {}
        for child in children:
            with contextlib.suppress(OSError):
                for entry in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                    if entry.startswith(b"RANK="):
                        found[int(entry[5:])] = int(child)
        return found

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait until something is true, while the command runs."""
        end = time.monotonic() + LONGEST_SECONDS
        while not reached():
            assert self.process.poll() is None, self.err()
            assert time.monotonic() < end, "it does not get there"
            time.sleep(0.02)

    def err(self) -> str:
        """What all processes have written to stderr so far."""
        return self.streams[1].read_text()

    def kill(self) -> None:
        """Kill torchrun and all its processes at once."""
        own = self.ranks().values()
        for process in (self.process.pid, *own):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait(timeout=30)
        end = time.monotonic() + 30
        while any(Path(f"/proc/{process}").exists() for process in own):
            assert time.monotonic() < end, "a killed process does not end"
            time.sleep(0.02)

    def wait(self, *, within: float) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr. Raises `subprocess.TimeoutExpired` after `within` seconds; the context's exit then kills."""
        code = self.process.wait(timeout=within)
        return (code, *(stream.read_text() for stream in self.streams))
