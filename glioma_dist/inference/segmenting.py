"""Probabilities of an image's pixels, of any size that the memory takes."""

from __future__ import annotations

import numpy as np
import torch

from glioma_dist.errors import InputError, MemoryFullError, is_out_of_memory
from glioma_dist.evaluation.protocol import Network, cell_probability
from glioma_dist.size import Size


def segment(image: np.ndarray, network: Network, input_size: Size | None) -> np.ndarray:
    """Probability of each pixel to belong to a cell: float32, (H, W).

    image: uint8, (H, W) or (H, W, 3), its contrast stretched. input_size: it is scaled to this size for the network;
    None: it goes in as it is.

    Raises InputError where the image does not fit the memory, MemoryFullError where other processes wait for this one.
    """
    height, width = image.shape[:2]
    try:
        return cell_probability(network, image, input_size, Size(width, height)).cpu().numpy()
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
