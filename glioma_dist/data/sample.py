"""One sample: an image with its mask, and the ways in and out of TIFF and PNG.

Images are numpy arrays as they were taken: uint8 or uint16, shape (H, W) for grey or (H, W, 3) for RGB.
Masks are uint8 arrays of 0 and 1, shape (H, W). Colours are RGB everywhere outside this module's
OpenCV calls.
"""

import struct
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import tifffile

from glioma_dist.errors import InputError

# A header of a few bytes can promise any size. 2**28 pixels (16,384 x 16,384) is fifty times the largest of
# the article; whatever claims more is refused before memory is asked for.
MAX_PIXELS = 2**28
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (*TIFF_SUFFIXES, ".png")

# PNG's colour types (PNG specification, section 11.2.1).
PNG_GREY, PNG_RGB, PNG_GREY_ALPHA = 0, 2, 4


@dataclass(frozen=True)
class Sample:
    """An image with its mask.

    key: names the sample inside its split; letters, digits, `_` and `-` only.
    image: uint8 or uint16, (H, W) grey or (H, W, 3) RGB.
    mask: uint8, (H, W), 1 where there is a cell.
    facts: what `<key>.json` holds (data set, file name, width, height, group, time, num_cells, licence).
    """

    key: str
    image: np.ndarray
    mask: np.ndarray
    facts: dict = field(default_factory=dict)


def read_image(path: str | Path) -> np.ndarray:
    """Read a TIFF or PNG, of 8 or 16 bits, as uint8 or uint16 (H, W) or (H, W, 3) RGB; alpha is dropped.

    Raises InputError, naming the file, where it is missing, damaged, cut short, too large, a stack of several
    pages, or of another kind of number.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise InputError(f"{path}: not an image that can be read; use TIFF or PNG (8 or 16 bit)")
    if suffix in TIFF_SUFFIXES:
        return _read_tiff(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return decode_image(data, str(path))


def one_channel(image: np.ndarray) -> np.ndarray:
    """An image whose three channels are alike, as (H, W): a third of the work, and the network is shown the same, for
    it gets a grey image's channel three times. Any other as it is."""
    # A look at a few rows is enough to tell a real colour image.
    if image.ndim == 2 or any(not _alike(rows) for rows in (image[::256], image)):
        return image
    return np.ascontiguousarray(image[..., 0])


def _alike(image: np.ndarray) -> bool:
    first, *others = cv2.split(image)
    return all(np.array_equal(first, other) for other in others)


def encode_image(image: np.ndarray) -> bytes:
    """PNG bytes of a uint8 or uint16 image, (H, W) or (H, W, 3) RGB; the same image gives the same bytes."""
    if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3):
        raise ValueError(f"an image is uint8 or uint16, (H, W) or (H, W, 3), not {image.dtype} {image.shape}")
    if image.ndim == 3 and image.shape[2] != 3:
        raise ValueError(f"an image has one or three channels, not {image.shape[2]}")
    # Measured on phase-contrast images (docs/log.md): level 1 with these is quick to write and to read, and nearly the
    # smallest.
    filters, strategy = cv2.IMWRITE_PNG_FILTER_AVG, cv2.IMWRITE_PNG_STRATEGY_DEFAULT
    if image.ndim == 2:
        filters, strategy = cv2.IMWRITE_PNG_FILTER_UP, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY
    parameters = [
        *(cv2.IMWRITE_PNG_COMPRESSION, 1),
        *(cv2.IMWRITE_PNG_FILTER, filters),
        *(cv2.IMWRITE_PNG_STRATEGY, strategy),
    ]
    pixels = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return _encode_png(np.ascontiguousarray(pixels), parameters)


def encode_mask(mask: np.ndarray) -> bytes:
    """PNG bytes, one bit a pixel, of a uint8 mask of 0 and 1, (H, W)."""
    if mask.dtype != np.uint8 or mask.ndim != 2 or (mask.size and mask.max() > 1):
        raise ValueError(f"a mask is uint8, (H, W), of 0 and 1, not {mask.dtype} {mask.shape}")
    parameters = [
        *(cv2.IMWRITE_PNG_COMPRESSION, 1),
        *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
        *(cv2.IMWRITE_PNG_BILEVEL, 1),
    ]
    return _encode_png(np.ascontiguousarray(mask), parameters)


def decode_image(data: bytes, where: str) -> np.ndarray:
    """Decode PNG bytes into uint8 or uint16, (H, W) or (H, W, 3) RGB; alpha is dropped.

    `where` names the bytes in the InputError that damaged or truncated ones raise.
    """
    colour_type = _check_png(data, where)
    # Asked for RGB, OpenCV is quicker than with its own order turned round afterwards.
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH if colour_type == PNG_RGB else cv2.IMREAD_UNCHANGED
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise InputError(f"{where}: the PNG's pixels cannot be decoded; get the file anew")
    if pixels.ndim == 2 or colour_type == PNG_RGB:
        return pixels
    if colour_type in (PNG_GREY, PNG_GREY_ALPHA):
        return np.ascontiguousarray(pixels[..., 0])
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def decode_mask(data: bytes, where: str) -> np.ndarray:
    """Decode a mask's PNG bytes into uint8 (H, W) of 0 and 1 (1 where a pixel is not black).

    `where` names the bytes in the InputError that damaged or truncated ones raise.
    """
    _check_png(data, where)
    mask = _unpack_bits(data)
    if mask is not None:
        return mask
    # As it is: turned into 8 bits of grey, labels of 16 bits and faint colours would be black.
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise InputError(f"{where}: the PNG's pixels cannot be decoded; get the file anew")
    if pixels.ndim == 3:
        pixels = pixels[..., :3].any(axis=-1)  # the fourth is alpha
    return (pixels > 0).astype(np.uint8)


