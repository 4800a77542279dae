"""Up to which size of images every tensor that a GPU's kernels are given stays below 2^31 elements.

Decoder blocks go in tiles where their maps would be larger (`activation_checkpointing.py`), so the encoder sets the
bound, and the image itself. An encoder's layers go in tiles at the level full, and in prediction where they have to;
only those it says can. Of large images more of them do at the level offload.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glioma_dist.errors import InputError
from glioma_dist.model.encoders.contract import COARSEST_STRIDE, Encoder, build_encoder
from glioma_dist.scale import counted_steps
from glioma_dist.scale.large_images import LargeImages
from glioma_dist.scale.memory_estimator import make_fake
from glioma_dist.scale.step import IN_TILES, Level, Step, units_of
from glioma_dist.scale.tile_size import MAX_ELEMENTS, TileSize
from glioma_dist.size import Size

InTiles = Literal["no", "tileable layers", "whole layers"]
"""What of an encoder goes in tiles: nothing, what the level full takes, or also what offload takes of large images."""
IMAGE_CHANNELS = 3
PROBE_SIDES, NUM_PROBES = (512, 1024), 2
"""Sides of the square images at which maps are counted, and how many at once: norms over a batch want two."""
MOST_UNITS = 999_999 // COARSEST_STRIDE
"""Of a side that is advised: `Size.parse` reads six digits."""
SURE_PIXELS = MAX_ELEMENTS // 256
"""Images of so many pixels are within the bounds of every encoder of the package, whose widest maps have 64 elements a
pixel (vgg19); larger ones are counted."""
MAKES_NO_KERNEL = frozenset(
    (
        *("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"),
        *("detach", "alias", "lift_fresh", "_unsafe_view", "_reshape_alias", "set_", "promote_types"),
    )
)
"""Operations of aten that give memory or another view of it, or compute no tensor."""


class KernelCalls(TorchDispatchMode):
    """Looks at every operation that starts a kernel on a GPU, on fake tensors, too.

    look: takes the operation and all tensors that it reads and writes.
    """

    def __init__(self, look: Callable[[Any, list[Tensor]], None]) -> None:
        super().__init__()
        self._look = look

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if starts_kernel(func):
            self._look(func, [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, Tensor)])
        return result


def starts_kernel(operation: Any) -> bool:
    """Whether an operation computes or copies something, as opposed to views, allocations and questions."""
    namespace, name = operation._schema.name.split("::")
    returns = operation._schema.returns
    is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in returns)
    return namespace != "prim" and not is_view and name not in MAKES_NO_KERNEL


def kernel_pixels(step: Step, level: Level) -> float:
    """The most pixels, over all padded images or strips of one device, of which its kernels can take the maps."""
    if step.tile_size.max_elements is None:
        return math.inf
    in_tiles: InTiles = "no"
    if level in IN_TILES:
        in_tiles = "whole layers" if level == "offload" and step.has_large_images else "tileable layers"
    counted = counted_steps.find_kernel_pixels(step.model.encoder, in_tiles)
    return counted or largest_pixels_of_kernels(step.model.encoder, in_tiles)


def device_pixels(step: Step) -> int:
    """Pixels over all padded images or strips of the device that has most."""
    return step.batch_size * math.prod(units_of(step.size, step.spatial_parallel)) * COARSEST_STRIDE**2


def _largest_size(size: Size, pixels: float, num_strips: int) -> Size:
    """The largest size of about this shape of which no strip has more pixels; sides are multiples of the stride."""
    width, height = units_of(size, num_strips)
    most = int(pixels) // COARSEST_STRIDE**2
    share = min(1.0, math.sqrt(most / (width * height)))
    height = max(1, min(int(height * share), MOST_UNITS // num_strips))
    width = max(1, min(int(width * share), MOST_UNITS, most // height))
    height = max(1, min(height, most // width))
    return Size(width * COARSEST_STRIDE, height * COARSEST_STRIDE * num_strips)


def kernels_fit(step: Step, level: Level) -> bool:
    """Whether no kernel of the device is given a larger tensor than it can take (`kernel_limits.py`)."""
    if step.tile_size.max_elements is None or device_pixels(step) <= SURE_PIXELS:
        return True
    return device_pixels(step) <= kernel_pixels(step, level)


def check_kernels(step: Step, level: Level) -> None:
    """Raises InputError where a kernel would be given a tensor that is too large, with what fits."""
    if kernels_fit(step, level):
        return
    most, size = kernel_pixels(step, level), step.size
    images = int(most / (device_pixels(step) / step.batch_size))
    fitting_level = next((each for each in IN_TILES if kernels_fit(step, each)), None)
    if fitting_level is not None:
        fitting = f"--scale.activation-checkpointing {fitting_level}"
    elif images:
        fitting = f"--batch-size {images * step.num_micro_batches * step.num_devices // step.spatial_parallel}"
    else:
        fitting = f"at most --data.size {_largest_size(size, most / step.batch_size, step.spatial_parallel)}"
    raise InputError(
        f"{step.batch_size} image{'s' if step.batch_size > 1 else ''} of {size}: a GPU would get "
        f"{device_pixels(step) / 1e6:.1f} million pixels. With {step.model.encoder} and "
        f"--scale.activation-checkpointing {level} it can have {most / 1e6:.1f} million at most, because its kernels "
        f"take tensors of less than 2^31 numbers: give {fitting}"
    )


def forward_fits(encoder: str, size: Size, num_strips: int, tile_size: TileSize, in_tiles: bool) -> bool:
    """Whether the device's kernels can take the maps of one image where nothing is trained.

    Args:
        encoder: by name.
        size: of the image as the network is shown it.
        num_strips: devices that share it.
        tile_size: of the device.
        in_tiles: whether the encoder's tileable layers go in tiles.
    """
    limit = tile_size.max_elements
    if limit is None:
        return True
    pixels = math.prod(units_of(size, num_strips)) * COARSEST_STRIDE**2
    return pixels <= limit * SURE_PIXELS // MAX_ELEMENTS or pixels <= _of_prediction(encoder, in_tiles, limit)


def check_forward(
    encoder: str, size: Size, num_strips: int, tile_size: TileSize, in_tiles: bool, advice: str = "give --input-size"
) -> None:
    """Raises InputError where `forward_fits` says no, with the largest size that fits, before which `advice` stands."""
    if forward_fits(encoder, size, num_strips, tile_size, in_tiles):
        return
    limit = tile_size.max_elements or MAX_ELEMENTS
    most = _of_prediction(encoder, in_tiles, limit)
    raise InputError(
        f"an image of {size}: with {encoder} a GPU can have {most / 1e6:.1f} million pixels at most, because its "
        f"kernels take tensors of at most {limit} numbers: {advice} {_largest_size(size, most, num_strips)} at most"
    )


def _of_prediction(encoder: str, in_tiles: bool, limit: int) -> int:
    """As `largest_pixels_of_kernels`, which also holds for prediction: it computes a part of a step."""
    kind: InTiles = "tileable layers" if in_tiles else "no"
    known = counted_steps.find_kernel_pixels(encoder, kind) if limit == MAX_ELEMENTS else None
    return largest_pixels_of_kernels(encoder, kind, limit) if known is None else known


def largest_pixels_of_kernels(encoder: str, in_tiles: InTiles, limit: int = MAX_ELEMENTS) -> int:
    """The most pixels of the padded images on one GPU (batch * height * width) with which no kernel of a step is given
    a tensor of more than `limit` elements.

    encoder: by name. in_tiles: what of it goes in tiles.
    """
    counted = [_largest_tensor(encoder, in_tiles, side) for side in PROBE_SIDES]
    pixels = [NUM_PROBES * side**2 for side in PROBE_SIDES]
    # Straight for all that convolves and for fused attention; a matrix of attention grows with the square.
    power = max(1.0, math.log(counted[1] / counted[0]) / math.log(pixels[1] / pixels[0]))
    if power < 1.01:
        return pixels[1] * limit // counted[1]
    return int(pixels[1] * (limit / counted[1]) ** (1 / power))


@lru_cache
@torch.inference_mode(False)  # a prediction may ask
@torch.enable_grad()
def _largest_tensor(encoder_name: str, in_tiles: InTiles, side: int) -> int:
    """Elements of the largest tensor in one pass through the encoder and back, tiles aside."""
    largest = NUM_PROBES * IMAGE_CHANNELS * side**2

    def look(_: Any, tensors: Sequence[Tensor]) -> None:
        nonlocal largest
        largest = max(largest, *(each.numel() for each in tensors), 0)

    encoder, mode = deepcopy(_made_encoder(encoder_name)), FakeTensorMode()
    make_fake(encoder, mode)
    run_without_tiles(encoder, in_tiles)
    with mode, KernelCalls(look):
        images = torch.zeros(NUM_PROBES, IMAGE_CHANNELS, side, side)
        sum(each.sum() for each in encoder(images)).backward()
    return largest


def run_without_tiles(encoder: Encoder, in_tiles: InTiles) -> None:
    """Have what goes in tiles compute nothing: all tensors in it are small."""

    def clone(_: Any, maps: Sequence[Tensor], *_settings: Any, **_named: Any) -> Tensor:
        return maps[0].clone()

    for layer in encoder.tileable_layers() if in_tiles != "no" else ():
        layer.run_tiles = clone
    if in_tiles == "whole layers":
        encoder.large_images = LargeImages(pixels=0)
        for layer in encoder.sparing_layers():
            layer.run_tiles = clone


@lru_cache(maxsize=1)
def _made_encoder(name: str) -> Encoder:
    """An encoder without its weights, which take a second to draw."""
    with torch.random.fork_rng(devices=[]):
        return build_encoder(name).to("meta")
