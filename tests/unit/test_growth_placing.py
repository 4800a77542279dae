"""Which culture and time a picture belongs to: names, patterns, tables of metadata, time-lapse files, dates."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t

from glioma_dist.config.growth import GrowthConfig
from glioma_dist.data.convert.sources import describe
from glioma_dist.errors import InputError
from glioma_dist.growth_curves.cultures import Placed
from glioma_dist.growth_curves.names import read_name
from glioma_dist.growth_curves.placing import place
from glioma_dist.growth_curves.points import by_culture, join
from glioma_dist.growth_curves.table import Picture

LIVECELL = (
    "A172_Phase_B7_2_00d00h00m_2.tif",
    "BT474_Phase_A3_1_04d16h00m_2.tif",
    "BV2_Phase_C4_2_02d20h00m_4.tif",
    "Huh7_Phase_A10_2_01d20h00m_3.tif",
    "MCF7_Phase_G4_2_02d00h00m_3.tif",
    "SHSY5Y_Phase_D10_1_03d00h00m_2.tif",
    "SKOV3_Phase_H4_1_01d12h00m_1.tif",
    "SkBr3_Phase_H3_2_02d16h00m_4.tif",
)
"""Real ones, of each line."""
NOON = datetime(2024, 5, 31, 12, tzinfo=UTC)


def config(**changes) -> GrowthConfig:
    made = GrowthConfig(Path("preds"), Path("growth"), **changes)
    made.validate()
    return made


def pictures(*rows) -> list[Picture]:
    """Each a name, or a tuple of the fields of Picture without the confluence."""
    return [Picture(row, "", 0.1) if isinstance(row, str) else Picture(*row[:2], 0.1, *row[2:]) for row in rows]


def places(found) -> list[tuple[str, float]]:
    return [(each.culture, round(each.hours, 6)) for each in found.placed]


def metadata(folder: Path, text: str) -> Path:
    path = folder / "wells.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", LIVECELL)
def test_livecells_names_are_read_as_conversion_reads_them(name):
    told = read_name(f"some/folder/{name}")
    assert (told.culture, told.hours) == describe(name)
    assert told.hours is not None


def test_fields_of_one_livecell_well_are_joined_over_folders():
    names = [
        f"{folder}/A172_Phase_C7_{field}_0{day}d04h00m_{part}.tif"
        for day in range(2)
        for folder, field, part in (("train", 1, 1), ("train", 1, 2), ("test", 2, 1), ("test", 2, 4))
    ]
    found = place(pictures(*names), config())
    assert set(places(found)) == {("A172_C7", 4), ("A172_C7", 28)}
    points, repeated = join(found.placed)
    assert [point.fields for point in points] == [4, 4]
    assert repeated == 0


@pytest.mark.parametrize(
    ("name", "culture", "hours"),
    [
        ("A1_1_00d00h00m.tif", "A1", 0),
        ("VID1709_B12_3_02d06h30m.png", "VID1709_B12", 54.5),
        ("20251216_Faz-SGs__A1_1_01d00h00m.jpg", "20251216_Faz-SGs_A1", 24),
        ("Phase_P24_16_00d01h00m_cal.tif", "Phase_P24", 1),
        (r"C:\scans\A1_1_00d02h00m.tif", "A1", 2),
    ],
)
def test_incucytes_names(name, culture, hours):
    told = read_name(name)
    assert (told.culture, told.hours) == (culture, hours)


@pytest.mark.parametrize(
    ("names", "hours"),
    [
        (("VID7_A1_1_2024y05m31d_09h30m.tif", "VID7_A1_1_2024y06m01d_11h00m.tif"), (0, 25.5)),
        (("x/ScanData/2405/31/0930/700/A1-1-Ph.tif", "x/ScanData/2406/01/1100/700/A1-1-Ph.tif"), (0, 25.5)),
    ],
)
def test_incucytes_dates_become_hours_since_the_cultures_first_picture(names, hours):
    found = place(pictures(*names), config())
    assert [each.hours for each in found.placed] == list(hours)
    assert len({each.culture for each in found.placed}) == 1


@pytest.mark.parametrize(
    "name",
    ["img_001.tif", "A1.tif", "A1_1.tif", "Z99_1_00d00h00m.tif", "A1_1_2024y13m40d_09h30m.tif", "", ".tif", "ä/ö.tif"],
)
def test_other_names_tell_nothing_and_are_not_guessed(name):
    assert read_name(name) is None
    found = place(pictures(name), config())
    assert found.placed == []
    assert "no time is known" in found.not_used[0].reason


@pytest.mark.parametrize(
    ("pattern", "name", "culture", "hours"),
    [
        (r"(?P<well>[A-H]\d+)_f(?P<field>\d)_(?P<hour>\d+)h", "x/B3_f2_36h.tif", "B3", 36),
        (r"(?P<well>\w+)-(?P<day>\d+)d(?P<hour>\d+)h(?P<minute>\d+)m(?P<second>\d+)s", "w-1d2h30m36s.tif", "w", 26.51),
        (r"(?P<well>\w+)-(?P<time>[\d.,]+)", "w-2,5.tif", "w", 2.5),
        (r"(?P<well>\w+)-(?P<minute>\d+)min", "w-90min.tif", "w", 1.5),
        (r"plate(?P<plate>\d)/(?P<well>\w\d)_(?P<hour>\d+)", "/data/H1/plate2/A1_4.tif", "2_A1", 4),
        (r"(?P<well>[A-H]\d+)_(?P<hour>\d+)", "/data/H100_3/A1_4.tif", "A1", 4),
    ],
)
def test_a_pattern_finds_well_and_time(pattern, name, culture, hours):
    assert places(place(pictures(name), config(pattern=pattern))) == [(culture, hours)]


def test_a_pattern_of_frames_counts_from_one():
    found = place(
        pictures("s1_t001.tif", "s1_t003.tif"), config(pattern=r"(?P<well>s\d)_t(?P<frame>\d+)", frame_hours=2)
    )
    assert places(found) == [("s1", 0), ("s1", 4)]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(", "not a regular expression"),
        ("(?P<well>a)(?P<well>b)", "not a regular expression"),
        ("[A-H]", "names no group"),
        ("(?P<row>[A-H])", "has the group row; give named groups such as"),
        (r"(?P<well>.)_(?P<frame>\d+)", "give --frame-hours"),
        (r"(?P<frame>\d+)_(?P<hour>\d+)", "frame and a time"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused_at_once(pattern, words):
    with pytest.raises(InputError, match=words):
        config(pattern=pattern)


@pytest.mark.parametrize(
    ("name", "words"),
    [("A1_xh.tif", "does not match --pattern"), ("A1_1e999h.tif", "out of range"), ("A1_..h.tif", "not a number")],
)
def test_what_a_pattern_does_not_place_is_named(name, words):
    found = place(pictures("A1_4h.tif", name), config(pattern=r"(?P<well>\w\d)_(?P<hour>[\d.e]+)h"))
    assert places(found) == [("A1", 4)]
    assert [(each.image, words in each.reason) for each in found.not_used] == [(name, True)]


def test_metadata_matches_by_path_by_its_end_and_by_name(tmp_path):
    table = metadata(
        tmp_path,
        "\ufeffImage;Well;Time_H;drug\n/data/p1/a.tif;w1;0,5;x\np2/a.tif;w2;1,5;\nb.tif;w3;2;\nnowhere.tif;w4;3;\n",
    )
    names = ("/data/p1/a.tif", "/data/p2/a.tif", "/data/p1/b.tif", "/data/p1/c.tif")
    found = place(pictures(*names), config(metadata=table))
    assert places(found) == [("w1", 0.5), ("w2", 1.5), ("w3", 2)]
    assert [(each.image, each.reason) for each in found.not_used] == [(names[3], "--metadata has no row for c.tif")]
    assert any("1 of 4 rows name images that summary.csv does not have: nowhere.tif" in note for note in found.notes)
    assert any("not used: drug" in note for note in found.notes)


def test_a_name_that_two_images_have_is_not_guessed(tmp_path):
    table = metadata(tmp_path, "image,well,time_h\na.tif,w1,0\n")
    found = place(pictures("p1/a.tif", "p2/a.tif"), config(metadata=table))
    assert found.placed == []
    assert {each.reason for each in found.not_used} == {"2 images are called a.tif: give their paths in --metadata"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("image,treatment\na.tif,x\n", "no column well and no column time_h"),
        ("file,well\na.tif,x\n", "has no column image"),
        ("image,well\na.tif,x\na.tif,y\n", "row 3 names a.tif again"),
        ("image,time_h\na.tif,soon\n", "row 2 has the time_h soon"),
        ("image,time_h\na.tif,nan\n", "row 2 has the time_h nan"),
        ("image,well\n,x\n", "row 2 names no image"),
        ("image,well,well\na,b,c\n", "two columns well"),
        ("image,well\na.tif,x,y\n", "row 2 has 3 cells"),
        ('image,well\n"a.tif,x\n', "is no CSV"),
    ],
)
def test_a_table_of_metadata_that_cannot_be_used_is_one_line(text, words, tmp_path):
    with pytest.raises(InputError, match=words) as refused:
        place(pictures("a.tif"), config(metadata=metadata(tmp_path, text)))
    assert len(str(refused.value)) < 400


def test_where_sources_differ_the_first_counts_and_that_is_said(tmp_path):
    table = metadata(tmp_path, f"image,time_h\n{LIVECELL[0]},5\n{LIVECELL[1]},112\n")
    found = place(pictures(*LIVECELL[:2]), config(metadata=table))
    assert places(found) == [("A172_B7", 5), ("BT474_A3", 112)]
    assert "--metadata and the file names give different times for 1 image: --metadata is used" in found.notes
    assert "wells from the name (2 images)" in found.notes
    assert "times from --metadata (2 images)" in found.notes


def test_a_time_lapse_file_is_one_culture_and_its_positions_are_fields():
    rows = [
        (f"{folder}/movie.ome.tif", f"t{frame:03d}-p{position:03d}", None, 2.0 * (frame - 1))
        for folder in "ab"
        for frame in (1, 2, 3)
        for position in (1, 2)
    ]
    found = place(pictures(*rows), config())
    assert {each.culture for each in found.placed} == {"a/movie.ome", "b/movie.ome"}
    for own in by_culture(found.placed).values():
        points, repeated = join(own)
        assert [(point.time_h, point.fields) for point in points] == [(0, 2), (2, 2), (4, 2)]
        assert repeated == 0


@pytest.mark.parametrize("plane", ["t", "p"])
def test_frames_without_times_need_frame_hours(plane):
    rows = [("movie.tif", f"{plane}{frame:03d}", None, None) for frame in (1, 2, 3)]
    found = place(pictures(*rows), config())
    assert found.placed == []
    assert all("--frame-hours" in each.reason for each in found.not_used)
    assert places(place(pictures(*rows), config(frame_hours=1.5))) == [("movie", 0), ("movie", 1.5), ("movie", 3)]


@pytest.mark.parametrize(("times", "flags"), [((0, 2, 4), {}), ((None,) * 3, {}), ((0, 2, 4), {"frame_hours": 1.0})])
def test_the_time_that_metadata_give_a_plane_is_not_added_to_the_times_of_its_file(times, flags, tmp_path):
    rows = [("movie.tif", f"t{frame:03d}", None, hours) for frame, hours in enumerate(times, 1)]
    for column, well, culture in (("", "", "movie"), ("well,", "A1,", "A1")):
        lines = "".join(f"movie.tif,t{frame:03d},{well}{4 * frame}\n" for frame in (1, 2, 3))
        table = metadata(tmp_path, f"image,plane,{column}time_h\n{lines}")
        found = place(pictures(*rows), config(metadata=table, **flags))
        assert places(found) == [(culture, 4), (culture, 8), (culture, 12)]
        assert found.not_used == []


def test_frame_hours_count_before_the_times_of_the_file():
    rows = [("movie.tif", f"t{frame:03d}", None, 0.01 * frame) for frame in (1, 2)]
    found = place(pictures(*rows), config(frame_hours=4))
    assert places(found) == [("movie", 0), ("movie", 4)]
    assert "times from --frame-hours (2 images)" in found.notes
    assert "--frame-hours and the files give different times for 1 image: --frame-hours is used" in found.notes


def test_the_time_of_a_named_file_is_that_of_its_first_picture():
    rows = [("A1_1_01d00h00m.tif", f"t{frame:03d}", None, 0.5 * (frame - 1)) for frame in (1, 2)]
    found = place(pictures(*rows), config())
    assert places(found) == [("A1", 24), ("A1", 24.5)]
    assert "times from the name and the file (2 images)" in found.notes


def test_dates_place_what_nothing_else_does_and_a_folder_is_a_culture():
    rows = [
        (f"dish {dish}/{hour}.tif", "", None, None, NOON + timedelta(hours=hour)) for dish in "ab" for hour in (0, 6)
    ]
    found = place(pictures(*rows), config())
    assert places(found) == [("dish a", 0), ("dish a", 6), ("dish b", 0), ("dish b", 6)]
    assert any("all such images of a folder are one culture (2 cultures)" in note for note in found.notes)


def test_a_folder_is_a_culture_by_its_whole_name_and_a_file_by_its_stem():
    rows = [(f"dish/2024.05.{day}/{hour}.tif", "", None, float(hour)) for day in (30, 31) for hour in (1, 4)]
    rows += [(f"lapse.{number}.tif", f"t00{frame}", None, float(frame)) for number in (1, 2) for frame in (1, 2)]
    found = place(pictures(*rows), config())
    assert {each.culture for each in found.placed} == {"2024.05.30", "2024.05.31", "lapse.1", "lapse.2"}


@pytest.mark.parametrize("digits", [20, 400, 5000], ids=lambda digits: f"{digits} digits")
def test_a_number_that_is_no_time_and_no_frame_tells_nothing(digits):
    number = "9" * digits
    for name in (f"A1_1_{number}d00h00m.tif", f"A172_Phase_C7_1_{number}d04h00m_2.tif"):
        found = place(pictures(name, "A1_1_00d04h00m.tif"), config())
        assert places(found) == [("A1", 4)]
        assert "no time is known" in found.not_used[0].reason
    found = place(pictures(("a.tif", f"t{number}"), ("b.tif", "t001"), ("b.tif", "t002")), config(frame_hours=1.0))
    assert places(found) == [("b", 0), ("b", 1)]


def test_dates_that_differ_from_the_names_are_said_and_do_not_count():
    rows = [(f"A1_1_00d0{hour}h00m.tif", "", None, None, NOON + timedelta(hours=2 * hour)) for hour in range(4)]
    found = place(pictures(*rows), config())
    assert places(found) == [("A1", hour) for hour in range(4)]
    assert any("dates differ from these times by up to 3 h in 1 culture:" in note for note in found.notes)


def test_files_of_one_well_are_placed_by_their_dates():
    rows = [
        (f"w1_part{part}.tif", f"t{frame:03d}", None, float(frame - 1), NOON + timedelta(hours=24 * part + frame - 1))
        for part in (0, 1)
        for frame in (1, 2)
    ]
    found = place(pictures(*rows), config(pattern=r"(?P<well>w\d)"))
    assert places(found) == [("w1", 0), ("w1", 1), ("w1", 24), ("w1", 25)]


def test_time_h_of_a_users_own_table_is_taken():
    rows = [(f"{hour}.tif", "", None, float(hour)) for hour in (0, 4, 8)]
    assert [each.hours for each in place(pictures(*rows), config()).placed] == [0, 4, 8]


def test_a_file_with_one_picture_is_at_no_time_though_time_h_is_0():
    found = place(pictures(("a.tif", "", None, 0.0), ("b.tif", "", None, 0.0)), config())
    assert found.placed == []


def test_two_plates_in_two_folders_are_not_joined():
    names = [f"plate{plate}/A1_1_00d0{hour}h00m.tif" for plate in (1, 2) for hour in (0, 4)]
    found = place(pictures(*names), config())
    assert {each.culture for each in found.placed} == {"plate1/A1", "plate2/A1"}
    assert any("each folder counts as a plate" in note for note in found.notes)


def test_fields_in_folders_are_joined_where_metadata_says_so(tmp_path):
    table = metadata(tmp_path, "image,well,time_h\nf1/a.tif,w,0\nf2/a.tif,w,0\n")
    found = place(pictures("f1/a.tif", "f2/a.tif"), config(metadata=table))
    assert {each.culture for each in found.placed} == {"w"}


def placed(*rows) -> list[Placed]:
    """Rows of hours, field, confluence, pixels."""
    return [
        Placed(Picture(f"{number}.tif", "", value, pixels), "w", field, hours)
        for number, (hours, field, value, pixels) in enumerate(rows)
    ]


@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_interval_of_a_point_is_scipys(count):
    values = np.random.default_rng(count).uniform(0.4, 0.45, count)
    (point,), _ = join(placed(*((4.0, str(number), value, 100) for number, value in enumerate(values))))
    low, high = t.interval(0.95, count - 1, values.mean(), values.std(ddof=1) / np.sqrt(count))
    np.testing.assert_allclose((point.confluence, point.low, point.high), (values.mean(), max(low, 0), min(high, 1)))


def test_a_mean_is_weighted_by_pixels_where_all_are_known():
    (point,), _ = join(placed((0, "1", 0.2, 300), (0, "2", 0.6, 100)))
    assert point.confluence == pytest.approx(0.3)
    (point,), _ = join(placed((0, "1", 0.2, None), (0, "2", 0.6, 100)))
    assert point.confluence == pytest.approx(0.4)


def test_one_field_has_no_interval_and_intervals_stay_within_0_and_1():
    (point,), _ = join(placed((0, "1", 0.2, 100)))
    assert (point.low, point.high, point.fields) == (None, None, 1)
    (point,), _ = join(placed((0, "1", 0.0, 100), (0, "2", 1.0, 100)))
    assert (point.low, point.high) == (0, 1)


def test_pictures_minutes_apart_are_one_point_and_frames_of_one_field_are_not():
    points, _ = join(placed((0, "1", 0.1, 1), (0.05, "2", 0.3, 1), (4, "1", 0.2, 1), (4.05, "2", 0.4, 1)))
    assert [(round(point.time_h, 4), point.fields) for point in points] == [(0.025, 2), (4.025, 2)]
    points, _ = join(placed(*((frame / 60, "1", 0.1, 1) for frame in range(5))))
    assert [point.fields for point in points] == [1] * 5


def test_a_field_twice_at_one_time_is_counted_and_said():
    points, repeated = join(placed((0, "1", 0.1, 1), (0, "1", 0.3, 1)))
    assert ([point.fields for point in points], repeated) == ([2], 1)


def test_cultures_are_sorted_as_people_do():
    rows = [Placed(Picture("a", "", 0.1), name, "", 0) for name in ("A10", "A2", "B1", "9" * 5000, "", "A2x")]
    assert list(by_culture(rows))[-4:] == ["A2", "A2x", "A10", "B1"]
