"""From data sets to shards: masks, defects, splits drawn, conversions killed and begun again."""

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from data_helpers import (
    HEIGHT,
    WIDTH,
    annotation,
    draw_image,
    expected_masks,
    image_record,
    real_data,
    square,
    write_coco,
    write_livecell,
    write_tiff,
)
from rich.console import Console

from glioma_dist.data.convert.cells import as_segmentation, draw_cells
from glioma_dist.data.convert.conversion import convert
from glioma_dist.data.convert.jobs import make_keys
from glioma_dist.data.convert.sources import find_coco, find_glioma_c6, find_livecell
from glioma_dist.data.sample import read_image
from glioma_dist.data.shards.index import KEY_PATTERN
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.errors import InputError
from glioma_dist.model.licences import non_commercial_licences

ROOT = Path(__file__).resolve().parents[2]
SQUARE = square(2, 2, 9)


def convert_quietly(source, out, **options) -> str:
    """Convert, and give back what would have been on the screen."""
    screen = io.StringIO()
    convert(source, out, "drawn", console=Console(file=screen, width=80), **options)
    return screen.getvalue()


def read_all(folder: Path) -> dict:
    reader = ShardReader(folder)
    samples = [reader.read(shard, place) for shard, size in enumerate(reader.shard_sizes) for place in range(size)]
    return {sample.key: sample for sample in samples}


def defects(out: Path) -> list[tuple[str, str, bool]]:
    found = json.loads((out / "audit.json").read_text())["defects"]
    return [(defect["kind"], defect["where"], defect["left_out"]) for defect in found]


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def export(root: Path, images: list, annotations: list) -> Path:
    """A CVAT export of drawn images, one for each name listed."""
    for number, name in enumerate(dict.fromkeys(record["file_name"] for record in images)):
        write_tiff(root / "images" / "default" / name, draw_image(number))
    write_coco(root / "annotations" / "instances_default.json", images, annotations)
    return root


def clean_export(root: Path, num_images: int) -> Path:
    images = [image_record(n, f"field{n:02d}.tif") for n in range(num_images)]
    return export(root, images, [annotation(n, n, square(n % 20, 3, 8)) for n in range(num_images)])


@pytest.mark.parametrize(
    ("name", "find", "labels", "at_most"),
    [
        (
            "livecell_1pct",
            find_livecell,
            {"val": "livecell_coco_val.json", "test": "livecell_coco_test.json"},
            None,
        ),
        ("t98g", find_glioma_c6, {"all": "annotations/instances_default.json"}, None),
        ("t98g_native", find_glioma_c6, {"train": "anno_train.json"}, 1),
    ],
)
def test_every_real_mask_is_the_union_by_the_coco_api(tmp_path, name, find, labels, at_most):
    folder = real_data(name)
    convert_quietly(find(folder), tmp_path)
    files = {path.name: path for path in folder.rglob("images/**/*") if path.is_file()}
    for split, path in labels.items():
        expected = expected_masks(folder / path, at_most)
        samples = {sample.metadata["file_name"]: sample for sample in read_all(tmp_path / split).values()}
        assert sorted(samples) == sorted(
            record["file_name"] for record in json.loads((folder / path).read_text())["images"]
        )
        for file_name in expected:
            sample = samples[file_name]
            np.testing.assert_array_equal(sample.mask == 1, expected[file_name], err_msg=file_name)
            taken = read_image(files[file_name])  # those of t98g_native have three like channels
            stored = sample.image if sample.image.ndim == taken.ndim else np.dstack([sample.image] * 3)
            np.testing.assert_array_equal(stored, taken, err_msg=file_name)


def test_three_like_channels_are_stored_as_grey_and_colours_stay(tmp_path):
    folder = clean_export(tmp_path / "source", 2)
    grey = draw_image(5)
    coloured = np.dstack([grey, grey, grey[::-1]])
    for name, image in (("field00.tif", np.dstack([grey] * 3)), ("field01.tif", coloured)):
        write_tiff(folder / "images" / "default" / name, image)
    convert_quietly(find_glioma_c6(folder), tmp_path / "out")
    images = {sample.metadata["file_name"]: sample.image for sample in read_all(tmp_path / "out" / "all").values()}
    np.testing.assert_array_equal(images["field00.tif"], grey)
    np.testing.assert_array_equal(images["field01.tif"], coloured)


