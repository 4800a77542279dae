"""`growth` from a table to files: what is written, what is refused, and a drawn time-lapse from pictures to hours."""

import csv
import json
import math
import re
import stat
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from bucket import bucket
from helpers import REPOSITORY, command, draw_sample, type_in

import glioma_dist as gd
from glioma_dist.config.paths import Url
from glioma_dist.errors import ExitCode, InputError, PartialError
from glioma_dist.growth_curves import plots
from glioma_dist.growth_curves.table import SUMMARY
from glioma_dist.inference import images

GROWING = {"A1": 18.0, "A2": 24.0, "A10": 36.0}
"""Well -> hours in which it doubles."""
TABLES = ["growth.csv", "points.csv", "growth.json"]
PLOTS = ["together.png", "together.svg", "wells.png", "wells.svg"]
HEAD = ["image", "width", "height", "confluence"]


def rows_of(wells: dict[str, float], fields: int = 3, step: int = 4, end: int = 72, seed: int = 0) -> list[list]:
    """Rows of summary.csv: cultures that grow from 5 %, with 1 % noise; 0 hours for one that does not."""
    generator = np.random.default_rng(seed)
    return [
        [
            f"plate/VID7_{well}_{field}_{hour // 24:02d}d{hour % 24:02d}h00m.tif",
            *(700, 500),
            min(0.95, 0.05 * 2 ** (hour / doubling if doubling else 0) * math.exp(generator.normal(0, 0.01))),
        ]
        for well, doubling in wells.items()
        for field in range(1, fields + 1)
        for hour in range(0, end + 1, step)
    ]


def write_table(folder: Path, rows: list[list], head: list[str] = HEAD) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / SUMMARY).open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def preds(tmp_path_factory) -> Path:
    return write_table(tmp_path_factory.mktemp("preds"), rows_of(GROWING | {"B1": 0}))


@pytest.fixture(scope="module")
def grown(preds, tmp_path_factory) -> gd.GrowthResult:
    return gd.growth(gd.GrowthConfig(preds, tmp_path_factory.mktemp("grown") / "new" / "growth"))


def test_the_table_has_the_name_that_predict_gives_it():
    assert images.SUMMARY == SUMMARY


def test_each_culture_is_a_row_with_its_doubling_time_or_the_reason(grown):
    found = {row["culture"]: row for row in read(grown.out / "growth.csv")}
    assert list(found) == ["VID7_A1", "VID7_A2", "VID7_A10", "VID7_B1"]
    for well, doubling in GROWING.items():
        row = found[f"VID7_{well}"]
        assert float(row["doubling_time_h"]) == pytest.approx(doubling, rel=0.05)
        assert float(row["doubling_time_low_h"]) < float(row["doubling_time_h"]) < float(row["doubling_time_high_h"])
        assert (row["reason"], row["time_points"], row["images"], row["lag_h"]) == ("", "19", "57", "0.0")
    still = found["VID7_B1"]
    assert "no growth" in still["reason"]
    assert {name for name, value in still.items() if value == ""} == {
        *("doubling_time_h", "doubling_time_low_h", "doubling_time_high_h", "rate_per_h", "r_squared", "lag_h"),
        *("stretch_points", "stretch_start_h", "stretch_end_h", "stretch_max_confluence"),
    }


