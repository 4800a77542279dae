"""Which pictures a file holds, what its metadata say of them, and their pixels: files of tifffile and of OpenCV,
compared with the arrays that were written."""

import pickle
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import tifffile

from glioma_dist.cli.export import _read_first
from glioma_dist.config.places import Places
from glioma_dist.data.images.choice import ChannelError, Choice
from glioma_dist.data.images.numbers import to_16_bit
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.errors import InputError
from glioma_dist.inference.images import find_images
from glioma_dist.inference.pictures import find_first, find_pictures
from glioma_dist.inference.reading import PictureReader
from glioma_dist.report.prediction_pictures import make_thumbnail
from glioma_dist.report.prediction_results import ReportedImage, ResultFolder

H, W = 40, 52
AXES = "TZC"
NAMES = ("Phase", "GFP")


def draw(*shape: int, dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, 250, (*shape, H, W)).astype(dtype)


@pytest.fixture(scope="module")
def decoder():
    with ImageReader() as reader:
        yield reader


def read_all(decoder: ImageReader, path: Path, **choice) -> dict[str, np.ndarray]:
    """The pixels of each chosen picture of a file, by its plane."""
    lines: list[str] = []
    with PictureReader(decoder, lines.append) as reader:
        return {each.metadata.plane: reader.read(each) for each in find_pictures([path], choice_of(**choice))}


def choice_of(channel=None, time="all", page="all") -> Choice:
    return Choice(channel, Places.parse("--time", time), Places.parse("--page", page))


def expected(array: np.ndarray, axes: str, channel: int | None) -> dict[str, np.ndarray]:
    """Each plane of an array whose outer axes are `axes`, by its name."""
    found = {}
    for index in np.ndindex(array.shape[:-2]):
        at = dict(zip(axes, index, strict=True))
        if channel is None or at.get("C", 0) + 1 == channel:
            parts = [f"{letter}{at[axis] + 1:03d}" for letter, axis in (("t", "T"), ("p", "Z")) if axis in at]
            found["-".join([*parts, *([f"c{channel}"] if "C" in axes else [])])] = array[index]
    return found


