"""Numbers of bytes as users give them: 50GB, 500MB, 4GiB."""

from __future__ import annotations

import re

from glioma_dist.errors import InputError, one_line

PREFIXES = " kMGT"


def parse_bytes(flag: str, text: str, example: str) -> int:
    """Bytes of a text as 50GB (powers of 1000) or 4GiB (of 1024). Raises InputError, which names `flag`, where it is
    none."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([kMGT]?)(i?)B", text.strip())
    num_bytes = float(match[1]) * (1024 if match[3] else 1000) ** PREFIXES.index(match[2] or " ") if match else 0.0
    if num_bytes < 1:
        raise InputError(f"{flag} {one_line(text, 80)}: give a number with a unit, for example {example}")
    return int(num_bytes)
