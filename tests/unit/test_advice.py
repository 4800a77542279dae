"""Advice that a message gives is followed here: it must lead to shards. And data without a cell is told of."""

import re
import shlex
import shutil

import cv2
import pytest
from data_helpers import CELL, annotation, image_record, square, write_coco, write_livecell, write_tiff
from data_helpers import draw_image as draw_picture
from helpers import command, draw_sample, draw_shards, save_state, tiny_config, write_shards

from glioma_dist.cli import program
from glioma_dist.cli.inputs import check_shards
from glioma_dist.data.advice import how_to_make_shards
from glioma_dist.data.background import MOST_SAMPLES, check_cells
from glioma_dist.data.images.decoding import PICTURE_SUFFIXES
from glioma_dist.data.images.microscope import MICROSCOPE_SUFFIXES
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.unlisted import describe_unlisted
from glioma_dist.errors import InputError
from glioma_dist.model.unet import build_model
from glioma_dist.training.state import TrainState


def refusal(folder) -> str:
    with pytest.raises(InputError) as error:
        ShardReader(folder)
    line = str(error.value)
    assert len(line) <= 500
    assert "\n" not in line
    return line


def follow(line: str, tmp_path, **places: str) -> list[ShardReader]:
    """Run the command that a message names; the shards that it makes."""
    words = shlex.split(re.search(r"glioma-dist (convert [^;]*)", line)[1])
    words = [places.get(word, word) for word in words]
    ended = command(" ".join(words[:2]), *[word.replace("shards/", f"{tmp_path}/made/") for word in words[2:]])
    assert ended.exit_code == 0, ended.stderr
    return [ShardReader(index.parent) for index in (tmp_path / "made").rglob("index.json")]


def write_cvat_export(folder) -> None:
    """What CVAT writes for a task of one subset."""
    (folder / "images" / "default").mkdir(parents=True)
    for number in range(2):
        write_tiff(folder / "images" / "default" / f"{number}.tif", draw_picture(number))
    records = [image_record(number + 1, f"{number}.tif") for number in range(2)]
    cells = [annotation(number + 1, number + 1, square(4, 5, 9)) for number in range(2)]
    (folder / "annotations").mkdir()
    write_coco(folder / "annotations" / "instances_default.json", records, cells, (CELL,))


def write_masks(folder, numbers) -> None:
    folder.mkdir()
    for number in numbers:
        cv2.imwrite(str(folder / f"{number}.png"), draw_sample(number).mask * 255)


def test_a_folder_of_images_says_what_is_missing_and_the_way_leads_to_shards(tmp_path):
    plate = tmp_path / "plate"
    plate.mkdir()
    for number in range(3):
        cv2.imwrite(str(plate / f"{number}.png"), draw_sample(number).image)
    line = refusal(plate)
    assert "there are 3 images, and shards need masks of their cells" in line
    assert "LIVECell" not in line
    write_masks(tmp_path / "drawn", range(3))
    made = follow(line, tmp_path, MASKS=str(tmp_path / "drawn"))
    assert [len(reader) for reader in made] == [1, 1, 1]


def test_each_command_says_of_itself_that_it_needs_masks(tmp_path):
    plate = tmp_path / "plate"
    plate.mkdir()
    cv2.imwrite(str(plate / "0.png"), draw_sample(0).image)
    given = {
        "train --data.train": "training needs",
        f"evaluate --checkpoint {tmp_path} --data": "evaluation needs",
        "shards inspect": "shards need",
    }
    for typed, words in given.items():
        with pytest.raises(InputError, match=rf"there is 1 image, and {words} masks of their cells"):
            program.run([*typed.split(), str(plate)])
    with pytest.raises(InputError, match="validation needs masks"):
        check_shards("--data.val", plate, "validation")


@pytest.mark.parametrize("names", [("images", "masks"), ("raw", "labels"), ("img", "gt")])
def test_folders_of_images_and_masks_name_the_whole_command(tmp_path, names):
    plate = tmp_path / "my plate"
    (plate / names[0]).mkdir(parents=True)
    for number in range(4):
        cv2.imwrite(str(plate / names[0] / f"{number}.png"), draw_sample(number).image)
    write_masks(plate / names[1], range(4))
    made = follow(refusal(plate), tmp_path)
    assert sum(map(len, made)) == 4


