"""Strips and tiles whose tags or lengths are not the usual ones, against Pillow's libtiff, which reads them."""

import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from glioma_dist.data.images.reader import ImageReader
from glioma_dist.errors import InputError

ROWS = 10
MIRROR = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
NOISE = np.random.default_rng(3)
GREY = NOISE.integers(0, 256, (37, 53), dtype=np.uint8)
GREY_16 = NOISE.integers(0, 2**16, (37, 53), dtype=np.uint16)
RGB = NOISE.integers(0, 256, (37, 53, 3), dtype=np.uint8)
PACK = {8: zlib.compress, 32946: zlib.compress, 32773: imagecodecs.packbits_encode, 50000: imagecodecs.zstd_encode}


@pytest.fixture(scope="module")
def reader():
    with ImageReader() as reader:
        yield reader


def write_tiff(path: Path, streams: list[bytes], **tags: int | list[int]) -> None:
    """A TIFF of 53x37 pixels by hand. tags: their numbers, as `t317`, with one value or several (of 16 bits)."""
    offsets, data = [], bytearray(8)
    for stream in streams:
        offsets.append(len(data))
        data += stream + bytes(len(stream) % 2)
    at, sizes = (324, 325) if "t322" in tags else (273, 279)
    values = {256: [53], 257: [37], 258: [8], 259: [1], 262: [1], 277: [1]}
    values |= {int(name[1:]): value if isinstance(value, list) else [value] for name, value in tags.items()}
    values = {number: value for number, value in values.items() if value}
    values |= {at: offsets, sizes: [len(stream) for stream in streams]}
    entries = b""
    for number, found in sorted(values.items()):
        kind, letter = (4, "I") if number in (at, sizes) else (3, "H")
        value = struct.pack(f"<{len(found)}{letter}", *found)
        if len(value) > 4:
            place, value = len(data), value + bytes(len(value) % 2)
            data += value
            value = struct.pack("<I", place)
        entries += struct.pack("<HHI", number, kind, len(found)) + value.ljust(4, b"\0")
    data[:8] = b"II*\0" + struct.pack("<I", len(data))
    path.write_bytes(data + struct.pack("<H", len(values)) + entries + bytes(4))


def full_strips(pixels: np.ndarray, more: bytes = b"") -> list[bytes]:
    """Strips of ten rows, the last one too; `more` behind each."""
    filled = np.concatenate([pixels, np.full((3, *pixels.shape[1:]), 77, pixels.dtype)])
    return [filled[start : start + ROWS].tobytes() + more for start in range(0, 37, ROWS)]


def differences(pixels: np.ndarray) -> np.ndarray:
    found = pixels.copy()
    found[:, 1:] -= pixels[:, :-1]
    return found


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_a_last_strip_that_is_as_long_as_the_others_is_read(tmp_path, reader, compression, is_mirrored):
    streams = [PACK[compression](strip) for strip in full_strips(GREY)]
    streams = [stream.translate(MIRROR) for stream in streams] if is_mirrored else streams
    write_tiff(tmp_path / "a.tif", streams, t259=compression, t266=1 + is_mirrored, t278=ROWS)
    found = reader.read(tmp_path / "a.tif")
    np.testing.assert_array_equal(found.pixels, GREY)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.tif")), GREY)
    assert "1 strips or tiles hold more than their pixels" in found.remarks()[0]


@pytest.mark.parametrize(
    ("pixels", "streams", "tags"),
    [
        (GREY_16, full_strips(GREY_16), {"t258": 16}),
        (GREY_16, full_strips(differences(GREY_16)), {"t258": 16, "t317": 2}),
        (RGB, full_strips(RGB), {"t258": [8] * 3, "t262": 2, "t277": 3}),
        (RGB, full_strips(differences(RGB), b"more"), {"t258": [8] * 3, "t262": 2, "t277": 3, "t317": 2}),
        (
            RGB,
            [strip for channel in range(3) for strip in full_strips(RGB[..., channel])],
            {"t258": [8] * 3, "t262": 2, "t277": 3, "t284": 2},
        ),
    ],
    ids=["16 bit", "16 bit, differences", "RGB", "RGB, differences", "RGB, planes"],
)
def test_deflated_strips_that_are_too_long_in_every_layout(tmp_path, reader, pixels, streams, tags):
    write_tiff(tmp_path / "a.tif", [zlib.compress(stream) for stream in streams], t259=8, t278=ROWS, **tags)
    np.testing.assert_array_equal(reader.read(tmp_path / "a.tif").pixels, pixels)


