"""A picture that is read by rows, scaled to the size at which its network was trained, and its probabilities scaled
back, some rows at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from glioma_dist.errors import InputError
from glioma_dist.evaluation.protocol import Network, cell_probability
from glioma_dist.inference.large.memory import resident_bytes
from glioma_dist.inference.large.picture import BLOCK_BYTES, LazyPicture
from glioma_dist.inference.large.scratch import RowFile
from glioma_dist.size import Size

GIB = 2**30


def segment_scaled(picture: LazyPicture, network: Network, input_size: Size, limit: int, folder: Path) -> RowFile:
    """Scale a picture that is read by rows, and return its probabilities, as `cell_probability` does, in a file.

    Raises InputError where the picture itself does not fit into `limit` resident bytes.
    """
    height, width = picture.shape[:2]
    needed = 2 * int(np.prod(picture.shape))
    if resident_bytes() + needed > limit:
        raise InputError(
            f"{width}x{height} pixels are to be scaled to {input_size}, for which {needed / GIB:.1f} GiB are needed; "
            f"this process holds {resident_bytes() / GIB:.1f} GiB and may take {limit / GIB:.1f}: give more --memory"
        )
    small = cell_probability(network, picture.rows(0, height), input_size, input_size).cpu()
    result = RowFile(folder, (height, width), np.float32)
    step = max(1, BLOCK_BYTES // (16 * width))
    for start in range(0, height, step):
        stop = min(start + step, height)
        result[start:stop] = scaled_rows(small, height, width, start, stop).numpy()
    return result


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
