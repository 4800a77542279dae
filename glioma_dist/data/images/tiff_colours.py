"""What the numbers of a TIFF mean: refused by name where they are no grey values or colours, else brought to uint8 or
uint16, grey or RGB."""

from __future__ import annotations

import numpy as np

from glioma_dist.data.images import tiff_directories as tag
from glioma_dist.data.images.limits import check_size
from glioma_dist.data.images.numbers import to_16_bit
from glioma_dist.data.images.tiff_directories import Directory
from glioma_dist.errors import InputError

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
OTHER_COLOURS = {
    4: "a transparency mask",
    5: "CMYK inks",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32803: "raw values of a camera's colour filter",
    32844: "LogL",
    32845: "LogLuv",
    34892: "raw values of a camera",
    51177: "depths",
    52527: "a semantic mask",
}
UNSIGNED, SIGNED, FLOAT, UNDEFINED = 1, 2, 3, 4
SAMPLE_FORMATS = {2: "signed", 3: "floating point", 5: "complex integers", 6: "complex"}
OLD_JPEG, JPEG_KINDS = 6, (7, 33007, 34892)
PREMULTIPLIED, ALPHA = 1, 2
HOW = "(ImageJ: Image > Type > 8-bit, 16-bit or RGB Color)"


def is_8_or_16_bit(page: Directory) -> bool:
    """Whether a page's values are unsigned whole numbers of at most 16 bits."""
    formats = set(page.numbers(tag.SAMPLE_FORMAT)) or {UNSIGNED}
    return formats <= {UNSIGNED, UNDEFINED} and max(page.numbers(tag.BITS) or (1,)) <= 16


def check_colours(page: Directory, where: str, is_scaled: bool = False, has_channels: bool = False) -> list[str]:
    """Refuse, before any pixel is decoded, what is no grey, palette or RGB of unsigned whole numbers.

    is_scaled: take signed numbers, floats and those of more than 16 bits, too. has_channels: one sample of many is
    taken. Returns notes: what was taken for granted. Raises InputError.
    """
    bits = page.numbers(tag.BITS) or (1,)
    formats = set(page.numbers(tag.SAMPLE_FORMAT)) or {UNSIGNED}
    if is_scaled and formats <= {UNSIGNED, UNDEFINED, SIGNED, FLOAT} and set(bits) <= {16, 24, 32, 64, 8}:
        if page.number(tag.PHOTOMETRIC, WHITE_IS_ZERO) == PALETTE and not is_8_or_16_bit(page):
            raise InputError(f"{where}: a palette of values that are not 8 or 16 bit unsigned; save it as RGB {HOW}")
        formats, bits = {UNSIGNED}, (min(bits[0], 16),) * len(bits) if len(set(bits)) == 1 else bits
    for kind in formats - {UNSIGNED, UNDEFINED}:
        name = SAMPLE_FORMATS.get(kind, f"of sample format {kind}")
        kind_name = f"float{bits[0]}" if kind == 3 else f"int{bits[0]}" if kind == 2 else f"{bits[0]} bit"
        raise InputError(f"{where}: pixels are {kind_name} ({name}), not 8 or 16 bit unsigned; save it so {HOW}")
    if tag.BITS not in page and page.number(tag.SAMPLES, 1) > 1:
        raise InputError(f"{where}: does not say how many bits a colour has; save it as 8 or 16 bit {HOW}")
    if max(bits) > 16 or min(bits) < 1:
        raise InputError(f"{where}: pixels are uint{max(bits)}, not 8 or 16 bit; save it so {HOW}")
    if len(set(bits[: page.number(tag.SAMPLES, 1)])) > 1:
        raise InputError(f"{where}: channels of {', '.join(map(str, bits[:8]))} bits; save all of them as 8 bit {HOW}")
    photometric = page.number(tag.PHOTOMETRIC, WHITE_IS_ZERO)
    compression = page.number(tag.COMPRESSION, 1)
    if photometric in OTHER_COLOURS:
        raise InputError(f"{where}: its colours are {OTHER_COLOURS[photometric]}; save it as grey or RGB {HOW}")
    if photometric == YCBCR and compression not in JPEG_KINDS:
        raise InputError(f"{where}: its colours are YCbCr without JPEG; save it as grey or RGB {HOW}")
    if photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR):
        raise InputError(f"{where}: its colours are of an unknown kind ({photometric}); save it as grey or RGB {HOW}")
    if photometric == PALETTE and page.count(tag.COLOUR_MAP) < 3 << bits[0]:
        raise InputError(f"{where}: a palette image without its colour map; save it as grey or RGB {HOW}")
    if compression == OLD_JPEG or (compression in JPEG_KINDS and tag.PHOTOMETRIC not in page):
        raise InputError(f"{where}: JPEG of the old kind in a TIFF; save it without compression {HOW}")
    if not has_channels:
        _check_samples(page, photometric, where)
    if tag.PHOTOMETRIC not in page and is_8_or_16_bit(page):
        return ["does not say whether 0 is black or white; read as white, as the TIFF library does"]
    return []


