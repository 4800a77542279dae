"""Masks of several classes, pixels that nobody labelled, and a number for each cell: in shards and in samples."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import webdataset
from helpers import draw_labelled, draw_shards, write_shards
from PIL import Image

from glioma_dist.data.mixture import JoinedShards
from glioma_dist.data.sample import IGNORE, Sample, cells_of
from glioma_dist.data.shards.reader import ShardReader, ShardWriter
from glioma_dist.errors import InputError

CLASSES = ("type A", "soma")
KINDS = {
    "classes": {"num_classes": 2},
    "ignored": {"has_ignore": True},
    "instances": {"has_instances": True},
    "all": {"num_classes": 2, "has_ignore": True, "has_instances": True},
}


def write(folder: Path, **how: object) -> tuple[list[Sample], Path]:
    """Shards of five samples of one of KINDS."""
    samples = [draw_labelled(number, **how) for number in range(5)]
    return samples, write_shards(folder, samples, 2, CLASSES if how.get("num_classes") == 2 else ())


@pytest.mark.parametrize("kind", KINDS)
def test_labels_come_back(tmp_path, kind):
    samples, folder = write(tmp_path / "train", **KINDS[kind])
    reader = pickle.loads(pickle.dumps(ShardReader(folder)))
    index = json.loads((folder / "index.json").read_text())
    assert index["format_version"] == 2
    how = {"num_classes": 1, "has_ignore": False, "has_instances": False} | KINDS[kind]
    assert (len(reader.classes) or 1, reader.has_ignore, reader.has_instances) == tuple(how.values())
    for number, sample in enumerate(samples):
        found = reader.read(number // 2, number % 2)
        np.testing.assert_array_equal(found.mask, sample.mask)
        assert found.mask.dtype == np.uint8
        assert reader.read(number // 2, number % 2, with_instances=False).instances is None
        if not how["has_instances"]:
            assert found.instances is None
            continue
        np.testing.assert_array_equal(found.instances, sample.instances)
        assert found.instances.dtype == np.uint16


def test_masks_of_one_class_are_written_as_before(tmp_path):
    """A reader of format version 1 reads them, whatever the writer could have written."""
    index = json.loads((draw_shards(tmp_path / "train", range(3)) / "index.json").read_text())
    assert index["format_version"] == 1
    assert not {"classes", "has_instances", "has_ignore"} & set(index)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_webdataset_alone_reads_them(tmp_path, kind):
    samples, folder = write(tmp_path / "train", **KINDS[kind])
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    assert len(list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))) == len(samples)
    # "pil" makes 8 bits of colour of all; numbers of cells are decoded as they are.
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil", only=["png", "mask.png", "json"]))
    assert [each["__key__"] for each in found] == [sample.key for sample in samples]
    for theirs, ours in zip(found, samples, strict=True):
        mask = np.asarray(theirs["mask.png"].convert("L"))
        # Pillow shows the 1 of one bit a pixel as 255.
        np.testing.assert_array_equal(mask if ours.mask.max() > 1 else mask > 0, ours.mask)
        if ours.instances is not None:
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(theirs["instances.png"]))), ours.instances)


WRONG = {
    "give the names of all classes": lambda sample: Sample("k", sample.image, sample.mask * 2, {}, sample.instances),
    "has no instances": lambda sample: Sample("k", sample.image, sample.mask),
    "not numbered from 1 to 65535": lambda sample: Sample(
        "k", sample.image, sample.mask, {}, sample.instances.astype(np.int32) * 2**14
    ),
    "cells at different pixels": lambda sample: Sample("k", sample.image, 1 - sample.mask, {}, sample.instances),
    "its instances 48x80": lambda sample: Sample("k", sample.image, sample.mask, {}, sample.instances[:, ::2]),
}


@pytest.mark.parametrize("words", WRONG)
def test_labels_that_cannot_be_are_not_written(tmp_path, words):
    wrong = WRONG[words](draw_labelled(0, has_instances=True))
    with (
        pytest.raises(InputError, match=words),
        ShardWriter(tmp_path / "train", "d", "s", "l", has_instances=True) as writer,
    ):
        writer.write(wrong)
    assert not (tmp_path / "train").exists()


def test_folders_of_other_classes_are_not_joined(tmp_path):
    readers = [ShardReader(write(tmp_path / kind, **KINDS[kind])[1]) for kind in ("classes", "all", "ignored")]
    joined = JoinedShards(readers[:2])
    assert (joined.classes, joined.has_instances, joined.has_ignore) == (CLASSES, False, True)
    assert joined.read(4, 1).instances is not None
    with pytest.raises(InputError, match=r"type A, soma and .*ignored has one class; convert both"):
        JoinedShards(readers)


def test_cells_of_leaves_out_what_nobody_labelled():
    np.testing.assert_array_equal(cells_of(np.array([[0, 1, 2, IGNORE]], np.uint8)), [[False, True, True, False]])