@pytest.mark.parametrize("kind", ["LIVECell", "CVAT"])
def test_a_data_set_that_is_not_converted_names_its_converter(tmp_path, kind):
    folder = tmp_path / "my data"
    if kind == "CVAT":
        write_cvat_export(folder)
    else:
        write_livecell(folder, {"train": 2})
    made = follow(refusal(folder), tmp_path)
    assert sum(map(len, made)) == 2


def test_images_that_are_not_read_are_to_be_saved_first(tmp_path):
    for name in ("a.bmp", "b.vsi", "c.BMP"):
        (tmp_path / name).touch()
    line = refusal(tmp_path)
    assert "3 images (.bmp, .vsi) of kinds that are not read: save them as TIFF or PNG" in line
    assert "convert folder" in line


@pytest.mark.parametrize("suffix", [*PICTURE_SUFFIXES, *MICROSCOPE_SUFFIXES])
def test_images_of_every_kind_that_is_read_are_to_be_converted_as_they_are(tmp_path, suffix):
    (tmp_path / f"a{suffix}").touch()
    assert "glioma-dist convert folder --images" in refusal(tmp_path)


def test_tars_without_an_index_name_the_command_that_makes_one(tmp_path):
    draw_shards(tmp_path / "tars", range(3))
    for path in (tmp_path / "tars").glob("*.json"):
        path.unlink()
    line = refusal(tmp_path / "tars")
    words = shlex.split(re.search(r"glioma-dist (shards .*)", line)[1])
    assert command(" ".join(words[:2]), *words[2:]).exit_code == 0
    assert len(ShardReader(tmp_path / "tars")) == 3


def test_an_empty_folder_names_the_converters(tmp_path):
    for name in ("convert folder", "convert livecell", "convert glioma-c6", "convert coco"):
        assert name in how_to_make_shards(tmp_path)


def without_cells(folder, count: int, with_cells: tuple[int, ...] = ()):
    samples = [draw_sample(number) for number in range(count)]
    for number, sample in enumerate(samples):
        if number not in with_cells:
            sample.mask[:] = 0
    return ShardReader(write_shards(folder, samples, samples_per_shard=7))


def test_training_data_without_a_cell_is_refused_and_others_are_told_of(tmp_path):
    empty = without_cells(tmp_path / "empty", 9)
    with pytest.raises(
        InputError, match=r"--data\.train .*empty: no mask of 9 samples has a cell, so there is nothing"
    ):
        check_cells([empty], "--data.train", is_needed=True)
    assert "no mask of 9 samples has a cell; glioma-dist shards inspect" in check_cells([empty], "--data.val", False)
    last = without_cells(tmp_path / "last", 9, with_cells=(8,))
    assert check_cells([last], "--data.train", is_needed=True) is None
    # One set of background among others teaches what is no cell.
    assert check_cells([empty, last], "--data.train", is_needed=True) is None
    large = without_cells(tmp_path / "large", MOST_SAMPLES + 10, with_cells=(7,))
    assert f"no mask of {MOST_SAMPLES} samples of {MOST_SAMPLES + 10}" in check_cells([large], "--data.train", True)


def test_every_place_that_is_looked_at_is_another_one(tmp_path, monkeypatch):
    reader, seen = without_cells(tmp_path / "x", 20), []
    plain = reader.read
    monkeypatch.setattr(reader, "read", lambda *place, **how: seen.append(place[:2]) or plain(*place, **how))
    check_cells([reader], "--data.val", is_needed=False)
    assert len(set(seen)) == len(seen) == 20


def test_files_beside_shards_that_no_index_lists_are_told_of(shards, tmp_path):
    folder = shutil.copytree(shards / "val", tmp_path / "val")
    reader = ShardReader(folder)
    assert describe_unlisted(reader) is None
    for name in ("00007.tar", "x.png", "y.png", "README.md", "audit.json", ".DS_Store"):
        (folder / name).touch()
    (folder / "more").mkdir()
    expected = f"{folder}: 4 entries that index.json does not list are not read (2 .png, 1 .tar, 1 folder)"
    assert describe_unlisted(reader) == expected


def test_evaluation_tells_of_what_no_sample_took(shards, tmp_path):
    folder = shutil.copytree(shards / "val", tmp_path / "val")
    (folder / "00007.tar").touch()
    config = tiny_config(shards, tmp_path / "run")
    save_state(tmp_path / "best", config, TrainState(step=1), build_model(config.model, 0)[0], None, {"lineage": []})
    ended = command("evaluate.py", "--checkpoint", tmp_path / "best", "--data", folder, "--workers", 0)
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert "1 entry that index.json does not list is not read (.tar)" in ended.stdout
