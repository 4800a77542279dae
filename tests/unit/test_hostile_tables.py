"""Files that stand beside shards, or in their place, and are not what they should be: one short line, bounded."""

import errno
import io
import json
import os
import shutil
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import draw_shards
from test_hostile_shards import MEBIBYTE, bounded, read_everything

from glioma_dist.data.shards.inspection import index_folder
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.errors import InputError


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder of two small shards of two samples."""
    return draw_shards(tmp_path_factory.mktemp("good") / "train", range(4), 2, width=40, height=32)


def replace(path: Path, kind: str) -> None:
    """Put something that is no plain file in a file's place."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "no link's end":
        path.symlink_to(path.with_name("nowhere"))
    elif kind == "huge":
        with open(path, "wb") as file:
            file.truncate(2**40)
    else:
        path.symlink_to(kind)


THINGS = ["pipe", "folder", "socket", "link to itself", "no link's end", "huge", "/dev/zero", "/dev/null", "/dev/tty"]


@pytest.mark.parametrize("kind", THINGS)
@pytest.mark.parametrize("name", ["index.json", "00000.members.json", "00000.tar"])
def test_what_is_no_plain_file_is_one_line_at_once(good, tmp_path, monkeypatch, name, kind):
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(good, tmp_path / "copy")
    reader = ShardReader(copy)
    replace(copy / name, kind)
    for function, arguments in ((read_everything, (copy,)), (reader.read, (0, 0))):
        if name == "index.json" and function == reader.read:
            continue
        if name == "00000.tar" and kind == "huge" and function == reader.read:
            continue  # as long as it need be, and full of zeros: damaged
        found = bounded(function, *arguments, seconds=3)
        assert isinstance(found, InputError)
        assert name in str(found)


@pytest.mark.parametrize("kind", [kind for kind in THINGS if kind not in ("huge", "/dev/tty")])
def test_a_tar_that_is_no_plain_file_is_not_indexed(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    replace(tmp_path / "s.tar", kind)
    found = bounded(index_folder, tmp_path, "d", "s", "l", seconds=3)
    assert isinstance(found, InputError)
    assert "s.tar" in str(found)


def test_what_this_user_may_not_read_is_said_to_be_there(good, tmp_path, monkeypatch):
    """Tests may run as a user who may read everything, so the system's refusal is what is put in its place."""
    copy = shutil.copytree(good, tmp_path / "copy")
    open_file = os.open
    for name in ("index.json", "00000.members.json", "00000.tar"):

        def refuse(path, *arguments, name=name, **others):
            if str(path).endswith(name):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return open_file(path, *arguments, **others)

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(InputError, match=rf"{name}: is there, but this user may not read it"):
            read_everything(copy)


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (
            b'{"time": NaN, "a": Infinity, "b": [-Infinity, 1e999], "c": 2}',
            {"time": None, "a": None, "b": [None] * 2, "c": 2},
        ),
        (b'{"licence": null, "num_cells": null}', {"licence": None, "num_cells": None}),
        (b"", {}),
        (b"{}" + b" " * 10**5, {}),
        (b"[" * 10**6, "x.json: is nested too deeply"),
        (b'{"a":' * 10**5, "x.json: is nested too deeply"),
        (b"9" * 10**6, "x.json: is no JSON"),
        (b"null", "x.json: is no JSON object"),
        (b"\xff\xfe", "x.json: is no JSON"),
        (b'{"a": "' + b"x" * 2**20 + b'"}', "x.json has 1048585 bytes, more than 1048576"),
    ],
    ids=["NaN", "null", "empty", "spaces", "deep list", "deep object", "huge number", "null alone", "no text", "large"],
)
def test_the_facts_of_a_sample_are_bounded(good, tmp_path, metadata, expected):
    member = ShardReader(good)._table(0)[0]
    data = (good / "00000.tar").read_bytes()
    parts = [data[offset : offset + size] for offset, size in member.ranges[:2]]
    write_tar(tmp_path / "s.tar", [("x.png", parts[0]), ("x.mask.png", parts[1]), ("x.json", metadata)])

    def read() -> dict:
        index_folder(tmp_path, "d", "s", "l")
        return ShardReader(tmp_path).read(0, 0).metadata

    found = bounded(read, mebibytes=60)
    if isinstance(expected, str):
        assert isinstance(found, InputError)
        assert expected in str(found)
    else:
        assert found == expected


def test_a_table_that_says_a_sample_has_60_mebibytes_of_facts_is_refused(good, tmp_path):
    copy = shutil.copytree(good, tmp_path / "copy")
    with open(copy / "00000.tar", "r+b") as file:
        file.truncate(2**27)
    index = json.loads((copy / "index.json").read_text())
    table = json.loads((copy / "00000.members.json").read_text())
    table[0] = {"key": "a", "png": [512, 9], "mask.png": [1024, 9], "json": [2048, 60 * MEBIBYTE]}
    table[1] = {"key": "b", "png": [70 * MEBIBYTE, 9], "mask.png": [71 * MEBIBYTE, 9]}
    (copy / "00000.members.json").write_text(json.dumps(table))
    index["shards"][0] |= {"bytes": 2**27}
    del index["shards"][0]["members_sha256"]
    (copy / "index.json").write_text(json.dumps(index))
    found = bounded(read_everything, copy)
    assert isinstance(found, InputError)
    assert "a: its json has 62914560 bytes, more than 1048576" in str(found)


