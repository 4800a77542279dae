"""Formats of results: each is read again by a program of somebody else, and gives the mask pixel for pixel."""

import csv
import dataclasses
import json
import os
import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from helpers import run
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy import ndimage

from glioma_dist.config import PredictConfig
from glioma_dist.errors import InputError
from glioma_dist.files import partial_name
from glioma_dist.inference import components
from glioma_dist.inference.components import EIGHT, FOUR, Components
from glioma_dist.inference.images import find_images
from glioma_dist.inference.result_folder import open_results
from glioma_dist.inference.segmented import ImageMetadata, SegmentedImage
from glioma_dist.inference.writers import names, ome_zarr, tiff
from glioma_dist.inference.writers.names import DECLARED, endings
from glioma_dist.registry import Registry, WriterEntry, writers

PIXEL_SIZE = 0.65
THRESHOLD = 0.4
LIBRARIES = {"imagej": "roifile", "ome-zarr": "zarr"}
FORMATS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(missing), reason=f"{library} is not installed"))
    for name in writers.names()
    for library in [LIBRARIES.get(name, "")]
    for missing in [library and not any((Path(each) / library).is_dir() for each in sys.path)]
]
ALL = [each.values[0] for each in FORMATS if not each.marks[0].args[0]]


def drawn() -> dict[str, np.ndarray]:
    """Masks of all that outlines can do: holes, islands in them, diagonals, single pixels, edges, odd sizes."""
    generator = np.random.default_rng(0)
    rings = np.zeros((23, 31), np.uint8)
    for inset, value in ((1, 1), (4, 0), (7, 1), (9, 0)):
        rings[inset : 23 - inset, inset : 31 - inset] = value
    diagonal_holes = np.ones((8, 9), np.uint8)
    diagonal_holes[range(1, 7), range(1, 7)] = 0
    blobs = ndimage.gaussian_filter(generator.random((131, 97)), 2) > 0.5
    return {
        "one pixel": np.ones((1, 1), np.uint8),
        "one pixel of nothing": np.zeros((1, 1), np.uint8),
        "empty": np.zeros((5, 8), np.uint8),
        "full": np.ones((8, 5), np.uint8),
        "rings": rings,
        "diagonal": np.eye(7, 9, dtype=np.uint8),
        "diagonal holes": diagonal_holes,
        "a row": (generator.random((1, 40)) < 0.5).astype(np.uint8),
        "a column": (generator.random((40, 1)) < 0.5).astype(np.uint8),
        "blobs": blobs.astype(np.uint8),
        **{f"noise {share}": (generator.random((37, 29)) < share).astype(np.uint8) for share in (0.2, 0.5, 0.8)},
    }


MASKS = drawn()


def segmented(mask: np.ndarray, pixel_size: float | None = PIXEL_SIZE, channels: int = 1) -> SegmentedImage:
    """An image whose mask this is. Its probabilities have all bits that float32 has; one is the threshold itself."""
    generator = np.random.default_rng(1)
    low, high = np.float32(0), np.float32(THRESHOLD)
    probabilities = np.where(mask, generator.uniform(high, 1, mask.shape), generator.uniform(low, high, mask.shape))
    probabilities = np.where(mask, np.maximum(probabilities, high), np.minimum(probabilities, np.nextafter(high, low)))
    shape = mask.shape if channels == 1 else (*mask.shape, channels)
    pixels = generator.integers(0, 256, shape, dtype=np.uint8)
    metadata = ImageMetadata(pixel_size, 1.5, "2026-01-02T03:04:05", "t003")
    return SegmentedImage(Path("plate/a.tif"), pixels, probabilities.astype(np.float32), THRESHOLD, metadata)


def write(folder: Path, image: SegmentedImage, formats: Sequence[str]) -> dict[str, Path]:
    results = open_results(folder, formats)
    results.check(["a"])
    with results.opened():
        return results.write("a", image).files


def written(folder: Path, image: SegmentedImage, name: str) -> Path:
    return write(folder, image, [name])[name]


