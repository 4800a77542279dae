"""Flags of pictures: on drawn pictures, and on real fields beside their damaged versions."""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from data_helpers import real_data
from helpers import damage_sample, draw_shards, tiny_config, train_here

from glioma_dist.config import DataConfig
from glioma_dist.config.networks import network_names
from glioma_dist.data.image_statistics import (
    LEAST_WIDTHS,
    SIGMAS_PX,
    WHITE_NOISE,
    TrainingStatistics,
    every,
    image_statistics,
    ranges_of,
    training_statistics,
)
from glioma_dist.data.mixture import JoinedShards
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.inference.quality import (
    FLAGS,
    LOW_CONTRAST,
    OUT_OF_FOCUS,
    PLATE_EDGE,
    SATURATED,
    UNLIKE_TRAINING,
    quality_flags,
)
from glioma_dist.model.checkpoint import STATISTICS, Checkpoint
from glioma_dist.size import Size

WITH_A_WALL = ("field_set01", "field_set23", "field_set30", "field_set37", "field_set39", "field_set40")
"""T98G fields that show the wall of the dish, by eye."""


def blurred(image: np.ndarray, sigma_px: float) -> np.ndarray:
    """Out of focus, with the camera's noise, which is not blurred."""
    noise = np.random.default_rng(0).normal(0, 1, image.shape)
    return (cv2.GaussianBlur(image.astype(np.float32), (0, 0), sigma_px) + noise).round().clip(0, 255).astype(np.uint8)


def lit(image: np.ndarray, change: float, kind: str) -> np.ndarray:
    """Brighter or darker by `change` towards the left side, in a crescent there, or towards all corners."""
    height, width = image.shape
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    share = {
        "side": np.clip((0.3 - x) / 0.3, 0, 1),
        "crescent": np.clip((np.hypot(x - 0.75, y - 0.5) - 0.6) / 0.2, 0, 1),
        "corners": 2 * ((x - 0.5) ** 2 + (y - 0.5) ** 2),
    }[kind]
    return (image * (1 + change * share)).clip(0, 255).astype(np.uint8)


def overexposed(image: np.ndarray) -> np.ndarray:
    """A tenth of the pixels are brighter than the camera can tell."""
    return (image.astype(np.float32) * (255 / np.percentile(image, 90))).clip(0, 255).astype(np.uint8)


def underexposed(image: np.ndarray) -> np.ndarray:
    dark = np.percentile(image, 10)
    return (image.astype(np.float32) - dark).clip(0, 255).astype(np.uint8)


DAMAGES = {
    "blur of 1.5 px": (lambda image: blurred(image, 1.5), OUT_OF_FOCUS),
    "blur of 3 px": (lambda image: blurred(image, 3), OUT_OF_FOCUS),
    "blur of 6 px": (lambda image: blurred(image, 6), OUT_OF_FOCUS),
    "dark crescent": (lambda image: lit(image, -0.6, "crescent"), PLATE_EDGE),
    "bright crescent": (lambda image: lit(image, 0.6, "crescent"), PLATE_EDGE),
    "dark side": (lambda image: lit(image, -0.5, "side"), PLATE_EDGE),
    "dark corners": (lambda image: lit(image, -0.5, "corners"), PLATE_EDGE),
    "overexposed": (overexposed, SATURATED),
    "underexposed": (underexposed, SATURATED),
}


def t98g(step: int = 1) -> dict[str, np.ndarray]:
    """Every `step`-th field by its name."""
    paths = sorted((real_data("t98g") / "images/default").glob("*.png"))[::step]
    return {path.stem: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths}


def livecell(step: int = 1) -> dict[str, np.ndarray]:
    paths = sorted(real_data("livecell_1pct").rglob("*.tif"))[::step]
    return {path.stem: tifffile.imread(path) for path in paths}


def drawn(seed: int = 0, width: int = 320, height: int = 240) -> np.ndarray:
    """A picture in focus: grainy discs on a noisy ground."""
    generator = np.random.default_rng(seed)
    image = generator.normal(100, 6, (height, width)).astype(np.float32)
    for _ in range(25):
        centre = (int(generator.integers(width)), int(generator.integers(height)))
        cv2.circle(image, centre, int(generator.integers(4, 12)), float(generator.integers(130, 190)), thickness=-1)
    grain = cv2.GaussianBlur(generator.normal(0, 60, (height, width)).astype(np.float32), (0, 0), 1)
    return np.where(image > 125, image + grain, image).round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_drawn_picture_has_no_flag_and_its_damaged_version_has_the_one_of_the_damage(name):
    change, flag = DAMAGES[name]
    image = drawn()
    if name == "blur of 1.5 px":
        change = DAMAGES["blur of 3 px"][0]  # drawn edges are sharper than those of a microscope
    assert quality_flags(image) == ()
    assert flag in quality_flags(change(image))


