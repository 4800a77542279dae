"""Files of tensors (safetensors): written with their checksum, and checked in full when they are read.

They are written here and not by the library's `save_file`, which copies every tensor, gives the file mode 0600 whatever
the umask is, hides the system's error number, and leaves the checksum to a second reading of the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from itertools import chain
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
"""The format's names of the types that a network or an optimizer may hold, in the order of their tensors in a file."""
ALIGNMENT = 8
"""Bytes that the header's length is a multiple of, as the format asks."""


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
    header, described, offset = {}, {}, 0
    # As the library does it: the widest types first, so that every tensor begins at a multiple of its own width.
    kinds = list(DTYPES)
    ordered = sorted(tensors.items(), key=lambda item: (kinds.index(item[1].dtype), item[0]))
    for name, tensor in ordered:
        end = offset + tensor.numel() * tensor.element_size()
        described[name] = describe(tensor)
        header[name] = described[name] | {"data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    digest, num_bytes = hashlib.sha256(), 0
    start = [len(text).to_bytes(8, "little"), text]
    try:
        with open(path, "wb") as file:
            for block in chain(start, (tensor.reshape(-1).view(torch.uint8).numpy() for _, tensor in ordered)):
                file.write(block)
                digest.update(block)
                num_bytes += len(block)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error
    return {"bytes": num_bytes, "sha256": digest.hexdigest(), "tensors": described}


def describe(tensor: Tensor) -> dict[str, Any]:
    """Its dtype, by the format's name, and its shape."""
    return {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape)}


def read_checked(path: Path, entry: dict[str, Any]) -> bytes:
    """The bytes of a file, in one reading. Raises DamagedError where they are not those of its manifest's entry."""
    try:
        size = os.stat(path).st_size
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