def check(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, pixels in wanted.items():
        np.testing.assert_array_equal(found[name], pixels, name)


IMAGEJ = {"imagej": True, "resolution": (2.0, 2.0)}
OME = {"PhysicalSizeX": 0.5, "TimeIncrement": 30, "TimeIncrementUnit": "min"}
STACKS = {
    "imagej": ("TZC", (2, 3, 2), IMAGEJ | {"metadata": {"axes": "TZCYX", "unit": "um", "finterval": 1800.0}}),
    "imagej channels": ("C", (2,), IMAGEJ | {"metadata": {"axes": "CYX", "unit": "um"}}),
    "ome": ("TCZ", (2, 2, 3), {"ome": True, "metadata": OME | {"axes": "TCZYX", "Channel": {"Name": NAMES}}}),
    "ome channel last": ("CT", (2, 3), {"ome": True, "metadata": OME | {"axes": "CTYX", "Channel": {"Name": NAMES}}}),
    "tifffile": ("TC", (3, 2), {"photometric": "minisblack", "metadata": {"axes": "TCYX"}}),
    "plain pages": ("Z", (3,), {"photometric": "minisblack", "metadata": None}),
}


@pytest.mark.parametrize("kind", STACKS)
def test_each_plane_of_a_tiff_is_the_array_s(tmp_path, decoder, kind):
    axes, shape, how = STACKS[kind]
    path = tmp_path / ("a.ome.tif" if kind.startswith("ome") else "a.tif")
    array = draw(*shape)
    tifffile.imwrite(path, array, compression=None if "imagej" in kind else "zlib", **how)
    channels = (1, 2) if "C" in axes else (None,)
    for channel in channels:
        check(read_all(decoder, path, channel=channel and str(channel)), expected(array, axes, channel))
    for picture in find_pictures([path], choice_of("1" if "C" in axes else None)):
        has_clock = "T" in axes and kind != "tifffile"
        frame = int(picture.metadata.plane[1:4]) if "T" in axes else 1
        assert picture.metadata.hours == ((frame - 1) / 2 if has_clock else None)
        assert picture.metadata.pixel_size_um == (None if kind in ("tifffile", "plain pages") else 0.5)
    if "C" in axes:
        with pytest.raises(ChannelError, match=r"2 channels \(1.*2.*\); choose one by number or name: --channel"):
            find_pictures([path], choice_of())
        (failed,) = find_pictures([path], choice_of("3"))
        assert "no channel 3 among its 2" in str(failed.error)
    if kind.startswith("ome"):
        check(read_all(decoder, path, channel="gfp"), expected(array, axes, 2))
        with pytest.raises(ChannelError, match=r"\(1 Phase, 2 GFP\)"):
            find_pictures([path], choice_of())


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_samples_that_are_channels_and_colours_are_chosen_alike(tmp_path, decoder, dtype):
    array = np.moveaxis(draw(4, dtype=dtype), 0, -1)
    if dtype == "float32":
        array = array / 255
    tifffile.imwrite(tmp_path / "four.tif", array, photometric="minisblack", planarconfig="contig")
    with pytest.raises(ChannelError, match=r"4 channels \(1, 2, 3, 4\)"):
        find_pictures([tmp_path / "four.tif"], choice_of())
    seen = array if dtype == "uint8" else (array * np.float32(65535)).round().astype(np.uint16)
    check(read_all(decoder, tmp_path / "four.tif", channel="3"), {"c3": seen[..., 2]})
    tifffile.imwrite(tmp_path / "rgb.tif", array[..., :3], photometric="rgb")
    check(read_all(decoder, tmp_path / "rgb.tif"), {"": seen[..., :3]})
    for channel, index in (("1", 0), ("Blue", 2)):
        check(read_all(decoder, tmp_path / "rgb.tif", channel=channel), {"": seen[..., index]})
    with pytest.raises(InputError, match=r"no channel 4; it has three colours \(1 red, 2 green, 3 blue\)"):
        read_all(decoder, tmp_path / "rgb.tif", channel="4")


def test_a_png_of_grey_values_has_channel_1_and_no_other(tmp_path, decoder):
    array = draw(dtype="uint8")
    cv2.imwrite(str(tmp_path / "a.png"), array)
    check(read_all(decoder, tmp_path / "a.png", channel="1"), {"": array})
    with pytest.raises(InputError, match="no channel 2; it has one channel"):
        read_all(decoder, tmp_path / "a.png", channel="2")


def test_alpha_and_lossy_files_are_remarked_on_once(tmp_path, decoder):
    rgba = np.dstack([draw(dtype="uint8")] * 4)
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), rgba)
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), rgba[..., 0])
    lines: list[str] = []
    with PictureReader(decoder, lines.append) as reader:
        for picture in find_pictures(sorted(tmp_path.iterdir()), choice_of()):
            reader.read(picture)
        reader.tell_remarks()
    assert sum("alpha channel" in line for line in lines) == 2
    assert sum("JPEG is lossy" in line for line in lines) == 2
    assert [line.split(" have")[0] for line in lines[2:]] == ["3 images", "3 images"]


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint32", "uint64", "float16", "float32", "float64"])
def test_numbers_of_any_kind_keep_their_order_and_say_how_they_were_scaled(tmp_path, decoder, dtype):
    values = np.random.default_rng(0).normal(0, 100, (H, W))
    values = (np.abs(values) * 1e6 if dtype in ("uint32", "uint64") else values.clip(-120, 120)).astype(dtype)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="minisblack")
    (found,) = read_all(decoder, path).values()
    assert found.dtype == np.uint16
    order = np.argsort(values, axis=None, kind="stable")
    assert (np.diff(found.ravel()[order].astype(int)) >= 0).all()
    if values.dtype.kind == "i":
        np.testing.assert_array_equal(found, values.astype(np.int64) - int(values.min()))
    else:
        low, high = np.quantile(values.astype(float), (1e-4, 1 - 1e-4), method="nearest")
        wanted = (np.clip(values.astype(float), low, high) - low) / (high - low) * 65535
        assert np.abs(found - wanted).max() <= 40 if dtype == "float16" else 1
    pixels, (note,) = to_16_bit(values, "a")
    np.testing.assert_array_equal(pixels, found)
    assert note.startswith(dtype)


