"""Files of tensors (safetensors): written with their checksum, and checked in full when they are read.

A file is written from one piece of memory, by few calls that let other threads of Python run: the system's write and
SHA-256. The library's `save` copies everything twice first, and no other thread runs meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from glioma_dist.errors import InputError, one_line
from glioma_dist.files import cannot_write, read_bytes

DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The format's names of the types that a network or an optimizer may hold, in the order of a file's tensors."""


class DamagedError(InputError):
    """A file of a checkpoint is not what was written."""

    def __init__(self, path: Path, fault: str, advice: str = "restore it from a copy, or take another checkpoint"):
        super().__init__(f"{path}: {fault}; {advice}")
        self.path, self.fault, self.advice = path, fault, advice

    def __reduce__(self) -> tuple:  # processes tell each other of it
        return type(self), (self.path, self.fault, self.advice)


class FlatTensors:
    """Room for tensors in one piece of host memory, where they lie as in a safetensors file.

    like: tensors of the names, shapes and types to make room for. page_locked: so that a GPU can copy into it while
    this process does other work; where the system gives no such memory, it is ordinary memory.
    """

    def __init__(self, like: dict[str, Tensor], page_locked: bool = False) -> None:
        # The library's order: of types, then of names. It aligns every tensor to its type.
        kinds = list(DTYPES)
        order = sorted(like, key=lambda name: (kinds.index(like[name].dtype), name))
        self.described = {name: describe(like[name]) for name in order}
        self._kinds = {name: (like[name].dtype, like[name].shape) for name in order}
        sizes = [like[name].numel() * like[name].element_size() for name in order]
        self._memory = _allocate(sum(sizes), page_locked)
        self._wait: Callable[[], None] = lambda: None
        self.tensors: dict[str, Tensor] = {}
        """Name -> a contiguous tensor in the memory, in the order of the file."""
        header, end = {}, 0
        for name, size in zip(order, sizes, strict=True):
            begin, end = end, end + size
            header[name] = {**self.described[name], "data_offsets": [begin, end]}
            self.tensors[name] = self._memory[begin:end].view(like[name].dtype).view(like[name].shape)
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._header = len(text).to_bytes(8, "little") + text

    def touch(self) -> FlatTensors:
        """Have the system give all of the memory now, and not when it is first written to. Returns itself."""
        self._memory.zero_()
        return self

    def has_room_for(self, tensors: dict[str, Tensor]) -> bool:
        """Whether these are the tensors that this has room for."""
        return self._kinds == {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}

    @torch.no_grad()
    def copy_(self, tensors: dict[str, Tensor]) -> None:
        """Copy tensors of any device and layout into their room.

        From a GPU the copies are queued in the order of its work: what changes the tensors later does not reach them.
        `content` waits until they are here.
        """
        gpu = next((tensor.device for tensor in tensors.values() if tensor.device.type == "cuda"), None)
        if gpu is None:
            if tensors:  # in one call, so that other threads of Python run
                torch._foreach_copy_([self.tensors[name] for name in tensors], list(tensors.values()))
            return
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor, non_blocking=True)
        self._wait = _arrival(gpu)

    def filled_by(self, wait: Callable[[], None]) -> None:
        """Another thread copies the tensors; `wait` returns when it has ended. `content` waits for it."""
        self._wait = wait

    def not_finite(self) -> list[str]:
        """Names of the tensors that hold a NaN or an infinity. Waits as `content`; any thread may ask."""
        self._wait()
        kinds = dict.fromkeys(dtype for dtype, _ in self._kinds.values())
        # Tensors of one type lie side by side: one look at all of them.
        runs = {kind: [name for name, (dtype, _) in self._kinds.items() if dtype == kind] for kind in kinds}
        return [
            name
            for kind, names in runs.items()
            if kind.is_floating_point and not _is_finite(self._joint(names))
            for name in not_finite({name: self.tensors[name] for name in names})
        ]

    def _joint(self, names: list[str]) -> Tensor:
        """The memory of tensors of one type, which lie side by side, as one tensor."""
        first = self.tensors[names[0]]
        count = sum(self.tensors[name].numel() for name in names)
        return torch.as_strided(first, (count,), (1,), first.storage_offset())

    def content(self) -> list[memoryview]:
        """The bytes of the file, in pieces; none is copied. Any thread may ask for them."""
        self._wait()
        return [memoryview(self._header), memoryview(self._memory.numpy())]


