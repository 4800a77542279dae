"""Chains of randomly drawn changes: what is drawn, how often, and that image and mask stay together."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from helpers import draw_sample

from glioma_dist.config import DataConfig
from glioma_dist.data.augmentations import CHANGES, MOST, SIGNED, apply_change, draw_ops
from glioma_dist.data.loader import prepare_training_sample
from glioma_dist.data.transforms import augment
from glioma_dist.errors import InputError
from glioma_dist.size import Size

HEIGHT, WIDTH = 50, 60
PLACES = ("shift-x", "shift-y", "shear-x", "shear-y", "rotate")
NUM_CHAINS = 4000


def drawn(name: str, length: int, strength: float = 0.3) -> list[list[tuple[str, float]]]:
    generator = np.random.default_rng(3)
    return [draw_ops(name, length, strength, generator) for _ in range(NUM_CHAINS)]


@pytest.mark.parametrize("name", ["rand-augment", "trivial-augment"])
@pytest.mark.parametrize("length", [1, 3])
def test_chains_have_the_length_and_all_changes_come_equally_often_at_every_place(name, length):
    """Chi-square of 12 degrees of freedom: its 99.99th percentile is 39.1."""
    chains = drawn(name, length)
    assert {len(chain) for chain in chains} == {length}
    expected = NUM_CHAINS / len(CHANGES)
    for place in range(length):
        counts = np.array([sum(chain[place][0] == change for chain in chains) for change in CHANGES])
        assert ((counts - expected) ** 2 / expected).sum() < 39.1
    if length > 1:  # a change comes after itself as often as after any other
        again = np.mean([chain[0][0] == chain[1][0] for chain in chains])
        assert abs(again - 1 / 13) < 5 * np.sqrt(1 / 13 / NUM_CHAINS)


def test_rand_augment_changes_all_by_the_same_strength_either_way():
    for change, amount in (link for chain in drawn("rand-augment", 2, 0.4) for link in chain):
        assert abs(amount) == pytest.approx(0.4 * MOST.get(change, 0))
    signs = [np.sign(amount) for chain in drawn("rand-augment", 2) for change, amount in chain if change in SIGNED]
    assert abs(np.mean(signs)) < 5 / np.sqrt(len(signs))
    assert not any(amount < 0 for chain in drawn("rand-augment", 2) for name, amount in chain if name not in SIGNED)


def test_trivial_augment_draws_each_strength_evenly():
    """Kolmogorov's distance is below 2.23 / sqrt(n) with probability 0.9999."""
    for change in MOST:
        shares = np.sort(
            [abs(a) / MOST[change] for chain in drawn("trivial-augment", 2) for name, a in chain if name == change]
        )
        assert np.abs(shares - (np.arange(len(shares)) + 0.5) / len(shares)).max() < 2.23 / np.sqrt(len(shares))


