"""Which cases of a parametrized test run with the fast tests, and which only with the slow ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def rest_slow(cases: Iterable[Any], quick: Callable[[Any], bool], *, pairs: bool = False) -> list[Any]:
    """Return cases for `pytest.mark.parametrize`; those that are not `quick` are marked as slow.

    Args:
        pairs: whether every case is a tuple of several arguments.

    Raises ValueError if no case is quick: the fast tests would leave the test out.
    """
    found = list(cases)
    if not any(map(quick, found)):
        raise ValueError("no case is quick")
    return [
        case if quick(case) else pytest.param(*(case if pairs else (case,)), marks=pytest.mark.slow) for case in found
    ]
