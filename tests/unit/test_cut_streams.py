"""Compressed strips and tiles of a TIFF that are cut short or of another size, whatever compressed them; a PNG that
hides another one."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from helpers import draw_sample
from PIL import Image

from glioma_dist.data.images.decoding import decode_file
from glioma_dist.data.sample import encode_image
from glioma_dist.errors import InputError

GREY = draw_sample(3, 80, 64).image
ENCODERS = {
    "lzw": imagecodecs.lzw_encode,
    "adobe_deflate": lambda data: zlib.compress(data.tobytes()),
    "packbits": imagecodecs.packbits_encode,
    "zstd": imagecodecs.zstd_encode,
    "lzma": imagecodecs.lzma_encode,
    "jpeg": imagecodecs.jpeg8_encode,
    "jpeg2000": lambda data: imagecodecs.jpeg2k_encode(data, level=0),
    "jpegxl": lambda data: imagecodecs.jpegxl_encode(data, lossless=True),
    "jpegxr": imagecodecs.jpegxr_encode,
    "png": imagecodecs.png_encode,
    "lerc": imagecodecs.lerc_encode,
}
"""By tifffile's names of the compressions."""


def read(path):
    return decode_file(path, str(path), lambda num_bytes: None)


def write(path, parts, compression, **how) -> None:
    """A TIFF of `GREY`'s size whose strips or tiles are `parts`, compressed already."""
    tifffile.imwrite(path, iter(parts), shape=GREY.shape, dtype=np.uint8, compression=compression, metadata=None, **how)


@pytest.mark.parametrize("compression", ENCODERS)
def test_a_strip_that_is_cut_short_is_refused(tmp_path, compression):
    path, encode = tmp_path / "a.tif", ENCODERS[compression]
    parts = [bytes(encode(np.ascontiguousarray(GREY[top : top + 16]))) for top in range(0, 64, 16)]
    write(path, parts, compression, rowsperstrip=16)
    np.testing.assert_allclose(read(path).pixels, GREY, atol=60 if compression == "jpeg" else 0)
    for cut in (len(parts[2]) // 2, len(parts[2]) - 20):
        write(path, [*parts[:2], parts[2][:cut], parts[3]], compression, rowsperstrip=16)
        if compression == "lzma" and cut > len(parts[2]) - 30:
            continue  # the end of xz holds no pixels
        with pytest.raises(InputError, match=r"damaged|cut short") as caught:
            read(path)
        assert len(str(caught.value)) <= 500


@pytest.mark.parametrize("kind", ["low", "wide", "rgb"])
@pytest.mark.parametrize("layout", [{}, {"tile": (64, 80)}])
def test_a_jpeg_of_another_size_than_its_strip_is_refused(tmp_path, kind, layout):
    other = {"low": GREY[:32], "wide": np.hstack([GREY, GREY]), "rgb": np.dstack([GREY] * 3)}[kind]
    write(tmp_path / "a.tif", [imagecodecs.jpeg8_encode(np.ascontiguousarray(other))], "jpeg", **layout)
    with pytest.raises(InputError, match=f"are a JPEG of {other.shape[1]}x{other.shape[0]} pixels"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(80, 64), (83, 61), (700, 33)])
def test_a_jpeg_that_pillow_writes_is_read_as_pillow_shows_it(tmp_path, mode, size):
    image = Image.fromarray(GREY).convert(mode).resize(size)
    image.save(tmp_path / "a.tif", compression="jpeg")
    shown = np.asarray(Image.open(tmp_path / "a.tif").convert(mode))
    assert np.abs(read(tmp_path / "a.tif").pixels.astype(int) - shown).max() <= 3


def test_lzw_with_the_bits_of_each_byte_turned_round_is_read(tmp_path):
    turned = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
    part = imagecodecs.lzw_encode(GREY.tobytes()).translate(turned)
    # tifffile does not write the tag FillOrder, so the one before it is renamed.
    write(tmp_path / "a.tif", [part], "lzw", extratags=[(265, 3, 1, 2, True)])
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data.replace(struct.pack("<HHI", 265, 3, 1), struct.pack("<HHI", 266, 3, 1)))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.tif")), GREY)
    np.testing.assert_array_equal(read(tmp_path / "a.tif").pixels, GREY)


def test_a_png_behind_a_png_is_told(tmp_path):
    path, data = tmp_path / "a.png", encode_image(GREY)
    path.write_bytes(data + b"\0" * 7)
    assert not read(path).remarks()
    path.write_bytes(data + encode_image(255 - GREY))
    found = read(path)
    np.testing.assert_array_equal(found.pixels, np.asarray(Image.open(io.BytesIO(data))))
    assert ["another PNG" in remark for remark in found.remarks()] == [True]
