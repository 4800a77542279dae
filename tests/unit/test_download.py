"""`glioma-dist download`, for every registered data set, from a server on this machine that does what can go wrong."""

import contextlib
import hashlib
import io
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from data_helpers import annotation, draw_image, image_record, square, write_coco, write_livecell, write_tiff
from faulty_server import FAULTS, FaultyServer, always, first, patience_for, serve
from helpers import REPOSITORY

from glioma_dist.cli.program import COMMANDS, run
from glioma_dist.data.convert.conversion import convert
from glioma_dist.data.download import downloading, web
from glioma_dist.data.download.downloading import download
from glioma_dist.data.download.published import PUBLISHED, PublishedFile, read_record
from glioma_dist.data.download.resumable import Resumable
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.storage import Patience
from glioma_dist.errors import DiskFullError, InputError, RunError, UnavailableError, one_line

ONCE = Patience(1, 10.0, 0.01)
TWICE = patience_for(None)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def draw_livecell(folder: Path) -> None:
    write_livecell(folder, {"train": 2, "val": 1, "test": 1})


def draw_glioma_c6(folder: Path) -> None:
    for number, part in enumerate(("train", "valid", "test")):
        place, name = folder / "dataset" / "spec" / part, f"{part}.tif"
        write_tiff(place / "images" / name, draw_image(number))
        write_coco(place / f"anno_{part}.json", [image_record(1, name)], [annotation(1, 1, square(2, 3, 9))])


DRAWN = {"livecell": draw_livecell, "glioma-c6": draw_glioma_c6}
"""How a small data set of each layout is drawn. A new data set needs one here."""


def zipped(folder: Path, inside: str = "") -> bytes:
    """The files of a folder as a ZIP with a padding that does not compress, so that a download takes some pieces."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, f"{inside}{path.relative_to(folder)}")
        archive.writestr(f"{inside}padding.bin", draw_image(7, 1000, 700).tobytes())
    return memory.getvalue()


@pytest.fixture(scope="module", params=PUBLISHED)
def mirror(request, tmp_path_factory) -> tuple[str, dict[str, bytes], Path]:
    """A data set's name, the files of its mirror, and the folder that its archives were made of."""
    published = PUBLISHED[request.param]
    folder = tmp_path_factory.mktemp("drawn") / "images"
    DRAWN[request.param](folder)
    if published.record:
        files = {"dataset.zip": zipped(folder), "read me.txt": b"of the publisher"}
        files["record.json"] = record_of(files)
        return request.param, files, folder
    files = {}
    for name in published.names:
        found = [path for path in folder.rglob("*") if path.name == name.rpartition("/")[2]]
        files[name] = found[0].read_bytes() if found else zipped(folder / "images", "images/")
    return request.param, files, folder


def record_of(files: dict[str, bytes], base: str = "https://elsewhere.example/") -> bytes:
    """A record as Zenodo's API tells it, as far as it is read."""
    entries = [
        {
            "id": "0",
            "key": name,
            "size": len(data),
            "checksum": f"md5:{hashlib.md5(data).hexdigest()}",
            "links": {"self": f"{base}{name}"},
        }
        for name, data in files.items()
    ]
    return json.dumps({"id": 17352019, "files": entries, "metadata": {}}).encode()


class Answering:
    """Answers with files, ranges of them, and ETags; `files` can change while the server runs."""

    def __init__(self, files: dict[str, bytes], tagged: bool = True, ranges: bool = True) -> None:
        self.files, self.tagged, self.ranges = dict(files), tagged, ranges

    def __call__(self, method: str, path: str, headers: dict) -> tuple[int, dict[str, str], bytes]:
        data = self.files.get(unquote(path).lstrip("/"))
        if data is None:
            return 404, {}, b"no such file"
        head = {"ETag": f'"{hashlib.md5(data).hexdigest()}"'} if self.tagged else {}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("Range", ""))
        if not asked or not self.ranges or headers.get("If-Range", head.get("ETag")) != head.get("ETag"):
            return 200, head, data
        begin, end = int(asked[1]), min(int(asked[2]) + 1, len(data))
        if begin >= len(data):
            return 416, {}, b""
        return 206, head | {"Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"}, data[begin:end]


def archive_of(files: dict[str, bytes]) -> str:
    return next(each for each in files if each.endswith(".zip"))


