"""What an image file says of itself beside its pixels: how it lies, what its values mean, how many pictures it holds.

Each is read as Pillow or tifffile show it, or refused by name, or told in a remark; never silently wrong.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from glioma_dist.data.images.orientation import upright
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.errors import InputError

GREY = np.random.default_rng(1).integers(0, 256, (40, 60), dtype=np.uint8)
RGB = np.random.default_rng(2).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def reader():
    with ImageReader() as reader:
        yield reader


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: np.ndarray, depth: int, colour_type: int, *more: bytes, lines: bytes | None = None) -> bytes:
    """A PNG written by hand. pixels: rows of bytes; more: chunks between header and pixels."""
    width = pixels.shape[1] if depth >= 8 else pixels.shape[1] * 8 // depth
    lines = b"".join(b"\0" + row.tobytes() for row in pixels) if lines is None else lines
    header = struct.pack(">IIBBBBB", width, len(pixels), depth, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", header) + b"".join(more) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[274] = orientation
    return found


def retag(path: Path, tag: int, new: int) -> None:
    """Rename a tag of the first page, so that it is missing."""
    data = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", data, 4)
    for place in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12):
        if struct.unpack_from("<H", data, place)[0] == tag:
            struct.pack_into("<H", data, place, new)
    path.write_bytes(data)


def overwrite(path: Path, **tags: object) -> None:
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for name, value in tags.items():
            tiff.pages[0].tags[name].overwrite(value)


MODES = {
    "1": Image.fromarray(GREY > 90),
    "L": Image.fromarray(GREY),
    "I;16": Image.fromarray(GREY.astype(np.uint16) * 257),
    "LA": Image.fromarray(np.dstack([GREY, GREY]), "LA"),
    "P": Image.fromarray(RGB).quantize(16),
    "RGB": Image.fromarray(RGB),
    "RGBA": Image.fromarray(np.dstack([RGB, GREY])),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", MODES)
def test_pixels_are_as_stored_whatever_a_png_says_of_how_it_lies(tmp_path, reader, mode, orientation):
    plain, turned = tmp_path / "plain.png", tmp_path / "turned.png"
    MODES[mode].save(plain)
    MODES[mode].save(turned, exif=exif(orientation))
    expected, found = reader.read(plain), reader.read(turned)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert found.orientation == orientation
    assert expected.orientation == 1
    assert [f"orientation {orientation}:" in remark for remark in found.remarks()] == [True] * (orientation > 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("where", ["tag", "xmp"])
def test_pixels_are_as_stored_whatever_a_tiff_says_of_how_it_lies(tmp_path, reader, orientation, where):
    path = tmp_path / "a.tif"
    xmp = f'<x xmlns:tiff="t" tiff:Orientation="{orientation}"/>'.encode()
    tags = {"tag": (274, "H", 1, orientation, True), "xmp": (700, "B", len(xmp), xmp, True)}
    tifffile.imwrite(path, RGB, photometric="rgb", extratags=[tags[where]])
    found = reader.read(path)
    np.testing.assert_array_equal(found.pixels, RGB)
    assert found.orientation == orientation


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"xmp"])
def test_an_orientation_in_the_text_of_a_png_is_found(tmp_path, reader, kind):
    if kind == b"xmp":
        text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<a><tiff:Orientation>6</tiff:Orientation></a>")
    else:
        data = exif(6).tobytes()
        profile = b"\nexif\n%8d\n" % len(data) + data.hex().encode()
        head = b"Raw profile type exif\0"
        text = {
            b"tEXt": chunk(b"tEXt", head + profile),
            b"zTXt": chunk(b"zTXt", head + b"\0" + zlib.compress(profile)),
            b"iTXt": chunk(b"iTXt", head + b"\1\0\0\0" + zlib.compress(profile)),
        }[kind]
    (tmp_path / "a.png").write_bytes(png(RGB.reshape(40, -1)[:, :60], 8, 0, text))
    assert reader.read(tmp_path / "a.png").orientation == 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_what_pillow_makes_of_it(orientation):
    image = Image.fromarray(RGB)
    image.getexif()[274] = orientation
    np.testing.assert_array_equal(upright(RGB, orientation), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("levels", [4, 16, 256])
def test_colour_maps_of_8_and_of_16_bits(tmp_path, reader, bits, levels):
    colours = np.random.default_rng(3).integers(0, 256, (3, 256), dtype=np.uint16)
    indices = GREY & (levels - 1)
    colour_map = colours * (257 if bits == 16 else 1)
    tifffile.imwrite(tmp_path / "a.tif", indices, photometric="palette", colormap=colour_map)
    np.testing.assert_array_equal(reader.read(tmp_path / "a.tif").pixels, colours.T[indices].astype(np.uint8))


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 14, 16])
def test_grey_of_any_depth(tmp_path, reader, bits, photometric):
    """Fewer than 8 bits fill 0 to 255 as in every viewer; more than 8 stay what the camera counted."""
    highest = (1 << bits) - 1
    values = np.random.default_rng(bits).integers(0, highest + 1, GREY.shape)
    pixels = values.astype(bool if bits == 1 else np.uint8 if bits <= 8 else np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=photometric, bitspersample=bits)
    expected = highest - values if photometric == "miniswhite" else values
    found = reader.read(tmp_path / "a.tif").pixels
    assert found.dtype == (np.uint8 if bits <= 8 else np.uint16)
    np.testing.assert_array_equal(found, expected * 255 // highest if bits < 8 else expected)
    if bits <= 8:
        shown = np.asarray(Image.open(tmp_path / "a.tif").convert("L"))
        np.testing.assert_array_equal(found, shown)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_png_of_few_bits_fills_0_to_255(tmp_path, reader, bits):
    (tmp_path / "a.png").write_bytes(png(GREY, bits, 0))
    shown = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    np.testing.assert_array_equal(reader.read(tmp_path / "a.png").pixels, shown)


@pytest.mark.parametrize(
    "more",
    [
        [chunk(b"gAMA", struct.pack(">I", 22_000))],
        [chunk(b"sBIT", b"\5")],
        [chunk(b"tRNS", b"\0\7")],
        [chunk(b"sRGB", b"\0")],
        [chunk(b"cICP", bytes([9, 16, 0, 1]))],
        [chunk(b"acTL", struct.pack(">II", 1, 0))],
        [chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2**25)))],
        [chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(2**25)))],
        [chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2**25)))],
    ],
    ids=["gamma", "significant bits", "transparent", "sRGB", "cICP", "one frame", "profile", "text", "XMP"],
)
def test_chunks_beside_the_pixels_change_nothing(tmp_path, reader, more):
    (tmp_path / "a.png").write_bytes(png(GREY, 8, 0, *more))
    np.testing.assert_array_equal(reader.read(tmp_path / "a.png").pixels, GREY)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (Image.fromarray(RGB).convert("CMYK"), "CMYK"),
        (Image.fromarray(RGB).convert("YCbCr"), "YCbCr"),
        (Image.fromarray(RGB).convert("LAB"), r"L\*a\*b\*"),
    ],
)
def test_colours_that_are_no_rgb_are_refused_by_name(tmp_path, reader, image, words):
    image.save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=words):
        reader.read(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.uint32, np.int32, np.float16, np.float32, np.float64])
def test_other_numbers_are_refused_by_name(tmp_path, reader, kind):
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(kind))
    with pytest.raises(InputError, match=f"{np.dtype(kind).name}.*8 or 16 bit"):
        reader.read(tmp_path / "a.tif")


def test_channels_beside_the_colours(tmp_path, reader):
    def read(pixels: np.ndarray, **how: object) -> object:
        tifffile.imwrite(tmp_path / "a.tif", pixels, **how)
        return reader.read(tmp_path / "a.tif")

    opaque = np.full(GREY.shape, 255, np.uint8)
    for extra in ("unassalpha", "assocalpha", "unspecified"):
        found = read(np.dstack([RGB, opaque]), photometric="rgb", extrasamples=[extra])
        np.testing.assert_array_equal(found.pixels, RGB)
        assert found.remarks() == []
    found = read(np.dstack([RGB, GREY]), photometric="rgb", extrasamples=["unspecified"])
    assert "a channel more" in found.remarks()[0]
    with pytest.raises(InputError, match="multiplied by a transparency"):
        read(np.dstack([RGB, GREY]), photometric="rgb", extrasamples=["assocalpha"])
    for how in ("contig", "separate"):
        two = np.dstack([GREY, GREY[::-1]]) if how == "contig" else np.stack([GREY, GREY[::-1]])
        with pytest.raises(InputError, match="2 channels"):
            read(two, photometric="minisblack", planarconfig=how, metadata=None)
    found = read(RGB, photometric="minisblack", planarconfig="contig", metadata=None)
    assert "three grey channels" in found.remarks()[0]


def write_stack(path: Path, kind: str) -> int:
    """Write a file that holds or declares several pictures; returns their number."""
    stack = np.stack([GREY] * 5)
    if kind == "pages":
        tifffile.imwrite(path, stack, photometric="minisblack", metadata=None)
    elif kind == "ImageJ":
        tifffile.imwrite(path, stack, imagej=True)
    elif kind == "ImageJ, one page":
        tifffile.imwrite(path, stack, imagej=True, truncate=True)
    elif kind == "ImageJ hyperstack":
        tifffile.imwrite(path, GREY, description="ImageJ=1.54f\nchannels=2\nslices=3\nframes=1\n", metadata=None)
        return 6
    elif kind == "OME":
        tifffile.imwrite(path, stack, ome=True, photometric="minisblack")
    elif kind == "OME, several files":
        xml = '<?xml version="1.0"?><OME><Image><Pixels SizeZ="3" SizeC="2" SizeT="4" SizeX="60"/></Image></OME>'
        tifffile.imwrite(path, GREY, description=xml, metadata=None)
        return 24
    elif kind == "tifffile, one page":
        tifffile.imwrite(path, stack, photometric="minisblack", truncate=True)
    elif kind == "two sizes":
        with tifffile.TiffWriter(path) as tiff:
            tiff.write(GREY, metadata=None)
            tiff.write(np.ascontiguousarray(GREY[:20]), metadata=None)
        return 2
    elif kind == "SubIFD":
        with tifffile.TiffWriter(path) as tiff:
            tiff.write(GREY, subifds=1, metadata=None)
            tiff.write(GREY[::-1].copy(), metadata=None)
        return 2
    elif kind == "depth":
        tifffile.imwrite(path, np.stack([GREY] * 16), volumetric=True, tile=(16, 16, 16), metadata=None)
        return 16
    elif kind == "MetaMorph":
        times = (33629, "I", 18, [0] * 18, True)
        tifffile.imwrite(path, GREY, metadata=None, extratags=[(33628, "I", 1, 0, True), times])
        return 18
    elif kind == "Zeiss LSM":
        header = struct.pack("<8i", 0x400494C, 32, 60, 40, 7, 1, 2, 0)
        tifffile.imwrite(path, GREY, metadata=None, extratags=[(34412, "B", len(header), header, True)])
        return 14
    elif kind == "NIH Image":
        header = bytes(256) + struct.pack("<h", 9) + bytes(100)
        tifffile.imwrite(path, GREY, metadata=None, extratags=[(43314, "B", len(header), header, True)])
        return 9
    elif kind == "FluoView":
        axes = b"".join(struct.pack("<16si80x", name, size) for name, size in ((b"x", 60), (b"y", 40), (b"z", 4)))
        tifffile.imwrite(path, GREY, metadata=None, extratags=[(34361, "B", 284 + len(axes), bytes(284) + axes, True)])
        return 4
    else:
        frames = chunk(b"acTL", struct.pack(">II", 5, 0))
        path.write_bytes(png(GREY, 8, 0, frames))
    return 5


STACKS = ["pages", "ImageJ", "ImageJ, one page", "ImageJ hyperstack", "OME", "OME, several files"]
STACKS += ["tifffile, one page", "two sizes", "SubIFD", "depth", "MetaMorph", "Zeiss LSM", "NIH Image", "FluoView"]


@pytest.mark.parametrize("kind", [*STACKS, "APNG"])
def test_whatever_holds_several_pictures_is_refused_with_their_number(tmp_path, reader, kind):
    path = tmp_path / ("a.png" if kind == "APNG" else "a.tif")
    number = write_stack(path, kind)
    with pytest.raises(InputError, match=f"a stack of {number} pages.*save each page as its own file"):
        reader.read(path)


def test_thumbnails_pyramids_and_metadata_of_one_plane_are_no_stacks(tmp_path, reader):
    small = np.ascontiguousarray(GREY[::2, ::2])

    def check(write: object) -> None:
        with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
            write(tiff)
        np.testing.assert_array_equal(reader.read(tmp_path / "a.tif").pixels, GREY)

    check(lambda tiff: (tiff.write(GREY, subifds=1), tiff.write(small, subfiletype=1)))
    check(lambda tiff: (tiff.write(GREY), tiff.write(small, subfiletype=1)))
    check(lambda tiff: (tiff.write(small, subfiletype=1, metadata=None), tiff.write(GREY, metadata=None)))
    for how in ({"imagej": True}, {"ome": True}, {"metadata": {"axes": "YX"}}):
        tifffile.imwrite(tmp_path / "a.tif", GREY, **how)
        np.testing.assert_array_equal(reader.read(tmp_path / "a.tif").pixels, GREY)
    tifffile.imwrite(tmp_path / "a.tif", RGB, ome=True, photometric="rgb")
    np.testing.assert_array_equal(reader.read(tmp_path / "a.tif").pixels, RGB)


@pytest.mark.parametrize("rows", [40, 8])
@pytest.mark.parametrize("counts", ["zero", "missing", "too long"])
def test_uncompressed_tiffs_whose_byte_counts_say_nothing(tmp_path, reader, rows, counts):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY, rowsperstrip=rows, metadata=None)
    number = 40 // rows
    if counts == "missing":
        retag(path, 279, 65_000)
    elif counts == "too long":
        overwrite(path, StripByteCounts=[60 * rows] * (number - 1) + [60_000] if number > 1 else 60_000)
    else:
        overwrite(path, StripByteCounts=[0] * number if number > 1 else 0)
    for data in (path.read_bytes(), path.read_bytes() + b"what follows"):
        path.write_bytes(data)
        np.testing.assert_array_equal(reader.read(path).pixels, GREY)
        np.testing.assert_array_equal(np.asarray(Image.open(path)), GREY)
    path.write_bytes(path.read_bytes()[:-30])  # of the pixels, too
    with pytest.raises(InputError, match="cut short"):
        reader.read(path)


def test_a_compressed_strip_without_a_length_ends_with_the_file(tmp_path, reader):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY, compression="lzw", metadata=None)
    overwrite(path, StripByteCounts=0)
    np.testing.assert_array_equal(reader.read(path).pixels, GREY)
    tifffile.imwrite(path, GREY, compression="lzw", rowsperstrip=8, metadata=None)
    overwrite(path, StripByteCounts=[0] * 5)
    with pytest.raises(InputError, match="cut short"):
        reader.read(path)


def test_tiles_that_are_not_in_the_file_are_empty_and_told(tmp_path, reader):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.tile(GREY, (2, 2)), tile=(16, 16), metadata=None)
    with tifffile.TiffFile(path) as tiff:
        offsets, counts = list(tiff.pages[0].dataoffsets), list(tiff.pages[0].databytecounts)
        expected = tiff.pages[0].asarray()
    overwrite(path, TileOffsets=[0, *offsets[1:]], TileByteCounts=[0, *counts[1:]])
    expected[:16, :16] = 0
    found = reader.read(path)
    np.testing.assert_array_equal(found.pixels, expected)
    assert "1 of 40" in found.remarks()[0]
    overwrite(path, TileOffsets=[0] * 40, TileByteCounts=[0] * 40)
    with pytest.raises(InputError, match="none of the TIFF"):
        reader.read(path)


def test_a_name_that_says_another_format_does_not_matter_and_is_told(tmp_path, reader):
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "jpeg")
    Image.fromarray(RGB).save(tmp_path / "a.tif", "png")
    Image.fromarray(RGB).save(tmp_path / "b.png", "tiff")
    for name in ("a.tif", "b.png"):
        found = reader.read(tmp_path / name)
        np.testing.assert_array_equal(found.pixels, RGB)
        assert "by its first bytes" in found.remarks()[0]
    (tmp_path / "c.tif").write_bytes(buffer.getvalue())
    found = reader.read(tmp_path / "c.tif")
    np.testing.assert_array_equal(found.pixels, np.array(Image.open(buffer)))
    assert found.remarks() == ["is a JPEG by its first bytes, and read as that"]
