"""Pictures of a report: small ones without cells drawn on them, and the outlines of the cells as a layer of its own."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile

from glioma_dist.data.images.png import decode_image
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.errors import InputError
from glioma_dist.report.prediction_results import MAX_PICTURE_BYTES, ReportedImage, ResultFolder

OUTLINE_COLOUR, TINT = (255, 200, 0), 0.15
"""Of overlays: the colour of outlines, and how much of it is mixed into cells."""
TOTAL_BYTES = 13_000_000
"""Of all pictures of a report with their outlines, in base64."""
WIDEST_PX, NARROWEST_PX = 640, 96
TALLEST_PX = 16383
"""That a WebP can be."""
BYTES_A_PIXEL = 0.35
"""Of a WebP of phase contrast of quality 70 with its outlines, roughly; what takes more gets a lower quality."""
QUALITIES = (70, 50, 35, 20, 10)
MAX_MASK_PIXELS = 2**26
"""Of a mask whose outlines are drawn."""
MAX_WORKED_PIXELS = 2**24
"""Of a larger picture only every second, third, … pixel and row is used, because the work takes 20 bytes a pixel."""
COARSER = ((0.5, 1), (1.0, 1), (1.0, 2), (1.0, 4), (1.0, 8))
"""How far a simplified outline may lie from the true one, in pixels, and how much smaller the mask is that it is drawn
of: the first that is short enough."""


@dataclass(frozen=True)
class Thumbnail:
    """A small picture. data: WebP in base64. outline: an SVG path in its pixels; empty where the picture itself has the
    outlines, or where there is no cell."""

    width: int
    height: int
    data: str
    outline: str


def thumbnail_width(num_images: int) -> int:
    """Return the width in pixels of the pictures of a report, so that all together take at most `TOTAL_BYTES`."""
    side = (TOTAL_BYTES / max(1, num_images) / BYTES_A_PIXEL) ** 0.5
    return int(min(WIDEST_PX, max(NARROWEST_PX, side // 16 * 16)))


def make_thumbnail(
    folder: ResultFolder, image: ReportedImage, width: int, max_bytes: int, reader: ImageReader
) -> Thumbnail | None:
    """Make the small picture of an image from its overlay and its mask, or, without an overlay, from the image itself.

    Returns None where none of them can be read.
    """
    try:
        mask = _mask(folder, image)
    except InputError:
        mask = None
    try:
        picture, drawn = _picture(folder, image, reader)
    except InputError:
        return None
    return draw_thumbnail(picture, mask, width, max_bytes, drawn)


def draw_thumbnail(
    picture: np.ndarray, mask: np.ndarray | None, width: int, max_bytes: int, is_drawn: bool = False
) -> Thumbnail:
    """Make a small picture with the outlines of a mask.

    picture: uint8, (H, W) or (H, W, 3) RGB. mask: uint8, (H, W), 1 where there is a cell. is_drawn: whether the picture
    has the mask drawn on it.
    """
    step = 1 + picture.shape[0] * picture.shape[1] // MAX_WORKED_PIXELS
    picture = picture[::step, ::step]
    height, whole = picture.shape[:2]
    shown = min(width, whole, max(1, TALLEST_PX * whole // height))
    size = (shown, min(TALLEST_PX, max(1, round(height * shown / whole))))
    if mask is None:
        return _encode(_shrunk(picture, size), "", max_bytes)
    if mask.shape != picture.shape[:2]:
        mask = cv2.resize(mask, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    small = _shrunk_without_outlines(picture, mask, size) if is_drawn and picture.ndim == 3 else _shrunk(picture, size)
    path = ""
    for tolerance, scale in COARSER:
        coarse = _shrunk(mask * np.uint8(255), (-(-size[0] // scale), -(-size[1] // scale))) > 127
        path = outline_path(coarse, tolerance, scale)
        if len(path) < max_bytes // 2:
            break
    return _encode(small, path, max_bytes - len(path))


def outline_path(mask: np.ndarray, tolerance_px: float, scale: int = 1) -> str:
    """Return the SVG path of the outlines of a mask, (H, W) bool: the edges between pixels, holes included.

    scale: units of the path a pixel.
    """
    # Twice as large, so that outlines run along the edges of pixels and a single pixel has an area.
    doubled = np.kron(mask.astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(doubled, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    parts = []
    for contour in contours:
        points = (cv2.approxPolyDP(contour, 2 * tolerance_px, closed=True)[:, 0] + 1) // 2 * scale
        steps = np.diff(points, axis=0)
        steps = steps[np.any(steps != 0, axis=1)]
        if len(steps) > 1:
            moves = " ".join(f"{x},{y}" for x, y in steps.tolist())
            parts.append(f"M{points[0, 0]},{points[0, 1]}l{moves}z")
    return "".join(parts)


def _mask(folder: ResultFolder, image: ReportedImage) -> np.ndarray | None:
    """uint8, (H, W), 1 where there is a cell; None where no such file was written, or it is too large."""
    name = image.files.get("mask") or image.files.get("mask-tiff")
    if name is None:
        return None
    data = folder.read(name, MAX_PICTURE_BYTES)
    if name.endswith(".png"):
        mask = decode_image(data, name)
        cells = mask > 0 if mask.ndim == 2 else (mask > 0).any(2)  # of several classes: numbers of a palette's colours
        return cells.astype(np.uint8)
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            shape = file.pages[0].shape
            if len(shape) != 2 or shape[0] * shape[1] > MAX_MASK_PIXELS:
                return None
            return (file.pages[0].asarray() > 0).astype(np.uint8)
    except Exception as error:  # tifffile and its codecs raise anything for a damaged file
        raise InputError(f"{name}: cannot be read ({error})") from None


def _picture(folder: ResultFolder, image: ReportedImage, reader: ImageReader) -> tuple[np.ndarray, bool]:
    """The picture, uint8, (H, W) or (H, W, 3) RGB, and whether cells are drawn on it.

    Raises InputError where it cannot be read.
    """
    if name := image.files.get("overlay"):
        try:
            return decode_image(folder.read(name, MAX_PICTURE_BYTES), name), True
        except InputError:
            pass  # removed, perhaps, and the image is still there
    if image.plane:
        raise InputError(f"{image.image}: a stack; predict with --write overlay for its pictures")
    from glioma_dist.inference.pictures import find_first
    from glioma_dist.inference.reading import PictureReader

    picture, _ = find_first(Path(image.image))
    pixels, _ = PictureReader(reader).decode(picture)
    return normalize_intensity(pixels, "percentile"), False


def _shrunk(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _shrunk_without_outlines(overlay: np.ndarray, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An overlay as a small picture without its tint and outlines: each pixel is the mean of those under it that belong
    to no outline."""
    colours = np.array(OUTLINE_COLOUR, np.float32)
    seen = np.any(overlay != np.array(OUTLINE_COLOUR, np.uint8), axis=2)
    plain = overlay.astype(np.float32)
    cells = mask > 0
    plain[cells] = (plain[cells] - TINT * colours) / (1 - TINT)
    plain[~seen] = 0
    weight = _shrunk(seen.astype(np.float32), size)
    small = _shrunk(plain, size) / np.maximum(weight, 1e-3)[..., None]
    if not weight.all():  # pixels of an outline only, as where nothing was to be shrunk
        near = (
            cv2.blur(small * (weight > 0)[..., None], (5, 5))
            / np.maximum(cv2.blur((weight > 0).astype(np.float32), (5, 5)), 1e-3)[..., None]
        )
        small = np.where((weight > 0)[..., None], small, near)
    return small.round().clip(0, 255).astype(np.uint8)


def _encode(picture: np.ndarray, outline: str, max_bytes: int) -> Thumbnail:
    """As WebP of at most `max_bytes` in base64, as far as the lowest quality reaches."""
    grey = picture if picture.ndim == 2 or np.ptp(picture, axis=2).max() > 3 else picture[..., 1]
    shown = grey if grey.ndim == 2 else np.ascontiguousarray(grey[..., ::-1])
    for quality in QUALITIES:
        _, data = cv2.imencode(".webp", shown, [cv2.IMWRITE_WEBP_QUALITY, quality])
        if len(data) * 4 / 3 <= max_bytes:
            break
    height, width = picture.shape[:2]
    return Thumbnail(width, height, base64.b64encode(data.tobytes()).decode(), outline)
