"""Numbers in lines and pages that people read."""

from __future__ import annotations


def short(value: float, digits: int = 3) -> str:
    """Return a number with its significant digits, below a million without a power of ten: 1230, not 1.23e+03."""
    return f"{float(f'{value:.{digits}g}'):g}"


def counted(number: int, one: str, several: str | None = None) -> str:
    """Return a number with its noun: `1 file`, `2 files`."""
    return f"{number} {one if number == 1 else several or one + 's'}"
