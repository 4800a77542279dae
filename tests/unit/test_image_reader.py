"""Files made to harm, and the process that they are read in: one line each, in bounded time and memory, and the next
image is read."""

import contextlib
import os
import resource
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from test_image_kinds import chunk, png

from glioma_dist.data.images import reader as image_reader
from glioma_dist.data.images.lzw import is_valid_lzw
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.data.sample import decode_image, decode_mask, encode_image, encode_mask
from glioma_dist.errors import InputError, UnavailableError

GREY = np.random.default_rng(1).integers(0, 256, (40, 60), dtype=np.uint8)
# A decoder that does to its process what the file's name says, in the process that real ones run in.
TREACHEROUS = """
import json, os, signal, sys, time; sys.path[:] = json.loads(sys.argv[2])
import numpy as np
from glioma_dist.data.images import decoding, worker
real = decoding.decode_file
def decode_file(path, where, reserve):
    name = os.path.basename(path)
    if name.startswith("segmentation-fault") or (name.startswith("after") and "before" in seen):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("endless"):
        time.sleep(600)
    if name.startswith("hungry"):
        np.ones(2**40 // 2**6, np.uint8)
    if name.startswith("chance"):
        os.kill(os.getpid(), signal.SIGSEGV) if seen else None
        return decoding.DecodedImage(np.frombuffer(os.urandom(64), np.uint8).reshape(8, 8))
    if name.startswith("bug"):
        raise ZeroDivisionError
    seen.append("before" if name.startswith("before") else name)
    return real(path, where, reserve)
seen = []
decoding.decode_file = decode_file
worker.serve(int(sys.argv[1]))
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("good", "before", "after", "segmentation-fault", "endless", "hungry", "chance", "bug"):
        tifffile.imwrite(tmp_path / f"{name}.tif", GREY, metadata=None)
    return tmp_path


@pytest.fixture
def treacherous(monkeypatch, request):
    """Little time where the decoder is silent, as all of it is waited for; much where it answers."""
    monkeypatch.setattr(image_reader, "PROGRAM", TREACHEROUS)
    with ImageReader(seconds=3 if "endless" in request.node.name else 60) as reader:
        yield reader


@pytest.fixture(scope="module")
def reader():
    with ImageReader() as reader:
        yield reader


def refused(reader: ImageReader, path: Path, seconds: float = 30) -> str:
    """The one line with which a file is refused, soon."""
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        reader.read(path)
    message = str(caught.value)
    assert time.monotonic() - start < seconds
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 500 + len(str(path))
    return message


def check_good(reader: ImageReader, folder: Path) -> None:
    np.testing.assert_array_equal(reader.read(folder / "good.tif").pixels, GREY)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("segmentation-fault", "crashed on it.*SIGSEGV"),
        ("endless", "not decoded within 3 s"),
        ("hungry", "far more memory"),
        ("bug", "crashed on it.*exit code 1"),
    ],
)
def test_a_decoder_that_harms_its_process_ends_one_image(treacherous, folder, name, words):
    check_good(treacherous, folder)
    assert refused(treacherous, folder / f"{name}.tif", 30)
    check_good(treacherous, folder)
    with pytest.raises(InputError, match=words):
        treacherous.read(folder / f"{name}.tif")


def test_images_that_are_asked_for_ahead_come_in_order_whatever_befalls_one(treacherous, folder):
    names = ["good", "segmentation-fault", "good", "good", "bug", "missing", "hungry", "good"]
    found = list(treacherous.read_each([folder / f"{name}.tif" for name in names]))
    assert [isinstance(image, InputError) for image in found] == [name != "good" for name in names]
    for name, image in zip(names, found, strict=True):
        if name == "good":
            np.testing.assert_array_equal(image.pixels, GREY)
        else:
            assert f"{name}.tif: " in str(image)


def test_an_image_is_not_blamed_for_what_the_one_before_did(treacherous, folder):
    treacherous.read(folder / "before.tif")
    np.testing.assert_array_equal(treacherous.read(folder / "after.tif").pixels, GREY)


def test_pixels_of_chance_are_no_image(treacherous, folder):
    check_good(treacherous, folder)
    assert "crashed on it" in refused(treacherous, folder / "chance.tif", 30)


def test_a_reader_may_be_closed_left_and_forked(folder):
    reader = ImageReader()
    iterator = reader.read_each([folder / "good.tif", folder / "after.tif", folder / "before.tif"])
    next(iterator)
    iterator.close()
    check_good(reader, folder)
    child = os.fork()
    if child == 0:
        try:
            check_good(reader, folder)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    check_good(reader, folder)
    process = reader._process
    reader.close()
    assert process.poll() is not None
    check_good(reader, folder)
    reader.close()


def test_a_fork_while_an_image_is_read_ahead_asks_for_it_itself(folder):
    reader = ImageReader(20)
    iterator = reader.read_each([folder / "good.tif", folder / "after.tif"])
    next(iterator)
    child = os.fork()
    if child == 0:
        try:
            np.testing.assert_array_equal(reader.read(folder / "after.tif").pixels, GREY)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(next(iterator).pixels, GREY)
    reader.close()


def test_a_process_that_does_not_start_is_unavailable(monkeypatch, folder):
    monkeypatch.setattr(image_reader, "PROGRAM", "raise SystemExit(3)")
    with pytest.raises(UnavailableError, match="did not start"), ImageReader() as reader:
        reader.read(folder / "good.tif")


def test_the_process_ends_with_the_one_that_started_it(folder):
    into, out = os.pipe()
    child = os.fork()
    if child == 0:
        reader = ImageReader()
        reader.read(folder / "good.tif")
        os.write(out, str(reader._process.pid).encode())
        os._exit(0)
    os.waitpid(child, 0)
    worker = int(os.read(into, 20))
    deadline = time.monotonic() + 60
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # then it has ended
        while Path(f"/proc/{worker}/stat").read_text().split(")")[1].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.05)


def directory(following: int) -> bytes:
    """An empty TIFF directory that leads to another one."""
    return struct.pack("<HI", 0, following)


def test_chains_of_directories_end(tmp_path, reader):
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + directory(8))
    assert "leads back" in refused(reader, path)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + directory(14) + directory(8))
    assert "leads back" in refused(reader, path)
    long = b"".join(directory(8 + 6 * number) for number in range(1, 300_001))
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + long)
    assert "more than 4096 pages" in refused(reader, path)
    path.write_bytes(b"II+\0" + struct.pack("<HHQ", 8, 0, 16) + struct.pack("<QQ", 0, 16))
    assert "leads back" in refused(reader, path)
    sub = struct.pack("<HHHII", 1, 330, 4, 1, 8) + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + sub)
    assert refused(reader, path)
    path.write_bytes(b"II*\0" + struct.pack("<I", 10**6) + directory(0))
    assert "cut short" in refused(reader, path)


def peak_kilobytes(reader: ImageReader) -> int:
    status = Path(f"/proc/{reader._process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def bombs() -> dict[str, object]:
    """Name -> what writes a small file that decodes to far too much."""

    def tiff(path: Path, kind: type, channels: int, **tags: int) -> None:
        pixels = np.zeros((16, 16, channels), kind) if channels > 1 else np.zeros((16, 16), kind)
        tifffile.imwrite(path, pixels, photometric="minisblack", compression="zlib", planarconfig=1, metadata=None)
        with tifffile.TiffFile(path, mode="r+") as file:
            for name, value in tags.items():
                file.pages[0].tags[name].overwrite(value)

    side = {"ImageWidth": 2**14, "ImageLength": 2**14}

    def great_png(path: Path, depth: int, colour_type: int, side: int) -> None:
        header = struct.pack(">IIBBBBB", side, side, depth, colour_type, 0, 0, 0)
        zeros = chunk(b"IDAT", zlib.compress(bytes(2**20)))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + zeros + chunk(b"IEND", b""))

    def long(path: Path, num_bytes: int) -> None:
        tiff(path, np.uint8, 1) if path.suffix == ".tif" else great_png(path, 8, 0, 2**10)
        os.truncate(path, num_bytes)

    return {
        "long.tif": lambda path: long(path, 2**40 + 1),
        "long.png": lambda path: long(path, 2**30 + 1),
        "floats.tif": lambda path: tiff(path, np.float64, 1, **side),
        "channels.tif": lambda path: tiff(path, np.uint8, 40, **side),
        "colours.tif": lambda path: tiff(path, np.uint16, 4, **side),
        "size.tif": lambda path: tiff(path, np.uint8, 1, ImageWidth=2**20, ImageLength=2**20),
        "none.tif": lambda path: tiff(path, np.uint8, 1, ImageWidth=0),
        "size.png": lambda path: great_png(path, 8, 0, 2**20),
        "colours.png": lambda path: great_png(path, 16, 6, 2**14),
        "none.png": lambda path: great_png(path, 8, 0, 0),
    }


@pytest.mark.parametrize("name", bombs())
def test_what_decodes_to_too_much_is_refused_before_it_is_decoded(tmp_path, name):
    bombs()[name](tmp_path / name)
    tifffile.imwrite(tmp_path / "good.tif", GREY)
    with ImageReader() as reader:
        check_good(reader, tmp_path)
        before = peak_kilobytes(reader)
        assert refused(reader, tmp_path / name)
        assert peak_kilobytes(reader) - before < 50_000
        check_good(reader, tmp_path)


@pytest.mark.parametrize(("depth", "colour_type"), [(16, 6), (16, 2), (8, 6), (16, 4)])
def test_pngs_of_shards_have_the_same_bounds(depth, colour_type):
    header = struct.pack(">IIBBBBB", 2**14 + 1, 2**14, depth, colour_type, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"s\.tar: k\.png: claims"):
        decode_image(data, "s.tar: k.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path, reader, suffix):
    makers = {
        "pipe": lambda path: os.mkfifo(path),
        "folder": lambda path: path.mkdir(),
        "zeros": lambda path: path.symlink_to("/dev/zero"),
        "loop": lambda path: path.symlink_to(path),
        "nowhere": lambda path: path.symlink_to(path.with_name("missing")),
        "nothing": lambda path: path.write_bytes(b""),
    }
    words = {}
    for name, make in makers.items():
        path = tmp_path / f"{name}{suffix}"
        make(path)
        words[name] = refused(reader, path, 3)
    assert "pipe" in words["pipe"]
    assert "device" in words["zeros"]
    assert "folder" in words["folder"]
    assert "link" in words["loop"]
    assert "no such file" in words["nowhere"]
    assert "empty" in words["nothing"]
    missing = tmp_path / f"{'long' * 100}{suffix}"
    assert "too long" in refused(reader, missing)


@pytest.mark.parametrize("name", ["k\udcf6ln.tif", "ko\u0308ln.png", "line\nfeed.tif", "-flag.png", "細胞.tif"])
def test_names_of_any_bytes_are_read(tmp_path, reader, name):
    path = tmp_path / name
    if name.endswith("tif"):
        with open(path, "wb") as file:
            tifffile.imwrite(file, GREY)
    else:
        path.write_bytes(png(GREY, 8, 0))
    np.testing.assert_array_equal(reader.read(path).pixels, GREY)
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="not a"):
        reader.read(path)


def test_damaged_lzw_never_reaches_the_decoder(tmp_path, reader):
    """A code that the table does not hold: decoders crash on it, or find any pixels at all."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.tile(GREY, (4, 4)), compression="lzw", rowsperstrip=160, metadata=None)
    with tifffile.TiffFile(path) as tiff:
        (start,), (count,) = tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts
    whole = path.read_bytes()
    assert is_valid_lzw(whole[start : start + count])
    num_refused, generator = 0, np.random.default_rng(0)
    for _ in range(40):
        data = bytearray(whole)
        # The first codes after a clear: few entries are in the table.
        data[start + int(generator.integers(1, 30))] ^= int(generator.integers(1, 256))
        path.write_bytes(bytes(data))
        if not is_valid_lzw(bytes(data[start : start + count])):
            num_refused += 1
            assert "no LZW" in refused(reader, path)
        else:
            first = _pixels_or_words(reader, path)
            assert first == _pixels_or_words(reader, path)
    assert num_refused > 10


