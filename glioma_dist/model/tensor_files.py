"""Files of tensors (safetensors): written with their checksum, and checked in full when they are read."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
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
"""The format's names of the types that a network or an optimizer may hold."""


class DamagedError(InputError):
    """A file of a checkpoint is not what was written."""

    def __init__(self, path: Path, fault: str, advice: str = "restore it from a copy, or take another checkpoint"):
        super().__init__(f"{path}: {fault}; {advice}")
        self.path, self.fault, self.advice = path, fault, advice

    def __reduce__(self) -> tuple:  # processes tell each other of it
        return type(self), (self.path, self.fault, self.advice)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Write contiguous CPU tensors as a safetensors file, and have the system bring it to the disk.

    Returns the file's entry in a manifest: bytes, sha256, and each tensor's dtype and shape. Raises InputError where
    the disk is full, or the file cannot be written for another reason.
    """
    # Not by the library's `save_file`, which gives the file mode 0600 whatever the umask is, and hides the system's
    # error number.
    data = save(tensors)
    try:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error
    described = {name: describe(tensor) for name, tensor in tensors.items()}
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "tensors": described}


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
