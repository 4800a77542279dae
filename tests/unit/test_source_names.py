"""What a user hands to a converter: pictures that lie otherwise, names of any spelling, files that no step reads."""

import json
import os
import re
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tifffile
from data_helpers import HEIGHT, WIDTH, annotation, draw_image, image_record, square, write_coco, write_livecell
from helpers import command, run
from PIL import Image
from test_convert import clean_export, convert_quietly, defects, read_all

from glioma_dist.data.convert.sources import find_glioma_c6, find_livecell
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.errors import InputError, one_line

NOBODY = 65534
NAME = "k\u00f6ln.tif"
SPELLINGS = {
    "composed": unicodedata.normalize("NFC", NAME),
    "decomposed": unicodedata.normalize("NFD", NAME),
    "latin-1": os.fsdecode(NAME.encode("latin-1")),
}


def named(root, on_disk: list[str], in_json: list[str]):
    """An export whose images have these names on the disk and in the JSON."""
    folder = root / "images" / "default"
    folder.mkdir(parents=True)
    for number, name in enumerate(on_disk):
        with open(folder / name, "wb") as file:
            tifffile.imwrite(file, draw_image(number))
    images = [image_record(number, name) for number, name in enumerate(in_json)]
    cells = [annotation(number, number, square(3, 3, 8)) for number in range(len(images))]
    write_coco(root / "annotations" / "instances_default.json", images, cells)
    return root


@pytest.mark.parametrize("in_json", ["composed", "decomposed"])
@pytest.mark.parametrize("on_disk", SPELLINGS)
def test_a_name_in_another_spelling_is_found(tmp_path, on_disk, in_json):
    named(tmp_path / "source", ["a.tif", SPELLINGS[on_disk]], ["a.tif", SPELLINGS[in_json]])
    screen = convert_quietly(find_glioma_c6(tmp_path / "source"), tmp_path / "out")
    assert "all: 2 samples" in screen
    assert defects(tmp_path / "out") == []


def test_names_that_look_alike_are_told_and_not_mixed_up(tmp_path):
    both = [SPELLINGS["composed"], SPELLINGS["decomposed"]]
    named(tmp_path / "source", both, both)
    screen = convert_quietly(find_glioma_c6(tmp_path / "source"), tmp_path / "out")
    images = {sample.metadata["file_name"]: sample.image for sample in read_all(tmp_path / "out" / "all").values()}
    for number, name in enumerate(both):
        np.testing.assert_array_equal(images[name], draw_image(number))
    assert [kind for kind, _, _ in defects(tmp_path / "out")] == ["doubled-name"]
    assert "looks like" in screen
    # A third spelling may mean either.
    named(tmp_path / "other", both, [SPELLINGS["composed"].replace("\u00f6", "\u1e97")])
    with pytest.raises(InputError, match="no sample"):
        convert_quietly(find_glioma_c6(tmp_path / "other"), tmp_path / "out2")


def test_names_of_any_bytes_are_converted_printed_and_written(tmp_path):
    strange = ["k\udcf6ln.tif", "line\nfeed.tif", "tab\t.tif", "[bold]x[.tif", "细胞.tif", "\u202e.tif"]
    named(tmp_path / "source", strange, [name for name in strange if "\udcf6" not in name])
    (tmp_path / "source" / "not\udcffread.txt").write_text("")
    ended = command("tools/convert_glioma_c6.py", "--source", tmp_path / "source", "--out", tmp_path / "o\udcf6ut")
    assert ended.exit_code == 0, ended.stderr
    assert "k\\xf6ln.tif" in ended.stderr
    assert "\\xff" in ended.stderr
    assert "all: 5 samples" in ended.stderr
    told = json.loads((tmp_path / "o\udcf6ut" / "audit.json").read_text())
    assert told["defects"][0]["where"] == "images/default/k\udcf6ln.tif"
    assert [line for line in ended.stderr.splitlines() if line.startswith("feed")] == []


