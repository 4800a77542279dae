"""Batches from a process's memory to its device. On CUDA they are copied one batch ahead, on a stream of their own,
straight out of the memory that workers wrote them into, whose pages are locked once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from glioma_dist.data.batch import Batch
from glioma_dist.data.shared_memory_ring import BatchHandle, SharedMemoryRing, flat_bytes
from glioma_dist.data.streams import Stream, StreamHere

MOST_IN_HAND = 3
"""Batches that are not released: the one that is given out, the next, and one before whose copy may not be complete."""


class HostBatch(NamedTuple):
    """A batch in this process's memory, to be released when it has been read."""

    handle: BatchHandle
    flat: Tensor
    """Masks and images in one piece, (bytes,) uint8; of the ring where it has a place there."""
    place: int | None
    in_ring: bool


class HostBatches:
    """The batches of a stream, each as long as it is not released. ring: in which workers write them."""

    def __init__(self, stream: Stream | StreamHere, ring: SharedMemoryRing | None) -> None:
        self._stream, self._ring = stream, ring
        self.is_ready, self.close = stream.is_ready, stream.close

    def __iter__(self) -> HostBatches:
        return self

    def __next__(self) -> HostBatch:
        """Raises as `Stream` does."""
        handle, place = next(self._stream)
        in_ring = handle.flat is None
        flat = self._ring.flat(place, flat_bytes(handle.shape)) if in_ring else handle.flat
        return HostBatch(handle, torch.from_numpy(flat), place, in_ring)

    def release(self, batch: HostBatch) -> None:
        """Its place may be written again."""
        self._stream.release(batch.place)


class Copier(Protocol):
    """Copies batches to a device and does not wait for it."""

    def start(self, batch: HostBatch) -> Any:
        """Begin to copy."""

    def finish(self, copy: Any) -> Batch:
        """The batch on the device, for what is computed there from now on."""

    def wait(self, copy: Any) -> None:
        """Until the batch's memory has been read, and so may be written again."""

    def close(self) -> None:
        """Wait until all that has begun has been read, and let go of the memory."""


def batches_on(device: torch.device, batches: HostBatches) -> Generator[Batch]:
    """Batches on a device, in their order; each stays as it is for as long as it is kept."""
    if device.type == "cuda":
        yield from copy_ahead(batches, CudaCopier(device))
        return
    for batch in batches:
        here = Batch.of(batch.handle, batch.flat.clone() if batch.in_ring else batch.flat)
        batches.release(batch)
        yield here.to(device)


def copy_ahead(batches: HostBatches, copier: Copier) -> Generator[Batch]:
    """Batches on `copier`'s device. Before one is given out, the copy of the next has begun where it is made already.

    A fault of the next one is raised when its turn has come.
    """
    read: deque[_Begun] = deque()
    """Given out, and not released."""
    begun = ahead = None
    try:
        while True:
            begun, ahead = ahead or _begin(batches, copier), None
            if isinstance(begun.error, StopIteration):
                return
            if begun.error is not None:
                raise begun.error
            # A ring has places for MOST_IN_HAND batches beside those that workers make.
            while len(read) > MOST_IN_HAND - 2:
                copier.wait(read[0].copy)
                batches.release(read.popleft().batch)
            if batches.is_ready():
                ahead = _begin(batches, copier)
            read.append(begun)
            begun = None
            yield copier.finish(read[-1].copy)
    finally:
        copier.close()
        # The next round, of validation for example, writes to the same ring.
        for each in (*read, begun, ahead):
            if each is not None and each.batch is not None:
                batches.release(each.batch)


@dataclass(frozen=True)
class _Begun:
    batch: HostBatch | None = None
    copy: Any = None
    error: Exception | None = None


def _begin(batches: HostBatches, copier: Copier) -> _Begun:
    batch = None
    try:
        batch = next(batches)
        return _Begun(batch, copier.start(batch))
    except Exception as error:
        return _Begun(batch, error=error)


class CudaCopy(NamedTuple):
    """A copy under way: the batch on the device, and what the stream has done when it is complete."""

    handle: BatchHandle
    flat: Tensor
    done: torch.cuda.Event


class CudaCopier:
    """To a CUDA device, on a stream of its own, out of page-locked memory: one transfer a batch."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._locked: dict[int, Tensor] = {}
        """Address -> memory of a ring whose pages are locked."""
        self._staging: list[tuple[Tensor, torch.cuda.Event]] = []
        """Page-locked memory for batches that lie elsewhere, and when what is in it has been read."""
        self._can_lock = True

    def start(self, batch: HostBatch) -> CudaCopy:
        """See `Copier`."""
        locked = batch.in_ring and self._lock(batch.flat)
        source = batch.flat if locked else self._stage(batch.flat)
        with torch.cuda.stream(self._stream):
            flat = source.to(self._device, non_blocking=True)
            done = self._stream.record_event()
        if not locked:
            self._staging.append((source, done))
        return CudaCopy(batch.handle, flat, done)

    def finish(self, copy: CudaCopy) -> Batch:
        """See `Copier`."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copy.done)
        copy.flat.record_stream(current)  # it was allocated on the other stream
        return Batch.of(copy.handle, copy.flat)

    def wait(self, copy: CudaCopy) -> None:
        """See `Copier`."""
        copy.done.synchronize()

    def close(self) -> None:
        """See `Copier`."""
        self._stream.synchronize()
        for memory in self._locked.values():
            torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())
        self._locked.clear()

    def _lock(self, flat: Tensor) -> bool:
        """Lock the pages that a batch lies in, once; again where one at the same place has become longer."""
        locked = self._locked.get(flat.data_ptr())
        if locked is not None and len(locked) >= len(flat):
            return True
        if not self._can_lock:
            return False
        if locked is not None:  # nothing reads it: its place was free
            torch.cuda.cudart().cudaHostUnregister(locked.data_ptr())
            del self._locked[locked.data_ptr()]
        if int(torch.cuda.cudart().cudaHostRegister(flat.data_ptr(), len(flat), 0)) != 0:
            self._can_lock = False
            # CUDA keeps the error for the next call that asks.
            with suppress(RuntimeError):
                torch.zeros(1, device=self._device)
            return False
        self._locked[flat.data_ptr()] = flat
        return True

    def _stage(self, flat: Tensor) -> Tensor:
        """A copy in page-locked memory that nothing reads any more, or that is new."""
        for number, (memory, done) in enumerate(self._staging):
            if len(memory) == len(flat) and done.query():
                del self._staging[number]
                return memory.copy_(flat)
        self._staging = [(memory, done) for memory, done in self._staging if not done.query()]
        return torch.empty_like(flat, pin_memory=True).copy_(flat)