def test_values_that_are_no_numbers_are_counted_and_none_is_refused():
    values = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    values[0, 1], values[0, 2] = np.nan, np.inf
    pixels, notes = to_16_bit(values, "a")
    assert (pixels[0, 1], pixels[0, 2], pixels[-1, -1]) == (0, 0, 65535)
    assert notes[0].startswith("2 values are no numbers")
    with pytest.raises(InputError, match="none of its float32 values is a finite number"):
        to_16_bit(np.full((3, 3), np.nan, np.float32), "a")
    for even in (np.full((3, 3), 5.0), np.where(np.arange(40_000).reshape(200, 200) == 7, 9.0, 5.0)):
        pixels, (note,) = to_16_bit(even, "a")  # one bright pixel is clipped
        assert not pixels.any()
        assert note == "float64 values from 5 to 5, scaled to 16 bit"
    far = np.arange(2**63 + 5, 2**63 + 9, dtype=np.uint64).reshape(2, 2)
    np.testing.assert_array_equal(to_16_bit(far, "a")[0], [[0, 1], [2, 3]])
    huge = np.array([[-3e38, 3e38]], np.float32)
    np.testing.assert_array_equal(to_16_bit(huge, "a")[0], [[0, 65535]])


@pytest.mark.parametrize(
    ("text", "count", "places"),
    [
        *(("all", 3, [1, 2, 3]), ("2", 3, [2]), ("-1", 3, [3]), ("4", 3, []), ("-4", 3, []), ("1:2", 3, [1, 2])),
        *(("2:", 3, [2, 3]), (":2", 3, [1, 2]), ("-2:", 3, [2, 3]), ("1:9:3", 7, [1, 4, 7]), ("5:9", 3, [])),
        ("2:99", 3, [2, 3]),
    ],
)
def test_places_are_counted_from_1_and_ranges_hold_both_ends(text, count, places):
    assert list(Places.parse("--time", text).among(count)) == places


@pytest.mark.parametrize("text", ["", "0", "x", "1,2", "1:0", "0:3", "1:3:0", "1:2:3:4", "--1", "9" * 30, "１"])
def test_what_means_no_place_is_one_line(text):
    with pytest.raises(InputError, match=r"--time .*: give all, a number from 1") as refused:
        Places.parse("--time", text)
    assert len(str(refused.value)) < 300


def test_a_file_that_cannot_be_read_is_one_picture_with_its_error(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", draw(3), metadata=None, photometric="minisblack")
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) // 3])
    (tmp_path / "z.zarr").mkdir()
    found = find_pictures(find_images(str(tmp_path)).paths, choice_of(time="1"))
    assert [picture.name for picture in found] == ["a-p001", "a-p002", "a-p003", "cut", "z"]
    assert [picture.error is None for picture in found] == [True] * 3 + [False] * 2
    assert "cut short" in str(found[3].error)
    assert "no Zarr group there" in str(found[4].error)
    assert pickle.loads(pickle.dumps(found))[0] == found[0]
    (none,) = find_pictures([tmp_path / "a.tif"], choice_of(time="2"))
    assert "--time means none of its 1 time" in str(none.error)