def labels_of(mask: np.ndarray) -> tuple[np.ndarray, int]:
    return ndimage.label(mask, np.ones((3, 3)))


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_and_images_of_numbers_are_read_by_others(mask, tmp_path):
    image = segmented(mask)
    files = write(tmp_path, image, ["mask", "mask-tiff", "probability", "labels"])
    for read in (lambda path: cv2.imread(str(path), -1), lambda path: np.asarray(Image.open(path))):
        np.testing.assert_array_equal(read(files["mask"]), mask * 255)
    with tifffile.TiffFile(files["mask-tiff"]) as file:
        assert file.pages[0].bitspersample == 1
        np.testing.assert_array_equal(file.asarray(), mask > 0)
    with Image.open(files["mask-tiff"]) as file:
        assert file.mode == "1"
        np.testing.assert_array_equal(np.asarray(file), mask > 0)
    found = tifffile.imread(files["probability"])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, image.probabilities)
    np.testing.assert_array_equal(found >= THRESHOLD, mask > 0)
    found = tifffile.imread(files["labels"])
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, labels_of(mask)[0])
    np.testing.assert_array_equal(np.asarray(Image.open(files["labels"])), labels_of(mask)[0])


@pytest.mark.parametrize("name", ["mask-tiff", "probability", "labels"])
def test_tiffs_have_the_pixel_size_where_imagej_looks_for_it(name, tmp_path):
    for pixel_size in (PIXEL_SIZE, None):
        with tifffile.TiffFile(written(tmp_path, segmented(MASKS["blobs"], pixel_size), name)) as file:
            assert file.is_imagej
            assert file.imagej_metadata.get("unit") == ("micron" if pixel_size else None)
            numerator, denominator = file.pages[0].tags["XResolution"].value
            assert numerator / denominator == pytest.approx(1 / (pixel_size or 1))
            assert file.pages[0].tags["YResolution"].value == (numerator, denominator)


