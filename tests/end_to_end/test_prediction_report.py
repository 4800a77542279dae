"""`glioma-dist report`: the page in a real browser, and what it is made from."""

import base64
import csv
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import Browser
from helpers import REPOSITORY, command, draw_sample

import glioma_dist as gd
from glioma_dist.cli.program import COMMANDS
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.inference.quality import FLAGS
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.report.prediction_pictures import (
    TALLEST_PX,
    TOTAL_BYTES,
    draw_thumbnail,
    make_thumbnail,
    outline_path,
    thumbnail_width,
)
from glioma_dist.report.prediction_results import ReportedImage, ResultFolder

COLUMNS = (
    *("image", "plane", "time_h", "acquired", "pixel_size_um", "width", "height", "confluence", "area_um2"),
    *("components", "flags", "way", "mask", "overlay"),
)
NAMES = ("field_2.png", "field_10.png", "<img src=x onerror=alert(1)>.png", 'a "quoted" & long name.tif', "Zelle ü.png")
COLOUR = np.array((255, 200, 0))
VOID = {"meta", "img", "input", "br", "link"}


def write_result(folder: Path, name: str, image: np.ndarray, mask: np.ndarray) -> dict[str, str]:
    """Mask and overlay as predict documents them: cells tinted by 15 % and outlined. image: (H, W)."""
    picture = np.repeat(image[..., None], 3, axis=2)
    tinted = (0.85 * picture + 0.15 * COLOUR).astype(np.uint8)
    picture = np.where(mask[..., None] > 0, tinted, picture)
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, COLOUR.tolist(), 1)
    cv2.imwrite(str(folder / f"{name}.overlay.png"), picture[..., ::-1])
    cv2.imwrite(str(folder / f"{name}.mask.png"), mask * 255)
    return {"mask": f"{name}.mask.png", "overlay": f"{name}.overlay.png"}


def write_table(path: Path, rows: list[dict], columns: tuple[str, ...] = COLUMNS) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def draw_results(folder: Path, names: tuple[str, ...] = NAMES) -> list[dict]:
    """A folder of results with these names, flags, times and areas."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, name in enumerate(names):
        sample = draw_sample(number, 320, 240)
        row = {"image": f"plate/{name}", "time_h": 2 * number, "confluence": round(float(sample.mask.mean()), 6)}
        row |= {"components": 12 - number, "way": "whole", "area_um2": 1234.5 * number if number else ""}
        row |= {"flags": {0: "out-of-focus", 2: "plate-edge;saturated"}.get(number, "")}
        rows.append(row | write_result(folder, f"result_{number}", sample.image, sample.mask))
    write_table(folder / "summary.csv", rows)
    failed = [{"image": "plate/<b>broken</b>.tif", "step": "read", "reason": "is damaged & cut"}]
    write_table(folder / "failed.csv", failed, ("image", "step", "reason"))
    return rows


def write_growth(folder: Path) -> Path:
    """What `glioma-dist growth` writes, as far as the page needs it."""
    folder.mkdir()
    points = [
        {"time_h": 4.0 * number, "confluence": 0.1 * 1.2**number, "low": 0.09 * 1.2**number, "high": 0.11 * 1.2**number}
        for number in range(8)
    ]
    times = {"doubling_time_h": 15.2, "doubling_time_low_h": 14.1, "doubling_time_high_h": 16.4, "reason": ""}
    none = dict.fromkeys(list(times)[:3]) | {"reason": "the confluence falls"}
    cultures = [{"culture": "C7", **times, "points": points}, {"culture": "<D3>", **none, "points": points[:1]}]
    (folder / "growth.json").write_text(json.dumps({"cultures": cultures}))
    return folder


class Page(HTMLParser):
    """What is on a page, and faults of its structure."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.faults = [], [], []
        self.tags: Counter[str] = Counter()
        self.pictures, self.headings, self.texts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags[tag] += 1
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "img":
            self.pictures.append(values)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        for name in ("src", "href", "xlink:href", "action"):
            target = values.get(name, "#")
            if not target.startswith(("#", "data:image/webp;base64,")):
                self.faults.append(f"{tag} {name}={target[:60]}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}>")

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "preds"
    draw_results(folder)
    return folder


