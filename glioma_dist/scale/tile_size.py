"""The size of tiles on each device, and the largest tensor that a GPU's kernels can take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

CPU_ELEMENTS = 2**22
"""Elements of a tile on a CPU, where starting an operation costs little: few compared with a map of a whole image."""
LEAST_GPU_ELEMENTS, MOST_GPU_ELEMENTS = 2**22, 2**24
"""Smallest and largest tile that is chosen on a GPU. A step of mit_b3 on an image of 2592x1952 takes less than 1.6 GiB
with the smallest, and less than 1.8 with the largest (counted, docs/memory.md)."""
LAUNCH_S = 40e-6
"""Seconds from one launch to the next on the CPU that drives a GPU: Python, dispatch, autograd, the launch itself.
Measured beside an H100 (docs/log.md): 37 µs in a plain step of mit_b3 at 2592x1952, 41 in one in tiles of 2^24; a bare
`add_` takes 10."""
LAUNCHES_PER_TILE = 27
BYTES_PER_ELEMENT = 57
"""Forward and backward pass of a tile of a Mix-FFN in bf16: number of operations that start a kernel, and bytes that
they read and write per element of the widest map. Counted by `tests/unit/test_tile_size.py`."""
DEFAULT_BANDWIDTH = 2.0e12
"""Bytes per second of a device that does not report its bandwidth: that of an A100 (NVIDIA A100 80GB data sheet)."""
MAX_ELEMENTS = 2**31 - 2
"""Largest number of elements of a tensor for a CUDA kernel. Many use 32-bit indices. In PyTorch's
UpSampleBilinear2d.cu the channels_last kernel accepts fewer than INT_MAX, and the backward kernel multiplies batch,
channels, height and width in an int before it widens the product."""


@dataclass(frozen=True)
class TileSize:
    """Limits on the elements of a tile and of a kernel's tensors. They change the order of sums, so a run records
    them."""

    elements: int = CPU_ELEMENTS
    """Largest number of elements of the widest map inside a tile (a tile has at least one row)."""
    max_elements: int | None = None
    """A map with more elements is computed in tiles at every level; None: no such limit (a CPU)."""

    @property
    def widened(self) -> int:
        """Elements of a tile that is computed in fp32 whatever the type of its map, as in norms: half, because it takes
        twice the bytes. Tiles of a CPU are small, so they are not halved."""
        return min(self.elements, max(CPU_ELEMENTS, self.elements // 2))

    def computed(self, tiles: Sequence[Any]) -> Iterable[Any]:
        """The tiles of a map that are computed, in their order: all of them, unless a step is only counted."""
        return tiles

    def too_large(self, *elements: int) -> bool:
        """Whether a tensor of so many elements (the product of the arguments) is too large for a kernel."""
        return self.max_elements is not None and math.prod(elements) > self.max_elements


def tile_size(setting: int | Literal["auto"], device: torch.device | str) -> TileSize:
    """Resolve `--scale.tile-elements` for a device.

    auto: on a CPU 2^22; on a GPU `roofline_elements` of its memory's bandwidth.
    """
    device = torch.device(device)
    limit = None if device.type == "cpu" else MAX_ELEMENTS
    if setting != "auto":
        return TileSize(setting, limit)
    return TileSize(CPU_ELEMENTS if limit is None else roofline_elements(bandwidth(device)), limit)


CPU_TILE = TileSize()


def largest_gpu_tile() -> TileSize:
    """The largest tile that auto chooses on any GPU: for estimates without a GPU."""
    return TileSize(MOST_GPU_ELEMENTS, MAX_ELEMENTS)


@lru_cache
def default_tile_size(device: torch.device) -> TileSize:
    """The size of tiles for a model without a setting."""
    return tile_size("auto", device)


def roofline_elements(bytes_per_second: float) -> int:
    """Elements at which the work of a tile takes a GPU as long as its launches take the CPU.

    Work in tiles is bound by memory (Williams et al. 2009, doi 10.1145/1498765.1498785): convolutions of 16 to 256
    channels, norms, activations. With n elements a tile takes the GPU n * BYTES_PER_ELEMENT / bytes_per_second, and the
    CPU LAUNCHES_PER_TILE * LAUNCH_S. With smaller tiles the GPU waits for launches; larger ones only take memory. So

        n = LAUNCHES_PER_TILE * LAUNCH_S * bytes_per_second / BYTES_PER_ELEMENT,

    to the nearest power of two, within LEAST_GPU_ELEMENTS and MOST_GPU_ELEMENTS: 2^24 on GPUs from 0.63 TB/s on, so
    on an H100, an A100 and an RTX A6000; 2^23 on a T4 (0.32 TB/s).
    """
    elements = LAUNCHES_PER_TILE * LAUNCH_S * bytes_per_second / BYTES_PER_ELEMENT
    power = 2 ** round(math.log2(elements))
    return min(max(power, LEAST_GPU_ELEMENTS), MOST_GPU_ELEMENTS)


def bandwidth(device: torch.device) -> float:
    """Bytes a second of a GPU's memory: two transfers a clock on each line of its bus."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return DEFAULT_BANDWIDTH
    properties = torch.cuda.get_device_properties(device)
    clock_khz = getattr(properties, "memory_clock_rate", 0)
    bus_bits = getattr(properties, "memory_bus_width", 0)
    return 2 * clock_khz * 1000 * bus_bits / 8 or DEFAULT_BANDWIDTH


def dense(part: Tensor, whole: Tensor, size: TileSize) -> Tensor:
    """Return `part`, some rows of `whole`; a copy if `whole` is too large for a kernel, because the elements of a view
    lie further apart than 32-bit indices reach."""
    return part.contiguous(memory_format=layout(part)) if size.too_large(whole.numel()) else part


def layout(part: Tensor) -> torch.memory_format:
    """The memory layout of a map (B, C, H, W)."""
    return torch.channels_last if part.stride(1) == 1 and part.shape[1] > 1 else torch.contiguous_format
