"""Contrast, sizes, windows and random changes, against naive re-implementations and measured frequencies."""

import random

import cv2
import numpy as np
import pytest

from glioma_dist.config import DataConfig
from glioma_dist.data.augmentations import flips, import_albumentations
from glioma_dist.data.mask_scaling import scale_mask
from glioma_dist.data.transforms import (
    augment,
    normalize_intensity,
    resize_image,
    resize_mask,
    transform_evaluation,
    transform_training,
)
from glioma_dist.errors import InputError
from glioma_dist.size import Size


def noise(seed: int, height: int, width: int, channels: int = 1, dtype: type = np.uint8) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    spread = np.random.default_rng(seed).normal(0.4, 0.12, shape).clip(0, 1)
    return (spread * np.iinfo(dtype).max).astype(dtype)


def coordinates(height: int, width: int) -> np.ndarray:
    """RGB whose red is the column, whose green is the row."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return image


def resize_mask_slowly(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bilinear with centres of pixels on half numbers, in whole numbers, so that a weight is 0 or it is not: a pixel
    is 1 where any neighbour of a weight above 0 is."""
    old_height, old_width = mask.shape

    def neighbours(place: int, old: int, new: int) -> list[int]:
        doubled = (2 * place + 1) * old - new  # the source's coordinate, times 2 new
        first, rest = doubled // (2 * new), doubled % (2 * new)
        wanted = [first] if rest == 0 else [first, first + 1]
        return sorted({min(max(index, 0), old - 1) for index in wanted})

    result = np.zeros((height, width), np.uint8)
    columns = [neighbours(x, old_width, width) for x in range(width)]
    for y in range(height):
        lines = mask[neighbours(y, old_height, height)].max(axis=0)
        result[y] = [lines[column].max() for column in columns]
    return result


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_contrast_by_percentiles_is_numpys(dtype, channels, seed):
    image = noise(seed, 61, 83, channels, dtype)
    low, high = np.percentile(image, [0.5, 99.5], method="inverted_cdf").astype(np.float64)
    expected = ((image.astype(np.float64) - low) * (255 / (high - low))).round().clip(0, 255)
    raised = normalize_intensity(image, "percentile")
    assert (raised.dtype, raised.shape) == (np.uint8, image.shape)
    np.testing.assert_array_equal(raised, expected)
    assert (raised == 0).mean() >= 0.005
    assert (raised == 255).mean() >= 0.005


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(0, np.uint8), (77, np.uint8), (255, np.uint8), (0, np.uint16), (40000, np.uint16), (65535, np.uint16)],
)
@pytest.mark.parametrize("how", ["percentile", "clahe", "none"])
def test_a_constant_image_stays_constant(value, dtype, how):
    raised = normalize_intensity(np.full((32, 40), value, dtype), how)
    assert raised.dtype == np.uint8
    assert len(np.unique(raised)) == 1


def test_a_few_hot_pixels_do_not_decide_the_contrast():
    image = noise(0, 100, 100, dtype=np.uint16) // 8
    hot = image.copy()
    hot[3, 4:44] = 65535  # 0.4 %
    ours, plain = normalize_intensity(hot, "percentile")[10:], normalize_intensity(image, "percentile")[10:]
    assert np.abs(ours.astype(int) - plain).max() < 40  # a scaling to the greatest value would make it nearly black