@pytest.fixture(scope="module")
def page(results) -> Path:
    growth = write_growth(results.parent / "growth")
    out = results.parent / "made" / "report.html"
    config = gd.ReportConfig(results, out, growth=growth, checkpoint=Path("t98g-small"))
    report = gd.report_prediction(config)
    assert (report.path, report.num_images, report.num_flagged, report.num_failed) == (out, 5, 2, 1)
    assert report.num_bytes == out.stat().st_size
    return out


def test_the_page_is_one_whole_file_that_asks_for_no_other(page):
    text = page.read_text()
    found = Page(text)
    assert found.faults == []
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert found.headings == sorted(found.headings), "no level is passed over"
    assert [each["alt"][:11] for each in found.pictures] == [name[:11] for name in NAMES]
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    said = " ".join(found.texts)
    for each in (*NAMES, "plate/<b>broken</b>.tif", "is damaged & cut", "doubles in 15.2 h (14.1 to 16.4 h)", "<D3>"):
        assert each in said, each
    for each in ("no doubling time: the confluence falls", "MIT License", "mit_tiny", "600", FLAGS["plate-edge"]):
        assert each in said, each
    again = page.with_name("again.html")
    config = gd.ReportConfig(page.parents[1] / "preds", again, page.parents[1] / "growth", Path("t98g-small"))
    gd.report_prediction(config)
    assert again.read_bytes() == page.read_bytes(), "the same results give the same bytes"


SHOWN = """[...document.querySelectorAll('#images tbody tr')].filter((row) => !row.hidden)
  .map((row) => row.cells[0].innerText)"""
CARDS = """[...document.querySelectorAll('.card')].filter((card) => !card.hidden)
  .map((card) => card.querySelector('b').innerText)"""
CHOOSE = """(() => { const all = document.getElementById('flag');
  all.value = '%s'; all.dispatchEvent(new Event('change')); })()"""
COLUMN = "[...document.querySelectorAll('#images tbody tr')].map((row) => row.cells[%d].innerText)"
CONTRAST = """
(selector, ground) => {
  const value = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((each) => each / 255)
      .map((each) => (each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [a, b] = [getComputedStyle(document.querySelector(selector)).color,
    getComputedStyle(document.querySelector(ground)).backgroundColor].map(value);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}
"""


def test_a_real_browser_sorts_searches_and_switches_the_outlines(page, tmp_path):
    names = list(NAMES)
    with Browser() as browser:
        browser.look(1280, 900)
        browser.open(page)
        assert browser.evaluate(SHOWN) == browser.evaluate(CARDS) == names
        outline = "getComputedStyle(document.querySelector('.outline')).display"
        browser.evaluate("document.getElementById('pictures').scrollIntoView()")
        browser.screenshot(tmp_path / "on.png")
        assert browser.evaluate(outline) != "none"
        browser.click("#outlines")
        assert browser.evaluate(outline) == "none"
        browser.evaluate("document.getElementById('pictures').scrollIntoView()")
        browser.screenshot(tmp_path / "off.png")
        yellow = [int(is_yellow(cv2.imread(str(tmp_path / name))).sum()) for name in ("on.png", "off.png")]
        assert yellow[0] > 300
        assert yellow[1] == 0
        browser.press(" ", 32)  # the box has the focus
        assert browser.evaluate(outline) != "none"

        browser.click("#images th:nth-child(1) button")
        by_name = [*sorted(names[2:4], key=lambda name: "<" not in name), "field_2.png", "field_10.png", "Zelle ü.png"]
        assert browser.evaluate(SHOWN) == browser.evaluate(CARDS) == by_name
        assert browser.evaluate("document.querySelector('#images th').ariaSort") == "ascending"
        for column in (3, 4, 5):
            for way, order in (("ascending", 1), ("descending", -1)):
                browser.click(f"#images th:nth-child({column}) button")
                texts = browser.evaluate(COLUMN % (column - 1))
                found = [float(text) for text in texts if text]
                assert found == sorted(found, key=lambda value, order=order: order * value), (column, way)
                assert all(texts[: len(found)]), "empty cells come last"
                assert browser.evaluate(f"document.querySelectorAll('#images th')[{column - 1}].ariaSort") == way
        assert browser.evaluate("document.querySelectorAll('#images th[aria-sort]').length") == 1

        browser.click("#search")
        browser.type("FIELD 10")
        assert browser.evaluate(SHOWN) == browser.evaluate(CARDS) == ["field_10.png"]
        assert browser.evaluate("document.getElementById('shown').innerText") == "1 of 5 images match"
        browser.evaluate("document.getElementById('search').select()")
        browser.type("no such image")
        assert browser.evaluate(SHOWN) == browser.evaluate(CARDS) == []
        browser.press("Escape", 27)  # which empties a field for searching
        for flag, number in (("any", 2), ("none", 3), ("saturated", 1), ("", 5)):
            browser.evaluate(CHOOSE % flag)
            assert len(browser.evaluate(SHOWN)) == len(browser.evaluate(CARDS)) == number, flag
        assert browser.errors == []
        assert {url.partition(":")[0] for url in browser.requests} <= {"file", "data"}


