"""Worker processes that live as long as a run, and make whatever the run asks them for.

They are forked once, before the device and the connections to other processes are set up where the caller can manage
that, and never again: a fork copies the page tables of a process that by then may hold a GPU's memory and network
cards' registered pages. What they work on is sent to them afterwards. PyTorch's DataLoader forks new workers for every
loader.

One stream of tasks may run beside another, as validation does beside the batches that are made ahead. A worker's death
is noticed while the run waits for its workers, and at no other time.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import mmap
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable
from multiprocessing import connection, reduction
from typing import Any, Protocol

from glioma_dist.data.shared_memory_ring import SharedMemory
from glioma_dist.data.worker_process import AT, NOWHERE, work
from glioma_dist.distributed.signals import STOP_SIGNALS
from glioma_dist.errors import InputError, UnavailableError

SECONDS_TO_END = 2.0
"""That workers have to end by themselves before they are killed."""
AGAIN = "run the same command again"


Note = Callable[[int, int], None]
"""To be told the shard and the place of each sample before it is read."""


class Job(Protocol):
    """What workers are asked to do, again and again."""

    def make(self, task: Any, place: int | None, note: Note) -> Any:
        """What a task asks for. place: of a ring, which is the task's own until the result is released."""

    def describe(self, shard: int, place: int) -> str:
        """A sample as users know it."""


class WorkerPool:
    """`num_workers` processes, forked now. A context, which ends them.

    job: number 0 of the jobs, which workers get by the fork, so that it need not be picklable.

    Raises InputError where the system does not let them start.
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
        """For each worker job, shard and place of the sample that it is at."""
        for worker in range(num_workers):
            AT.pack_into(self._at, worker * AT.size, *NOWHERE)
        self._processes: list[multiprocessing.Process] = []
        self._ends: list[connection.Connection] = []
        self._owing: dict[int, int] = {}
        """Ticket of each task that is not done -> its worker."""
        self._made: dict[int, Any] = {}
        self._forgotten: dict[int, Callable[[], None]] = {}
        try:
            for worker in range(num_workers):
                self._fork(worker)
        except OSError as error:
            self.close()
            raise InputError(
                f"{num_workers} workers: the system does not start so many processes ({error.strerror}); give fewer "
                "with --data.workers, or raise its limits (ulimit -u, ulimit -n)"
            ) from error
        except BaseException:
            self.close()
            raise

    def _fork(self, worker: int) -> None:
        ours, theirs = multiprocessing.Pipe()
        self._ends.append(ours)
        arguments = (worker, theirs, list(self._ends), self._at, dict(self._jobs))
        process = multiprocessing.get_context("fork").Process(target=work, args=arguments, daemon=True)
        # Until it has handlers of its own, a signal to the group would run this process's in it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
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
        """Give a task to the worker that has the fewest. Returns a ticket for `get`."""
        owed = list(self._owing.values())
        worker = min(range(self.num_workers), key=owed.count)
        ticket = next(self._tickets)
        self._tell(worker, ("make", job, ticket, task, place))
        self._owing[ticket] = worker
        return ticket

    def get(self, ticket: int, seconds_to_answer: float = 0) -> Any:
        """Wait for what a task asked for. An exception of the worker is returned, not raised.

        Raises UnavailableError where a worker has died, or none answers for `seconds_to_answer`; 0: waits for ever.
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
        """Nobody will ask for this one; call `then` when the worker is done with it."""
        if self._made.pop(ticket, self) is not self:
            then()
        elif ticket in self._owing:
            self._forgotten[ticket] = then

    def _receive(self, seconds: float | None) -> None:
        """Take in what workers have made; wait for the first of it for at most `seconds`, None: for ever."""
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
        """What to raise for a worker that is gone: where it is known, the sample that it was at."""
        process = self._processes[worker]
        process.join(SECONDS_TO_END)
        code = process.exitcode
        how = "it closed its connection" if code is None else f"exit code {code}"
        if code is not None and code < 0:
            how = f"signal {signal.Signals(-code).name if -code in list(signal.Signals) else -code}"
        job, shard, place = AT.unpack_from(self._at, worker * AT.size)
        if job in self._jobs:
            where = self._jobs[job].describe(shard, place)
            return UnavailableError(
                f"{where}: the worker process that was at it died ({how}); is memory full? Use fewer workers, or look "
                f"at the sample; {AGAIN}"
            )
        return UnavailableError(f"a worker process that reads data died ({how}); is memory full? {AGAIN}")

    def close(self) -> None:
        """Have the workers end, and kill those that do not: one that was stopped would hold this process for ever."""
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


class _Pickler(pickle.Pickler):
    """Keeps shared memory aside, whose descriptors are sent."""

    def __init__(self) -> None:
        self.file, self.shared = io.BytesIO(), []
        super().__init__(self.file, pickle.HIGHEST_PROTOCOL)

    def persistent_id(self, value: object) -> int | None:
        if not isinstance(value, SharedMemory):
            return None
        self.shared.append(value)
        return len(self.shared) - 1
