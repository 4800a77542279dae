"""Worker processes that live as long as a run, and compute the tasks that the run gives them.

They are forked once. Where the caller can, it does so before the device and the connections to other processes are set
up: a later fork would copy the page tables of a process that holds memory of a GPU and registered pages of network
adapters. A second training of the same process cannot, so no worker destroys what its parent has made (`_keeping`).
Jobs are sent to the workers afterwards. PyTorch's DataLoader forks new workers for every loader.

Several streams of tasks can run at the same time: validation runs while batches are prepared ahead. A worker's death is
noticed only while the run waits for its workers.
"""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import mmap
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection, reduction
from typing import Any, Protocol

from glioma_dist.data.shared_memory_ring import SharedMemory
from glioma_dist.data.worker_process import AT, NOWHERE, work
from glioma_dist.distributed.signals import STOP_SIGNALS
from glioma_dist.errors import InputError, RunError, UnavailableError

SECONDS_TO_END = 2.0
"""Seconds in which workers can end by themselves before they are killed."""
AGAIN = "run the same command again"
PROCESS_STATES = {
    "R": "runs",
    "S": "waits",
    "D": "waits for a disk",
    "T": "was stopped by a signal",
    "t": "is held by a debugger",
    "Z": "has ended",
}
"""Of /proc/PID/stat (proc_pid_stat(5))."""
FLAGS = "(training: --data.workers, other commands: --workers)"


Note = Callable[[int, int], None]
"""Is called with the shard and the place of each sample before the sample is read."""


class Job(Protocol):
    """What workers do with each task."""

    def make(self, task: Any, place: int | None, note: Note) -> Any:
        """Compute a task. place: of a ring; it belongs to the task until the result is released."""

    def describe(self, shard: int, place: int) -> str:
        """The name of a sample for messages."""


