"""SegFormer's Mix Transformers.

The contract is `contract.py`'s.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerModel
from transformers.models.segformer.modeling_segformer import SegformerStage

from glioma_dist.model.encoders.contract import Encoder
from glioma_dist.model.encoders.mit_names import MIT_SHAPES
from glioma_dist.model.layer_norm import keep_stream_precision
from glioma_dist.model.pretrained.mit_weights import load_mit, rename_mit

AUTHORS_EPSILON = 1e-6
DEEP_STAGE = 6
STREAM = 1
"""Part of the generator's seed, so that these draws are others than augmentation's from the same image's seed."""


def mit_config(name: str) -> SegformerConfig:
    """SegFormer's configuration by encoder name, with attention by PyTorch's fused kernel: no attention matrix is
    ever held."""
    config = SegformerConfig(**MIT_SHAPES[name])
    config._attn_implementation = "sdpa"
    return config


class MitEncoder(Encoder):
    """SegFormer's hierarchical transformer (transformers' SegformerModel): four maps at strides 4, 8, 16, 32.

    Stochastic depth is drawn per image from the image's own seed, so that an image is treated alike in whatever
    process and beside whatever others it is computed, and again when a layer is computed again.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, name: str) -> None:
        super().__init__()
        config = mit_config(name)
        self.channels: tuple[int, ...] = tuple(config.hidden_sizes)
        self.segformer = SegformerModel(config)
        keep_stream_precision(self.segformer)
        _take_authors_epsilon(self.segformer)
        self.stochastic_depth = StochasticDepth(self.segformer)

    def forward(self, images: Tensor, seeds: Tensor | None = None) -> list[Tensor]:
        """images: (B, 3, H, W) float, H and W multiples of 32. seeds: (B,) int64, each
        image's own; without them, and in evaluation mode, nothing is dropped.

        Returns maps (B, channels[i], H / strides[i], W / strides[i]).
        """
        scales = self.stochastic_depth.draw(seeds if self.training else None, images.device)
        features, maps = images, []
        for stage in self.segformer.stages:
            for layers in parts_of(len(stage.blocks)):
                features = self.run_part(partial(self.compute_layers, stage, layers, scales), features)
            features = features.contiguous(memory_format=self.memory_format)
            maps.append(features)
        return maps

    def blocks(self) -> list[nn.Module]:
        """The transformer's layers, in order."""
        return [layer for stage in self.segformer.stages for layer in stage.blocks]

    def rename_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """As `Encoder.rename_weights`, from the names of SegFormer's released code."""
        return rename_mit(tensors)

    def load_imagenet(self, name: str, file: Path | None) -> dict[str, str]:
        """As `Encoder.load_imagenet`, from transformers' hub."""
        return load_mit(self, name, file)

    def compute_layers(self, stage: SegformerStage, layers: range, scales: Tensor | None, features: Tensor) -> Tensor:
        """Some layers of a stage; with the first goes the patch embedding before it, with the last the norm behind it.

        features: (B, C, H, W), what the part before gave. Returns a map of the stage's channels and size, a view of its
        tokens (B, HW, C). scales: what stochastic depth drew for this forward pass; it may be another's turn by now.
        """
        self.stochastic_depth.scales = scales
        if layers.start == 0:
            tokens, height, width = stage.patch_embeddings(features)
        else:
            tokens, (height, width) = features.flatten(2).transpose(1, 2), features.shape[2:]
        for number in layers:
            tokens = stage.blocks[number](tokens, height, width)
        if layers.stop == len(stage.blocks):
            tokens = stage.layer_norm(tokens)
        channels_first = tokens.transpose(1, 2)
        # Not `unflatten`, of which an exported graph would remember the numbers.
        return channels_first.view(*channels_first.shape[:2], height, width)


def _take_authors_epsilon(segformer: SegformerModel) -> None:
    """1e-6 in the norms of layers and stages, as in SegFormer's released code, with which its weights were trained;
    transformers has PyTorch's 1e-5 in all norms."""
    for stage in segformer.stages:
        for norm in (
            stage.layer_norm,
            *(n for each in stage.blocks for n in (each.layernorm_before, each.layernorm_after)),
        ):
            norm.eps = AUTHORS_EPSILON


def parts_of(depth: int) -> list[range]:
    """A stage's layers one by one, or two by two in deep stages (the third's of b2 and larger): there are so many that
    what recomputation keeps between them outweighs what two of them hold at once."""
    length = 2 if depth >= DEEP_STAGE else 1
    return [range(first, min(first + length, depth)) for first in range(0, depth, length)]


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

    def draw(self, seeds: Tensor | None, device: torch.device) -> Tensor | None:
        """Decide for a forward pass. seeds: (B,) int64, or None for no dropping.

        Returns what `scales` must be while the branches are computed: (B, branches) fp64, or None."""
        if seeds is None:
            return None
        draws = np.stack([np.random.default_rng([STREAM, seed]).random(len(self.rates)) for seed in seeds.tolist()])
        return torch.from_numpy((draws >= self.rates) / (1 - self.rates)).to(device)

    def _scale(self, number: int, _branch: nn.Module, _inputs: tuple, output: Tensor | tuple) -> Tensor | tuple | None:
        if self.scales is None:
            return None
        tokens = output[0] if isinstance(output, tuple) else output
        scaled = tokens * self.scales[:, number, None, None].to(tokens.dtype)
        return (scaled, *output[1:]) if isinstance(output, tuple) else scaled
