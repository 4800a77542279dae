"""Classes, ignored pixels and a number for each cell, from COCO files and from folders of masks."""

import io
import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
from data_helpers import HEIGHT, WIDTH, annotation, draw_image, image_record, real_data, square, write_coco, write_tiff
from helpers import REPOSITORY
from PIL import Image
from pycocotools import mask as coco_mask
from rich.console import Console
from scipy import ndimage

from glioma_dist.cli.arguments import parse
from glioma_dist.cli.convert import CocoConfig, LivecellConfig
from glioma_dist.cli.convert_folder import FolderConfig
from glioma_dist.cli.program import run
from glioma_dist.data.convert.conversion import convert
from glioma_dist.data.convert.folder import convert_folder
from glioma_dist.data.convert.labelling import Labelling, parse_values
from glioma_dist.data.convert.sources import find_coco, find_glioma_c6, find_livecell
from glioma_dist.data.sample import IGNORE, Sample
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.errors import InputError

NAMES = {1: "type A", 2: "soma", 3: "blurred"}
QUIET = Console(file=io.StringIO())


def read(folder: Path) -> list[Sample]:
    """All samples of a split."""
    reader = ShardReader(folder)
    return [reader.read(shard, place) for shard, size in enumerate(reader.shard_sizes) for place in range(size)]


def cells_apart(segmentations: list) -> np.ndarray:
    """Each cell's pixels by pycocotools, bool (cells, H, W)."""
    drawn = [coco_mask.merge(coco_mask.frPyObjects(each, HEIGHT, WIDTH)) for each in segmentations]
    return np.stack([coco_mask.decode(each) > 0 for each in drawn])


@pytest.fixture
def source(tmp_path):
    """One image: two cells of type A that overlap, a soma within the first, a blurred region over all of them."""
    shapes = [(square(2, 2, 20), 1), (square(18, 8, 12), 1), (square(6, 6, 6), 2), (square(0, 0, 34), 3)]
    write_tiff(tmp_path / "images" / "a.tif", draw_image(1))
    labels = [
        annotation(number, 1, shape, category_id=category, iscrowd=int(number == 1))
        for number, (shape, category) in enumerate(shapes)
    ]
    categories = tuple({"id": number, "name": name, "supercategory": "cell"} for number, name in NAMES.items())
    path = write_coco(tmp_path / "labels.json", [image_record(1, "a.tif")], labels, categories)
    return find_coco(path, tmp_path / "images"), cells_apart([shape for shape, _ in shapes])


def converted(source, out: Path, labelling: Labelling, categories: tuple[str, ...] | None = None) -> Sample:
    convert(source, out, "d", console=QUIET, categories=categories, labelling=labelling)
    return read(out / "all")[0]


def test_categories_become_classes_and_the_one_named_last_wins(source, tmp_path):
    found, (first, second, soma, _) = source
    for order in (("type A", "soma"), ("Soma", "Type_A")):  # as the JSON's, whatever case and spacing
        sample = converted(found, tmp_path / order[0], Labelling(order))
        is_first = order[0] == "type A"
        expected = np.where(first | second, 1 if is_first else 2, 0)
        expected[soma & (is_first | ~(first | second))] = 2 if is_first else 1
        np.testing.assert_array_equal(sample.mask, expected)
        assert ShardReader(tmp_path / order[0] / "all").classes == order
        overlaps = [
            entry["detail"]
            for entry in json.loads((tmp_path / order[0] / "audit.json").read_text())["defects"]
            if entry["kind"] == "overlap"
        ]
        assert overlaps[0].startswith(f"{np.count_nonzero(soma & (first | second))} pixels of cells of several classes")
        assert sample.instances is None


@pytest.mark.parametrize("categories", [(1, 2), (2, 1)])
def test_one_contour_of_two_classes_is_of_the_one_named_last_whatever_the_order_in_the_file(tmp_path, categories):
    write_tiff(tmp_path / "images" / "a.tif", draw_image(1))
    labels = [
        annotation(number, 1, square(2, 2, 12), category_id=each)
        for number, each in enumerate((*categories, *categories))
    ]
    named = tuple({"id": number, "name": name, "supercategory": "cell"} for number, name in ((1, "live"), (2, "dead")))
    path = write_coco(tmp_path / "labels.json", [image_record(1, "a.tif")], labels, named)
    sample = converted(find_coco(path, tmp_path / "images"), tmp_path / "out", Labelling(("live", "dead")))
    assert set(np.unique(sample.mask)) == {0, 2}
    assert sample.metadata["num_cells"] == 1