def _encode_png(pixels: np.ndarray, parameters: list[int]) -> bytes:
    encoded, data = cv2.imencode(".png", pixels, parameters)
    if not encoded:
        raise ValueError(f"OpenCV could not write a PNG of {pixels.dtype} {pixels.shape}")
    return data.tobytes()


def _check_png(data: bytes, where: str) -> int:
    """Walk the chunks of a PNG: whole, every checksum right, a sane size. Returns the colour type.

    Some versions of OpenCV return a half-grey image for a file cut short, so its decoder is not asked.
    """
    if not data.startswith(PNG_SIGNATURE):
        raise InputError(f"{where}: not a PNG file (its first bytes are {data[:8]!r}); get the file anew")
    view, start, colour_type, kind = memoryview(data), len(PNG_SIGNATURE), None, b""
    while kind != b"IEND":
        if start + 12 > len(data):
            raise InputError(f"{where}: the PNG is cut short at {len(data)} bytes; get the file anew")
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data):
            raise InputError(f"{where}: the PNG is cut short at {len(data)} bytes; get the file anew")
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise InputError(f"{where}: the PNG is damaged (checksum of byte {start} on); get the file anew")
        if colour_type is None:
            if kind != b"IHDR" or length != 13:
                raise InputError(f"{where}: the PNG does not begin with its header; get the file anew")
            width, height, _, colour_type = struct.unpack_from(">IIBB", data, start + 8)
            _check_size(width, height, where)
        start = end
    return colour_type


def _unpack_bits(data: bytes) -> np.ndarray | None:
    """The mask in a PNG of one bit a pixel, grey, without filters, as `encode_mask` writes them: a quarter of the time
    that a PNG library takes. `data` is checked already. None for any other PNG, also where pixels are missing."""
    width, height, *kind = struct.unpack_from(">IIBBBBB", data, len(PNG_SIGNATURE) + 8)
    if kind != [1, PNG_GREY, 0, 0, 0]:
        return None
    packed, start, name = [], len(PNG_SIGNATURE), b""
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, start)
        if name == b"tRNS":
            return None
        if name == b"IDAT":
            packed.append(data[start + 8 : start + 8 + length])
        start += 12 + length
    row_bytes = 1 + (width + 7) // 8
    try:
        # No more than the header says, whatever is packed.
        lines = zlib.decompressobj().decompress(b"".join(packed), height * row_bytes)
    except zlib.error:
        return None
    if len(lines) != height * row_bytes:
        return None
    rows = np.frombuffer(lines, np.uint8).reshape(height, row_bytes)
    return None if rows[:, 0].any() else np.unpackbits(rows[:, 1:], axis=1, count=width)


def _check_size(width: int, height: int, where: str | Path) -> None:
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise InputError(f"{where}: claims {width}x{height} pixels, more than {MAX_PIXELS} or none; cut it into fields")


def _read_tiff(path: Path) -> np.ndarray:
    """Read a TIFF of one page; see `read_image`."""
    try:
        # tifffile logs and warns about odd metadata that does not touch the pixels.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with tifffile.TiffFile(path) as tiff:
                page = _single_page(tiff, path)
                return _as_image(page.asarray(), page, path)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:
        # A damaged TIFF surfaces as whatever the parser or any of a dozen codecs happened to trip over.
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: damaged TIFF ({detail}); get the file anew") from None


def _single_page(tiff: tifffile.TiffFile, path: Path) -> tifffile.TiffPage:
    """The one page of full size, checked to lie whole in the file before any pixel is decoded."""
    pages = [page for page in tiff.pages if not page.is_reduced]
    num_planes = max(len(pages), int((tiff.imagej_metadata or {}).get("images", 1)))
    if num_planes != 1 or pages[0].imagedepth != 1:
        raise InputError(f"{path}: a stack of {num_planes} pages, not one image; save each page as its own file")
    page = pages[0]
    _check_size(page.imagewidth, page.imagelength, path)
    file_bytes = tiff.filehandle.size
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if count == 0 or offset + count > file_bytes:
            raise InputError(f"{path}: the TIFF is cut short at {file_bytes} bytes; get the file anew")
    return page


def _as_image(pixels: np.ndarray, page: tifffile.TiffPage, path: Path) -> np.ndarray:
    """Bring a page's pixels, axes YX, YXS or SYX (S: samples), to the form of `Sample.image`."""
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"{path}: pixels are {pixels.dtype}, not 8 or 16 bit unsigned; save it so (ImageJ: Image > Type)"
        )
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if page.axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    elif page.axes not in ("YX", "YXS"):
        raise InputError(f"{path}: axes {page.axes} are not those of one image; save it as grey or RGB")
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
        return np.ascontiguousarray((page.colormap >> 8).astype(np.uint8).T[pixels])
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        pixels = np.iinfo(pixels.dtype).max - pixels
    if pixels.ndim == 3:
        # One extra sample is alpha, whether the file says so or not; several are channels of something else.
        pixels = pixels[..., :-1] if len(page.extrasamples) == 1 else pixels
        if pixels.shape[2] not in (1, 3):
            raise InputError(f"{path}: {pixels.shape[2]} channels, not 1 or 3; save it as grey or RGB")
        pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    return np.ascontiguousarray(pixels)
