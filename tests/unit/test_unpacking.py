"""Archives of any origin: what is in them comes out as it went in, or nothing is written, and nothing ever outside."""

import gzip
import io
import random
import stat
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from glioma_dist.data.download import unpacking
from glioma_dist.data.download.unpacking import Unpacked, check_name, unpack, unpacked_bytes
from glioma_dist.errors import InputError, one_line

MEMBERS = {
    "images/a.tif": b"a" * 3000,
    "images/deep/b.tif": bytes(range(256)) * 9,
    "labels é.json": b"{}",
    "empty": b"",
}
HOSTILE = (
    "../evil",
    "/evil",
    "a/../../evil",
    "..",
    "a\\..\\evil",
    "C:\\evil",
    "C:evil",
    "a\x01b",
    "x" * 1001,
    "./../evil",
)


def make_zip(members: dict[str, bytes], **attributes: object) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, zipfile.ZIP_DEFLATED
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.writestr(info, data)
    return memory.getvalue()


def make_tar(members: dict[str, bytes], mode: str = "w", **attributes: object) -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return memory.getvalue()


KINDS = {
    "zip": make_zip,
    "tar": make_tar,
    "tar.gz": lambda members: make_tar(members, "w:gz"),
    "tar.bz2": lambda members: make_tar(members, "w:bz2"),
    "tar.xz": lambda members: make_tar(members, "w:xz"),
}


def unpack_bytes(folder: Path, data: bytes, most: int = 2**20) -> Unpacked:
    """Unpacks to folder/out; afterwards nothing but the archive and the result is there."""
    (folder / "archive").write_bytes(data)
    try:
        return unpack(folder / "archive", folder / "out", most)
    finally:
        assert {path.name for path in folder.iterdir()} <= {"archive", "out"}
        assert not [path for path in folder.rglob("*") if path.is_symlink()]


