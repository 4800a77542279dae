"""Tars and indexes made to harm: a named error in bounded time and memory, or the samples as they are."""

import io
import json
import shutil
import struct
import tarfile
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import draw_shards
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glioma_dist.data.sample import encode_mask
from glioma_dist.data.shards.inspection import index_folder
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.tar_members import member_table
from glioma_dist.errors import InputError

FUZZ = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """(folder, images by key) of two small shards."""
    folder = draw_shards(tmp_path_factory.mktemp("good") / "train", range(4), 2, width=40, height=32)
    reader = ShardReader(folder)
    samples = [reader.read(shard, place) for shard in range(2) for place in range(2)]
    return folder, {sample.key: sample.image for sample in samples}


def bounded(function: Callable, *arguments: object, mebibytes: float = 32, seconds: float = 10) -> object:
    """What the function returns, or the InputError it raises; nothing else, and within bounds."""
    tracemalloc.start()
    start = time.process_time()
    try:
        found = function(*arguments)
    except InputError as error:
        found = error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert not isinstance(found, InputError) or ("\n" not in str(found) and len(str(found)) <= 500)
    assert time.process_time() - start < seconds
    assert peak < mebibytes * MEBIBYTE
    return found


def read_everything(folder: Path) -> dict:
    reader = ShardReader(folder)
    samples = [reader.read(shard, place) for shard, size in enumerate(reader.shard_sizes) for place in range(size)]
    return {sample.key: sample.image for sample in samples}


def check_nothing_else(found: object, images: dict, by_key: bool = True) -> None:
    """Either an error, or the images as they were written."""
    if isinstance(found, InputError):
        return
    known = {image.tobytes() for image in images.values()}
    for key, image in found.items():
        assert image.tobytes() in known
        assert not by_key or image.tobytes() == images[key].tobytes()


@given(data=st.data())
@FUZZ
def test_bytes_of_a_shard_that_change_are_noticed(good, tmp_path, data):
    folder, images = good
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    content = bytearray((copy / "00000.tar").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
    (copy / "00000.tar").write_bytes(bytes(content))
    check_nothing_else(bounded(read_everything, copy), images)


@given(data=st.data())
@FUZZ
def test_a_tar_of_any_content_is_indexed_or_refused(good, tmp_path, data):
    """Headers are what is changed: there are six in a shard of two, and the end."""
    folder, images = good
    content = bytearray((folder / "00000.tar").read_bytes())
    with tarfile.open(folder / "00000.tar") as tar:
        headers = [info.offset for info in tar]
    for _ in range(data.draw(st.integers(1, 4))):
        header = data.draw(st.sampled_from(headers))
        field = data.draw(st.sampled_from([(0, 100), (100, 8), (124, 12), (148, 8), (156, 1), (257, 8), (345, 155)]))
        value = data.draw(st.binary(min_size=field[1], max_size=field[1]))
        content[header + field[0] : header + sum(field)] = value
        if data.draw(st.booleans()):
            content[header + 148 : header + 156] = b" " * 8
            total = sum(content[header : header + 512])
            content[header + 148 : header + 156] = f"{total:06o}\0 ".encode()
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    theirs = tmp_path / "theirs"
    shutil.rmtree(theirs, ignore_errors=True)
    theirs.mkdir()
    (theirs / "s.tar").write_bytes(bytes(content))

    def index_and_read() -> dict:
        index_folder(theirs, "d", "s", "l")
        return read_everything(theirs)

    check_nothing_else(bounded(index_and_read), images, by_key=False)
    assert {path.name for path in tmp_path.iterdir()} <= {"theirs", "copy"}


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from(["", "../x.tar", "/etc/passwd", "00001.tar", "a" * 10**5, "\0", "cell-003", [], {}, [0, 2**62]]),
    st.sampled_from(["\ud800", "x\ny", 10**4000, [[[]]] * 9, {"a": None}, [0, 1], [512, 0], "0" * 64]),
)


