"""Which labels are cells: chosen by name, printed, and never silently a background; masks that cannot be right."""

import json
import os

import numpy as np
import pytest
from data_helpers import CELL, HEIGHT, WIDTH, annotation, draw_image, image_record, square, write_coco, write_tiff
from test_convert import convert_quietly, defects, export, read_all

from glioma_dist.cli.arguments import parse
from glioma_dist.cli.convert import GLIOMA_C6
from glioma_dist.data.convert.cells import as_segmentation, draw_cells
from glioma_dist.data.convert.coco import load_coco
from glioma_dist.data.convert.labelling import Labelling
from glioma_dist.data.convert.sources import find_glioma_c6
from glioma_dist.errors import InputError

EVERYWHERE = [[0, 0, WIDTH, 0, WIDTH, HEIGHT, 0, HEIGHT]]


def labelled(root, labels: list[tuple[str, object]], names: list[str]) -> object:
    """An export of one image with labels of (category, segmentation), found as a source."""
    write_tiff(root / "images" / "default" / "a.tif", draw_image(1))
    categories = tuple({"id": number, "name": name} for number, name in enumerate(names))
    entries = [
        annotation(number, 1, segmentation, category_id=names.index(name) if name in names else 99)
        for number, (name, segmentation) in enumerate(labels)
    ]
    write_coco(root / "annotations" / "instances_default.json", [image_record(1, "a.tif")], entries, categories)
    return find_glioma_c6(root)


def coverage(out) -> float:
    (sample,) = read_all(out / "all").values()
    return float(sample.mask.mean())


CELL_SHARE = 81 / (WIDTH * HEIGHT)


NO_CELLS = ["background", " Background ", "BACKGROUND", "__background__", "bg", "ignore", "unlabeled", "Unlabeled"]


@pytest.mark.parametrize(
    "name", [*NO_CELLS, "unlabelled", "not a cell", "non-cell", "void", "debris", "soma", "scale_bar"]
)
def test_labels_that_are_no_cells_by_name_are_left_out_and_told(tmp_path, name):
    source = labelled(tmp_path / "source", [("cell", square(2, 2, 9)), (name, EVERYWHERE)], [name, "cell"])
    screen = convert_quietly(source, tmp_path / "out")
    assert coverage(tmp_path / "out") == pytest.approx(CELL_SHARE)
    assert "all: taken as cells: cell (1 label)" in screen
    assert f"all: left out: {name.strip()} (1 label, " in screen
    told = json.loads((tmp_path / "out" / "audit.json").read_text())["labels"]["all"]["categories"]
    assert {entry["name"]: (entry["labels"], entry["taken"]) for entry in told} == {
        "cell": (1, True),
        name.strip(): (1, False),
    }


@pytest.mark.parametrize("name", ["cell", "Type A", "dead cell", "backgrounded", "MCF7", "细胞", "neuron", "shsy5y"])
def test_other_names_are_cells(tmp_path, name):
    convert_quietly(labelled(tmp_path / "source", [(name, square(2, 2, 9))], [name]), tmp_path / "out")
    assert coverage(tmp_path / "out") == pytest.approx(CELL_SHARE)


def test_categories_are_chosen_by_name(tmp_path):
    labels = [("A", square(2, 2, 9)), ("soma", square(20, 20, 4)), ("cell", square(30, 2, 5))]
    source = labelled(tmp_path / "source", labels, ["A", "soma", "cell"])
    screen = convert_quietly(source, tmp_path / "out", categories=["SOMA", "a"])
    assert coverage(tmp_path / "out") == pytest.approx((81 + 16) / (WIDTH * HEIGHT))
    assert "left out: cell (1 label, not chosen)" in screen
    with pytest.raises(InputError, match=r"--categories nucleus: not in .*its categories are A, cell, soma"):
        convert_quietly(source, tmp_path / "other", categories=["A", "nucleus"])
    assert not list(tmp_path.glob("other/**/*.tar"))


def test_the_command_takes_categories(tmp_path):
    labelled(tmp_path / "source", [("A", square(2, 2, 9)), ("B", square(20, 20, 4))], ["A", "B"])
    flags = ["--source", str(tmp_path / "source"), "--out", str(tmp_path / "out"), "--categories", "B"]
    GLIOMA_C6.run(parse(GLIOMA_C6.config, flags))
    assert coverage(tmp_path / "out") == pytest.approx(16 / (WIDTH * HEIGHT))


def test_a_data_set_without_a_cell_says_which_categories_there_are(tmp_path):
    source = labelled(tmp_path / "source", [("background", EVERYWHERE)], ["background"])
    with pytest.raises(InputError, match=r"no sample could be converted.*--categories can choose them: background"):
        convert_quietly(source, tmp_path / "out")
    convert_quietly(source, tmp_path / "out", categories=["background"])
    assert ("suspicious-mask", "all/a.tif", False) in defects(tmp_path / "out")


