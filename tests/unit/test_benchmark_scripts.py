"""Scripts of benchmarks/ that take folders refuse in one line what they cannot use."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import load_benchmark

from glioma_dist.errors import InputError


def images_of(folder: Path, shapes: list[tuple[int, int]]) -> str:
    folder.mkdir()
    for number, shape in enumerate(shapes):
        cv2.imwrite(str(folder / f"{number}.png"), np.zeros(shape, np.uint8))
    return str(folder)


@pytest.mark.parametrize(
    ("script", "given", "message"),
    [
        ("near_duplicates", (), "no folder was given: give folders with two images"),
        ("near_duplicates", ("nowhere",), "nowhere: give folders with two images"),
        ("near_duplicates", ("one",), "one: give folders with two images"),
        ("near_duplicates", ("broken",), "0.png: is no image that OpenCV reads"),
        ("tile_overlap", (), "give one folder"),
        ("tile_overlap", ("one", "one"), "give one folder"),
        ("tile_overlap", ("one",), "one: give a folder with 12 or more PNG images of one size"),
        ("tile_overlap", ("uneven",), "uneven: give a folder with 12 or more PNG images of one size"),
        ("tile_overlap", ("broken",), "broken: give a folder with 12 or more PNG images of one size"),
        ("tile_overlap", ("small",), "small: give a folder with 12 or more PNG images of one size, 864x972 or larger"),
        ("touching_cells", (), "give two, as in"),
        ("touching_cells", ("one", "nowhere"), "nowhere"),
        ("touching_cells", ("one", "SHARDS"), "has no number for each cell"),
    ],
)
def test_what_cannot_be_used_is_one_line(script, given, message, shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images_of(tmp_path / "one", [(8, 8)])
    images_of(tmp_path / "small", [(8, 8)] * 12)
    images_of(tmp_path / "uneven", [(8, 8)] * 11 + [(9, 9)])
    (Path(images_of(tmp_path / "broken", [(8, 8)] * 12)) / "0.png").write_bytes(b"x")
    for module in load_benchmark(script):
        with pytest.raises(InputError, match=message):
            module.main(*(str(shards / "val") if each == "SHARDS" else each for each in given))
