"""Images read for a prediction."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from glioma_dist.config.paths import Url
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.data.images.worker import Wanted
from glioma_dist.data.remote_images import fetched
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.errors import InputError, printable
from glioma_dist.evaluation.protocol import Contrast, Network
from glioma_dist.inference.large.memory import memory_limit
from glioma_dist.inference.large.picture import ArrayPicture, StretchedPicture, stretched
from glioma_dist.inference.large.reading import open_large
from glioma_dist.inference.segmented import ImageMetadata


class ReadImage(NamedTuple):
    """A picture as the network gets it. pixels: uint8, (H, W) or (H, W, 3) RGB, its contrast stretched; of a picture
    that is too large for the memory rows can be sliced."""

    pixels: np.ndarray | StretchedPicture
    metadata: ImageMetadata


def read_together(
    reader: ImageReader,
    path: Path | Url,
    network: Network,
    contrast: Contrast,
    memory: int | None = None,
    folder: Path | None = None,
) -> ReadImage:
    """The image with its contrast stretched. If one of the processes that share the image cannot read it, raises
    InputError on all of them, because the others would wait for that one.

    memory: resident bytes that this process may take; None: what is free. folder: for the temporary file of a picture
    that is too large for that.
    """
    image, error = None, None
    try:
        with fetched(path) as local:
            large = None if folder is None else open_large(Wanted(local), str(path), memory_limit(memory), folder)
            if large is not None:
                pixels, remarks = stretched(ArrayPicture(large.pixels), contrast, str(path)), large.remarks
            else:
                decoded = reader.read(local)
                pixels, remarks = normalize_intensity(decoded.pixels, contrast), decoded.remarks()
        for remark in remarks if network.spatial_group.rank == 0 else ():
            print(f"{printable(path)}: {remark}", flush=True)
        image = ReadImage(pixels, ImageMetadata())
    except InputError as found:
        error = found
    if network.spatial_group.size > 1:
        num_failed = network.spatial_group.all_reduce(torch.tensor([float(error is not None)], device=network.device))
        if error is None and num_failed.item():
            error = InputError(f"{path}: another process of this launch cannot read it; its line says why")
    if image is None or error is not None:
        raise error or InputError(f"{path}: cannot be read")
    return image
