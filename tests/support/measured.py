"""What one call costs: seconds and peak memory of a process that is forked for it alone.

Run as a program this imports the modules named on its command line, and then forks for every request on stdin. A fork begins with little
more memory than its parent has, so the peak of the child is that of the call. `Measured` is the test's side of it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

# A call that takes longer is killed. Address space is bounded too, so that a bomb that goes off does not take the machine along.
LONGEST_SECONDS = 60.0
MOST_ADDRESSES = 16 << 30


@dataclass(frozen=True, kw_only=True)
class Cost:
    """How a call ended and what it cost.

    Attributes:
        code: the exit status; negative for a signal.
        seconds: of the processor, which other processes on the machine do not change.
        peak: the most memory that the process had resident, in bytes.
        out: stdout.
        err: stderr.
    """

    code: int
    seconds: float
    peak: int
    out: str
    err: str


class Measured:
    """Forks from one process that has imported `modules`.

    Args:
        modules: what every call needs; without a slow library the process starts at once and stays small.
    """

    def __init__(self, *modules: str) -> None:
        path = os.pathsep.join(str(Path(__file__).parents[up]) for up in (1, 2))
        self.process = subprocess.Popen(
            [sys.executable, __file__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
        )
        try:
            assert self._ask({}) == {"ready": True}
        except BaseException:  # a module that is not installed: the process has ended, and says so on stderr
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()

    def _ask(self, request: dict[str, object]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert isinstance(answer, dict)
        return answer

    def command(self, *arguments: object, cwd: Path) -> Cost:
        """Run `ligo-convert ARGUMENTS`."""
        return Cost(**self._ask({"arguments": [str(word) for word in arguments], "cwd": str(cwd)}))

    def call(self, function: Callable[..., object], *arguments: object, cwd: Path) -> Cost:
        """Call a module's function with plain data. A LigoError ends the process with its exit code."""
        name = f"{function.__module__}:{function.__qualname__}"
        return Cost(**self._ask({"function": name, "arguments": list(arguments), "cwd": str(cwd)}))


def _carry_out(request: dict[str, Any]) -> int:
    from ligo_convert.errors import LigoError

    os.chdir(request["cwd"])
    resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES))
    if "function" not in request:
        from ligo_convert.cli.main import main

        sys.argv = ["ligo-convert", *request["arguments"]]
        main()
    module, _, name = request["function"].partition(":")
    try:
        getattr(importlib.import_module(module), name)(*request["arguments"])
    except LigoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _fork(request: dict[str, Any], streams: Sequence[Any]) -> dict[str, object]:
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number, stream in enumerate(streams, start=1):
                os.dup2(stream.fileno(), number)
            code = _carry_out(request)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
        except BaseException as error:  # noqa: BLE001  the test sees it as exit status 99 with the error on stderr
            print(f"{type(error).__name__}: {str(error)[:500]}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - began > LONGEST_SECONDS:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    out, err = (_text(stream) for stream in streams)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": used.ru_utime + used.ru_stime,
        "peak": used.ru_maxrss * 1024,
        "out": out,
        "err": err,
    }


def _text(stream: Any) -> str:
    stream.seek(0)
    return str(stream.read(1 << 20).decode(errors="replace"))


def serve(modules: Sequence[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, object] = {"ready": True}
        if request:
            with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
                answer = _fork(request, (out, err))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1:])
