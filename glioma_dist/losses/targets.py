"""The loss of a second target: the boundaries of cells, or the distance to a cell's edge."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from glioma_dist.limits import IGNORE, MAX_DISTANCE
from glioma_dist.losses.parts import Parts
from glioma_dist.losses.pixels import mean_of_valid


def target_loss(target: str, logits: Tensor, values: Tensor, group: Parts) -> Tensor:
    """boundary: the mean of the binary cross-entropy over the labelled pixels. distance: that of the absolute
    difference of sigmoid(logit) and the distance, which is 0 at a cell's edge and 1 at its deepest pixel.

    logits: (B, H, W), fp32 or wider. values: (B, H, W) uint8. Returns (B,).
    """
    valid = values != IGNORE
    reference = values.masked_fill(~valid, 0).to(logits.dtype)
    if target == "boundary":
        errors = functional.binary_cross_entropy_with_logits(logits, reference, reduction="none")
    else:
        errors = (logits.sigmoid() - reference / MAX_DISTANCE).abs()
    return mean_of_valid(errors, valid, group.total)
