"""How large a tile is on which device, and how large a tensor a GPU's kernels can take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

CPU_ELEMENTS = 2**22
"""Of a tile on a CPU, where a launch costs nothing: small beside an image of several million pixels."""
LEAST_GPU_ELEMENTS, MOST_GPU_ELEMENTS = 2**22, 2**24
"""Between them a GPU's tile is chosen. With the larger one a step of mit_b3 on an image of 2592x1952 stays under 1.8
GiB, with the smaller one under 1.6 (docs/memory.md)."""
LAUNCH_S = 10e-6
"""Seconds from one PyTorch operation to the next on the CPU that drives a GPU: Python, dispatch, autograd, the launch.
An assumption, within the 5 to 25 µs an operation of "From PyTorch op to kernel launch" (J. Huang, jiahuanglin.xyz, GPU
kernels, lesson 18). It has not been measured here on a GPU yet."""
LAUNCHES_PER_TILE = 27
BYTES_PER_ELEMENT = 57
"""Of a tile of a Mix-FFN in bf16, forwards and backwards: operations that start a kernel, and bytes that they read and
write for each element of the widest map. Counted by `tests/unit/test_tile_size.py`."""
DEFAULT_BANDWIDTH = 2.0e12
"""Bytes a second where a device does not say: an A100's (NVIDIA A100 80GB data sheet)."""
MAX_ELEMENTS = 2**31 - 2
"""Of a tensor that a CUDA kernel is given. Many number elements in 32 bits. In PyTorch's UpSampleBilinear2d.cu the
channels_last kernel asks for fewer than INT_MAX, and the backward one multiplies batch, channels, height and width in
an int before it widens the product."""


@dataclass(frozen=True)
class TileSize:
    """Bounds on what a tile and a kernel work on. They change the order of sums, so a run records them."""

    elements: int = CPU_ELEMENTS
    """Elements of the widest map inside a tile, at most (a row at least)."""
    max_elements: int | None = None
    """Elements of a map, beyond which it goes in tiles at every level; None: no such bound (a CPU)."""

    @property
    def widened(self) -> int:
        """Elements of a tile that is computed in fp32 whatever the type of its map, as norms are: half, because it
        takes twice the bytes. A CPU's tiles are so small that there it does not matter."""
        return min(self.elements, max(CPU_ELEMENTS, self.elements // 2))

    def too_large(self, *elements: int) -> bool:
        """Whether a kernel cannot take a tensor of so many elements (the product of the numbers)."""
        return self.max_elements is not None and math.prod(elements) > self.max_elements


def tile_size(setting: int | Literal["auto"], device: torch.device | str) -> TileSize:
    """What `--scale.tile-elements` comes down to on a device.

    auto: on a CPU 2^22; on a GPU `roofline_elements` of its memory's bandwidth.
    """
    device = torch.device(device)
    limit = None if device.type == "cpu" else MAX_ELEMENTS
    if setting != "auto":
        return TileSize(setting, limit)
    return TileSize(CPU_ELEMENTS if limit is None else roofline_elements(bandwidth(device)), limit)


CPU_TILE = TileSize()


def largest_gpu_tile() -> TileSize:
    """What auto comes down to on no GPU more than: for estimates without one."""
    return TileSize(MOST_GPU_ELEMENTS, MAX_ELEMENTS)


@lru_cache
def default_tile_size(device: torch.device) -> TileSize:
    """Of a model to which no setting was given."""
    return tile_size("auto", device)


def roofline_elements(bytes_per_second: float) -> int:
    """Elements at which the work of a tile takes a GPU as long as its launches take the CPU.

    Work in tiles is bound by memory (Williams et al. 2009, doi 10.1145/1498765.1498785): convolutions of 16 to 256
    channels, norms, activations. With n elements a tile takes the GPU n * BYTES_PER_ELEMENT / bytes_per_second, and the
    CPU LAUNCHES_PER_TILE * LAUNCH_S. Smaller tiles let the GPU wait, larger ones only take memory. So

        n = LAUNCHES_PER_TILE * LAUNCH_S * bytes_per_second / BYTES_PER_ELEMENT,

    to the nearest power of two, within LEAST_GPU_ELEMENTS and MOST_GPU_ELEMENTS: 2^24 on an H100 SXM (3.35 TB/s), 2^23
    on an A100, 2^22 on an RTX A6000 (0.77 TB/s).
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
    """`part`, some rows of `whole`. Those of a map that is too large for a kernel are copied: in a view, elements lie
    further apart than many kernels can count."""
    return part.contiguous(memory_format=layout(part)) if size.too_large(whole.numel()) else part


def layout(part: Tensor) -> torch.memory_format:
    """In which a map (B, C, H, W) lies in memory."""
    return torch.channels_last if part.stride(1) == 1 and part.shape[1] > 1 else torch.contiguous_format
