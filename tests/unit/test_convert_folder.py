"""`convert folder`: images with masks of every kind, stacks, pairs by name, splits by group, what cannot be used."""

import io
import json
import random
import re
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from data_helpers import draw_image
from helpers import command, draw_sample
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from glioma_dist.cli.program import main
from glioma_dist.data.convert import mask_pairs
from glioma_dist.data.convert.folder import Division, convert_folder
from glioma_dist.data.convert.pages import check_pattern, find_groups
from glioma_dist.data.images.decoding import decode_page
from glioma_dist.data.images.tiff_planes import find_planes
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.splits import draw_shares
from glioma_dist.errors import InputError

SHAPE = (36, 48)
NAMES = ("train", "val", "test")


def draw_labels(number: int = 0, cells: int = 5) -> np.ndarray:
    """A label image, int64: rectangles that do not touch, numbered from 1."""
    labels = np.zeros(SHAPE, np.int64)
    for cell in range(cells):
        labels[2 + cell * 6 : 6 + cell * 6, 3 + number % 7 : 9 + cell + number % 7] = cell + 1
    return labels


LABELS = draw_labels()


def write_png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_tiff(path: Path, pixels: np.ndarray, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels, **how)
    return path


def lab(root: Path, names, suffix: str = "", mask_ending: str = ".png") -> tuple[Path, Path]:
    """Folders of noise images and label images with these names."""
    for number, name in enumerate(names):
        write_png(root / "images" / f"{name}.png", draw_image(number))
        write = write_png if mask_ending == ".png" else write_tiff
        write(root / "masks" / f"{name}{suffix}{mask_ending}", draw_labels(number).astype(np.uint8))
    return root / "images", root / "masks"


def convert(images: Path, masks: Path, out: Path, **how) -> str:
    """Convert; what would have been on the screen."""
    screen = io.StringIO()
    convert_folder(images, masks, out, "lab", console=Console(file=screen, width=80), **how)
    return screen.getvalue()


def samples(folder: Path) -> dict:
    reader = ShardReader(folder)
    places = [(shard, place) for shard, count in enumerate(reader.shard_sizes) for place in range(count)]
    return {sample.key: sample for sample in (reader.read(*place) for place in places)}


def defects(out: Path) -> list[tuple[str, str, bool]]:
    found = json.loads((out / "audit.json").read_text())["defects"]
    return [(each["kind"], each["where"], each["left_out"]) for each in found]


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_mask(path: Path):
    return decode_page(path, str(path), lambda num_bytes: None, is_mask=True)


# Kinds of images and masks


def as_palette(path: Path, labels: np.ndarray) -> None:
    """Indices; the colour of index 0, the background, is white."""
    image = Image.fromarray(labels.astype(np.uint8), mode="P")
    image.putpalette([255, 255, 255] + [0, 0, 0, 9, 9, 9] * 40)
    image.save(path)


def as_rgba(path: Path, labels: np.ndarray) -> None:
    grey = (labels > 0).astype(np.uint8) * 255
    Image.fromarray(np.dstack([grey, grey, grey, np.full_like(grey, 255)])).save(path)


MASKS = {
    "png 0 255": (".png", lambda path, labels: write_png(path, (labels > 0).astype(np.uint8) * 255)),
    "png 0 1": (".png", lambda path, labels: write_png(path, (labels > 0).astype(np.uint8))),
    "png 1 bit": (".png", lambda path, labels: write_png(path, labels > 0)),
    "png 8 bit labels": (".png", lambda path, labels: write_png(path, labels.astype(np.uint8))),
    "png 16 bit labels": (".png", lambda path, labels: write_png(path, (labels * 300).astype(np.uint16))),
    "png palette": (".png", as_palette),
    "png rgba": (".png", as_rgba),
    "tiff 1 bit": (".tif", lambda path, labels: write_tiff(path, labels > 0)),
    "tiff white is zero": (
        ".tif",
        lambda path, labels: write_tiff(path, (labels > 0).astype(np.uint8) * 255, photometric="miniswhite"),
    ),
    "tiff rgb": (".tif", lambda path, labels: write_tiff(path, np.dstack([labels.astype(np.uint8)] * 3))),
    "tiff palette": (
        ".tif",
        lambda path, labels: write_tiff(
            path, labels.astype(np.uint8), photometric="palette", colormap=np.full((3, 256), 65535, np.uint16)
        ),
    ),
    **{
        f"tiff {kind} {compression}": (
            ".tiff",
            lambda path, labels, kind=kind, compression=compression: write_tiff(
                path, (labels * (1 if kind.endswith("int8") else 300)).astype(kind), compression=compression
            ),
        )
        for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
        for compression in (None, "zlib", "lzw")
    },
}
"""How masks are written: name -> the file's ending, and what writes labels there."""
NOT_BLACK = ("tiff white is zero", "tiff 1 bit", "png palette", "tiff palette")
"""0 is not shown black; tifffile writes bits so."""
BINARY = ("png 0 255", "png 0 1", "png 1 bit", "png rgba", "tiff 1 bit", "tiff white is zero")
IMAGES = {
    "grey png": (".png", lambda path, image: write_png(path, image)),
    "rgb png": (".PNG", lambda path, image: cv2.imwrite(str(path), np.dstack([image, image, 255 - image]))),
    "16 bit png": (".png", lambda path, image: write_png(path, image.astype(np.uint16) * 200)),
    "grey tiff": (".tif", lambda path, image: write_tiff(path, image, compression="lzw")),
    "16 bit tiff": (".TIFF", lambda path, image: write_tiff(path, image.astype(np.uint16) * 200)),
    "ome tiff": (".ome.tif", lambda path, image: write_tiff(path, image)),
    "grey jpeg": (".jpg", lambda path, image: Image.fromarray(image).save(path)),
    "rgb jpeg": (".JPEG", lambda path, image: Image.fromarray(np.dstack([image, image, 255 - image])).save(path)),
}


