"""Batches of masks with classes, ignored pixels and a second target: the same however they are made, and what they
should be."""

from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import draw_labelled, write_shards
from scipy import ndimage
from test_loader import check_same, join

from glioma_dist.config import DataConfig
from glioma_dist.data.augmentations import CHANGES, MOST, apply_change
from glioma_dist.data.jobs import prepare_evaluation_sample, prepare_training_sample
from glioma_dist.data.loader import ValidationImages, places_of, start_workers, training_batches
from glioma_dist.data.mask_scaling import scale_labels, scale_mask
from glioma_dist.data.own_augmentation import apply_function
from glioma_dist.data.sample import IGNORE, cells_of
from glioma_dist.data.sampler import DeterministicSampler
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.targets import BOUNDARY_PX, SECOND_TARGETS, labels_of, planes_of
from glioma_dist.errors import InputError
from glioma_dist.registry import augmentations
from glioma_dist.size import Size

CLASSES = ("live", "dead")
ALL = {"num_classes": 2, "has_ignore": True, "has_instances": True}
TARGETS = [("mask",), *(("mask", name) for name in SECOND_TARGETS)]
TRANSFORMS = ("resize", "random-crop", "random-resized-crop")
AUGMENTS = [(), *((name,) for name in augmentations.names()), tuple(augmentations.names())]
SIZE = Size(64, 48)


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def setting(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled") / "train"
    samples = [draw_labelled(number, channels=request.param, **ALL) for number in range(9)]
    reader = ShardReader(write_shards(folder, samples, 4, CLASSES))
    return SimpleNamespace(
        reader=reader,
        order=DeterministicSampler(reader.shard_sizes, 4, seed=3),
        config=DataConfig(train=(str(folder),), size=SIZE, workers=0),
    )


def take(setting, targets=("mask",), number=3, **how) -> list:
    config = replace(setting.config, **{name: how.pop(name) for name in list(how) if hasattr(setting.config, name)})
    batches = training_batches(setting.reader, setting.order, config, targets=targets, **how)
    taken = list(islice(batches, number))
    batches.close()
    return taken


@pytest.mark.parametrize("augment_by", AUGMENTS, ids="+".join)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_batch_is_the_same_however_it_is_made(setting, transform, augment_by):
    targets = ("mask", "boundary")
    how = {"targets": targets, "transform": transform, "augment": augment_by, "magnitude": 0.7, "num_ops": 3}
    plain = take(setting, **how)
    for others in (take(setting, cache_in_memory=True, **how), take(setting, **how)):
        for one, other in zip(plain, others, strict=True):
            check_same(one, other)
    parts = [take(setting, rank=rank, num_processes=2, **how) for rank in (0, 1)]
    for one, *pieces in zip(plain, *parts, strict=True):
        check_same(one, join(pieces))
    halves = [take(setting, rows=rows, **how) for rows in (slice(0, 32), slice(32, 48))]
    for one, *strips in zip(plain, *halves, strict=True):
        assert torch.equal(one.masks, torch.cat([strip.masks for strip in strips], dim=-2))
        assert torch.equal(one.masks[..., 32:, :], one.strip(slice(32, 48)).masks)
    # What the mask is does not depend on the second target.
    alone = take(setting, **how | {"targets": ("mask",)})
    for one, other in zip(plain, alone, strict=True):
        assert one.masks.shape == (4, 2, 48, 64)
        assert other.masks.shape == (4, 48, 64)
        assert set(other.masks.unique().tolist()) <= {0, 1, 2, IGNORE}
        assert torch.equal(one.images, other.images)
        # Affine changes round places of two planes otherwise, here and there.
        assert (one.masks[:, 0] != other.masks).double().mean() < 1e-3


@pytest.mark.parametrize("targets", TARGETS, ids="+".join)
def test_workers_change_nothing(setting, targets):
    how = {"targets": targets, "augment": ("flips", "rand-augment"), "transform": "random-resized-crop"}
    plain = take(setting, number=6, **how)
    for cached in (False, True):
        for one, other in zip(plain, take(setting, number=6, workers=2, cache_in_memory=cached, **how), strict=True):
            check_same(one, other)
    with start_workers(replace(setting.config, workers=2)) as pool:
        for one, other in zip(plain, take(setting, number=6, pool=pool, **how), strict=True):
            check_same(one, other)
        shown = [
            list(
                ValidationImages(setting.reader, setting.config, places_of(setting.reader), pool=each, targets=targets)
            )
            for each in (None, pool)
        ]
    for one, other in zip(*shown, strict=True):
        check_same(one, other)
        assert one.masks.shape == (1, *(2,) * (len(targets) - 1), 48, 64)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("targets", TARGETS[1:], ids="+".join)
def test_validation_in_strips_is_the_whole(setting, transform, targets):
    config = replace(setting.config, transform=transform, size=Size(64, 64))
    places = places_of(setting.reader)[:3]
    if transform == "random-crop":
        pytest.skip("shows whole images, whose 80 rows cannot be cut in two")
    whole = list(ValidationImages(setting.reader, config, places, targets=targets))
    strips = [list(ValidationImages(setting.reader, config, places, (part, 2), targets=targets)) for part in (0, 1)]
    for one, *parts in zip(whole, *strips, strict=True):
        assert torch.equal(one.masks, torch.cat([part.masks for part in parts], dim=-2))


def boundary_slowly(instances: np.ndarray) -> np.ndarray:
    found = np.zeros(instances.shape, np.uint8)
    for row, column in zip(*np.nonzero(instances), strict=True):
        around = instances[
            max(0, row - BOUNDARY_PX) : row + BOUNDARY_PX + 1, max(0, column - BOUNDARY_PX) : column + BOUNDARY_PX + 1
        ]
        found[row, column] = (around != instances[row, column]).any()
    return found


def distance_slowly(instances: np.ndarray) -> np.ndarray:
    """Cell by cell, by scipy."""
    found = np.zeros(instances.shape)
    padded = np.pad(instances, 1, mode="edge")
    for cell in np.unique(instances[instances > 0]):
        inside = instances == cell
        edge = inside & ndimage.binary_dilation(padded != cell, np.ones((3, 3)))[1:-1, 1:-1]
        depth = 1 + (ndimage.distance_transform_edt(~edge) if edge.any() else np.zeros(inside.shape))
        found[inside] = 254 * depth[inside] / depth[inside].max()
    return found


SLOWLY = {"boundary": boundary_slowly, "distance": distance_slowly}


@pytest.mark.parametrize("name", SECOND_TARGETS)
def test_second_targets_are_what_a_slow_way_gives(name):
    cases = [draw_labelled(number, has_instances=True).instances for number in range(4)]
    cases += [np.zeros((9, 7), np.uint16), np.full((9, 7), 65535, np.uint16), np.eye(9, dtype=np.uint16) * 7]
    for instances in cases:
        found = SECOND_TARGETS[name](instances)
        assert found.dtype == np.uint8
        np.testing.assert_allclose(found, SLOWLY[name](instances), atol=0.501 if name == "distance" else 0)


def test_boundaries_reach_two_pixels_from_another_cell_and_from_the_background():
    """As the page of touching cells says; the edge of the image is no boundary."""
    instances = np.zeros((7, 30), np.uint16)
    instances[:, :10], instances[:, 10:20] = 3, 8
    expected = np.isin(np.arange(30), (8, 9, 10, 11, 18, 19))
    np.testing.assert_array_equal(SECOND_TARGETS["boundary"](instances), np.broadcast_to(expected, instances.shape))


def distance_plainly(instances: np.ndarray) -> np.ndarray:
    """All pixels at once, as the documentation defines it, in fp32."""
    padded = np.pad(instances, 1, mode="edge")
    square = np.ones((3, 3))
    differs = ndimage.grey_dilation(padded, footprint=square) != ndimage.grey_erosion(padded, footprint=square)
    inner = (instances > 0) & ~differs[1:-1, 1:-1]
    depth = 1 + (ndimage.distance_transform_edt(inner) if not inner.all() else np.zeros(inner.shape))
    depth = depth.astype(np.float32)
    deepest = ndimage.maximum(depth, instances, np.arange(65536)).astype(np.float32)
    return np.where(instances > 0, np.rint(depth * (np.float32(254) / np.maximum(deepest, 1))[instances]), 0).astype(
        np.uint8
    )


@pytest.mark.parametrize("number", range(6))
def test_distances_and_scaled_numbers_are_exactly_those_of_a_plain_way(number):
    """To the bit: a training must not depend on how quickly its targets are computed."""
    generator = np.random.default_rng(number)
    blobs = ndimage.gaussian_filter(generator.normal(size=(120, 150)), 1 + number)
    instances = ndimage.label(blobs > np.quantile(blobs, (0.0, 0.2, 0.5, 0.7, 0.9, 1.0)[number]))[0].astype(np.uint16)
    instances[:, 60:] *= 700 // max(1, instances.max())  # numbers with gaps, and cells that touch along a line
    np.testing.assert_array_equal(SECOND_TARGETS["distance"](instances), distance_plainly(instances))
    labels = np.stack([(instances > 0).astype(np.uint16), instances], axis=-1)
    for size in (Size(150, 128), Size(75, 60), Size(217, 203), Size(64, 160)):
        scaled = scale_labels(labels, size)
        rows, columns = (
            (2 * np.arange(new) + 1) * old // (2 * new) for new, old in ((size.height, 120), (size.width, 150))
        )
        cells = scale_mask(labels[..., 0].astype(np.uint8), size)
        for plane in (0, 1):
            nearest = labels[rows][:, columns, plane]
            around = ndimage.maximum_filter(labels[..., plane], 3, mode="constant")[rows][:, columns]
            np.testing.assert_array_equal(scaled[..., plane], np.where(nearest > 0, nearest, around) * cells)


@pytest.mark.parametrize("name", SECOND_TARGETS)
def test_nothing_is_learned_of_ignored_pixels(name):
    sample = draw_labelled(3, **ALL)
    planes = planes_of(labels_of(sample, ("mask", name)), ("mask", name))
    np.testing.assert_array_equal(planes[0], sample.mask)
    np.testing.assert_array_equal(planes[1] == IGNORE, sample.mask == IGNORE)


@pytest.mark.parametrize(
    "size", [Size(96, 80), Size(64, 48), Size(61, 37), Size(192, 160), Size(150, 123), Size(95, 81)]
)
def test_scaled_labels_have_cells_where_a_scaled_mask_has(size):
    """Each cell's pixel has the number of its nearest one, or that of one around it."""
    sample = draw_labelled(1, **ALL | {"has_ignore": False})
    labels = labels_of(sample, ("mask", "boundary"))
    scaled = scale_labels(labels, size)
    np.testing.assert_array_equal(scaled[..., 0], scale_labels(sample.mask, size))
    cells = scale_mask(cells_of(sample.mask).view(np.uint8), size)
    for number, plane in enumerate((sample.mask, sample.instances)):
        np.testing.assert_array_equal(scaled[..., number] > 0, cells)
        rows, columns = (
            np.floor((np.arange(new) + 0.5) * old / new).astype(int)
            for new, old in ((size.height, 80), (size.width, 96))
        )
        nearest = plane[rows][:, columns]
        np.testing.assert_array_equal(scaled[..., number][nearest > 0], nearest[nearest > 0])
        around = ndimage.maximum_filter(plane, 3, mode="constant")[rows][:, columns]
        rest = (nearest == 0) & (cells > 0)
        np.testing.assert_array_equal(scaled[..., number][rest], around[rest])


def test_scaled_masks_of_one_class_are_as_before_but_for_ignored_pixels():
    sample = draw_labelled(2, has_ignore=True)
    size = Size(70, 53)
    scaled = scale_labels(sample.mask, size)
    plain = scale_mask((sample.mask == 1).view(np.uint8), size)
    rows, columns = ((np.arange(new) + 0.5) * old / new for new, old in ((53, 80), (70, 96)))
    ignored = sample.mask[rows.astype(int)][:, columns.astype(int)] == IGNORE
    np.testing.assert_array_equal(scaled, np.where(ignored, IGNORE, plain))


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_keeps_mask_and_instances_together(change):
    sample = draw_labelled(4, num_classes=2, has_instances=True)
    labels = labels_of(sample, ("mask", "boundary"))
    _, changed = apply_change(sample.image, labels, change, MOST.get(change, 0) * 0.6)
    assert (changed.shape, changed.dtype) == (labels.shape, labels.dtype)
    np.testing.assert_array_equal(changed[..., 0] > 0, changed[..., 1] > 0)
    found = {tuple(pair) for pair in changed.reshape(-1, 2).tolist()}
    assert found <= {tuple(pair) for pair in labels.reshape(-1, 2).tolist()}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_samples_without_instances_have_no_second_target(kind):
    sample, config = draw_labelled(0), DataConfig(size=SIZE)
    prepare = prepare_training_sample if kind == "train" else prepare_evaluation_sample
    seed = {"seed": 1} if kind == "train" else {}
    with pytest.raises(InputError, match="sample cell-000: has no instances, which boundary is made of; convert"):
        prepare(sample, config, **seed, targets=("mask", "boundary"))


def test_shards_without_instances_are_refused_at_once(tmp_path, setting):
    folder = write_shards(tmp_path / "train", [draw_labelled(0)])
    reader = ShardReader(folder)
    for make in (
        lambda: training_batches(reader, setting.order, setting.config, targets=("mask", "distance")),
        lambda: ValidationImages(reader, setting.config, [(0, 0)], targets=("mask", "distance")),
    ):
        with pytest.raises(InputError, match="train: has no instances, which the target distance is made of"):
            make()


def brighter(image, mask, generator):
    return np.minimum(image, 200) + np.uint8(generator.integers(50)), mask


def turned(image, mask, generator):
    return np.ascontiguousarray(image[::-1]), np.ascontiguousarray(mask[::-1])


def turned_with_numbers(image, mask, generator, instances):
    return image[::-1], mask[::-1], instances[::-1]


def of_other_values(image, mask, generator):
    return image, np.where(mask == 2, np.uint8(9), mask)


@pytest.mark.parametrize("function", [brighter, turned, turned_with_numbers, of_other_values])
def test_registered_functions_get_classes_and_numbers(function):
    sample = draw_labelled(5, num_classes=2, has_instances=True)
    labels = labels_of(sample, ("mask", "boundary"))
    entry = SimpleNamespace(name=function.__name__, described=function.__name__, load=lambda: function)
    if function is of_other_values:
        with pytest.raises(InputError, match="its mask has the value 9; give values of the mask that it gets"):
            apply_function(entry, sample.image, sample.mask, 1)
        return
    if function is turned_with_numbers:
        np.testing.assert_array_equal(apply_function(entry, sample.image, labels, 1)[1], labels[::-1])
        return
    _, mask = apply_function(entry, sample.image, sample.mask, 1)
    np.testing.assert_array_equal(mask, sample.mask if function is brighter else sample.mask[::-1])
    if function is turned:
        with pytest.raises(InputError, match="take a parameter instances, and return them as third"):
            apply_function(entry, sample.image, labels, 1)
        return
    np.testing.assert_array_equal(apply_function(entry, sample.image, labels, 1)[1], labels)