def test_more_than_65535_components_get_labels_of_32_bits(tmp_path):
    mask = np.zeros((600, 601), np.uint8)
    mask[::2, ::2] = 1
    found = tifffile.imread(written(tmp_path, segmented(mask), "labels"))
    assert (found.dtype, found.max()) == (np.uint32, 300 * 301)
    np.testing.assert_array_equal(found, labels_of(mask)[0])


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_polygons_for_qupath_are_valid_and_cover_the_mask(mask, tmp_path):
    shapely = pytest.importorskip("shapely")
    from shapely.geometry import shape

    for pixel_size in (PIXEL_SIZE, None):
        path = written(tmp_path, segmented(mask, pixel_size), "qupath")
        collection = json.loads(path.read_text(encoding="utf-8"))
        expected, num = labels_of(mask)
        assert (collection["type"], len(collection["features"])) == ("FeatureCollection", num)
        y, x = np.indices(mask.shape) + 0.5
        for number, feature in enumerate(collection["features"], 1):
            properties, polygon = feature["properties"], shape(feature["geometry"])
            assert polygon.is_valid
            area = int((expected == number).sum())
            assert polygon.area == area
            np.testing.assert_array_equal(shapely.contains_xy(polygon, x, y), expected == number)
            for part in getattr(polygon, "geoms", [polygon]):
                assert part.exterior.is_ccw
                assert not any(hole.is_ccw for hole in part.interiors)
            assert (feature["type"], properties["objectType"]) == ("Feature", "annotation")
            assert properties["classification"]["name"] == "Covered by cells"
            sizes = {"Area px^2": area, "Area µm^2": pytest.approx(area * PIXEL_SIZE**2, abs=1e-3)}
            assert properties["measurements"] == (sizes if pixel_size else {"Area px^2": area})


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_rois_for_imagej_cover_the_mask(mask, tmp_path):
    """Filled by the even-odd rule, as ImageJ fills shapes. roifile reads the file; ImageJ 1.53t gave the same masks."""
    roifile = pytest.importorskip("roifile")
    from matplotlib.path import Path as Outline

    rois = roifile.ImagejRoi.fromfile(written(tmp_path, segmented(mask), "imagej"))
    expected, num = labels_of(mask)
    assert [roi.name for roi in rois] == [f"component-{number:0{len(str(num))}}" for number in range(1, num + 1)]
    y, x = np.indices(mask.shape) + 0.5
    centres = np.stack([x.ravel(), y.ravel()], 1)
    for number, roi in enumerate(rois, 1):
        rings = roi.coordinates(multi=True) if roi.composite else [roi.coordinates()]
        inside = np.logical_xor.reduce([Outline(ring).contains_points(centres) for ring in rings])
        np.testing.assert_array_equal(inside.reshape(mask.shape), expected == number)
        rows, columns = np.nonzero(expected == number)
        assert (roi.left, roi.top) == (columns.min(), rows.min())
        assert (roi.right, roi.bottom) == (columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_coco_is_read_by_its_own_library(mask, tmp_path, capsys):
    path = written(tmp_path, segmented(mask), "coco")
    coco, (expected, num) = COCO(str(path)), labels_of(mask)
    (image,) = coco.imgs.values()
    assert (image["file_name"], image["pixel_size_um"]) == ("a.tif", PIXEL_SIZE)
    assert (image["height"], image["width"]) == mask.shape
    assert "component" in coco.cats[1]["name"]
    assert sorted(coco.anns) == list(range(1, num + 1))
    for number, annotation in coco.anns.items():
        here = expected == number
        np.testing.assert_array_equal(coco.annToMask(annotation), here)
        assert annotation["area"] == here.sum() == coco_mask.area(annotation["segmentation"])
        assert annotation["area_um2"] == pytest.approx(here.sum() * PIXEL_SIZE**2, abs=1e-3)
        rows, columns = np.nonzero(here)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert annotation["bbox"] == box
        assert annotation["segmentation"] == {
            **(encoded := coco_mask.encode(np.asfortranarray(here, np.uint8))),
            "counts": encoded["counts"].decode(),
        }


@pytest.mark.parametrize(
    ("image", "expected"),
    [("plate.zarr/A/1/0", "plate.zarr/A/1/0"), ("plate/A/1/0", "plate/A/1/0"), ("a.ome.zarr", "a.ome.zarr")],
)
def test_coco_names_the_well_of_a_plate(image, expected, tmp_path):
    """Of a plate by its name, and of one that only its content tells."""
    (tmp_path / image).mkdir(parents=True)
    for folder in {tmp_path / image, tmp_path / image.partition("/")[0]}:
        (folder / ".zgroup").write_text("{}")
    of_well = dataclasses.replace(segmented(MASKS["one pixel"]), image=tmp_path / image)
    (found,) = COCO(str(written(tmp_path, of_well, "coco"))).imgs.values()
    assert found["file_name"] == expected


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["one pixel", "empty", "blobs"])
def test_ome_zarr_is_valid_and_has_image_and_components(name, channels, tmp_path, monkeypatch):
    zarr = pytest.importorskip("zarr")
    monkeypatch.setattr(ome_zarr, "CHUNK", 32)
    image = segmented(MASKS[name], PIXEL_SIZE, channels)
    path = written(tmp_path, image, "ome-zarr")
    root = zarr.open_group(path, mode="r")
    pixels = image.pixels if channels == 1 else image.pixels.transpose(2, 0, 1)
    labels = root["labels/components"]
    np.testing.assert_array_equal(root["0"][...], pixels)
    np.testing.assert_array_equal(labels["0"][...], labels_of(image.mask)[0])
    assert root["labels"].attrs["labels"] == ["components"]
    levels = len(labels.attrs["multiscales"][0]["datasets"])
    for level in range(1, levels):
        np.testing.assert_array_equal(labels[str(level)][...], labels[str(level - 1)][::2, ::2])
        finer = root[str(level - 1)][...].astype(float)
        finer = np.pad(finer, [(0, 0)] * (finer.ndim - 2) + [(0, side % 2) for side in finer.shape[-2:]], "edge")
        mean = sum(finer[..., dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)) / 4
        assert np.abs(root[str(level)][...] - mean).max() <= 0.5
        (scale,) = labels.attrs["multiscales"][0]["datasets"][level]["coordinateTransformations"]
        assert scale["scale"] == [PIXEL_SIZE * 2**level] * 2
    assert max(labels[str(levels - 1)].shape) <= 32
    yaozarrs = pytest.importorskip("yaozarrs")
    yaozarrs.validate_zarr_store(str(path))
    yaozarrs.validate_zarr_store(str(path / "labels" / "components"))


