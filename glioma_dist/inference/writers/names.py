"""The formats of results by name, what their files are called, and how they are recognised. Imports no format."""

from __future__ import annotations

import contextlib

from glioma_dist.registry import BrokenEntryError, WriterEntry, writers

MARK = "glioma-dist predict.py"
"""In the beginning of each file: it tells results from a user's own files."""
MARKED_BYTES = 4096
"""Bytes from a file's beginning in which the mark is."""
MAX_PNG_PIXELS = 2**26
"""Of an image that is written as PNG in its own size: 8192x8192. Few programs open larger ones."""

_HERE = "glioma_dist.inference.writers"

DECLARED = (
    WriterEntry(
        "mask",
        f"{_HERE}.mask:write_mask",
        ending=".mask.png",
        large_ending=".mask.tif",
        description="PNG, 255 where there is a cell and 0 elsewhere",
    ),
    WriterEntry(
        "overlay",
        f"{_HERE}.overlay:write_overlay",
        ending=".overlay.png",
        description="PNG, the image with its cells tinted and outlined",
    ),
    WriterEntry(
        "mask-tiff",
        f"{_HERE}.mask:write_mask_tiff",
        ending=".mask.tif",
        description="TIFF with 1 bit per pixel and the pixel size",
    ),
    WriterEntry(
        "probability",
        f"{_HERE}.probability:write_probability",
        ending=".probability.tif",
        description="TIFF, the probability of each pixel as a float between 0 and 1",
    ),
    WriterEntry(
        "labels",
        f"{_HERE}.labels:write_labels",
        ending=".labels.tif",
        description="TIFF, the number of the connected component that a pixel belongs to; 0 for no cell",
    ),
    WriterEntry(
        "qupath",
        f"{_HERE}.qupath:write_qupath",
        ending=".qupath.geojson",
        description="GeoJSON for QuPath, one annotation per component, as polygons with holes",
    ),
    WriterEntry(
        "imagej",
        f"{_HERE}.imagej:write_imagej",
        ending=".imagej.zip",
        library="roifile",
        description="ZIP of ROIs for the ROI Manager of Fiji and ImageJ, one per component",
    ),
    WriterEntry(
        "coco",
        f"{_HERE}.coco:write_coco",
        ending=".coco.json",
        description="COCO JSON, one annotation per component, run-length encoded",
    ),
    WriterEntry(
        "ome-zarr",
        f"{_HERE}.ome_zarr:write_ome_zarr",
        ending=".labels.ome.zarr",
        library="zarr",
        description="OME-Zarr 0.4: the image, and its components as a label image, in several resolutions",
    ),
)


def is_large(height: int, width: int) -> bool:
    """Return whether an image is too large for a PNG of its own size."""
    return height * width > MAX_PNG_PIXELS


def ending_of(entry: WriterEntry, height: int, width: int) -> str:
    """Return the ending of a format's file, which follows the image's name."""
    return (is_large(height, width) and entry.large_ending) or endings(entry)[0]


def endings(entry: WriterEntry) -> tuple[str, ...]:
    """Return all endings that a format's files can have."""
    return tuple(dict.fromkeys(each for each in (entry.ending or f".{entry.name}", entry.large_ending) if each))


def is_result_name(name: str) -> bool:
    """Return whether a file is called as a result is. Capitals do not count."""
    lower = name.lower()
    if lower.endswith(tuple(each for entry in DECLARED for each in endings(entry))):
        return True
    if lower.count(".") < 2:  # the image's name and a suffix: no need to read what is installed
        return False
    with contextlib.suppress(BrokenEntryError):
        return lower.endswith(tuple(each.lower() for entry in writers.entries() for each in endings(entry)))
    return False
