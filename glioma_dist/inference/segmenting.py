"""Probabilities of an image's pixels, of any size, in the memory that this process may take."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from glioma_dist.errors import InputError, MemoryFullError, is_out_of_memory
from glioma_dist.evaluation.maps import by_rows
from glioma_dist.evaluation.network import Network, pixel_maps
from glioma_dist.inference.large.memory import (
    device_bytes,
    hand_back_freed_memory,
    image_bytes,
    memory_limit,
    resident_bytes,
)
from glioma_dist.inference.large.picture import ArrayPicture, LazyPicture
from glioma_dist.inference.large.scaled import segment_scaled
from glioma_dist.inference.large.scratch import RowFile
from glioma_dist.inference.large.strips import all_strips_wait, can_be_split, compute_in_strips, num_strips_for
from glioma_dist.inference.large.tiles import compute_in_tiles, least_side
from glioma_dist.model.unet import unwrapped
from glioma_dist.scale.kernel_limits import forward_fits
from glioma_dist.size import Size

Way = Literal["whole", "strips", "tiles"]
GIB = 2**30
SURE_BYTES = 2048
"""A pixel: more than any encoder of the package takes. An image that fits with so many goes as a whole, uncounted."""
ATTENTION_PIXELS = {"cpu": 2**24, "cuda": 2**28}
"""Of the largest image that an encoder with attention computes exactly, as a whole or in strips: the operations of
attention grow with the square of its pixels. 4096x4096 takes mit_b0 minutes on two cores, 20000x20000 half a day."""
STRIP_PIXELS = 2**20
"""Of a strip, at most: enough for each operation to take far longer than its call."""
PROGRESS_SECONDS = 60.0
STRIP_SHARE, TILE_SHARE = 0.35, 0.8
"""Of the memory that is left: what one strip may take while it is computed, beside those that wait; what a tile may."""
FIRST_BYTES = 128 * 2**20
"""That a process takes for good on a CPU when it first computes an image: the code of kernels, buffers of threads."""
STRIP_BYTES = 8 * 2**20
"""That each strip under way holds beside its maps, a thread's small blocks: 64 strips of 32x2048 pixels took 0.5 GiB
with mit_b0."""
MOST_UNDER_WAY = 40
"""Strips, of a network that needs no more than neighbouring rows: 35 of 32 rows with resnet50 and vgg19."""
TILE_SIDES = {"attention": 2048, "other": 4096}
"""Of the largest tile: beyond, attention takes longer than all other layers, or nothing is won."""


class Segmentation(NamedTuple):
    """maps: the network's, float32: (H, W), the probability of each pixel to belong to a cell, or (H, C, W) where the
    network has several outputs (evaluation/maps.py). An array, or a `RowFile`, whose rows are sliced as an array's.
    way: how they were computed."""

    maps: np.ndarray | RowFile
    way: Way


def say_nothing(kind: str, text: str) -> None:
    """Print nothing: the default of `segment`."""


@dataclass(frozen=True)
class Plan:
    """How an image is computed. side: of a tile; num_strips: of strips; why: not as a whole, in words."""

    way: Way
    why: str
    bytes_a_pixel: float
    num_strips: int = 1
    side: int = 0


def segment(
    image: np.ndarray | LazyPicture,
    network: Network,
    input_size: Size | None,
    memory: int | None = None,
    folder: Path | None = None,
    say: Callable[[str, str], None] = say_nothing,
) -> Segmentation:
    """Compute what the network says of each pixel.

    As a whole where memory allows; in strips, which gives the same to rounding, where strips of the network are proved
    to be exact and attention is not too slow; else in tiles that overlap.

    Args:
        image: uint8, (H, W) or (H, W, 3), its contrast stretched; an array, or a picture that is read by rows.
        network: where it computes. Where several processes share an image, it goes as a whole, in strips over them.
        input_size: it is scaled to this size for the network; None: it goes in as it is.
        memory: resident bytes that this process may take; None: what is free.
        folder: for temporary files; None: the system's folder.
        say: is told, before an image is computed in strips or tiles, the way and a line that says why; and once a
            minute "progress" and a line.

    Raises InputError where even tiles do not fit the memory, MemoryFullError where other processes wait for this one.
    """
    picture = ArrayPicture(image) if isinstance(image, np.ndarray) else image
    if network.spatial_group.size > 1:
        return Segmentation(_whole(_pixels(picture), network, input_size), "whole")
    folder = folder or Path(tempfile.gettempdir())
    limit = memory_limit(memory)
    if input_size is not None:
        if isinstance(image, np.ndarray):
            return Segmentation(_whole(image, network, input_size), "whole")
        return Segmentation(segment_scaled(picture, network, input_size, limit, folder), "whole")
    plan = choose(picture, network, limit)
    if plan.way == "whole":
        try:
            return Segmentation(_whole(_pixels(picture), network, None), "whole")
        except InputError:  # the memory is full, although there was room
            plan = choose(picture, network, limit, whole=False)
    return segment_by_parts(picture, network, plan, limit, folder, say)


def choose(picture: LazyPicture, network: Network, limit: int, whole: bool = True) -> Plan:
    """Choose how to compute a picture within `limit` bytes of memory. whole: whether it may be computed as a whole.

    Raises InputError where no way fits.
    """
    height, width = picture.shape[:2]
    pixels = height * width
    budget = device_bytes(network, limit)
    kernels = forward_fits(network.encoder, Size(width, height), 1, network.tile_size, len(network.tileable_layers) > 0)
    attends = len(unwrapped(network.model).encoder.attention_layers()) > 0
    is_quick = not attends or pixels <= ATTENTION_PIXELS.get(network.device.type, 2**28)
    may_be_whole, whole = whole, whole and kernels and is_quick
    if whole and pixels * SURE_BYTES <= budget:
        return Plan("whole", "", 0.0)
    _forget_earlier_images(network)
    budget = device_bytes(network, limit)
    needed = image_bytes(network, height, width)
    bytes_a_pixel = needed / pixels
    of_maps = 4 * pixels * network.outputs.num_outputs
    of_picture = 0 if isinstance(picture, ArrayPicture) else pixels * len(picture.shape)
    if whole and needed + of_maps + of_picture <= budget:
        return Plan("whole", "", bytes_a_pixel)
    why = _too_much(network, needed + of_maps + of_picture, budget, limit)
    if not may_be_whole:
        why = "as a whole it did not fit the memory"
    elif not kernels:
        why = "as a whole it has more pixels than the GPU's kernels take"
    elif not is_quick:
        why = "as a whole attention would take too long"
    if network.device.type == "cpu":
        budget -= FIRST_BYTES
    in_strips = None
    if can_be_split(network) and is_quick:
        in_strips = image_bytes(network, height, width, in_strips=True) / pixels
        if num_strips := _num_strips(network, height, width, in_strips, budget):
            return Plan("strips", why, in_strips, num_strips=num_strips)
    side = TILE_SIDES["attention" if attends else "other"]
    num_channels = network.outputs.num_outputs
    a_row = (6 * len(picture.shape) + 12 * (num_channels - 1)) * width  # of the band of tiles: pixels, maps, copies
    while side >= least_side() and bytes_a_pixel * side**2 + a_row * side > TILE_SHARE * budget:
        side -= 32
    if side < least_side():
        most = min(needed + of_maps, (bytes_a_pixel * least_side() ** 2 + a_row * least_side()) / TILE_SHARE)
        # Short: a table and a line of failures show 120 characters of it.
        if network.device.type != "cpu":
            raise InputError(
                f"{width}x{height} pixels do not fit the GPU: {most / GIB:.1f} GiB must be free, {budget / GIB:.1f} "
                "are; end other programs, or give a smaller --input-size"
            )
        if in_strips is not None:
            budgets = range(0, int(most), 2**25)
            most = next((each for each in budgets if _num_strips(network, height, width, in_strips, each)), most)
        raise InputError(
            f"{width}x{height} pixels do not fit the memory: give --memory "
            f"{(resident_bytes() + FIRST_BYTES + most) / GIB + 0.1:.1f}GiB or more, or a smaller --input-size"
        )
    return Plan("tiles", why, bytes_a_pixel, side=side)


def _num_strips(network: Network, height: int, width: int, bytes_a_pixel: float, budget: int) -> int:
    """Into how many strips an image goes within `budget` bytes; 0: it does not."""
    pixels = min(STRIP_PIXELS, int(budget * STRIP_SHARE / bytes_a_pixel))
    if pixels < 32 * width or height <= 64:
        return 0
    number = max(2, num_strips_for(height, width, pixels))
    under_way = number if all_strips_wait(network) else min(number, MOST_UNDER_WAY)
    of_threads = under_way * STRIP_BYTES if network.device.type == "cpu" else 0  # a GPU's memory has none of them
    return number if of_threads <= (1 - STRIP_SHARE) * budget else 0


def _too_much(network: Network, needed: int, budget: int, limit: int) -> str:
    """Say what an image takes as a whole, and what there is on the device."""
    if network.device.type != "cpu":
        return f"as a whole it takes about {needed / GIB:.1f} GiB, and {budget / GIB:.1f} of the GPU are free for it"
    return (
        f"as a whole it takes about {needed / GIB:.1f} GiB beside the {resident_bytes() / GIB:.1f} that this process "
        f"holds, and {limit / GIB:.1f} may be used (--memory)"
    )


def _forget_earlier_images(network: Network) -> None:
    """Give back what is kept of memory that is free, and would count as held."""
    if network.device.type == "cpu":
        hand_back_freed_memory()
    elif network.device.type == "cuda":
        torch.cuda.empty_cache()


def segment_by_parts(
    picture: LazyPicture,
    network: Network,
    plan: Plan,
    limit: int,
    folder: Path,
    say: Callable[[str, str], None] = say_nothing,
) -> Segmentation:
    """Compute a picture in strips or tiles, as `choose` has planned. Raises InputError if it does not fit the memory
    after all."""
    height, width = picture.shape[:2]
    hand_back_freed_memory()
    num_channels = network.outputs.num_outputs
    shape = (height, *(num_channels,) * (num_channels > 1), width)
    fits = 4 * height * width * num_channels < 0.25 * (limit - resident_bytes())
    into = np.empty(shape, np.float32) if fits else RowFile(folder, shape, np.float32)
    told = time.monotonic()

    def write(first: int, rows: np.ndarray) -> None:
        nonlocal told
        into[first : first + len(rows)] = rows
        if time.monotonic() - told > PROGRESS_SECONDS:
            told = time.monotonic()
            say("progress", f"{100 * (first + len(rows)) / height:.0f} % of {width}x{height} pixels")

    say(plan.way, _reason(picture, plan))
    try:
        if plan.way == "strips":
            a_strip = plan.bytes_a_pixel * width * -(-height // plan.num_strips)
            compute_in_strips(network, picture, plan.num_strips, _is_full(network, limit, a_strip), folder, write)
        else:
            compute_in_tiles(network, picture, plan.side, write)
        return Segmentation(into, plan.way)
    except (RuntimeError, MemoryError) as error:
        if isinstance(into, RowFile):
            into.close()
        if not is_out_of_memory(error):
            raise
    if network.device.type != "cpu":  # of which --memory says nothing
        raise InputError(
            f"{width}x{height} pixels do not fit the GPU in {plan.way}: end other programs on it, or give a smaller "
            "--input-size"
        )
    raise InputError(
        f"{width}x{height} pixels do not fit the memory in {plan.way}: give a smaller --memory than "
        f"{limit / GIB:.1f}GiB, so that they are smaller"
    )


def _reason(picture: LazyPicture, plan: Plan) -> str:
    """Which way an image goes, and why."""
    height, width = picture.shape[:2]
    how = f"in {plan.num_strips} strips, which gives the same"
    if plan.way == "tiles":
        how = "in tiles that overlap, which gives nearly the same"
    return f"{width}x{height} pixels {how}: {plan.why}"


def _is_full(network: Network, limit: int, a_strip: float) -> Callable[[], bool]:
    """Whether another strip that takes `a_strip` bytes would be too much."""
    if network.device.type == "cpu":
        return lambda: resident_bytes() + a_strip > limit

    def is_full() -> bool:
        free, _ = torch.cuda.mem_get_info(network.device)
        kept = torch.cuda.memory_reserved(network.device) - torch.cuda.memory_allocated(network.device)
        return free + kept < 1.5 * a_strip

    return is_full


def _pixels(picture: LazyPicture) -> np.ndarray:
    return picture.rows(0, picture.shape[0])


def _whole(image: np.ndarray, network: Network, input_size: Size | None) -> np.ndarray:
    """Raises InputError where the image does not fit the memory, MemoryFullError where other processes wait."""
    height, width = image.shape[:2]
    try:
        return by_rows(pixel_maps(network, image, input_size, Size(width, height))[0])
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        what = f"{width}x{height} pixels do not fit the memory; give a smaller --input-size, or cut it into fields"
        if network.spatial_group.size > 1:
            raise MemoryFullError(f"an image of {what}") from error
    # Outside the handler, whose error would hold on to the tensors.
    if network.device.type == "cuda":
        torch.cuda.empty_cache()
    raise InputError(what)