@pytest.mark.parametrize("name", ["x" * 300 + ".tif", "", "."])
def test_names_that_no_file_can_have_are_images_without_their_file(tmp_path, name):
    named(tmp_path / "source", ["a.tif"], ["a.tif", name])
    screen = convert_quietly(find_glioma_c6(tmp_path / "source"), tmp_path / "out")
    assert "labels-without-image" in screen
    assert "all: 1 sample," in screen


@pytest.mark.parametrize("name", ["a\0b.tif", "../a.tif", "/etc/passwd", "C:\\a.tif"])
def test_names_that_lead_elsewhere_are_one_line(tmp_path, name):
    named(tmp_path / "source", ["a.tif"], ["a.tif", name])
    with pytest.raises(InputError, match="correct the") as caught:
        convert_quietly(find_glioma_c6(tmp_path / "source"), tmp_path / "out")
    assert len(one_line(caught.value)) <= 500


def test_files_that_no_step_read_are_counted_by_suffix(tmp_path):
    root = clean_export(tmp_path / "source", 2)
    folder = root / "images" / "default"
    for name in ("a.jpg", "b.JPG", "c.bmp", "d.czi", "no suffix"):
        (folder / name).write_bytes(b"x")
    (root / "annotations.xml").write_text("<annotations/>")
    (root / "LICENSE").write_text("CC0")
    (tmp_path / "elsewhere").mkdir()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "more").mkdir()
    tifffile.imwrite(root / "more" / "e.tif", draw_image(3))
    os.mkfifo(root / "pipe.raw")
    screen = convert_quietly(find_glioma_c6(root), root / "shards", strict=True)
    told = json.loads((root / "shards" / "audit.json").read_text())["files_not_read"]
    assert {suffix: entry["files"] for suffix, entry in told.items()} == {
        **{".jpg": 2, ".bmp": 1, ".czi": 1, ".xml": 1, ".tif": 1, ".raw": 1, "(no suffix)": 2},
    }
    assert told[".jpg"]["for_example"] == "images/default/a.jpg"
    assert "files not read: " in screen
    assert "2 .jpg (for example images/default/a.jpg)" in screen
    # What an earlier conversion wrote there is no file of the source.
    again = convert_quietly(find_glioma_c6(root), root / "shards")
    assert re.sub(r"\d+/s", "", again) == re.sub(r"\d+/s", "", screen)


def test_every_source_counts_them(tmp_path):
    root = write_livecell(tmp_path / "source", {"train": 1, "val": 1})
    (root / "images" / "thumb.jpg").write_bytes(b"x")
    assert "1 .jpg" in convert_quietly(find_livecell(root), tmp_path / "out")


@pytest.mark.parametrize("find", [find_livecell, find_glioma_c6])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("annotations.xml", "export as 'COCO 1.0'"),
        ("export.zip", "unpack the archive first"),
        ("labels.json", "rename yours"),
        ("a.png", "a COCO JSON must outline their cells"),
    ],
)
def test_what_is_no_data_set_says_what_to_do(tmp_path, find, name, words):
    (tmp_path / name).write_text("")
    with pytest.raises(InputError, match=words) as caught:
        find(tmp_path)
    assert name in str(caught.value)
    assert len(one_line(caught.value)) <= 500
    with pytest.raises(InputError, match="is a file, not a folder"):
        find(tmp_path / name)


def find_as_nobody(root) -> tuple[str, str]:
    """What the search says to a user who is not root: the kind of the error, and its words."""
    is_root = os.geteuid() == 0
    if is_root:  # who may read everything
        find_glioma_c6(root)  # imports what it needs, which another user may be unable to
        os.seteuid(NOBODY)
    try:
        find_glioma_c6(root)
    except Exception as error:
        return type(error).__name__, str(error)
    finally:
        if is_root:
            os.seteuid(0)
    return "", ""


