"""ROIs of Fiji and ImageJ: a RoiSet.zip, or one .roi file, beside each image.

Polygons, freehand and traced outlines, rectangles, ovals and composites are cells. Lines, angles, points and texts
enclose nothing. The format: https://imagej.net/ij/developer/source/ij/io/RoiDecoder.java.html
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from glioma_dist.data.convert.cells import Segmentation
from glioma_dist.data.convert.labelled import by_name
from glioma_dist.data.convert.shapes import ellipse, rings
from glioma_dist.data.convert.sources import Source
from glioma_dist.errors import InputError, one_line
from glioma_dist.extras import require, without_log
from glioma_dist.files import read_bytes

MAX_FILE_BYTES, MAX_ROI_BYTES, MAX_ROIS = 2**28, 2**24, 2**16
DAMAGED = (
    *(ValueError, TypeError, IndexError, KeyError, RuntimeError, EOFError, OverflowError, NotImplementedError),
    *(struct.error, zlib.error, zipfile.BadZipFile, OSError),
)
"""What zipfile and roifile raise for damaged bytes; RuntimeError: the archive is encrypted."""


def find_imagej(folder: Path, images: Path | None = None) -> Source:
    """x.tif with x.zip, x_RoiSet.zip, RoiSet_x.zip, x_rois.zip (Cellpose), x.imagej.zip (predict), or x.roi. A
    RoiSet.zip belongs to the only image of its folder. Raises InputError."""
    require("formats", "convert imagej", libraries=("roifile",))
    return by_name(folder, images, "file of ROIs (.zip or .roi)", names_of, read_cells)


def names_of(name: str) -> list[str]:
    """Names that the image of a file of ROIs may have, without endings; none for another file."""
    stem, dot, ending = name.rpartition(".")
    if not dot or ending.lower() not in ("zip", "roi"):
        return []
    bare = re.sub(r"(?i)^roiset[_ -]|[_ -]?(?:roiset|rois)$|\.imagej$", "", stem)
    return list(dict.fromkeys(each for each in (stem, bare) if each))


def read_cells(path: Path, height: int, width: int) -> list[Segmentation]:
    """The cells of a .zip or .roi file. Raises InputError."""
    try:
        with without_log("roifile"):
            rois = read_rois(path)
        if len({(roi.z_position, roi.t_position, roi.position) for roi in rois}) > 1:
            raise ValueError("ROIs on several slices of a stack; save each slice as an image, with its own ROIs")
        return [_cell(roi, height, width) for roi in rois]
    except InputError:
        raise
    except DAMAGED as error:
        reason = one_line(f"{error}" or type(error).__name__, 200)
        raise InputError(f"{path}: cannot be read as ROIs ({reason}); save it again in Fiji's ROI Manager") from None


def read_rois(path: Path) -> list[Any]:
    """The ROIs of a file, as roifile's ImagejRoi. Raises InputError, and `DAMAGED`."""
    from roifile import ImagejRoi

    data = read_bytes(path, MAX_FILE_BYTES)
    if data[:4] == b"Iout":
        return [ImagejRoi.frombytes(data)]
    rois, num_bytes = [], 0
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [each for each in archive.infolist() if each.filename.lower().endswith(".roi")]
        if len(members) > MAX_ROIS:
            raise ValueError(f"{len(members)} ROIs, more than {MAX_ROIS}")
        for member in members:
            with archive.open(member) as packed:
                content = packed.read(MAX_ROI_BYTES + 1)
            num_bytes += len(content)
            if len(content) > MAX_ROI_BYTES or num_bytes > MAX_FILE_BYTES:
                raise ValueError(f"more than {MAX_ROI_BYTES >> 20} MiB in one ROI, or {MAX_FILE_BYTES >> 20} in all")
            rois.append(ImagejRoi.frombytes(content))
    return rois


def _cell(roi: Any, height: int, width: int) -> Segmentation:
    from roifile import ROI_SUBTYPE, ROI_TYPE

    if roi.subtype in (ROI_SUBTYPE.TEXT, ROI_SUBTYPE.ARROW, ROI_SUBTYPE.IMAGE):
        return []
    if roi.multi_coordinates is not None:
        return rings([_flat(each) for each in roi.coordinates(multi=True)], height, width)
    if roi.roitype in (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED):
        return [_flat(roi.coordinates())]
    left, top, across, down = roi.left, roi.top, roi.right - roi.left, roi.bottom - roi.top
    if roi.subpixelrect:
        left, top, across, down = _decimals(np.array([roi.xd, roi.yd, roi.widthd, roi.heightd])).tolist()
    if roi.roitype == ROI_TYPE.RECT:
        x, y = left + across, top + down
        return [np.array([left, top, x, top, x, y, left, y], np.float64)]
    if roi.roitype == ROI_TYPE.OVAL:
        return ellipse((left + across / 2, top + down / 2), (across / 2, down / 2), 0, height, width)
    return []


def _flat(coordinates: np.ndarray) -> np.ndarray:
    """x0, y0, x1, y1, … of corners (N, 2)."""
    return _decimals(coordinates).ravel()


def _decimals(numbers: np.ndarray) -> np.ndarray:
    """float64 of the decimals that float32 stand for: 10.7, not 10.69999981, which is another pixel's at an edge."""
    return numbers.astype(np.float32).astype("U").astype(np.float64)