@pytest.mark.parametrize("neighbours", [EIGHT, FOUR], ids=["eight", "four"])
@pytest.mark.parametrize("block", [1, 2, 7, 100])
def test_components_found_in_blocks_are_those_of_the_whole(neighbours, block):
    generator = np.random.default_rng(block)
    random = [(generator.random(generator.integers(1, 40, 2)) < share) for share in (0.3, 0.45, 0.6) * 10]
    for mask in (*MASKS.values(), *random):
        expected, num = ndimage.label(mask, neighbours)
        found = Components(lambda start, stop, mask=mask: mask[start:stop], *mask.shape, neighbours, block)
        blocks = list(found.blocks())
        assert [start for start, _ in blocks] == list(range(0, len(mask), block))
        np.testing.assert_array_equal(np.concatenate([labels for _, labels in blocks]), expected)
        np.testing.assert_array_equal(found.areas, np.bincount(expected.ravel(), minlength=num + 1)[1:])
        y, x = np.indices(mask.shape).reshape(2, -1)
        np.testing.assert_array_equal(found.at(y, x), expected.ravel())


@pytest.mark.parametrize("name", FORMATS)
def test_an_image_on_the_disk_gives_in_blocks_what_it_gives_in_memory(name, tmp_path, monkeypatch):
    """A memory-mapped image of several blocks of rows; PNGs excepted, it gives the same bytes."""
    image = segmented(MASKS["blobs"], channels=3)
    expected = written(tmp_path / "whole", image, name)
    monkeypatch.setattr(components, "ROW_STEP", 16)
    monkeypatch.setattr(components, "BLOCK_PIXELS", 1)
    monkeypatch.setattr(tiff, "STRIP_BYTES", 300)
    mapped = []
    for number, array in enumerate((image.pixels, image.probabilities)):
        array.tofile(tmp_path / str(number))
        mapped.append(np.memmap(tmp_path / str(number), array.dtype, "r", shape=array.shape))
    on_disk = SegmentedImage(image.image, *mapped, THRESHOLD, image.metadata)
    found = written(tmp_path / "blocks", on_disk, name)
    for path in sorted(each for each in [expected, *expected.rglob("*")] if each.is_file()):
        other = found / path.relative_to(expected) if expected.is_dir() else found
        if path.suffix == ".tif":
            np.testing.assert_array_equal(tifffile.imread(other), tifffile.imread(path))
        else:
            assert other.read_bytes() == path.read_bytes(), path


def test_a_large_image_gets_tiled_tiffs_and_a_small_overlay(tmp_path, monkeypatch, capsys):
    mask = MASKS["blobs"]
    image = segmented(mask)
    monkeypatch.setattr(names, "MAX_PNG_PIXELS", mask.size - 1)
    monkeypatch.setattr(tiff, "TILE", 32)
    monkeypatch.setattr("glioma_dist.inference.writers.overlay.REDUCED_SIDE", 40)
    files = write(tmp_path, image, ["mask", "overlay", "mask-tiff", "probability", "labels"])
    assert capsys.readouterr().out == (
        "plate/a.tif: 97x131 pixels: writes mask as .mask.tif, the overlay at 1/4 of the size, TIFFs in tiles, which "
        "Fiji opens with Bio-Formats\n"
    )
    assert files["mask"] == files["mask-tiff"] == tmp_path / "a.mask.tif"
    for name, expected in (("mask", mask > 0), ("probability", image.probabilities), ("labels", labels_of(mask)[0])):
        with tifffile.TiffFile(files[name]) as file:
            assert file.pages[0].is_tiled
            np.testing.assert_array_equal(file.asarray(), expected)
    assert cv2.imread(str(files["overlay"]), -1).shape == (32, 24, 3)
    open_results(tmp_path, ["mask", "overlay", "labels"]).check(["a"])