def test_contrast_none_keeps_8_bits_and_the_upper_8_of_16():
    image = noise(1, 20, 30, 3)
    np.testing.assert_array_equal(normalize_intensity(image, "none"), image)
    image = noise(1, 20, 30, 1, np.uint16)
    np.testing.assert_array_equal(normalize_intensity(image, "none"), image // 256)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_contrast_by_clahe_takes_each_channel_alone(dtype):
    image = noise(2, 64, 72, 3, dtype)
    raised = normalize_intensity(image, "clahe")
    assert (raised.dtype, raised.shape) == (np.uint8, image.shape)
    for channel in range(3):
        np.testing.assert_array_equal(raised[..., channel], normalize_intensity(image[..., channel].copy(), "clahe"))
    faint = normalize_intensity((128 + (noise(3, 64, 72) > 100) * 4).astype(np.uint8), "clahe")
    assert np.ptp(faint.astype(int)) > 8


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((40, 30), (20, 15)),
        ((40, 30), (13, 11)),
        ((20, 15), (40, 30)),
        ((37, 29), (64, 51)),
        ((37, 29), (111, 87)),
        ((30, 20), (45, 10)),
        ((1, 1), (5, 4)),
        ((70, 52), (147, 112)),
        ((100, 60), (96, 64)),
    ],
)
def test_a_mask_is_scaled_bilinearly_and_rounded_up(old, new):
    for seed, density in enumerate((0.03, 0.3, 0.9)):
        mask = (np.random.default_rng(seed).random(old[::-1]) < density).astype(np.uint8)
        scaled = resize_mask(mask, Size(*new))
        assert (scaled.dtype, scaled.shape) == (np.uint8, new[::-1])
        np.testing.assert_array_equal(scaled, resize_mask_slowly(mask, *new))


