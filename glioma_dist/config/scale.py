"""Settings that change time and memory only. None changes a result beyond rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from glioma_dist.config.byte_size import parse_bytes
from glioma_dist.errors import InputError, one_line
from glioma_dist.limits import check_timeout
from glioma_dist.registry import encoders

SPATIAL_LAYERS_ENCODERS = tuple(name for name in encoders.names() if encoders.find(name).has_spatial_layers)
"""Encoders that strips of large images can be computed with, layer by layer. Spatial parallelism splits all of them."""

UNIT_ROWS = 32
"""Tiles are cut at multiples of it, the coarsest stride of the encoders, so that no layer's window starts elsewhere."""


MIN_TILE_ELEMENTS, MAX_TILE_ELEMENTS = 2**16, 2**28


def check_spatial_parallel(num_processes: int) -> None:
    """Raises InputError if an image cannot be split over `num_processes` processes."""
    if num_processes < 1:
        raise InputError(f"--scale.spatial-parallel {num_processes}: give 1 or more")


def check_tile_elements(value: int | str) -> None:
    """Raises InputError if `value` is no size of tiles."""
    if value != "auto" and not (type(value) is int and MIN_TILE_ELEMENTS <= value <= MAX_TILE_ELEMENTS):
        raise InputError(
            f"--scale.tile-elements {one_line(value, 40)}: give auto, or {MIN_TILE_ELEMENTS} to {MAX_TILE_ELEMENTS}"
        )