def test_ignored_categories_lie_below_cells(source, tmp_path):
    found, (first, second, soma, blurred) = source
    sample = converted(found, tmp_path / "out", Labelling(ignored=("blurred",)), None)
    # soma is a part of a cell by its name.
    np.testing.assert_array_equal(sample.mask, np.where(first | second, 1, np.where(blurred, IGNORE, 0)))
    assert sample.metadata["num_cells"] == 2
    reader = ShardReader(tmp_path / "out" / "all")
    assert (reader.classes, reader.has_ignore, reader.index["format_version"]) == ((), True, 2)
    chosen = converted(found, tmp_path / "chosen", Labelling(ignored=("blurred",)), ("soma",))
    np.testing.assert_array_equal(chosen.mask, np.where(soma, 1, np.where(blurred, IGNORE, 0)))


def test_crowds_are_ignored_if_asked(source, tmp_path):
    found, (first, second, *_) = source
    sample = converted(found, tmp_path / "out", Labelling(ignores_crowds=True), ("type A",))
    np.testing.assert_array_equal(sample.mask, np.where(first, 1, np.where(second, IGNORE, 0)))


def test_each_cell_has_a_number_and_the_smaller_one_lies_above(source, tmp_path):
    found, (first, second, _, _) = source
    sample = converted(found, tmp_path / "out", Labelling(instances=True), ("type A",))
    assert (first & second).any()
    np.testing.assert_array_equal(sample.instances, np.where(second, 2, np.where(first, 1, 0)))
    np.testing.assert_array_equal(sample.mask, first | second)


def test_a_cell_that_others_cover_is_said(tmp_path):
    write_tiff(tmp_path / "images" / "a.tif", draw_image(1))
    shapes = [square(2, 2, 12), square(2, 2, 4), square(6, 2, 8), square(2, 6, 12), square(2, 10, 12)]
    shapes += [square(20, 20, 5)]
    labels = [annotation(number, 1, shape) for number, shape in enumerate(shapes)]
    path = write_coco(tmp_path / "labels.json", [image_record(1, "a.tif")], labels)
    sample = converted(find_coco(path, tmp_path / "images"), tmp_path / "out", Labelling(instances=True))
    masks = cells_apart(shapes)
    order = sorted(range(len(shapes)), key=lambda cell: (-masks[cell].sum(), cell))
    expected = np.zeros((HEIGHT, WIDTH), int)
    for cell in order:
        expected[masks[cell]] = cell + 1
    present = np.unique(expected)[1:]
    assert len(present) < len(shapes)
    for number, cell in enumerate(present, 1):
        np.testing.assert_array_equal(sample.instances == number, expected == cell)
    defects = json.loads((tmp_path / "out" / "audit.json").read_text())["defects"]
    assert f"{len(shapes) - len(present)} x cell that others cover whole" in defects[-1]["detail"]


def write_masks(folder: Path, masks: list[np.ndarray], **how: object) -> None:
    """An image, and its mask as PNG by Pillow, for each."""
    (folder / "masks").mkdir(parents=True)
    for number, mask in enumerate(masks):
        write_tiff(folder / "images" / f"{number}.tif", draw_image(number, *mask.shape[::-1]))
        picture = Image.fromarray(mask)
        if how.get("palette"):
            picture = picture.convert("P")
            picture.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
            picture.save(folder / "masks" / f"{number}.png", bits=how["palette"])
            continue
        picture.save(folder / "masks" / f"{number}.png")


def from_folder(folder: Path, labelling: Labelling) -> dict[str, Sample]:
    out = folder / "out"
    convert_folder(folder / "images", folder / "masks", out, "d", console=QUIET, labelling=labelling)
    return {sample.metadata["file_name"]: sample for sample in read(out / "all")}