def independent(path: Path) -> np.ndarray:
    """An image as another library reads it."""
    if "tif" in path.suffix.lower():
        return tifffile.imread(path)
    with Image.open(path) as image:
        return np.array(image).astype(np.uint16 if image.mode.startswith("I") else np.uint8)


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_of_every_kind_is_the_pixels_above_0(tmp_path, kind):
    ending, write = MASKS[kind]
    path = tmp_path / f"a{ending}"
    write(path, LABELS)
    found = read_mask(path)
    assert found.pixels.dtype == np.uint8
    np.testing.assert_array_equal(found.pixels, LABELS > 0)
    assert found.num_cells == 5
    assert [("another colour than black" in note) for note in found.notes] == [True] * (kind in NOT_BLACK)


@pytest.mark.parametrize("kind", [kind for kind in MASKS if kind not in BINARY])
def test_touching_cells_of_a_label_image_are_counted_one_by_one(tmp_path, kind):
    ending, write = MASKS[kind]
    labels = np.zeros(SHAPE, np.int64)
    labels[4:20, 4:12], labels[4:20, 12:20], labels[25:30, 1:9], labels[25:30, 30:39] = 1, 2, 3, 3
    write(tmp_path / f"a{ending}", labels)
    assert read_mask(tmp_path / f"a{ending}").num_cells == 3


