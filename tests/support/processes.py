"""Child processes of tests: stopped by SIGINT wherever the tests run, and never waited for without a bound."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

# Runs first in a child that is stopped by SIGINT: under cron, nohup or a shell's `&` the tests, and so the child, inherit SIGINT as
# ignored.
HANDLE_SIGINT = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"


def finish(process: subprocess.Popen[str], *, seconds: float = 120.0) -> tuple[str, str]:
    """Wait for a process that leads its session, and return its stdout and stderr. Kill the session if it takes too long."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        kill_session(process)
        out, err = process.communicate(timeout=30)
        raise AssertionError(f"still running after {seconds:g} s\n{out}\n{err}") from None


def kill_session(process: subprocess.Popen[str]) -> None:
    """Kill a process that leads its session, and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
