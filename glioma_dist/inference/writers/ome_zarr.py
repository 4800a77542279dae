"""The image and its regions as OME-Zarr 0.4, which napari, Fiji and QuPath open at any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from glioma_dist.inference.components import RowReader
from glioma_dist.inference.segmented import SegmentedImage
from glioma_dist.inference.writers.labels import label_type
from glioma_dist.inference.writers.names import MARK

VERSION = "0.4"
CHUNK = 1024
"""Side of a chunk, in pixels."""
LABELS = {False: "components", True: "cells"}
"""Name of the label image: of components, and of separated cells."""
COLOURS = {1: ("FFFFFF",), 3: ("FF0000", "00FF00", "0000FF")}
"""Of the channels of grey and RGB images."""


def write_ome_zarr(path: Path, segmented: SegmentedImage) -> None:
    """Write a group with the image, its contrast stretched as the network saw it, and below `labels` its components,
    or its cells. Resolutions halve until both sides fit a chunk."""
    import zarr

    height, width = segmented.shape
    num_channels = 1 if len(segmented.pixels.shape) == 2 else segmented.pixels.shape[2]
    root = zarr.open_group(path, mode="w", zarr_format=2)
    image_axes = ("y", "x") if num_channels == 1 else ("c", "y", "x")
    image = (_channels_first(segmented.pixel_rows(start, stop)) for start, stop in _bands(height))
    channels = (num_channels,) * (num_channels > 1)
    num_levels = _write_levels(root, (*channels, height, width), np.uint8, image, _mean)
    creator = {"name": MARK}  # first: this is what a second run knows the folder by
    root.attrs.put(
        {
            "_creator": creator,
            **_multiscales(segmented, image_axes, num_levels, "picture"),
            "omero": {"channels": [_channel(colour) for colour in COLOURS[num_channels]]},
        }
    )
    labels = root.create_group("labels")
    regions, name = segmented.regions, LABELS[segmented.are_cells]
    labels.attrs.put({"labels": [name]})
    group = labels.create_group(name)
    dtype = label_type(len(regions))
    reader = RowReader(regions.blocks())
    rows = (reader.read(start, stop).astype(dtype) for start, stop in _bands(height))
    num_levels = _write_levels(group, (height, width), dtype, rows, lambda each: each[..., ::2, ::2])
    about: dict[str, Any] = {"version": VERSION, "source": {"image": "../../"}}
    if segmented.classes:
        numbers = range(1, len(regions) + 1)
        about["properties"] = [{"label-value": each, "class": segmented.region_class(each)} for each in numbers]
    group.attrs.put({**_multiscales(segmented, ("y", "x"), num_levels, name), "image-label": about})


def _write_levels(
    group: Any,
    shape: tuple[int, ...],
    dtype: type,
    bands: Iterator[np.ndarray],
    halve: Callable[[np.ndarray], np.ndarray],
) -> int:
    """Write an image, (C, H, W) or (H, W), and its smaller copies. bands: its rows, `CHUNK` at a time. Returns how many
    resolutions there are."""
    level = 0
    while True:
        array = group.create_array(
            str(level),
            shape=shape,
            chunks=(*(1 for _ in shape[:-2]), min(CHUNK, shape[-2]), min(CHUNK, shape[-1])),
            dtype=dtype,
            fill_value=0,
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
        for (start, stop), band in zip(_bands(shape[-2]), bands, strict=True):
            array[..., start:stop, :] = band
        if max(shape[-2:]) <= CHUNK:
            return level + 1
        level += 1
        shape = (*shape[:-2], -(-shape[-2] // 2), -(-shape[-1] // 2))
        bands = _halved(array, halve)


def _halved(array: Any, halve: Callable[[np.ndarray], np.ndarray]) -> Iterator[np.ndarray]:
    """The bands of an image half as large."""
    for start, stop in _bands(-(-array.shape[-2] // 2)):
        yield halve(array[..., 2 * start : 2 * stop, :])


def _mean(pixels: np.ndarray) -> np.ndarray:
    """The mean of each square of four pixels; at an odd edge the last row or column counts twice."""
    odd = [(0, 0)] * (pixels.ndim - 2) + [(0, side % 2) for side in pixels.shape[-2:]]
    even = np.pad(pixels, odd, mode="edge").astype(np.uint16)
    total = even[..., ::2, ::2] + even[..., 1::2, ::2] + even[..., ::2, 1::2] + even[..., 1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)


def _bands(height: int) -> Iterator[tuple[int, int]]:
    for start in range(0, height, CHUNK):
        yield start, min(height, start + CHUNK)


def _channels_first(rows: np.ndarray) -> np.ndarray:
    return rows if rows.ndim == 2 else rows.transpose(2, 0, 1)


def _multiscales(segmented: SegmentedImage, axes: tuple[str, ...], num_levels: int, name: str) -> dict[str, Any]:
    """The metadata of an image's resolutions, with the pixel size where it is known."""
    size = segmented.metadata.pixel_size_um
    unit = {"unit": "micrometer"} if size else {}
    scales = [[1.0] * (len(axes) - 2) + [2.0**level * (size or 1.0)] * 2 for level in range(num_levels)]
    return {
        "multiscales": [
            {
                "version": VERSION,
                "name": name,
                "axes": [
                    {"name": axis, "type": "channel"} if axis == "c" else {"name": axis, "type": "space", **unit}
                    for axis in axes
                ],
                "datasets": [
                    {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
                    for level, scale in enumerate(scales)
                ],
            }
        ]
    }


def _channel(colour: str) -> dict[str, Any]:
    """How viewers show a channel."""
    names = {"FF0000": "red", "00FF00": "green", "0000FF": "blue"}
    return {
        "label": names.get(colour, "phase contrast"),
        "color": colour,
        "active": True,
        "window": {"min": 0, "max": 255, "start": 0, "end": 255},
    }
