"""Stop the process within seconds when it receives SIGINT or SIGTERM.

Input: a signal. Output: the exception `Stopped` in the main thread. Nothing has to be finished first: staged files are complete at every
moment, and the next run continues from them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from ligo_convert.errors import Interrupted

GRACE_SECONDS = 3.0


class Stopped(BaseException):
    """A signal asked the process to stop. Not an `Exception`, so that no library handles it as a failure of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def answered() -> Iterator[None]:
    """Raise `Stopped` in the main thread on SIGINT and SIGTERM during the block. A second signal ends the process at once.

    Python runs a signal handler between two bytecode instructions, and a call into a library may last minutes. If the block has not ended
    `GRACE_SECONDS` after a signal, the process exits.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell starts background processes with SIGINT ignored. Keep that.
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
    """Delay SIGINT and SIGTERM until the end of the block.

    For libraries that handle an exception raised by a signal handler as their own failure, or that install handlers of their own. It has an
    effect in the main thread only, because other threads run no handlers.
    """
    received: list[int] = []
    before: dict[int, Callable[[int, FrameType | None], object]] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                before[number] = handler
                signal.signal(number, lambda signal_number, _: received.append(signal_number))
    try:
        yield
    finally:
        for restored, handler in before.items():
            signal.signal(restored, handler)
        for received_number in received:
            before[received_number](received_number, None)


def _stop(number: int, _: FrameType | None) -> None:
    # A second signal ends the process without cleanup.
    signal.signal(number, signal.SIG_DFL)
    raise Stopped(number)


def _end_late(read: int, ended: threading.Event) -> None:
    received = os.read(read, 1)
    os.close(read)
    if received and not ended.wait(GRACE_SECONDS):
        with suppress(OSError):  # stderr may be closed or full
            os.write(2, f"error: {Interrupted(received[0])}\n".encode())
        os._exit(128 + received[0])