def _arrival(gpu: torch.device) -> Callable[[], None]:
    """A function that waits for what is queued on the GPU now."""
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(gpu))

    def wait() -> None:
        with torch.cuda.device(gpu):  # a new thread begins on the first GPU, where this process may have no memory
            event.synchronize()

    return wait


def _allocate(num_bytes: int, page_locked: bool) -> Tensor:
    if page_locked:
        with suppress(RuntimeError):  # too much to lock; PyTorch's error has no type of its own
            return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    return torch.empty(num_bytes, dtype=torch.uint8)


def write_tensors(path: Path, tensors: dict[str, Tensor] | FlatTensors) -> dict[str, Any]:
    """Write tensors as a safetensors file, and have the system bring it to the disk.

    Returns the file's entry in a manifest: bytes, sha256, and each tensor's dtype and shape. Raises InputError where
    the disk is full, or the file cannot be written for another reason.
    """
    if isinstance(tensors, dict):
        flat = FlatTensors(tensors)
        flat.copy_(tensors)
    else:
        flat = tensors
    digest, num_bytes = hashlib.sha256(), 0
    try:
        with open(path, "wb", buffering=0) as file:
            for piece in flat.content():
                num_bytes += len(piece)
                digest.update(piece)
                while len(piece):  # the system takes at most 2 GiB at once
                    piece = piece[file.write(piece) :]
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error
    return {"bytes": num_bytes, "sha256": digest.hexdigest(), "tensors": flat.described}


def describe(tensor: Tensor) -> dict[str, Any]:
    """Its dtype, by the format's name, and its shape."""
    return {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape)}


def read_checked(path: Path, entry: dict[str, Any]) -> bytes:
    """The bytes of a file, in one reading. Raises DamagedError where they are not those of its manifest's entry."""
    try:
        status = os.stat(path)
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            raise DamagedError(path, "is a folder, a pipe or a device, not a plain file")
        if size != entry["bytes"]:
            raise DamagedError(path, f"has {size} bytes, its manifest says {entry['bytes']}")
        data = read_bytes(path, entry["bytes"])
    except FileNotFoundError:
        raise DamagedError(path, "is missing") from None
    except OSError as error:
        raise DamagedError(path, f"cannot be read ({error.strerror})") from None
    except DamagedError:
        raise
    except InputError as error:  # names the file itself
        raise DamagedError(path, str(error).removeprefix(f"{path}: ")) from None
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise DamagedError(path, "is damaged (its bytes do not match the SHA-256 in its manifest)")
    return data


def read_tensors(path: Path, entry: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file by their names, on the CPU.

    Raises DamagedError where the file is not the one of its manifest's entry, where its tensors have other names,
    shapes or types, or where a number is not finite.
    """
    data = read_checked(path, entry)
    try:
        tensors = load(data)
        found = {name: describe(tensor) for name, tensor in tensors.items()}
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise DamagedError(path, f"is no safetensors file ({one_line(error, 100)})") from None
    if found != entry["tensors"]:
        names = [name for name in sorted({*found, *entry["tensors"]}) if found.get(name) != entry["tensors"].get(name)]
        raise DamagedError(
            path,
            f"{len(names)} tensors are not as its manifest says, the first is {one_line(names[0], 100)}",
        )
    broken = not_finite(tensors)
    if broken:
        raise DamagedError(path, f"{len(broken)} tensors are not finite, the first is {one_line(broken[0], 100)}")
    return tensors


def not_finite(tensors: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity."""
    return [name for name, tensor in tensors.items() if tensor.is_floating_point() and not _is_finite(tensor)]


def _is_finite(tensor: Tensor) -> bool:
    """By its extremes, which a NaN takes over: six times as fast as asking every value."""
    return tensor.numel() == 0 or all(bool(extreme.isfinite()) for extreme in torch.aminmax(tensor))
