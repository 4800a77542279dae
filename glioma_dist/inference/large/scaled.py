"""A picture that is read by rows, scaled to the size at which its network was trained, and its probabilities scaled
back, some rows at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from glioma_dist.errors import InputError, is_out_of_memory
from glioma_dist.evaluation.maps import by_rows
from glioma_dist.evaluation.network import Network, pixel_maps
from glioma_dist.inference.large.memory import resident_bytes
from glioma_dist.inference.large.picture import BLOCK_BYTES, LazyPicture
from glioma_dist.inference.large.scratch import RowFile
from glioma_dist.size import Size

GIB = 2**30


def segment_scaled(picture: LazyPicture, network: Network, input_size: Size, limit: int, folder: Path) -> RowFile:
    """Scale a picture that is read by rows, and return its maps, as `pixel_maps` gives them, in a file.

    Raises InputError where the picture itself does not fit into `limit` resident bytes, or the scaled one does not fit
    the device.
    """
    height, width = picture.shape[:2]
    needed = 2 * int(np.prod(picture.shape))
    if resident_bytes() + needed > limit:
        raise InputError(
            f"{width}x{height} pixels are to be scaled to {input_size}, for which {needed / GIB:.1f} GiB are needed; "
            f"this process holds {resident_bytes() / GIB:.1f} GiB and may take {limit / GIB:.1f}: give more --memory"
        )
    small = _small_maps(picture, network, input_size)
    num_channels = len(small)
    result = RowFile(folder, (height, *(num_channels,) * (num_channels > 1), width), np.float32)
    step = max(1, BLOCK_BYTES // (16 * width * num_channels))
    for start in range(0, height, step):
        stop = min(start + step, height)
        result[start:stop] = by_rows(torch.stack([scaled_rows(each, height, width, start, stop) for each in small]))
    return result


def _small_maps(picture: LazyPicture, network: Network, input_size: Size) -> torch.Tensor:
    """The maps of a picture at `input_size`, (C, h, w), on the host. Raises InputError where the memory is full."""
    height, width = picture.shape[:2]
    try:
        return pixel_maps(network, picture.rows(0, height), input_size, input_size)[0].cpu()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler, whose error would hold on to the tensors.
    if network.device.type == "cuda":
        torch.cuda.empty_cache()
    raise InputError(
        f"{width}x{height} pixels, scaled to {input_size}, do not fit the memory; give a smaller --input-size"
    )


def scaled_rows(small: torch.Tensor, height: int, width: int, start: int, stop: int) -> torch.Tensor:
    """Scale `small` (h, w) bilinearly to (height, width), and return rows `start` to before `stop`. Equals PyTorch's
    `interpolate` of the whole (align_corners=False)."""
    num_rows = small.shape[0]
    centres = ((torch.arange(start, stop, dtype=torch.float32) + 0.5) * (num_rows / height) - 0.5).clamp(min=0)
    above = centres.floor().long().clamp(max=num_rows - 1)
    below = (above + 1).clamp(max=num_rows - 1)
    first, last = int(above.min()), int(below.max()) + 1
    part = small[None, None, first:last]
    wide = functional.interpolate(part, size=(last - first, width), mode="bilinear", align_corners=False)[0, 0]
    share = (centres - above)[:, None]
    return wide[above - first] * (1 - share) + wide[below - first] * share
