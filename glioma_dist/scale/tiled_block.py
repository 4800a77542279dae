"""A decoder block that can be computed in tiles of rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from glioma_dist.model.decoder import DecoderBlock
from glioma_dist.model.upsampling import BilinearUpsample
from glioma_dist.scale.batch_norm_layer import OVER_PROCESSES
from glioma_dist.scale.large_images import LargeImages
from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.scale.tile_size import TileSize, default_tile_size
from glioma_dist.scale.tiled_chain import Chain, checkpoint_chain_in_tiles
from glioma_dist.scale.tiled_statistics import BatchStatistics, GroupStatistics, Statistics, normalise_with
from glioma_dist.scale.tiles import checkpoint_in_tiles

HALO = 2
"""Rows of a block's input on each side on which a row of its output depends: half a row of the input by upsampling, a
row of the output by each of two convolutions, and one by the head."""


class TiledBlock(DecoderBlock):
    """A decoder block that can be computed in tiles. Then only the outputs of its two convolutions exist for all rows;
    everything between them exists for one tile of rows at a time."""

    spatial_group = SpatialGroup()
    always = True
    """Whether the block is computed in tiles at any size, or only if a kernel cannot take its maps."""
    tile_size: TileSize | None = None
    reuses_gradient = False
    """Whether the gradient of the first convolution's output takes the place of that of the second's."""
    large_images: LargeImages | None = None
    """Of which images not even the outputs of the convolutions are kept; None: of none."""
    stride = 1
    """Of the block's output."""

    def forward(self, features: Tensor, skip: Tensor | None, head: nn.Conv2d | None = None) -> Tensor:
        """As DecoderBlock's; with `head` what it makes of the block's output."""
        if not self.always and not self._too_large(max(self.conv1.in_channels, self.conv1.out_channels), features, 2):
            features = super().forward(features, skip)
            return features if head is None else head(features)
        inputs = [features] if skip is None else [features, skip]
        if self.keeps_inputs_only(features):
            return self._compute_in_tiles(inputs, head)
        parameters, inner_channels = list(self.conv1.parameters()), self.conv1.in_channels
        features = checkpoint_in_tiles(
            self._upsample_and_convolve,
            inputs,
            parameters,
            inner_channels,
            ratio=2,
            group=self.spatial_group,
            size=self.tile_size,
        )
        features = self._normalise_and_convolve(self.norm1, self.conv2, features)
        if head is not None or self._too_large(features.shape[1], features):
            return self._normalise_and_convolve(self.norm2, head, features)
        return functional.relu(self.norm2(features), inplace=True)

    def _too_large(self, channels: int, features: Tensor, ratio: int = 1) -> bool:
        """Whether a map of `channels`, with `ratio` rows and columns for each of `features`, is too large for a kernel.

        The process with the most rows of an image decides, so that all processes do the same.
        """
        num_images, _, height, width = features.shape
        units = self.spatial_group.units
        most_rows = height * max(units) // units[self.spatial_group.rank]
        size = self.tile_size or default_tile_size(features.device)
        return size.too_large(num_images, channels, ratio * most_rows, ratio * width)

    def keeps_inputs_only(self, features: Tensor) -> bool:
        """Whether the block keeps nothing else for its backward pass."""
        return self.large_images is not None and self.large_images.have(features, 2 * self.stride)

    def _compute_in_tiles(self, inputs: list[Tensor], head: nn.Conv2d | None) -> Tensor:
        """All of the block, and `head`, in tiles."""
        norms, used = (self.norm1, self.norm2), (self, *([] if head is None else [head]))
        chain = Chain(
            (self._upsample_and_convolve, self._part(self.norm1, self.conv2), self._part(self.norm2, head)),
            [self._statistics(norm) for norm in norms],
            ratio=2,
            halo=HALO,
            group=self.spatial_group,
        )
        parameters = [weight for module in used for weight in module.parameters()]
        return checkpoint_chain_in_tiles(chain, inputs, parameters, self.conv1.in_channels, self.tile_size)

    def _upsample_and_convolve(self, features: Tensor, *skips: Tensor) -> Tensor:
        features = BilinearUpsample.forward(self.upsample, features)  # a tile brings the neighbours' rows with it
        return _convolve(self.conv1, torch.cat([features, *skips], dim=1))

    def _normalise_and_convolve(self, norm: nn.Module, convolution: nn.Conv2d | None, features: Tensor) -> Tensor:
        """convolution(relu(norm(features))) in tiles; without a convolution relu(norm(features))."""
        return checkpoint_in_tiles(
            self._part(norm, convolution),
            [features],
            [*norm.parameters(), *([] if convolution is None else convolution.parameters())],
            features.shape[1],
            statistics=self._statistics(norm),
            group=self.spatial_group,
            size=self.tile_size,
            reuses_gradient=self.reuses_gradient and convolution is self.conv2,
        )

    @staticmethod
    def _part(norm: nn.Module, convolution: nn.Conv2d | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """What computes a tile of convolution(relu(norm(features))) with the mean and variance given."""

        def compute_tile(part: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
            part = functional.relu(normalise_with(norm, part, mean, variance), inplace=True)
            return part if convolution is None else _convolve(convolution, part)

        return compute_tile

    def _statistics(self, norm: nn.Module) -> Statistics:
        if isinstance(norm, nn.GroupNorm):
            return GroupStatistics(norm, self.spatial_group, self.tile_size)
        return BatchStatistics(norm, isinstance(norm, OVER_PROCESSES), self.tile_size)


def _convolve(convolution: nn.Conv2d, part: Tensor) -> Tensor:
    """Compute as a plain convolution, also if the module works on strips: a tile includes the neighbours' rows."""
    return nn.Conv2d.forward(convolution, part)
