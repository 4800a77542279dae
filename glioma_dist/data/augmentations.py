"""Random changes: single ones, and chains of fixed length, after RandAugment and TrivialAugment.

Every change is a transform of albumentations whose amount is settled before it is called: all that is random is drawn
here, from the generator that is given, and image and mask go through one call. What a change of place uncovers is
filled by mirroring, in both.

No change scales: the size of the objects is what the article's experiments hold fast or vary by themselves.
"""

from __future__ import annotations

import os
import random
from typing import Any

import cv2
import numpy as np

MOST = {
    "shift-x": 0.2,
    "shift-y": 0.2,
    "shear-x": 15.0,
    "shear-y": 15.0,
    "rotate": 30.0,
    "brightness": 0.3,
    "contrast": 0.5,
    "gamma": 0.5,
    "sharpen": 0.8,
    "blur": 2.0,
}
"""Amount at strength 1. Shifts: share of the side. Shears, rotation: degrees. Brightness: share of 255; contrast: share
of itself; gamma: the exponent is 2 to the power of twice that; sharpen: share of the sharpened image; blur: deviation
in pixels."""
SIGNED = ("shift-x", "shift-y", "shear-x", "shear-y", "rotate", "brightness", "contrast", "gamma")
"""Changes that go either way."""
CHANGES = ("nothing", "mirror-x", "mirror-y", *MOST)


def import_albumentations() -> Any:
    """The library, which is slow to import, and asks the network for its newest version unless told not to."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


def flips() -> list:
    """Mirrors of both axes, each of every second image."""
    album = import_albumentations()
    return [album.HorizontalFlip(p=0.5), album.VerticalFlip(p=0.5)]


def draw_flips(seed: int) -> int | None:
    """What albumentations does by `flips` with the seeds that `augment` gives its transforms, as `cv2.flip`'s code;
    None: nothing. The first that each of its transforms draws is compared with p."""
    seeds = np.random.SeedSequence(seed).generate_state(2).tolist()
    across, down = (random.Random(each).random() < 0.5 for each in seeds)
    if across:
        return -1 if down else 1
    return 0 if down else None


def sharpen() -> list:
    """Sharpening of every second image."""
    return [import_albumentations().Sharpen(p=0.5)]


def contrast() -> list:
    """Contrast within a fifth, of every second image."""
    return [import_albumentations().RandomBrightnessContrast(brightness_limit=0, contrast_limit=0.2, p=0.5)]


def draw_ops(name: str, length: int, strength: float, generator: np.random.Generator) -> list[tuple[str, float]]:
    """Changes and their amounts, one after the other.

    Each change is drawn uniformly from `CHANGES`, with replacement. rand-augment: all at the same `strength`, from 0 to
    1 (Cubuk et al. 2020, arXiv 1909.13719, algorithm 1: N is `length`, M is 30 `strength`). trivial-augment: each at a
    strength of its own, uniform from 0 to 1 (Müller and Hutter 2021, arXiv 2103.10158, algorithm 1, whose length is 1).
    """
    chain = []
    for _ in range(length):
        change = CHANGES[generator.integers(len(CHANGES))]
        own = strength if name == "rand-augment" else generator.uniform()
        sign = 1 - 2 * int(generator.integers(2)) if change in SIGNED else 1
        chain.append((change, sign * own * MOST.get(change, 0.0)))
    return chain


def apply_change(image: np.ndarray, mask: np.ndarray, change: str, amount: float) -> tuple[np.ndarray, np.ndarray]:
    """One change of a uint8 image (H, W) or (H, W, 3) and its mask (H, W) of 0 and 1; both keep their shapes."""
    album = import_albumentations()
    if change == "nothing" or (change == "blur" and amount == 0):
        return image, mask
    place = {
        "shift-x": {"translate_percent": {"x": (amount, amount), "y": (0.0, 0.0)}},
        "shift-y": {"translate_percent": {"x": (0.0, 0.0), "y": (amount, amount)}},
        "shear-x": {"shear": {"x": (amount, amount), "y": (0.0, 0.0)}},
        "shear-y": {"shear": {"x": (0.0, 0.0), "y": (amount, amount)}},
        "rotate": {"rotate": (amount, amount)},
    }
    if change in place:
        ways = {"interpolation": cv2.INTER_LINEAR, "mask_interpolation": cv2.INTER_NEAREST}
        transform = album.Affine(**place[change], **ways, border_mode=cv2.BORDER_REFLECT_101, p=1)
    elif change in ("mirror-x", "mirror-y"):
        transform = album.HorizontalFlip(p=1) if change == "mirror-x" else album.VerticalFlip(p=1)
    elif change in ("brightness", "contrast"):
        limits = {"brightness_limit": 0.0, "contrast_limit": 0.0} | {f"{change}_limit": (amount, amount)}
        transform = album.RandomBrightnessContrast(**limits, p=1)
    elif change == "gamma":
        percent = 100 * 4**amount
        transform = album.RandomGamma(gamma_limit=(percent, percent), p=1)
    elif change == "sharpen":
        transform = album.Sharpen(alpha=(amount, amount), lightness=(1.0, 1.0), p=1)
    else:
        transform = album.GaussianBlur(sigma_limit=(amount, amount), blur_limit=0, p=1)
    changed = transform(image=image, mask=mask)
    return np.ascontiguousarray(changed["image"]), np.ascontiguousarray(changed["mask"])