@contextlib.contextmanager
def _keeping() -> Iterator[None]:
    """A process that is forked within it never collects the garbage that is there now.

    Events and streams of CUDA that an earlier training has left in cycles would end a forked process that destroys
    them: CUDA knows only the process that made them.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class WorkerPool:
    """`num_workers` processes, forked when the pool is made. A context manager that ends them.

    job: number 0 of the jobs; workers get it by the fork, so it need not be picklable.

    Raises InputError if the system cannot start the processes.
    """

    def __init__(self, num_workers: int, job: Job | None = None) -> None:
        if num_workers and multiprocessing.current_process().daemon:
            raise InputError(
                f"{num_workers} workers: this process is a daemonic one of Python's multiprocessing, which may have no "
                "processes of its own; give --data.workers 0, or start it with daemon=False"
            )
        self.num_workers = num_workers
        self._jobs: dict[int, Job] = {} if job is None else {0: job}
        self._next_job, self._tickets = itertools.count(1), itertools.count()
        self._at = mmap.mmap(-1, AT.size * max(1, num_workers))
        """Job, shard and place of the sample that each worker prepares now."""
        for worker in range(num_workers):
            AT.pack_into(self._at, worker * AT.size, *NOWHERE)
        self._processes: list[multiprocessing.Process] = []
        self._ends: list[connection.Connection] = []
        self._owing: dict[int, int] = {}
        """Ticket of each unfinished task -> its worker."""
        self._made: dict[int, Any] = {}
        self._forgotten: dict[int, Callable[[], None]] = {}
        try:
            for worker in range(num_workers):
                self._fork(worker)
        except OSError as error:
            self.close()
            raise InputError(
                f"{num_workers} workers: the system cannot start that many processes ({error.strerror}); give fewer "
                f"{FLAGS}, or raise its limits (ulimit -u, ulimit -n)"
            ) from error
        except BaseException:
            self.close()
            raise

    def _fork(self, worker: int) -> None:
        ours, theirs = multiprocessing.Pipe()
        self._ends.append(ours)
        arguments = (worker, theirs, list(self._ends), self._at, dict(self._jobs))
        process = multiprocessing.get_context("fork").Process(target=work, args=arguments, daemon=True)
        # Until the worker has its own handlers, a signal to the process group would run this process's handlers in it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            with _keeping():
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self._processes.append(process)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_job(self, job: Job) -> int:
        """Hand a job to all workers. It is pickled; `SharedMemory` in it stays shared. Returns its number.

        Raises UnavailableError where a worker has died.
        """
        number = next(self._next_job)
        pickler = _Pickler()
        pickler.dump(job)
        data = pickler.file.getvalue()
        carrier = SharedMemory(len(data))  # a pipe that is full would stop this process
        carrier.map[: len(data)] = data
        for worker, end in enumerate(self._ends):
            self._tell(worker, ("open", number, len(data), [each.num_bytes for each in pickler.shared]))
            try:
                for memory in (carrier, *pickler.shared):
                    reduction.send_handle(end, memory.descriptor, self._processes[worker].pid)
            except OSError as error:  # a broken pipe; with no name of a file it would pass for standard output
                raise self._lost(worker) from error
        self._jobs[number] = job
        return number

    def drop_job(self, number: int) -> None:
        """Have workers forget a job."""
        if self._jobs.pop(number, None) is not None:
            for end in self._ends:
                with contextlib.suppress(OSError):
                    end.send(("close", number))

    def submit(self, job: int, task: Any, place: int | None) -> int:
        """Give a task to the worker with the fewest tasks. Returns a ticket for `get`."""
        owed = list(self._owing.values())
        worker = min(range(self.num_workers), key=owed.count)
        ticket = next(self._tickets)
        self._tell(worker, ("make", job, ticket, task, place))
        self._owing[ticket] = worker
        return ticket

    def get(self, ticket: int, seconds_to_answer: float = 0) -> Any:
        """Wait for the result of a task. An exception of the worker is returned, not raised.

        Raises UnavailableError if a worker has died, or none answers for `seconds_to_answer` seconds (0: no limit).
        """
        self._receive(0)
        while ticket not in self._made:
            self._receive(seconds_to_answer or None)
        return self._made.pop(ticket)

    def has(self, ticket: int) -> bool:
        """Whether `get` would return at once. Raises as it does."""
        if ticket not in self._made:
            self._receive(0)
        return ticket in self._made

    def forget(self, ticket: int, then: Callable[[], None]) -> None:
        """Drop the result of a task; call `then` when the worker has finished it."""
        if self._made.pop(ticket, self) is not self:
            then()
        elif ticket in self._owing:
            self._forgotten[ticket] = then

    def _receive(self, seconds: float | None) -> None:
        """Collect finished results; wait at most `seconds` for the first one (None: no limit)."""
        watched = {end: worker for worker, end in enumerate(self._ends)}
        watched |= {process.sentinel: worker for worker, process in enumerate(self._processes)}
        ready = connection.wait(list(watched), seconds)
        if not ready and seconds:
            raise UnavailableError(f"a worker process that reads data did not answer for {seconds:g} s; {AGAIN}")
        for each in ready:
            if not isinstance(each, connection.Connection):
                raise self._lost(watched[each])
            try:
                while each.poll():
                    ticket, made = each.recv()
                    del self._owing[ticket]
                    if ticket in self._forgotten:
                        self._forgotten.pop(ticket)()
                    else:
                        self._made[ticket] = made
            except (EOFError, OSError) as error:
                raise self._lost(watched[each]) from error

    def _tell(self, worker: int, message: tuple) -> None:
        try:
            self._ends[worker].send(message)
        except OSError as error:
            raise self._lost(worker) from error

    def _lost(self, worker: int) -> UnavailableError:
        """The error for a worker that has died; it names the sample that the worker prepared, if that is known."""
        process = self._processes[worker]
        process.join(SECONDS_TO_END)
        code = process.exitcode
        how = "it closed its connection" if code is None else f"exit code {code}"
        if code is not None and code < 0:
            how = f"signal {signal.Signals(-code).name if -code in list(signal.Signals) else -code}"
        job, shard, place = AT.unpack_from(self._at, worker * AT.size)
        if job in self._jobs:
            try:
                where = self._jobs[job].describe(shard, place)
            except RunError:  # its name is read from a table, of a store that may not answer
                where = f"sample {place} of shard {shard}"
            return UnavailableError(
                f"{where}: the worker process that prepared it died ({how}); if memory is full, use fewer workers "
                f"{FLAGS}, else look at the sample; {AGAIN}"
            )
        return UnavailableError(
            f"a worker process that reads data died ({how}); if memory is full, use fewer workers {FLAGS}; {AGAIN}"
        )

    def states(self) -> list[str]:
        """What each worker is doing, for messages; reads no data, so that it can be called while data does not come."""
        told = []
        for worker, process in enumerate(self._processes):
            job, shard, place = AT.unpack_from(self._at, worker * AT.size)
            at = f" at sample {place} of shard {shard}" if job in self._jobs else ""
            told.append(f"worker {process.pid} {process_state(process.pid)}{at}")
        return told

    def close(self) -> None:
        """End the workers, and kill those that do not end: a worker stopped by a signal would block this process."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
        for end in self._ends:
            end.close()  # which a worker sees when it asks for its next task, or hands one over
        until = time.monotonic() + SECONDS_TO_END
        for process in self._processes:
            process.join(max(0.0, until - time.monotonic()))
            process.kill()
            process.join()
        self._ends, self._processes = [], []


def process_state(pid: int) -> str:
    """What Linux says that a process does."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "has ended"
    return PROCESS_STATES.get(state, f"is in state {state}")


class _Pickler(pickle.Pickler):
    """Collects the shared memory of a job, whose descriptors are sent separately."""

    def __init__(self) -> None:
        self.file, self.shared = io.BytesIO(), []
        super().__init__(self.file, pickle.HIGHEST_PROTOCOL)

    def persistent_id(self, value: object) -> int | None:
        if not isinstance(value, SharedMemory):
            return None
        self.shared.append(value)
        return len(self.shared) - 1
