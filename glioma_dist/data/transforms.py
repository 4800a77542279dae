"""From an image as taken to what the network is shown: contrast, size, random changes.

All work is on numpy arrays in the image's own channels; what comes out is uint8. Everything random is drawn from the
generator or the seed that is given.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np

from glioma_dist.config import DataConfig
from glioma_dist.data.augmentations import apply_change, draw_flips, import_albumentations
from glioma_dist.data.images.value_range import find_range
from glioma_dist.data.mask_scaling import scale_labels, scale_mask
from glioma_dist.data.own_augmentation import apply_function
from glioma_dist.errors import InputError
from glioma_dist.registry import augmentations
from glioma_dist.size import Size

IntensityNormalization = Literal["percentile", "clahe", "none"]
"""`DataConfig.intensity_normalization`."""
CLAHE_CLIP_LIMIT, CLAHE_TILES = 2.0, (8, 8)
Places = tuple[np.ndarray | None, np.ndarray | None]
"""Where to write an image and a mask."""


def normalize_intensity(image: np.ndarray, how: IntensityNormalization) -> np.ndarray:
    """Raise an image's contrast. image: (H, W) or (H, W, 3), uint8 or uint16; returns the same shape, uint8.

    percentile: the 0.5th percentile of all values goes to 0, the 99.5th to 255, linearly, by a look-up table.
    clahe: contrast-limited adaptive histogram equalisation (Zuiderveld 1994), each channel on its own.
    none: 8 bits stay as they are; 16 bits lose their lower 8.
    """
    if how == "clahe":
        clahe = cv2.createCLAHE(CLAHE_CLIP_LIMIT, CLAHE_TILES)
        planes = [
            _to_8_bit(clahe.apply(np.ascontiguousarray(plane))) for plane in np.atleast_3d(image).transpose(2, 0, 1)
        ]
        return planes[0] if image.ndim == 2 else np.stack(planes, axis=-1)
    if how == "none":
        return _to_8_bit(image)
    return look_up(image, percentile_table(image))


def percentile_table(image: np.ndarray) -> np.ndarray:
    """What `normalize_intensity` makes of each value by percentiles of `image`: (256,) or (65536,) uint8."""
    return table_of(find_range(image), np.iinfo(image.dtype).max + 1)


def table_of(value_range: tuple[int, int], num_values: int) -> np.ndarray:
    """`percentile_table` of an image with these percentiles (`find_range`), in which so many values are possible."""
    low, high = value_range
    return ((np.arange(num_values) - low) * (255 / max(high - low, 1))).round().clip(0, 255).astype(np.uint8)


def look_up(image: np.ndarray, table: np.ndarray | None) -> np.ndarray:
    """Each value of an image in a table, uint8; the image itself where there is none."""
    if table is None:
        return image
    return cv2.LUT(image, table) if image.dtype == np.uint8 else table[image]


def resize_image(image: np.ndarray, size: Size, out: np.ndarray | None = None) -> np.ndarray:
    """Scale an image (H, W) or (H, W, C): bilinear, averaging over areas where it shrinks on both sides. out: an array
    like the result to write to; it may be left alone."""
    height, width = image.shape[:2]
    if (width, height) == (size.width, size.height):
        return image
    shrinks = size.width <= width and size.height <= height
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (size.width, size.height), dst=out, interpolation=how)


def resize_mask(mask: np.ndarray, size: Size, out: np.ndarray | None = None) -> np.ndarray:
    """Scale a mask (H, W) of 0 and 1 as the article scales references: bilinear, every value above 0 becomes 1; and
    class numbers and labels of two planes (targets.py) so that they have cells at the same pixels (mask_scaling.py).
    out: where to write a mask of 0 and 1; it may be left alone."""
    if mask.shape[:2] == (size.height, size.width):
        return mask
    return scale_mask(mask, size, out) if _is_binary(mask) else scale_labels(mask, size)


def transform_training(
    image: np.ndarray,
    mask: np.ndarray,
    config: DataConfig,
    generator: np.random.Generator,
    key: str,
    table: np.ndarray | None = None,
    mirror: int | None = None,
    out: Places = (None, None),
) -> tuple[np.ndarray, np.ndarray]:
    """Bring image and mask to `config.size` by `config.transform`; windows are drawn uniformly from `generator`.

    mask: (H, W), or labels of two planes (targets.py).
    table: that the image's values are still to be looked up in, which is less work for a window than for the whole.
    mirror: turns both round in the end, as `cv2.flip`'s code says.
    out: where to write a grey image and its mask, of the size; they may be left alone, and are not what is returned
    then.
    Raises InputError where a crop is larger than the image; `key` names the sample in it.
    """
    if config.transform == "resize":
        return _bring(look_up(image, table), mask, config.size, mirror, out)
    rows, columns = draw_window(*mask.shape[:2], config, generator, key)
    return _bring(look_up(image[rows, columns], table), mask[rows, columns], config.size, mirror, out)


def draw_window(
    height: int, width: int, config: DataConfig, generator: np.random.Generator, key: str
) -> tuple[slice, slice]:
    """Rows and columns of the window that `transform_training` cuts out, for transforms that cut one out."""
    if config.transform == "random-crop":
        window = config.size
        if window.width > width or window.height > height:
            raise InputError(
                f"sample {key} is {width}x{height}, smaller than the crop {window}: give a --data.size "
                f"within it, or --data.transform resize"
            )
    else:
        side = generator.uniform(*config.crop_side)
        window = Size(max(1, round(side * width)), max(1, round(side * height)))
    left = int(generator.integers(width - window.width + 1))
    top = int(generator.integers(height - window.height + 1))
    return slice(top, top + window.height), slice(left, left + window.width)


def transform_evaluation(image: np.ndarray, mask: np.ndarray, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """What validation shows for a model that trains with this config; nothing is random.

    resize: the same as in training. crop: the whole image at its own size, as such models are tested.
    random-resized-crop: the middle window with the middle of the sides, scaled to the size.
    """
    if config.transform == "resize":
        return resize_image(image, config.size), resize_mask(mask, config.size)
    if config.transform == "random-crop":
        return image, mask
    height, width = mask.shape[:2]
    side = sum(config.crop_side) / 2
    window = Size(max(1, round(side * width)), max(1, round(side * height)))
    left, top = (width - window.width) // 2, (height - window.height) // 2
    rows, columns = slice(top, top + window.height), slice(left, left + window.width)
    return _bring(image[rows, columns], mask[rows, columns], config.size)


def augment(
    image: np.ndarray,
    mask: np.ndarray,
    names: tuple[str, ...],
    seed: int,
    num_ops: int = DataConfig.num_ops,
    magnitude: float = DataConfig.magnitude,
) -> tuple[np.ndarray, np.ndarray]:
    """Apply the random changes `names` (see `DataConfig.augment`) to a uint8 image and its mask, drawn from `seed`:
    first albumentations' single ones, then the chains, then functions in the order of `names`.

    mask: (H, W), or labels of two planes (targets.py). A registered function: see own_augmentation.py.
    """
    entries = [augmentations.find(name) for name in names]
    single = tuple(entry.name for entry in entries if entry.kind == "transforms")
    if single == ("flips",):
        mirror = draw_flips(seed)
        if mirror is not None:
            image, mask = cv2.flip(image, mirror), cv2.flip(mask, mirror)
    elif single:
        compose = _changes(single)
        # Compose's own set_random_seed gives all its transforms the same draws: both flips, or none.
        seeds = np.random.SeedSequence(seed).generate_state(len(compose.transforms))
        for transform, transform_seed in zip(compose.transforms, seeds.tolist(), strict=True):
            transform.set_random_seed(transform_seed)
        changed = compose(image=image, mask=mask)
        image, mask = np.ascontiguousarray(changed["image"]), np.ascontiguousarray(changed["mask"])
    chains = [name for name in augmentations.names() if augmentations.find(name).kind == "chain"]
    for number, name in enumerate(chains):
        if name in names:
            generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
            for change, amount in augmentations.load(name)(name, num_ops, magnitude, generator):
                image, mask = apply_change(image, mask, change, amount)
    for entry in entries:
        if entry.kind == "function":
            image, mask = apply_function(entry, image, mask, seed)
    return image, mask


@lru_cache(maxsize=1)
def _changes(names: tuple[str, ...]) -> Callable:
    albumentations = import_albumentations()
    return albumentations.Compose([change for name in names for change in augmentations.load(name)()])


def _bring(
    image: np.ndarray, mask: np.ndarray, size: Size, mirror: int | None = None, out: Places = (None, None)
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and then mirror a window; see `transform_training`."""
    image_out = out[0] if image.ndim == 2 else None
    if mirror is None:
        return resize_image(image, size, image_out), resize_mask(mask, size, out[1])
    # A scaled mask is mirrored as it is written; OpenCV's scaling of a mirrored image is not the same to the last bit.
    is_scaled, mask_out = mask.shape[:2] != (size.height, size.width), out[1] if mask.ndim == 2 else None
    if is_scaled and _is_binary(mask):
        mask = scale_mask(mask, size, mask_out, mirror)
    else:
        mask = cv2.flip(scale_labels(mask, size) if is_scaled else mask, mirror, dst=mask_out)
    return cv2.flip(resize_image(image, size), mirror, dst=image_out), mask


def _is_binary(mask: np.ndarray) -> bool:
    """Whether a mask is one of 0 and 1."""
    return mask.ndim == 2 and not (mask.size and mask.max() > 1)


def _to_8_bit(image: np.ndarray) -> np.ndarray:
    return (image >> 8).astype(np.uint8) if image.dtype == np.uint16 else image
