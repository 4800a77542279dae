"""The metadata of a Zarr array, of format 2 or 3, read by hand and with a bound: how large it and its chunks are, how
they are packed, and in which files they lie. No library reads an array before its metadata are checked here: they can
name codecs that run what a file holds, and sizes that fill the memory."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from glioma_dist.data.images.limits import COPY_AGAIN
from glioma_dist.errors import InputError, one_line
from glioma_dist.files import cannot_read, check_plain, read_json

MAX_METADATA_BYTES = 2**24
MAX_CHUNK_BYTES = 2**31
"""Of a chunk, or of a shard of chunks, unpacked."""
MAX_SIZE, MAX_AXES = 2**40, 8
CODECS_2 = ("blosc", "zstd", "zlib", "gzip", "bz2", "lz4", "lzma")
FILTERS_2 = ("delta", "shuffle", "bitround")
CODECS_3 = ("bytes", "transpose", "blosc", "gzip", "zstd", "crc32c")
SHARDING = "sharding_indexed"
DTYPE_2 = re.compile(r"[<>|][uif][1248]")
DTYPE_3 = re.compile(r"u?int(?:8|16|32|64)|float(?:16|32|64)")


@dataclass(frozen=True)
class ZarrArray:
    """An array as its metadata describe it. path: within `root`, with slashes; chunks: the size of what a file holds.

    prefix, separator: how the names of chunks are made.
    """

    root: Path
    path: str
    zarr_format: int
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype
    prefix: str
    separator: str

    @property
    def chunk_bytes(self) -> int:
        """Of one file's chunk, unpacked."""
        return math.prod(self.chunks) * self.dtype.itemsize

    def chunk_files(self, selection: tuple[slice, ...]) -> Iterator[Path]:
        """The files that hold a part of the array; a slice with start and stop for each axis."""
        grids = [
            range(part.start // size, math.ceil(part.stop / size))
            for part, size in zip(selection, self.chunks, strict=True)
        ]
        folder = self.root / self.path
        for numbers in product(*grids):
            yield folder / f"{self.prefix}{self.separator.join(map(str, numbers))}"

    def check_chunks(self, selection: tuple[slice, ...], where: str) -> tuple[int, int]:
        """How many of the files of a part are missing, and how many there should be.

        Raises InputError for one that leads out of the folder, is no plain file, or is larger than its chunk can be.
        """
        missing, files = 0, list(self.chunk_files(selection))
        # Packed, a chunk of noise is a little larger than unpacked.
        at_most = 2 * self.chunk_bytes + 2**20
        for path in files:
            name = path.relative_to(self.root)
            try:
                found = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                missing += 1
                continue
            except OSError as error:
                raise cannot_read(f"{where}: {name}", error) from None
            check_inside(self.root, str(name), where)
            check_plain(f"{where}: {name}", found)
            if found.st_size > at_most:
                raise InputError(
                    f"{where}: {name} has {found.st_size} bytes, and its chunk {self.chunk_bytes} unpacked: it is "
                    f"damaged; {COPY_AGAIN}"
                )
        return missing, len(files)


def read_attributes(root: Path, group: str, where: str) -> tuple[dict[str, Any], int]:
    """The attributes of a group, and the format of Zarr. Raises InputError where there is no group."""
    if _is_there(root, group, "zarr.json"):
        content = _read(root, group, "zarr.json", where)
        if content.get("node_type") != "group":
            raise InputError(f"{where}: a Zarr array without the metadata of OME-Zarr; save it as OME-Zarr")
        found, zarr_format = content.get("attributes", {}), 3
    elif _is_there(root, group, ".zgroup"):
        found, zarr_format = _read(root, group, ".zattrs", where) if _is_there(root, group, ".zattrs") else {}, 2
    elif _is_there(root, group, ".zarray"):
        raise InputError(f"{where}: a Zarr array without the metadata of OME-Zarr; save it as OME-Zarr")
    else:
        raise InputError(f"{where}: no Zarr group there (neither zarr.json nor .zgroup); is the copy complete?")
    if not isinstance(found, dict):
        raise InputError(f"{where}: damaged OME-Zarr: its attributes are no JSON object; {COPY_AGAIN}")
    found = found.get("ome", found) if zarr_format == 3 else found
    return (found if isinstance(found, dict) else {}), zarr_format


def read_array(root: Path, path: str, zarr_format: int, where: str) -> ZarrArray:
    """An array of a Zarr. Raises InputError where its metadata are missing, damaged, or of a kind that is not read."""
    try:
        if zarr_format == 3:
            return _array_3(root, path, _read(root, path, "zarr.json", where), where)
        return _array_2(root, path, _read(root, path, ".zarray", where), where)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{where}: damaged Zarr array {one_line(path, 60)} ({one_line(repr(error), 80)}); {COPY_AGAIN}"
        ) from None


