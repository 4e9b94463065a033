"""Fault injection at `fs.EFFECTS`, through which every effect on the file system passes.

`inject` lets the N-th effect of a block fail, once or from then on, or end the process there with SIGKILL, after half of
a write has been done. `record` notes the effects. `in_child` runs a function in a forked process.
"""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ligo_convert.io import files as fs

Act = Callable[[str, Callable[..., Any], Path, tuple[Any, ...]], Any]


@contextmanager
def around(act: Act) -> Iterator[None]:
    """Let `act(effect, function, path, arguments)` do every effect of the block."""

    def wrap(effect: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda path, *arguments: act(effect, function, path, arguments)

    before = dict(fs.EFFECTS)
    fs.EFFECTS.update({effect: wrap(effect, function) for effect, function in before.items()})
    try:
        yield
    finally:
        fs.EFFECTS.update(before)


@contextmanager
def record(log: list[tuple[str, Path, tuple[Any, ...]]]) -> Iterator[None]:
    """Append (effect, path, arguments) of each effect of the block to `log`, the moment it has been done."""

    def act(effect: str, function: Callable[..., Any], path: Path, arguments: tuple[Any, ...]) -> Any:
        result = function(path, *arguments)
        log.append((effect, path, arguments))
        return result

    with around(act):
        yield


@contextmanager
def inject(at: int, *, number: int | None, sticky: bool = False, done: bool = False) -> Iterator[list[int]]:
    """Let the effect numbered `at`, from 0, fail with errno `number`; None kills the process there.

    Args:
        sticky: all effects after it fail as well.
        done: the effect takes place and is only reported as failed, as network file systems do.

    Yields the counter, as a list of one: how many effects were asked for.
    """
    count = [0]

    def act(effect: str, function: Callable[..., Any], path: Path, arguments: tuple[Any, ...]) -> Any:
        here = count[0]
        count[0] += 1
        if here == at or (sticky and here > at):
            if number is None:
                if effect == "write":
                    descriptor, data = arguments
                    function(path, descriptor, data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            if done:
                with suppress(OSError):
                    function(path, *arguments)
            raise OSError(number, os.strerror(number or 0), str(path))
        return function(path, *arguments)

    with around(act):
        yield count


def start(function: Callable[[], None]) -> int:
    """Run `function` in a forked process; returns its number, for `wait`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on: forking beside threads; ours do no work
        child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except Exception:  # noqa: BLE001 -- the parent sees the status; nothing else may leave a forked test
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def wait(child: int) -> int:
    """The exit status of a process of `start`, negative for a signal; 1 for an exception."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_child(function: Callable[[], None]) -> int:
    """Run `function` in a forked process and return its exit status."""
    return wait(start(function))
