"""Call the Hub with retries, and only over connections that are safe for the token."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

from ligo_convert.errors import HubUnreachable, MachineError

# Seconds to wait before each retry; there is one attempt more than there are delays.
DELAYS = (1.0, 2.0, 4.0, 8.0)

# Names of the client's exceptions when nothing answers at all. A machine without a network always gets these, so fewer attempts suffice.
UNCONNECTED, UNCONNECTED_TRIES = ("ConnectError", "ConnectTimeout"), 3

T = TypeVar("T")


def with_retries(call: Callable[[], T], *, before_retry: Callable[[HubUnreachable], None] | None = None) -> T:
    """Return what `call` returns; retry after a delay when it raises a `HubUnreachable` that is marked as passing.

    Args:
        before_retry: called with the error before each retry; it may raise to give up early.

    Raises:
        HubUnreachable: the last attempt failed, or the error is not passing.
    """
    for delay in (*DELAYS, None):
        try:
            return call()
        except HubUnreachable as error:
            if delay is None or not error.passing:
                raise
            if before_retry is not None:
                before_retry(error)
            time.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def check_endpoint() -> None:
    """Raise MachineError if HF_ENDPOINT would make the client send its token over an unencrypted connection."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise MachineError("the endpoint of the Hub is not https", where="HF_ENDPOINT", hint="use an https address")
