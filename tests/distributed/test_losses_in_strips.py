"""Every registered loss where processes share an image, against one process that has it whole."""

import pytest
import torch
from helpers import run
from loss_helpers import NUM_CLASSES, draw

from glioma_dist.losses import segmentation_loss
from glioma_dist.model.outputs import Outputs
from glioma_dist.registry import losses
from glioma_dist.scale.spatial_group import SpatialGroup

HEIGHT, WIDTH = 100, 24
"""Strips of 32 or 64 rows, the last shorter: boundaries reach over more than one strip's edge."""


def compare(num_classes: int) -> dict[str, tuple[float, float]]:
    """By loss the largest differences of the losses and of the gradients of this process's rows."""
    from glioma_dist.distributed.context import DistributedContext

    here = DistributedContext.start()
    group, found = SpatialGroup.join(here, here.num_processes), {}
    rows = group.cut(HEIGHT)
    logits, masks = (torch.from_numpy(each) for each in draw(5, HEIGHT, WIDTH, num_classes))
    outputs = Outputs(logits.shape[1], "distance")
    second = torch.randn(5, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits, masks = torch.cat([logits, second], dim=1), torch.stack([masks, masks // 2], dim=1)
    factors = torch.arange(1.0, 6.0, dtype=torch.float64)
    for entry in (losses.find(name) for name in losses.names()):
        if entry.classes == ("several" if num_classes == 2 else "one"):
            continue
        whole, part = logits.clone().requires_grad_(), logits[..., rows, :].clone().requires_grad_()
        expected = segmentation_loss(entry.name, whole, masks, outputs=outputs)
        (expected * factors).sum().backward()
        split = segmentation_loss(entry.name, part, masks[..., rows, :], group, outputs)
        (split * factors).sum().backward()
        difference = (part.grad - whole.grad[..., rows, :]).abs().max()
        found[entry.name] = ((split - expected).abs().max().item(), difference.item())
    return found


@pytest.mark.parametrize("num_processes", [2, 3])
@pytest.mark.parametrize("num_classes", [2, NUM_CLASSES])
def test_strips_give_the_loss_and_the_gradient_of_the_whole(num_processes, num_classes):
    for found in run(compare, num_classes, num_processes=num_processes):
        assert len(found) == len(
            [e for e in losses.names() if losses.find(e).classes != ("several" if num_classes == 2 else "one")]
        )
        assert all(max(pair) < 1e-9 for pair in found.values()), found
