"""Mix Transformer, SegFormer's encoder (Xie et al. 2021, arXiv 2105.15203, section 3.1), on PyTorch alone.

Modules have the names that transformers' SegformerModel gives them, and compute what it computes, to the last bit; its
weights and checkpoints need no renaming.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from glioma_dist.model.encoders.contract import Encoder
from glioma_dist.model.encoders.mit_names import MIT_SHAPES
from glioma_dist.model.encoders.mit_segment import MitSegment, Part
from glioma_dist.model.layer_norm import StreamLayerNorm
from glioma_dist.model.pretrained.mit_weights import load_mit, rename_mit

NUM_HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
"""Side of the squares of tokens that become one key and one value, a stage."""
PATCHES = ((7, 4), (3, 2), (3, 2), (3, 2))
"""Side and stride of a stage's overlapping patches."""
FFN_RATIO = 4
DROP_RATE = 0.1
"""Of the last layer; rates grow evenly from 0 (section 4.1)."""
AUTHORS_EPSILON = 1e-6
"""In the norms of layers and stages, as in SegFormer's released code, with which its weights were trained; the other
norms have PyTorch's 1e-5."""
DEEP_STAGE = 6
NUM_TILED_STAGES = 2
"""Stages whose Mix-FFN may go in tiles: its inner maps are four times as wide as a stage, and the first stages' are the
encoder's largest."""
NUM_SPARING_STAGES = 3
"""Stages whose layers may go in tiles as a whole; in the first `NUM_TILED_STAGES` of them the queries, too."""
STREAM = 1
"""Part of the generator's seed, so that these draws are others than augmentation's from the same image's seed."""


class MitEncoder(Encoder):
    """Four maps at strides 4, 8, 16 and 32.

    Stochastic depth is drawn per image from the image's own seed, so that an image is treated alike in whatever
    process and beside whatever others it is computed, and again when a layer is computed again.
    """

    strides = (4, 8, 16, 32)
    has_spatial_layers = True

    def __init__(self, name: str) -> None:
        super().__init__()
        shape = MIT_SHAPES[name]
        self.channels = tuple(shape["hidden_sizes"])
        heads = shape.get("num_attention_heads", NUM_HEADS)
        columns = ((3, *self.channels[:-1]), self.channels, PATCHES, shape["depths"], heads, REDUCTIONS)
        stages = [
            Stage(*settings, tiles_attention=number < NUM_TILED_STAGES)
            for number, settings in enumerate(zip(*columns, strict=True))
        ]
        self.segformer = nn.ModuleDict({"stages": nn.ModuleList(stages)})
        self.stochastic_depth = StochasticDepth(sum(shape["depths"]))

    def forward(self, images: Tensor, seeds: Tensor | None = None) -> list[Tensor]:
        """images: (B, 3, H, W) float, H and W multiples of 32. seeds: (B,) int64, each image's own, or what `draw` made
        of them; without them, and in evaluation mode, nothing is dropped.

        Returns feature maps (B, channels[i], H / strides[i], W / strides[i]).
        """
        scales = seeds if self.training else None
        if scales is not None and not scales.is_floating_point():
            scales = self.stochastic_depth.draw(scales, images.device)
        in_tiles = self.large_images is not None and self.large_images.have(images, 1)
        features, outputs, first = images, [], 0
        for stage in self.segformer["stages"]:
            for part in segments_of(len(stage.blocks), self.has_short_segments, ends_apart=in_tiles):
                branches = [self.stochastic_depth.of_layer(scales, first + number) for number in part.layers]
                features = self.run_segment(MitSegment(stage, part, branches, in_tiles), features)
            features = features.contiguous(memory_format=self.memory_format)
            outputs.append(features)
            first += len(stage.blocks)
        return outputs

    def draw(self, seeds: Tensor) -> Tensor | None:
        """As `Encoder.draw`: (B, branches) fp64, the factor of each residual branch; None in evaluation mode."""
        return self.stochastic_depth.draw(seeds, seeds.device) if self.training else None

    def blocks(self) -> list[nn.Module]:
        """The transformer's layers, in order."""
        return [layer for stage in self.segformer["stages"] for layer in stage.blocks]

    def attention_layers(self) -> list[EfficientSelfAttention]:
        return [layer.attention for layer in self.blocks()]

    def tileable_layers(self) -> list[MixFFN]:
        return [layer.mlp for stage in self.segformer["stages"][:NUM_TILED_STAGES] for layer in stage.blocks]

    def sparing_layers(self) -> list[Layer]:
        return [layer for stage in self.segformer["stages"][:NUM_SPARING_STAGES] for layer in stage.blocks]

    def rename_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """As `Encoder.rename_weights`, from the names of SegFormer's released code."""
        return rename_mit(tensors)

    def load_imagenet(self, name: str, file: Path | None) -> dict[str, str]:
        """As `Encoder.load_imagenet`, from transformers' hub."""
        return load_mit(self, name, file)


