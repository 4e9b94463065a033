"""The command line in real processes that need not import torch first.

Run as a program this imports what a run needs, and then forks for every request on stdin: the child becomes the leader of a process
group, takes the request's directory, environment and streams, and calls `ligo_convert.cli.main.main`. `WarmCli` is the test's side of it.
"""

from __future__ import annotations

import gc
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# How long a command line may run before it counts as hanging.
LONGEST_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended: its exit status, negative for a signal, and what it printed."""

    code: int
    out: str
    err: str
    seconds: float


class Running:
    """A started process. `send` signals it, `wait` waits for its end."""

    def __init__(self, server: WarmCli, pid: int, streams: tuple[Path, Path]) -> None:
        self.server, self.pid, self.streams = server, pid, streams

    @property
    def err(self) -> str:
        return self.streams[1].read_text()

    def send(self, number: int) -> None:
        os.killpg(self.pid, number)

    def wait(self, *, within: float) -> Ended:
        """Wait for the end, at most `within` seconds; then its group is killed, and the code is that of the kill."""
        began = time.monotonic()
        code = self.server.ask({"wait": self.pid, "within": within})["code"]
        out, err = (path.read_text() for path in self.streams)
        return Ended(code=code, out=out, err=err, seconds=time.monotonic() - began)


class WarmCli:
    """Starts command lines by forking from one warm process."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.count = scratch, 0
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(str(Path(__file__).parents[up]) for up in (1, 2)),
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.ask({}) == {"ready": True}

    def ask(self, request: Mapping[str, object]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert isinstance(answer, dict)
        return answer

    def start(
        self,
        *arguments: str,
        cwd: Path,
        kill_at: int | None = None,
        count_to: Path | None = None,
        limit: tuple[int, int] | None = None,
        user: int | None = None,
        save_often: bool = False,
    ) -> Running:
        """Start `ligo-convert ARGUMENTS`.

        Args:
            kill_at: its group dies by SIGKILL at that effect on the file system, counted from 0.
            count_to: a file for the number of effects.
            limit: a resource and the most that the process may have of it.
            user: the account to become.
            save_often: a training state is saved after every step.
        """
        self.count += 1
        streams = (self.scratch / f"{self.count}.out", self.scratch / f"{self.count}.err")
        for path in streams:
            path.touch()
        answer = self.ask(
            {
                "arguments": arguments,
                "cwd": str(cwd),
                "kill_at": kill_at,
                "count_to": None if count_to is None else str(count_to),
                "limit": limit,
                "user": user,
                "save_often": save_often,
                "streams": [str(path) for path in streams],
            }
        )
        return Running(self, answer["pid"], streams)

    def run(self, *arguments: str, cwd: Path, **options: Any) -> Ended:
        return self.start(*arguments, cwd=cwd, **options).wait(within=LONGEST_SECONDS)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


def _watch(kill_at: int | None, count_to: str | None) -> None:
    """The effect numbered `kill_at` is the last thing this process group does: half of it, where it is a write."""
    from ligo_convert.io import files as fs

    count = 0

    def watched(name: str, function: Any) -> Any:
        def call(path: Path, *arguments: Any) -> Any:
            nonlocal count
            if count == kill_at:
                if name == "write":
                    descriptor, data = arguments
                    function(path, descriptor, data[: len(data) // 2])
                os.killpg(0, signal.SIGKILL)
            count += 1
            result = function(path, *arguments)
            if count_to is not None:
                Path(count_to).write_text(str(count))
            return result

        return call

    fs.EFFECTS.update({name: watched(name, function) for name, function in fs.EFFECTS.items()})


def _become(request: Mapping[str, Any]) -> None:
    os.setpgid(0, 0)
    for number, name in enumerate(request["streams"], start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"])
    if request["limit"] is not None:
        kind, most = request["limit"]
        resource.setrlimit(kind, (most, most))
    if request["user"] is not None:
        os.setgroups([])
        os.setgid(request["user"])
        os.setuid(request["user"])
    if request["save_often"]:
        from ligo_convert.training import loop as training

        training.SAVE_EVERY_SECONDS = 0.0
    if request["kill_at"] is not None or request["count_to"] is not None:
        _watch(request["kill_at"], request["count_to"])
    sys.argv = ["ligo-convert", *request["arguments"]]
    from ligo_convert.cli.main import main

    main()


def _ended(pid: int, within: float) -> int:
    """The exit status of a child; past the limit its group is killed, so that a test fails instead of waiting for ever."""
    deadline = time.monotonic() + within
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            deadline = math.inf
        time.sleep(0.005)


def serve() -> None:
    # Everything below imports without computing anything, so that no thread is lost in a fork.
    import matplotlib.backends.backend_agg
    import matplotlib.figure
    import numpy
    import torch  # noqa: F401
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, LlamaForCausalLM  # noqa: F401

    import ligo_convert.conversion.apply
    import ligo_convert.conversion.convert
    import ligo_convert.outputs.verify  # noqa: F401

    assert matplotlib.figure
    assert numpy
    assert transformers
    gc.freeze()  # what is shared with the children stays shared
    for line in sys.stdin:
        request = json.loads(line)
        if not request:
            answer: dict[str, object] = {"ready": True}
        elif "wait" in request:
            answer = {"code": _ended(request["wait"], request["within"])}
        else:
            child = os.fork()
            if child == 0:
                try:
                    _become(request)
                except SystemExit as ended:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(ended.code if isinstance(ended.code, int) else 0)
                finally:
                    os._exit(99)
            answer = {"pid": child}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
