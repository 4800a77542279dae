"""Losses again, in numpy and fp64, from the formulas of their papers: one image, pixel by pixel where clearest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

NUM_CLASSES = 3
"""With the background."""


def draw(num_images: int = 5, height: int = 13, width: int = 17, num_classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Logits and masks uint8; among the masks an empty and a full one, and a block that nobody labelled. Of two classes
    the logits are (B, 1, H, W)."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, (num_images, 1 if num_classes == 2 else num_classes, height, width))
    masks = generator.integers(0, num_classes, (num_images, height, width)).astype(np.uint8)
    masks[1], masks[2] = 0, 1
    masks[3:, 2:5, 3:9] = 255
    return logits, masks


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(0))
    return powers / powers.sum(0)


def areas(logits: np.ndarray, mask: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each class of cells: probabilities and reference of the labelled pixels."""
    known = mask != 255
    if len(logits) == 1:
        return [(sigmoid(logits[0])[known], mask[known] == 1)]
    return [(softmax(logits)[number][known], mask[known] == number) for number in range(1, len(logits))]


def own_class(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Of each pixel the probability of its own class; 1 where nobody labelled it."""
    p = np.stack([1 - sigmoid(logits[0]), sigmoid(logits[0])]) if len(logits) == 1 else softmax(logits)
    number = np.where(mask == 255, 0, mask)[None]
    return np.where(mask == 255, 1, np.take_along_axis(p, number.astype(int), 0)[0])


def dice(logits: np.ndarray, mask: np.ndarray) -> float:
    return float(np.mean([1 - (2 * p[m].sum() + 1) / (p.sum() + m.sum() + 1) for p, m in areas(logits, mask)]))


def tversky(logits: np.ndarray, mask: np.ndarray) -> float:
    found = []
    for p, m in areas(logits, mask):
        hits, extra, missed = p[m].sum(), p[~m].sum(), (1 - p[m]).sum()
        found.append(1 - (hits + 1) / (hits + 0.3 * extra + 0.7 * missed + 1))
    return float(np.mean(found))


def cross_entropy(logits: np.ndarray, mask: np.ndarray) -> float:
    return float(-np.log(own_class(logits, mask)).sum() / (mask != 255).sum())


def focal(logits: np.ndarray, mask: np.ndarray) -> float:
    p = own_class(logits, mask)
    alpha = np.where(mask == 1, 0.25, 0.75) if len(logits) == 1 else 1
    return float((-alpha * (1 - p) ** 2 * np.log(p)).sum() / (mask != 255).sum())


def boundary(logits: np.ndarray, mask: np.ndarray) -> float:
    """The images are smaller than the reach of a boundary."""
    classes = np.where(mask == 255, 0, mask).astype(int)
    places = list(np.ndindex(mask.shape))
    edge = [
        here
        for here in places
        for there in ((0, 1), (1, 0), (0, -1), (-1, 0))
        if (near := (here[0] + there[0], here[1] + there[1])) in set(places) and classes[near] != classes[here]
    ]
    weights = np.ones(mask.shape)
    for row, column in places:
        squares = [(row - y) ** 2 + (column - x) ** 2 for y, x in edge]
        if squares:
            weights[row, column] += 10 * np.exp(-min(squares) / 50)
    weights[mask == 255] = 0
    return float((weights * -np.log(own_class(logits, mask))).sum() / weights.sum())


def lovasz(logits: np.ndarray, mask: np.ndarray) -> float:
    """By the definition of the Lovász extension: the Jaccard loss of sets of wrong pixels that grow one by one."""
    known = mask != 255
    if len(logits) == 1:
        reference = mask[known] == 1
        return _extension(np.maximum(0, 1 - logits[0][known] * np.where(reference, 1, -1)), reference)
    found = []
    for number, p in enumerate(softmax(logits)):
        reference = mask[known] == number
        if reference.any():
            found.append(_extension(np.abs(reference - p[known]), reference))
    return float(np.mean(found))


def _extension(errors: np.ndarray, reference: np.ndarray) -> float:
    wrong, before, total = set(), 0.0, 0.0
    right = set(np.flatnonzero(reference).tolist())
    for place in np.argsort(-errors, kind="stable").tolist():
        wrong.add(place)
        jaccard = len(wrong) / len(right | wrong)
        total, before = total + errors[place] * (jaccard - before), jaccard
    return total


SLOWLY: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "dice": dice,
    "bce": cross_entropy,
    "ce": cross_entropy,
    "focal": focal,
    "tversky": tversky,
    "lovasz": lovasz,
    "boundary-bce": boundary,
    "boundary-ce": boundary,
}
"""By the names of the registry."""
