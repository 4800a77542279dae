"""Registered augmentations that are functions: what they get, and what they must return.

A function takes image (H, W) or (H, W, 3) uint8, mask (H, W) uint8 and a generator of its own, and returns image and
mask, of the same shapes and types. The mask has 0 and 1, or class numbers, and IGNORE where nobody labelled; it returns
no other values. Where a second target is trained, a function that moves pixels takes numbers of cells, too: one with a
parameter `instances` gets them, (H, W) uint16, and returns them as the third.
"""

from __future__ import annotations

import inspect
import zlib

import cv2
import numpy as np

from glioma_dist.errors import InputError, noting, one_line
from glioma_dist.registry import AugmentationEntry

FUNCTIONS = 2
"""Part of the seeds of registered functions."""


def apply_function(
    entry: AugmentationEntry, image: np.ndarray, mask: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Apply one to an image and its mask (H, W), or labels of two planes (targets.py).

    What it draws depends on its name and the sample's seed, and not on which others there are. It works on copies,
    because an image that is cached in memory must not change. Raises InputError where it returns something else.
    """
    stream = zlib.crc32(entry.name.encode())
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, FUNCTIONS)))
    function = entry.load()
    given = [image, mask]
    if mask.ndim == 3:
        given = [image, mask[..., 0].astype(np.uint8), mask[..., 1]]
    takes_instances = len(given) == 3 and "instances" in inspect.signature(function).parameters
    arrays = [each.copy() for each in given]
    more = {"instances": arrays[2]} if takes_instances else {}
    with noting(f"in the augmentation {entry.described}"):
        changed = function(*arrays[:2], generator, **more)
    wanted = given if takes_instances else given[:2]
    changed = _checked(entry, changed, wanted)
    if mask.ndim == 2:
        return changed[0], changed[1]
    if not takes_instances:
        if not np.array_equal(changed[1], given[1]):
            what = "changed a mask whose cells have numbers, too: take a parameter instances, and return them as third"
            raise InputError(f"augmentation {entry.described}: {what}")
        changed.append(given[2])
    return changed[0], cv2.merge([changed[1].astype(np.uint16), changed[2]])


def _checked(entry: AugmentationEntry, changed: object, given: list[np.ndarray]) -> list[np.ndarray]:
    """What a function returned, as contiguous arrays. Raises InputError where it is not like what it was given."""
    found = tuple(changed) if isinstance(changed, tuple | list) else (changed,)
    described = [(np.shape(each), getattr(each, "dtype", type(each).__name__)) for each in found]
    wanted = [(each.shape, each.dtype) for each in given]
    if described != wanted:
        what = "an image, a mask and instances" if len(given) == 3 else "an image and a mask"
        raise InputError(
            f"augmentation {entry.described}: gave {one_line(described, 120)} for {one_line(wanted, 120)}; return "
            f"{what} of the same shapes and types"
        )
    values = set(np.unique(found[1]).tolist()) - {0, 1}
    others = sorted(values - set(np.unique(given[1]).tolist())) if values else []
    if others:
        has = "0 and 1 only" if given[1].max() <= 1 else "values of the mask that it gets"
        raise InputError(f"augmentation {entry.described}: its mask has the value {others[-1]}; give {has}")
    return [np.ascontiguousarray(each) for each in found]
