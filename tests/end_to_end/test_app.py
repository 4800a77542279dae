"""The page of `glioma-dist app`: as a browser shows it, and what its server takes and refuses."""

import contextlib
import errno
import json
import locale
import os
import re
import signal
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
import pytest
import tifffile
from browser import Browser
from helpers import draw_sample, free_port, start, wait_for_listener

from glioma_dist.app import pictures as pictures_module
from glioma_dist.app import server as module
from glioma_dist.app.pictures import THRESHOLDS, KeptPictures, Segmenter, ShownPicture
from glioma_dist.app.server import HOST, AppServer
from glioma_dist.app.serving import temporary_folder
from glioma_dist.cli import program
from glioma_dist.config import PredictConfig
from glioma_dist.config.networks import network_folder
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.data.sample import encode_image
from glioma_dist.distributed.own_context import given_or_own
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError
from glioma_dist.evaluation.network import load_network
from glioma_dist.inference.predict import predict

NETWORK = "t98g-small"


@contextlib.contextmanager
def serving(title: str = NETWORK):
    """A server in this process."""
    with given_or_own(None) as context, ImageReader() as reader, temporary_folder() as folder:
        network, read = load_network(network_folder(NETWORK), 1, context)
        with AppServer(Segmenter(network, read.config.data, None, reader), title, Path(folder), 0) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            yield server
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


def ask(server, path: str, data: bytes | None = None, **headers: str):
    """Status, body and headers of an answer."""
    request = urllib.request.Request(server.address.rstrip("/") + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def test_the_page_is_sent_as_it_is_whatever_the_locale_is(server):
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "C")  # stands for ISO 8859-1, which not every machine has
        status, sent, _ = ask(server, "/app.js")
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    assert status == 200
    assert sent == (module.PAGE / "app.js").read_bytes()


def upload(server, name: str, data: bytes) -> tuple[int, dict]:
    status, body, _ = ask(server, f"/pictures?name={quote(name)}", data)
    return status, json.loads(body)


def mask_at(server, key: str, percent: int) -> np.ndarray:
    status, body, headers = ask(server, f"/pictures/{key}/mask.png?threshold={percent}")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    return cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_UNCHANGED)


def draw_field(number: int, width: int, height: int) -> np.ndarray:
    """Cells with a bright edge on an even ground, some of which the network finds."""
    generator = np.random.default_rng(number)
    field = 110 + generator.normal(0, 2, (height, width))
    for _ in range(6):
        centre, radius = (
            (int(generator.integers(width)), int(generator.integers(height))),
            int(generator.integers(10, 22)),
        )
        inside, edge = (
            cv2.circle(np.zeros((height, width), np.uint8), centre, radius, 1, thickness) for thickness in (-1, 3)
        )
        field += inside * (generator.normal(0, 25, (height, width)) - 10) + edge * 60
    return field.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return draw_field(0, 181, 143)


@pytest.fixture(scope="module")
def predicted(image, tmp_path_factory) -> dict[int, np.ndarray]:
    """Masks by `predict` at several thresholds, in percent."""
    folder = tmp_path_factory.mktemp("predicted")
    (folder / "field.png").write_bytes(encode_image(image))
    masks = {}
    for percent in (50, 7, 93):
        config = PredictConfig(NETWORK, str(folder / "field.png"), folder / f"out{percent}", threshold=percent / 100)
        masks[percent] = cv2.imread(str(predict(config).images[0].files["mask"]), cv2.IMREAD_UNCHANGED)
    assert 0.03 < (masks[50] > 0).mean() < 0.5, "a mask that tells something"
    return masks


