"""Stochastic depth of a Mix Transformer (`mit.py`), drawn per image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

DROP_RATE = 0.1
"""Of the last layer; rates grow evenly from 0 (SegFormer, section 4.1)."""
STREAM = 1
"""Part of the generator's seed, so that these draws are others than augmentation's from the same image's seed."""


class StochasticDepth:
    """Drops whole residual branches of single images (Huang et al. 2016, arXiv 1603.09382, section 3).

    Each branch (an attention or a Mix-FFN) of each image is kept or dropped by a number drawn from that image's seed;
    kept branches are scaled by 1 / (1 - rate).
    """

    def __init__(self, num_layers: int) -> None:
        last = max(num_layers - 1, 1)
        self.rates = np.array([DROP_RATE * number / last for number in range(num_layers) for _ in range(2)])

    def draw(self, seeds: Tensor | None, device: torch.device) -> Tensor | None:
        """Decide for a forward pass. seeds: (B,) int64, or None for no dropping.

        Returns the factor of each branch: (B, branches) fp64, or None."""
        if seeds is None:
            return None
        draws = np.stack([np.random.default_rng([STREAM, seed]).random(len(self.rates)) for seed in seeds.tolist()])
        return torch.from_numpy((draws >= self.rates) / (1 - self.rates)).to(device)

    def of_layer(self, scales: Tensor | None, number: int) -> tuple[Tensor, Tensor] | None:
        """The factors (B, 1, 1) of a layer's two branches; None where nothing is dropped.

        The first layer's are 1, which changes no number: so torch.compile needs no graph of its own for this layer.
        """
        if scales is None:
            return None
        return scales[:, 2 * number, None, None], scales[:, 2 * number + 1, None, None]
