"""Memory of the host in which a step's activations wait, and the copies to it and back."""

from __future__ import annotations

import weakref
from bisect import bisect_left, insort
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from glioma_dist.errors import InputError
from glioma_dist.scale.device_memory import GIB


class HostMemory:
    """Memory that is allocated in the first step and used again in each further one, also by smaller storages, as those
    of a smaller micro-batch. Beside a CPU: copies are complete as soon as they begin."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []
        """The smallest that is large enough is taken: what has held the larger storages of one pass
        holds the smaller ones of another, in whatever order they come."""
        self._released: list[Tensor] = []
        """What is free since the last storage came. The garbage collector may add to it at any moment, as long as
        `_free` is looked through, too."""

    def leave(self, source: Tensor) -> tuple[Any, Any]:
        """Begin to copy (bytes,) uint8 to the host. Returns where it is, and what to wait for."""
        memory = self._take(source)
        memory[: len(source)].copy_(source)
        return memory, None

    def arrive(self, memory: Any, target: Tensor) -> Any:
        """Begin to copy it back to `target` (bytes,) uint8. Returns what to wait for."""
        target.copy_(memory[: len(target)])

    def wait(self, done: Any) -> None:
        """Have what is computed from now on begin after a copy."""

    def place(self, empty: Tensor, storage: torch.UntypedStorage, *layout: Any) -> Tensor:
        """Have a tensor lie in a storage. layout: offset, size and strides."""
        return empty.set_(storage, *layout)

    def watch(self, tensor: Tensor) -> Tensor:
        """A tensor without memory that counts the changes in place of `tensor`."""
        counted = tensor.detach()
        counted.data = tensor.new_empty(0)
        return counted

    def flat(self, storage: torch.UntypedStorage, device: torch.device) -> Tensor:
        """All of a storage on a device, (bytes,) uint8."""
        return self.place(torch.empty(0, dtype=torch.uint8, device=device), storage)

    def release(self, memory: Any) -> None:
        """Nothing needs it any more. Copies that have begun come before those that follow."""
        self._released.append(memory)

    def free(self) -> list[Tensor]:
        """The memory that nothing needs, by its size."""
        while self._released:
            insort(self._free, self._released.pop(), key=len)
        return self._free

    def _take(self, source: Tensor) -> Tensor:
        """Memory of at least as many bytes."""
        free = self.free()
        first = bisect_left(free, len(source), key=len)
        if first < len(free):
            return free.pop(first)
        if free:  # storages are larger now: one takes the place of the largest
            self._give_up(free.pop())
        return torch.empty(len(source), dtype=torch.uint8)

    def _give_up(self, memory: Tensor) -> None:
        """Nothing uses it any more."""


class LockedMemory(HostMemory):
    """The same beside a GPU: page-locked, so that copies on a stream of their own pass beside the computation.

    Pages are locked once, when memory is allocated. Where the system locks no more, the CPU waits for the copies.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._locked: dict[int, Tensor] = {}
        weakref.finalize(self, _unlock, self._locked).atexit = False

    def leave(self, source: Tensor) -> tuple[Any, Any]:
        """As HostMemory's. The source must stay until the copy has been waited for."""
        memory = self._take(source)
        return memory, self._copy(memory[: len(source)], source)

    def arrive(self, memory: Any, target: Tensor) -> Any:
        """As HostMemory's. The target must stay until the copy has been waited for."""
        return self._copy(target, memory[: len(target)])

    def wait(self, done: Any) -> None:
        """As HostMemory's: the current stream waits, the CPU does not."""
        torch.cuda.current_stream(self._device).wait_event(done)

    def _copy(self, target: Tensor, source: Tensor) -> Any:
        # Before the other stream is entered: what is computed now made the source, or used the target's memory.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            return self._stream.record_event()

    def _take(self, source: Tensor) -> Tensor:
        memory = super()._take(source)
        if memory.data_ptr() not in self._locked:
            if int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), len(memory), 0)) == 0:
                self._locked[memory.data_ptr()] = memory
            else:  # CUDA keeps the error for the next call that asks
                with suppress(RuntimeError):
                    torch.zeros(1, device=self._device)
        return memory

    def _give_up(self, memory: Tensor) -> None:
        self._stream.synchronize()
        _unlock({memory.data_ptr(): self._locked.pop(memory.data_ptr(), None)})


class ImaginaryMemory(HostMemory):
    """No memory, for estimates: only its bytes are counted."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self._mode, self._unchanged = mode, torch.empty(0, device="cpu")
        self.sizes: list[int] = []
        """Bytes of each storage that was copied to the host."""
        self.bytes_back = 0

    def leave(self, source: Tensor) -> tuple[Any, Any]:
        """As HostMemory's."""
        self.sizes.append(len(source))
        return None, None

    def arrive(self, memory: Any, target: Tensor) -> Any:
        """As HostMemory's."""
        self.bytes_back += len(target)

    def place(self, empty: Tensor, storage: torch.UntypedStorage, *layout: Any) -> Tensor:
        """As HostMemory's. The cache of fake tensors would keep the storage."""
        before, self._mode.cache_enabled = self._mode.cache_enabled, False
        try:
            return super().place(empty, storage, *layout)
        finally:
            self._mode.cache_enabled = before

    def watch(self, tensor: Tensor) -> Tensor:
        """As HostMemory's, of a step that changes nothing: no fake tensor can take another's place."""
        del tensor
        return self._unchanged

    def release(self, memory: Any) -> None:
        """As HostMemory's."""


def check_host_memory(needed: int, free: float) -> None:
    """Raises InputError if activations of `needed` bytes for each device do not fit the `free` bytes of the host."""
    if needed > free:
        raise InputError(
            f"--scale.activation-checkpointing offload: each device needs {needed / GIB:.1f} GiB of host memory, and "
            f"its share of what is free is {free / GIB:.1f} GiB (a fifth is left to the system); give "
            "--scale.activation-checkpointing full or a smaller --batch-size"
        )


def _unlock(locked: dict[int, Tensor | None]) -> None:
    for place, memory in locked.items():
        if memory is not None:
            torch.cuda.cudart().cudaHostUnregister(place)
    locked.clear()