@pytest.mark.parametrize(
    "content", [b"[]," * 2**24, b"[" * 2**25, b'{"a":' * 2**23, b"1," * 2**24, b'"' + b"x" * 2**25]
)
@pytest.mark.parametrize("name", ["index.json", "00000.members.json"])
def test_large_json_is_refused_before_anything_is_made_of_it(good, tmp_path, name, content):
    copy = shutil.copytree(good, tmp_path / "copy")
    (copy / name).write_bytes(b"[" + content)
    found = bounded(read_everything, copy, mebibytes=2.2 * len(content) / MEBIBYTE)
    assert isinstance(found, InputError)
    assert name in str(found)


def changed(folder: Path, name: str, change: Callable) -> None:
    index = json.loads((folder / "index.json").read_text())
    for shard in index["shards"]:
        del shard["members_sha256"]
    (folder / "index.json").write_text(json.dumps(index))
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


INDEXES = {
    "format_version is missing or null": lambda index: index.pop("format_version"),
    "format_version is 3, and 1 and 2 are read here": lambda index: index.update(format_version=3),
    "format_version is True": lambda index: index.update(format_version=True),
    "licence is missing or null": lambda index: index.update(licence=None),
    "licence is a list": lambda index: index.update(licence=["x"] * 10**5),
    "dataset is ''": lambda index: index.update(dataset=""),
    "split is 7": lambda index: index.update(split=7),
    "dataset is 'xxx": lambda index: index.update(dataset="x" * 10**6),
    r"licence is '\ud800'": lambda index: index.update(licence="\ud800"),
    "shards are missing or null": lambda index: index.pop("shards"),
    "number 1: it is missing or null": lambda index: index["shards"].__setitem__(1, None),
    "names a shard twice": lambda index: index["shards"][1].update(name="00000.tar"),
    "num_samples is 5, and its shards have 4": lambda index: index.update(num_samples=5),
    "num_samples is missing or null": lambda index: index.pop("num_samples"),
    "its num_samples are 99999, in": lambda index: index["shards"][0].update(num_samples=99999),
    "its bytes are -5": lambda index: index["shards"][0].update(bytes=-5),
    "its sha256 is missing": lambda index: index["shards"][1].pop("sha256"),
    "its members_sha256 is missing or null": lambda index: index["shards"][1].update(members_sha256=None),
    "is a list, not an index": None,
}


@pytest.mark.parametrize("words", INDEXES)
def test_what_is_wrong_with_an_index_is_said_in_one_short_line(good, tmp_path, words):
    copy = shutil.copytree(good, tmp_path / "copy")
    if INDEXES[words] is None:
        (copy / "index.json").write_text("[1]")
    else:
        changed(copy, "index.json", INDEXES[words])
    found = bounded(read_everything, copy)
    assert isinstance(found, InputError)
    assert words in str(found)


TABLES = {
    "number 0: its key is missing or null": lambda table: table[0].pop("key"),
    "its key is 5": lambda table: table[1].update(key=5),
    "its key is 'a.b'": lambda table: table[1].update(key="a.b"),
    "its key is a dict": lambda table: table[1].update(key={"a": ["b"] * 50}),
    "two of the key cell-000": lambda table: table[1].update(key="cell-000"),
    "its png is missing or null": lambda table: table[0].pop("png"),
    "cell-000: its json is missing or null": lambda table: table[0].update(json=None),
    "its mask.png is [-5, 9], not": lambda table: table[0].update({"mask.png": [-5, 9]}),
    "its mask.png is a list, not": lambda table: table[0].update({"mask.png": [0] * 50}),
    "cell-001: its sha256 is 'abc'": lambda table: table[1].update(sha256="abc"),
    "members of cell-000 and cell-001 overlap at byte": lambda table: table[1].update(png=table[0]["png"]),
    "members of cell-000 and cell-000 overlap": lambda table: table[0].update({"mask.png": table[0]["png"]}),
    "does not list 2 samples": lambda table: table.pop(),
    "number 1: it is 'x'": lambda table: table.__setitem__(1, "x"),
}


@pytest.mark.parametrize("words", TABLES)
def test_what_is_wrong_with_a_table_is_said_in_one_short_line(good, tmp_path, words):
    copy = shutil.copytree(good, tmp_path / "copy")
    changed(copy, "00000.members.json", TABLES[words])
    for function in (
        read_everything,
        lambda folder: ShardReader(folder).describe(0, 1),
        lambda f: ShardReader(f).keys(),
    ):
        found = bounded(function, copy)
        assert isinstance(found, InputError)
        assert words in str(found)
        assert "00000.members.json" in str(found)
