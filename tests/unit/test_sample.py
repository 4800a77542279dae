"""Images in and out of TIFF and PNG, compared with what PIL and tifffile make of them."""

import io
import struct
import time
import zlib
from itertools import pairwise

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from glioma_dist.data.images.reader import ImageReader
from glioma_dist.data.sample import decode_image, decode_mask, encode_image, encode_mask, read_image
from glioma_dist.errors import InputError

GREY = np.arange(7 * 9, dtype=np.uint8).reshape(7, 9) * 3
RGB = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
GREY16 = GREY.astype(np.uint16) * 257 + 5


@pytest.fixture(scope="module")
def reader():
    with ImageReader() as reader:
        yield reader


def png_bytes(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 13), (13, 1), (6, 9), (1, 1, 3), (1, 3, 3), (5, 8, 3), (3, 3, 3)])
def test_an_image_comes_back_as_it_was(kind, shape):
    highest = np.iinfo(kind).max
    noise = np.random.default_rng(3).integers(0, highest + 1, shape).astype(kind)
    for image in (noise, np.zeros(shape, kind), np.full(shape, highest, kind)):
        back = decode_image(encode_image(image), "here")
        assert back.dtype == image.dtype
        np.testing.assert_array_equal(back, image)
        assert encode_image(image) == encode_image(np.asfortranarray(image))


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (3, 7), (4, 9), (2, 16), (40, 33)])
@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_a_mask_comes_back_and_is_one_bit_for_pil(shape, share):
    mask = (np.random.default_rng(4).random(shape) < share).astype(np.uint8)
    data = encode_mask(mask)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "1"
        np.testing.assert_array_equal(np.asarray(image), mask == 1)
    np.testing.assert_array_equal(decode_mask(data, "here"), mask)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    "filters", [(2, 2, 2, 2, 2), (0, 0, 0, 0, 0), (0, 2, 2, 0, 2), (2, 0, 2, 2, 0), (2, 1, 2, 3, 4)]
)
def test_rows_of_every_filter_are_read_as_opencv_reads_them(dtype, filters):
    """Also a first row that is the difference to the one above it, which is 0."""
    width, kind = 7, 8 * np.dtype(dtype).itemsize
    row_bytes = width * kind // 8
    lines = np.random.default_rng(len(set(filters))).integers(0, 256, (len(filters), 1 + row_bytes), np.uint8)
    lines[:, 0] = filters

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, len(filters), kind, 0, 0, 0, 0)
    packed = chunk(b"IDAT", zlib.compress(lines.tobytes()))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + packed + chunk(b"IEND", b"")
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decode_image(data, "here"), expected)


def test_pil_reads_the_colours_in_the_same_order():
    with Image.open(io.BytesIO(encode_image(RGB))) as image:
        np.testing.assert_array_equal(np.asarray(image), RGB)


@pytest.mark.parametrize("wrong", [GREY.astype(np.float32), RGB[..., :2], RGB[None]])
def test_what_is_no_image_is_not_encoded(wrong):
    with pytest.raises(ValueError, match="an image"):
        encode_image(wrong)


@pytest.mark.parametrize("wrong", [GREY, GREY16, RGB])
def test_what_is_no_mask_is_not_encoded(wrong):
    with pytest.raises(ValueError, match="a mask"):
        encode_mask(wrong)


def test_png_kinds():
    alpha = np.full(GREY.shape, 100, np.uint8)
    palette = Image.fromarray(RGB).quantize(16)
    cases = [
        (Image.fromarray(GREY), GREY),
        (Image.fromarray(GREY16), GREY16),
        (Image.fromarray(np.stack([GREY, alpha], -1), "LA"), GREY),
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(np.dstack([RGB, alpha]), "RGBA"), RGB),
        (palette, np.asarray(palette.convert("RGB"))),
        (Image.fromarray(GREY > 90), (GREY > 90).astype(np.uint8) * 255),
    ]
    for image, expected in cases:
        found = decode_image(png_bytes(image), "here")
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected, err_msg=image.mode)


def test_masks_of_other_kinds_are_cells_wherever_they_are_not_black():
    labels = np.where(GREY > 90, 3, 0).astype(np.uint16)
    faint = np.dstack([labels > 0] + 2 * [np.zeros_like(labels)]).astype(np.uint8)
    opaque = np.full(GREY.shape, 255, np.uint8)
    for image in (
        *(Image.fromarray(labels), Image.fromarray(labels.astype(np.uint8)), Image.fromarray(GREY > 90)),
        *(Image.fromarray(faint), Image.fromarray(np.dstack([faint, opaque]), "RGBA")),
    ):
        np.testing.assert_array_equal(decode_mask(png_bytes(image), "here"), GREY > 90, err_msg=image.mode)


def test_tiff_kinds(tmp_path, reader):
    path = tmp_path / "a.tif"
    cases = [
        (GREY, GREY, {}),
        (GREY, GREY, {"compression": "lzw", "predictor": True}),
        (GREY, GREY, {"compression": "zlib", "rowsperstrip": 2}),
        (GREY16, GREY16, {"byteorder": ">"}),
        (RGB, RGB, {"photometric": "rgb"}),
        (np.moveaxis(RGB, -1, 0), RGB, {"photometric": "rgb", "planarconfig": "separate"}),
        (np.dstack([RGB, GREY]), RGB, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        (
            np.dstack([GREY, GREY]),
            GREY,
            {"photometric": "minisblack", "extrasamples": ["unassalpha"], "planarconfig": 1},
        ),
        (GREY, 255 - GREY, {"photometric": "miniswhite"}),
        (np.tile(GREY, (30, 30)), np.tile(GREY, (30, 30)), {"tile": (64, 64)}),
    ]
    for pixels, expected, options in cases:
        tifffile.imwrite(path, pixels, **options)
        found = reader.read(path).pixels
        assert found.dtype == expected.dtype
        assert found.dtype.isnative
        np.testing.assert_array_equal(found, expected, err_msg=str(options))


def test_one_image_alone_is_read_too(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), RGB)


