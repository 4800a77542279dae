"""Limits that several packages share. Limits of a single module are in that module."""

from __future__ import annotations

from numbers import Integral

from glioma_dist.errors import InputError, shown

MAX_PIXELS = 2**29
"""Of an image, and of a size that can be asked for: 23,170 x 23,170, a hundred times the article's largest image."""
MAX_BATCH_SIZE = 2**20
"""Images of a step. Bytes of much more are no 64-bit number."""
MAX_WORKERS = 2**10
"""Processes that read data, of one training process: more than any machine's cores."""
MAX_TIMEOUT_S = 10**6
"""Seconds that processes wait for one another. The system's own waits end at 2^31 milliseconds."""

NUM_SEEDS = 2**63
"""Seeds are whole numbers from 0 to one less: what PyTorch and a config as JSON can hold."""

IGNORE = 255
"""In masks: pixels that nobody labelled."""
MAX_DISTANCE = 254
"""In the second target distance: the value of a cell's deepest pixels."""
MAX_CLASSES, MAX_CLASS_CHARACTERS = 254, 60
"""Classes of a mask, without its background, and the length of their names."""
MAX_INSTANCES = 2**16 - 1
"""Cells of one image that have numbers."""


def check_batch_size(value: int) -> None:
    """Raises InputError where a step cannot have so many images."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"--batch-size {shown(value)}: give a whole number")
    if not 1 <= value <= MAX_BATCH_SIZE:
        raise InputError(f"--batch-size {value}: give {'1 or more' if value < 1 else f'at most {MAX_BATCH_SIZE}'}")


def check_workers(flag: str, value: int) -> None:
    """Raises InputError where there cannot be so many processes that read data."""
    if not 0 <= value <= MAX_WORKERS:
        raise InputError(f"{flag} {value}: give {'0 or more' if value < 0 else f'at most {MAX_WORKERS}'}")


def check_timeout(flag: str, value: float) -> None:
    """Raises InputError where nothing can wait for so many seconds."""
    if not 1 <= value <= MAX_TIMEOUT_S:
        raise InputError(f"{flag} {value}: give {f'at most {MAX_TIMEOUT_S}' if value > 1 else '1 second or more'}")


TABLE_DELIMITERS = ",;\t"
"""Between the columns of a CSV file, also of one that Excel has saved."""


def check_seed(where: str, value: object, count: int = 1) -> None:
    """Raises InputError where `value` is no seed. where: the flag or name that gave it. count: of the seeds that are
    taken, from `value` on."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or not 0 <= int(value) <= NUM_SEEDS - count:
        raise InputError(f"{where} {shown(value)}: give a whole number from 0 to 2^63 - {count}")
