"""What the loader of a training delivered, written down by the process itself: the program is not changed.

`python chaos_recording.py RECORDS START FLAG…` trains as train.py with these flags, for launchers; `train` is the same,
`train_in_fork` for a forked process. Each batch that the training loop takes is a line in RECORDS/<start>.<rank>.jsonl.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Delivered:
    """This process's part of a batch. step: from 1. at: when, by the clock. samples: key of each sample, and a checksum
    of its pixels."""

    start: int
    step: int
    rank: int
    processes: int
    at: float
    samples: tuple[tuple[str, int], ...]


def train(records: str, start: int, stop_after: int, *flags: str) -> None:
    """Train as train.py does, with records. stop_after: SIGTERM to this process before the batch after it; 0: never."""
    record_batches(Path(records), start, stop_after)
    sys.argv = ["train.py", *flags]
    runpy.run_path(str(REPOSITORY / "train.py"), run_name="__main__")


def train_in_fork(records: str, start: int, stop_after: int, *flags: str) -> None:
    """The same for a forked process, which ends without taking down what it has inherited: half of its CPU time."""
    gc.freeze()  # a collection would write to, and so copy, all that was imported
    code: object = 1
    try:
        train(records, start, stop_after, *flags)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def record_batches(records: Path, start: int, stop_after: int = 0) -> None:
    """Have the training of this process write down each batch when the loop takes it."""
    from glioma_dist.training import trainer

    original = trainer.training_batches
    path = records / f"{start}.{os.environ.get('RANK', '0')}.jsonl"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def recorded(
        reader: Any, sampler: Any, config: Any, first_step: int = 0, rank: int = 0, num_processes: int = 1, *rest, **how
    ) -> Iterator:
        batches = original(reader, sampler, config, first_step, rank, num_processes, *rest, **how)
        with contextlib.closing(batches):
            for step, batch in enumerate(batches, first_step + 1):
                if stop_after and step > stop_after and rank == 0:
                    os.kill(os.getpid(), signal.SIGTERM)
                pixels = zip(batch.images.numpy(), batch.masks.numpy(), strict=True)
                sums = [zlib.crc32(mask.tobytes(), zlib.crc32(image.tobytes())) for image, mask in pixels]
                samples = list(zip(batch.keys, sums, strict=True))
                os.write(file, f"{json.dumps([start, step, rank, num_processes, time.time(), samples])}\n".encode())
                yield batch

    trainer.training_batches = recorded


def read_records(records: Path) -> list[Delivered]:
    """All that was delivered, in the order of starts, then of ranks. A torn last line of a killed process is left
    out."""
    found = []
    for path in sorted(records.glob("*.jsonl"), key=lambda path: tuple(map(int, path.stem.split(".")))):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                *numbers, samples = json.loads(line)
                found.append(Delivered(*numbers, tuple((key, total) for key, total in samples)))
    return found


def count_batches(records: Path, start: int) -> int:
    """How many batches the first process of a start was given so far."""
    path = records / f"{start}.0.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]), 0, *sys.argv[3:])