def test_a_browser_shows_confluence_and_components_that_move_with_the_slider(server, image, predicted, tmp_path):
    """The numbers are those of predict's masks, by OpenCV; moving the slider asks the server for nothing."""
    file = tmp_path / "field <b>1.png"
    file.write_bytes(encode_image(image))
    (tmp_path / "broken.png").write_bytes(encode_image(image)[:200])
    with Browser() as page:
        page.look(1280, 900)
        page.open(server.address)
        page.choose_file("#file", file)
        page.wait_for("document.getElementById('status').textContent.endsWith(': done.')")
        assert page.evaluate("document.getElementById('name').textContent") == f"{file.name} (181 x 143 pixels)"
        before = page.evaluate("performance.getEntriesByType('resource').length")
        for percent, mask in predicted.items():
            page.evaluate(
                f"threshold.value = {percent}; threshold.dispatchEvent(new Event('input'));"
                "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
            )
            assert page.evaluate("document.getElementById('threshold-value').textContent") == f"{percent / 100:.2f}"
            shown = page.evaluate("document.getElementById('confluence').textContent")
            assert shown == f"{100 * (mask > 0).mean():.1f} %"
            num = cv2.connectedComponents(mask, connectivity=8)[0] - 1
            assert page.evaluate("document.getElementById('components').textContent") == str(num)
            painted = "document.getElementById('overlay').getContext('2d').getImageData(0, 0, 181, 143).data"
            assert (
                page.evaluate(f"{painted}.filter((value, place) => place % 4 === 3 && value > 0).length")
                == (mask > 0).sum()
            )
            link = page.evaluate("document.getElementById('download').getAttribute('href')")
            assert link.endswith(f"/mask.png?threshold={percent}")
            np.testing.assert_array_equal(mask_at(server, link.split("/")[2], percent), mask)
        assert page.evaluate("performance.getEntriesByType('resource').length") == before
        page.screenshot(tmp_path / "page.png")
        picture = cv2.imread(str(tmp_path / "page.png"))
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
        assert page.errors == []
        page.choose_file("#file", tmp_path / "broken.png")
        page.wait_for("document.getElementById('status').classList.contains('error')")
        told = page.evaluate("document.getElementById('status').textContent")
        assert told.startswith("broken.png: ")
        assert "\n" not in told
        assert page.evaluate("document.getElementById('name').textContent").startswith("field"), "the last one stays"
        assert all("400" in each for each in page.errors)
        assert {url.partition(":")[0] for url in page.requests} <= {"http", "data"}
        (tmp_path / "dropped.tif").write_text("no image")
        page.drop(tmp_path / "dropped.tif")
        page.wait_for("document.getElementById('status').textContent.startsWith('dropped.tif: ')")
        (tmp_path / "a folder").mkdir()
        page.drop(tmp_path / "a folder")
        page.wait_for(
            "document.getElementById('status').textContent.startsWith('a folder: is a folder; drop one image')"
        )


def test_components_in_the_browser_are_opencvs_on_random_masks(server, tmp_path):
    generator = np.random.default_rng(0)
    with Browser() as page:
        page.open(server.address)
        for share in (0.05, 0.3, 0.5, 0.7, 1.0):
            mask = (generator.random((31, 47)) < share).astype(np.uint8)
            given = f"{{levels: new Uint8Array({mask.ravel().tolist()}), width: 47, height: 31}}"
            assert page.evaluate(f"countComponents({given}, 1)") == cv2.connectedComponents(mask, connectivity=8)[0] - 1


def write_kind(path: Path, kind: str) -> None:
    """A TIFF of a kind that microscopes and Fiji write; of several channels the cells are in the first."""
    dtype = np.uint8 if kind.startswith("8") else np.uint16
    image = draw_sample(5, 90, 70, 3 if kind.endswith("colour") else 1, dtype).image
    other = draw_sample(6, 90, 70, 1, dtype).image
    if kind == "float":
        tifffile.imwrite(path, image.astype(np.float32) / 7)
    elif kind == "8 channels":
        how = {"axes": "CYX", "Channel": {"Name": ["Phase", "<b>GFP"]}}
        tifffile.imwrite(path, np.stack([image, other]), ome=True, metadata=how)
    elif kind == "16 samples":
        tifffile.imwrite(path, np.stack([image, other], -1), photometric="minisblack", planarconfig="contig")
    else:
        tifffile.imwrite(path, image)


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        *((kind, "") for kind in ("8 grey", "8 colour", "16 grey", "16 colour")),
        ("float", "float32"),
        ("8 channels", "2 channels (1 Phase, 2 <b>GFP): the first is taken; glioma-dist predict --channel takes"),
        ("16 samples", "2 channels (1, 2): the first is taken"),
    ],
)
def test_masks_of_all_kinds_of_images_are_predicts(server, tmp_path, kind, note):
    path = tmp_path / "a.ome.tif"
    write_kind(path, kind)
    status, answer = upload(server, path.name, path.read_bytes())
    assert (status, answer.get("width"), answer.get("height")) == (201, 90, 70), answer
    assert note in answer["note"]
    done = predict(PredictConfig(NETWORK, str(path), tmp_path / "out", channel="1" if "channels" in note else None))
    expected = cv2.imread(str(done.images[0].files["mask"]), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(mask_at(server, answer["key"], 50), expected)


def test_of_a_stack_the_first_page_is_shown_and_said(server, tmp_path):
    stack = np.stack([draw_sample(number, 90, 70).image for number in range(3)])
    tifffile.imwrite(tmp_path / "stack.tif", stack, imagej=True, metadata={"axes": "TYX"})
    tifffile.imwrite(tmp_path / "first.tif", stack[0])
    answers = [upload(server, name, (tmp_path / name).read_bytes()) for name in ("stack.tif", "first.tif")]
    assert [status for status, _ in answers] == [201, 201]
    assert answers[0][1]["note"].startswith("a stack of 3 pages: the first is taken")
    np.testing.assert_array_equal(*(mask_at(server, answer["key"], 50) for _, answer in answers))


def test_two_users_at_once_get_their_own_pictures(server):
    images = [draw_sample(number, 90, 70).image for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda each: upload(server, "a.png", encode_image(each)), images))
    assert len({answer["key"] for _, answer in answers}) == 4
    alone = [upload(server, "a.png", encode_image(each)) for each in images]
    for (_, one), (_, two) in zip(answers, alone, strict=True):
        np.testing.assert_array_equal(mask_at(server, one["key"], 50), mask_at(server, two["key"], 50))


