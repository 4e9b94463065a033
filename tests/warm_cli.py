"""The command line in real processes that need not import torch first.

Run as a program this imports what a run needs, and then forks for every request on stdin: the child becomes the leader of a process
group, takes the request's directory, environment and streams, and calls `ligo_convert.cli.main`. `WarmCli` is the test's side of it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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

    def wait(self) -> Ended:
        began = time.monotonic()
        code = self.server.ask({"wait": self.pid})["code"]
        out, err = (path.read_text() for path in self.streams)
        return Ended(code=code, out=out, err=err, seconds=time.monotonic() - began)


class WarmCli:
    """Starts command lines by forking from one warm process."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.count = scratch, 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
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
        self, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, kill_at: int | None = None
    ) -> Running:
        """Start `ligo-convert ARGUMENTS`; with `kill_at` its group dies by SIGKILL at that effect on the file system."""
        self.count += 1
        streams = (self.scratch / f"{self.count}.out", self.scratch / f"{self.count}.err")
        answer = self.ask(
            {
                "arguments": arguments,
                "cwd": str(cwd),
                "env": dict(env or {}),
                "kill_at": kill_at,
                "streams": [str(path) for path in streams],
            }
        )
        return Running(self, answer["pid"], streams)

    def run(self, *arguments: str, cwd: Path, **options: Any) -> Ended:
        return self.start(*arguments, cwd=cwd, **options).wait()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


def _kill_at(effect: int) -> None:
    """The effect numbered `effect` is the last thing this process group does: half of it, where it is a write."""
    from ligo_convert import fs

    count = 0

    def counted(name: str, function: Any) -> Any:
        def call(path: Path, *arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count > effect:
                if name == "write":
                    descriptor, data = arguments
                    function(path, descriptor, data[: len(data) // 2])
                os.killpg(0, signal.SIGKILL)
            return function(path, *arguments)

        return call

    fs.EFFECTS.update({name: counted(name, function) for name, function in fs.EFFECTS.items()})


def _become(request: Mapping[str, Any]) -> None:
    os.setpgid(0, 0)
    for number, name in enumerate(request["streams"], start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    if request["kill_at"] is not None:
        _kill_at(request["kill_at"])
    sys.argv = ["ligo-convert", *request["arguments"]]
    from ligo_convert.cli import main

    main()


def serve() -> None:
    # Everything below imports without computing anything, so that no thread is lost in a fork.
    import numpy
    import torch  # noqa: F401
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, LlamaForCausalLM  # noqa: F401

    import ligo_convert.convert
    import ligo_convert.fit
    import ligo_convert.pretrain
    import ligo_convert.verify  # noqa: F401

    assert numpy.__version__
    assert transformers.__version__
    for line in sys.stdin:
        request = json.loads(line)
        if not request:
            answer: dict[str, object] = {"ready": True}
        elif "wait" in request:
            answer = {"code": os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])}
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
