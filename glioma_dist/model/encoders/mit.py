"""Mix Transformer, SegFormer's encoder (Xie et al. 2021, arXiv 2105.15203, section 3.1), on PyTorch alone.

Modules have the names that transformers' SegformerModel gives them, and compute what it computes, to the last bit; its
weights and checkpoints need no renaming.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from glioma_dist.model.encoders.contract import Encoder
from glioma_dist.model.encoders.mit_layers import (
    AUTHORS_EPSILON,
    EfficientSelfAttention,
    Layer,
    MixFFN,
    as_map,
    as_tokens,
)
from glioma_dist.model.encoders.mit_names import MIT_SHAPES
from glioma_dist.model.encoders.mit_segment import MitSegment, Part
from glioma_dist.model.encoders.stochastic_depth import StochasticDepth
from glioma_dist.model.layer_norm import StreamLayerNorm
from glioma_dist.model.pretrained.mit_weights import load_mit, rename_mit

NUM_HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
"""Side of the squares of tokens that become one key and one value, a stage."""
PATCHES = ((7, 4), (3, 2), (3, 2), (3, 2))
"""Side and stride of a stage's overlapping patches."""
DEEP_STAGE = 6
NUM_TILED_STAGES = 2
"""Stages whose Mix-FFN may go in tiles: its inner maps are four times as wide as a stage, and the first stages' are the
encoder's largest."""
NUM_SPARING_STAGES = 3
"""Stages whose layers may go in tiles as a whole; in the first `NUM_TILED_STAGES` of them the queries, too."""


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


def segments_of(depth: int, are_short: bool = False, ends_apart: bool = False) -> list[Part]:
    """A stage's layers one by one, or two by two in deep stages (the third's of b2 and larger): there are so many that
    what recomputation keeps between them outweighs what two of them hold at once. The patch embedding goes with the
    first and the norm with the last, or with `ends_apart` each on its own."""
    length = 2 if depth >= DEEP_STAGE and not are_short else 1
    parts = [range(first, min(first + length, depth)) for first in range(0, depth, length)]
    if ends_apart:
        return [Part(range(0), embeds=True), *map(Part, parts), Part(range(0), ends=True)]
    return [Part(part, part.start == 0, part.stop == depth) for part in parts]