BAD = {
    "empty.png": b"",
    "text.tif": b"no image",
    "cut.png": encode_image(draw_sample(1).image)[:500],
    "movie.mp4": b"\0" * 100,
    "noending": encode_image(draw_sample(1).image),
    "../../etc/x.png": b"\x89PNG\r\n\x1a\n",
    "line\nbreak.png": b"GIF89a",
    "a" * 3000 + ".png": b"",
    "<script>.svg": b"<svg/>",
}


@pytest.mark.parametrize("name", BAD, ids=range(len(BAD)))
def test_a_file_that_is_no_image_is_one_line_that_names_it(server, name):
    status, answer = upload(server, name, BAD[name])
    assert status == 400
    line = answer["error"]
    assert "\n" not in line
    assert len(line) <= 500
    assert line.startswith(Path(name.replace("\n", " ")).name[:20])
    assert "/tmp" not in line
    assert "glioma-dist-" not in line


def test_one_pixel_is_an_image(server):
    status, answer = upload(server, "pixel.png", encode_image(np.full((1, 1), 7, np.uint8)))
    assert (status, answer["width"]) == (201, 1)
    assert mask_at(server, answer["key"], 50).shape == (1, 1)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/app.js", 200),
        ("/app.css", 200),
        ("/settings", 200),
        ("/favicon.ico", 404),
        ("/../server.py", 404),
        ("/pictures/" + "a" * 22 + "/levels", 404),
        ("/pictures/../levels", 404),
        ("/%2e%2e/server.py", 404),
    ],
)
def test_only_the_page_and_its_pictures_are_served(server, path, status):
    found, body, headers = ask(server, path)
    assert found == status
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert body
    if status == 404:
        assert json.loads(body)["error"]


def test_the_page_fetches_nothing_from_elsewhere(server):
    for path in ("/", "/app.js", "/app.css"):
        text = ask(server, path)[1].decode()
        assert re.findall(r"(?:https?:)?//[a-z0-9]", text) == []
    assert NETWORK in ask(server, "/")[1].decode()


@pytest.mark.parametrize("threshold", ["", "0", "100", "0.5", "x", "-1"])
def test_other_thresholds_are_refused(server, threshold):
    key = upload(server, "a.png", encode_image(draw_sample(1, 64, 64).image))[1]["key"]
    status, body, _ = ask(server, f"/pictures/{key}/mask.png?threshold={threshold}")
    assert (status, json.loads(body)["error"]) == (400, "threshold: give a whole number of percent, from 1 to 99")


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Host": ""}, {"Origin": "http://evil.example"}, {"Origin": "null"}]
)
def test_requests_of_other_pages_are_refused(server, headers):
    for path, data in (("/", None), ("/pictures?name=a.png", encode_image(draw_sample(1).image))):
        status, body, _ = ask(server, path, data, **headers)
        assert status == 403
        assert server.address in json.loads(body)["error"]


@pytest.mark.parametrize("host", ["localhost:9", "127.0.0.1:65000", "localhost"])
def test_a_tunnel_may_have_another_port(server, host):
    assert ask(server, "/", Host=host)[0] == 200
    assert upload(server, "a.png", encode_image(draw_sample(1, 64, 64).image))[0] == 201
    assert ask(server, "/settings", Host=host, Origin=f"http://{host}")[0] == 200
    assert ask(server, "/settings", Host=host, Origin="http://localhost:1")[0] == 403


def test_it_listens_on_this_machine_only(server):
    assert server.server_address[0] == HOST == "127.0.0.1"


def test_what_is_too_large_is_refused_before_it_is_read(server, monkeypatch):
    monkeypatch.setattr(module, "MAX_UPLOAD_BYTES", 100)
    status, answer = upload(server, "a.png", b"x" * 101)
    assert (status, answer["error"]) == (
        413,
        "a.png: has 101 bytes, more than the 100 of this page; use glioma-dist predict",
    )
    monkeypatch.undo()
    monkeypatch.setattr(pictures_module, "MAX_SHOWN_PIXELS", 100)
    status, answer = upload(server, "a.png", encode_image(np.zeros((11, 10), np.uint8)))
    assert (status, answer["error"]) == (
        400,
        "a.png: has 10x11 pixels, more than this page shows; use glioma-dist predict",
    )


