"""The plugin for napari: a widget that segments an image layer and adds a layer of labels.

napari.yaml describes it. napari makes the widget of `segment_layer` by its annotations; this module does not import it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from glioma_dist.errors import InputError

if TYPE_CHECKING:
    import napari

    from glioma_dist.evaluation.network import Network

CHANNELS = (3, 4)
"""Of a layer that is shown in its own colours: red, green, blue, and opacity, which is ignored."""


def segment_layer(
    layer: napari.layers.Image,
    checkpoint: str = "t98g-small",
    threshold: Annotated[float, {"min": 0.01, "max": 0.99, "step": 0.01}] = 0.5,
) -> napari.types.LayerDataTuple:
    """Segment an image layer. Returns a layer of labels of the same place, one number for each component.

    Args:
        checkpoint: a checkpoint folder, or the name of a network that comes with the package.
        threshold: a pixel belongs to a cell if its probability is at least this value.
    """
    data = layer.data[0] if layer.multiscale else layer.data  # the full resolution
    labels = segment_array(np.asarray(data), checkpoint, threshold, bool(layer.rgb))
    place = {name: getattr(layer, name) for name in ("scale", "translate", "rotate", "shear")}
    place["affine"] = layer.affine.affine_matrix
    return labels, {"name": f"{layer.name} components", **place}, "labels"


def segment_array(
    data: np.ndarray, checkpoint: str | Path = "t98g-small", threshold: float = 0.5, is_rgb: bool = False
) -> np.ndarray:
    """Segment one image or each image of a stack.

    Args:
        data: (..., H, W), or (..., H, W, 3 or 4) where `is_rgb`; numbers of any kind. Integers of other kinds than
            uint8 and uint16, and floats, are scaled from the least to the greatest value of the whole stack.
        checkpoint, threshold: as those of `segment_layer`.

    Returns int32 (..., H, W): 0 where there is no cell, else the number of the component, from 1 in each image; of the
    cell, where the network separates cells that touch.
    Raises InputError where the data or the checkpoint cannot be used.
    """
    from glioma_dist.data.remote_checkpoint import fetch_checkpoint
    from glioma_dist.data.transforms import normalize_intensity
    from glioma_dist.distributed.numerics import numerics
    from glioma_dist.distributed.own_context import given_or_own
    from glioma_dist.distributed.own_modes import own_modes
    from glioma_dist.evaluation.network import load_network
    from glioma_dist.inference.segmenting import segment

    if not 0 < threshold < 1:
        raise InputError(f"threshold {threshold}: give a probability between 0 and 1")
    images = _images(data, is_rgb)
    with own_modes(), given_or_own(None) as context, numerics():
        network, read = load_network(fetch_checkpoint(Path(checkpoint)), 1, context)
        settings = read.config.data
        size = settings.size if settings.transform == "resize" else None
        labels = np.empty(images.shape[:3], np.int32)
        for number, image in enumerate(images):
            pixels = normalize_intensity(np.ascontiguousarray(image), settings.intensity_normalization)
            maps = np.asarray(segment(pixels, network, size).maps)
            labels[number] = _regions(pixels, maps, threshold, network, read.config.model.classes)
    height_at = data.ndim - (3 if is_rgb else 2)
    return labels.reshape(*data.shape[:height_at], *images.shape[1:3])


def _images(data: np.ndarray, is_rgb: bool) -> np.ndarray:
    """The images of a stack, uint8 or uint16: (N, H, W) or (N, H, W, 3)."""
    if data.ndim < (3 if is_rgb else 2) or not data.size or (is_rgb and data.shape[-1] not in CHANNELS):
        raise InputError(f"a layer of shape {data.shape} is no image, and no stack of images")
    images = data.reshape(-1, *data.shape[-3:])[..., :3] if is_rgb else data.reshape(-1, *data.shape[-2:])
    images = images.astype(images.dtype.newbyteorder("="), copy=False)  # OME-Zarrs often have the other one
    if images.dtype in (np.uint8, np.uint16):
        return images
    if images.dtype.kind not in "biuf":
        raise InputError(f"a layer of {images.dtype} is no image: give one of whole numbers or floats")
    values = images.astype(np.float64) / 2  # so that no difference of two is too large for a float
    if not np.isfinite(values).all():
        raise InputError("the layer has values that are no numbers (NaN or infinite)")
    values -= values.min()
    high = values.max()
    return (values / high * 65535 if high else values).round().astype(np.uint16)


def _regions(
    pixels: np.ndarray, maps: np.ndarray, threshold: float, network: Network, classes: tuple[str, ...]
) -> np.ndarray:
    """The separated cells of an image, or the components of each class: int32 (H, W), numbered from 1."""
    from glioma_dist.inference.segmented import SegmentedImage

    if network.outputs.num_outputs == 1:
        return _components(maps >= threshold)
    segmented = SegmentedImage(Path(), pixels, maps, threshold, outputs=network.outputs, classes=classes)
    return np.concatenate([labels for _, labels in segmented.regions.blocks()])


def _components(mask: np.ndarray) -> np.ndarray:
    """The areas of connected pixels, corners included: int32 (H, W), numbered from 1."""
    import cv2

    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)[1]