@pytest.mark.parametrize("shape", [(5, 130), (130, 5)])
def test_a_large_image_narrower_than_the_square_that_becomes_a_pixel_has_an_overlay(shape, tmp_path, monkeypatch):
    monkeypatch.setattr("glioma_dist.inference.writers.names.MAX_PNG_PIXELS", 100)
    monkeypatch.setattr("glioma_dist.inference.writers.overlay.REDUCED_SIDE", 13)
    files = write(tmp_path, segmented(np.ones(shape, np.uint8)), ["overlay"])
    assert cv2.imread(str(files["overlay"]), -1).shape == (*(max(1, side // 10) for side in shape), 3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_slide_is_written_in_bounded_memory(tmp_path):
    """20,000 x 20,000 pixels, 33,960 components, memory-mapped. Memory is what the process has for itself, without the
    pages of the files, which the system takes back when it needs them."""
    side, tile = 20_000, 2000
    blobs = ndimage.gaussian_filter(np.random.default_rng(0).random((tile, tile)), 8, mode="wrap")
    blobs = ((blobs - blobs.min()) / np.ptp(blobs)).astype(np.float32)
    arrays = []
    for name, values in (("pixels", (blobs * 255).astype(np.uint8)), ("probabilities", blobs)):
        array = np.memmap(tmp_path / name, values.dtype, "w+", shape=(side, side))
        for start in range(0, side, tile):
            array[start : start + tile] = np.tile(values, side // tile)
        array.flush()
        arrays.append(np.memmap(tmp_path / name, values.dtype, "r", shape=(side, side)))
    largest = {"mask": 1, "overlay": 1, "labels": 1, "probability": 1, "ome-zarr": 1, "coco": 1.5, "qupath": 2.5}
    for name in [each for each in ALL if each in largest]:
        places = (tmp_path / "out", arrays[0].filename, arrays[1].filename)
        (peak,) = run(_peak_of_writing, *places, side, name, timeout=1800)
        assert peak < largest[name], name
        print(f"{name}: {peak:.2f} GiB")


def _peak_of_writing(folder: Path, pixels: str, probabilities: str, side: int, name: str) -> float:
    """GiB that a process has for itself at most while it writes a slide's result."""
    arrays = [np.memmap(path, kind, "r", shape=(side, side)) for path, kind in ((pixels, "u1"), (probabilities, "f4"))]
    peaks, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            (line,) = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
            peaks.append(int(line) / 2**20)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        write(folder, SegmentedImage(Path("slide.tif"), *arrays, 0.5, ImageMetadata(0.5)), [name])
    finally:
        ended.set()
        thread.join()
    return max(peaks)


def test_the_table_has_all_columns_and_the_files_by_format(tmp_path):
    results = open_results(tmp_path, ["labels", "mask"])
    mask = MASKS["rings"]
    with results.opened():
        done = [results.write("a", segmented(mask)), results.write("b", segmented(mask, None))]
        results.write_tables(done, [])
    with (tmp_path / "summary.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    about = ["image", "plane", "time_h", "acquired", "pixel_size_um", "width", "height"]
    columns = [*about, "confluence", "area_um2", "components", "flags", "way"]
    assert list(first) == [*columns, "labels", "mask"]
    covered = int(mask.sum())
    assert first == {
        **{"image": "plate/a.tif", "plane": "t003", "time_h": "1.5", "acquired": "2026-01-02T03:04:05"},
        **{"pixel_size_um": "0.65", "width": "31", "height": "23", "confluence": str(round(covered / mask.size, 6))},
        **{"area_um2": str(round(covered * 0.65**2, 3)), "components": "2", "flags": "", "way": "whole"},
        **{"labels": "a.labels.tif", "mask": "a.mask.png"},
    }
    assert (second["pixel_size_um"], second["area_um2"], second["mask"]) == ("", "", "b.mask.png")


@pytest.mark.parametrize("name", FORMATS)
def test_a_result_is_replaced_and_a_users_file_is_not(name, tmp_path):
    """The user's has the name of a result: a file, and where the format writes one, a folder."""
    path = written(tmp_path, segmented(MASKS["blobs"]), name)
    assert written(tmp_path, segmented(MASKS["rings"], None), name) == path
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    if path.is_dir():
        (path / ".zattrs").write_text("{}")
    else:
        path.write_bytes(b"drawn by hand")
    before = {each: each.read_bytes() for each in [path, *path.rglob("*")] if each.is_file()}
    with pytest.raises(InputError, match=rf"did not write, the first is {path.name}; give another folder"):
        written(tmp_path, segmented(MASKS["blobs"]), name)
    assert {each: each.read_bytes() for each in [path, *path.rglob("*")] if each.is_file()} == before


def test_no_result_is_taken_for_an_image(tmp_path):
    write(tmp_path, segmented(MASKS["blobs"]), ALL)
    open_results(tmp_path, ALL).write_tables([], [])
    Image.fromarray(MASKS["blobs"]).save(tmp_path / "b.png")
    found = find_images(str(tmp_path))
    assert [path.name for path in found.paths] == ["b.png"]
    assert found.describe() == f"{len(ALL) + 1} results of glioma-dist predict not read"


@pytest.mark.parametrize("entry", DECLARED, ids=lambda entry: entry.name)
def test_endings_tell_results_from_images(entry):
    for ending in endings(entry):
        assert ending.count(".") >= 2
        assert names.is_result_name(f"FIELD 1{ending}".upper())
    assert len({each for other in DECLARED for each in endings(other)}) == len(DECLARED), "mask.tif is of two formats"


def failing(path: Path, segmented: SegmentedImage) -> None:
    path.write_text("half")
    raise OSError(5, "Input/output error")


def wrong(path: Path, segmented: SegmentedImage) -> None:
    path.write_text("half")
    raise KeyError("a bug\nof somebody")


def forgetful(path: Path, segmented: SegmentedImage) -> None: ...


def plain(path: Path, segmented: SegmentedImage) -> None:
    path.write_text(str(segmented.mask.sum()))


@pytest.fixture
def registry(monkeypatch) -> Registry:
    """Formats as they are declared, to which a test adds its own."""
    fresh = Registry(writers.what, writers.group, WriterEntry, writers._declarations)
    for module in (
        "glioma_dist.inference.result_folder",
        "glioma_dist.inference.writers.names",
        "glioma_dist.registry",
    ):
        monkeypatch.setattr(f"{module}.writers", fresh)
    monkeypatch.setattr("glioma_dist.config.inference.writers", fresh)
    return fresh


@pytest.mark.parametrize(
    ("writer", "message"),
    [
        (failing, "cannot be written"),
        (wrong, r"--write mine.txt: KeyError: 'a bug\\nof somebody'"),
        (forgetful, "--write mine.txt: wrote nothing"),
    ],
)
def test_where_one_format_fails_all_old_results_stay(registry, tmp_path, writer, message):
    registry.register("mine.txt", writer)
    files = write(tmp_path, segmented(MASKS["blobs"]), ["mask", "overlay"])
    before = {path: path.read_bytes() for path in files.values()}
    with pytest.raises(InputError, match=message) as error:
        write(tmp_path, segmented(MASKS["rings"]), ["mask", "overlay", "mine.txt"])
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_name_too_long_for_one_format_leaves_none(tmp_path):
    results = open_results(tmp_path, ["mask", "probability"])
    name = "x" * (255 - len(".mask.png"))
    with results.opened(), pytest.raises(InputError, match="the name is too long"):
        results.write(name, segmented(MASKS["rings"]))
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_leaves_is_hidden_and_the_next_run_removes_it(tmp_path):
    left = partial_name(tmp_path / "a")
    left.mkdir()
    (left / "result.mask.png").write_bytes(b"half")
    Image.fromarray(MASKS["blobs"]).save(tmp_path / "b.png")
    assert [path.name for path in find_images(str(tmp_path)).paths] == ["b.png"]
    write(tmp_path, segmented(MASKS["rings"]), ["mask"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mask.png", "b.png"]


def test_two_runs_that_write_the_same_results_both_end_well(tmp_path):
    formats = [name for name in ALL if name in ("mask", "labels", "ome-zarr")]
    for _ in range(5):
        threads = [
            threading.Thread(target=write, args=(tmp_path, segmented(MASKS[name]), formats))
            for name in ("rings", "blobs", "rings")
        ]
        with pytest.MonkeyPatch.context() as patch:
            # Threads stand for processes: each has an id of its own.
            patch.setattr("glioma_dist.hidden_folder.os.getpid", threading.get_ident)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        path.name for path in written_all(tmp_path, formats)
    )


def written_all(folder: Path, formats: Sequence[str]) -> list[Path]:
    """The files of these formats, each of which can be read."""
    paths = {name: folder / f"a{endings(writers.find(name))[0]}" for name in formats}
    assert cv2.imread(str(paths["mask"]), -1).max() == 255
    assert tifffile.imread(paths["labels"]).max() > 1
    return list(paths.values())


def test_a_format_of_another_package_is_used_by_its_name_which_is_its_ending(tmp_path, monkeypatch, registry):
    site = tmp_path / "site"
    info = site / "my_formats-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-formats\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[glioma_dist.writers]\ncount.tif = my_formats:write_count\n")
    (site / "my_formats.py").write_text(
        "def write_count(path, segmented):\n    path.write_text(str(segmented.mask.sum()))\n"
    )
    monkeypatch.syspath_prepend(str(site))
    out = tmp_path / "out"
    PredictConfig("t98g-small", "x", out, write=("mask", "count.tif")).validate()
    for mask in (MASKS["rings"], MASKS["blobs"]):  # the second time the table says whose the file is
        results = open_results(out, ["mask", "count.tif"])
        results.check(["a"])
        with results.opened():
            done = results.write("a", segmented(mask))
            results.write_tables([done], [])
        assert (out / "a.count.tif").read_text() == str(mask.sum())
        assert done.row()["count.tif"] == "a.count.tif"
    Image.fromarray(MASKS["blobs"]).save(out / "b.png")
    assert [path.name for path in find_images(str(out)).paths] == ["b.png"]
    (out / "summary.csv").unlink()
    with pytest.raises(InputError, match=r"the first is a\.count\.tif"):
        results.check(["a"])


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        (
            ("maks",),
            r"--write maks: unknown; did you mean mask\? \(known: mask, overlay, mask-tiff, probability, labels",
        ),
        (("mask", "mask"), "--write mask mask: name each format once"),
    ],
)
def test_formats_that_cannot_be_used_are_refused_at_the_start(formats, message):
    with pytest.raises(InputError, match=message):
        PredictConfig("t98g-small", "x", Path("out"), write=formats).validate()


def test_an_image_too_wide_for_imagej_is_refused_and_told_what_to_write(tmp_path):
    pytest.importorskip("roifile")
    with pytest.raises(InputError, match=r"above 32767.*write qupath or labels"):
        written(tmp_path, segmented(np.zeros((1, 32768), np.uint8)), "imagej")
    assert list(tmp_path.iterdir()) == []


def test_the_same_image_gives_the_same_bytes(tmp_path):
    first, second = (write(tmp_path / each, segmented(MASKS["blobs"]), ALL) for each in "ab")
    for name, path in first.items():
        for each in [path, *path.rglob("*")]:
            if each.is_file():
                other = second[name] / os.path.relpath(each, path) if path.is_dir() else second[name]
                assert each.read_bytes() == other.read_bytes(), name
