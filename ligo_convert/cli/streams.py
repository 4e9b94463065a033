"""Standard streams that cannot fail in the middle of work.

Input: the descriptors 0, 1 and 2 as the process got them. Output: streams whose writes never raise, and at the end what went wrong.

A full disk behind `> file`, a reader that has gone (`| head`) and a closed stream (`>&-`) are found when something is printed, often after
hours of work. What is printed before the end is progress, so the work goes on; the result that could not be printed is reported at the end.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

from ligo_convert.errors import MachineError

if TYPE_CHECKING:
    from typing_extensions import Buffer

# What a shell reports for a program that SIGPIPE has ended.
BROKEN_PIPE = 141


class _Unfailing(io.FileIO):
    """A descriptor that is written to for as long as that works.

    Attributes:
        failure: the first error; what is written after it is dropped.
    """

    def __init__(self, descriptor: int, *, was_closed: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.failure: OSError | None = None
        self._was_closed = was_closed

    def write(self, data: Buffer, /) -> int:
        if self._was_closed:
            self.failure = OSError(errno.EBADF, os.strerror(errno.EBADF))
        while self.failure is None:
            try:
                written = super().write(data)
            except OSError as error:
                self.failure = error
            else:
                if written is not None:
                    return written
                # The reader has made the pipe non-blocking, and is slower than this process.
                select.select([], [self.fileno()], [])
        return memoryview(data).nbytes


class Streams:
    """The standard streams of the command line, while it runs.

    Streams that a caller has replaced, such as those of a test, are left alone.
    """

    def __init__(self) -> None:
        closed = _fill_gaps()
        self._out = _Unfailing(1, was_closed=1 in closed) if sys.stdout is sys.__stdout__ else None
        if self._out is not None:
            sys.stdout = _text(self._out, sys.stdout)
        if sys.stderr is sys.__stderr__:
            sys.stderr = _text(_Unfailing(2, was_closed=2 in closed), sys.stderr)

    def finish(self) -> int:
        """Write what is buffered. Return 0, or `BROKEN_PIPE` if the reader of the result has gone.

        Raises:
            MachineError: the result could not be written for another reason.
        """
        sys.stdout.flush()
        failure = self._out.failure if self._out is not None else None
        if failure is None:
            return 0
        if isinstance(failure, BrokenPipeError):
            return BROKEN_PIPE
        raise MachineError(
            f"the result cannot be printed: {failure.strerror}",
            where="standard output",
            hint="the work itself is done; run the same command again to print its result",
        )


def _fill_gaps() -> set[int]:
    """Open the standard descriptors that are closed, so that no file of the work gets their number. Return those."""
    closed: set[int] = set()
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The system gives the lowest number that is free.
            opened = os.open(os.devnull, os.O_RDWR)
            assert opened == descriptor
            os.set_inheritable(opened, True)
            closed.add(descriptor)
    return closed


def _text(raw: _Unfailing, replaced: TextIO | None) -> io.TextIOWrapper:
    encoding = getattr(replaced, "encoding", None) or "utf-8"
    # A name that the encoding of a terminal lacks is no reason to fail.
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=raw.isatty() or raw.fileno() == 2,
    )