def test_labels_of_no_category_are_cells_and_told(tmp_path):
    screen = convert_quietly(labelled(tmp_path / "source", [("?", square(2, 2, 9))], ["cell"]), tmp_path / "out")
    assert defects(tmp_path / "out") == [
        ("unknown-category", "instances_default.json: category id 99", False),
    ]
    assert "(id 99, not among the file's categories) (1 label)" in screen


def test_labels_that_say_iscrowd_are_counted(tmp_path):
    runs = {"size": [HEIGHT, WIDTH], "counts": [5, 10, HEIGHT * WIDTH - 15]}
    images = [image_record(1, "a.tif")]
    export(tmp_path / "source", images, [annotation(1, 1, runs, iscrowd=1), annotation(2, 1, square(9, 9, 9))])
    assert "1 label taken with iscrowd 1" in convert_quietly(find_glioma_c6(tmp_path / "source"), tmp_path / "out")


FILLED = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
HALVES = [
    [[0, 0, WIDTH / 2, 0, WIDTH / 2, HEIGHT, 0, HEIGHT]],
    [[WIDTH / 2, 0, WIDTH, 0, WIDTH, HEIGHT, WIDTH / 2, HEIGHT]],
]
BEYOND = [[[x, y, x + 60, y, x + 60, y + 5]] for x, y in ((5, 5), (9, 9), (2, 20), (3, 30))]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([EVERYWHERE], "more than 95% of the image"),
        ([square(5, 5, 4), EVERYWHERE, square(20, 20, 5)], "more than 95% of the image"),
        ([FILLED], "more than 95% of the image"),
        (HALVES, "covers 100.0% of the image"),
        (BEYOND, "4 of 4 cells reach beyond the edge"),
        ([*BEYOND, square(5, 5, 4)], "4 of 5 cells reach beyond the edge"),
        ([square(5, 5, 4)], None),
        ([square(2, 2, WIDTH * 0.6)], None),
        ([square(WIDTH - 9, 2, 9), square(0, 0, 5)], None),
        ([square(-1, -1, 9), *[square(x, 9, 5) for x in range(9, 30, 6)]], None),
    ],
)
def test_masks_that_cannot_be_right_as_a_whole_are_told(cells, words):
    drawn = draw_cells([as_segmentation(cell) for cell in cells], HEIGHT, WIDTH)
    told = [finding for finding in drawn.findings if finding.kind == "suspicious-mask"]
    assert len(told) == (words is not None)
    assert all(words in finding.detail and not finding.spoils for finding in told)


def test_a_bom_is_read_and_what_is_no_plain_json_is_one_line(tmp_path):
    path = tmp_path / "a.json"
    write_coco(path, [image_record(1, "a.tif")], [annotation(1, 1, square(1, 1, 5))])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_coco(path).images[0].cells) == 1
    cases = {
        "pipe": lambda path: os.mkfifo(path),
        "zeros": lambda path: path.symlink_to("/dev/zero"),
        "folder": lambda path: path.mkdir(),
        "deep": lambda path: path.write_text('{"images": ' + '{"a": ' * 200_000),
        "latin": lambda path: path.write_bytes(b'{"images": "\xf6"}'),
        "long number": lambda path: path.write_text('{"images": ' + "1" * 10_000 + "}"),
        "sparse": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 2**40),
    }
    for name, make in cases.items():
        other = tmp_path / f"{name}.json"
        make(other)
        with pytest.raises(InputError, match=f"{name}.json: ") as caught:
            load_coco(other)
        assert "\n" not in str(caught.value)


def test_the_same_category_twice_is_one_line(tmp_path):
    write_coco(
        tmp_path / "a.json",
        [image_record(1, "a.tif")],
        [annotation(n, 1, square(n, 1, 5), category_id=n) for n in range(3)],
        (CELL, {**CELL, "id": 2}, {**CELL, "id": 0}),
    )
    assert load_coco(tmp_path / "a.json").categories == [{"name": "cell", "labels": 3, "taken": True, "why": ""}]


def test_masks_of_a_background_category_are_those_without_it():
    cells = [as_segmentation(square(2, 2, 9))]
    np.testing.assert_array_equal(draw_cells(cells, HEIGHT, WIDTH).mask, draw_cells(cells * 2, HEIGHT, WIDTH).mask)


def test_an_id_of_two_classes_is_refused(tmp_path):
    """The first of the two names would take the labels of both."""
    records = (CELL, {**CELL, "name": "Type A"}, {"id": 2, "name": "Type B"})
    path = write_coco(tmp_path / "a.json", [image_record(1, "a.tif")], [annotation(1, 1, square(2, 2, 5))], records)
    assert [entry["taken"] for entry in load_coco(path).categories] == [True, True]
    with pytest.raises(InputError, match=r"a\.json: the category id 1 names two classes \(cell and Type A\)"):
        load_coco(path, labelling=Labelling(("cell", "type a", "Type B")))