@pytest.mark.parametrize(
    ("place", "annotations", "is_published"),
    [
        ("dataset/spec/train", "dataset/spec/anno_train.json", True),
        ("dataset/spec/train", "dataset/spec/train/anno_train.json", True),
        ("dataset/gen", "dataset/gen/anno_gen.json", True),
        ("plate_7", "plate_7/anno_train.json", False),
    ],
)
def test_both_licences_of_glioma_c6_are_recorded(tmp_path, place, annotations, is_published):
    write_tiff(tmp_path / place / "images" / "a.tif", draw_image(1))
    write_coco(tmp_path / annotations, [image_record(1, "a.tif")], [annotation(1, 1, square(2, 2, 9))])
    convert_quietly(find_glioma_c6(tmp_path / place.rpartition("/")[0]), tmp_path / "out")
    (split,) = (each for each in (tmp_path / "out").iterdir() if each.is_dir())
    reader = ShardReader(split)
    assert ("CC BY-NC 4.0" in reader.lineage[0]["licence"]) is is_published
    assert ("CC BY-NC-ND 4.0" in reader.read(0, 0).metadata["licence"]) is is_published
    assert ("arXiv 2511.07286" in (reader.index.get("citation", ""))) is is_published
    assert bool(non_commercial_licences(reader.lineage)) is is_published


def test_facts_and_index(tmp_path):
    source = find_livecell(write_livecell(tmp_path / "source", {"train": 3, "test": 1}))
    convert_quietly(source, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "train" / "index.json").read_text())
    assert index["licence"].startswith("CC BY-NC 4.0")
    assert "10.1038/s41592-021-01249-6" in index["citation"]
    assert (index["dataset"], index["split"], index["num_samples"]) == ("drawn", "train", 3)
    assert read_all(tmp_path / "out" / "test")["A172_Phase_A4_1_01d00h30m_1"].metadata == {
        "dataset": "drawn",
        "file_name": "A172_Phase_A4_1_01d00h30m_1.tif",
        "width": WIDTH,
        "height": HEIGHT,
        "group": "A172_A4",
        "time": 24.5,
        "num_cells": 2,
        "licence": index["licence"],
    }
    assert defects(tmp_path / "out") == []


def test_same_input_same_bytes_whatever_the_order_in_the_json(tmp_path):
    source = write_livecell(tmp_path / "source", {"train": 5, "val": 2})
    convert_quietly(find_livecell(source), tmp_path / "a")
    for path in source.glob("*.json"):
        content = json.loads(path.read_text())
        content["images"].reverse()
        content["annotations"].reverse()
        path.write_text(json.dumps(content))
    convert_quietly(find_livecell(source), tmp_path / "b")
    assert file_bytes(tmp_path / "a") == file_bytes(tmp_path / "b")
    # Converting once more replaces the shards by the same.
    convert_quietly(find_livecell(source), tmp_path / "b")
    assert file_bytes(tmp_path / "a") == file_bytes(tmp_path / "b")


