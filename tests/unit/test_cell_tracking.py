"""Folders of the Cell Tracking Challenge with a fault in each sequence: each costs one frame and one line; and the
flags of each source's command."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from rich.console import Console

from glioma_dist.cli.arguments import parse
from glioma_dist.cli.sources import command_of
from glioma_dist.data.convert.conversion import convert
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.errors import InputError
from glioma_dist.registry import sources

KINDS = {"ctc": "GT", "ctc-silver": "ST"}
WIDTH, HEIGHT = 41, 37


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, values, compression="zlib")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


FAULTS = {
    "no image": (lambda image, labels, markers: image.unlink(), "no such file"),
    "an image cut short": (lambda image, labels, markers: cut(image), "cut short"),
    "an image of another size": (
        lambda image, labels, markers: write(image, np.ones((HEIGHT + 1, WIDTH), np.uint8)),
        "its image 41x38",
    ),
    "labels cut short": (lambda image, labels, markers: cut(labels), "cut short"),
    "labels of 32 bits": (
        lambda image, labels, markers: write(labels, np.full((HEIGHT, WIDTH), 70000, np.uint32)),
        "70000",
    ),
    "labels below 0": (lambda image, labels, markers: write(labels, np.full((HEIGHT, WIDTH), -1, np.int16)), "-1"),
    "an outline too few": (
        lambda image, labels, markers: write(labels, np.tri(HEIGHT, WIDTH, -30, dtype=np.uint16)),
        "have a marker in TRA and no outline here",
    ),
    "markers cut short": (lambda image, labels, markers: cut(markers), "cut short"),
    "markers of another size": (
        lambda image, labels, markers: write(markers, np.ones((HEIGHT, WIDTH - 1), np.uint16)),
        "is 40x37, its image 41x37",
    ),
    "no markers": (lambda image, labels, markers: markers.unlink(), "nobody can tell whether all cells are outlined"),
}
"""Fault -> what it does to the first frame of a sequence, and what the audit says of it."""


def draw(folder: Path, kind: str, sequence: str, has_markers: bool = True) -> tuple[Path, Path, Path]:
    """Write two frames; returns the first one's files."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint16)
    labels[2:10, 3:12], labels[12:20, 10:30] = 1, 2
    markers = labels * (np.indices(labels.shape).sum(0) % 3 == 0)
    for frame in range(2):
        pixels = np.random.default_rng([int(sequence), frame]).integers(0, 255, labels.shape, dtype=np.uint8)
        write(folder / sequence / f"t{frame:03d}.tif", pixels)
        write(folder / f"{sequence}_{kind}" / "SEG" / f"man_seg{frame:03d}.tif", labels)
        if has_markers:
            write(folder / f"{sequence}_GT" / "TRA" / f"man_track{frame:03d}.tif", markers.astype(np.uint16))
    return (
        folder / sequence / "t000.tif",
        folder / f"{sequence}_{kind}" / "SEG" / "man_seg000.tif",
        folder / f"{sequence}_GT" / "TRA" / "man_track000.tif",
    )


@pytest.mark.parametrize("name", KINDS)
def test_each_fault_costs_its_frame_and_one_line(tmp_path, name):
    data = tmp_path / "data"
    draw(data, KINDS[name], "01", has_markers=False)
    for number, (harm, _) in enumerate(FAULTS.values(), 2):
        harm(*draw(data, KINDS[name], f"{number:02d}"))
    convert(sources.load(name)(data, None), tmp_path / "out", "d", console=Console(file=io.StringIO()))
    reader = ShardReader(tmp_path / "out" / "all")
    places = [(shard, place) for shard, size in enumerate(reader.shard_sizes) for place in range(size)]
    found = sorted(reader.read(*place).metadata["file_name"] for place in places)
    assert found == ["01/t000.tif", *(f"{number:02d}/t001.tif" for number in range(1, len(FAULTS) + 2))]
    defects = json.loads((tmp_path / "out" / "audit.json").read_text())["defects"]
    told = {defect["where"]: defect["detail"] for defect in defects}
    assert len(told) == len(defects) == len(FAULTS)
    for number, (fault, (_, said)) in enumerate(FAULTS.items(), 2):
        assert said in told[f"all/{number:02d}/t000.tif"], fault
        assert "\n" not in told[f"all/{number:02d}/t000.tif"]


def test_markers_that_came_after_a_conversion_count_in_the_next_one(tmp_path):
    """Of the same process, as in a notebook."""
    told = []
    for number, has_markers in enumerate((False, True)):
        _, labels, _ = draw(tmp_path / "data", "GT", "01", has_markers)
        write(labels, np.tri(HEIGHT, WIDTH, -30, dtype=np.uint16))  # an outline too few
        out = tmp_path / f"out{number}"
        convert(sources.load("ctc")(tmp_path / "data", None), out, "d", console=Console(file=io.StringIO()))
        told.append([defect["detail"] for defect in json.loads((out / "audit.json").read_text())["defects"]])
    assert told[0] == []
    assert len(told[1]) == 1
    assert "have a marker in TRA and no outline here" in told[1][0]


@pytest.mark.parametrize("name", KINDS)
def test_two_files_of_labels_of_a_frame_are_refused(tmp_path, name):
    _, labels, _ = draw(tmp_path, KINDS[name], "01")
    labels.with_name("man_seg_000.tif").write_bytes(labels.read_bytes())
    with pytest.raises(InputError, match=r"both are labels of 01/t000\.tif; keep one"):
        sources.load(name)(tmp_path, None)


@pytest.mark.parametrize("name", [each for each in sources.names() if not sources.find(each).command])
def test_a_command_has_only_flags_with_an_effect_on_its_source(name):
    flags = {field.name for field in dataclasses.fields(command_of(name).config)}
    assert ("frame_minutes" in flags) == (name in KINDS)
    assert flags & {"categories", "classes", "ignore"} == (
        {"categories", "classes", "ignore"} if name == "cvat" else set()
    )
    assert {"source", "out", "images", "instances", "split_seed", "group_pattern"} <= flags
    unknown = {"cvat": "--frame-minutes"}.get(name, "--categories")
    with pytest.raises(InputError, match=f"unknown flag {unknown}"):
        parse(command_of(name).config, ["--source", "a", "--out", "b", unknown, "3"])