def test_names_of_planes_do_not_collide_with_files_and_all_planes_of_a_file_are_named_alike(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", draw(3), metadata=None, photometric="minisblack")
    cv2.imwrite(str(tmp_path / "a-p002.png"), draw(dtype="uint8"))
    (tmp_path / "b").mkdir()
    tifffile.imwrite(tmp_path / "b/a.tif", draw(2), metadata=None, photometric="minisblack")
    paths = [tmp_path / name for name in ("a-p002.png", "a.tif", "b/a.tif")]
    names = [picture.name for picture in find_pictures(paths, choice_of())]
    parent = tmp_path.name
    assert names == [
        *("a-p002.png", f"{parent}_a.tif-p001", f"{parent}_a.tif-p002", f"{parent}_a.tif-p003"),
        *("b_a.tif-p001", "b_a.tif-p002"),
    ]


def test_dates_and_printed_resolutions_are_taken_where_a_microscope_wrote_them(tmp_path):
    how = {"photometric": "minisblack", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "dated.tif") as writer:
        for hour in (8, 10):
            writer.write(draw(), datetime=f"2024:05:01 {hour:02d}:30:00", resolution=(20_000, 20_000), **how)
    tifffile.imwrite(tmp_path / "cm.tif", draw(), resolution=(25_000, 25_000), resolutionunit=3, **how)
    tifffile.imwrite(tmp_path / "printer.tif", draw(), resolution=(300, 300), resolutionunit=2, **how)
    meta = OME | {"axes": "TYX", "Plane": {"DeltaT": [0.0, 900.0], "DeltaTUnit": ["s"] * 2}}
    tifffile.imwrite(tmp_path / "o.ome.tif", draw(2), metadata=meta, datetime="2024:05:01 08:00:00")
    found = {each.name: each.metadata for each in find_pictures(sorted(tmp_path.iterdir()), choice_of())}
    assert [found[f"dated-p00{page}"].acquired for page in (1, 2)] == ["2024-05-01T08:30:00", "2024-05-01T10:30:00"]
    assert found["dated-p001"].pixel_size_um == pytest.approx(1.27)
    assert found["cm"].pixel_size_um == pytest.approx(0.4)
    assert found["printer"].pixel_size_um is None
    assert [found[f"o.ome-t00{frame}"].hours for frame in (1, 2)] == [0, 0.25]
    assert found["o.ome-t002"].acquired == "2024-05-01T08:15:00"


def test_brackets_in_names_of_folders_are_no_pattern(tmp_path):
    (tmp_path / "plate[1]").mkdir()
    cv2.imwrite(str(tmp_path / "plate[1]/a.png"), draw(dtype="uint8"))
    for pattern in ("plate[1]", "plate[1]/*.png", "plate[1]/[a].png", "plate?1]/*"):
        assert [path.name for path in find_images(str(tmp_path / pattern)).paths] == ["a.png"]


def test_a_time_lapse_of_more_than_4_gib_is_read_page_by_page(tmp_path, decoder):
    """The last page lies behind a hole of 5 GiB, which takes no space on the disk."""
    array = draw(2)
    tifffile.imwrite(tmp_path / "a.tif", array, bigtiff=True, photometric="minisblack", metadata={"axes": "TYX"})
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        before, last = tiff.pages[0], tiff.pages[1]
        data = (tmp_path / "a.tif").read_bytes()
    place = 5 * 2**30
    moved = data[last.offset :]
    with open(tmp_path / "a.tif", "r+b") as file:
        file.seek(before.offset + 8 + 20 * len(before.tags))
        file.write(place.to_bytes(8, "little"))
        file.seek(place)
        file.write(moved)
    check(read_all(decoder, tmp_path / "a.tif"), {f"t00{frame + 1}": array[frame] for frame in range(2)})


def test_of_a_file_of_several_pictures_the_first_of_the_first_channel_is_taken(tmp_path, decoder):
    array = draw(3, 2)
    how = {"axes": "TCYX", "Channel": {"Name": list(NAMES)}}
    tifffile.imwrite(tmp_path / "a.ome.tif", array, ome=True, metadata=how)
    picture, notes = find_first(tmp_path / "a.ome.tif")
    pixels, remarks = PictureReader(decoder).decode(picture)
    np.testing.assert_array_equal(pixels, array[0, 0])
    assert remarks == []
    assert [note.partition(":")[0] for note in notes] == ["a stack of 3 pages", "2 channels (1 Phase, 2 GFP)"]
    tifffile.imwrite(tmp_path / "colour.tif", draw_colour := np.moveaxis(draw(3, dtype="uint8"), 0, -1))
    picture, notes = find_first(tmp_path / "colour.tif")
    np.testing.assert_array_equal(PictureReader(decoder).decode(picture)[0], draw_colour)
    assert notes == []
    picture, notes = find_first(tmp_path / "none.tif")
    assert "no such file" in str(picture.error)


def test_commands_that_take_one_picture_of_a_file_read_what_predict_reads(tmp_path, capsys):
    """Floats and stacks of channels, for the test image of a package, and for a report without overlays."""
    array = draw(2, 2, dtype="float32")
    tifffile.imwrite(tmp_path / "a.tif", array, imagej=True, metadata={"axes": "TCYX"})
    (image,) = _read_first(str(tmp_path), 1, "used")
    np.testing.assert_array_equal(image, to_16_bit(array[0, 0], "")[0])
    said = capsys.readouterr().out
    assert "a.tif (t001-c1): a stack of 2 pages" in said
    assert "a.tif (t001-c1): 2 channels (1, 2): the first is taken" in said
    tifffile.imwrite(tmp_path / "b.tif", array[0, 0])
    reported = ReportedImage(str(tmp_path / "b.tif"), 0.5)
    with ImageReader() as reader:
        assert make_thumbnail(ResultFolder(tmp_path), reported, 100, 10**6, reader) is not None


@pytest.mark.parametrize("quote", ['"', "'"])
def test_names_and_units_of_ome_may_hold_references_and_the_other_quote(tmp_path, quote):
    """As XML has them: by ElementTree."""
    tifffile.imwrite(
        tmp_path / "a.ome.tif", draw(2), ome=True, metadata={"axes": "CYX", "Channel": {"Name": ["a", "b"]}}
    )
    other = "'" if quote == '"' else '"'
    names = f"5{other}-Cy3 &lt;1&gt; &amp; DAPI", "&#181;Manager"
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        xml = file.ome_metadata
    for old, new in zip("ab", names, strict=True):
        xml = xml.replace(f'Name="{old}"', f"Name={quote}{new}{quote}")
    xml = xml.replace("<Pixels ", f"<Pixels PhysicalSizeX={quote}0.5{quote} PhysicalSizeXUnit={quote}&#xB5;m{quote} ")
    told = [each.get("Name") for each in ElementTree.fromstring(xml).iter() if each.tag.endswith("Channel")]
    tifffile.imwrite(tmp_path / "b.ome.tif", draw(2), description=xml.encode(), metadata=None, photometric="minisblack")
    for number, name in enumerate(told, 1):
        (picture,) = find_pictures([tmp_path / "b.ome.tif"], choice_of(name))
        assert picture.metadata.plane == f"c{number}"
        assert picture.metadata.pixel_size_um == 0.5


@pytest.mark.parametrize("size", ["1e-12", "5e-324", "1e200", "1e308", "nan", "-1", "0"])
def test_a_pixel_size_that_no_pixel_has_counts_as_not_said(tmp_path, size):
    """TIFFs have no room for a resolution of 1e12, and the area of a pixel of 1e200 is infinite, which is no JSON."""
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, draw(), ome=True, metadata={"PhysicalSizeX": "0.65"})
    with tifffile.TiffFile(path) as file:
        text = file.ome_metadata.replace('"0.65"', f'"{size}"')
    assert f'"{size}"' in text
    tifffile.imwrite(path, draw(), description=text.encode(), metadata=None)
    (picture,) = find_pictures([path], choice_of())
    assert picture.error is None
    assert picture.metadata.pixel_size_um is None


@pytest.mark.parametrize(("unit", "density"), [("nm", (2**32 - 1, 1)), ("cm", (1, 2**32 - 1))])
def test_a_resolution_that_no_image_has_counts_as_not_said(tmp_path, unit, density):
    how = {"resolution": (density, density), "resolutionunit": "NONE", "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", draw(), description=f"ImageJ=1.54f\nunit={unit}\n", **how)
    (picture,) = find_pictures([tmp_path / "a.tif"], choice_of())
    assert picture.metadata.pixel_size_um is None
