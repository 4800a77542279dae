"""Formats of results for networks with several classes and with a second output: each is read by somebody else's
program, and every registered one is tested."""

import csv
import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy import ndimage

from glioma_dist.evaluation.separation import separate
from glioma_dist.inference import components
from glioma_dist.inference.components import EIGHT
from glioma_dist.inference.regions import region_outlines
from glioma_dist.inference.result_folder import open_results
from glioma_dist.inference.segmented import ImageMetadata, SegmentedImage
from glioma_dist.inference.writers import names as writer_names
from glioma_dist.inference.writers.colours import CLASS_COLOURS
from glioma_dist.model.outputs import Outputs
from glioma_dist.registry import writers

CLASSES = ("type A", "soma / large")
PLAIN_TARGETS = (None, "boundary", "distance")
KINDS = [(classes, target) for classes in ((), CLASSES) for target in PLAIN_TARGETS if classes or target]
LIBRARIES = {"imagej": "roifile", "ome-zarr": "zarr"}


def blobs(generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    values = ndimage.gaussian_filter(generator.random(shape), 3)
    return (values - values.min()) / np.ptp(values)


def segmented(classes: tuple[str, ...], target: str | None, channels: int = 1, shape=(131, 97)) -> SegmentedImage:
    """Drawn maps in which cells of all classes touch."""
    if target is not None:
        pytest.importorskip("skimage", reason="pip install scikit-image")
    generator = np.random.default_rng(3)
    maps = [blobs(generator, shape)]
    if classes:
        logits = np.stack([8 * blobs(generator, shape) for _ in range(len(classes) + 1)])
        maps = list(np.exp(logits) / np.exp(logits).sum(0))
    maps += [blobs(generator, shape)] if target else []
    stored = np.stack(maps, 1).astype(np.float32) if len(maps) > 1 else maps[0].astype(np.float32)
    outputs = Outputs(len(classes) + 1 if classes else 1, target)
    pixels = generator.integers(0, 256, shape if channels == 1 else (*shape, channels), dtype=np.uint8)
    metadata = ImageMetadata(0.5)
    return SegmentedImage(Path("plate/a.tif"), pixels, stored, 0.5, metadata, outputs=outputs, classes=classes)


def expected_mask(image: SegmentedImage) -> np.ndarray:
    """The class of each pixel, by the definition."""
    maps = image.maps.transpose(1, 0, 2)
    if not image.classes:
        return (maps[0] >= 0.5).astype(np.uint8)
    return np.where(1 - maps[0] >= np.float32(0.5), maps[1 : len(image.classes) + 1].argmax(0) + 1, 0)


def expected_labels(image: SegmentedImage) -> np.ndarray:
    mask = expected_mask(image)
    if image.outputs.target:
        return separate(mask, image.maps[:, -1], image.outputs.target)
    labels = np.zeros(mask.shape, int)
    for number in range(1, len(image.classes) + 1):
        found, _ = ndimage.label(mask == number, np.ones((3, 3)))
        labels[found > 0] = found[found > 0] + labels.max()
    return labels


def expected_classes(image: SegmentedImage) -> list[int]:
    """The commonest class of each region."""
    labels, mask = expected_labels(image), expected_mask(image)
    return [int(np.bincount(mask[labels == number]).argmax()) for number in range(1, labels.max() + 1)]


def write(folder: Path, image: SegmentedImage, *formats: str) -> dict[str, Path]:
    results = open_results(folder, formats)
    results.check(["a"])
    with results.opened():
        done = results.write("a", image)
        results.write_tables([done], [])
    return done.files


@pytest.fixture(params=KINDS, ids=lambda kind: f"{len(kind[0]) or 1} classes, {kind[1]}")
def image(request):
    return segmented(*request.param)


@pytest.mark.parametrize("name", writers.names())
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{len(kind[0]) or 1} classes, {kind[1]}")
def test_each_format_is_written_and_may_be_replaced(name, channels, kind, tmp_path):
    if name in LIBRARIES:
        pytest.importorskip(LIBRARIES[name])
    picture = segmented(*kind, channels)
    (path,) = write(tmp_path, picture, name).values()
    assert path.exists()
    write(tmp_path, picture, name)


def test_masks_have_the_numbers_of_classes(image, tmp_path):
    files = write(tmp_path, image, "mask", "mask-tiff", "probability")
    expected = expected_mask(image)
    assert set(np.unique(expected)) == set(range(image.num_classes + 1))
    found = np.asarray(Image.open(files["mask"]))
    np.testing.assert_array_equal(found, expected if image.classes else expected * 255)
    np.testing.assert_array_equal(tifffile.imread(files["mask-tiff"]), expected)
    probability = tifffile.imread(files["probability"])
    np.testing.assert_array_equal(probability >= np.float32(0.5), expected > 0)
    if image.classes:
        shown = np.asarray(Image.open(files["mask"]).convert("RGB"))
        np.testing.assert_array_equal(shown[expected == 2], np.tile(CLASS_COLOURS[1], ((expected == 2).sum(), 1)))
        assert not shown[expected == 0].any()
        assert cv2.imread(str(files["mask"]), -1) is not None


def test_labels_are_the_regions(image, tmp_path):
    found = tifffile.imread(write(tmp_path, image, "labels")["labels"])
    np.testing.assert_array_equal(found, expected_labels(image))
    np.testing.assert_array_equal(found > 0, expected_mask(image) > 0)


def test_the_table_counts_cells_and_the_confluence_of_each_class(image, tmp_path):
    write(tmp_path, image, "labels")
    with (tmp_path / "summary.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    mask = expected_mask(image)
    assert float(row["confluence"]) == pytest.approx((mask > 0).mean(), abs=1e-6)
    for number, name in enumerate(image.classes, 1):
        assert float(row[f"confluence of {name}"]) == pytest.approx((mask == number).mean(), abs=1e-6)
    assert len([each for each in row if each.startswith("confluence of")]) == len(image.classes)
    assert ("cells" in row) == bool(image.outputs.target)
    if image.outputs.target:
        assert int(row["cells"]) == expected_labels(image).max()
    num = sum(ndimage.label(mask == number, np.ones((3, 3)))[1] for number in range(1, image.num_classes + 1))
    assert int(row["components"]) == num


def test_a_second_run_may_replace_its_results(image, tmp_path):
    """Numbers of columns of one's own are no names of others' files."""
    write(tmp_path, image, "labels")
    results = open_results(tmp_path, ["labels"])
    results.check(["a"])
    from glioma_dist.inference.result_files import listed_in

    assert not listed_in((tmp_path / "summary.csv").read_text())


def test_qupath_has_classes(image, tmp_path):
    shapely = pytest.importorskip("shapely")
    content = json.loads(write(tmp_path, image, "qupath")["qupath"].read_text())
    labels, classes = expected_labels(image), expected_classes(image)
    assert len(content["features"]) == labels.max()
    for number, feature in enumerate(content["features"], 1):
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        assert shape.area == (labels == number).sum() == feature["properties"]["measurements"]["Area px^2"]
        if image.classes:
            assert feature["properties"]["classification"]["name"] == image.classes[classes[number - 1] - 1]
    rows = {feature["properties"]["name"].split()[0] for feature in content["features"]}
    assert rows == {"Cell" if image.outputs.target else "Component"}


def test_outlines_filled_again_are_the_regions(image):
    filled = np.zeros(image.shape, np.int32)
    labels = expected_labels(image)
    for number, polygons in enumerate(region_outlines(image.regions, image.mask_rows), 1):
        inside = np.zeros(image.shape, np.int8)
        for ring in (ring for polygon in polygons for ring in polygon):
            # Each vertical edge changes the side of all pixels to its right: even-odd rule.
            for (x, y), (_, y_next) in zip(ring, np.roll(ring, -1, 0), strict=True):
                inside[min(y, y_next) : max(y, y_next), x:] ^= 1
        filled[inside > 0] = number
    np.testing.assert_array_equal(filled, labels)


def test_coco_has_categories(image, tmp_path):
    coco = COCO(str(write(tmp_path, image, "coco")["coco"]))
    labels, classes = expected_labels(image), expected_classes(image)
    names = [each["name"] for each in coco.loadCats(coco.getCatIds())]
    assert names == list(image.classes) or (not image.classes and len(names) == 1)
    annotations = coco.loadAnns(coco.getAnnIds())
    assert len(annotations) == labels.max()
    for number, annotation in enumerate(annotations, 1):
        cell = labels == number
        np.testing.assert_array_equal(coco_mask.decode(annotation["segmentation"]), cell)
        y, x = np.nonzero(cell)
        assert annotation["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
        assert annotation["category_id"] == classes[number - 1]


def test_imagej_rois_have_classes(image, tmp_path):
    roifile = pytest.importorskip("roifile")
    path = write(tmp_path, image, "imagej")["imagej"]
    classes = expected_classes(image)
    rois = roifile.roiread(path)
    assert len(rois) == len(classes)
    if image.classes:
        assert [roi.group for roi in rois] == classes
        assert {roi.name.rpartition("-")[0] for roi in rois} == {"type A", "soma - large"}
    else:
        assert {roi.group for roi in rois} == {0}
    with zipfile.ZipFile(path) as archive:
        assert len(set(archive.namelist())) == len(classes)


def test_ome_zarr_labels_have_classes(image, tmp_path):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(write(tmp_path, image, "ome-zarr")["ome-zarr"], mode="r")
    (name,) = group["labels"].attrs["labels"]
    assert name == ("cells" if image.outputs.target else "components")
    np.testing.assert_array_equal(group[f"labels/{name}/0"][:], expected_labels(image))
    properties = group[f"labels/{name}"].attrs["image-label"].get("properties", [])
    classes = [image.classes[each - 1] for each in expected_classes(image)] if image.classes else []
    assert [each["class"] for each in properties] == classes


def test_overlays_have_a_colour_for_each_class(tmp_path):
    image = segmented(CLASSES, None)
    shown = cv2.imread(str(write(tmp_path, image, "overlay")["overlay"]))[..., ::-1]
    for number in (1, 2):
        drawn = (shown == CLASS_COLOURS[number - 1]).all(2)
        assert drawn.sum() > 50
        mask = expected_mask(image)
        assert (mask[drawn] == number).mean() > 0.9  # where classes touch, the later one's line is drawn over


def test_overlays_show_borders_between_cells(tmp_path):
    image = segmented((), "boundary")
    labels = expected_labels(image)
    between = (labels[:-1] != labels[1:]) & (labels[:-1] > 0) & (labels[1:] > 0)
    assert between.any()
    shown = cv2.imread(str(write(tmp_path, image, "overlay")["overlay"]))[..., ::-1]
    assert (shown[:-1][between] == (255, 200, 0)).all()


@pytest.mark.parametrize("name", ["labels", "coco", "qupath", "mask-tiff", "probability", "ome-zarr"])
def test_classes_in_blocks_of_rows_are_those_in_memory(name, tmp_path, monkeypatch):
    if name in LIBRARIES:
        pytest.importorskip(LIBRARIES[name])
    image = segmented(CLASSES, None)
    expected = write(tmp_path / "whole", image, name)[name]
    monkeypatch.setattr(components, "ROW_STEP", 16)
    monkeypatch.setattr(components, "BLOCK_PIXELS", 1)
    image.maps.tofile(tmp_path / "maps")
    mapped = np.memmap(tmp_path / "maps", np.float32, "r", shape=image.maps.shape)
    again = SegmentedImage(
        image.image, image.pixels, mapped, 0.5, image.metadata, outputs=image.outputs, classes=image.classes
    )
    found = write(tmp_path / "blocks", again, name)[name]
    for path in sorted(each for each in [expected, *expected.rglob("*")] if each.is_file()):
        other = found / path.relative_to(expected) if expected.is_dir() else found
        assert other.read_bytes() == path.read_bytes(), path


def test_a_large_image_of_classes_is_a_tiff_with_a_small_overlay(tmp_path, monkeypatch):
    image = segmented(CLASSES, None)
    monkeypatch.setattr(writer_names, "MAX_PNG_PIXELS", image.mask.size - 1)
    monkeypatch.setattr("glioma_dist.inference.writers.overlay.REDUCED_SIDE", 40)
    files = write(tmp_path, image, "mask", "overlay")
    np.testing.assert_array_equal(tifffile.imread(files["mask"]), expected_mask(image))
    assert cv2.imread(str(files["overlay"])).shape == (32, 24, 3)


def test_one_class_has_components_as_before():
    image = segmented((), "boundary")
    plain = SegmentedImage(image.image, image.pixels, np.ascontiguousarray(image.maps[:, 0]), 0.5)
    assert plain.regions is plain.components
    (_, labels), *_ = plain.components.blocks()
    np.testing.assert_array_equal(labels, ndimage.label(expected_mask(image), EIGHT)[0])
