"""Masks and images of every kind that `convert folder` takes, and those that it refuses; damaged files."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from data_helpers import draw_image
from helpers import draw_sample
from PIL import Image
from test_convert_folder import LABELS, SHAPE, convert, defects, draw_labels, lab, samples, write_png, write_tiff

from glioma_dist.data.images.decoding import decode_page


def read_mask(path: Path):
    return decode_page(path, str(path), lambda num_bytes: None, is_mask=True)


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