def check_inside(root: Path, path: str, where: str) -> None:
    """Raises InputError for a path within a Zarr that leads out of it, by its parts or by a link."""
    parts = path.split("/")
    real = os.path.realpath(root)
    found = os.path.realpath(root / path) if "\0" not in path else ""
    if path.startswith("/") or ".." in parts or not f"{found}/".startswith(f"{real}/"):
        raise InputError(f"{where}: {one_line(path, 80)} leads out of the folder of the Zarr; copy the file into it")


def _is_there(root: Path, folder: str, name: str) -> bool:
    path = root / folder / name
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise cannot_read(path, error) from None


def _read(root: Path, folder: str, name: str, where: str) -> dict[str, Any]:
    path = f"{folder}/{name}" if folder else name
    check_inside(root, path, where)
    try:
        content = read_json(root / path, MAX_METADATA_BYTES)
    except InputError as error:
        raise type(error)(f"{where}: {path}{str(error).removeprefix(str(root / path))}") from None
    if not isinstance(content, dict):
        raise InputError(f"{where}: damaged Zarr: {path} is no JSON object; {COPY_AGAIN}")
    return content


def _array_2(root: Path, path: str, content: dict[str, Any], where: str) -> ZarrArray:
    for codec in (content.get("compressor"), *(content.get("filters") or ())):
        if codec is not None and codec["id"] not in (*CODECS_2, *FILTERS_2):
            raise _unknown_codec(codec["id"], where)
    dtype = content["dtype"]
    if not isinstance(dtype, str) or not DTYPE_2.fullmatch(dtype):
        raise _unknown_numbers(dtype, where)
    if content["zarr_format"] != 2 or content.get("order", "C") not in ("C", "F"):
        raise ValueError("its format or its order")
    separator = content.get("dimension_separator", ".")
    return _array(root, path, 2, content["shape"], content["chunks"], np.dtype(dtype), "", separator)


def _array_3(root: Path, path: str, content: dict[str, Any], where: str) -> ZarrArray:
    if content["zarr_format"] != 3 or content["node_type"] != "array" or content["chunk_grid"]["name"] != "regular":
        raise ValueError("its format, its node type or its grid of chunks")
    if content.get("storage_transformers"):
        raise ValueError("storage transformers, which are not read")
    _check_codecs(content["codecs"], where)
    if not isinstance(content["data_type"], str) or not DTYPE_3.fullmatch(content["data_type"]):
        raise _unknown_numbers(content["data_type"], where)
    encoding = content["chunk_key_encoding"]
    how = encoding.get("configuration") or {}
    names = {"default": ("c", "/"), "v2": ("", ".")}
    prefix, separator = names[encoding["name"]]
    separator = how.get("separator", separator)
    chunks = content["chunk_grid"]["configuration"]["chunk_shape"]
    dtype = np.dtype(content["data_type"])
    return _array(root, path, 3, content["shape"], chunks, dtype, prefix and prefix + separator, separator)


def _check_codecs(codecs: list[dict[str, Any]], where: str, is_inner: bool = False) -> None:
    for codec in codecs:
        if codec["name"] == SHARDING and not is_inner:
            how = codec["configuration"]
            _sizes(how["chunk_shape"])
            for inner in (how["codecs"], how.get("index_codecs", ())):
                _check_codecs(inner, where, is_inner=True)
        elif codec["name"] not in CODECS_3:
            raise _unknown_codec(codec["name"], where)


def _array(
    root: Path, path: str, zarr_format: int, shape: Any, chunks: Any, dtype: np.dtype, prefix: str, separator: str
) -> ZarrArray:
    found = ZarrArray(root, path, zarr_format, _sizes(shape), _sizes(chunks), dtype, prefix, separator)
    if len(found.shape) != len(found.chunks) or separator not in ("/", "."):
        raise ValueError("its chunks do not fit its shape")
    if found.chunk_bytes > MAX_CHUNK_BYTES:
        raise ValueError(f"chunks of {found.chunk_bytes} bytes, more than {MAX_CHUNK_BYTES}")
    return found


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > MAX_AXES:
        raise ValueError("its shape")
    if not all(type(value) is int and 0 < value < MAX_SIZE for value in values):
        raise ValueError("its shape")
    return tuple(values)


def _unknown_codec(name: object, where: str) -> InputError:
    return InputError(f"{where}: packed by {one_line(name, 40)}, which is not read; save it with blosc, zstd or gzip")


def _unknown_numbers(kind: object, where: str) -> InputError:
    return InputError(f"{where}: values of kind {one_line(kind, 40)} are not read; save it as 8 or 16 bit, or float")