def draw_values(values: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    """Blocks of these values that touch, on 0."""
    mask = np.zeros((30, 40), dtype)
    for number, value in enumerate(values):
        mask[4 + number : 16 + number, 3 + 5 * number : 9 + 5 * number] = value
    mask[22:26, 3:8] = values[0]  # a second region
    return mask


@pytest.mark.parametrize("bits", [None, 2, 4, 8])
def test_values_of_masks_become_classes(tmp_path, bits):
    """Also of palettes of few bits, as Pillow writes them: 1 and 2 stay that."""
    mask = draw_values((1, 3, 2))
    write_masks(tmp_path, [mask], palette=bits)
    names, values = parse_values(("3=live", "1=dead"), 2)
    sample = from_folder(tmp_path, Labelling(names, True, values=values, ignored_value=2))["0.tif"]
    np.testing.assert_array_equal(sample.mask, np.select([mask == 3, mask == 1, mask == 2], [1, 2, IGNORE], 0))
    eight = np.ones((3, 3))
    live, num_live = ndimage.label(mask == 3, eight)
    dead, num_dead = ndimage.label(mask == 1, eight)
    np.testing.assert_array_equal(sample.instances, live + np.where(dead > 0, dead + num_live, 0))
    assert sample.metadata["num_cells"] == num_live + num_dead == 3


def test_a_value_that_no_class_has_leaves_the_image_out(tmp_path):
    write_masks(tmp_path, [draw_values((1, 2)), draw_values((1, 2, 7))])
    found = from_folder(tmp_path, Labelling(("a", "b"), values=(1, 2)))
    assert list(found) == ["0.tif"]
    (defect,) = json.loads((tmp_path / "out" / "audit.json").read_text())["defects"]
    assert (defect["where"], defect["left_out"]) == ("1.tif", True)
    assert "value 7, which is no class; name it in --classes" in defect["detail"]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_numbers_of_label_images_stay(tmp_path, dtype):
    factor = {np.uint8: 1, np.uint16: 300, np.int32: 70_000}[dtype]
    mask = draw_values((3, 1, 2), np.int32) * factor
    (tmp_path / "masks").mkdir()
    write_tiff(tmp_path / "images" / "0.tif", draw_image(0, 40, 30))
    write_tiff(tmp_path / "masks" / "0.tif", mask.astype(dtype))
    sample = from_folder(tmp_path, Labelling(instances=True))["0.tif"]
    # Numbers that 16 bits do not hold are counted again, in their order.
    np.testing.assert_array_equal(sample.instances, mask if factor <= 300 else mask // factor)
    assert sample.metadata["num_cells"] == 3


def test_regions_of_a_mask_of_one_value_are_numbered(tmp_path):
    mask = (draw_values((1, 1, 1)) > 0).astype(np.uint8) * 255
    write_masks(tmp_path, [mask])
    sample = from_folder(tmp_path, Labelling(instances=True))["0.tif"]
    np.testing.assert_array_equal(sample.instances, ndimage.label(mask, np.ones((3, 3)))[0])


def test_255_is_ignored_only_if_said(tmp_path):
    mask = draw_values((1, 255))
    write_masks(tmp_path / "said", [mask])
    write_masks(tmp_path / "not", [mask])
    said = from_folder(tmp_path / "said", Labelling(ignored_value=255))["0.tif"]
    np.testing.assert_array_equal(said.mask, mask)
    assert said.metadata["num_cells"] == ndimage.label(mask == 1)[1]
    np.testing.assert_array_equal(from_folder(tmp_path / "not", Labelling())["0.tif"].mask, mask > 0)


COCO_FLAGS = ("--annotations", "a.json", "--images", "i", "--out", "o")
FOLDER_FLAGS = ("--images", "i", "--masks", "m", "--out", "o")
WRONG = {
    "name two classes or more": (CocoConfig, (*COCO_FLAGS, "--classes", "a")),
    "name each class once": (CocoConfig, (*COCO_FLAGS, "--classes", "Type A", "type_a")),
    "give one of them": (CocoConfig, (*COCO_FLAGS, "--classes", "a", "b", "--categories", "a")),
    "is taken as a cell, too": (CocoConfig, (*COCO_FLAGS, "--classes", "a", "b", "--ignore", "B")),
    "1 to 60 printable": (LivecellConfig, ("--source", "s", "--out", "o", "--classes", "a", "b" * 61)),
    "give VALUE=NAME": (FolderConfig, (*FOLDER_FLAGS, "--classes", "live", "2=dead")),
    "the value 1 stands for two": (FolderConfig, (*FOLDER_FLAGS, "--classes", "1=live", "1=dead")),
    "the value 2 stands for two": (FolderConfig, (*FOLDER_FLAGS, "--classes", "1=a", "2=b", "--ignore-value", "2")),
    "0 is background": (FolderConfig, (*FOLDER_FLAGS, "--ignore-value", "0")),
}


@pytest.mark.parametrize("words", WRONG)
def test_flags_that_cannot_be_are_one_line(words):
    config, flags = WRONG[words]
    with pytest.raises(InputError, match=words) as caught:
        parse(config, flags, "convert", ()).validate()
    assert len(str(caught.value)) <= 500


def test_a_class_that_the_file_does_not_have_is_refused(source, tmp_path):
    with pytest.raises(InputError, match=r"--classes nucleus: not in .*its categories are blurred, soma, type A"):
        converted(source[0], tmp_path / "out", Labelling(("type A", "nucleus")))


def test_t98g_through_label_images_is_equal_pixel_for_pixel(tmp_path):
    """CVAT's export to shards, to images with label PNGs, and back: every mask and every cell's number."""
    convert(
        find_glioma_c6(real_data("t98g")), tmp_path / "cvat", "d", console=QUIET, labelling=Labelling(instances=True)
    )
    samples = read(tmp_path / "cvat" / "all")
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for sample in samples:
        cv2.imwrite(str(tmp_path / "images" / f"{sample.key}.png"), sample.image)
        cv2.imwrite(str(tmp_path / "masks" / f"{sample.key}.png"), sample.instances)
    back = {Path(name).stem: sample for name, sample in from_folder(tmp_path, Labelling(instances=True)).items()}
    assert len(back) == len(samples) == 30
    for sample in samples:
        found = back[sample.key]
        np.testing.assert_array_equal(found.image, sample.image)
        np.testing.assert_array_equal(found.mask, sample.mask)
        np.testing.assert_array_equal(found.instances, sample.instances)


def test_livecell_has_a_number_for_each_cell(tmp_path):
    convert(
        find_livecell(real_data("livecell_1pct")),
        tmp_path,
        "livecell",
        console=QUIET,
        labelling=Labelling(instances=True),
    )
    for split in ("val", "test"):
        for sample in read(tmp_path / split):
            assert sample.instances.max() == sample.metadata["num_cells"]
            np.testing.assert_array_equal(sample.instances > 0, sample.mask > 0)


def test_the_commands_of_the_page_do_what_it_says(tmp_path, monkeypatch):
    """docs/own_images.md: two classes from values and from categories, and cells by their numbers."""
    page = (REPOSITORY / "docs" / "own_images.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    commands = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    assert len(commands) == 3
    monkeypatch.chdir(tmp_path)
    mask = draw_values((1, 2, 255))
    write_masks(tmp_path / "data" / "classes", [mask])
    write_masks(tmp_path / "data" / "cells", [draw_values((5, 7, 300), np.uint16)])
    categories = tuple({"id": id_, "name": name} for id_, name in enumerate(("blurred", "dead", "live"), 1))
    labels = [annotation(1, 1, square(3, 3, 9), category_id=3), annotation(2, 1, square(8, 8, 9), category_id=2)]
    labels.append(annotation(3, 1, square(0, 0, 20), category_id=1))
    write_coco(tmp_path / "data" / "labels.json", [image_record(1, "0.tif", 40, 30)], labels, categories)
    for line in commands:
        program, *words = shlex.split(line)
        assert program == "glioma-dist"
        run(words)
    (by_value,), (by_category,), (cells,) = (
        read(tmp_path / "shards" / name / "all") for name in ("classes", "classes_coco", "cells")
    )
    np.testing.assert_array_equal(by_value.mask, mask)
    assert by_category.mask[10, 10] == 2  # in both: dead is named last
    assert set(np.unique(by_category.mask)) == {0, 1, 2, IGNORE}
    np.testing.assert_array_equal(np.unique(cells.instances), [0, 5, 7, 300])
    assert ShardReader(tmp_path / "shards" / "classes_coco" / "all").classes == ("live", "dead")