def largest(files: dict[str, bytes]) -> str:
    return max(files, key=lambda name: len(files[name]))


def get(name: str, out: Path, server: FaultyServer, patience: Patience = TWICE, **how) -> None:
    download(PUBLISHED[name], out, server.url, patience=patience, **how)


def check_complete(mirror, out: Path) -> None:
    """Everything is there, with the bytes that the server has, and nothing else."""
    name, files, folder = mirror
    record = json.loads((out / "download.json").read_text())
    assert record["licence"] == PUBLISHED[name].licence
    assert set(record["files"]) == set(files) - {"record.json"}
    for each, entry in record["files"].items():
        assert entry["sha256"] == hashlib.sha256(files[each]).hexdigest()
        assert entry["num_bytes"] == len(files[each])
        assert entry["verified"].startswith("MD5" if PUBLISHED[name].record else "size only")
        if "unpacked" not in entry:
            assert (out / each).read_bytes() == files[each]
    drawn = {path.relative_to(folder) for path in folder.rglob("*.tif")}
    archive = archive_of(files)
    inside = out / archive.removesuffix(".zip")
    inside = inside.parent if inside.name == "images" else inside
    for path in drawn:
        assert (inside / path).read_bytes() == (folder / path).read_bytes()
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_every_data_set_has_its_commands():
    assert {each.split()[1] for each in COMMANDS if each.startswith("download ")} == set(PUBLISHED) == set(DRAWN)
    for name, published in PUBLISHED.items():
        assert (published.name, f"convert {name}" in COMMANDS) == (name, True)
        assert published.base.startswith("https://")
        assert bool(published.record) != bool(published.names)


def test_a_data_set_is_downloaded_unpacked_and_converted_by_the_printed_command(mirror, tmp_path, capsys, monkeypatch):
    name, files, _ = mirror
    monkeypatch.chdir(tmp_path)
    with serve(Answering(files)) as server:
        run(["download", name, "--out", "my data", "--url", server.url])
        count = len(server.requests)
        run(["download", name, "--out", "my data", "--url", server.url])
        assert len(server.requests) - count == bool(PUBLISHED[name].record)  # its list of files, which can change
    check_complete(mirror, tmp_path / "my data")
    told = capsys.readouterr().out
    assert told.index(PUBLISHED[name].licence) < told.index("to download")
    assert told.index(PUBLISHED[name].citation) < told.index("to download")
    assert len(told.splitlines()) < 40
    command = told.splitlines()[-1]
    assert shlex.split(command)[:3] == ["glioma-dist", "convert", name]
    run(shlex.split(command)[1:])
    assert len(ShardReader(Path(shlex.split(command)[-1]) / "train")) >= 1


def test_the_licence_is_shown_before_anything_is_asked_for(mirror, tmp_path, capsys):
    name, files, _ = mirror
    with serve(Answering(files)) as server:
        server.faults = always("missing")
        with pytest.raises(InputError, match="the server answers 404"):
            get(name, tmp_path, server)
    assert PUBLISHED[name].licence in capsys.readouterr().out


def test_zenodos_own_record_is_followed(tmp_path):
    """Not a mirror: the API's path, and links on the API's host."""
    drawn = tmp_path / "drawn"
    draw_glioma_c6(drawn)
    data = zipped(drawn)
    place = "api/records/17352019"
    with serve(Answering({f"{place}/files/dataset.zip/content": data})) as server:
        record = record_of({"dataset.zip": data}, f"{server.url}/{place}/files/")
        server.answer.files[place] = record.replace(b'dataset.zip"}}', b'dataset.zip/content"}}')
        published = PUBLISHED["glioma-c6"]
        assert published.record == f"https://zenodo.org/{place}"
        here = replace(published, base=f"{server.url}/", record=f"{server.url}/{place}")
        download(here, tmp_path / "out", patience=TWICE)
    assert (tmp_path / "out" / "dataset" / "dataset" / "spec").is_dir()


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99, 1.0])
def test_a_download_that_ended_anywhere_continues_with_identical_bytes(mirror, tmp_path, share, tagged):
    """share: of the largest file, that came before. Without a tag only a published checksum allows to continue."""
    name, files, _ = mirror
    big = largest(files)
    offset = min(max(1, round(share * len(files[big]))), len(files[big]) - 1)
    with serve(Answering(files, tagged)) as server:
        # A first answer about its size ends well. After the next one, which is cut off, the server is away.
        cut, server.drop_at = int(big in PUBLISHED[name].names), offset
        server.faults = lambda path, number: (
            {cut: "drop"}.get(number, "refuse" if number > cut else None) if path.endswith(big) else None
        )
        with pytest.raises(UnavailableError, match="run the same command later") as caught:
            get(name, tmp_path, server, ONCE)
        assert len(one_line(caught.value)) <= 500
        server.faults, server.requests = always(None), []
        get(name, tmp_path, server)
        asked = [span for path, span in server.requests if path.endswith(big) and span != "bytes=0-0"]
    may_continue = tagged or PUBLISHED[name].record
    assert asked == [f"bytes={offset}-{len(files[big]) - 1}" if may_continue else None]
    check_complete(mirror, tmp_path)


