"""`glioma-dist shards report`: what is in two splits, in a real browser, and against what was put into the shards."""

import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import Browser
from data_helpers import draw_field
from faulty_server import files_of, serve
from helpers import REPOSITORY, command, damage_sample, draw_sample, type_in, write_shards
from test_prediction_report import CARDS, CHOOSE, CONTRAST, SHOWN, Page

from glioma_dist.cli.arguments import parse
from glioma_dist.cli.data_report import DATA_REPORT
from glioma_dist.cli.program import COMMANDS
from glioma_dist.config.data_report import DataReportConfig
from glioma_dist.data.sample import Sample
from glioma_dist.errors import InputError
from glioma_dist.report.data_page import report_data


def draw(number: int, key: str, group: str | None = None) -> Sample:
    image = draw_field(number)
    mask = cv2.threshold(cv2.GaussianBlur(image, (0, 0), 3), 140, 1, cv2.THRESH_BINARY)[1]
    metadata = {"dataset": "drawn", "file_name": f"{key}.png", "num_cells": 30, "licence": "CC0", "pixel_size_um": 0.65}
    return Sample(key, image, mask, metadata | ({"group": group} if group else {}))


def saved_again(sample: Sample, key: str) -> Sample:
    """The same field from a JPEG of it, brighter and cut a little, as (H, W)."""
    jpeg = cv2.imencode(".jpg", sample.image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
    image = (0.8 * cv2.imdecode(jpeg, cv2.IMREAD_GRAYSCALE) + 40).astype(np.uint8)[6:, 8:]
    metadata = {**sample.metadata, "file_name": f"{key}.png"}
    return Sample(key, np.ascontiguousarray(image), np.ascontiguousarray(sample.mask[6:, 8:]), metadata)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """12 training and 6 validation images, of which some are in both."""
    out = tmp_path_factory.mktemp("data") / "shards"
    train = [draw(number, f"t{number}", f"well{number // 2}") for number in range(10)]
    turned = replace(train[4], key="turned", image=np.ascontiguousarray(train[4].image[:, ::-1]))
    turned = replace(turned, metadata={**turned.metadata, "file_name": "turned.png"})
    train += [turned, replace(draw(30, "empty", "wellE"))]
    train[-1] = replace(train[-1], mask=np.zeros_like(train[-1].mask))
    val = [
        draw(20, "v0", "well20"),
        draw(21, "v1", "well0"),
        replace(train[2], key="renamed", metadata={"dataset": "drawn", "file_name": "<b>renamed</b>.png"}),
        saved_again(train[7], "again"),
        replace(draw(22, "v4"), mask=np.ones((300, 400), np.uint8)),
        replace(draw(23, "v5"), mask=np.ones((300, 400), np.uint8)),
    ]
    val[2] = replace(val[2], mask=1 - val[2].mask)
    write_shards(out / "train", train, 5)
    write_shards(out / "val", val, 4)
    defect = {"kind": "size-mismatch", "where": "plate/<x>.png", "detail": "mask of 3x4", "left_out": True}
    (out / "audit.json").write_text(json.dumps({"defects": [defect]}))
    return out


@pytest.fixture(scope="module")
def page(folder) -> Path:
    out = folder.parent / "made" / "report.html"
    report = report_data(DataReportConfig((folder,), out))
    assert (report.num_images, report.num_unreadable) == (18, 0)
    assert report.num_leaks == 2
    assert report.num_shared_groups == 2, "well0, and well3, whose field was saved again"
    assert report.num_flagged >= 3
    assert report.num_bytes == out.stat().st_size
    return out


def test_the_page_is_one_whole_file_that_says_what_was_put_in(page, folder):
    text = page.read_text()
    found = Page(text)
    assert found.faults == []
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert found.headings == sorted(found.headings)
    assert "url(" not in text
    assert "default-src 'none'" in text
    said = re.sub(r"\s+", " ", " ".join(found.texts))
    for each in (
        "Pairs with equal pixels in two splits: 1 (",
        "Pairs of nearly the same image in two splits: 1 (",
        "Groups with images in several splits: 2 (",
        "Equal images with different masks: 1 (",
        "in two splits , equal pixels: train: t2.png and val: <b>renamed</b>.png",
        "well0 train: 2, val: 1",
        "plate/<x>.png size-mismatch mask of 3x4",
        "defects 1, images left out 1.",
        "CC0",
        "0.65",
    ):
        assert each in said, each
    again = page.with_name("again.html")
    report_data(DataReportConfig((folder / "train", folder / "val"), again))
    assert again.read_text() == text, "a folder of splits is its splits, and the same data give the same bytes"


def kinds(page: Path) -> dict[tuple[str, str], str]:
    """Pair -> where it is, from the table of pairs."""
    table = page.read_text().partition("Similarity</th>")[2].partition("</table>")[0]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in table.split("<tr>")]
    return {(row[2], row[3]): row[0] for row in rows if row}


def test_a_copy_in_one_group_is_expected_and_one_in_another_split_is_a_leak(page):
    assert kinds(page) == {
        ("train: t2.png", "val: &lt;b&gt;renamed&lt;/b&gt;.png"): "in two splits",
        ("train: t7.png", "val: again.png"): "in two splits",
        ("train: t4.png", "train: turned.png"): "one group of one split",
    }


