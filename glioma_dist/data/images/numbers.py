"""Values of any kind, as microscopes and programs store them, as the uint8 or uint16 that networks are shown."""

from __future__ import annotations

import numpy as np

from glioma_dist.errors import InputError

MOST = 65_535
CLIPPED = 1e-4
"""Share of the values that are clipped at each end where they are scaled: a single hot pixel must not make all others
one grey."""
ROWS = 512
"""Scaled at a time, so that a large image is not held once more in fp64."""
SPARE_TIMES = 3
"""How many times the memory of its pixels an image takes that is no uint8 or uint16."""


def to_16_bit(values: np.ndarray, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Values (H, W) or (H, W, C) of any real kind as uint8 or uint16, and notes on how they were brought to it.

    uint8 and uint16 stay as they are. Other whole numbers stay where they fit 16 bits, and are shifted where their
    range does. Floats from 0 to 1 are multiplied by 65535; all others are scaled from their lowest to their highest
    value, but for 0.01 % at each end. Raises InputError where there is no finite value.
    """
    kind = values.dtype.name
    if values.dtype in (np.uint8, np.uint16):
        return values, ()
    if values.dtype.kind in "ui":
        low, high = int(values.min()), int(values.max())
        if low >= 0 and high <= MOST:
            return values.astype(np.uint16), ()
        if high - low <= MOST:
            # Not int64 for all: uint64 holds more.
            wide = values if values.dtype.kind == "u" else values.astype(np.int64)
            shifted = (wide - wide.dtype.type(low)).astype(np.uint16)
            return shifted, (f"{kind} values from {low} to {high}, shifted to begin at 0",)
        return _scaled(values, kind, low, high)
    finite = np.isfinite(values)
    if not finite.any():
        raise InputError(f"{where}: none of its {kind} values is a finite number; save it again from the microscope")
    num_other = int(finite.size - finite.sum())
    notes = (f"{num_other} values are no numbers (NaN or infinite), and read as the lowest",) if num_other else ()
    known = values[finite]
    low, high = float(known.min()), float(known.max())
    values = np.where(finite, values, low) if num_other else values
    if low >= 0 and high <= 1:
        scaled = (values * np.float32(MOST)).round().astype(np.uint16)
        return scaled, (*notes, f"{kind} values from {low:.3g} to {high:.3g}, multiplied by {MOST}")
    low, high = (float(value) for value in np.quantile(known, (CLIPPED, 1 - CLIPPED), method="nearest"))
    pixels, more = _scaled(values, kind, low, high)
    return pixels, (*notes, *more)


def _scaled(values: np.ndarray, kind: str, low: float, high: float) -> tuple[np.ndarray, tuple[str, ...]]:
    pixels = np.empty(values.shape, np.uint16)
    # Halves, because the range itself can overflow; of one value, and of less than fp64 can divide by, none is higher.
    half = high / 2 - low / 2
    factor = MOST / half if half > MOST * np.finfo(float).tiny else 0.0
    for start in range(0, len(values), ROWS):
        part = np.clip(values[start : start + ROWS].astype(np.float64), low, high)
        pixels[start : start + ROWS] = ((part / 2 - low / 2) * factor).round()
    return pixels, (f"{kind} values from {low:.4g} to {high:.4g}, scaled to 16 bit",)