def test_what_this_user_may_not_read_is_said_so():
    # Not below tmp_path, whose parents are root's alone.
    with tempfile.TemporaryDirectory(prefix="glioma-dist-") as folder:
        Path(folder).chmod(0o755)
        root = clean_export(Path(folder) / "source", 1)
        (root / "images").chmod(0)
        try:
            (said,) = run(find_as_nobody, root)
        finally:
            (root / "images").chmod(0o755)
    assert said[0] == "InputError"
    assert "may not read" in said[1]


def turned(root, orientation: int, mode: str, width: int, height: int):
    """An export of one bright square on black, in a PNG that says how it lies; the JSON says width and height."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[4:12, 6:20] = 190
    exif = Image.Exif()
    exif[274] = orientation
    (root / "images" / "default").mkdir(parents=True)
    path = root / "images" / "default" / "a.png"
    image = Image.fromarray(pixels)
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    image.save(path, exif=exif)
    if (width, height) == (WIDTH, HEIGHT):
        outline = [[6, 4, 20, 4, 20, 12, 6, 12]]
    else:  # turned clockwise: a row becomes a column, the first one the last
        outline = [[HEIGHT - 12, 6, HEIGHT - 4, 6, HEIGHT - 4, 20, HEIGHT - 12, 20]]
    images = [image_record(1, "a.png", width, height)]
    write_coco(root / "annotations" / "instances_default.json", images, [annotation(1, 1, outline)])
    return path


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P"])
def test_image_and_mask_lie_on_each_other_whatever_the_colour_type(tmp_path, mode, orientation):
    path = turned(tmp_path / "source", orientation, mode, WIDTH, HEIGHT)
    convert_quietly(find_glioma_c6(tmp_path / "source"), tmp_path / "out")
    (sample,) = read_all(tmp_path / "out" / "all").values()
    assert sample.image[sample.mask == 1].mean() == 190
    assert sample.image[sample.mask == 0].max() == 0
    told = [("orientation", "all/a.png", False)] if orientation > 1 else []
    assert defects(tmp_path / "out") == told
    with ImageReader() as reader:
        assert reader.read(path).pixels.shape[:2] == (HEIGHT, WIDTH)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_labels_of_the_picture_as_viewers_turn_it_are_met(tmp_path, mode):
    turned(tmp_path / "source", 6, mode, HEIGHT, WIDTH)
    screen = convert_quietly(find_glioma_c6(tmp_path / "source"), tmp_path / "out")
    (sample,) = read_all(tmp_path / "out" / "all").values()
    assert sample.image.shape == (WIDTH, HEIGHT)
    assert sample.image[sample.mask == 1].mean() == 190
    assert sample.image[sample.mask == 0].max() == 0
    assert "because the labels have the size of the picture so turned" in screen


def test_exchanged_sizes_without_an_orientation_are_left_out(tmp_path):
    turned(tmp_path / "source", 1, "L", HEIGHT, WIDTH)
    with pytest.raises(InputError, match="no sample"):
        convert_quietly(find_glioma_c6(tmp_path / "source"), tmp_path / "out")
    (defect,) = json.loads((tmp_path / "out" / "audit.json").read_text())["defects"]
    assert "turned by 90 degrees" in defect["detail"]


def test_an_image_in_a_format_that_is_not_read_is_not_said_to_be_missing(tmp_path):
    root = named(tmp_path / "source", ["a.tif"], ["a.tif", "b.jpg", "c.png"])
    Image.fromarray(draw_image(1)).save(root / "images" / "default" / "b.jpg")
    convert_quietly(find_glioma_c6(root), tmp_path / "out")
    told = json.loads((tmp_path / "out" / "audit.json").read_text())["defects"]
    details = {defect["where"]: defect["detail"] for defect in told}
    assert "only TIFF and PNG are read" in details["all/b.jpg"]
    assert "no such file" in details["all/c.png"]
