"""`convert coco` makes of a COCO file what the converter of its layout makes of it."""

import json

import numpy as np
import pytest
from helpers import command
from test_convert import clean_export

from glioma_dist.data.shards.reader import ShardReader

LABELS = "annotations/instances_default.json"


def samples(folder) -> dict:
    reader = ShardReader(folder)
    places = [(shard, place) for shard, count in enumerate(reader.shard_sizes) for place in range(count)]
    return {sample.key: sample for sample in (reader.read(*place) for place in places)}


@pytest.fixture
def export(tmp_path):
    return clean_export(tmp_path / "export", 6)


def coco_flags(export) -> tuple:
    return ("--annotations", export / LABELS, "--images", export / "images")


@pytest.mark.parametrize("split", [(), ("--split-seed", 3, "--split-counts", 3, 2, 1)])
def test_the_shards_are_those_of_the_export(export, tmp_path, split):
    ended = command("convert coco", *coco_flags(export), "--out", tmp_path / "a" / "plate", *split)
    assert ended.exit_code == 0, ended.stderr
    ended = command("convert glioma-c6", "--source", export, "--out", tmp_path / "b" / "plate", *split)
    assert ended.exit_code == 0, ended.stderr
    names = ("train", "val", "test") if split else ("all",)
    for name in names:
        ours, theirs = samples(tmp_path / "a" / "plate" / name), samples(tmp_path / "b" / "plate" / name)
        assert ours.keys() == theirs.keys()
        for key, sample in ours.items():
            np.testing.assert_array_equal(sample.image, theirs[key].image)
            np.testing.assert_array_equal(sample.mask, theirs[key].mask)
            assert sample.mask.any()


def test_the_split_and_the_licence_are_as_asked_for(export, tmp_path):
    flags = ("--out", tmp_path / "plate", "--split", "test", "--licence", "CC0")
    ended = command("convert coco", *coco_flags(export), *flags)
    assert ended.exit_code == 0, ended.stderr
    index = ShardReader(tmp_path / "plate" / "test").index
    assert (index["dataset"], index["split"], index["licence"]) == ("plate", "test", "CC0")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda export: (export / "annotations" / "instances_default.json").write_text("[1]"),
            "instances_default.json",
        ),
        (lambda export: [path.unlink() for path in (export / "images").rglob("*.*")], "no TIFF or PNG here"),
        (
            lambda export: (export / LABELS).write_text(
                json.dumps({"images": [], "annotations": [], "categories": []})
            ),
            "no sample could be converted",
        ),
    ],
)
def test_what_cannot_be_converted_is_one_line(export, tmp_path, change, words):
    change(export)
    ended = command("convert coco", *coco_flags(export), "--out", tmp_path / "plate")
    assert ended.exit_code == 2
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert words in line