def refused(folder: Path, data: bytes, message: str = ".", most: int = 2**20) -> None:
    with pytest.raises(InputError, match=message) as caught:
        unpack_bytes(folder, data, most)
    assert len(one_line(caught.value)) <= 500
    assert [path.name for path in folder.iterdir()] == ["archive"]
    assert not (folder.parent / "evil").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_comes_out_as_it_went_in(kind, tmp_path):
    found = unpack_bytes(tmp_path, KINDS[kind](MEMBERS))
    out = tmp_path / "out"
    assert {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()} == MEMBERS
    assert found == Unpacked(len(MEMBERS), sum(map(len, MEMBERS.values())))
    assert unpacking.count_files(out) == found
    assert unpacked_bytes(tmp_path / "archive", 2**20) == (found.num_bytes if kind == "zip" else None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_the_archives_own_name_is_not_repeated_and_what_macos_adds_is_skipped(kind, tmp_path):
    members = {"out/a": b"1", "out/b/c": b"2", "__MACOSX/out/._a": b"x", ".DS_Store": b"x", "out/._a": b"x"}
    unpack_bytes(tmp_path, KINDS[kind](members))
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {"a", "b/c"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_leads_outside_is_refused(kind, name, tmp_path):
    refused(tmp_path, KINDS[kind]({"good": b"1", name: b"evil"}), "a name that may lead out")


@pytest.mark.parametrize("name", [*HOSTILE, "", None, 3, "a\0b"])
def test_names_are_checked(name):
    with pytest.raises(InputError):
        check_name(name, "x")


def test_a_name_that_zipfile_would_cut_at_a_zero_byte_is_refused(tmp_path):
    refused(tmp_path, make_zip({"good_X": b"1"}).replace(b"good_X", b"good\0X"), "a name that may lead out|damaged")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip_are_refused(kind, tmp_path):
    refused(tmp_path, make_zip({"a": b"/etc"}, create_system=3, external_attr=(kind | 0o777) << 16), "link or a device")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.CONTTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(kind, tmp_path):
    if kind == tarfile.CONTTYPE:  # an old word for a file
        assert unpack_bytes(tmp_path, make_tar({"a": b"1"}, type=kind)).num_files == 1
        return
    refused(tmp_path, make_tar({"a": b""}, type=kind, linkname="../../etc"), "link or a device")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_larger_than_it_should_be_is_refused(kind, tmp_path):
    refused(tmp_path, KINDS[kind]({"a": bytes(2**20), "b": b"1"}), "more bytes than it should", 2**20)


def test_a_zip_that_says_less_than_it_holds_is_refused(tmp_path):
    data = make_zip({"a": bytes(100_000)})
    refused(tmp_path, data.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")), "damaged")


def test_a_tar_whose_headers_are_a_bomb_is_refused(tmp_path):
    header = tarfile.TarInfo("bomb")
    header.type, header.size = tarfile.XHDTYPE, 2**40
    data = gzip.compress(header.tobuf() + bytes(2**22))
    refused(tmp_path, data, "damaged.*header")


def test_a_table_of_contents_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "MAX_CENTRAL_BYTES", 60)
    refused(tmp_path, make_zip(MEMBERS), "table of contents is too large")


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "MAX_MEMBERS", 3)
    for kind in ("zip", "tar"):
        (tmp_path / kind).mkdir()
        refused(tmp_path / kind, KINDS[kind](MEMBERS), "more than 3 members")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", [("a", "A"), ("\u00e9", "e\u0301"), ("a", "./a"), ("b/a", "b//a")])
def test_two_members_of_one_name_are_refused(kind, pair, tmp_path):
    refused(tmp_path, KINDS[kind](dict.fromkeys(pair, b"1")), "twice")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_two_members_of_the_same_name_are_refused(kind, tmp_path):
    data = KINDS[kind]({"a": b"1", "b": b"2"})
    if kind == "tar":  # whose headers have a checksum
        data = make_tar({"a": b"1"})[:1024] + make_tar({"a": b"2"})
    refused(tmp_path, data.replace(b"b", b"a") if kind == "zip" else data, "twice")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_in_the_place_of_a_folder_is_refused(kind, tmp_path):
    refused(tmp_path, KINDS[kind]({"a": b"1", "a/b": b"2"}), "damaged")


def test_a_zip_of_another_compression_is_not_called_damaged(tmp_path):
    data = bytearray(make_zip({"a": b"1" * 100}))
    central = data.index(b"PK\x01\x02")
    data[8] = data[central + 10] = 9  # Deflate64
    refused(tmp_path, bytes(data), "not read here.*unpack it yourself")


def test_an_encrypted_zip_is_refused(tmp_path):
    data = bytearray(make_zip({"a": b"1"}))
    central = data.index(b"PK\x01\x02")
    data[central + 8] |= 1
    refused(tmp_path, bytes(data), "encrypted")


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"no archive", bytes(4096), b"PK\x05\x06" + bytes(18), b"\x1f\x8b", b"BZh9"]
)
def test_what_is_no_archive_is_refused(data, tmp_path):
    refused(tmp_path, data)


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_that_is_cut_anywhere_is_refused_or_whole(kind, tmp_path):
    data = KINDS[kind](MEMBERS)
    for number, end in enumerate(range(1, len(data), max(1, len(data) // 12))):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            unpack_bytes(folder, data[:end])
        except InputError:
            assert not (folder / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_archive_ends_in_one_line_whatever_its_bytes(kind, tmp_path):
    generator, good = random.Random(3), KINDS[kind](MEMBERS)
    for number in range(60):
        data, folder = bytearray(good), tmp_path / str(number)
        folder.mkdir()
        for _ in range(generator.choice((1, 1, 3, 30))):
            data[generator.randrange(len(data))] = generator.randrange(256)
        with suppress(InputError):
            unpack_bytes(folder, bytes(data))
            continue
        assert not (folder / "out").exists()


def test_a_folder_that_cannot_be_written_is_told_as_such(tmp_path):
    (tmp_path / "archive").write_bytes(make_zip(MEMBERS))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file, or lies below one"):
        unpack(tmp_path / "archive", tmp_path / "file" / "out", 2**20)