def source_places(change: str, amount: float) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel of the changed image the column and row that it comes from: (H, W) float, good to an eighth of a
    pixel, told by an image that holds its own coordinates in quarters of a pixel."""
    empty, found = np.zeros((HEIGHT, WIDTH), np.uint8), []
    for axis in (1, 0):
        coordinates = (4 * np.indices((HEIGHT, WIDTH))[axis]).astype(np.uint8)
        changed, _ = apply_change(np.repeat(coordinates[..., None], 3, axis=2), empty, change, amount)
        found.append(changed[..., 0] / 4)
    return found[0], found[1]


@pytest.mark.parametrize("change", PLACES)
@pytest.mark.parametrize("share", [-1.0, -0.37, 0.2, 1.0])
def test_a_change_of_place_moves_image_and_mask_by_the_same_to_the_pixel(change, share):
    """The mask takes the nearest pixel: wherever the image says plainly which that is, the mask has its value."""
    amount = share * MOST[change]
    mask = (np.random.default_rng(1).random((HEIGHT, WIDTH)) < 0.5).astype(np.uint8)
    _, changed = apply_change(np.zeros((HEIGHT, WIDTH), np.uint8), mask, change, amount)
    columns, rows = source_places(change, amount)
    plain = (np.abs(columns % 1 - 0.5) > 0.2) & (np.abs(rows % 1 - 0.5) > 0.2)
    # On either side of a mirrored edge the image's own interpolation says less than it seems to.
    plain &= (columns > 1) & (columns < WIDTH - 2) & (rows > 1) & (rows < HEIGHT - 2)
    assert plain.mean() > 0.2
    expected = mask[np.round(rows).astype(int), np.round(columns).astype(int)]
    np.testing.assert_array_equal(changed[plain], expected[plain])
    moved = np.hypot(columns - np.arange(WIDTH), rows - np.arange(HEIGHT)[:, None])
    assert moved.max() > 1


@pytest.mark.parametrize("change", ["mirror-x", "mirror-y"])
def test_mirrorings_are_exact(change):
    image, mask = np.random.default_rng(0).integers(0, 256, (2, 9, 13), dtype=np.uint8)
    step = (slice(None), slice(None, None, -1)) if change == "mirror-x" else (slice(None, None, -1), slice(None))
    for array, changed in zip((image, mask), apply_change(image, mask, change, 0.0), strict=True):
        np.testing.assert_array_equal(changed, array[step])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("change", [name for name in MOST if name not in PLACES])
def test_changes_of_light_leave_the_mask_alone_and_do_what_they_are_called(change, channels):
    sample = draw_sample(4, channels=channels)
    changed, mask = apply_change(sample.image, sample.mask, change, MOST[change])
    assert (changed.dtype, changed.shape) == (np.uint8, sample.image.shape)
    np.testing.assert_array_equal(mask, sample.mask)
    before, after = sample.image.astype(float), changed.astype(float)
    edges = [np.abs(np.diff(values, axis=1)).mean() for values in (before, after)]
    rises = {
        "brightness": after.mean() > before.mean() + 20,
        "contrast": after.std() > 1.1 * before.std(),
        "gamma": after.mean() < before.mean() - 20,
        "sharpen": edges[1] > 1.2 * edges[0],
        "blur": edges[1] < 0.5 * edges[0],
    }
    assert rises[change]


def test_a_chain_keeps_shapes_and_depends_on_its_seed_alone():
    sample = draw_sample(5, channels=3)
    results = set()
    for seed in (0, 1, 2**62 + 5, 2**63 - 1, *range(2, 30)):
        for name in ("rand-augment", "trivial-augment"):
            first = augment(sample.image, sample.mask, ("flips", name), seed, 3, 0.5)
            second = augment(sample.image.copy(), sample.mask.copy(), ("flips", name), seed, 3, 0.5)
            for one, other, like in zip(first, second, (sample.image, sample.mask), strict=True):
                np.testing.assert_array_equal(one, other)
                assert (one.dtype, one.shape) == (np.uint8, like.shape)
            assert set(np.unique(first[1])) <= {0, 1}
            results.add(first[0].tobytes())
    assert len(results) > 50


def test_single_changes_draw_the_same_with_and_without_a_chain():
    """A chain of strength 0 of what is drawn for this seed changes no place but by mirroring."""
    sample = draw_sample(6)
    for seed in range(20):
        alone, _ = augment(sample.image, sample.mask, ("flips",), seed)
        chained, _ = augment(sample.image, sample.mask, ("flips", "rand-augment"), seed, 1, 0.0)
        mirrored = [alone, alone[:, ::-1], alone[::-1]]
        assert any(np.abs(chained.astype(int) - other).max() <= 1 for other in mirrored)


def test_settings_reach_the_loader():
    sample, config = draw_sample(7), DataConfig(size=Size(96, 80), augment=("rand-augment",), num_ops=4)
    image, mask = prepare_training_sample(sample, config, 11)
    plain = replace(config, augment=(), intensity_normalization="percentile")
    expected = augment(*prepare_training_sample(sample, plain, 11), ("rand-augment",), 11, 4, 0.3)
    np.testing.assert_array_equal(image, expected[0])
    np.testing.assert_array_equal(mask, expected[1])


@pytest.mark.parametrize("wrong", [{"num_ops": 0}, {"magnitude": 1.01}, {"magnitude": -0.1}])
def test_chains_that_cannot_be_are_refused(wrong):
    config = DataConfig(train="somewhere", augment=("rand-augment",), **wrong)
    with pytest.raises(InputError, match=next(iter(wrong)).replace("_", "-")):
        config.validate()


def test_cells_stay_bright_under_every_change():
    """The drawn cells are brighter than their ground: after any chain the image is so under the mask, too."""
    for seed in range(40):
        sample = draw_sample(seed)
        image, mask = augment(cv2.blur(sample.image, (3, 3)), sample.mask, ("trivial-augment",), seed, 3)
        assert image[mask > 0].mean() > image[mask == 0].mean() + 20
