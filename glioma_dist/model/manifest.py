"""manifest.json of a checkpoint: its files with their sizes, SHA-256, and the tensors that each holds.

The manifest ties the files to one checkpoint: a file of another checkpoint, even of the same step, does not match.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glioma_dist.errors import InputError, one_line
from glioma_dist.files import MAX_JSON_BYTES, parse_json, read_bytes
from glioma_dist.model.tensor_files import DTYPES, DamagedError

MANIFEST = "manifest.json"
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
EMA = "ema.safetensors"
"""The exponential moving average of the weights; only in checkpoints of runs that keep one."""
FORMAT_VERSION = 3
"""2 has the manifest. Format 1, which had none, was never released."""
TENSOR_FILE = re.compile(r"(?:model|optimizer|ema)(?:-(\d{5})-of-(\d{5}))?\.safetensors")


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint's files have to be."""

    folder: Path
    files: dict[str, dict[str, Any]]
    """File name -> bytes, sha256 and, of a file of tensors, tensors: name -> dtype and shape."""
    identity: str
    """SHA-256 of the manifest itself, and so of all files of the checkpoint."""

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises DamagedError where there is none, or it is no manifest; InputError where its format is another."""
        path = folder / MANIFEST
        if path.exists() and not path.is_file():
            raise DamagedError(path, "is a folder, a pipe or a device, not a plain file")
        if not path.is_file():
            raise DamagedError(
                path,
                "is missing, so nothing says whether this checkpoint is complete",
                "restore it from a copy; a checkpoint without one, of an older version, cannot be used",
            )
        try:
            data = read_bytes(path, MAX_JSON_BYTES)
            content = parse_json(data, path)
        except InputError as error:
            raise DamagedError(path, str(error).removeprefix(f"{path}: ")) from None
        version = content.get("format_version") if isinstance(content, dict) else None
        if type(version) is int and version != FORMAT_VERSION:
            raise InputError(
                f"{path}: format {one_line(version, 20)}, this version reads {FORMAT_VERSION}; use the version of "
                "glioma-dist that wrote it"
            )
        fault = _fault(content)
        if fault:
            raise DamagedError(path, f"is no manifest ({fault})")
        return cls(folder, content["files"], hashlib.sha256(data).hexdigest())

    def parts(self, name: str) -> list[str]:
        """The files that hold `name` together, in the order of their rows; none where the checkpoint has none.

        Raises DamagedError where the manifest lists only some of them.
        """
        if name in self.files:
            return [name]
        stem = name.split(".")[0]
        found = sorted(file for file in self.files if file.startswith(f"{stem}-"))
        if found and found != [part_name(name, number, len(found)) for number in range(len(found))]:
            raise DamagedError(self.folder / MANIFEST, f"lists only some of the parts of {name}")
        return found

    def files_of_weights(self) -> list[str]:
        """Those of the network, and of the moving average of its weights. Raises as `parts`."""
        return [*self.parts(MODEL), *self.parts(EMA)]


def part_name(name: str, number: int, count: int) -> str:
    """Of part `number`, from 0, of `count`: model-00001-of-00002.safetensors."""
    stem, suffix = name.split(".")
    return name if count == 1 else f"{stem}-{number + 1:05d}-of-{count:05d}.{suffix}"


def _fault(content: Any) -> str | None:
    """What keeps `content` from being a manifest; None where it is one."""
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        return "no object with files"
    if type(content.get("format_version")) is not int:
        return "no format_version"
    files = content["files"]
    if STATE not in files or not any(name.startswith("model") for name in files):
        return f"it lists no {STATE} or no {MODEL}"
    for name, entry in files.items():
        if name != STATE and not TENSOR_FILE.fullmatch(name):
            return f"it lists {one_line(name, 60)!r}, which is no file of a checkpoint"
        if not _is_entry(entry, with_tensors=name != STATE):
            return f"what it says of {name} cannot be used"
    return None


def _is_entry(entry: Any, with_tensors: bool) -> bool:
    if not isinstance(entry, dict) or not _is_count(entry.get("bytes")):
        return False
    digest, tensors = entry.get("sha256"), entry.get("tensors")
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        return False
    if not with_tensors:
        return tensors is None
    return isinstance(tensors, dict) and all(map(_is_tensor, tensors.values()))


def _is_tensor(said: Any) -> bool:
    if not isinstance(said, dict) or said.keys() != {"dtype", "shape"} or said["dtype"] not in DTYPES.values():
        return False
    return isinstance(said["shape"], list) and all(map(_is_count, said["shape"]))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