def test_every_kind_of_image_goes_with_every_kind_of_mask(tmp_path):
    names = {}
    for number, (image_kind, mask_kind) in enumerate((a, b) for a in IMAGES for b in MASKS if "lzw" not in b):
        name = f"{number:03d}"
        names[name] = (f"{name}{IMAGES[image_kind][0]}", number)
        for folder, kinds, kind, pixels in (
            ("images", IMAGES, image_kind, draw_image(number)),
            ("masks", MASKS, mask_kind, draw_labels(number)),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            kinds[kind][1](tmp_path / folder / f"{name}{kinds[kind][0]}", pixels)
    convert(tmp_path / "images", tmp_path / "masks", tmp_path / "out")
    found = samples(tmp_path / "out" / "all")
    assert found.keys() == names.keys()
    for key, sample in found.items():
        file_name, number = names[key]
        np.testing.assert_array_equal(sample.image, independent(tmp_path / "images" / file_name))
        np.testing.assert_array_equal(sample.mask, draw_labels(number) > 0)
        assert sample.metadata["file_name"] == file_name
        assert (sample.metadata["group"], sample.metadata["num_cells"]) == (key, 5)
    assert {kind for kind, _, _ in defects(tmp_path / "out")} == {
        "pixel-values"
    }  # of those that do not show 0 as black


FRACTIONS = np.where(LABELS > 0, 0.37, 0).astype(np.float32)
REFUSED = {
    "fractions": (lambda folder: write_tiff(folder / "a.tif", FRACTIONS), "fractions, such as 0.37"),
    "nan": (lambda folder: write_tiff(folder / "a.tif", np.where(FRACTIONS > 0, np.nan, 0)), "no number"),
    "below 0": (lambda folder: write_tiff(folder / "a.tif", (-LABELS).astype(np.int32)), "value -5, below 0"),
    "below 0, float": (lambda folder: write_tiff(folder / "a.tif", (-LABELS).astype(np.float32)), "value -5, below 0"),
    "complex": (lambda folder: write_tiff(folder / "a.tif", LABELS.astype(np.complex64)), "complex"),
    "no background": (lambda folder: write_png(folder / "a.png", (LABELS + 1).astype(np.uint8)), "no pixel of the"),
    "colours": (
        lambda folder: write_png(folder / "a.png", draw_sample(0, *SHAPE[::-1], channels=3).image),
        "is it an overlay",
    ),
    "colours, tiff": (
        lambda folder: write_tiff(folder / "a.tif", draw_sample(0, *SHAPE[::-1], channels=3).image),
        "is it an overlay",
    ),
    "transparency": (
        lambda folder: write_png(folder / "a.png", np.dstack([LABELS * 0] * 3 + [LABELS * 50]).astype(np.uint8)),
        "transparency varies",
    ),
    "jpeg": (lambda folder: write_png(folder / "a.jpg", (LABELS > 0).astype(np.uint8) * 255), "changes the labels"),
    "jpeg by its bytes": (
        lambda folder: Image.fromarray(LABELS.astype(np.uint8)).save(folder / "a.png", "jpeg"),
        "changes the labels",
    ),
    "jpeg in a tiff": (
        lambda folder: write_tiff(folder / "a.tif", (LABELS > 0).astype(np.uint8) * 255, compression="jpeg"),
        "changes the labels",
    ),
    "cut short": (
        lambda folder: (folder / "a.png").write_bytes(
            write_png(folder / "a.png", LABELS.astype(np.uint8)).read_bytes()[:-20]
        ),
        "cut short",
    ),
    "garbage": (lambda folder: (folder / "a.tif").write_bytes(b"garbage" * 20), "not a TIFF"),
    "empty": (lambda folder: (folder / "a.png").write_bytes(b""), "is empty"),
    "another size": (lambda folder: write_png(folder / "a.png", LABELS[:, 1:].astype(np.uint8)), "its mask 47x36"),
    "turned": (lambda folder: write_png(folder / "a.png", LABELS.T.astype(np.uint8)), "turned by 90 degrees"),
    "more pages": (
        lambda folder: write_tiff(folder / "a.tif", np.stack([LABELS] * 3).astype(np.uint16), photometric="minisblack"),
        "number of pages: 1 in the image, 3 in its mask a.tif",
    ),
}


def test_a_mask_that_cannot_be_used_costs_its_image_and_one_line(tmp_path):
    for number, (write, _) in enumerate(REFUSED.values()):
        (tmp_path / f"masks/{number:02d}").mkdir(parents=True)
        write(tmp_path / f"masks/{number:02d}")
        write_png(tmp_path / f"images/{number:02d}/a.png", draw_image(number))
    write_png(tmp_path / "images/good.png", draw_image(99))
    write_png(tmp_path / "masks/good.png", LABELS.astype(np.uint8))
    convert(tmp_path / "images", tmp_path / "masks", tmp_path / "out")
    assert list(samples(tmp_path / "out" / "all")) == ["good"]
    found = {each["where"]: each for each in json.loads((tmp_path / "out/audit.json").read_text())["defects"]}
    for number, (kind, (_, words)) in enumerate(REFUSED.items()):
        defect = found[f"{number:02d}/a.png"]
        assert words in defect["detail"], kind
        assert defect["left_out"]
        assert "\n" not in defect["detail"]
        assert len(defect["detail"]) <= 500


def test_an_empty_mask_is_a_field_without_cells_and_a_full_one_is_suspicious(tmp_path):
    images, masks = lab(tmp_path, ["a", "b", "c"])
    write_png(masks / "a.png", np.zeros(SHAPE, np.uint8))
    write_png(masks / "b.png", np.full(SHAPE, 255, np.uint8))
    convert(images, masks, tmp_path / "out")
    found = samples(tmp_path / "out" / "all")
    assert [found[key].mask.mean() for key in "ab"] == [0, 1]
    assert found["a"].metadata["num_cells"] == 0
    assert defects(tmp_path / "out") == [
        ("image-without-labels", "a.png", False),
        ("suspicious-mask", "b.png", False),
    ]


def test_a_mask_that_was_smoothed_is_told_of(tmp_path):
    discs = np.zeros((80, 100), np.uint8)
    for centre in ((20, 20), (60, 50)):
        cv2.circle(discs, centre, 12, 255, thickness=-1)
    smooth = cv2.resize(discs, (310, 240), interpolation=cv2.INTER_LINEAR)
    assert len(np.unique(smooth)) > 20
    found = read_mask(write_png(tmp_path / "a.png", smooth))
    assert "others: was it scaled" in found.notes[0]
    assert found.num_cells == 2
    np.testing.assert_array_equal(found.pixels, smooth > 0)


@pytest.mark.parametrize("mask_is_turned", [True, False])
def test_a_jpeg_that_viewers_turn_lies_as_its_mask_does(tmp_path, mask_is_turned):
    pixels = np.repeat(np.repeat(draw_image(0, 6, 5), 8, 0), 8, 1)
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images/a.jpg", exif=exif, quality=95)
    labels = np.zeros(pixels.shape, np.uint8)
    labels[3:9, 4:20] = 1
    write_png(tmp_path / "masks/a.png", np.rot90(labels, -1) if mask_is_turned else labels)
    convert(tmp_path / "images", tmp_path / "masks", tmp_path / "out")
    (sample,) = samples(tmp_path / "out/all").values()
    stored = np.array(Image.open(tmp_path / "images/a.jpg"))
    np.testing.assert_array_equal(sample.image, np.rot90(stored, -1) if mask_is_turned else stored)
    assert sample.mask.shape == sample.image.shape
    assert defects(tmp_path / "out") == [("orientation", "a.jpg", False)]


# Pairs


@pytest.mark.parametrize("suffix", mask_pairs.KNOWN_SUFFIXES)
def test_what_programs_write_after_a_name_is_found_without_a_flag(tmp_path, suffix):
    images, masks = lab(tmp_path, ["a", "b_mask", "p/q.c"], suffix)
    pairs = mask_pairs.find_pairs(images, masks, None)
    assert [pair.name for pair in pairs.pairs] == ["a.png", "b_mask.png", "p/q.c.png"]
    assert pairs.suffix == suffix
    if suffix:
        for path in [path for path in masks.rglob("*.png") if "b_mask" not in path.name]:
            path.rename(images / path.relative_to(masks))
        pairs = mask_pairs.find_pairs(images, images, suffix)
        assert [pair.name for pair in pairs.pairs] == ["a.png", "p/q.c.png"]


def test_a_suffix_that_is_given_is_the_only_one(tmp_path):
    images, masks = lab(tmp_path, ["a", "b"], "_mask")
    write_png(masks / "a_nuclei.png", LABELS.astype(np.uint8))
    pairs = mask_pairs.find_pairs(images, masks, "_nuclei")
    assert [(pair.name, pair.mask.name) for pair in pairs.pairs] == [("a.png", "a_nuclei.png")]
    assert (pairs.lonely_images, pairs.lonely_masks) == (["b.png"], ["a_mask.png", "b_mask.png"])


@pytest.mark.parametrize("above", ["images", "masks"])
def test_one_folder_may_lie_in_the_other(tmp_path, above):
    images, masks = lab(tmp_path, ["a", "b"])
    if above == "images":
        masks = masks.rename(images / "masks")
    else:
        images = images.rename(masks / "images")
    pairs = mask_pairs.find_pairs(images, masks, None)
    assert [pair.name for pair in pairs.pairs] == ["a.png", "b.png"]
    assert (pairs.lonely_images, pairs.lonely_masks) == ([], [])


def test_who_has_no_partner_is_listed_and_left_out(tmp_path):
    images, masks = lab(tmp_path, [f"f{number:02d}" for number in range(12)], "_mask")
    for number in range(8):
        (masks / f"f{number:02d}_mask.png").unlink()
    write_png(masks / "other_mask.png", LABELS.astype(np.uint8))
    for name in ("._f11.png", ".DS_Store", "notes.txt"):
        (images / name).write_bytes(b"x")
    (images / "LICENSE").write_text("CC0\n")
    screen = convert(images, masks, tmp_path / "out")
    assert "4 images with a mask (masks have the image's name and _mask)" in screen
    assert "8 images without a mask, left out: f00.png, f01.png, f02.png, f03.png, f04.png and 3 more" in screen
    assert "1 mask without an image, left out: other_mask.png" in screen
    lonely = [("image-without-labels", f"f{number:02d}.png", True) for number in range(8)]
    assert defects(tmp_path / "out") == [*lonely, ("labels-without-image", "other_mask.png", True)]
    not_read = json.loads((tmp_path / "out/audit.json").read_text())["files_not_read"]
    assert {ending: entry["files"] for ending, entry in not_read.items()} == {"(no suffix)": 1, ".png": 1, ".txt": 1}
    assert ShardReader(tmp_path / "out/all").index["licence"] == "CC0 (LICENSE of the source)"


# Stacks


def phase(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, *SHAPE), dtype=np.uint8)