@pytest.mark.parametrize("seed", range(4))
def test_a_mask_is_scaled_as_opencv_scales_it_in_fp32(seed):
    """Bit for bit, also where a pixel's place is another pixel's own, where sums of OpenCV's may say otherwise."""
    generator, taken = np.random.default_rng(seed), {True: 0, False: 0}
    for number in range(150):
        width, height, new_width, new_height = generator.integers(1, 160, 4).tolist()
        if number % 3 == 0:
            new_width, new_height = 32 * (1 + new_width // 32), 32 * (1 + new_height // 32)
        whole = (generator.random((height + 5, width + 3)) < generator.choice([0.02, 0.2, 0.9])).astype(np.uint8)
        mask, out = whole[2 : 2 + height, 1 : 1 + width], np.full((new_height, new_width), 7, np.uint8)
        scaled = cv2.resize(mask.astype(np.float32), (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        for found in (
            scale_mask(mask, Size(new_width, new_height), out),
            scale_mask(mask, Size(new_width, new_height)),
        ):
            np.testing.assert_array_equal(found, scaled > 0)
            assert found.dtype == np.uint8
        np.testing.assert_array_equal(out, scaled > 0)
        pairs = ((height, new_height), (width, new_width))
        taken[all((np.arange(1, 2 * new, 2) * old % (2 * new) != new % (2 * new)).all() for old, new in pairs)] += 1
    assert min(taken.values()) > 10, taken


def test_a_mask_at_sizes_of_training_is_scaled_as_opencv_scales_it():
    generator = np.random.default_rng(0)
    mask = (generator.random((520, 704)) < 0.1).astype(np.uint8)
    for height, width in ((520, 704), (417, 565), (416, 563), (104, 141)):
        window = mask[:height, :width]
        scaled = cv2.resize(window.astype(np.float32), (1472, 1120), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(resize_mask(window, Size(1472, 1120)), scaled > 0)


def test_an_image_and_a_mask_of_the_right_size_are_left_alone():
    image, mask = noise(0, 12, 17), noise(1, 12, 17) % 2
    np.testing.assert_array_equal(resize_image(image, Size(17, 12)), image)
    np.testing.assert_array_equal(resize_mask(mask, Size(17, 12)), mask)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_shrinking_image_is_averaged_over_areas(channels):
    image = noise(0, 24, 36, channels)
    expected = image.reshape(8, 3, 12, 3, -1).mean(axis=(1, 3)).reshape((8, 12) if channels == 1 else (8, 12, 3))
    assert np.abs(resize_image(image, Size(12, 8)) - expected).max() <= 0.51


@pytest.mark.parametrize("channels", [1, 3])
def test_a_growing_image_is_bilinear(channels):
    image = np.zeros((4, 5, channels), np.uint8).squeeze()
    image[1, 2] = 160
    grown = resize_image(image, Size(10, 8))
    weights = np.outer([0.25, 0.75, 0.75, 0.25], [0.25, 0.75, 0.75, 0.25]) * 160
    for plane in np.atleast_3d(grown).transpose(2, 0, 1):
        np.testing.assert_array_equal(plane[1:5, 3:7], weights)
        assert plane.sum() == weights.sum()


def test_crops_lie_evenly_and_show_their_window_unchanged():
    """3,000 windows of 20x14 in 60x44: 41 x 31 places. Chi-square of 40 and 30 degrees of freedom; their 99.99th
    percentiles are 83 and 68."""
    image, config = coordinates(44, 60), DataConfig(size=Size(20, 14), transform="random-crop")
    mask = (np.random.default_rng(0).random((44, 60)) < 0.5).astype(np.uint8)
    generator = np.random.default_rng(1)
    lefts, tops = np.zeros(41), np.zeros(31)
    places = np.empty((3000, 2))
    for number in range(3000):
        cut, cut_mask = transform_training(image, mask, config, generator, "key")
        left, top = map(int, cut[0, 0, :2])
        np.testing.assert_array_equal(cut, image[top : top + 14, left : left + 20])
        np.testing.assert_array_equal(cut_mask, mask[top : top + 14, left : left + 20])
        lefts[left] += 1
        tops[top] += 1
        places[number] = left, top
    for counts, bound in ((lefts, 83), (tops, 68)):
        expected = 3000 / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < bound
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.08


def test_the_windows_side_and_place_are_drawn_evenly():
    """The side is a fraction of the image's SIDE, the same for both; Kolmogorov's distance of 3,000 draws is below
    0.0407 with probability 0.9999, and whole pixels add 1 / 200."""
    image, mask = coordinates(120, 200), np.zeros((120, 200), np.uint8)
    config = DataConfig(size=Size(200, 120), transform="random-resized-crop", crop_side=(0.27, 0.87))
    generator = np.random.default_rng(2)
    sides, places = [], []
    for _ in range(3000):
        cut, _ = transform_training(image, mask, config, generator, "key")
        left, top, right, bottom = (int(value) for value in (*cut[0, 0, :2], *cut[-1, -1, :2]))
        width, height = right - left + 1, bottom - top + 1
        assert abs(width / 200 - height / 120) < 1 / 120 + 1 / 200
        sides.append((width / 200 - 0.27) / 0.6)
        places.append((left + 0.5) / (200 - width + 1))
    for values in (sides, places):
        distance = np.abs(np.sort(values) - (np.arange(3000) + 0.5) / 3000).max()
        assert distance < 0.0407 + 2 / 200
    assert abs(np.corrcoef(sides, places)[0, 1]) < 0.08


def test_a_random_resized_crop_grows_image_and_mask_alike():
    """The image is the mask, 0 and 255: a grown pixel is above 0 in both or in neither, but for weights that a byte
    cannot hold."""
    mask = cv2.circle(np.zeros((80, 100), np.uint8), (50, 40), 25, 1, thickness=-1)
    config = DataConfig(size=Size(100, 80), transform="random-resized-crop", crop_side=(0.3, 0.6))
    for seed in range(50):
        cut, cut_mask = transform_training(mask * 255, mask, config, np.random.default_rng(seed), "key")
        assert cut.shape == cut_mask.shape == (80, 100)
        assert cut_mask[cut > 0].all()
        assert (cut_mask != (cut > 0)).mean() < 0.005


@pytest.mark.parametrize("transform", ["resize", "random-crop", "random-resized-crop"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_transform_brings_image_and_mask_to_the_size(transform, channels):
    image, mask = noise(0, 50, 70, channels), noise(1, 50, 70) % 2
    config = DataConfig(size=Size(32, 48), transform=transform)
    cut, cut_mask = transform_training(image, mask, config, np.random.default_rng(0), "key")
    assert cut.shape[:2] == cut_mask.shape == (48, 32)
    assert cut.ndim == image.ndim
    assert cut.dtype == cut_mask.dtype == np.uint8
    assert set(np.unique(cut_mask)) <= {0, 1}


def test_a_window_of_the_whole_side_is_the_whole_image():
    image, mask = noise(0, 40, 60), noise(1, 40, 60) % 2
    config = DataConfig(size=Size(60, 40), transform="random-resized-crop", crop_side=(1.0, 1.0))
    drawn = transform_training(image, mask, config, np.random.default_rng(0), "key")
    for cut in (drawn, transform_evaluation(image, mask, config)):
        np.testing.assert_array_equal(cut[0], image)
        np.testing.assert_array_equal(cut[1], mask)


@pytest.mark.parametrize("size", [Size(71, 10), Size(10, 51)])
def test_a_crop_larger_than_the_image_is_refused_by_name(size):
    with pytest.raises(InputError, match=rf"sample cell-7 is 70x50.*{size}"):
        transform_training(
            noise(0, 50, 70),
            noise(1, 50, 70) % 2,
            DataConfig(size=size, transform="random-crop"),
            np.random.default_rng(0),
            "cell-7",
        )


def test_evaluation_shows_crops_whole_and_the_middle_window():
    image, mask = coordinates(80, 120), (noise(0, 80, 120) > 100).astype(np.uint8)
    whole = transform_evaluation(image, mask, DataConfig(size=Size(32, 32), transform="random-crop"))
    np.testing.assert_array_equal(whole[0], image)
    np.testing.assert_array_equal(whole[1], mask)
    config = DataConfig(size=Size(60, 40), transform="random-resized-crop", crop_side=(0.4, 0.6))
    middle = transform_evaluation(image, mask, config)
    np.testing.assert_array_equal(middle[0], image[20:60, 30:90])
    np.testing.assert_array_equal(middle[1], mask[20:60, 30:90])
    resized = transform_evaluation(image, mask, DataConfig(size=Size(60, 40)))
    np.testing.assert_array_equal(resized[1], resize_mask_slowly(mask, 60, 40))


@pytest.mark.parametrize("channels", [1, 3])
def test_flips_are_mirrorings_each_as_often_and_alike_for_the_mask(channels):
    image, mask = noise(0, 9, 13, channels), noise(1, 9, 13) % 2
    counts = dict.fromkeys([(False, False), (False, True), (True, False), (True, True)], 0)
    for seed in range(400):
        changed, changed_mask = augment(image, mask, ("flips",), seed * 7919)
        for horizontal, vertical in counts:
            step = (slice(None, None, -1 if vertical else 1), slice(None, None, -1 if horizontal else 1))
            if np.array_equal(changed, image[step]):
                np.testing.assert_array_equal(changed_mask, mask[step])
                counts[horizontal, vertical] += 1
    assert sum(counts.values()) == 400
    assert min(counts.values()) > 100 - 5 * np.sqrt(400 * 0.25 * 0.75)


@pytest.mark.parametrize("channels", [1, 3])
def test_flips_are_those_that_albumentations_draws(channels):
    image, mask = noise(0, 9, 13, channels), noise(1, 9, 13) % 2
    compose = import_albumentations().Compose(flips())
    for seed in [*range(200), 2**62 + 1]:
        for transform, own in zip(compose.transforms, np.random.SeedSequence(seed).generate_state(2), strict=True):
            transform.set_random_seed(int(own))
        expected = compose(image=image, mask=mask)
        changed, changed_mask = augment(image, mask, ("flips",), seed)
        np.testing.assert_array_equal(changed, expected["image"])
        np.testing.assert_array_equal(changed_mask, expected["mask"])


def test_the_changes_are_drawn_independently_of_each_other():
    """Horizontal flip, vertical flip, contrast: all eight combinations, each an eighth of the time."""
    image, mask = np.full((9, 13), 100, np.uint8), noise(1, 9, 13) % 2
    counts = np.zeros((2, 2, 2))
    for seed in range(800):
        changed, changed_mask = augment(image, mask, ("flips", "contrast"), seed * 104729)
        for horizontal, vertical in np.ndindex(2, 2):
            if np.array_equal(changed_mask, mask[:: 1 - 2 * vertical, :: 1 - 2 * horizontal]):
                counts[horizontal, vertical, int(changed[0, 0] != 100)] += 1
    # A contrast within half a grey value of 1 is not seen: one in 40 of those that were drawn.
    assert counts.sum() == 800
    assert np.abs(counts - 100).max() < 5 * np.sqrt(800 * 0.125 * 0.875), counts


@pytest.mark.parametrize("names", [("sharpen",), ("contrast",), ("sharpen", "contrast")])
@pytest.mark.parametrize("channels", [1, 3])
def test_changes_of_light_never_touch_the_mask(names, channels):
    image, mask = noise(0, 24, 30, channels), noise(1, 24, 30) % 2
    num_changed = 0
    for seed in range(60):
        changed, changed_mask = augment(image.copy(), mask.copy(), names, seed)
        np.testing.assert_array_equal(changed_mask, mask)
        assert (changed.dtype, changed.shape) == (np.uint8, image.shape)
        num_changed += not np.array_equal(changed, image)
    share = 1 - 0.5 ** len(names)
    assert abs(num_changed - 60 * share) < 5 * np.sqrt(60 * share * (1 - share))


def test_sharpening_raises_edges():
    image, mask = cv2.GaussianBlur(noise(0, 40, 40), (5, 5), 0), np.zeros((40, 40), np.uint8)
    edges = [np.abs(np.diff(augment(image, mask, ("sharpen",), seed)[0].astype(int))).mean() for seed in range(20)]
    before = np.abs(np.diff(image.astype(int))).mean()
    assert min(edges) >= before
    assert max(edges) > 1.2 * before


def test_contrast_scales_about_nothing_more_than_a_fifth():
    image, mask = np.full((8, 8), 100, np.uint8), np.zeros((8, 8), np.uint8)
    values = [int(augment(image, mask, ("contrast",), seed)[0][0, 0]) for seed in range(200)]
    assert 80 <= min(values) < 85
    assert 115 < max(values) <= 120


@pytest.mark.parametrize("channels", [1, 3])
def test_the_seed_decides_and_nothing_else(channels):
    image, mask, names = noise(0, 24, 30, channels), noise(1, 24, 30) % 2, ("flips", "sharpen", "contrast")
    seeds = [0, 1, 2**62 + 5, 2**63 - 1]
    first = [augment(image, mask, names, seed) for seed in seeds]
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist()
    augment(image, mask, ("sharpen",), 3)
    for seed, (expected, expected_mask) in reversed(list(zip(seeds, first, strict=True))):
        changed, changed_mask = augment(image, mask, names, seed)
        np.testing.assert_array_equal(changed, expected)
        np.testing.assert_array_equal(changed_mask, expected_mask)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())


def test_neighbouring_seeds_change_differently():
    image, mask = noise(0, 24, 30), noise(1, 24, 30) % 2
    results = {augment(image, mask, ("flips", "sharpen", "contrast"), seed)[0].tobytes() for seed in range(50)}
    assert len(results) > 30  # a quarter are bare flips, of which there are four


def test_without_names_nothing_changes():
    image, mask = noise(0, 5, 6), noise(1, 5, 6) % 2
    changed, changed_mask = augment(image, mask, (), 3)
    np.testing.assert_array_equal(changed, image)
    np.testing.assert_array_equal(changed_mask, mask)
