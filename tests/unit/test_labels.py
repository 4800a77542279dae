"""Masks of several classes, pixels that nobody labelled, and a number for each cell: in shards and in samples."""

import io
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from helpers import draw_labelled, draw_shards, write_shards
from PIL import Image

from glioma_dist.cli.program import run
from glioma_dist.data.mixture import JoinedShards
from glioma_dist.data.sample import IGNORE, Sample, cells_of, decode_classes, encode_image
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


def write_theirs(folder: Path, samples: list[Sample], ending: str = "labels.png") -> Path:
    """A tar as another tool writes it, without an index."""
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "0.tar"), encoder=False) as tar:
        for sample in samples:
            tar.write(
                {
                    "__key__": sample.key,
                    "input.png": encode_image(sample.image),
                    "target.png": png_of(sample.mask),
                    ending: png_of(sample.instances),
                }
            )
    return folder


def png_of(labels: np.ndarray) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(labels).save(packed, "png")
    return packed.getvalue()


THEIRS = ("--image", "input.png", "--mask", "target.png", "--instances", "labels.png", "--classes", *CLASSES)


def test_tars_of_others_are_indexed_with_their_labels(tmp_path, capsys):
    samples = [draw_labelled(number, **KINDS["all"]) for number in range(3)]
    folder = write_theirs(tmp_path / "theirs", samples)
    run(["shards", "index", str(folder), *THEIRS, "--ignore"])
    assert "labels: classes type A, soma; a number for each cell; ignored pixels" in capsys.readouterr().out
    reader = ShardReader(folder)
    for place, sample in enumerate(samples):
        found = reader.read(0, place)
        np.testing.assert_array_equal(found.mask, sample.mask)
        np.testing.assert_array_equal(found.instances, sample.instances)
    sheet = tmp_path / "sheet.png"
    run(["shards", "inspect", str(folder), "--sheet", str(sheet)])
    assert sheet.is_file()
    run(["shards", "verify", str(folder)])
    assert "all checksums match" in capsys.readouterr().out


def test_tars_with_other_values_are_refused_by_name(tmp_path):
    folder = write_theirs(tmp_path / "theirs", [draw_labelled(0, **KINDS["all"])])
    run(["shards", "index", str(folder), *THEIRS])
    with pytest.raises(InputError, match=r"cell-000.mask.png: has the value 255, and the index names 2 classes"):
        ShardReader(folder).read(0, 0)


def test_tars_without_the_named_instances_are_refused(tmp_path):
    folder = write_theirs(tmp_path / "theirs", [draw_labelled(0, **KINDS["all"])], "cells.png")
    with pytest.raises(InputError, match=r"sample cell-000 has no labels.png; each sample needs one"):
        run(["shards", "index", str(folder), *THEIRS])
    assert not (folder / "index.json").exists()


def test_verify_finds_instances_of_another_mask(tmp_path, capsys):
    sample = draw_labelled(0, **KINDS["all"])
    folder = write_theirs(tmp_path / "theirs", [replace(sample, instances=np.roll(sample.instances, 5, axis=1))])
    run(["shards", "index", str(folder), *THEIRS, "--ignore"])
    with pytest.raises(InputError, match="cells at different pixels"):
        run(["shards", "verify", str(folder)])


INDEXES = {
    "its has_instances is missing or null": lambda index: index.pop("has_instances"),
    "its has_ignore is 1, not true or false": lambda index: index.update(has_ignore=1),
    "its classes are 'x', not a list": lambda index: index.update(classes="x"),
    "its classes are 1 names": lambda index: index.update(classes=["x"]),
    "its classes are 255 names": lambda index: index.update(classes=[str(number) for number in range(255)]),
    "a class is 5, not a name": lambda index: index.update(classes=["x", 5]),
    "a class is 'xxx": lambda index: index.update(classes=["x", "x" * 61]),
    r"a class is 'a\x1b": lambda index: index.update(classes=["x", "a\x1b[2J"]),
    "names a class twice": lambda index: index.update(classes=["x", "x"]),
}


@pytest.mark.parametrize("words", INDEXES)
def test_what_is_wrong_with_an_index_is_said_in_one_line(tmp_path, words):
    _, folder = write(tmp_path / "train", **KINDS["all"])
    index = json.loads((folder / "index.json").read_text())
    INDEXES[words](index)
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError) as caught:
        ShardReader(folder)
    assert words in str(caught.value)
    assert len(str(caught.value)) <= 500


def test_a_table_without_instances_is_refused_where_the_index_promises_them(tmp_path):
    folder = draw_shards(tmp_path / "train", range(2))
    index = json.loads((folder / "index.json").read_text())
    index |= {"format_version": 2, "classes": [], "has_instances": True, "has_ignore": False}
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"cell-000: its instances.png is missing or null"):
        ShardReader(folder).read(0, 0)


def colours(mask: np.ndarray) -> bytes:
    return encode_image(np.stack([mask] * 3, axis=-1))


@pytest.mark.parametrize("make", [colours, lambda mask: encode_image(mask.astype(np.uint16)), lambda mask: b"no PNG"])
def test_masks_of_another_kind_are_one_line(make):
    with pytest.raises(InputError, match=r"here: (is no grey PNG of 8 bits|not a PNG file)"):
        decode_classes(make(draw_labelled(0, num_classes=2).mask), "here", 2, False)


def test_labels_of_a_palette_are_its_indices():
    mask = draw_labelled(0, num_classes=2, has_ignore=True).mask
    picture = Image.fromarray(mask).convert("P")
    picture.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
    packed = io.BytesIO()
    picture.save(packed, "png", bits=8)
    np.testing.assert_array_equal(decode_classes(packed.getvalue(), "here", 2, True), mask)


def test_the_fingerprint_tells_classes_apart(tmp_path):
    _, folder = write(tmp_path / "train", **KINDS["all"])
    before = ShardReader(folder).fingerprint
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"classes": ["soma", "type A"]}))
    assert ShardReader(folder).fingerprint != before