IMAGEJ = {"imagej": True, "resolution": (2.0, 2.0)}
STACKS = {
    "pages": ((3,), {"photometric": "minisblack", "metadata": None}, ["p001", "p002", "p003"]),
    "tifffile": ((3,), {"photometric": "minisblack"}, ["p001", "p002", "p003"]),
    "tifffile time": ((3,), {"photometric": "minisblack", "metadata": {"axes": "TYX"}}, ["t001", "t002", "t003"]),
    "imagej time": (
        (3,),
        IMAGEJ | {"metadata": {"axes": "TYX", "unit": "um", "finterval": 1800.0}},
        ["t001", "t002", "t003"],
    ),
    "imagej depth": ((2,), IMAGEJ | {"metadata": {"axes": "ZYX", "unit": "micron"}}, ["p001", "p002"]),
    "imagej both": (
        (2, 3),
        IMAGEJ | {"metadata": {"axes": "TZYX", "unit": "um", "finterval": 1800.0}},
        [f"t00{t}-p00{z}" for t in (1, 2) for z in (1, 2, 3)],
    ),
    "ome time": (
        (3,),
        {"metadata": {"axes": "TYX", "PhysicalSizeX": 0.5, "TimeIncrement": 30, "TimeIncrementUnit": "min"}},
        ["t001", "t002", "t003"],
    ),
    "ome depth first": (
        (3, 2),
        {"metadata": {"axes": "ZTYX", "PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm"}},
        [f"t00{t}-p00{z}" for z in (1, 2, 3) for t in (1, 2)],
    ),
    "big tiff": ((2,), {"photometric": "minisblack", "bigtiff": True, "compression": "zlib"}, ["p001", "p002"]),
}


