"""Signals that ask the process to stop: SIGINT and SIGTERM in, `Stopped` out of wherever the program is, within seconds.

Nothing needs to be finished first: what is staged is whole at every moment, and the next run goes on from it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ligo_convert.errors import Interrupted

GRACE_SECONDS = 3.0


class Stopped(BaseException):
    """A signal asked us to stop. No Exception: nothing on the way, in any library, may take it for a failure of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def answered() -> Iterator[None]:
    """While this lasts SIGINT and SIGTERM raise `Stopped` in the main thread; a second one ends the process at once.

    Python runs a handler between two of its own instructions, and one call into a library may last longer than anyone
    waits. Where nothing has come of a signal after `GRACE_SECONDS`, the process ends there.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell that started us in the background has had SIGINT ignored, and it stays so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    ended = threading.Event()
    threading.Thread(target=_end_late, args=(read, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        os.close(write)


@contextmanager
def deferred() -> Iterator[None]:
    """While this lasts a signal is only noted, and answered at the end, as it would have been: for a library that takes what a handler
    raises for a failure of its own, or that puts in a handler of its own. In the main thread; elsewhere no handler runs anyway.
    """
    noted: list[int] = []
    before: dict[int, Callable[[int, FrameType | None], object]] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                before[number] = handler
                signal.signal(number, lambda found, _: noted.append(found))
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        for one in noted:
            before[one](one, None)


def _stop(number: int, _: FrameType | None) -> None:
    # A second signal does not wait for anything.
    signal.signal(number, signal.SIG_DFL)
    raise Stopped(number)


def _end_late(read: int, ended: threading.Event) -> None:
    told = os.read(read, 1)
    os.close(read)
    if told and not ended.wait(GRACE_SECONDS):
        os.write(2, f"error: {Interrupted(told[0])}\n".encode())
        os._exit(128 + told[0])
