"""What the channels of a network's logits are: those of the mask first, then that of a second target."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from glioma_dist.config import ModelConfig


@dataclass(frozen=True)
class Outputs:
    """Splits logits (B, `num_outputs`, H, W), and masks as a batch has them, into the mask's and the second target's.

    `Outputs()`: one class, no second target, as for networks of other packages.
    """

    num_mask_channels: int = 1
    """1: a sigmoid, 0 or more is a cell. K: a softmax over K classes, of which 0 is the background."""
    target: str | None = None
    """The second target, boundary or distance: one channel with a sigmoid."""

    @classmethod
    def of(cls, config: ModelConfig) -> Outputs:
        """The outputs of the network that `config` describes."""
        return cls(config.num_mask_channels, next((each for each in config.targets if each != "mask"), None))

    @property
    def num_outputs(self) -> int:
        """Channels of the logits."""
        return self.num_mask_channels + (self.target is not None)

    def mask_logits(self, logits: Tensor) -> Tensor:
        """Of logits (B, num_outputs, H, W), those of the mask: (B, num_mask_channels, H, W)."""
        return logits[:, : self.num_mask_channels]

    def target_logits(self, logits: Tensor) -> Tensor | None:
        """Of logits (B, num_outputs, H, W), those of the second target: (B, H, W); None if there is none."""
        return None if self.target is None else logits[:, self.num_mask_channels]

    def predicted(self, logits: Tensor) -> Tensor:
        """The number of the class of each pixel, for one class 0 and 1: (B, H, W) uint8.

        It is the rule of `evaluation.maps.class_map` at a threshold of 0.5, without computing probabilities: a cell is
        where all classes of cells together are as probable as background or more, and its class is the most probable
        of them.
        """
        mask = self.mask_logits(logits)
        if self.num_mask_channels == 1:
            return (mask[:, 0] >= 0).to(torch.uint8)
        cells = mask[:, 1:]
        is_cell = cells.logsumexp(dim=1) >= mask[:, 0]
        return ((cells.argmax(dim=1) + 1) * is_cell).to(torch.uint8)

    def mask(self, masks: Tensor) -> Tensor:
        """Of a batch's masks, (B, H, W), or (B, 2, H, W) with a second target, the mask: (B, H, W)."""
        return masks if self.target is None else masks[:, 0]

    def target_mask(self, masks: Tensor) -> Tensor | None:
        """Of a batch's masks, the second target's values: (B, H, W) uint8; None if there is none."""
        return None if self.target is None else masks[:, 1]