@pytest.mark.parametrize("kind", STACKS)
def test_a_stack_is_unrolled_page_by_page_with_its_mask(tmp_path, kind):
    shape, how, endings = STACKS[kind]
    ending = ".ome.tif" if kind.startswith("ome") else ".tif"
    image = phase(*shape)
    labels = np.stack([draw_labels(number) for number in range(len(endings))]).astype(np.uint16)
    write_tiff(tmp_path / f"images/well_A{ending}", image, **how)
    mask_how = how if kind.startswith("imagej") else {"photometric": "minisblack"}
    write_tiff(tmp_path / "masks/well_A_cp_masks.tif", labels.reshape(*shape, *SHAPE), **mask_how)
    write_png(tmp_path / "images/single.png", draw_image(7))
    write_png(tmp_path / "masks/single_cp_masks.png", draw_labels(6).astype(np.uint8))
    screen = convert(tmp_path / "images", tmp_path / "masks", tmp_path / "out")
    found = samples(tmp_path / "out/all")
    assert found.keys() == {"single"} | {f"well_A-{each}" for each in endings}, screen
    pages = image.reshape(-1, *SHAPE)
    for number, each in enumerate(endings):
        sample = found[f"well_A-{each}"]
        np.testing.assert_array_equal(sample.image, pages[number])
        np.testing.assert_array_equal(sample.mask, labels[number] > 0)
        told = sample.metadata
        assert told["group"] == "well_A"
        places = {part[0]: int(part[1:]) for part in each.split("-")}
        assert (told.get("frame"), told.get("position")) == (places.get("t"), places.get("p"))
        has_clock = kind in ("imagej time", "imagej both", "ome time")
        assert told["time"] == ((places["t"] - 1) * 0.5 if has_clock else None)
        assert told.get("pixel_size_um") == (0.5 if kind.startswith(("imagej", "ome")) else None)
    assert "frame" not in found["single"].metadata
    assert "position" not in found["single"].metadata