def test_tiff_with_palette(tmp_path, reader):
    palette = Image.fromarray(RGB).quantize(16)
    palette.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(reader.read(tmp_path / "a.tif").pixels, np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("name", ["whole.png", "whole.tif"])
def test_a_file_cut_short_anywhere_is_named(tmp_path, name, reader):
    image = np.random.default_rng(1).integers(0, 256, (40, 30), dtype=np.uint8)
    path = tmp_path / name
    if name.endswith("png"):
        path.write_bytes(encode_image(image))
    else:
        tifffile.imwrite(path, image, compression="lzw", rowsperstrip=8, metadata=None)
    whole = path.read_bytes()
    if name.endswith("png"):
        kept = range(0, len(whole), 37)
    else:
        with tifffile.TiffFile(path) as tiff:
            last = max(o + n for o, n in zip(tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts, strict=True))
        kept = range(0, last, 37)
    for length in [*kept, len(whole) - 1 if name.endswith("png") else last - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=rf"{name}: .*(cut short|not a (PNG|TIFF)|damaged|is empty)"):
            reader.read(path)


def test_a_damaged_png_is_named():
    data = bytearray(encode_image(np.tile(GREY, (4, 4))))
    data[len(data) // 2] ^= 0x10
    with pytest.raises(InputError, match=r"tar: k\.png: .*damaged"):
        decode_image(bytes(data), "tar: k.png")
    with pytest.raises(InputError, match=r"tar: k\.png"):
        decode_mask(bytes(data), "tar: k.png")


def test_damage_anywhere_in_a_tiff_is_an_input_error_or_no_damage(tmp_path, reader):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.tile(GREY, (8, 8)), compression="lzw", rowsperstrip=8)
    whole = path.read_bytes()
    generator = np.random.default_rng(2)
    messages, start = [], time.monotonic()
    for _ in range(150):
        data = bytearray(whole)
        for place in generator.integers(0, len(data), 3):
            data[place] = generator.integers(0, 256)
        path.write_bytes(data)
        try:
            reader.read(path)
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all("a.tif" in message and "\n" not in message for message in messages)
    assert time.monotonic() - start < 30


def test_headers_that_promise_too_much_are_refused_before_decoding(tmp_path, reader):
    header = struct.pack(">IIBBBBB", 10**6, 10**6, 8, 0, 0, 0, 0)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(InputError, match="1000000x1000000"):
        decode_image(bomb, "bomb")
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, np.zeros((4, 4), np.uint8))
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["ImageWidth"].overwrite(2**30)
        tiff.pages[0].tags["ImageLength"].overwrite(2**20)
    with pytest.raises(InputError, match="1073741824x1048576"):
        reader.read(path)


def test_what_cannot_be_used_says_what_to_do(tmp_path, reader):
    stack, floats, colours = tmp_path / "stack.tif", tmp_path / "float.tif", tmp_path / "five.tif"
    tifffile.imwrite(stack, np.stack([GREY] * 4), photometric="minisblack")
    tifffile.imwrite(floats, GREY.astype(np.float32))
    tifffile.imwrite(colours, np.dstack([GREY] * 5), photometric="minisblack", planarconfig="contig")
    (tmp_path / "a.bmp").write_bytes(b"x")
    (tmp_path / "text.jpg").write_bytes(b"not a JPEG")
    (tmp_path / "text.png").write_bytes(b"not a PNG")
    (tmp_path / "text.tif").write_bytes(b"not a TIFF")
    cases = [
        ("stack.tif", "stack of 4 pages"),
        ("float.tif", "float32"),
        ("five.tif", "5 channels"),
        ("a.bmp", "use TIFF or PNG"),
        ("text.jpg", "not a JPEG"),
        ("text.png", "not a PNG"),
        ("text.tif", "not a TIFF"),
        ("missing.tif", "no such file"),
        ("missing.png", "no such file"),
    ]
    for name, words in cases:
        with pytest.raises(InputError, match=words) as caught:
            reader.read(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_masks_of_any_other_png_are_read_too():
    """Only those without filters, as ours are, are unpacked here; the rest is a PNG library's work."""
    mask = (np.random.default_rng(4).random((13, 21)) < 0.5).astype(np.uint8)

    def png(kind: tuple[int, ...], lines: bytes, *more: tuple[bytes, bytes]) -> bytes:
        header = struct.pack(">IIBBBBB", 21, 13, *kind, 0, 0, 0)
        chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
        parts = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    rows = np.packbits(mask, axis=1)
    plain = b"".join(b"\0" + row.tobytes() for row in rows)
    up = b"\0" + rows[0].tobytes() + b"".join(b"\2" + (b - a).tobytes() for a, b in pairwise(rows))
    grey = b"".join(b"\0" + (row * 200).tobytes() for row in mask)
    for data in (
        png((1, 0), plain),
        png((1, 0), plain) + b"what follows the end",
        png((1, 0), up),
        png((8, 0), grey),
        png((1, 3), plain, (b"PLTE", bytes([0, 0, 0, 255, 255, 255]))),
    ):
        np.testing.assert_array_equal(decode_mask(data, "here"), mask)
        assert decode_mask(data, "here").flags.writeable
    assert isinstance(decode_mask(png((1, 0), plain + bytes(10**6)), "here"), np.ndarray)