def test_all_files_tell_the_same_and_hold_no_number_that_is_none(grown):
    assert sorted(grown.files) == sorted(grown.out.iterdir())
    assert {path.name for path in grown.files} == {*TABLES, *PLOTS}
    content = json.loads((grown.out / "growth.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    table, points = read(grown.out / "growth.csv"), read(grown.out / "points.csv")
    for culture, row in zip(content["cultures"], table, strict=True):
        for name, text in row.items():
            value = "" if culture[name] is None else culture[name]
            assert text == value or float(text) == pytest.approx(float(value), rel=1e-5)
        own = [point for point in points if point["culture"] == culture["culture"]]
        for point, told in zip(own, culture["points"], strict=True):
            assert float(point["confluence"]) == pytest.approx(told["confluence"], rel=1e-5)
            assert int(point["in_stretch"]) == told["in_stretch"]
            assert told["low"] < told["confluence"] < told["high"]
        assert sum(point["in_stretch"] for point in culture["points"]) == (culture["stretch_points"] or 0)
    assert content["settings"]["max_confluence"] == 0.5
    for name in TABLES:
        assert re.search(r"\b(nan|inf|infinity|none)\b", (grown.out / name).read_text(), re.IGNORECASE) is None


def test_plots_are_there_in_two_forms_and_depend_on_the_numbers_only(grown, preds, tmp_path):
    again = gd.growth(gd.GrowthConfig(preds, tmp_path))
    for name in PLOTS:
        assert (again.out / name).read_bytes() == (grown.out / name).read_bytes()
    assert cv2.imread(str(grown.out / "wells.png")).shape[1] > 500
    assert "VID7_A10" in (grown.out / "wells.svg").read_text()


def test_the_command_prints_a_line_a_culture(preds, tmp_path):
    ended = command("growth", preds, "--out", tmp_path)
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert re.search(r"^VID7_A1: doubles in 1[78]\S* h \(.* to .* h\), by \d+ points from", ended.stdout, re.MULTILINE)
    assert re.search(r"^VID7_B1: no doubling time: no growth", ended.stdout, re.MULTILINE)
    assert "note: wells from the name (228 images)" in ended.stdout


def test_images_without_a_place_are_named_and_the_others_are_done(tmp_path):
    rows = [*rows_of({"A1": 24.0}), ["map.tif", 1, 1, 0.5], ["dark.tif", 1, 1, "nan"], ["", 1, 1, 0.1]]
    preds = write_table(tmp_path / "preds", rows)
    result = gd.growth(gd.GrowthConfig(preds, tmp_path / "growth"))
    assert result.cultures[0].fit is not None
    assert [(each.image, each.reason.partition(":")[0]) for each in result.not_used] == [
        ("", "the row names no image"),
        ("dark.tif", "its confluence is 'nan', no number that can be used"),
        ("map.tif", "no time is known; give --pattern or --metadata"),
    ]
    with pytest.raises(PartialError, match=r"3 images are in no growth curve; growth\.json lists them: .*map\.tif"):
        result.raise_for_not_used()
    ended = command("growth", preds, "--out", tmp_path / "growth")
    assert ended.exit_code == ExitCode.PARTIAL
    assert re.fullmatch(r"error: 3 images .{1,480}\n", ended.stderr)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "has no summary.csv"),
        (b"", "is empty"),
        (b"image,confluence\r\n", "has no row"),
        (b"image,width\r\na.tif,3\r\n", "has no column confluence"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "is no UTF-8 text"),
        (b"image,confluence\r\nA1_1_00d00h00m.tif,2\r\n", "not between 0 and 1"),
        (b"image,confluence\r\nA1_1_00d00h00m.tif,-0.1\r\n", "not between 0 and 1"),
        (b"image,confluence\r\nA1_1_00d00h00m.tif,\r\n", "has no confluence"),
        (b"image,confluence,width,height\r\nA1_1_00d00h00m.tif,0.1,1e300,1\r\n", "no number that can be used"),
        (b"image,confluence,acquired\r\nA1_1_00d00h00m.tif,0.1,yesterday\r\n", "no date such as"),
        (b"image,confluence,time_h\r\nA1_1_00d00h00m.tif,0.1,1e9\r\n", "no number that can be used"),
        (b"image,confluence\r\nimg_1.tif,0.1\r\n", "give --pattern or --metadata"),
        (b"image,confluence\r\na.tif,0.1,0.2,0.3\r\n", "row 2 has 4 cells"),
        (b'image,confluence\r\n"a.tif,0.1', "is no CSV"),
        (b"image,confluence\r\na\0.tif,0.1\r\n", "no time is known|is no CSV"),
    ],
    ids=str,
)
def test_a_table_that_cannot_be_used_is_one_line_and_nothing_is_written(content, words, tmp_path):
    (tmp_path / "preds").mkdir()
    if content is not None:
        (tmp_path / "preds" / SUMMARY).write_bytes(content)
    with pytest.raises(InputError, match=words) as refused:
        gd.growth(gd.GrowthConfig(tmp_path / "preds", tmp_path / "growth"))
    assert len(str(refused.value)) <= 500
    assert not (tmp_path / "growth").exists()