def test_a_page_that_is_damaged_costs_that_page(tmp_path):
    write_tiff(tmp_path / "images/a.tif", phase(3), photometric="minisblack", compression="zlib", metadata=None)
    write_tiff(
        tmp_path / "masks/a.tif", np.stack([LABELS] * 3).astype(np.float32), photometric="minisblack", metadata=None
    )
    with tifffile.TiffFile(tmp_path / "images/a.tif") as tiff:
        offset, count = tiff.pages[1].dataoffsets[0], tiff.pages[1].databytecounts[0]
    with open(tmp_path / "images/a.tif", "r+b") as file:
        file.seek(offset + count // 2)
        file.write(bytes(20))
    convert(tmp_path / "images", tmp_path / "masks", tmp_path / "out")
    assert samples(tmp_path / "out/all").keys() == {"a-p001", "a-p003"}
    (defect,) = json.loads((tmp_path / "out/audit.json").read_text())["defects"]
    assert (defect["kind"], defect["where"]) == ("unreadable-file", "a.tif (page 2)")
    assert "a.tif (page 2): the TIFF's pixels cannot be decoded" in defect["detail"]


def test_names_of_pages_and_files_do_not_collide(tmp_path):
    write_tiff(tmp_path / "images/a.tif", phase(2), photometric="minisblack")
    write_tiff(tmp_path / "masks/a.tif", np.stack([LABELS] * 2).astype(np.uint8), photometric="minisblack")
    for name in ("a-p001", "p/a", "b.c", "b_c"):
        write_png(tmp_path / f"images/{name}.tif.png", draw_image(1))
        write_png(tmp_path / f"images/{name}.png", draw_image(1))
        write_png(tmp_path / f"masks/{name}.png", LABELS.astype(np.uint8))
    convert(tmp_path / "images", tmp_path / "masks", tmp_path / "out")
    assert len(samples(tmp_path / "out/all")) == 6


@pytest.mark.parametrize(
    ("how", "shape", "words"),
    [
        (IMAGEJ | {"metadata": {"axes": "TCYX"}}, (2, 2), "2 channels; save the one to segment"),
        ({"metadata": {"axes": "CYX"}, "ome": True}, (2,), "2 channels; save the one to segment"),
        ({"metadata": {"axes": "CYX"}, "photometric": "minisblack"}, (2,), "2 channels; save the one to segment"),
    ],
)
def test_a_stack_of_channels_is_refused(tmp_path, how, shape, words):
    with pytest.raises(InputError, match=words):
        find_planes(write_tiff(tmp_path / "a.tif", phase(*shape), **how))


def test_a_stack_that_lists_fewer_pages_than_it_declares_is_refused(tmp_path):
    path = write_tiff(tmp_path / "a.tif", phase(4), imagej=True, metadata={"axes": "TYX"}, compression=None)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tag = tiff.pages[0].tags["ImageDescription"]
        tag.overwrite(tag.value.replace("images=4", "images=9").replace("frames=4", "frames=9"))
    with pytest.raises(InputError, match="ImageJ declares 9 planes, and the file lists 4"):
        find_planes(path)


@pytest.mark.parametrize(
    "description",
    [
        '<OME><Pixels SizeZ="0" SizeT="999999999" SizeC="1"/></OME>',
        "<OME>" + '<Pixels SizeZ="0" SizeT="9" SizeC="0"/>' * 3 + "</OME>",
        "ImageJ=1.54\nslices=-2\nframes=-2\nfinterval=-1\nunit=um\n",
        '{"shape": [0, 4], "axes": "TYXTYX"}',
        '{"shape": [4, 36, 48], "axes": 7}',
    ],
)
def test_metadata_that_make_no_sense_leave_pages_in_their_order(tmp_path, description):
    path = write_tiff(
        tmp_path / "a.tif",
        phase(4),
        photometric="minisblack",
        metadata=None,
        description=description,
        resolution=(2, 2),
    )
    assert [(plane.frame, plane.position) for plane in find_planes(path).planes] == [(None, n) for n in (1, 2, 3, 4)]
    assert find_planes(path).seconds is None


@pytest.mark.parametrize("seed", range(4))
def test_changed_bytes_are_an_input_error_or_a_picture(tmp_path, seed):
    """What the decoders of masks, of stacks' pages and of JPEG say of 60 damaged files each."""
    rng = random.Random(seed)
    files = [(tmp_path / f"m{number}{ending}", write) for number, (ending, write) in enumerate(MASKS.values())]
    files += [
        (tmp_path / f"i{number}.jpg", write)
        for number, (ending, write) in enumerate(IMAGES.values())
        if "j" in ending.lower()
    ]
    for path, write in files:
        write(path, LABELS if path.name.startswith("m") else draw_image(seed))
    for number, (shape, how, _) in enumerate(STACKS.values()):
        path = tmp_path / f"s{number}{'.ome' if 'TimeIncrement' in str(how) else ''}.tif"
        files.append((write_tiff(path, phase(*shape), **how), None))
    messages: list[str] = []
    for _ in range(60):
        path = rng.choice(files)[0]
        data = bytearray(path.read_bytes())
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(min(len(data), 400))] = rng.randrange(256)
        changed = tmp_path / f"changed{''.join(path.suffixes)}"
        changed.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        try:
            for page, plane in enumerate(find_planes(changed).planes[:2], 1):
                number = None if plane.directory is None else page
                found = decode_page(changed, str(changed), lambda _: None, plane.directory, number, path.name[0] == "m")
                assert found.pixels.size
        except InputError as error:
            messages.append(str(error))
    assert messages
    assert not [message for message in messages if "\n" in message or len(message) > 600]


# Splits


def test_the_groups_that_a_pattern_finds_are_printed(tmp_path):
    images, masks = lab(tmp_path, [f"{well}_f{field}" for well in "ABCDEFG" for field in range(1 + (well == "A"))])
    screen = convert(images, masks, tmp_path / "out", group_pattern="^([A-Z])_")
    assert "7 groups: A (2 samples), B (1 sample), C (1 sample), D (1 sample), E (1 sample) and 2 more\n" in screen


def test_a_picture_that_is_there_twice_is_told_of(tmp_path):
    images, masks = lab(tmp_path, ["a", "b", "c", "d"])
    write_tiff(images / "copy.tif", draw_image(1))
    write_png(masks / "copy.png", LABELS.astype(np.uint8))
    convert(images, masks, tmp_path / "out", division=Division(0))
    (defect,) = json.loads((tmp_path / "out/audit.json").read_text())["defects"]
    assert (defect["kind"], {defect["where"], *re.findall(r"as (.*);", defect["detail"])}) == (
        "doubled-name",
        {"b.png", "copy.tif"},
    )
    assert sum(len(samples(tmp_path / "out" / name)) for name in NAMES) == 5