def is_yellow(picture: np.ndarray) -> np.ndarray:
    """Pixels of an outline. picture: (H, W, 3) BGR."""
    blue, green, red = (picture[..., channel].astype(int) for channel in range(3))
    return (red > 150) & (green > 150) & (blue < red - 90)


def test_the_page_fits_narrow_and_wide_windows_in_dark_and_light_and_on_paper(page):
    with Browser() as browser:
        browser.look(1280, 900)
        browser.open(page)
        for width in (1280, 390):
            for is_dark in (False, True):
                browser.look(width, 900, is_dark)
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                for selector in ("h1", ".quiet", "td.flag", "#images a"):
                    contrast = browser.evaluate(f"({CONTRAST})({json.dumps(selector)}, 'body')")
                    assert contrast >= 4.5, (selector, width, is_dark)
                ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
                assert (ground == "rgb(255, 255, 255)") == (not is_dark)
        reached = []
        for _ in range(12):
            browser.press("Tab", 9)
            reached.append(browser.evaluate("document.activeElement.id || document.activeElement.className"))
        assert reached[0] == "skip"
        assert {"outlines", "search", "flag", "size"} <= set(reached), "by the keyboard alone"
        browser.look(800, 900, is_print=True, is_dark=True)
        assert browser.evaluate("getComputedStyle(document.querySelector('.controls')).display") == "none"
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        unnamed = "[...document.querySelectorAll('input, select')].filter((each) => !each.labels.length).length"
        assert browser.evaluate(unnamed) == 0
        assert browser.errors == []


def picture_of(page: str, number: int) -> np.ndarray:
    data = re.findall(r'src="data:image/webp;base64,([^"]*)"', page)[number]
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)


def test_pictures_are_the_images_without_what_was_drawn_on_them(page):
    """Against the images, which the command has not seen."""
    text = page.read_text()
    for number in range(len(NAMES)):
        image, found = draw_sample(number, 320, 240).image, picture_of(text, number)
        smooth = [cv2.GaussianBlur(each.astype(np.float32), (0, 0), 3) for each in (image, found[..., 1])]
        assert np.abs(smooth[0] - smooth[1]).mean() < 3
        assert not is_yellow(found).any()


@pytest.mark.parametrize("seed", range(4))
def test_outlines_enclose_the_pixels_of_the_mask(seed):
    """The path, filled by the even-odd rule at four times the size, is the mask, holes and single pixels included."""
    generator = np.random.default_rng(seed)
    mask = cv2.resize(generator.integers(0, 2, (12, 15), np.uint8), (90, 70), interpolation=cv2.INTER_NEAREST)
    mask[generator.integers(0, 70, 8), generator.integers(0, 90, 8)] ^= 1
    if seed == 3:
        mask[:] = 1
    drawn = np.zeros((280, 360), np.uint8)
    for part in outline_path(mask > 0, 0).removesuffix("z").split("z"):
        start, steps = part.removeprefix("M").split("l")
        points = np.cumsum([[*map(int, each.split(","))] for each in [start, *steps.split(" ")]], axis=0)
        one = np.zeros_like(drawn)
        cv2.fillPoly(one, [(points * 4).astype(np.int32)], 1)
        drawn ^= one
    centres = drawn[2::4, 2::4]
    assert (centres == mask).mean() > 0.995
    assert re.findall(r"-?\d+", outline_path(mask > 0, 0, 8)) == [
        str(8 * int(each)) for each in re.findall(r"-?\d+", outline_path(mask > 0, 0))
    ]
    simple = outline_path(mask > 0, 1.0)
    assert len(simple) <= len(outline_path(mask > 0, 0))
    assert outline_path(np.zeros((5, 5), bool), 0.5) == ""


