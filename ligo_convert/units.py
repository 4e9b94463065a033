"""Format counts, sizes, shares and times. Imports nothing heavy."""

from __future__ import annotations


def amount(number: float | None) -> str:
    """Return a count with three significant digits, as models and data are counted.

    >>> amount(554_240), amount(124_439_808), amount(7e9)
    ('554k', '124M', '7B')
    """
    return "-" if number is None else _scaled(number, ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")))


def flops(number: float) -> str:
    """Return a number of floating-point operations with three significant digits and a decimal prefix.

    >>> flops(5.42e12)
    '5.42 TFLOPs'
    """
    units = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    return f"{_scaled(number, tuple((limit, ' ' + unit) for limit, unit in units), none=' ')}FLOPs"


def _scaled(number: float, units: tuple[tuple[float, str], ...], *, none: str = "") -> str:
    """Return a number with three significant digits in the largest unit that leaves at least 1 of it.

    The number is rounded before its unit is chosen: 999,999 is 1M, not 1e+03k.
    """
    number = float(f"{number:.3g}")
    for limit, unit in units:
        if abs(number) >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}{none}"


def size(nbytes: float) -> str:
    """Return a number of bytes in decimal units: 1500000 -> 1.50 MB."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= limit:
            return f"{nbytes / limit:.2f} {unit}"
    return f"{nbytes:.0f} B"


def percent(share: float) -> str:
    """Return a share as a percentage: 0.314 -> 31.4%."""
    return f"{share:.1%}"


def duration(seconds: float) -> str:
    """Return a time in its two largest units: 45 -> 45 s, 5000 -> 1 h 23 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, smaller, label in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {name} {rest} {label}" if rest else f"{whole // unit} {name}"
    return f"{whole} s"