def start_command(name: str, out: Path, server: FaultyServer) -> subprocess.Popen:
    arguments = ["download", name, "--out", str(out), "--url", server.url]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-m", "glioma_dist", *arguments],
        env=environment,
        cwd=out.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def bytes_of(path: Path) -> int:
    """0 where it was renamed meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_continues(mirror, tmp_path, number):
    name, files, _ = mirror
    big, out = largest(files), tmp_path / "out"
    with serve(Answering(files)) as server:
        server.stall_seconds, server.drop_at = 1000, 2**18 + 3
        server.faults = lambda path, count: (
            "stall-body" if path.endswith(big) and count >= (big in PUBLISHED[name].names) else None
        )
        process = start_command(name, out, server)
        until = time.monotonic() + 120
        while sum(map(bytes_of, out.rglob("*.partial"))) < server.drop_at:
            assert time.monotonic() < until, process.poll()
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == (-9 if number == signal.SIGKILL else 75), said
        server.faults, server.requests = always(None), []
        get(name, out, server)
        asked = [span for path, span in server.requests if path.endswith(big) and span != "bytes=0-0"]
    assert asked == [f"bytes={server.drop_at}-{len(files[big]) - 1}"]
    check_complete(mirror, out)


def test_a_server_without_ranges_starts_from_the_beginning(mirror, tmp_path):
    name, files, _ = mirror
    with serve(Answering(files, ranges=False)) as server:
        server.faults = lambda path, number: "drop" if path.endswith(largest(files)) and number == 1 else None
        get(name, tmp_path, server)
    check_complete(mirror, tmp_path)


def test_a_server_without_ranges_that_always_breaks_off_is_given_up(mirror, tmp_path):
    name, files, _ = mirror
    big = largest(files)
    with serve(Answering(files, ranges=False)) as server:
        server.faults = lambda path, number: (
            "drop" if path.endswith(big) and number >= (big in PUBLISHED[name].names) else None
        )
        with pytest.raises(UnavailableError, match=r"after 3 tries .*the connection ended after"):
            get(name, tmp_path, server, patience_for(None, 3))
        assert len(server.requests) < 20


@pytest.mark.parametrize("honest", [True, False])
def test_a_file_that_changed_between_two_attempts_is_downloaded_as_a_whole(tmp_path, honest):
    """honest: whether the server heeds If-Range. One that does not still tells another ETag."""
    old, new = draw_image(1, 600, 500).tobytes(), draw_image(2, 600, 500).tobytes()
    with serve(Answering({"a.bin": old})) as server:
        file = PublishedFile("a.bin", f"{server.url}/a.bin")
        server.faults = always("drop")
        with pytest.raises(UnavailableError):
            Resumable(file, tmp_path, ONCE).fetch(lambda *_: None)
        assert Resumable(file, tmp_path, ONCE).num_bytes_here() == len(old) // 2
        server.faults, server.answer.files["a.bin"] = always(None), new
        if not honest:
            answer = server.answer
            server.answer = lambda method, path, headers: answer(
                method, path, {key: value for key, value in headers.items() if key != "If-Range"}
            )
        copy = Resumable(file, tmp_path, TWICE)
        arrived = copy.fetch(lambda *_: None)
    assert copy.partial.read_bytes() == new
    assert arrived.sha256 == hashlib.sha256(new).hexdigest()


@pytest.mark.parametrize("change", ["longer", "shorter"])
def test_a_file_of_another_size_is_downloaded_as_a_whole(tmp_path, change):
    old = draw_image(1, 600, 500).tobytes()
    new = old + old if change == "longer" else old[:1000]
    with serve(Answering({"a.bin": old}, tagged=False)) as server:
        server.answer.tagged = False
        file = PublishedFile("a.bin", f"{server.url}/a.bin", None, hashlib.md5(new).hexdigest())
        server.faults = always("drop")
        with pytest.raises(UnavailableError):
            Resumable(file, tmp_path, ONCE).fetch(lambda *_: None)
        server.faults, server.answer.files["a.bin"] = always(None), new
        copy = Resumable(file, tmp_path, TWICE)
        copy.fetch(lambda *_: None)
    assert copy.partial.read_bytes() == new


EXPECTED_CODES = {
    **dict.fromkeys(
        ("error", "unavailable", "unavailable-later", "too-many", "refuse", "stall", "stall-body", "drip"), 69
    ),
    **dict.fromkeys(("endless-headers",), 69),
    **dict.fromkeys(("missing", "forbidden", "redirect-loop", "gzip", "gzip-bomb", "huge-length", "endless"), 2),
    **dict.fromkeys(("endless-chunked", "empty", "long", "redirect"), 2),
}
"""Of faults of every answer. Of the others a download survives, or only a published checksum tells."""


def outcome(*arguments, **how) -> RunError | None:
    """The error that a download ends with, or None."""
    try:
        get(*arguments, **how)
    except RunError as error:
        return error
    return None


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_every_answer_ends_in_one_line_and_leaves_nothing_that_looks_complete(mirror, tmp_path, fault):
    name, files, _ = mirror
    big = largest(files)
    with serve(Answering(files)) as server:
        server.retry_after, server.stall_seconds, server.redirect_to = "0", 5, "ftp://127.0.0.1/x"
        server.drop_at = 1000 if fault == "stall-body" else None  # each silence is waited for
        server.faults = always(fault, big)
        error = outcome(name, tmp_path, server, patience_for(fault))
    if error is None:
        assert fault in ("no-range", "other-range", "drop")
        check_complete(mirror, tmp_path)
        return
    assert len(one_line(error)) <= 500
    assert int(error.exit_code) in ({EXPECTED_CODES[fault]} if fault in EXPECTED_CODES else {2, 69}), error
    # What is changed, cut short or too long in good form, only a published checksum or the archive itself can tell.
    assert not (tmp_path / big).exists() or (fault in ("changed", "short", "long") and not PUBLISHED[name].record)
    assert not (tmp_path / archive_of(files)).with_suffix("").exists()
    if fault in ("endless", "endless-chunked", "huge-length", "gzip-bomb"):
        assert sum(path.stat().st_size for path in tmp_path.rglob("*.partial")) < 2**20


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"missing", "forbidden", "redirect", "redirect-loop", "gzip"}))
def test_a_fault_of_one_answer_is_survived(mirror, tmp_path, fault):
    name, files, _ = mirror
    with serve(Answering(files)) as server:
        server.retry_after, server.stall_seconds = "0", 3
        server.faults = first(fault, largest(files))
        error = outcome(name, tmp_path, server, patience_for(fault, 4))
    if error is None:
        check_complete(mirror, tmp_path)
        return
    # What would be the same the next time, or is no complete file and came in good form.
    final = {"gzip-bomb", "endless", "endless-chunked", "huge-length"}
    assert fault in final | ({"changed"} if PUBLISHED[name].record else set())
    assert int(error.exit_code) == 2


def test_a_wrong_checksum_is_told_and_the_next_call_begins_again(tmp_path):
    data = draw_image(1, 300, 200).tobytes()
    with serve(Answering({"a.bin": data})) as server:
        file = PublishedFile("a.bin", f"{server.url}/a.bin", len(data), hashlib.md5(data).hexdigest())
        server.faults = first("changed")
        copy = Resumable(file, tmp_path, TWICE)
        with pytest.raises(InputError, match=r"its MD5 sum is \w{32}, the published one .*run the same command again"):
            copy.fetch(lambda *_: None)
        assert list(tmp_path.iterdir()) == []
        copy.fetch(lambda *_: None)
        assert copy.partial.read_bytes() == data


@pytest.mark.parametrize("page", [b"<html>log in</html>", b"\n", b'{"images": ['])
def test_a_page_in_place_of_a_file_is_no_file(tmp_path, page):
    for name in ("a.zip", "a.json"):
        with serve(Answering({name: page})) as server, pytest.raises(InputError, match="a login page or a proxy"):
            Resumable(PublishedFile(name, f"{server.url}/{name}"), tmp_path, TWICE).fetch(lambda *_: None)


def test_a_file_that_is_there_is_taken_if_it_is_the_published_one_and_never_written_over(mirror, tmp_path):
    name, files, _ = mirror
    big = largest(files)
    (tmp_path / big).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / big).write_bytes(b"of the user")
    with serve(Answering(files)) as server:
        with pytest.raises(InputError, match="is there already and is not the published file"):
            get(name, tmp_path, server)
        assert (tmp_path / big).read_bytes() == b"of the user"
        (tmp_path / big).write_bytes(files[big])
        server.requests = []
        get(name, tmp_path, server)
        assert [span for path, span in server.requests if path.endswith(big) and span != "bytes=0-0"] == []


def test_a_folder_in_the_place_of_an_archives_is_never_written_to(mirror, tmp_path):
    name, files, _ = mirror
    folder = tmp_path / archive_of(files).removesuffix(".zip")
    folder.mkdir()
    with serve(Answering(files)) as server:
        with pytest.raises(InputError, match="move the folder away"):
            get(name, tmp_path, server)
        assert list(folder.iterdir()) == []
        folder.rmdir()
        get(name, tmp_path, server)
    check_complete(mirror, tmp_path)


def test_a_kill_after_the_folder_is_in_place_is_no_folder_of_the_user(mirror, tmp_path, monkeypatch):
    name, files, _ = mirror
    write, calls = downloading.files.write_json_atomically, []

    def write_or_die(path, content):
        if any("unpacked" in entry for entry in content.get("files", {}).values()) and not calls:
            calls.append(1)
            raise KeyboardInterrupt
        write(path, content)

    with serve(Answering(files)) as server:
        with monkeypatch.context() as patch:
            patch.setattr(downloading.files, "write_json_atomically", write_or_die)
            with pytest.raises(KeyboardInterrupt):
                get(name, tmp_path, server)
        get(name, tmp_path, server)
    check_complete(mirror, tmp_path)


def test_archives_are_kept_on_request(mirror, tmp_path):
    name, files, _ = mirror
    with serve(Answering(files)) as server:
        get(name, tmp_path, server, keep_archives=True)
    for each in set(files) - {"record.json"}:
        assert (tmp_path / each).read_bytes() == files[each]


def test_a_disk_that_is_too_small_is_told_before_anything_is_downloaded(mirror, tmp_path, monkeypatch):
    name, files, _ = mirror
    monkeypatch.setattr(downloading, "free_bytes", lambda folder: downloading.SPARE_BYTES + 1000)
    with serve(Answering(files)) as server:
        with pytest.raises(InputError, match=r"GiB of disk are needed and .* free; free space, or give another --out"):
            get(name, tmp_path, server)
        assert server.bytes_sent <= len(files.get("record.json", b"")) + len(files)


def test_a_disk_that_becomes_full_ends_in_one_line_and_the_rest_comes_later(mirror, tmp_path):
    name, files, _ = mirror
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serve(Answering(files)) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, limits[1]))
        try:
            with pytest.raises(InputError, match="cannot be written") as caught:
                get(name, tmp_path, server)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert int(caught.value.exit_code) == 2
        server.requests = []
        get(name, tmp_path, server)
        assert f"bytes={2**18}-{len(files[largest(files)]) - 1}" in [span for _, span in server.requests]
    check_complete(mirror, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("mount"), reason="no tmpfs can be mounted")
def test_a_full_disk_is_named(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=262144", "none", str(tmp_path)], check=False).returncode:
        pytest.skip("no tmpfs can be mounted")
    data = draw_image(1, 1000, 700).tobytes()
    try:
        with serve(Answering({"a.bin": data})) as server, pytest.raises(DiskFullError, match="the disk is full"):
            Resumable(PublishedFile("a.bin", f"{server.url}/a.bin"), tmp_path, TWICE).fetch(lambda *_: None)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_two_processes_do_not_write_to_one_folder(mirror, tmp_path):
    name, files, _ = mirror
    with serve(Answering(files)) as server:
        with downloading._alone(tmp_path), pytest.raises(UnavailableError, match="another process"):
            get(name, tmp_path, server)
        get(name, tmp_path, server)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "{file}"], "is a file"),
        (["--out", "{file}/below"], "is no folder"),
        (["--out", "new", "--url", "ftp://a/b"], "begins with http"),
        (["--out", "new", "--url", "s3://a/b"], "begins with http"),
        (["--out", "new", "--url", "http://user:secret@a/b"], "a user, a query"),
        (["--out", "new", "--url", "http://a/b?token=secret"], "a user, a query"),
        (["--out", "new", "--url", "http://a:x/b"], "is no URL"),
        (["--out", "new", "--url", "http:///b"], "names no host"),
        (["--out", "new", "--url", "http://a b/"], "begins with http"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(name, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=message) as caught:
        run(["download", name, *(each.format(file=tmp_path / "file") for each in arguments)])
    assert "secret" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unknown_data_set_is_told():
    with pytest.raises(InputError, match="unknown command download livecel; did you mean download livecell"):
        run(["download", "livecel", "--out", "x"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_folder_without_permission_is_told(name):
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    before = os.geteuid()
    try:
        if before == 0:  # who may write anywhere
            os.seteuid(65534)
        with pytest.raises(InputError, match=r"this user may (not )?write to"):
            download(PUBLISHED[name], folder / "new", "http://127.0.0.1:9", patience=ONCE)
    finally:
        os.seteuid(before)
        folder.rmdir()


def test_a_record_of_another_data_set_is_refused(mirror, tmp_path):
    name, files, _ = mirror
    (tmp_path / "download.json").write_text(json.dumps({"dataset": "another", "files": {}}))
    with serve(Answering(files)) as server, pytest.raises(InputError, match="give another --out"):
        get(name, tmp_path, server)


GOOD = {"key": "a.zip", "size": 1, "checksum": f"md5:{'0' * 32}", "links": {"self": "/a"}}


@pytest.mark.parametrize(
    "record",
    [
        *([], {}, None, 1, "x", {"files": []}, {"files": [1]}, {"files": [None]}, {"files": [[]]}, {"files": {}}),
        *({"files": [{key: value for key, value in GOOD.items() if key != gone}]} for gone in GOOD),
        *(
            {"files": [GOOD | {"key": name}]}
            for name in ("../a", "/a", "a/../b", "", ".", None, 3, "a\0", "C:\\a", "a\\b")
        ),
        *({"files": [GOOD | {"key": name}]} for name in ("download.json", ".download/lock", ".hidden", "x" * 2000)),
        *({"files": [GOOD | {"size": size}]} for size in (-1, 0, 2**62, "1", None, 1.5, True, [])),
        *({"files": [GOOD | {"checksum": each}]} for each in ("", "md5:", "sha1:00", None, 3, f"md5:{'g' * 32}")),
        *({"files": [GOOD | {"links": each}]} for each in (None, {}, {"self": 3}, {"self": "http://other.example/a"})),
        *({"files": [GOOD | {"links": {"self": each}}]} for each in ("file:///etc/passwd", "//other/a", "http://[x/a")),
        {"files": [GOOD, GOOD]},
    ],
)
def test_a_hostile_record_is_refused(record):
    with pytest.raises(InputError) as caught:
        read_record(record, "https://zenodo.example/api/records/1")
    assert len(one_line(caught.value)) <= 500


def test_a_good_record_is_read():
    (file,) = read_record({"files": [GOOD]}, "https://zenodo.example/api/records/1")
    assert file == PublishedFile("a.zip", "https://zenodo.example/a", 1, "0" * 32)


@pytest.mark.parametrize("note", ["", "[]", "{", "null", '{"url": 1}', '{"num_bytes": -1}', '{"validator": 5}'])
def test_a_damaged_note_of_a_download_costs_the_bytes_and_nothing_else(tmp_path, note):
    data = draw_image(1, 300, 200).tobytes()
    with serve(Answering({"a.bin": data})) as server:
        copy = Resumable(PublishedFile("a.bin", f"{server.url}/a.bin"), tmp_path, TWICE)
        good = {"url": f"{server.url}/a.bin", "num_bytes": 9, "validator": None}
        copy.note.write_text(json.dumps(good | json.loads(note)) if note.startswith('{"') else note)
        copy.partial.write_bytes(b"something else")
        copy.fetch(lambda *_: None)
    assert copy.partial.read_bytes() == data


def test_a_proxy_of_the_environment_is_used(tmp_path, monkeypatch):
    data = b"through the proxy"
    with serve(Answering({"http://data.example/a.bin": data})) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        copy = Resumable(PublishedFile("a.bin", "http://data.example/a.bin"), tmp_path, TWICE)
        copy.fetch(lambda *_: None)
    assert copy.partial.read_bytes() == data


def test_redirects_are_followed_but_not_away_from_the_web(tmp_path):
    with serve(Answering({"b.bin": b"there"})) as server:
        server.faults, server.redirect_to = always("redirect", "a.bin"), "/b.bin"
        copy = Resumable(PublishedFile("a.bin", f"{server.url}/a.bin"), tmp_path, TWICE)
        copy.fetch(lambda *_: None)
        assert copy.partial.read_bytes() == b"there"
        for target in ("ftp://127.0.0.1/a", "file:///etc/passwd", "gopher://a/"):
            server.redirect_to = target
            with pytest.raises(InputError, match="not followed"):
                Resumable(PublishedFile("c", f"{server.url}/a.bin"), tmp_path, TWICE).fetch(lambda *_: None)


@pytest.mark.parametrize(
    ("start", "target"),
    [
        ("https://a.example/x", "http://a.example/x"),
        ("http://1.1.1.1/x", "http://127.0.0.1/x"),
        ("http://1.1.1.1/x", "http://169.254.169.254/x"),
        ("http://127.0.0.1/x", "http://169.254.169.254/x"),
    ],
)
def test_a_redirect_to_an_open_or_an_inner_address_is_not_followed(start, target):
    request = web.urllib.request.Request(start)
    with pytest.raises(web.AnswerError, match="not followed"):
        web._Redirects().redirect_request(request, io.BytesIO(), 302, "", {}, target)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [name for name, each in PUBLISHED.items() if each.record])
def test_a_fault_of_the_list_of_files_ends_in_one_line(name, fault, tmp_path):
    with serve(Answering({"record.json": record_of({"a.zip": bytes(1000)})})) as server:
        server.retry_after, server.stall_seconds, server.redirect_to = "0", 5, "ftp://127.0.0.1/x"
        server.faults = always(fault)
        error = outcome(name, tmp_path, server, replace(patience_for(fault), attempts=1))
    assert len(one_line(error)) <= 500
    assert int(error.exit_code) in (2, 69)
    assert not list(tmp_path.rglob("*.zip"))


def test_no_network_is_an_error_that_another_time_can_end_well(tmp_path):
    with serve(Answering({})) as server:
        url = server.url
    for each, told in ((url, "run the same command later"), ("http://no-such-host.invalid", "is there a network")):
        with pytest.raises(UnavailableError, match=told) as caught:
            download(PUBLISHED["livecell"], tmp_path, each, patience=TWICE)
        assert int(caught.value.exit_code) == 69


def test_the_base_installation_is_enough(mirror, tmp_path):
    """Without the extra `cloud`, and without importing PyTorch."""
    name, files, _ = mirror
    program = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("aiohttp", "fsspec", "s3fs", "requests", "huggingface_hub", "torch", "webdataset"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
runpy.run_module("glioma_dist", {}, "__main__")
"""
    with serve(Answering(files)) as server:
        arguments = ["download", name, "--out", str(tmp_path / "out"), "--url", server.url]
        ended = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
        )
    assert (ended.returncode, ended.stderr) == (0, "")
    check_complete(mirror, tmp_path / "out")


def test_progress_is_a_line_a_few_times_a_minute(capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(downloading.time, "monotonic", lambda: now[0])
    progress = downloading._Progress("a.zip", 0)
    for piece in range(1, 6001):
        now[0] += 0.01
        progress.show(piece * 2**20, 6000 * 2**20)
    lines = capsys.readouterr().out.splitlines()
    assert 2 <= len(lines) <= 5
    assert re.fullmatch(r"a\.zip: \d+ of 6000 MiB \(\d+%\), \d+\.\d\d MiB/s", lines[1])


def test_conversion_reads_what_every_data_set_is_found_by(mirror, tmp_path):
    name, files, _ = mirror
    with serve(Answering(files)) as server:
        get(name, tmp_path / "out", server)
    source = PUBLISHED[name].find(str(tmp_path / "out"))
    convert(source, tmp_path / "shards", name)
    assert {path.parent.name for path in (tmp_path / "shards").rglob("index.json")} == {"train", "val", "test"}
