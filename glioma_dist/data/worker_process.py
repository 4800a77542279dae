"""What a worker process of `WorkerPool` does."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import signal
import struct
import traceback
from multiprocessing import connection, reduction
from typing import Any

import cv2
import torch

from glioma_dist.data.shared_memory_ring import SharedMemory
from glioma_dist.distributed.freed_memory import keep_freed_memory
from glioma_dist.distributed.signals import STOP_SIGNALS, get_signal_at_parents_death
from glioma_dist.errors import RunError, as_error

AT = struct.Struct("qqq")
"""Job, shard and place of the sample that a worker prepares now."""
NOWHERE = (-1, 0, 0)


def work(
    worker: int,
    end: connection.Connection,
    others: list[connection.Connection],
    at: mmap.mmap,
    jobs: dict[int, Any],
) -> None:
    """Compute the tasks that arrive at `end` until it is closed.

    others: the parent's ends, which are closed here, because they would stay open after the parent has closed them. at:
    one `AT` for each worker. jobs: those that came with the fork.
    """
    for other in others:
        other.close()
    _set_up()
    while True:
        try:
            what, number, *rest = end.recv()
            if what == "open":
                jobs[number] = _receive_job(end, *rest)
            elif what == "close":
                jobs.pop(number, None)
            else:
                ticket, task, place = rest
                _answer(end, ticket, _make(jobs[number], number, task, place, at, worker))
        except (EOFError, ConnectionError):
            return


def _set_up() -> None:
    keep_freed_memory()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)  # one forked from a process that has used several would wait for them for ever
    # A scheduler or a terminal may signal the whole process group. The training process saves and ends its workers
    # itself; if it is killed, the system kills them.
    os.setpgid(0, 0)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    get_signal_at_parents_death(signal.SIGKILL)


def _receive_job(end: connection.Connection, num_bytes: int, sizes: list[int]) -> Any:
    carrier, *shared = (SharedMemory(size, reduction.recv_handle(end)) for size in (num_bytes, *sizes))
    return _Unpickler(carrier.map[:num_bytes], shared).load()


def _make(job: Any, number: int, task: Any, place: int | None, at: mmap.mmap, worker: int) -> Any:
    """The result of a task, or the exception that it raised."""

    def note(shard: int, sample: int) -> None:
        AT.pack_into(at, worker * AT.size, number, shard, sample)

    try:
        return job.make(task, place, note)
    except Exception as error:
        return error
    finally:
        AT.pack_into(at, worker * AT.size, *NOWHERE)


def _answer(end: connection.Connection, ticket: int, made: Any) -> None:
    """A RunError is meant for the user and is sent unchanged; any other error is sent with this process's traceback."""
    if isinstance(made, Exception) and not isinstance(made, RunError):
        told = "".join(traceback.format_exception(made))
        made.add_note(f"In a worker process that reads data:\n{told}")
    try:
        data = pickle.dumps((ticket, made), pickle.HIGHEST_PROTOCOL)
        if isinstance(made, Exception):
            pickle.loads(data)
    except Exception as error:  # made of things that cannot cross
        if isinstance(made, RunError):  # of somebody's own class
            instead = as_error(made.exit_code, str(made))
        else:
            said = told if isinstance(made, Exception) else f"{type(made).__name__}: {error}"
            instead = RuntimeError(f"in a worker process that reads data:\n{said}")
        data = pickle.dumps((ticket, instead))
    end.send_bytes(data)


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, shared: list[SharedMemory]) -> None:
        super().__init__(io.BytesIO(data))
        self._shared = shared

    def persistent_load(self, number: int) -> SharedMemory:
        return self._shared[number]
