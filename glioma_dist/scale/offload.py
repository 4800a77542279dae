"""Activations in host memory: what a step keeps for its backward pass waits there instead of on the GPU.

In the forward pass each storage that autograd keeps is copied to the host, and leaves the device as soon as its copy is
complete. In the backward pass it is copied back while the gradients before it are computed. Copies change no bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from glioma_dist.model.layer_norm import StreamLayerNorm
from glioma_dist.model.modules import remove_hooks
from glioma_dist.model.unet import UNet
from glioma_dist.scale.host_memory import HostMemory, LockedMemory
from glioma_dist.scale.tile_size import CPU_ELEMENTS
from glioma_dist.scale.versions import Version

MIN_BYTES = 2**16
"""A smaller storage stays on the device: to start its copy takes longer than the copy."""
NAME = "activation_offload"
"""Of the attribute of a model that has its `ActivationOffload`."""


def offload_activations(model: UNet) -> None:
    """Have `model`, checkpointed in full, keep in host memory what its segments and blocks keep.

    What is kept between segments then takes no memory of the device, so segments are as short as can be; and layer
    norms widen a part of their tokens at a time, because what one layer holds is most of what is left.
    """
    ActivationOffload().attach(model)
    model.encoder.has_short_segments = True
    for module in model.encoder.modules():
        if isinstance(module, StreamLayerNorm):
            module.elements_at_once = CPU_ELEMENTS


def stop_offloading(model: UNet) -> None:
    """Inverse of `offload_activations`."""
    if vars(model).pop(NAME, None) is not None:
        remove_hooks(model, ActivationOffload)
        model.encoder.has_short_segments = False
        for module in model.encoder.modules():
            if isinstance(module, StreamLayerNorm):
                module.elements_at_once = None


class ActivationOffload:
    """Keeps in host memory what the forward passes of a model save.

    At most one copy to the host and one copy back are under way: the device holds one storage that leaves, one that is
    used and one that arrives. host: where the storages wait; by default `HostMemory` or `LockedMemory`, as the device
    of the first images asks for.
    """

    def __init__(self, host: HostMemory | None = None, min_bytes: int | None = None) -> None:
        self.host = host
        self.min_bytes = MIN_BYTES if min_bytes is None else min_bytes
        self._running: list[AbstractContextManager | saved_tensors_hooks] = []
        self._last: _Pass | None = None

    def __deepcopy__(self, memo: dict) -> ActivationOffload:
        """Of a model that is copied: the copy has its own memory."""
        del memo
        return ActivationOffload(min_bytes=self.min_bytes)

    def attach(self, model: nn.Module) -> None:
        """Have the forward passes of `model` save their activations here."""
        vars(model)[NAME] = self
        model.register_forward_pre_hook(self.begin, with_kwargs=True)
        model.register_forward_hook(self.end, always_call=True)

    def begin(self, model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """A hook before a forward pass."""
        del model
        while self._running:  # PyTorch calls no hook after a pass that Ctrl-C stopped
            self.end()
        device = next((each.device for each in (*inputs, *named.values()) if isinstance(each, Tensor)), None)
        if device is None:  # DDP is once called without images (`buckets.py`)
            self._running.append(nullcontext())
            return
        if self.host is None:
            self.host = LockedMemory(device) if device.type == "cuda" else HostMemory()
        if self._last is not None:
            self._last.settle()
        self._last = _Pass(self.host, device, self.min_bytes)
        self._running.append(saved_tensors_hooks(self._last.pack, self._last.unpack))
        self._running[-1].__enter__()

    def end(self, *_: Any) -> None:
        """A hook after a forward pass, also one that failed."""
        self._running.pop().__exit__(None, None, None)


def offload_of(model: nn.Module) -> ActivationOffload | None:
    """What keeps the activations of `model` in host memory; None where nothing does."""
    return vars(model).get(NAME)


class _Saved(NamedTuple):
    """What autograd holds in a tensor's place: which of the pass's storages, and how the tensor lies in it."""

    number: int
    """Of the tensor among those that the pass has saved."""
    parcel: _Parcel
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    version: Version


class _Parcel:
    """A storage in host memory. It goes when autograd needs none of its tensors any more."""

    def __init__(self, storage: torch.UntypedStorage, version: int, host: HostMemory, memory: Any) -> None:
        self.num_bytes, self.version = storage.nbytes(), version
        self.on_device = weakref.ref(storage)
        """The storage on the device, while anything needs it there."""
        self.memory, self._host = memory, host

    def __del__(self) -> None:
        self._host.release(self.memory)


class _Travelling(NamedTuple):
    parcel: _Parcel
    storage: torch.UntypedStorage
    done: Any


class _Pass:
    """A forward pass and its backward pass."""

    def __init__(self, host: HostMemory, device: torch.device, min_bytes: int) -> None:
        self._host, self._device, self._min_bytes = host, device, min_bytes
        self._parcels: weakref.WeakKeyDictionary[Any, weakref.ref[_Parcel]] = weakref.WeakKeyDictionary()
        self._order: list[tuple[int, weakref.ref[_Parcel]]] = []
        """Of each tensor that was saved: the number of autograd's latest node then, and its storage."""
        self._largest = 0
        self._leaving: _Travelling | None = None
        self._arriving: _Travelling | None = None

    def pack(self, tensor: Tensor) -> tuple[Tensor, Version] | _Saved:
        """Begin to copy a tensor's storage to the host, if it is not there yet. The one before leaves the device."""
        # Spatial parallelism sees all functions of strips; this is none.
        with torch._C.DisableTorchFunction(), torch.no_grad():
            # Autograd checks no tensor that hooks keep.
            return self._pack(tensor) if self._is_moved(tensor) else (tensor, Version.of(tensor))

    def _is_moved(self, tensor: Tensor) -> bool:
        base = tensor if tensor._base is None else tensor._base
        return (
            tensor.device == self._device
            and tensor.layout == torch.strided
            and not isinstance(base, nn.Parameter)
            and not is_traceable_wrapper_subclass(tensor)
            and tensor.untyped_storage().nbytes() >= self._min_bytes
        )

    def _pack(self, tensor: Tensor) -> _Saved:
        storage, version = tensor.untyped_storage(), tensor._version
        known = self._parcels.get(storage)
        parcel = None if known is None else known()
        if parcel is None or parcel.version != version:
            self._retire_leaving()
            memory, done = self._host.leave(self._host.flat(storage, self._device))
            parcel = _Parcel(storage, version, self._host, memory)
            self._largest = max(self._largest, parcel.num_bytes)
            self._parcels[storage] = weakref.ref(parcel)
            self._leaving = _Travelling(parcel, storage, done)
        self._order.append((torch.autograd._get_sequence_nr(), weakref.ref(parcel)))
        layout = (tensor.dtype, tensor.size(), tensor.stride(), tensor.storage_offset())
        return _Saved(len(self._order) - 1, parcel, *layout, Version.of(tensor, self._host.watch(tensor)))

    def unpack(self, saved: tuple[Tensor, Version] | _Saved) -> Tensor:
        """The tensor on the device again. The copy of the one that is needed next begins.

        Raises RuntimeError where it was changed in place: a storage that something holds is not copied back, and one
        that was leaving may have been changed before its copy was complete.
        """
        with torch._C.DisableTorchFunction(), torch.no_grad():
            if not isinstance(saved, _Saved):
                saved[1].check()
                return saved[0]
            saved.version.check()
            storage = self._on_device(saved.parcel)
            following = self._following(saved.number)
            if following is not None:
                self._arriving = self._fetch(following)
            empty = torch.empty(0, dtype=saved.dtype, device=self._device)
            return self._host.place(empty, storage, saved.offset, saved.size, saved.stride)

    def _on_device(self, parcel: _Parcel) -> torch.UntypedStorage:
        storage = parcel.on_device()
        if storage is None:
            self._retire_arriving()  # it was not what is needed
            self._arriving = self._fetch(parcel)
            storage = self._arriving.storage
        if self._arriving is not None and self._arriving.parcel is parcel:
            self._retire_arriving()
        if self._leaving is not None and self._leaving.parcel is parcel:
            self._retire_leaving()
        return storage

    def _fetch(self, parcel: _Parcel) -> _Travelling:
        target = torch.empty(parcel.num_bytes, dtype=torch.uint8, device=self._device)
        done = self._host.arrive(parcel.memory, target)
        storage = target.untyped_storage()
        parcel.on_device = weakref.ref(storage)
        return _Travelling(parcel, storage, done)

    def _following(self, number: int) -> _Parcel | None:
        """The storage to be fetched ahead; None where it is there already, or on its way, or one of the largest.

        Those are fetched when they are needed. Beside one that is in use and its gradient, at the peak of the step, a
        third of their size would be half as much again.
        """
        if self._arriving is not None:
            return None
        current = self._order[number][1]()
        for each in self._in_order_of_use(number):
            parcel = each()
            if parcel is not None and parcel is not current:
                is_large = 2 * parcel.num_bytes >= self._largest
                return None if is_large or parcel.on_device() is not None else parcel
        return None

    def _in_order_of_use(self, number: int) -> Iterator[weakref.ref[_Parcel]]:
        """What is unpacked after a tensor: those of a node in the order in which they were saved, and the nodes in the
        opposite order."""
        node = self._order[number][0]
        for other, parcel in self._order[number + 1 :]:
            if other != node:
                break
            yield parcel
        end = next((first for first, (other, _) in enumerate(self._order) if other == node), 0)
        for _, group in groupby(reversed(self._order[:end]), key=itemgetter(0)):
            yield from (parcel for _, parcel in reversed(list(group)))

    def settle(self) -> None:
        """Let go of what nothing has asked for, as after a step that failed."""
        self._retire_leaving()
        self._retire_arriving()

    def _retire_leaving(self) -> None:
        """What is computed from now on may use the memory of the storage that leaves."""
        if self._leaving is not None:
            self._host.wait(self._leaving.done)
            self._leaving = None

    def _retire_arriving(self) -> None:
        if self._arriving is not None:
            self._host.wait(self._arriving.done)
            self._arriving = None