@pytest.mark.parametrize("scaled", [np.uint8, np.uint16])
def test_exposure_depth_and_colour_change_no_flag(scaled):
    image = blurred(drawn(1), 0.7)
    for change in (lambda image: image, *(change for change, _ in DAMAGES.values())):
        damaged = change(image)
        if scaled == np.uint16:
            other = damaged.astype(np.uint16) * 16  # a camera of 12 bits
        else:
            other = np.repeat((damaged * 0.8 + 20).round().astype(np.uint8)[..., None], 3, axis=2)
        assert set(quality_flags(other)) == set(quality_flags(damaged))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 1), np.uint8),
        np.full((300, 200), 128, np.uint8),
        np.full((300, 200, 3), 65535, np.uint16),
        (drawn() > 120).astype(np.uint8) * 255,  # a mask among the images
        np.tile(np.arange(7, dtype=np.uint8), (90, 20)),
    ],
)
def test_pictures_without_contrast_get_that_flag_only(image):
    assert quality_flags(image, ranges_of([image_statistics(drawn())], None)) == (LOW_CONTRAST,)


@pytest.mark.parametrize("steps", [(1, 1), (3, 2), (700, 1), (5000, 5000)])
def test_every_nth_pixel_is_that_of_numpy(steps):
    pixels = np.arange(1200 * 70).reshape(1200, 70)
    assert np.array_equal(every(pixels, *steps), pixels[:: steps[0], :: steps[1]])


@pytest.mark.parametrize("shape", [(20, 30), (64, 64), (63, 500), (2000, 64), (65, 66, 3)])
def test_pictures_of_any_shape_have_finite_statistics_or_none(shape):
    noise = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    assert set(quality_flags(noise)) <= FLAGS.keys()
    found = image_statistics(noise)
    assert (found is None) == (min(shape[:2]) < 64)
    assert found is None or all(map(math.isfinite, found.values()))


def test_a_large_picture_is_read_in_parts_and_gets_the_flags_of_the_whole(tmp_path):
    """Memory-mapped; of 9,000x9,000 pixels no more than the parts may be asked for."""
    tile = blurred(drawn(2, 450, 450), 0.7)
    large = np.memmap(tmp_path / "large", np.uint8, "w+", shape=(9000, 9000))
    for top in range(0, 9000, 450):
        large[top : top + 450] = np.tile(tile, (1, 20))
    whole, found = image_statistics(np.tile(tile, (4, 4))), image_statistics(large)
    assert found == pytest.approx(whole, rel=0.1, abs=0.2)
    assert quality_flags(large) == ()
    for top in range(0, 9000, 450):
        large[top : top + 450] = np.tile(blurred(tile, 4), (1, 20))
    assert quality_flags(large) == (OUT_OF_FOCUS,)


def test_the_constants_of_white_noise_are_those_of_the_filters():
    """By NumPy, from the filters' definition: what each octave makes of one pixel."""
    impulse = np.zeros((129, 129))
    impulse[64, 64] = 1
    levels = [impulse, *(cv2.GaussianBlur(impulse, (0, 0), sigma) for sigma in SIGMAS_PX)]
    energies = [float(((fine - wide) ** 2).sum()) for fine, wide in pairwise(levels)]
    assert [energy / energies[0] for energy in energies] == pytest.approx(WHITE_NOISE, rel=1e-3)


def test_statistics_are_those_of_numpy_in_fp64():
    image = drawn(3).astype(np.float64)
    low, high = np.percentile(image, (0.5, 99.5), method="inverted_cdf")
    values = ((image - low) * 255 / (high - low)).round().clip(0, 255)
    found = image_statistics(drawn(3))
    assert found["mean"] == pytest.approx(values.mean(), rel=1e-4)
    assert found["standard deviation"] == pytest.approx(values.std(), rel=1e-4)
    assert found["skewness"] == pytest.approx(((values - values.mean()) ** 3).mean() / values.std() ** 3, rel=1e-3)
    levels = [values, *(cv2.GaussianBlur(values, (0, 0), sigma) for sigma in SIGMAS_PX)]
    energies = [(fine - wide).var() for fine, wide in pairwise(levels)]
    assert found["fineness"] == pytest.approx(math.log2(energies[0] / energies[1]), abs=1e-3)
    assert found["structure"] == pytest.approx(math.log2(energies[3] / values.var()), abs=1e-3)


def test_training_statistics_do_not_depend_on_the_shards_and_damaged_samples_are_omitted(tmp_path):
    size = {"width": 96, "height": 80}
    one = ShardReader(draw_shards(tmp_path / "one", range(12), samples_per_shard=12, **size))
    four = ShardReader(draw_shards(tmp_path / "four", range(12), samples_per_shard=3, **size))
    config = DataConfig(train=("x",))
    found = training_statistics(one, config)
    assert found == training_statistics(four, config)
    assert (found.num_images, found.size) == (12, None if config.transform != "resize" else config.size)
    assert training_statistics(JoinedShards([one, four]), config).num_images == 24
    assert TrainingStatistics.from_dict(json.loads(json.dumps(found.to_dict()))).to_dict() == found.to_dict()
    damage_sample(tmp_path / "one", "cell-003")
    assert training_statistics(one, config).num_images == 11


