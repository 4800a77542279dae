"""Numbers in lines and pages that people read."""

from __future__ import annotations

from decimal import Decimal


def short(value: float, digits: int = 3) -> str:
    """Return a number with its significant digits and without a power of ten: 1230, not 1.23e+03, and 0.00004, not
    4e-05. Only from 1e15 on, and below 1e-15, it has one."""
    text = f"{value:.{digits}g}"
    return f"{Decimal(text):f}" if 1e-15 < abs(value) < 1e15 else text


def counted(number: int, one: str, several: str | None = None) -> str:
    """Return a number with its noun: `1 file`, `2 files`."""
    return f"{number} {one if number == 1 else several or one + 's'}"