def _check_samples(page: Directory, photometric: int, where: str) -> None:
    """Grey or RGB, with at most one channel more."""
    samples = page.number(tag.SAMPLES, 1)
    colours = 3 if photometric in (RGB, YCBCR) else 1
    if samples == 3 and colours == 1 and photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO):
        return
    if samples not in (colours, colours + 1):
        raise InputError(f"{where}: {samples} channels, not 1 or 3; save it as grey or RGB {HOW}")


def num_grey_samples(page: Directory) -> int:
    """How many channels the samples of each pixel are: 1 for grey and colours, with alpha or not."""
    samples = page.number(tag.SAMPLES, 1)
    if page.number(tag.PHOTOMETRIC, WHITE_IS_ZERO) in (RGB, YCBCR, PALETTE):
        return samples if samples > 4 else 1
    has_alpha = samples == 2 and page.number(tag.EXTRA_SAMPLES, 0) in (PREMULTIPLIED, ALPHA)
    return 1 if samples in (1, 3) or has_alpha else samples


def to_image(
    pixels: np.ndarray, page: Directory, where: str, sample: int | None = None
) -> tuple[np.ndarray, list[str]]:
    """Bring a page's numbers, (H, W) or (H, W, S) of real numbers or bool, to uint8 or uint16, grey or RGB.

    sample: which of S is taken as grey; None for grey or colours. Returns them, and notes. Raises InputError.
    """
    bits = (page.numbers(tag.BITS) or (1,))[0]
    photometric = page.number(tag.PHOTOMETRIC, WHITE_IS_ZERO)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    notes: list[str] = []
    if sample is not None and pixels.ndim == 3:
        pixels = pixels[..., sample]
    elif pixels.ndim == 3:
        pixels, notes = _without_extra(pixels, 3 if photometric in (RGB, YCBCR) else 1, page, where)
    if photometric == PALETTE:
        pixels = _from_palette(pixels, page, bits, where)
    elif not is_8_or_16_bit(page):
        pixels, more = to_16_bit(pixels, where)
        notes += more
        if photometric == WHITE_IS_ZERO and tag.PHOTOMETRIC in page:
            pixels = np.iinfo(pixels.dtype).max - pixels
    else:
        if photometric == WHITE_IS_ZERO:
            pixels = ((1 << bits) - 1) - pixels
        if bits < 8:  # as every viewer shows it, and as PNG does
            pixels = (pixels.astype(np.uint16) * 255 // ((1 << bits) - 1)).astype(np.uint8)
    return np.ascontiguousarray(pixels), notes


def _without_extra(pixels: np.ndarray, colours: int, page: Directory, where: str) -> tuple[np.ndarray, list[str]]:
    """The colours of pixels (H, W, S), as (H, W) or (H, W, 3); and notes on a channel that is not taken."""
    samples = pixels.shape[2]
    if samples == 1:
        return pixels[..., 0], []
    if samples == 3:
        return pixels, [] if colours == 3 else ["has three grey channels, taken as red, green and blue"]
    extra, pixels = pixels[..., -1], pixels[..., :-1]
    kind, low, high = page.number(tag.EXTRA_SAMPLES, 0), extra.min().item(), extra.max().item()
    if kind == PREMULTIPLIED and low < (1 if extra.dtype.kind == "f" else np.iinfo(extra.dtype).max):
        raise InputError(f"{where}: its colours are multiplied by a transparency; save it without transparency")
    if kind not in (PREMULTIPLIED, ALPHA) and colours == 1 and low < high:
        raise InputError(f"{where}: 2 channels, not 1 or 3; save each channel as its own file {HOW}")
    pixels = pixels[..., 0] if colours == 1 else pixels
    return pixels, [f"has a channel more, of transparency or something else ({low} to {high}), which is not taken"] * (
        low < high
    )


def _from_palette(pixels: np.ndarray, page: Directory, bits: int, where: str) -> np.ndarray:
    """Indices (H, W) as colours (H, W, 3). A colour map has 16 bits a value; some programs write 8."""
    check_size(pixels.shape[1], pixels.shape[0], where, 3)
    colours = np.array(page.numbers(tag.COLOUR_MAP)[: 3 << bits], np.uint16).reshape(3, -1)
    colours = colours if colours.max() < 256 else colours >> 8
    return colours.astype(np.uint8).T[pixels]