class Stage(nn.Module):
    """Overlapping patches to tokens, transformer layers, a norm."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        patch: tuple[int, int],
        depth: int,
        num_heads: int,
        reduction: int,
        tiles_attention: bool = False,
    ) -> None:
        super().__init__()
        self.patch_embeddings = PatchEmbedding(in_channels, channels, *patch)
        self.blocks = nn.ModuleList([Layer(channels, num_heads, reduction, tiles_attention) for _ in range(depth)])
        self.layer_norm = StreamLayerNorm(channels, eps=AUTHORS_EPSILON)

    def compute_layers(self, segment: MitSegment, features: Tensor) -> Tensor:
        """Some layers of the stage, maybe with the patch embedding before them, and after the last one the norm.

        features: (B, C, H, W), what the segment before gave. Returns a map of the stage's channels and size, a view of
        its tokens (B, HW, C).
        """
        if segment.part.embeds:
            tokens, height, width = self.patch_embeddings(features)
        else:
            tokens, (height, width) = features.flatten(2).transpose(1, 2), features.shape[2:]
        for number, scales in zip(segment.part.layers, segment.branches, strict=True):
            # A batch of one has any stride, and torch.compile translates a layer for each stride that it meets. This
            # view has the one stride that follows from the shape, and copies nothing.
            tokens = self.blocks[number](tokens.view(tokens.shape), height, width, scales, segment.in_tiles)
        if segment.part.ends:
            tokens = self.layer_norm(tokens)
        return as_map(tokens, height, width)


class PatchEmbedding(nn.Module):
    """A strided convolution whose windows overlap, and a norm."""

    def __init__(self, in_channels: int, channels: int, side: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, side, stride, padding=side // 2)
        self.layer_norm = StreamLayerNorm(channels)

    def forward(self, features: Tensor) -> tuple[Tensor, int, int]:
        """features: (B, C, H, W). Returns tokens (B, H' W', C') and H', W'."""
        features = self.proj(features)
        return self.layer_norm(as_tokens(features)), *features.shape[2:]


class Layer(nn.Module):
    """A transformer layer: attention and Mix-FFN, each with a norm before and the residual around both."""

    def __init__(self, channels: int, num_heads: int, reduction: int, tiles_attention: bool = False) -> None:
        super().__init__()
        self.layernorm_before = StreamLayerNorm(channels, eps=AUTHORS_EPSILON)
        self.attention = EfficientSelfAttention(channels, num_heads, reduction)
        self.layernorm_after = StreamLayerNorm(channels, eps=AUTHORS_EPSILON)
        self.mlp = MixFFN(channels)
        self.tiles_attention = tiles_attention
        self.run_tiles: Callable[..., Tensor] | None = None

    def forward(
        self,
        tokens: Tensor,
        height: int,
        width: int,
        scales: tuple[Tensor, Tensor] | None = None,
        in_tiles: bool = False,
    ) -> Tensor:
        """tokens: (B, height * width, C). scales: (B, 1, 1) of the two branches. in_tiles: whether the layer runs in
        tiles of rows as a whole, if it can. Returns the same shape."""
        of_attention, of_mlp = (None, None) if scales is None else scales
        if in_tiles and self.run_tiles is not None:
            return as_tokens(self._run_tiles(as_map(tokens, height, width), of_attention, of_mlp))
        tokens = _joined(self.attention(self.layernorm_before(tokens), height, width), tokens, of_attention)
        return _joined(self.mlp(self.layernorm_after(tokens), height, width), tokens, of_mlp)

    def _run_tiles(self, features: Tensor, of_attention: Tensor | None, of_mlp: Tensor | None) -> Tensor:
        """features: (B, C, H, W). Only the map before each branch is kept, and in attention the normalised one, of
        which keys and values are made."""

        def attend(part: Tensor, key: Tensor, value: Tensor) -> Tensor:
            tokens = as_tokens(part)
            branch = self.attention.attend_to(self.attention.queries(self.layernorm_before(tokens)), key, value)
            return as_map(_joined(branch, tokens, of_attention), *part.shape[2:])

        def mix(part: Tensor) -> Tensor:
            tokens = as_tokens(part)
            branch = self.mlp.compute_tile(self.layernorm_after(tokens), *part.shape[2:])
            return as_map(_joined(branch, tokens, of_mlp), *part.shape[2:])

        attention, size, inner_channels = self.attention, features.shape[2:], self.mlp.fc1.out_features
        tokens = as_tokens(features)
        if self.tiles_attention:
            used = (self.layernorm_before, attention.q_proj, attention.o_proj)
            # In fp32 at least, as their gradients are summed over the tiles.
            found = attention.keys_and_values(self.layernorm_before(tokens), *size)
            shared = [each.to(torch.promote_types(each.dtype, torch.float32)) for each in found]
            weights = [weight for module in used for weight in module.parameters()]
            features = self.run_tiles(attend, [features], weights, inner_channels, shared=shared, halo=0)
        else:
            features = as_map(_joined(attention(self.layernorm_before(tokens), *size), tokens, of_attention), *size)
        weights = [*self.layernorm_after.parameters(), *self.mlp.parameters()]
        return self.run_tiles(mix, [features], weights, inner_channels)


def _joined(branch: Tensor, tokens: Tensor, scale: Tensor | None) -> Tensor:
    """The residual connection around a branch, which stochastic depth scales."""
    return (branch if scale is None else branch * scale.to(branch.dtype)) + tokens


class EfficientSelfAttention(nn.Module):
    """Multi-head attention to keys and values of squares of tokens, by PyTorch's fused kernel: no attention matrix is
    ever held."""

    def __init__(self, channels: int, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (channels // num_heads) ** -0.5
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.o_proj = nn.Linear(channels, channels)
        self.sequence_reduction = SequenceReduction(channels, reduction) if reduction > 1 else None
        self.gather_tokens: Callable[[Tensor], Tensor] | None = None
        self.attend: Callable[[Tensor, Tensor, Tensor, float], Tensor] = attend

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """tokens: (B, height * width, C). Returns the same shape."""
        query = self.queries(tokens)  # first: gradients of the tokens are summed in the opposite order
        return self.attend_to(query, *self.keys_and_values(tokens, height, width))

    def queries(self, tokens: Tensor) -> Tensor:
        """tokens: (B, any number, C). Returns (B, heads, as many, C / heads)."""
        return self._heads(self.q_proj(tokens))

    def keys_and_values(self, tokens: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """tokens: (B, height * width, C). Returns (B, heads, fewer tokens, C / heads) each, those of all strips."""
        reduced = tokens if self.sequence_reduction is None else self.sequence_reduction(tokens, height, width)
        key, value = self._heads(self.k_proj(reduced)), self._heads(self.v_proj(reduced))
        if self.gather_tokens is not None:
            key, value = self.gather_tokens(torch.cat([key, value], dim=-1)).chunk(2, dim=-1)
        return key, value

    def attend_to(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What each query (B, heads, any number, C / heads) finds in all keys and values. Returns tokens (B, as many,
        C)."""
        attended = self.attend(query, key.to(query.dtype), value.to(query.dtype), self.scale)
        return self.o_proj(attended.transpose(1, 2).contiguous().flatten(2))

    def _heads(self, tokens: Tensor) -> Tensor:
        """(B, tokens, C) to (B, heads, tokens, C / heads)."""
        return tokens.view(*tokens.shape[:2], self.num_heads, -1).transpose(1, 2)


class SequenceReduction(nn.Module):
    """Squares of tokens, each to one: a convolution whose stride is its side, and a norm."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.sequence_reduction = nn.Conv2d(channels, channels, side, side)
        self.layer_norm = StreamLayerNorm(channels)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """tokens: (B, height * width, C). Returns (B, fewer, C)."""
        return self.layer_norm(as_tokens(self.sequence_reduction(as_map(tokens, height, width))))


class MixFFN(nn.Module):
    """Two linear layers, and between them a depthwise 3x3 convolution, by which tokens learn where they are."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = FFN_RATIO * channels
        self.fc1 = nn.Linear(channels, inner)
        self.dwconv = nn.ModuleDict({"dwconv": nn.Conv2d(inner, inner, 3, padding=1, groups=inner)})
        self.fc2 = nn.Linear(inner, channels)
        self.run_tiles: Callable[..., Tensor] | None = None

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """tokens: (B, height * width, C). Returns the same shape."""
        if self.run_tiles is None:
            return self._compute(tokens, height, width, self.dwconv["dwconv"])
        features = as_map(tokens, height, width)
        return as_tokens(self.run_tiles(self._compute_map, [features], list(self.parameters()), self.fc1.out_features))

    def compute_tile(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """The same of a tile, which brings the neighbours' rows with it."""
        return self._compute(tokens, height, width, partial(nn.Conv2d.forward, self.dwconv["dwconv"]))

    def _compute(self, tokens: Tensor, height: int, width: int, convolve: Callable[[Tensor], Tensor]) -> Tensor:
        tokens = self.fc1(tokens)
        tokens = as_tokens(convolve(as_map(tokens, height, width)))
        tokens = functional.gelu(tokens)
        return self.fc2(tokens)

    def _compute_map(self, features: Tensor) -> Tensor:
        return as_map(self.compute_tile(as_tokens(features), *features.shape[2:]), *features.shape[2:])


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


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """(B, heads, tokens, C) each. Returns the shape of `query`."""
    return functional.scaled_dot_product_attention(query, key, value, scale=scale)


def as_tokens(features: Tensor) -> Tensor:
    """(B, C, H, W) to (B, HW, C)."""
    return features.flatten(2).transpose(1, 2)


def as_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, HW, C) to (B, C, H, W), a view."""
    channels_first = tokens.transpose(1, 2)
    # Not `unflatten`, of which an exported graph would remember the numbers.
    return channels_first.view(*channels_first.shape[:2], height, width)


def segments_of(depth: int, are_short: bool = False, ends_apart: bool = False) -> list[Part]:
    """A stage's layers one by one, or two by two in deep stages (the third's of b2 and larger): there are so many that
    what recomputation keeps between them outweighs what two of them hold at once. The patch embedding goes with the
    first and the norm with the last, or with `ends_apart` each on its own."""
    length = 2 if depth >= DEEP_STAGE and not are_short else 1
    parts = [range(first, min(first + length, depth)) for first in range(0, depth, length)]
    if ends_apart:
        return [Part(range(0), embeds=True), *map(Part, parts), Part(range(0), ends=True)]
    return [Part(part, part.start == 0, part.stop == depth) for part in parts]
