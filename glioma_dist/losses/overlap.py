"""Losses that compare areas: how much of the predicted and of the reference mask overlaps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Total = Callable[[Tensor], Tensor]
SMOOTH = 1.0
"""Pixels added above and below the fraction, so that an image without cells has a loss and a gradient."""
FALSE_POSITIVES, FALSE_NEGATIVES = 0.3, 0.7
"""Weights of the Tversky loss: missed cells cost more than pixels too many."""


def soft_dice(logits: Tensor, masks: Tensor, valid: Tensor, total: Total) -> Tensor:
    """1 - (2 sum(p m) + 1) / (sum(p) + sum(m) + 1), p = sigmoid(logit) (V-Net, Milletari et al. 2016, arXiv 1606.04797,
    section 3, with plain sums below). Of several classes, p = softmax(logits): the mean over the classes of cells; the
    background is left out."""
    probabilities, reference = of_cells(logits, masks, valid)
    sums = torch.stack(
        [(probabilities * reference).sum((-2, -1)), probabilities.sum((-2, -1)) + reference.sum((-2, -1))]
    )
    overlap, both = total(sums)
    return mean_over_classes(1 - (2 * overlap + SMOOTH) / (both + SMOOTH))


def tversky(logits: Tensor, masks: Tensor, valid: Tensor, total: Total) -> Tensor:
    """1 - (TP + 1) / (TP + 0.3 FP + 0.7 FN + 1), TP = sum(p m), FP = sum(p (1 - m)), FN = sum((1 - p) m) (Salehi et al.
    2017, arXiv 1706.05721, equation 4, with the weights that it found best). p and classes as in soft Dice."""
    probabilities, reference = of_cells(logits, masks, valid)
    sums = [(probabilities * reference).sum((-2, -1)), probabilities.sum((-2, -1)), reference.sum((-2, -1))]
    overlap, predicted, labelled = total(torch.stack(sums))
    errors = FALSE_POSITIVES * (predicted - overlap) + FALSE_NEGATIVES * (labelled - overlap)
    return mean_over_classes(1 - (overlap + SMOOTH) / (overlap + errors + SMOOTH))


def of_cells(logits: Tensor, masks: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and reference of each class of cells, both 0 where a pixel is not labelled.

    Returns two tensors (B, H, W), or of several classes (B, K - 1, H, W).
    """
    if logits.ndim == 3:
        return logits.sigmoid().masked_fill(~valid, 0), masks
    probabilities = logits.softmax(dim=1)[:, 1:].masked_fill(~valid[:, None], 0)
    reference = functional.one_hot(masks, logits.shape[1])[..., 1:].movedim(-1, 1)
    return probabilities, reference.to(logits.dtype)


def mean_over_classes(values: Tensor) -> Tensor:
    """values: (B,), or (B, classes). Returns (B,)."""
    return values if values.ndim == 1 else values.mean(dim=1)
