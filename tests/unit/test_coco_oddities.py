"""COCO files that say odd things: what is converted can be read, and what is not is named in short lines."""

import io
import json
import os

import pytest
from helpers import draw_sample
from rich.console import Console

from glioma_dist.data.convert.conversion import convert
from glioma_dist.data.convert.sources import find_glioma_c6
from glioma_dist.data.sample import encode_image
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.errors import InputError

SQUARE = [5, 5, 15, 5, 15, 15, 5, 15]
IMAGE = {"id": 1, "file_name": "a.png", "width": 96, "height": 80}
LABEL = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [SQUARE]}


def export(folder, **changes):
    """A CVAT export of one image with one cell; `changes` are entries of its JSON."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "images" / "default").mkdir(parents=True)
    (folder / "images" / "default" / "a.png").write_bytes(encode_image(draw_sample(0).image))
    content = {"images": [IMAGE], "annotations": [LABEL], "categories": [{"id": 1, "name": "cell"}], **changes}
    (folder / "annotations" / "instances_default.json").write_text(json.dumps(content))
    return folder


def converted(tmp_path, **how) -> tuple[ShardReader, str]:
    """The shards, read again, and what stood on the screen."""
    screen = io.StringIO()
    convert(find_glioma_c6(tmp_path / "source"), tmp_path / "out", "drawn", console=Console(file=screen), **how)
    return ShardReader(tmp_path / "out" / "all"), screen.getvalue()


@pytest.mark.parametrize("name", ["x" * 50_000, "\ud800", " \n ", "a\nb"], ids=["long", "half", "blank", "two lines"])
def test_any_licence_gives_shards_that_can_be_read(tmp_path, name):
    export(tmp_path / "source", licenses=[{"name": name}])
    reader, _ = converted(tmp_path)
    assert 1 <= len(reader.index["licence"]) <= 1000
    assert reader.read(0, 0).metadata["licence"] == reader.index["licence"]


def test_records_of_images_may_name_themselves_by_image_id_too(tmp_path):
    export(tmp_path / "source", images=[{**IMAGE, "image_id": 1}])
    assert converted(tmp_path)[0].read(0, 0).mask.sum() == 100


@pytest.mark.parametrize("names", [("cell", "background"), ("background", "cell")])
def test_an_id_of_cells_and_of_something_else_is_refused(tmp_path, names):
    export(tmp_path / "source", categories=[{"id": 1, "name": name} for name in names])
    with pytest.raises(
        InputError, match=f"category id 1 names both cells and something else \\({names[0]} and {names[1]}\\)"
    ):
        converted(tmp_path)


def test_an_id_of_two_kinds_of_cells_is_taken(tmp_path):
    export(tmp_path / "source", categories=[{"id": 1, "name": "round cell"}, {"id": 1, "name": "flat cell"}])
    assert converted(tmp_path)[0].read(0, 0).mask.sum() == 100


def test_no_line_of_the_screen_is_as_long_as_the_names_in_the_file(tmp_path):
    more = [{"id": 2, "file_name": "x" * 5000 + ".png"}, {"id": 3, "file_name": "y/" * 2000 + ".png"}]
    source = export(tmp_path / "source", categories=[{"id": 1, "name": "c" * 5000}], images=[IMAGE, *more])
    (source / ("z." + "w" * 240)).write_text("no image")
    _, screen = converted(tmp_path)
    assert max(map(len, screen.splitlines())) <= 500


def test_what_stands_in_place_of_an_image_is_named_truly(tmp_path):
    images = tmp_path / "source" / "images" / "default"
    export(tmp_path / "source", images=[IMAGE, {"id": 2, "file_name": "b.png"}])
    (images / "b.png").mkdir()
    assert "b.png: is a folder, not a file" in converted(tmp_path)[1].replace("\n", "")
    (images / "b.png").rmdir()
    os.symlink("b.png", images / "b.png")
    with pytest.raises(InputError, match="link that leads back to itself"):
        converted(tmp_path)