@pytest.mark.parametrize("place", ["nowhere", "nowhere.csv", "picture.png"])
def test_a_place_without_a_table_says_what_to_give(place, tmp_path):
    (tmp_path / "picture.png").touch()
    with pytest.raises(InputError, match=r"no such file|give the folder"):
        gd.growth(gd.GrowthConfig(tmp_path / place, tmp_path / "growth"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"min_confluence": 0.5}, "less than --max-confluence"),
        ({"min_confluence": 0}, "--min-confluence 0"),
        ({"max_confluence": 50}, r"--max-confluence 50.*0\.5 is 50 %"),
        ({"max_confluence": math.nan}, "--max-confluence nan"),
        ({"min_points": 3}, "--min-points 3"),
        ({"frame_hours": 0}, "--frame-hours 0"),
        ({"frame_hours": math.inf}, "--frame-hours inf"),
        ({"metadata": Path("nowhere.csv")}, "nowhere.csv: no such file"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(changes, words, preds, tmp_path):
    with pytest.raises(InputError, match=words):
        gd.growth(gd.GrowthConfig(preds, tmp_path / "growth", **changes))


@pytest.mark.parametrize("name", [*TABLES, *PLOTS, "wells_2.png"])
def test_a_file_of_somebody_else_is_not_replaced(name, preds, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"holds {name}, which glioma-dist growth did not write"):
        gd.growth(gd.GrowthConfig(preds, tmp_path))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_second_run_replaces_the_first_and_leaves_no_plot_of_it(preds, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "MAX_PANELS", 2)
    first = gd.growth(gd.GrowthConfig(preds, tmp_path))
    pages = {f"wells_{number}.{kind}" for number in (1, 2) for kind in ("png", "svg")}
    assert {path.name for path in first.files} == {*TABLES, *PLOTS[:2], *pages}
    monkeypatch.undo()
    (tmp_path / "notes.txt").write_text("mine")
    gd.growth(gd.GrowthConfig(preds, tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {*TABLES, *PLOTS, "notes.txt"}


def test_results_in_the_folder_of_the_prediction_itself(preds, tmp_path):
    folder = write_table(tmp_path / "preds", rows_of({"A1": 24.0}))
    for _ in range(2):
        gd.growth(gd.GrowthConfig(folder, folder))
    assert (folder / SUMMARY).is_file()


def test_files_have_the_mode_that_others_have(grown):
    (grown.out / "plain").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in grown.out.iterdir()}
    (grown.out / "plain").unlink()
    assert len(modes) == 1


ODD = ["well $x_1$", "Ü1 細胞", "a\x1b[31mb", "../../x", "=1+1", '"', "w" * 300, "'", "-1"]


def test_any_name_of_a_well_can_be_drawn_and_written(tmp_path):
    rows = [
        [f"{number}_{hour}.tif", name, hour, 0.05 * 2 ** (hour / 24)]
        for number, name in enumerate(ODD)
        for hour in range(0, 49, 6)
    ]
    folder = write_table(tmp_path / "preds", [[image, value] for image, _, _, value in rows], ["image", "confluence"])
    with (tmp_path / "wells.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "well", "time_h"], *(row[:3] for row in rows)])
    result = gd.growth(gd.GrowthConfig(folder, tmp_path / "growth", metadata=tmp_path / "wells.csv"))
    assert len(result.cultures) == len(ODD)
    assert all(culture.fit is not None for culture in result.cultures)
    assert "\x1b" not in "".join((tmp_path / "growth" / each).read_text() for each in [*TABLES, "wells.svg"])
    assert "\x1b" not in "".join(culture.describe() for culture in result.cultures)


@pytest.mark.parametrize("number", [1, 9, 49])
def test_plots_take_one_culture_and_many(number, tmp_path):
    rows = rows_of({f"{'ABCDEFGH'[each // 12]}{each % 12 + 1}": 24.0 for each in range(number)}, fields=1, step=24)
    result = gd.growth(gd.GrowthConfig(write_table(tmp_path / "preds", rows), tmp_path / "growth"))
    assert len(result.cultures) == number
    pages = [path.name for path in result.files if path.name.startswith("wells") and path.name.endswith(".png")]
    assert pages == (["wells.png"] if number < 49 else ["wells_1.png", "wells_2.png"])


def test_urls_are_read_and_written_and_nothing_of_others_is_replaced(preds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with bucket() as store:
        store.put("preds/summary.csv", (preds / SUMMARY).read_bytes())
        for there in ((), ("wells_1.png", "wells_2.svg", "notes.png")):  # plots of a larger result; somebody's
            for name in there:
                store.put(f"curves/{name}", b"")
            result = gd.growth(gd.GrowthConfig(Url("s3://cells/preds"), Url("s3://cells/curves")))
        assert sorted(store.names("curves/")) == sorted(f"curves/{name}" for name in [*TABLES, *PLOTS, "notes.png"])
        assert str(result.files[0]) == "s3://cells/curves/growth.csv"
        table = gd.growth(gd.GrowthConfig(Url("s3://cells/preds/summary.csv"), tmp_path / "local"))
        assert store.read("curves/growth.csv") == (tmp_path / "local" / "growth.csv").read_bytes()
        assert len(table.cultures) == 4
        store.put("other/growth.json", b"{}")
        with pytest.raises(InputError, match=r"holds growth\.json"):
            gd.growth(gd.GrowthConfig(preds, Url("s3://cells/other")))
        assert store.names("other/") == ["other/growth.json"]
    assert not list(tmp_path.glob("s3:*"))


def test_a_drawn_plate_grows_as_it_was_drawn(tmp_path):
    """From discs that cover known areas, through the table of their masks, to hours."""
    generator = np.random.default_rng(3)
    rows = []
    for well, doubling in GROWING.items():
        for field in (1, 2):
            places = generator.permutation([(x, y) for x in range(10, 400, 20) for y in range(10, 300, 20)])
            for hour in range(0, 61, 4):
                mask = np.zeros((300, 400), np.uint8)
                for x, y in places[: round(14 * 2 ** (max(hour - 8, 0) / doubling))]:
                    cv2.circle(mask, (int(x), int(y)), 9, 1, -1)
                name = f"VID7_{well}_{field}_{hour // 24:02d}d{hour % 24:02d}h00m.png"
                rows.append([name, 400, 300, mask.mean()])
    result = gd.growth(gd.GrowthConfig(write_table(tmp_path / "preds", rows), tmp_path / "growth"))
    for culture, doubling in zip(result.cultures, GROWING.values(), strict=True):
        assert culture.fit is not None
        assert culture.fit.doubling_time_h == pytest.approx(doubling, rel=0.05)
        assert culture.lag_h == pytest.approx(8, abs=2)


def test_the_tool_draws_a_plate_whose_growth_is_found(tmp_path):
    flags = ["--doubling-hours", 6, "--fields", 1, "--hours", 24, "--lag-hours", 0, "--step-hours", 3, "--first", 0.02]
    ended = command("tools/draw_time_lapse.py", "--out", tmp_path / "plate", "--plateau", 0.2, *flags)
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert len(list((tmp_path / "plate").glob("drawn_A1_1_*.png"))) == 9
    result = gd.growth(gd.GrowthConfig(tmp_path / "plate" / "drawn.csv", tmp_path / "growth", min_confluence=0.01))
    assert result.cultures[0].fit is not None
    assert result.cultures[0].fit.doubling_time_h == pytest.approx(6, rel=0.05)


def test_the_result_is_that_of_its_settings(preds, tmp_path):
    """Other bounds give another stretch, and the same points."""
    config = gd.GrowthConfig(preds, tmp_path / "a")
    usual = gd.growth(config).cultures[1]
    other = gd.growth(replace(config, out=tmp_path / "b", max_confluence=0.2)).cultures[1]
    assert usual.points == other.points
    assert other.fit is not None
    assert usual.fit is not None
    assert other.fit.end_h < usual.fit.end_h


def test_the_blocks_of_the_guide_run(tmp_path):
    """docs/guides/growth.md, on three tiny pictures: from images to curves that say why they are too short."""
    page = (REPOSITORY / "docs/guides/growth.md").read_text()
    (tmp_path / "plate_7").mkdir()
    for number, hour in enumerate((0, 4, 8)):
        cv2.imwrite(str(tmp_path / f"plate_7/A1_1_00d0{hour}h00m.png"), draw_sample(number).image)
    table = re.search(r"^```csv\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[1]
    (tmp_path / "wells.csv").write_text(table + "A1_1_00d08h00m.png,control,1,9\n")
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    ended = [end for block in blocks for end in type_in(block, tmp_path)]
    assert len(ended) == 4
    assert all("no doubling time: too few points: 3" in end.stdout for end in ended[1:])
    assert ended[-1].stdout.splitlines()[-2].startswith("control: ")
    assert "times from --metadata" in ended[-1].stdout
