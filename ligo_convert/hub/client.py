"""TODO: one sentence."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

from ligo_convert.errors import HubUnreachable, MachineError

# Seconds before each further try of a request that failed for the moment: a try in all more than there are.
DELAYS = (1.0, 2.0, 4.0, 8.0)

# What it is called where nothing answers at all: a machine without a network says so every time, and need not be asked so often.
UNCONNECTED, UNCONNECTED_TRIES = ("ConnectError", "ConnectTimeout"), 3

T = TypeVar("T")


def with_retries(call: Callable[[], T], *, told: Callable[[HubUnreachable], None] | None = None) -> T:
    """`call`, and again, some times, where the Hub is busy or out of reach for the moment.

    Args:
        told: called before each further try.
    """
    for delay in (*DELAYS, None):
        try:
            return call()
        except HubUnreachable as error:
            if delay is None or not error.passing:
                raise
            if told is not None:
                told(error)
            time.sleep(delay)
    raise AssertionError("the last try returns or raises")


def check_endpoint() -> None:
    """Raise MachineError where the client would send its token over a plain connection."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        # The client sends the token to whatever this names.
        raise MachineError("the endpoint of the Hub is not https", where="HF_ENDPOINT", hint="use an https address")
