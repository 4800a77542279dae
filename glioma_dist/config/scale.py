"""Settings that change time and memory only. None changes a result beyond rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from glioma_dist.errors import InputError, one_line
from glioma_dist.limits import check_timeout
from glioma_dist.registry import encoders

SPATIAL_PARALLEL_ENCODERS = tuple(name for name in encoders.names() if encoders.find(name).spatial_parallel)
"""Encoders that support spatial parallelism; tests/distributed/test_spatial_parallel.py proves it for each family."""

UNIT_ROWS = 32
"""Tiles are cut at multiples of it, the coarsest stride of the encoders, so that no layer's window starts elsewhere."""


MIN_TILE_ELEMENTS, MAX_TILE_ELEMENTS = 2**16, 2**28


def check_spatial_parallel(num_processes: int, encoder: str) -> None:
    """Raises InputError if an image cannot be split over `num_processes` processes."""
    if num_processes < 1:
        raise InputError(f"--scale.spatial-parallel {num_processes}: give 1 or more")
    if num_processes > 1 and encoder not in SPATIAL_PARALLEL_ENCODERS:
        proved = ", ".join(SPATIAL_PARALLEL_ENCODERS)
        raise InputError(f"--scale.spatial-parallel {num_processes}: not supported with {encoder}; use {proved}")


def check_tile_elements(value: int | str) -> None:
    """Raises InputError for a size of tiles that is none."""
    if value != "auto" and not (type(value) is int and MIN_TILE_ELEMENTS <= value <= MAX_TILE_ELEMENTS):
        raise InputError(
            f"--scale.tile-elements {one_line(value, 40)}: give auto, or {MIN_TILE_ELEMENTS} to {MAX_TILE_ELEMENTS}"
        )


def strip_edges(height: int, size: int) -> list[int]:
    """Return the `size` + 1 row numbers at which `size` strips of an image begin and end. Strips are as equal as
    multiples of UNIT_ROWS allow."""
    units = math.ceil(height / UNIT_ROWS)
    if units < size:
        raise InputError(
            f"an image of {height} rows makes at most {units} strips of {UNIT_ROWS}, and --scale.spatial-parallel "
            f"{size} asks for more: give --scale.spatial-parallel {units}, or larger images"
        )
    return [min(height, units * number // size * UNIT_ROWS) for number in range(size + 1)]


@dataclass(frozen=True)
class InferenceScaleConfig:
    """Time and memory of an image. These flags change no result beyond rounding."""

    spatial_parallel: int = 1
    """Number of processes that share each image, one strip of its rows each; it must divide the number of processes of
    the launch."""


@dataclass(frozen=True)
class ScaleConfig:
    """Time and memory of a step. These flags change no result beyond rounding."""

    activation_checkpointing: Literal["none", "selective", "full", "auto"] = "none"
    """Which activations are computed again in the backward pass instead of being kept. selective: the encoder's layers,
    except attention. full: attention too, and the decoder's blocks, with the largest feature maps in tiles. auto: the
    fastest level that fits this device's memory, as glioma-dist plan estimates it."""
    tile_elements: Literal["auto"] | int = "auto"
    """Numbers of the widest feature map in a tile of the level full. Larger tiles mean fewer launches on a GPU and more
    memory: 4194304 needs 1.6 GiB for mit_b3 at 2592x1952, 16777216 needs 1.7. auto: 4194304 on a CPU, and on a GPU by
    its memory bandwidth up to 16777216. The order of sums depends on it, so a run records it."""
    channels_last: Literal["auto", "on", "off"] = "auto"
    """Store feature maps in channels-last layout, which is the layout of tensor cores. auto: on a GPU that computes in
    bf16, fp16 or TF32, with batch norm in the decoder."""
    tf32: bool = False
    """Round fp32 numbers to TF32 (10 bits of mantissa) in matrix products and convolutions on a GPU. It has no effect
    on what is computed in bf16 or fp16."""
    cudnn_benchmark: bool = False
    """Let cuDNN time its convolutions on a GPU and take the quickest. Two equal runs may then take different ones."""
    compile: bool = False
    """Compile the encoder's layers with torch.compile. Needs a C++ compiler; the start takes minutes longer."""
    spatial_parallel: int = 1
    """Number of processes that share each image, one strip of its rows each; it must divide the number of processes of
    the launch."""
    timeout_s: float = 600.0
    """A process or worker that does not answer for this many seconds counts as lost."""

    def uses_channels_last(self, device_type: str, mixed_precision: str, norm: str) -> bool:
        """What `channels_last` comes down to on a device ("cpu", "cuda"), for the name of a precision ("no", "bf16",
        "fp16") and of the decoder's norm.

        cuDNN's tensor-core convolutions work on channels last and would transpose contiguous maps before and after;
        MiT's maps have that layout by themselves. fp32 without TF32 uses no tensor core. PyTorch's group norm takes
        contiguous maps only, and would be transposed to instead. On a CPU it was slower (docs/log.md).
        """
        if self.channels_last != "auto":
            return self.channels_last == "on"
        has_tensor_cores = mixed_precision in ("bf16", "fp16") or self.tf32
        return device_type == "cuda" and has_tensor_cores and norm == "batch"

    def validate(self, encoder: str) -> None:
        """Check the settings for `encoder`. Raises InputError."""
        check_spatial_parallel(self.spatial_parallel, encoder)
        check_tile_elements(self.tile_elements)
        check_timeout("--scale.timeout-s", self.timeout_s)
        if self.spatial_parallel > 1 and self.compile:
            raise InputError("--scale.spatial-parallel and --scale.compile cannot be combined; omit one of them")