@given(
    st.lists(st.integers(0, 9), min_size=3, max_size=60).filter(lambda wells: len(set(wells)) >= 3),
    st.tuples(*[st.floats(0.5, 90)] * 3),
    st.integers(0, 1000),
    st.randoms(),
)
@settings(max_examples=150, deadline=None)
def test_groups_never_straddle_splits(wells, shares, seed, shuffler):
    groups = {f"key{number}": f"well{well}" for number, well in enumerate(wells)}
    named = dict(zip(NAMES, shares, strict=True))
    drawn = draw_shares(groups, named, seed)
    assert sorted(key for keys in drawn.values() for key in keys) == sorted(groups)
    of_split = {name: {groups[key] for key in keys} for name, keys in drawn.items()}
    assert sum(map(len, of_split.values())) == len(set(groups.values()))
    assert all(of_split.values())
    for name, found in of_split.items():
        exact = named[name] / sum(shares) * len(set(wells))
        assert len(found) == 1 or len(found) < exact + 1
    items = list(groups.items())
    shuffler.shuffle(items)
    assert draw_shares(dict(items), named, seed) == drawn


@pytest.mark.parametrize(
    ("number", "expected"), [(3, (1, 1, 1)), (7, (5, 1, 1)), (16, (11, 3, 2)), (100, (70, 15, 15))]
)
def test_shares_of_usual_numbers(number, expected):
    drawn = draw_shares({str(key): str(key) for key in range(number)}, dict(zip(NAMES, (70, 15, 15), strict=True)), 0)
    assert tuple(map(len, drawn.values())) == expected


@pytest.mark.parametrize("how", [{}, {"counts": (5, 2, 3)}])
def test_wells_stay_together_and_the_seed_decides(tmp_path, how):
    names = [f"{well}_f{field}" for well in ("A1", "A2", "B7", "C3", "C4") for field in (1, 2)]
    images, masks = lab(tmp_path, names)
    drawn = {}
    for seed in (0, 1, 2):
        out = tmp_path / f"out{seed}"
        convert(images, masks, out, division=Division(seed, **how), group_pattern="^([A-H][0-9]+)_")
        drawn[seed] = {name: samples(out / name) for name in NAMES}
        wells = defaultdict(set)
        for name, found in drawn[seed].items():
            for key, sample in found.items():
                assert sample.metadata["group"] == key[:2]
                wells[key[:2]].add(name)
        assert all(len(splits) == 1 for splits in wells.values())
        assert sum(map(len, drawn[seed].values())) == (10 if not how else 8)
    assert len({tuple(sorted(found["train"])) for found in drawn.values()}) > 1


def test_pages_of_a_stack_stay_together(tmp_path):
    for number in range(4):
        write_tiff(tmp_path / f"images/s{number}.tif", phase(3), photometric="minisblack")
        write_tiff(tmp_path / f"masks/s{number}.tif", np.stack([LABELS] * 3).astype(np.uint8), photometric="minisblack")
    convert(tmp_path / "images", tmp_path / "masks", tmp_path / "out", division=Division(0))
    sets = [{key[:2] for key in samples(tmp_path / "out" / name)} for name in NAMES]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 4


def test_two_runs_and_any_order_of_the_folder_give_the_same_bytes(tmp_path, monkeypatch):
    images, masks = lab(tmp_path, [f"plate{n % 2}/f{n}" for n in range(9)], "_cp_masks", ".tif")
    convert(images, masks, tmp_path / "one" / "x", division=Division(3))
    walk = mask_pairs.walk_files

    def shuffled(root):
        found = walk(root)
        random.Random(5).shuffle(found)
        return found

    monkeypatch.setattr(mask_pairs, "walk_files", shuffled)
    convert(images, masks, tmp_path / "two" / "x", division=Division(3))
    assert file_bytes(tmp_path / "one") == file_bytes(tmp_path / "two")


def test_names_are_grouped_by_what_the_pattern_finds():
    pairs = [
        mask_pairs.Pair(f"{stem}.tif", stem, Path(stem), Path(stem)) for stem in ("p1/A1_f1", "p1/A2_f1", "p2/A1_f2")
    ]
    assert list(find_groups(pairs, "(p[0-9])/").values()) == ["p1", "p1", "p2"]
    assert list(find_groups(pairs, "(A[0-9])_").values()) == ["A1", "A2", "A1"]
    assert list(find_groups(pairs, None).values()) == [pair.stem for pair in pairs]
    with pytest.raises(InputError, match=r"finds no group in 1 of 3 names, for example p2/A1_f2\.tif"):
        find_groups(pairs, "(.*)_f1$")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("A[0-9", "no regular expression"), ("A[0-9]", "has 0 groups"), ("(A)(B)", "has 2 groups"), ("*", "no regular")],
)
def test_a_pattern_that_cannot_be_is_one_line(pattern, words):
    with pytest.raises(InputError, match=words) as caught:
        check_pattern(pattern)
    assert "\n" not in str(caught.value)


# The command


def no_partner(root: Path) -> None:
    for path in (root / "masks").iterdir():
        path.rename(path.with_name(f"m_{path.name}"))


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


