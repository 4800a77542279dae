"""Copies batches from host memory to the device. On CUDA they are copied one batch ahead, on a separate stream,
directly from the memory that the workers wrote to. The pages of this memory are locked once.
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
"""Batches that are held at once: the one in use, the next one, and the one before, whose copy may not be complete."""


class HostBatch(NamedTuple):
    """A batch in host memory. It must be released after it has been read."""

    handle: BatchHandle
    flat: Tensor
    """Masks and images in one piece of memory, (bytes,) uint8: in the ring if it has a place there."""
    place: int | None
    in_ring: bool


class HostBatches:
    """Iterates over the batches of a stream. Each is valid until it is released. ring: what workers write to."""

    def __init__(self, stream: Stream | StreamHere, ring: SharedMemoryRing | None) -> None:
        self._stream, self._ring = stream, ring
        self.is_ready, self.close = stream.is_ready, stream.close

    def __iter__(self) -> HostBatches:
        return self

    def __next__(self) -> HostBatch:
        """Raises as `Stream` does."""
        handle, place = next(self._stream)
        in_ring = handle.flat is None
        flat = self._ring.flat(place, flat_bytes(handle.shape, handle.num_planes)) if in_ring else handle.flat
        return HostBatch(handle, torch.from_numpy(flat), place, in_ring)

    def release(self, batch: HostBatch) -> None:
        """Let workers overwrite the batch."""
        self._stream.release(batch.place)


class Copier(Protocol):
    """Copies batches to a device and does not wait for it."""

    def start(self, batch: HostBatch) -> Any:
        """Begin to copy."""

    def finish(self, copy: Any) -> Batch:
        """The batch on the device, for what is computed there from now on."""

    def wait(self, copy: Any) -> None:
        """Wait until the batch's memory has been read and can be overwritten."""

    def close(self) -> None:
        """Wait for all copies that have begun, and release the memory."""


def batches_on(device: torch.device, batches: HostBatches) -> Generator[Batch]:
    """Yield the batches on the device, in order. Later batches do not overwrite them."""
    if device.type == "cuda":
        yield from copy_ahead(batches, CudaCopier(device))
        return
    for batch in batches:
        here = Batch.of(batch.handle, batch.flat.clone() if batch.in_ring else batch.flat)
        batches.release(batch)
        yield here.to(device)


def copy_ahead(batches: HostBatches, copier: Copier) -> Generator[Batch]:
    """Yield batches on `copier`'s device. The copy of the next batch begins first, if that batch is ready.

    An error of the next batch is raised when it is asked for.
    """
    read: deque[_Begun] = deque()
    """In use, and not released."""
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
    """A copy in progress: the batch on the device, and the event that marks its end."""

    handle: BatchHandle
    flat: Tensor
    done: torch.cuda.Event


class CudaCopier:
    """Copies to a CUDA device from page-locked memory, on a separate stream, with one transfer per batch."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._locked: dict[int, Tensor] = {}
        """Address -> memory of a ring whose pages are locked."""
        self._staging: list[tuple[Tensor, torch.cuda.Event]] = []
        """Page-locked memory for batches outside the ring, and the event after which it can be overwritten."""
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
        """Lock the pages of a batch's memory once, and again if a longer batch comes to the same place."""
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
        """Copy the batch to page-locked memory: to a piece that is no longer read, or to a new one."""
        for number, (memory, done) in enumerate(self._staging):
            if len(memory) == len(flat) and done.query():
                del self._staging[number]
                return memory.copy_(flat)
        self._staging = [(memory, done) for memory, done in self._staging if not done.query()]
        return torch.empty_like(flat, pin_memory=True).copy_(flat)
