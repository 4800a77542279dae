"""The regions as ROIs for the ROI Manager of Fiji and ImageJ."""

from __future__ import annotations

import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from glioma_dist.errors import InputError
from glioma_dist.inference.outlines import Polygon
from glioma_dist.inference.regions import region_outlines
from glioma_dist.inference.segmented import SegmentedImage
from glioma_dist.inference.writers.names import MARK

MAX_SIDE = 32767
"""Of an image, in pixels: ROIs have bounds of 16 bits."""
EXTRA_ID = 0x4C47
"""Of the extra field of each member's header (APPNOTE.TXT, section 4.5), which holds the mark. Readers pass over it."""
DATE = (1980, 1, 1, 0, 0, 0)
"""Of all members, so that the same mask gives the same bytes."""


def write_imagej(path: Path, segmented: SegmentedImage) -> None:
    """Write a ZIP with one ROI per region: a traced outline or, where there are holes or parts that touch at corners
    only, a composite ROI. With several classes, a ROI's name begins with its class, whose number is its group.

    Raises InputError for an image with a side of more than `MAX_SIDE` pixels.
    """
    if max(segmented.shape) > MAX_SIDE:
        raise InputError(
            f"an ImageJ ROI has no room for coordinates above {MAX_SIDE} (the image has {segmented.shape[1]}x"
            f"{segmented.shape[0]} pixels); write qupath or labels"
        )
    # The empty archive has no member: its comment is all that it holds.
    mark = MARK.encode()
    extra = struct.pack("<HH", EXTRA_ID, len(mark)) + mark
    found = region_outlines(segmented.regions, segmented.mask_rows)
    kind = "cell" if segmented.are_cells else "component"
    digits = len(str(len(found)))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = mark
        for number, polygons in enumerate(found, 1):
            name = f"{_in_a_name(segmented.region_class(number)) or kind}-{number:0{digits}}"
            member = zipfile.ZipInfo(f"{name}.roi", DATE)
            member.compress_type, member.extra = zipfile.ZIP_DEFLATED, extra
            roi = _roi(name, polygons)
            roi.group = int(segmented.regions.classes[number - 1]) if segmented.classes else 0
            archive.writestr(member, roi.tobytes())


def _in_a_name(text: str) -> str:
    """A text for names of files of any system: what may not stand there becomes a hyphen."""
    return re.sub(r"[^\w .+()-]+", "-", text).strip(" .")


def _roi(name: str, polygons: list[Polygon]) -> Any:
    """An ImagejRoi: its corners are pixel edges, as those of ImageJ's wand are."""
    import roifile

    rings = [ring for polygon in polygons for ring in polygon]
    if len(rings) == 1:
        roi = roifile.ImagejRoi.frompoints(rings[0], name=name)
        roi.roitype = roifile.ROI_TYPE.TRACED
        # Bounds end at the last edge: `frompoints` counts points, of which there is one more.
        roi.right, roi.bottom = (int(each) for each in rings[0].max(0))
        return roi
    corners = np.concatenate(rings)
    roi = roifile.ImagejRoi(name=name)
    roi.roitype = roifile.ROI_TYPE.RECT
    (roi.left, roi.top), (roi.right, roi.bottom) = corners.min(0).tolist(), corners.max(0).tolist()
    roi.multi_coordinates = np.concatenate([_segments(ring) for ring in rings])
    roi.shape_roi_size = len(roi.multi_coordinates)
    return roi


def _segments(ring: np.ndarray) -> np.ndarray:
    """A ring as java.awt.geom.PathIterator's segments: move to, lines to, close; float32."""
    segments = np.ones((len(ring), 3), np.float32)
    segments[0, 0] = 0
    segments[:, 1:] = ring
    return np.append(segments.ravel(), np.float32(4))
