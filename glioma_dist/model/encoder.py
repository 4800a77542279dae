"""Encoders: from an image to feature maps at growing strides.

The contract: `encoder(images, seeds)` returns a list of maps, finest first; `encoder.strides` and
`encoder.channels` say the stride and the channels of each.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerModel

MIT_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "mit_tiny": {"depths": (1, 1, 1, 1), "hidden_sizes": (8, 16, 24, 32), "num_attention_heads": (1, 1, 1, 1)},
    "mit_b0": {"depths": (2, 2, 2, 2), "hidden_sizes": (32, 64, 160, 256)},
    "mit_b1": {"depths": (2, 2, 2, 2), "hidden_sizes": (64, 128, 320, 512)},
    "mit_b2": {"depths": (3, 4, 6, 3), "hidden_sizes": (64, 128, 320, 512)},
    "mit_b3": {"depths": (3, 4, 18, 3), "hidden_sizes": (64, 128, 320, 512)},
    "mit_b4": {"depths": (3, 8, 27, 3), "hidden_sizes": (64, 128, 320, 512)},
    "mit_b5": {"depths": (3, 6, 40, 3), "hidden_sizes": (64, 128, 320, 512)},
}
"""Table 6 of SegFormer (Xie et al. 2021, arXiv 2105.15203); the rest of its columns are SegformerConfig's defaults.
mit_tiny is ours, for demos and tests."""

STREAM = 1
"""Part of the generator's seed, so that these draws are others than augmentation's from the same image's seed."""


def mit_config(name: str) -> SegformerConfig:
    """SegFormer's configuration by encoder name, with attention by PyTorch's fused kernel: no attention matrix is
    ever held."""
    config = SegformerConfig(**MIT_SHAPES[name])
    config._attn_implementation = "sdpa"
    return config


class MitEncoder(nn.Module):
    """SegFormer's hierarchical transformer (transformers' SegformerModel): four maps at strides 4, 8, 16, 32.

    Stochastic depth is drawn per image from the image's own seed, so that an image is treated alike in whatever
    process and beside whatever others it is computed, and again when a layer is recomputed.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, name: str) -> None:
        super().__init__()
        config = mit_config(name)
        self.channels: tuple[int, ...] = tuple(config.hidden_sizes)
        self.segformer = SegformerModel(config)
        self.stochastic_depth = StochasticDepth(self.segformer)

    def forward(self, images: Tensor, seeds: Tensor | None = None) -> list[Tensor]:
        """images: (B, 3, H, W) float, H and W multiples of 32. seeds: (B,) int64, each
        image's own; without them, and in evaluation mode, nothing is dropped.

        Returns maps (B, channels[i], H / strides[i], W / strides[i]).
        """
        self.stochastic_depth.draw(seeds if self.training else None, images.device)
        maps = []
        for stage in self.segformer.stages:
            images = stage(images)
            maps.append(images)
        return maps


class StochasticDepth:
    """Drops whole residual branches of single images (Huang et al. 2016, arXiv 1603.09382, section 3).

    transformers' own drop-path draws from the global generator, and by the batch's layout. Here each branch (an
    attention or a Mix-FFN) of each image is kept or dropped by a number drawn from that image's seed; kept branches
    are scaled by 1 / (1 - rate). It works by hooks on the branches, so that the weights' names stay the library's.
    """

    def __init__(self, segformer: SegformerModel) -> None:
        branches = []
        for stage in segformer.stages:
            for layer in stage.blocks:
                rate = getattr(layer.drop_path, "drop_prob", 0.0)
                layer.drop_path = nn.Identity()
                branches += [(layer.attention, rate), (layer.mlp, rate)]
        self.rates = np.array([rate for _, rate in branches])
        self.scales: Tensor | None = None
        for number, (branch, rate) in enumerate(branches):
            if rate > 0:
                branch.register_forward_hook(partial(self._scale, number))

    def draw(self, seeds: Tensor | None, device: torch.device) -> None:
        """Decide for the coming forward pass. seeds: (B,) int64, or None for no dropping."""
        if seeds is None:
            self.scales = None
            return
        draws = np.stack([np.random.default_rng([STREAM, seed]).random(len(self.rates)) for seed in seeds.tolist()])
        self.scales = torch.from_numpy((draws >= self.rates) / (1 - self.rates)).to(device)

    def _scale(self, number: int, _branch: nn.Module, _inputs: tuple, output: Tensor | tuple) -> Tensor | tuple | None:
        if self.scales is None:
            return None
        tokens = output[0] if isinstance(output, tuple) else output
        scaled = tokens * self.scales[:, number, None, None].to(tokens.dtype)
        return (scaled, *output[1:]) if isinstance(output, tuple) else scaled