@pytest.mark.parametrize("size", [(16, 16), (48, 64), (64, 16)])
def test_deflated_tiles_that_are_too_long(tmp_path, reader, size):
    width, length = size
    canvas = np.zeros((-(-37 // length) * length, -(-53 // width) * width), np.uint8)
    canvas[:37, :53] = GREY
    tiles = [
        zlib.compress(canvas[top : top + length, left : left + width].tobytes() + b"more")
        for top in range(0, 37, length)
        for left in range(0, 53, width)
    ]
    write_tiff(tmp_path / "a.tif", tiles, t259=8, t322=width, t323=length)
    np.testing.assert_array_equal(reader.read(tmp_path / "a.tif").pixels, GREY)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.tif")), GREY)


@pytest.mark.parametrize("compression", [32773, 50000])
def test_streams_without_a_checksum_that_are_too_long_are_refused(tmp_path, reader, compression):
    streams = [PACK[compression](strip) for strip in full_strips(GREY, b"more")]
    write_tiff(tmp_path / "a.tif", streams, t259=compression, t278=ROWS)
    with pytest.raises(InputError, match="it is damaged"):
        reader.read(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", PACK)
def test_streams_that_are_too_short_are_refused(tmp_path, reader, compression):
    strips = full_strips(GREY)
    streams = [PACK[compression](strip[:-53] if number == 1 else strip) for number, strip in enumerate(strips)]
    write_tiff(tmp_path / "a.tif", streams, t259=compression, t278=ROWS)
    with pytest.raises(InputError, match="it is damaged"):
        reader.read(tmp_path / "a.tif")


def test_a_small_stream_that_unpacks_to_a_gigabyte_is_refused(tmp_path, reader):
    packer = zlib.compressobj(9)
    stream = b"".join(packer.compress(bytes(2**20)) for _ in range(1024)) + packer.flush()
    write_tiff(tmp_path / "a.tif", [stream], t259=8)
    with pytest.raises(InputError, match="far more memory to decode"):
        reader.read(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [1, 8])
def test_one_strip_of_0_rows_is_the_image(tmp_path, reader, compression):
    data = GREY.tobytes()
    write_tiff(tmp_path / "a.tif", [data if compression == 1 else zlib.compress(data)], t259=compression, t278=0)
    np.testing.assert_array_equal(reader.read(tmp_path / "a.tif").pixels, GREY)


def test_a_predictor_that_the_compression_does_not_have_is_ignored_or_refused(tmp_path, reader):
    path = tmp_path / "a.tif"
    write_tiff(path, [GREY.tobytes()], t317=2)
    found = reader.read(path)
    np.testing.assert_array_equal(found.pixels, GREY)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), GREY)
    assert "predictor" in found.remarks()[0]
    # libtiff ignores it here, too, but tifffile writes such files with differences.
    write_tiff(path, [imagecodecs.packbits_encode(GREY.tobytes())], t259=32773, t317=2)
    with pytest.raises(InputError, match="predictor with compression 32773"):
        reader.read(path)


def test_colours_without_a_number_of_bits_are_refused(tmp_path, reader):
    """The standard's default is one bit, and the strip has eight times the bytes."""
    write_tiff(tmp_path / "a.tif", [RGB.tobytes()], t258=[], t262=2, t277=3)
    with pytest.raises(InputError, match="does not say how many bits a colour has"):
        reader.read(tmp_path / "a.tif")