def places_in(value: object, path: tuple = ()) -> list[tuple]:
    """The ways to all values within a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for name, item in inner for place in places_in(item, (*path, name)))]


@pytest.mark.parametrize("name", ["index.json", "00000.members.json"])
@given(data=st.data())
@FUZZ
def test_an_index_that_says_anything_is_refused_or_does_not_matter(good, tmp_path, name, data):
    folder, images = good
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    index = json.loads((copy / "index.json").read_text())
    for shard in index["shards"]:
        # As older folders are, that hold no checksums of tables and samples.
        del shard["members_sha256"]
    (copy / "index.json").write_text(json.dumps(index))
    content = json.loads((copy / name).read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        *way, last = data.draw(st.sampled_from(places_in(content)[1:]))
        part = content
        for step in way:
            part = part[step]
        if data.draw(st.integers(0, 4)) or not isinstance(part, dict):
            part[last] = data.draw(VALUES)
        else:
            del part[last]
        if not places_in(content)[1:]:
            break
    (copy / name).write_text(json.dumps(content))
    # A key may be another's: without a checksum of the table nobody can tell.
    check_nothing_else(bounded(read_everything, copy), images, by_key=False)


@given(cut=st.floats(0, 1), name=st.sampled_from(["index.json", "00000.members.json", "00000.tar"]))
@FUZZ
def test_files_that_are_cut_short_are_refused(good, tmp_path, cut, name):
    folder, _ = good
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    content = (copy / name).read_bytes().rstrip()
    (copy / name).write_bytes(content[: int(cut * (len(content) - 1))])
    assert isinstance(bounded(read_everything, copy), InputError)


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """A tar header with a size field of any 12 bytes and a right checksum."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 1024,
        b"no tar at all" * 100,
        header("x.png", b"77777777777\0"),
        header("x.png", b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7),
        header("x.png", b"\xff" * 11 + b"\x00") + b"\0" * 1024,
        header("x.png", b"\xff" * 10 + b"\xfe\x00") * 3 + b"\0" * 1024,
        header("x", b"00100000000\0", b"x") + b"\0" * 2**25,
        header("x", b"00100000000\0", b"L") + b"\0" * 2**25,
        header("x", b"00000000000\0", b"x") * 3000 + b"\0" * 1024,
        header("x", b"00000000000\0", b"L") * 3000 + b"\0" * 1024,
        header("x.png", b"00000000000\0", b"S") + b"\0" * 1024,
        header("x.png", b"00000000000\0", b"1") + header("x.mask.png", b"00000000000\0", b"2") + b"\0" * 1024,
        b"\x1f\x8b" + b"\0" * 2000,
    ],
    ids=[
        "empty",
        "zeros",
        "text",
        "8 GiB claimed",
        "2^63 claimed",
        "negative size",
        "negative size, back to itself",
        "16 MiB of PAX records",
        "16 MiB of a long name",
        "endless PAX headers",
        "endless long names",
        "sparse",
        "links",
        "gzip",
    ],
)
def test_hostile_tars_are_refused(tmp_path, content):
    (tmp_path / "s.tar").write_bytes(content)
    found = bounded(index_folder, tmp_path, "d", "s", "l", mebibytes=40)
    assert isinstance(found, InputError)
    assert "s.tar" in str(found)
    assert not (tmp_path / "index.json").exists()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(("width", "height"), [(2**31 - 1, 2**31 - 1), (2**20, 2**20), (0, 5)])
def test_an_image_bomb_is_refused_before_its_pixels_are_made(tmp_path, width, height):
    """A few kilobytes that claim to be a picture of terabytes."""
    claim = struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", claim)
    bomb += png_chunk(b"IDAT", zlib.compress(bytes(10**6))) + png_chunk(b"IEND", b"")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, data in (("x.png", bomb), ("x.mask.png", encode_mask(np.zeros((4, 4), np.uint8)))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index_folder(tmp_path, "d", "s", "l")
    found = bounded(ShardReader(tmp_path).read, 0, 0)
    assert isinstance(found, InputError)
    assert "s.tar: x.png: claims" in str(found)


def test_names_that_lead_elsewhere_write_and_read_nothing_there(tmp_path):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "s.tar", "w") as tar:
        for name in ("../../x.png", "../../x.mask.png"):
            data = encode_mask(np.ones((4, 4), np.uint8))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert [member["key"] for member in member_table(folder / "s.tar")] == ["x"]
    index_folder(folder, "d", "s", "l")
    assert ShardReader(folder).read(0, 0).key == "x"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "index.json", "s.members.json", "s.tar"]


def test_a_tar_of_very_many_members_takes_little_memory(tmp_path):
    (tmp_path / "s.tar").write_bytes(header("x.txt", b"00000000000\0") * 2**16 + bytes(1024))
    found = bounded(index_folder, tmp_path, "d", "s", "l", mebibytes=40, seconds=60)
    assert isinstance(found, InputError)
    assert "holds no sample" in str(found)