@pytest.fixture
def defective(tmp_path):
    """An export with every kind of defect, and two images without."""
    good = square(2, 2, 9)
    entries = {
        "good.tif": [good],
        "border.tif": [[[WIDTH - 9, 1, WIDTH, 1, WIDTH, 9]]],
        "far.tif": [good, [[1, 1, 5, 1, 5, 10**8]]],
        "doubled.tif": [good, good],
        "box.tif": [good, []],
        "only-boxes.tif": [[], []],
        "empty.tif": [],
        "rle.tif": [{"size": [WIDTH, HEIGHT], "counts": [0, WIDTH * HEIGHT]}],
        "size.tif": [good],
        "broken.tif": [good],
        "gone.tif": [good],
        "twice.tif": [good],
    }
    images = [image_record(number, name) for number, name in enumerate(entries)]
    images[list(entries).index("size.tif")]["width"] = WIDTH + 1
    images.append(image_record(50, "twice.tif"))
    cells = [(number, cell) for number, name in enumerate(entries) for cell in entries[name]]
    cells += [(50, square(20, 20, 4)), (77, good)]
    annotations = [annotation(n, image_id, cell) for n, (image_id, cell) in enumerate(cells)]
    root = export(tmp_path / "source", images, annotations)
    folder = root / "images" / "default"
    (folder / "gone.tif").unlink()
    data = (folder / "broken.tif").read_bytes()
    (folder / "broken.tif").write_bytes(data[: len(data) // 2])
    write_tiff(folder / "unlisted.tif", draw_image(99))
    return root


def test_every_defect_is_told_and_only_spoilt_samples_are_left_out(tmp_path, defective):
    screen = convert_quietly(find_glioma_c6(defective), tmp_path / "out")
    found = defects(tmp_path / "out")
    assert found == [
        ("image-without-labels", "all/empty.tif", True),
        ("image-without-labels", "all/only-boxes.tif", True),
        ("image-without-labels", "images/default/unlisted.tif", True),
        ("labels-without-image", "all/gone.tif", True),
        ("labels-without-image", "instances_default.json: image id 77", True),
        ("doubled-name", "all/twice.tif", False),
        ("doubled-contour", "all/doubled.tif", False),
        ("empty-segmentation", "all/box.tif", False),
        ("empty-segmentation", "all/only-boxes.tif", False),
        ("coordinates-outside", "all/border.tif", False),
        ("coordinates-outside", "all/far.tif", True),
        ("size-mismatch", "all/rle.tif", True),
        ("size-mismatch", "all/size.tif", True),
        ("unreadable-file", "all/broken.tif", True),
    ]
    samples = read_all(tmp_path / "out" / "all")
    assert sorted(samples) == ["border", "box", "doubled", "good", "twice"]
    assert {key: sample.metadata["num_cells"] for key, sample in samples.items()} == {
        "border": 1,
        "box": 1,
        "doubled": 1,
        "good": 1,
        "twice": 2,
    }
    assert samples["twice"].mask[21, 21] == samples["twice"].mask[5, 5] == 1
    summary = json.loads((tmp_path / "out" / "audit.json").read_text())["summary"]
    assert len(summary) == 13
    assert summary["size-mismatch"] == {"found": 2, "left_out": 2}
    for kind, counts in summary.items():
        assert sum(line.strip().startswith(kind) for line in screen.splitlines()) == (counts["found"] > 0)
    assert "all: 5 samples" in screen


def test_strict_stops_at_the_first_defect(tmp_path, defective):
    with pytest.raises(InputError, match=r"without --strict"):
        convert_quietly(find_glioma_c6(defective), tmp_path / "out", strict=True)
    assert not list(tmp_path.glob("out/**/index.json"))
    convert_quietly(find_glioma_c6(clean_export(tmp_path / "clean", 2)), tmp_path / "out", strict=True)


def test_nothing_to_convert_is_an_error_that_names_the_audit(tmp_path):
    root = export(tmp_path / "source", [image_record(1, "a.tif")], [])
    with pytest.raises(InputError, match=r"no sample could be converted.*audit\.json"):
        convert_quietly(find_glioma_c6(root), tmp_path / "out")
    assert defects(tmp_path / "out") == [("image-without-labels", "all/a.tif", True)]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["audit.json"]


def test_a_file_in_two_splits_is_told(tmp_path):
    source = write_livecell(tmp_path / "source", {"train": 2, "test": 1})
    content = json.loads((source / "livecell_coco_train.json").read_text())
    (source / "livecell_coco_test.json").write_text(json.dumps(content))
    convert_quietly(find_livecell(source), tmp_path / "out")
    assert [kind for kind, where, _ in defects(tmp_path / "out") if where.startswith("test/")] == ["doubled-name"] * 2


def test_files_of_one_name_that_differ_are_not_guessed_between(tmp_path):
    source = write_livecell(tmp_path / "source", {"train": 2})
    first, second = sorted((source / "images" / "livecell_train_images").iterdir())
    write_tiff(source / "images" / "other" / first.name, draw_image(77))
    (source / "images" / "other" / second.name).write_bytes(second.read_bytes())
    convert_quietly(find_livecell(source), tmp_path / "out")
    assert defects(tmp_path / "out") == [("doubled-name", f"train/{first.name}", True)]
    assert list(read_all(tmp_path / "out" / "train")) == [second.stem]


@pytest.mark.parametrize("is_relative", [False, True])
def test_images_beside_the_source_may_have_no_labels_or_look_alike(tmp_path, monkeypatch, is_relative):
    monkeypatch.chdir(tmp_path)
    labels, images = (Path() if is_relative else tmp_path) / "labels", tmp_path / "images"
    write_coco(
        labels / "annotations" / "instances_default.json", [image_record(1, "a.tif")], [annotation(1, 1, SQUARE)]
    )
    for number, name in enumerate(("a.tif", "b/c.tif", "e\u0301.tif", "\u00e9.tif")):
        write_tiff(images / name, draw_image(number))
    convert_quietly(find_glioma_c6(labels, images), tmp_path / "out")
    lonely = [("image-without-labels", name, True) for name in ("b/c.tif", "e\u0301.tif", "\u00e9.tif")]
    assert defects(tmp_path / "out") == [*lonely, ("doubled-name", "e\u0301.tif", False)]


def test_files_that_another_path_names_are_not_said_to_be_unread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = clean_export(tmp_path / "source", 2)
    (root / "loop").symlink_to("loop")
    labels = root / "annotations" / "instances_default.json"
    sources = (find_glioma_c6(Path("source"), root / "images"), find_coco(labels, Path("source")))
    for number, source in enumerate(sources):
        convert_quietly(source, tmp_path / f"out{number}")
        unread = json.loads((tmp_path / f"out{number}" / "audit.json").read_text())["files_not_read"]
        assert unread == {"(no suffix)": {"files": 1, "for_example": "loop"}}


def test_a_name_that_leads_out_stops_the_conversion(tmp_path):
    write_tiff(tmp_path / "a.tif", draw_image(1))
    root = clean_export(tmp_path / "source", 1)
    images = [image_record(1, "../../../a.tif")]
    write_coco(root / "annotations" / "instances_default.json", images, [annotation(1, 1, square(2, 2, 9))])
    with pytest.raises(InputError, match="leads outside"):
        convert_quietly(find_glioma_c6(root), tmp_path / "out")


def test_drawn_splits(tmp_path):
    source = find_glioma_c6(clean_export(tmp_path / "source", 30))
    for out, seed in [("a", 0), ("b", 0), ("c", 1)]:
        convert_quietly(source, tmp_path / out, split_seed=seed)
    keys = {out: {s: ShardReader(tmp_path / out / s).keys() for s in ("train", "val", "test")} for out in "abc"}
    assert [len(keys["a"][split]) for split in ("train", "val", "test")] == [15, 5, 10]
    assert len({key for split in keys["a"].values() for key in split}) == 30
    assert keys["a"] == keys["b"]
    assert keys["a"] != keys["c"]
    with pytest.raises(InputError, match="31 samples, there are 30"):
        convert_quietly(source, tmp_path / "d", split_seed=0, split_counts=(16, 5, 10))
    assert "20 samples are in no split" in convert_quietly(source, tmp_path / "e", split_seed=0, split_counts=(5, 3, 2))


@pytest.mark.parametrize(("seed", "counts"), [(0, (1, 0, 1)), (0, (-1, 1, 1)), (-1, (1, 1, 1)), (2**64, (1, 1, 1))])
def test_a_division_that_cannot_be_is_refused_before_an_image_is_read(tmp_path, monkeypatch, seed, counts):
    source = find_glioma_c6(clean_export(tmp_path / "source", 3))
    monkeypatch.setattr("glioma_dist.data.convert.conversion.ImageReader", lambda: pytest.fail("images were read"))
    with pytest.raises(InputError, match=r"each split needs at least one sample|--split-seed (-1|1844674407\d+): "):
        convert_quietly(source, tmp_path / "out", split_seed=seed, split_counts=counts)
    assert not (tmp_path / "out").exists()


def test_splits_are_drawn_among_what_can_be_converted_and_defects_told_once(tmp_path, defective):
    convert_quietly(find_glioma_c6(defective), tmp_path / "a")
    convert_quietly(find_glioma_c6(defective), tmp_path / "b", split_seed=0, split_counts=(3, 1, 1))
    assert defects(tmp_path / "a") == defects(tmp_path / "b")
    drawn = [read_all(tmp_path / "b" / split) for split in ("train", "val", "test")]
    assert [len(samples) for samples in drawn] == [3, 1, 1]


def test_own_splits_are_not_drawn_again(tmp_path):
    source = find_livecell(write_livecell(tmp_path / "source", {"train": 1}))
    with pytest.raises(InputError, match="splits of its own"):
        convert_quietly(source, tmp_path / "out", split_seed=0)


def test_keys_are_safe_and_no_two_alike():
    long = "x" * 300
    names = [
        "a.tif",
        "b.tif",
        "w1/b.tif",
        "w2/b.tif",
        "w2_b.tif",
        "w-1/ü.png",
        f"{long}1.tif",
        f"{long}2.tif",
    ]
    names += ["c.tif", "c.png", "d.e.f.tif", ".tif", "_b.tif"]
    keys = make_keys(names)
    assert keys == make_keys(names[::-1])
    assert set(keys) == set(names)
    assert len(set(keys.values())) == len(names)
    assert all(KEY_PATTERN.fullmatch(key) for key in keys.values())
    assert keys["a.tif"] == "a"
    assert keys["w1/b.tif"] == "w1_b"
    assert keys["d.e.f.tif"] == "d_e_f"


def run_tool(name: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_converters_convert_and_refuse_in_one_line(tmp_path):
    livecell = write_livecell(tmp_path / "livecell", {"train": 2, "val": 1})
    ended = run_tool("convert_livecell.py", "--source", livecell, "--out", tmp_path / "shards" / "livecell")
    assert ended.returncode == 0, ended.stderr
    assert "train: 2/2 images" in ended.stderr
    assert "\x1b" not in ended.stderr
    assert len(ShardReader(tmp_path / "shards" / "livecell" / "train")) == 2
    glioma = clean_export(tmp_path / "glioma", 6)
    out = tmp_path / "shards" / "glioma_c6"
    ended = run_tool(
        *("convert_glioma_c6.py", "--source", glioma, "--out", out),
        *("--split-seed", 3, "--split-counts", 3, 2, 1, "--strict"),
    )
    assert ended.returncode == 0, ended.stderr
    assert ShardReader(out / "train").index["dataset"] == "glioma_c6"
    assert [len(ShardReader(out / split)) for split in ("train", "val", "test")] == [3, 2, 1]
    ended = run_tool("convert_livecell.py", "--source", glioma, "--out", tmp_path / "x")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert "livecell_coco_train.json" in ended.stderr
    assert "annotations/" in ended.stderr


def test_a_killed_conversion_is_finished_by_the_next(tmp_path):
    source = write_livecell(tmp_path / "source", {"train": 4, "val": 2})
    program = textwrap.dedent(f"""
        import os, signal
        from glioma_dist.data.convert import conversion as module
        from glioma_dist.data.convert.sources import find_livecell
        prepare, times = module.prepare, []
        def prepare_and_die(*arguments):
            times.append(arguments)
            if len(times) == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            return prepare(*arguments)
        module.prepare = prepare_and_die
        module.convert(find_livecell({str(source)!r}), {str(tmp_path / "out")!r}, "drawn")
    """)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL
    # The first split was finished, the second begun: neither bears its name before both do.
    assert not (tmp_path / "out" / "train").exists()
    assert not (tmp_path / "out" / "val").exists()
    assert not (tmp_path / "out" / "audit.json").exists()
    convert_quietly(find_livecell(source), tmp_path / "out")
    convert_quietly(find_livecell(source), tmp_path / "fresh")
    assert file_bytes(tmp_path / "out") == file_bytes(tmp_path / "fresh")


def test_a_cell_that_covers_no_pixel_is_not_counted(tmp_path):
    blank = [5.0, 5.0, 5.0, 5.0, 5.0, 5.0]
    outside = [900.0, 900.0, 950.0, 900.0, 950.0, 950.0]
    square = [2.0, 2.0, 12.0, 2.0, 12.0, 12.0, 2.0, 12.0]
    for polygons, num_cells in (([blank], 0), ([outside], 0), ([square, blank], 1), ([square], 1)):
        drawn = draw_cells([as_segmentation([polygon]) for polygon in polygons], 64, 64)
        assert drawn.num_cells == num_cells
        assert int(drawn.mask.sum()) == 100 * num_cells


def test_what_is_divided_in_another_way_is_not_written_beside(tmp_path):
    source = clean_export(tmp_path / "source", 6)
    convert_quietly(find_glioma_c6(source), tmp_path / "out")
    with pytest.raises(InputError, match="holds all of another conversion"):
        convert_quietly(find_glioma_c6(source), tmp_path / "out", split_seed=0, split_counts=(2, 2, 2))
    convert_quietly(find_glioma_c6(source), tmp_path / "drawn", split_seed=0, split_counts=(2, 2, 2))
    with pytest.raises(InputError, match="holds test, train, val of another conversion"):
        convert_quietly(find_glioma_c6(source), tmp_path / "drawn")
    with pytest.raises(InputError, match="--split-counts needs --split-seed"):
        convert_quietly(find_glioma_c6(source), tmp_path / "counts", split_counts=(2, 2, 2))