def check_gradient_accumulation(flag: str, num_micro_batches: int, batch_size: int, norm: str) -> None:
    """Raises InputError if a batch cannot be computed in so many micro-batches. norm: the decoder's."""
    if not 1 <= num_micro_batches <= batch_size:
        raise InputError(f"{flag} {num_micro_batches}: give 1 to --batch-size, {batch_size}")
    if num_micro_batches > 1 and norm == "batch":
        raise InputError(
            f"{flag} {num_micro_batches}: batch norm takes its statistics over the whole batch, so micro-batches would "
            "change the result; give --model.norm group and an encoder without batch norm, such as mit_b0"
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

    activation_checkpointing: Literal["none", "selective", "full", "offload", "auto"] = "none"
    """Which activations are computed again in the backward pass instead of being kept. selective: the encoder's layers,
    except attention. full: attention too, and the decoder's blocks, with the largest feature maps in tiles. offload:
    as full, and what full keeps on the GPU is kept in the computer's main memory (host memory); of images of 67 million
    pixels and more less is kept, and more computed again. auto: the first of none, selective and full that fits the
    free memory, as glioma-dist plan estimates it; on a GPU then offload, if the host has enough memory."""
    memory_budget: str | None = None
    """Most memory that a step may take on each device, weights and optimizer included: 8GiB, 900MiB or 8GB, for
    example. Which activations to keep is then chosen for each part of the network, so that as little as possible is
    computed again. Cannot be combined with selective, full or offload of --scale.activation-checkpointing. By default:
    no budget; the level decides."""
    tile_elements: Literal["auto"] | int = "auto"
    """Size of a tile, in elements of the widest feature map inside it. Tiles are used with the levels full and offload
    of --scale.activation-checkpointing, and where --scale.memory-budget chooses them. Larger tiles need fewer kernel
    launches and more memory: with the level full, a step of mit_b3 at 2592x1952 takes 1.57 GiB with 4194304 and 1.64
    GiB with 16777216 (counted, bf16). auto: 4194304 on a CPU; 4194304 to 16777216 on a GPU, depending on its memory
    bandwidth. The size changes the order of sums, so run.json records it."""
    channels_last: Literal["auto", "on", "off"] = "auto"
    """Store feature maps in channels-last layout, which tensor cores use. auto: on for a GPU that computes in bf16,
    fp16 or TF32 with --model.norm batch, off otherwise."""
    tf32: bool = False
    """On a GPU, round the fp32 inputs of matrix products and convolutions to TF32 (10 bits of mantissa). No effect with
    bf16 and fp16."""
    cudnn_benchmark: bool = False
    """On a GPU, let cuDNN time its convolution algorithms and use the fastest. Two equal runs may then use different
    ones. Cannot be combined with --deterministic."""
    compile: bool = False
    """Compile the encoder's layers with torch.compile. Needs a C++ compiler; the start takes minutes longer."""
    spatial_parallel: int = 1
    """Number of processes that share each image, one strip of its rows each; it must divide the number of processes of
    the launch."""
    gradient_accumulation: int = 1
    """Number of micro-batches in which a process computes its images of a batch, one after another; their gradients are
    added before the optimizer's step. A step needs the memory of one micro-batch. Needs a network without batch norm:
    --model.norm group and an encoder such as mit_b0."""
    optimizer_in_backward: bool = False
    """Change each weight as soon as its gradient is complete, and free the gradient, so that the gradients of all
    weights are never held together. For one process, without --clip-norm, gradient accumulation, fp16 and
    --reproducible. If a loss is not finite, the run ends before any weight changes; if only a gradient is not finite,
    it ends after some have changed, and this step is not saved."""
    timeout_s: float = 600.0
    """A process or worker that does not answer for this many seconds counts as lost."""

    def uses_channels_last(self, device_type: str, mixed_precision: str, norm: str) -> bool:
        """Resolve `channels_last` for a device ("cpu", "cuda"), a precision ("no", "bf16", "fp16") and the decoder's
        norm ("batch", "group").

        cuDNN's tensor-core convolutions work in channels last and would transpose contiguous maps before and after;
        the feature maps of MiT have that layout anyway. fp32 without TF32 uses no tensor core. PyTorch's group norm
        takes contiguous maps only, so each would be transposed there. On a CPU channels last is slower (docs/log.md).
        """
        if self.channels_last != "auto":
            return self.channels_last == "on"
        has_tensor_cores = mixed_precision in ("bf16", "fp16") or self.tf32
        return device_type == "cuda" and has_tensor_cores and norm == "batch"

    def check_optimizer_in_backward(self, clip_norm: float | None, is_reproducible: bool) -> None:
        """Raises InputError for settings that need all gradients before a weight moves."""
        refused = (
            (f"--clip-norm {clip_norm}", clip_norm is not None, "it needs the gradients of all weights together"),
            (
                f"--scale.gradient-accumulation {self.gradient_accumulation}",
                self.gradient_accumulation > 1,
                "a gradient is complete only after the last micro-batch",
            ),
            ("--reproducible", is_reproducible, "it adds the gradients of all images before any weight changes"),
            (f"--scale.spatial-parallel {self.spatial_parallel}", self.spatial_parallel > 1, "it is for one process"),
        )
        for flag, is_given, why in refused if self.optimizer_in_backward else ():
            if is_given:
                raise InputError(
                    f"--scale.optimizer-in-backward and {flag} cannot be combined: {why}; omit one of them"
                )

    @property
    def budget_bytes(self) -> int | None:
        """The bytes of `memory_budget`. Raises InputError."""
        if self.memory_budget is None:
            return None
        return parse_bytes("--scale.memory-budget", self.memory_budget, "8GiB")

    def validate(self) -> None:
        """Check the settings. Raises InputError."""
        if self.budget_bytes is not None and self.activation_checkpointing not in ("none", "auto"):
            raise InputError(
                f"--scale.memory-budget {one_line(self.memory_budget, 40)} chooses what is computed again, and so does "
                f"--scale.activation-checkpointing {self.activation_checkpointing}: omit one of them"
            )
        check_spatial_parallel(self.spatial_parallel)
        check_tile_elements(self.tile_elements)
        check_timeout("--scale.timeout-s", self.timeout_s)
        if self.spatial_parallel > 1 and self.compile:
            raise InputError("--scale.spatial-parallel and --scale.compile cannot be combined; omit one of them")