@pytest.mark.parametrize("place", ["nowhere", "full"])
def test_a_folder_for_temporary_files_that_takes_none_is_one_line(server, monkeypatch, tmp_path, place):
    folder = tmp_path / "temporary"
    monkeypatch.setattr(server, "folder", folder)
    if place == "full":
        folder.mkdir()

        def refuse(*_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "open", refuse)
    status, answer = upload(server, "a.png", encode_image(draw_sample(1, 64, 64).image))
    monkeypatch.undo()
    expected = "its folder is gone" if place == "nowhere" else "the disk is full"
    assert (status, expected in answer["error"]) == (507, True), answer
    assert "\n" not in answer["error"]


def test_the_oldest_pictures_are_forgotten_and_the_newest_kept():
    kept = KeptPictures(max_bytes=250)
    picture = ShownPicture("a", 10, 10, b"", np.zeros((10, 10), np.uint8), "")
    keys = [kept.add(picture) for _ in range(3)]
    assert [kept.find(key) is not None for key in keys] == [False, True, True]
    large = kept.add(ShownPicture("a", 100, 100, b"", np.zeros((100, 100), np.uint8), ""))
    assert kept.find(large) is not None
    assert kept.find(keys[2]) is None


def test_a_level_is_exactly_the_thresholds_that_are_reached():
    """At each threshold, for the probabilities beside it, too."""
    at = THRESHOLDS.astype(np.float32)
    values = np.concatenate([at, np.nextafter(at, np.float32(0)), np.nextafter(at, np.float32(1)), [0, 1]])
    values = values.astype(np.float32)
    levels = np.searchsorted(at, values, side="right").astype(np.uint8)
    for percent in range(1, 100):
        np.testing.assert_array_equal(levels >= percent, values >= float(f"0.{percent:02d}"))


def test_the_name_of_the_network_is_text_on_the_page():
    with serving("<img src=x>&") as running:
        assert "&lt;img src=x>&amp;" in ask(running, "/")[1].decode()


def test_a_hundred_connections_at_once_wait_for_their_turn(server):
    with contextlib.ExitStack() as opened:
        waiting = opened.enter_context(AppServer(server.segmenter, "", server.folder, 0))
        for _ in range(100):
            opened.enter_context(socket.create_connection((HOST, waiting.server_port), timeout=5))


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_for_what_is_no_url_is_refused_without_a_traceback(server, method, capsys):
    with socket.create_connection((HOST, server.server_port), timeout=60) as connection:
        connection.sendall(f"{method} http://[x/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
        assert connection.recv(2**12).startswith(b"HTTP/1.0 404 ")
    assert capsys.readouterr().err == ""


def test_a_port_that_is_taken_is_one_line(server):
    with pytest.raises(InputError, match=rf"^--port {server.server_port}: cannot be used \(.*\); give another, or 0"):
        AppServer(server.segmenter, "", server.folder, server.server_port)


def run_app(port: int, folder: Path) -> None:
    tempfile.tempdir = str(folder)
    run_command(lambda: program.run(["app", "--checkpoint", NETWORK, "--port", str(port)]))


def wait_for_upload(folder: Path) -> None:
    """Until an uploaded file is complete and is being segmented."""
    until = time.monotonic() + 60
    while not list(folder.glob("glioma-dist-*/*/picture.png")):
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(0.5)


@pytest.mark.parametrize("is_busy", [False, True])
def test_the_command_serves_until_ctrl_c_and_ends_well(is_busy, tmp_path):
    """Also while it segments: 9 megapixels take some seconds."""
    port = free_port()
    started = start(run_app, port, tmp_path)
    wait_for_listener(port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
        assert b"Segment an image" in answer.read()
    if is_busy:
        large = encode_image(np.tile(draw_sample(1, 100, 100).image, (30, 30)))
        request = urllib.request.Request(f"http://127.0.0.1:{port}/pictures?name=a.png", large)
        with ThreadPoolExecutor() as pool:
            pool.submit(urllib.request.urlopen, request)
            wait_for_upload(tmp_path)
            os.kill(started.processes[0].pid, signal.SIGINT)
    else:
        os.kill(started.processes[0].pid, signal.SIGINT)
    (ended,) = started.wait()
    assert ended.exit_code == 0, ended.stderr
    assert f"open http://127.0.0.1:{port}/ in a browser" in ended.stdout
    assert "stopped" in ended.stdout
    assert list(tmp_path.glob("glioma-dist-*")) == []
    assert ended.stderr == ""
