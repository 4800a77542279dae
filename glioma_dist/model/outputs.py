"""What the channels of a network's logits mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from glioma_dist.config import ModelConfig


@dataclass(frozen=True)
class Outputs:
    """Channels of the logits."""

    classes: tuple[str, ...] = ()
    target: Literal["boundary", "distance"] | None = None

    @classmethod
    def of(cls, config: ModelConfig) -> Outputs:
        """Return the outputs of a network."""
        return cls(config.classes, next((each for each in config.targets if each != "mask"), None))

    @property
    def num_mask_channels(self) -> int:
        """1, or K."""
        return len(self.classes) + 1 if self.classes else 1

    def mask_logits(self, logits: Tensor) -> Tensor:
        """(B, M, H, W)."""
        return logits[:, : self.num_mask_channels]

    def target_logits(self, logits: Tensor) -> Tensor | None:
        """(B, H, W)."""
        return logits[:, self.num_mask_channels] if self.target else None

    def predicted(self, logits: Tensor) -> Tensor:
        """(B, H, W) uint8."""
        mask = self.mask_logits(logits)
        return (mask[:, 0] > 0).to(torch.uint8) if mask.shape[1] == 1 else mask.argmax(1).to(torch.uint8)