def test_five_hundred_pictures_stay_below_20_mb_whatever_is_on_them(tmp_path):
    """The largest that one can be: noise, with ragged cells."""
    noise = np.random.default_rng(0).integers(0, 256, (1022, 1024), np.uint8)
    mask = cv2.resize(np.random.default_rng(1).integers(0, 2, (128, 128), np.uint8), (1024, 1022))
    files = write_result(tmp_path, "noise", noise, mask)
    image = ReportedImage("noise.png", 0.5, files=files)
    sizes = {}
    with ImageReader() as reader:
        for number in (1, 500, 2000):
            width = thumbnail_width(number)
            found = make_thumbnail(ResultFolder(tmp_path), image, width, TOTAL_BYTES // number, reader)
            sizes[number] = number * (len(found.data) + len(found.outline))
            assert found.outline
            assert found.width == min(width, 1024)
    assert thumbnail_width(500) >= 240
    assert max(sizes.values()) < 17e6


@pytest.mark.parametrize("width", [1, 64])
def test_a_picture_taller_than_a_webp_can_be_is_drawn_smaller(width):
    picture = np.random.default_rng(0).integers(0, 256, (40_000, width), np.uint8)
    found = draw_thumbnail(picture, np.ones_like(picture), 640, 100_000)
    drawn = cv2.imdecode(np.frombuffer(base64.b64decode(found.data), np.uint8), cv2.IMREAD_UNCHANGED)
    assert drawn.shape[:2] == (found.height, found.width)
    assert found.height <= TALLEST_PX
    assert width == 1 or found.height == pytest.approx(found.width * 40_000 / width, rel=0.05)


@pytest.mark.slow
def test_a_report_of_five_hundred_real_fields_is_below_20_mb(tmp_path):
    from data_helpers import real_data

    fields = sorted((real_data("t98g") / "images/default").glob("*.png"))
    command("predict", "--checkpoint", "t98g-small", "--images", fields[0].parent, "--out", tmp_path, timeout=600)
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    write_table(tmp_path / "summary.csv", [rows[number % len(rows)] for number in range(500)], tuple(rows[0]))
    report = gd.report_prediction(gd.ReportConfig(tmp_path, tmp_path / "report.html"))
    print(f"{report.num_bytes / 1e6:.1f} MB")
    assert report.num_images == 500
    assert report.num_bytes < 20e6


def test_the_commands_of_the_page_run(tmp_path):
    """Those of docs/guides/report.md, with a broken image among the others, which predict ends with exit code 1 for."""
    page = (REPOSITORY / "docs/guides/report.md").read_text()
    blocks = [block.splitlines() for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)]
    assert len(blocks) == 3
    (tmp_path / "my_images").mkdir()
    for number in range(3):
        name = f"A172_Phase_C7_1_00d{4 * number:02d}h00m_1.png"
        cv2.imwrite(str(tmp_path / "my_images" / name), draw_sample(number, 200, 160).image)
    (tmp_path / "my_images/broken.png").write_bytes(b"no image")
    shutil.copytree(Checkpoint.read(Path("t98g-small")).folder, tmp_path / "runs/glioma/best")
    for line in [line for block in blocks for line in block]:
        _, name, *flags = line.split()
        if name not in COMMANDS or ("--growth" in flags and "growth" not in COMMANDS):
            continue
        ended = command(name, *flags, folder=tmp_path)
        if name == "report":
            assert (ended.exit_code, ended.stderr) == (0, "")
            assert re.search(r"report\.html: 3 images, \d with a flag, 1 failed; 0\.\d MB", ended.stdout)
            text = (tmp_path / "report.html").read_text()
            assert len(Page(text).pictures) == 3
            assert not any(is_yellow(picture_of(text, number)).any() for number in range(3))
            assert "broken.png" in text
            assert ("The results do not tell when" in text) == ("--growth" not in flags)
    assert "mit_tiny" in text
    assert "MIT License" in text