@pytest.mark.parametrize("count", [1, 33, 500])
def test_at_most_32_training_images_are_read_evenly_spread(count, tmp_path, monkeypatch):
    reader = ShardReader(draw_shards(tmp_path / "shards", range(4), samples_per_shard=1))
    read, sample = [], reader.read(0, 0)
    reader.shard_sizes = [count // 2, count - count // 2]
    monkeypatch.setattr(reader, "read", lambda *place: read.append(place[:2]) or sample)
    training_statistics(reader, DataConfig(train=("x",)))
    probe, *places = [shard * (count // 2) + place for shard, place in read]
    assert probe == 0  # for the size of an image
    assert places == sorted(set(places))
    assert len(places) == min(count, 32) or 24 <= len(places) <= 32
    if count == 500:
        assert max(np.diff([*places, 500])) < 40


@pytest.mark.parametrize("content", [None, [], {}, {"ranges": {}}, {"num_images": 1, "size": "big", "ranges": {}}])
def test_statistics_that_are_none_are_none(content):
    assert TrainingStatistics.from_dict(content) is None
    whole = ranges_of([image_statistics(drawn())], Size(320, 240)).to_dict()
    assert TrainingStatistics.from_dict(whole).size == Size(320, 240)
    for name in LEAST_WIDTHS:
        for value in ([math.nan, 1], ["a", 1], [1], None):
            assert TrainingStatistics.from_dict(whole | {"ranges": whole["ranges"] | {name: value}}) is None


def test_a_run_keeps_the_statistics_of_its_training_images_and_a_resumed_one_the_same(tmp_path):
    for split, numbers in (("train", range(6)), ("val", range(6, 8))):
        draw_shards(tmp_path / split, numbers)
    config = tiny_config(tmp_path, tmp_path / "run", max_steps=3)
    train_here(config)
    kept = Checkpoint.read(tmp_path / "run/last").metadata[STATISTICS]
    assert kept == training_statistics(ShardReader(tmp_path / "train"), config.data).to_dict()
    assert Checkpoint.read(tmp_path / "run/best").metadata[STATISTICS] == kept
    train_here(replace(config, max_steps=4))
    resumed = Checkpoint.read(tmp_path / "run/last")
    assert (resumed.step, resumed.metadata[STATISTICS]) == (4, kept)


@pytest.mark.parametrize("name", network_names())
def test_each_network_of_the_package_has_the_statistics_of_its_training_images(name):
    checkpoint = Checkpoint.read(Path(name))
    found = TrainingStatistics.from_dict(checkpoint.metadata[STATISTICS])
    assert found is not None
    assert found.num_images > 8


def test_images_scaled_for_the_network_are_compared_at_that_size():
    """A microscope with twice the pixels: like the training images where both are scaled, unlike them where not."""
    images = [blurred(drawn(seed, 640, 480), 0.7) for seed in range(6)]
    finer = cv2.resize(images[0], None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    scaled = ranges_of([image_statistics(each, Size(320, 240)) for each in images], Size(320, 240))
    as_taken = ranges_of([image_statistics(each) for each in images], None)
    assert UNLIKE_TRAINING not in quality_flags(finer, scaled)
    assert UNLIKE_TRAINING in quality_flags(finer, as_taken)


def test_real_fields_have_flags_only_where_they_show_the_wall_of_the_dish():
    """Some of the fields; the test of all is slow."""
    fields = t98g(5)
    assert {name for name, image in fields.items() if quality_flags(image)} == {*WITH_A_WALL} & fields.keys()
    assert not any(quality_flags(image) for image in livecell(8).values())


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_real_fields_are_flagged(name):
    change, flag = DAMAGES[name]
    paths = sorted((real_data("t98g") / "images/default").glob("*.png"))[7:8]
    paths += sorted(real_data("livecell_1pct").rglob("*.tif"))[5::20]
    fields = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths]
    found = [flag in quality_flags(change(image)) for image in fields]
    assert sum(found) >= (1 if name == "blur of 1.5 px" else len(found)), found


@pytest.mark.slow
def test_all_real_fields_and_damages_of_a_third_of_them(capsys):
    """The figures of docs/guides/report.md."""
    fields = {"T98G": t98g(), "LIVECell": livecell()}
    training = {
        "T98G": TrainingStatistics.from_dict(Checkpoint.read(Path("t98g-small")).metadata[STATISTICS]),
        "LIVECell": ranges_of([image_statistics(each) for each in list(fields["LIVECell"].values())[::2]], None),
    }
    for kind, images in fields.items():
        counts: Counter[str] = Counter()
        for image in images.values():
            counts.update(quality_flags(image) or ["none"])
            counts.update({f"unlike {own}": UNLIKE_TRAINING in quality_flags(image, training[own]) for own in training})
        with capsys.disabled():
            print(f"\nas taken, {kind}, {len(images)} fields: {dict(counts)}", flush=True)
    for name, (change, flag) in DAMAGES.items():
        for kind, images in fields.items():
            third = [change(image) for image in list(images.values())[1::3]]
            alone, compared = (
                sum(flag in quality_flags(image, *given) for image in third) for given in ((), (training[kind],))
            )
            with capsys.disabled():
                print(f"{name}, {kind}: {flag} {alone} of {len(third)}, with training images {compared}", flush=True)