BAD = {
    "no images": (lambda root: empty(root / "images"), (), "images: no image (TIFF, PNG or JPEG) there or below"),
    "no masks": (lambda root: empty(root / "masks"), (), "masks: no mask (TIFF or PNG) there or below"),
    "only Cellpose's own": (
        lambda root: (empty(root / "masks"), (root / "masks/f0_seg.npy").touch()),
        (),
        "Cellpose's _seg.npy are not read",
    ),
    "a file": (
        lambda root: (empty(root / "masks"), (root / "masks").rmdir(), (root / "masks").touch()),
        (),
        "is a file",
    ),
    "nothing": (lambda root: None, ("--masks", "nowhere"), "--masks nowhere: no such folder"),
    "no partner": (no_partner, (), "images are f0.png, f1.png; masks are m_f0.png, m_f1.png; give --suffix"),
    "another suffix": (lambda root: None, ("--suffix", "_x"), "no mask has the name of an image and '_x'"),
    "one folder": (
        lambda root: None,
        ("--masks", "images"),
        "no file of the folder is named as a mask: f0.png, f1.png",
    ),
    "a folder as suffix": (lambda root: None, ("--suffix", "masks/"), "give --masks for the folder"),
    "two images": (
        lambda root: write_tiff(root / "images/f1.tif", draw_image(0)),
        (),
        "two images for one mask; keep one",
    ),
    "two masks": (
        lambda root: write_tiff(root / "masks/f1.tif", LABELS.astype(np.uint8)),
        (),
        "two masks for one image; keep one",
    ),
    "few groups": (
        lambda root: None,
        ("--split-seed", 0, "--group-pattern", "(f)"),
        "1 group of images cannot be drawn",
    ),
    "many counts": (lambda root: None, ("--split-seed", 0, "--split-counts", 9, 9, 9), "need 27 samples, there are 4"),
    "two counts": (lambda root: None, ("--split-seed", 0, "--split-counts", 2, 1), "give three numbers"),
    "a share of 0": (lambda root: None, ("--split-seed", 0, "--split-shares", 1, 0, 1), "each share is above 0"),
    "a negative seed": (lambda root: None, ("--split-seed", -1), "the seed is 0 or more"),
    "no group": (lambda root: None, ("--group-pattern", "f[0-9]"), "has 0 groups"),
    "no pattern": (lambda root: None, ("--group-pattern", "("), "no regular expression"),
    "no match": (lambda root: None, ("--group-pattern", "(x)"), "finds no group in 4 of 4 names"),
    "all damaged": (
        lambda root: [path.write_bytes(b"x") for path in (root / "images").iterdir()],
        (),
        "no sample could be converted",
    ),
    "all damaged, drawn": (
        lambda root: [path.write_bytes(b"x") for path in (root / "images").iterdir()],
        ("--split-seed", 0),
        "4 defects are in",
    ),
    "strict": (lambda root: (root / "masks/f1.png").unlink(), ("--strict",), "f1.png: image-without-labels"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_converted_is_one_line(tmp_path, case, monkeypatch, capsys):
    change, flags, words = BAD[case]
    lab(tmp_path, [f"f{number}" for number in range(4)])
    change(tmp_path)
    base = {"--images": "images", "--masks": "masks", "--out": "out"}
    base.update(dict([flags[:2]]) if flags and flags[0] in base else {})
    rest = flags[2:] if flags and flags[0] in base else flags
    given = [word for pair in base.items() for word in pair] + [str(word) for word in rest]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["glioma-dist", "convert", "folder", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert words in line
    assert len(line) <= 507
    assert not list((tmp_path / "out").glob("*/index.json"))


def test_sixteen_images_with_label_pngs_become_shards_that_verify(tmp_path):
    """The way of docs/own_images.md, by its own command."""
    (tmp_path / "images").mkdir()
    for number in range(16):
        sample = draw_sample(number)
        cv2.imwrite(str(tmp_path / "images" / f"f{number}.png"), sample.image)
        labels = cv2.connectedComponents(sample.mask)[1].astype(np.uint16)
        write_png(tmp_path / "masks" / f"f{number}_cp_masks.png", labels)
    flags = ("--images", tmp_path / "images", "--masks", tmp_path / "masks", "--split-seed", 0)
    ended = command("convert folder", *flags, "--out", tmp_path / "plate", "--licence", "CC0", "--dataset", "my cells")
    assert ended.exit_code == 0, ended.stderr
    counts = {}
    for name in NAMES:
        verified = command("shards verify", tmp_path / "plate" / name)
        assert verified.exit_code == 0, verified.stderr
        reader = ShardReader(tmp_path / "plate" / name)
        assert (reader.index["dataset"], reader.index["licence"]) == ("my cells", "CC0")
        counts[name] = len(reader)
        for key, sample in samples(tmp_path / "plate" / name).items():
            np.testing.assert_array_equal(sample.mask, draw_sample(int(key[1:])).mask)
            np.testing.assert_array_equal(sample.image, draw_sample(int(key[1:])).image)
    assert counts == {"train": 11, "val": 3, "test": 2}