def test_a_real_browser_filters_sorts_and_has_no_error(page):
    with Browser() as browser:
        browser.look(1280, 900)
        browser.open(page)
        assert len(browser.evaluate(SHOWN)) == 18
        assert len(browser.evaluate(CARDS)) >= 12
        browser.evaluate(CHOOSE % "full-mask")
        assert sorted(browser.evaluate(CARDS)) == sorted(browser.evaluate(SHOWN)) == ["v4.png", "v5.png"]
        browser.evaluate(CHOOSE % "no-cells")
        assert browser.evaluate(SHOWN) == ["empty.png"]
        browser.evaluate(CHOOSE % "")
        browser.click("#images th:nth-child(5) button")
        values = browser.evaluate(
            "[...document.querySelectorAll('#images tbody tr')].map((row) => +row.cells[4].innerText)"
        )
        assert values == sorted(values)
        for width in (1280, 390):
            for is_dark in (False, True):
                browser.look(width, 900, is_dark)
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                for selector in ("h1", ".quiet", ".findings .flag", "#images a"):
                    assert browser.evaluate(f"({CONTRAST})({json.dumps(selector)}, 'body')") >= 4.5, selector
        assert browser.errors == []
        assert {url.partition(":")[0] for url in browser.requests} <= {"file", "data"}


def test_urls_and_damaged_samples(folder, tmp_path):
    pytest.importorskip("aiohttp", reason="needs the extra cloud")
    samples = [draw(40 + number, f"s{number}") for number in range(3)]
    write_shards(tmp_path / "data" / "train", samples)
    damage_sample(tmp_path / "data" / "train", "s1")
    with serve(files_of(tmp_path / "data")) as server:
        report = report_data(DataReportConfig((f"{server.url}/train",), tmp_path / "r.html"))
    assert (report.num_images, report.num_unreadable) == (2, 1)
    assert "s1" in (tmp_path / "r.html").read_text()
    for key in ("s0", "s2"):
        damage_sample(tmp_path / "data" / "train", key)
    with pytest.raises(InputError, match="no image can be read"):
        report_data(DataReportConfig((tmp_path / "data" / "train",), tmp_path / "r.html"))


def test_colour_sixteen_bits_and_several_sizes(tmp_path):
    kinds = ({}, {"channels": 3}, {"dtype": np.uint16}, {"width": 40, "height": 50})
    write_shards(tmp_path / "s", [draw_sample(number, **kind) for number, kind in enumerate(kinds)])
    report_data(DataReportConfig((tmp_path / "s",), tmp_path / "r.html"))
    text = (tmp_path / "r.html").read_text()
    for each in ("8 bit RGB (1)", "16 bit grey (1)", "8 bit grey (2)", "96x80 (3), 40x50 (1)"):
        assert each in text, each


def test_the_command_and_what_it_refuses(folder, tmp_path):
    ended = command("shards report", folder / "val", "--out", tmp_path / "val.html")
    assert (ended.exit_code, ended.stderr) == (0, "")
    flags = r"\d+ with a flag, 0 unreadable; \d\.\d MB"
    assert re.search(rf"val\.html: 6 images, {flags}", ended.stdout), "one split shares nothing with another"
    ended = command("shards report", folder, "--out", tmp_path / "both.html")
    assert re.search(rf"both\.html: 18 images, 2 pairs alike and 2 groups in two splits, {flags}", ended.stdout)
    others = write_shards(tmp_path / "others" / "test", [draw_sample(number) for number in (70, 71)])
    ended = command("shards report", folder / "val", others, "--out", tmp_path / "apart.html")
    assert re.search(rf"apart\.html: 8 images, nothing in two splits, {flags}", ended.stdout)
    for arguments, fragment in (
        ((folder / "val", "--out", tmp_path / "x.txt"), "ends in .html"),
        ((tmp_path, "--out", tmp_path / "x.html"), "holds no index.json"),
        (("--out", tmp_path / "x.html"), "SHARDS"),
    ):
        with pytest.raises(InputError, match=fragment):
            DATA_REPORT.check(parse(DataReportConfig, list(map(str, arguments))))


def test_the_commands_of_the_guide_run(tmp_path):
    """And the last line of `convert` is a command that writes the page, too."""
    (block,) = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "docs/guides/data_report.md").read_text(), re.DOTALL)
    for name in ("images", "masks"):
        (tmp_path / "data/plate_7" / name).mkdir(parents=True)
    for number in range(6):
        sample = draw_sample(number)
        for name, pixels in (("images", sample.image), ("masks", sample.mask * 255)):
            cv2.imwrite(str(tmp_path / "data/plate_7" / name / f"f{number}.png"), pixels)
    converted, reported = type_in(block, tmp_path)
    assert (tmp_path / "plate_7.html").is_file()
    assert "plate_7.html: 6 images" in reported.stdout
    last = converted.stderr.splitlines()[-1]
    assert last == "look at the data: glioma-dist shards report shards/plate_7 --out shards/plate_7.html"
    assert COMMANDS["shards report"].load() is DATA_REPORT


def test_the_guide_names_the_command_and_what_is_recognised():
    page = (REPOSITORY / "docs/guides/data_report.md").read_text()
    for each in ("glioma-dist shards report", "mirrored", "quarter turns", "Not recognised", "full-mask", "few-cells"):
        assert each in page, each