def _pixels_or_words(reader: ImageReader, path: Path) -> bytes | str:
    try:
        return reader.read(path).pixels.tobytes()
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits", "jpeg", "zstd", "jpeg2000", "lzma"])
def test_every_codec_survives_damage(tmp_path, reader, compression):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.tile(GREY, (2, 2)), compression=compression, metadata=None, photometric="minisblack")
    whole = path.read_bytes()
    generator = np.random.default_rng(2)
    for _ in range(12):
        data = bytearray(whole)
        for place in generator.integers(200, len(data), 4):
            data[place] = generator.integers(0, 256)
        path.write_bytes(data)
        words = _pixels_or_words(reader, path)
        assert isinstance(words, bytes) or words.startswith(f"{path}: ")
    path.write_bytes(whole)
    assert isinstance(_pixels_or_words(reader, path), bytes)


def test_readers_in_several_threads_do_not_disturb_each_other(folder):
    found = []

    def work() -> None:
        with ImageReader() as reader:
            for image in reader.read_each([folder / "good.tif"] * 20):
                found.append(np.array_equal(image.pixels, GREY))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [True] * 60


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_great_images_of_one_colour_are_no_bombs(tmp_path, reader, suffix):
    path, side = tmp_path / f"a{suffix}", 9000
    if suffix == ".tif":
        tifffile.imwrite(path, np.full((side, side), 7, np.uint8), compression="zlib", rowsperstrip=side)
    else:
        path.write_bytes(encode_image(np.full((side, side), 7, np.uint8)))
    pixels = reader.read(path).pixels
    assert pixels.shape == (side, side)
    assert (pixels == 7).all()
    mask = encode_mask(np.zeros((side, side), np.uint8))
    assert len(mask) < 50_000
    assert not decode_mask(mask, "here").any()