WRONG = {
    "no folder": ({}, ("nowhere", "--out", "r.html"), "no such folder"),
    "a file": ({"f": ""}, ("f", "--out", "r.html"), "is a file"),
    "empty": ({"p/x": ""}, ("p", "--out", "r.html"), "summary.csv: is missing"),
    "no rows": ({"p/summary.csv": "image,confluence\n"}, ("p", "--out", "r.html"), "has no row"),
    "nothing in it": ({"p/summary.csv": ""}, ("p", "--out", "r.html"), "has no column image"),
    "other table": ({"p/summary.csv": "a,b\n1,2\n"}, ("p", "--out", "r.html"), "has no column image"),
    "no share": ({"p/summary.csv": "image,confluence\na,nan\n"}, ("p", "--out", "r.html"), "row 2: its confluence"),
    "percent": ({"p/summary.csv": "image,confluence\na,12\n"}, ("p", "--out", "r.html"), "not a number from 0 to 1"),
    "torn": ({"p/summary.csv": 'image,confluence\n"a,0.1\n'}, ("p", "--out", "r.html"), "is no table"),
    "no json": ({"p/summary.csv": "image,confluence\na,0\n", "p/predict.json": "{"}, ("p", "--out", "r.html"), "JSON"),
    "no html": ({"p/summary.csv": "image,confluence\na,0\n"}, ("p", "--out", "r.txt"), "ends in .html"),
    "a folder": ({"p/summary.csv": "image,confluence\na,0\n", "r.html/x": ""}, ("p", "--out", "r.html"), "is a folder"),
    "no growth": (
        {"p/summary.csv": "image,confluence\na,0\n", "g/x": ""},
        ("p", "--growth", "g", "--out", "r.html"),
        "has no growth.json",
    ),
    "other growth": (
        {"p/summary.csv": "image,confluence\na,0\n", "g/growth.json": '{"cultures": [{"culture": 1}]}'},
        ("p", "--growth", "g", "--out", "r.html"),
        "run glioma-dist growth again",
    ),
    "no checkpoint": (
        {"p/summary.csv": "image,confluence\na,0\n"},
        ("p", "--checkpoint", "nothing", "--out", "r.html"),
        "--checkpoint nothing",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_reported_is_one_line_and_writes_nothing(name, tmp_path, capsys):
    files, words, said = WRONG[name]
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    before = sorted(tmp_path.rglob("*"))
    ended = command("report", *words, folder=tmp_path)
    assert ended.exit_code == 2, ended.stderr
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert len(line) < 510
    assert sorted(tmp_path.rglob("*")) == before


def test_a_table_with_two_columns_is_enough_and_pictures_that_are_gone_are_left_blank(tmp_path):
    cv2.imwrite(str(tmp_path / "there.png"), draw_sample(0).image)
    rows = [{"image": str(tmp_path / "there.png"), "confluence": 0.25}, {"image": "gone.png", "confluence": 1}]
    write_table(tmp_path / "summary.csv", rows, ("image", "confluence"))
    gd.report_prediction(gd.ReportConfig(tmp_path, tmp_path / "r.html"))
    text = (tmp_path / "r.html").read_text()
    assert text.count("no picture") == 1
    assert "1 of them cannot be shown" in text
    assert len(Page(text).pictures) == 1
    assert "Time (h)" not in text
    assert "no column for flags" in text
    assert "The results do not name their checkpoint" in text


def test_a_table_that_excel_has_saved_is_read_as_the_growth_command_reads_it(tmp_path):
    head, row = "Image; Confluence;time_h;components;area_um2;flags", 'a.tif;0,25;1,5;3;12,5;"saturated;plate-edge"'
    (tmp_path / "summary.csv").write_text(f"\ufeff{head}\r\n{row}\r\n", encoding="utf-8", newline="")
    (image,) = ResultFolder(tmp_path).images()
    assert (image.image, image.confluence, image.hours, image.area_um2) == ("a.tif", 0.25, 1.5, 12.5)
    assert (image.components, image.flags, image.files) == (3, ("saturated", "plate-edge"), {})


@pytest.mark.parametrize("kind", ["mask", "overlay"])
@pytest.mark.parametrize("damage", [b"", b"no picture", None, "../../summary.csv"])
def test_a_damaged_or_missing_result_stops_no_report(kind, damage, tmp_path):
    rows = draw_results(tmp_path / "preds", NAMES[:2])
    if isinstance(damage, bytes):
        (tmp_path / "preds" / rows[0][kind]).write_bytes(damage)
    elif damage is None:
        (tmp_path / "preds" / rows[0][kind]).unlink()
    else:
        rows[0][kind] = damage
        write_table(tmp_path / "preds/summary.csv", rows)
    gd.report_prediction(gd.ReportConfig(tmp_path / "preds", tmp_path / "r.html"))
    found = Page((tmp_path / "r.html").read_text())
    assert len(found.pictures) == (2 if kind == "mask" else 1)


def test_time_lapses_become_curves_of_their_own(tmp_path):
    rows = [
        {"image": name, "plane": f"t{frame:03d}", "time_h": 0.5 * frame, "confluence": 0.1 + 0.05 * frame}
        for name in ("a/one.tif", "a/two.tif", "a/three.tif", "b/three.tif")
        for frame in range(4)
    ]
    write_table(tmp_path / "summary.csv", rows)
    gd.report_prediction(gd.ReportConfig(tmp_path, tmp_path / "r.html"))
    text = (tmp_path / "r.html").read_text()
    labels = re.findall(r"aria-label='([^']*)'", text)
    assert labels == [
        f"{name}: confluence 10.0 % at 0 h, 25.0 % at 1.5 h"
        for name in ("one.tif", "two.tif", "a/three.tif", "b/three.tif")
    ]
    assert text.count("<circle") == 16
    assert "one.tif (t003)" in text


def test_what_made_the_results_is_told_from_their_record(tmp_path):
    draw_results(tmp_path, NAMES[:1])
    checkpoint = Checkpoint.read(Path("t98g-small"))
    lineage = [{"data": "LIVECell", "licence": "CC BY-NC 4.0"}]
    told = {"path": "t98g-small", "step": 600, "encoder": "mit_tiny", "lineage": lineage}
    texts = []
    for identity in (checkpoint.manifest.identity, "0" * 64):
        record = {"checkpoints": {identity: told}, "settings": {"a": {"threshold": 0.4}}, "images": {}}
        (tmp_path / "predict.json").write_text(json.dumps(record))
        gd.report_prediction(gd.ReportConfig(tmp_path, tmp_path / "r.html"))
        texts.append(" ".join(Page((tmp_path / "r.html").read_text()).texts))
    assert "MIT License" in texts[0]
    assert "is not the one that made the results" not in texts[0]
    assert "is not the one that made the results" in texts[1]
    assert "not for commercial use" in texts[1]
    assert all('"threshold": 0.4' in text for text in texts)
    for odd in ("[]", '{"checkpoints": 3, "settings": []}', '{"checkpoints": {"a": {"lineage": 3, "path": 7}}}'):
        (tmp_path / "predict.json").write_text(odd)
        gd.report_prediction(gd.ReportConfig(tmp_path, tmp_path / "r.html"))


@pytest.mark.parametrize("hours", ["1e308", "-1e308", "nan", "inf", "", "soon", "0x10"])
def test_odd_values_of_a_table_are_unknown_and_never_a_traceback(hours, tmp_path):
    rows = [
        {"image": "", "plane": "t001", "time_h": hours, "confluence": 0, "components": hours, "area_um2": hours},
        {"image": "a\0b/\x1b[31m", "plane": "<t2>", "time_h": 2, "confluence": 1, "flags": ";;odd flag;", "mask": "\n"},
        {"image": ".", "plane": "t003", "time_h": 2.0000001, "confluence": 0.5, "overlay": "..", "way": "<i>"},
    ]
    write_table(tmp_path / "summary.csv", rows)
    report = gd.report_prediction(gd.ReportConfig(tmp_path, tmp_path / "r.html"))
    assert (report.num_images, report.num_flagged) == (3, 1)
    assert Page((tmp_path / "r.html").read_text()).faults == []


@pytest.mark.parametrize("count", [1999, 2001, 7000])
def test_a_page_shows_as_many_pictures_as_a_browser_takes_flagged_ones_first(count):
    from glioma_dist.report.prediction_page import MAX_CARDS, _with_card

    images = [
        ReportedImage(str(number), 0.1, flags=("saturated",) if number % 9 == 0 else ()) for number in range(count)
    ]
    shown = _with_card(images)
    assert len(shown) == min(count, MAX_CARDS)
    assert shown >= set(range(0, count, 9))
