"""Whether an LZW stream of a TIFF can be decoded: a code that its table does not hold yet sends decoders into memory
that is not theirs, where they crash or find any pixels at all."""

from __future__ import annotations

from functools import cache

import numpy as np

CLEAR, END, FIRST_FREE, TABLE_SIZE = 256, 257, 258, 4096
SPAN = TABLE_SIZE - FIRST_FREE + 1
"""Codes after a clear until the table is full; each but the first adds one entry."""


@cache
def _schedule() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each code after a clear, int32: where it begins in bits, how far from the end of 24 bits it lies where it
    begins with these, its mask, and the highest value that it may have.

    The width grows one entry early (TIFF 6.0, section 13). A code may name the entry that it is about to complete.
    """
    highest = np.minimum(FIRST_FREE - 1 + np.arange(SPAN), TABLE_SIZE - 1)
    widths = 9 + (highest > 510).astype(np.int64) + (highest > 1022) + (highest > 2046)
    starts = np.concatenate([[0], np.cumsum(widths)])
    highest[0] = END
    return tuple(values.astype(np.int32) for values in (starts, 24 - widths, (1 << widths) - 1, highest))


def is_valid_lzw(data: bytes) -> bool:
    """Whether every code of a stream stands in the table where it is used. Streams of the kind before TIFF 6.0, whose
    bits run the other way, are not looked at."""
    if len(data) < 2 or (data[0] == 0 and data[1] & 1):
        return True
    data += bytes(4)  # so that the last code has 24 bits, too
    num_bits, position = 8 * (len(data) - 4), 0
    starts, ends, masks, highest = _schedule()
    while True:
        # The codes up to the next clear, or as many as are left.
        count = int(np.searchsorted(starts, num_bits - position, side="right")) - 1
        if count <= 0:
            return True  # some writers leave out the end
        first = starts[:count] + (position & 7)
        part = np.frombuffer(data, np.uint8, (int(first[-1]) >> 3) + 3, position >> 3).astype(np.int32)
        windows = part[:-2] << 16 | part[1:-1] << 8 | part[2:]
        codes = windows.take(first >> 3) >> (ends[:count] - (first & 7)) & masks[:count]
        special = np.flatnonzero((codes | 1) == END)
        num_used = int(special[0]) if special.size else count
        if (codes[:num_used] > highest[:num_used]).any():
            return False
        # Without a clear a table that is full stays as it is, and any code of 12 bits stands in it.
        if not special.size or codes[num_used] == END:
            return True
        position += int(starts[num_used + 1])
