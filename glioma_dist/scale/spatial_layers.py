"""Makes a model work on strips of rows (`spatial_group.py`): which layers need other strips, and what takes their
place."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from glioma_dist.errors import InputError
from glioma_dist.model.group_norm import StreamGroupNorm
from glioma_dist.model.layout import layout_of
from glioma_dist.model.modules import rebuild, replace_modules
from glioma_dist.model.unet import UNet
from glioma_dist.model.upsampling import BilinearUpsample, upsample, upsample_gradient
from glioma_dist.scale.spatial_convolution import SpatialConv2d, reaches_over, window_of
from glioma_dist.scale.spatial_group import SpatialGroup, add_to_borders
from glioma_dist.scale.strips.encoder import split_encoder
from glioma_dist.scale.tile_size import TileSize
from glioma_dist.scale.tiled_block import TiledBlock
from glioma_dist.scale.tiled_statistics import GroupStatistics, normalise_with
from glioma_dist.scale.tiles import checkpoint_in_tiles

PER_PIXEL = (
    nn.Linear,
    nn.LayerNorm,
    nn.BatchNorm2d,  # its statistics are taken over all processes by `batch_norm.py`
    nn.SyncBatchNorm,
    nn.ReLU,
    nn.GELU,
    nn.Dropout,
    nn.Identity,
)
"""Layers that need no other row."""


def split_spatially(model: UNet, group: SpatialGroup, tile_size: TileSize | None = None) -> None:
    """Make `model`, in place, work on this process's strip of each image. Weights and their names do not change.

    tile_size: for tiles of group norms; by default the size for the device that computes. Call it after
    `checkpoint_activations`. An encoder without layers for strips computes function by function (`strips/`). Raises
    InputError if a layer is not known to be exact in strips.
    """
    if group.size == 1:
        return
    if not model.encoder.has_spatial_layers:
        split_encoder(model.encoder, group)
    done = set() if model.encoder.has_spatial_layers else set(model.encoder.modules())
    tiled_layers = [layer for layer in model.encoder.tileable_layers() if layer.run_tiles is not None and not done]
    blocks = [module for module in model.modules() if isinstance(module, TiledBlock)]
    # Tiles bring the rows that these convolutions need with them. The other blocks go in tiles only where their maps
    # are too large, and then compute these layers as plain ones.
    in_tiles = done | {
        inner
        for module in (*tiled_layers, *(block for block in blocks if block.always))
        for inner in module.modules()
        if isinstance(inner, nn.Conv2d | BilinearUpsample)
    }
    if getattr(model.decoder.blocks[-1], "always", False):
        in_tiles.add(model.decoder.head)
    replace_modules(model, lambda name, module: None if module in in_tiles else _split_layer(name, module, group))
    if model.encoder.large_images is not None:
        model.encoder.large_images.group = group  # the decoder's blocks have the same
    for block in blocks:
        block.spatial_group = group
    for module in model.modules():
        if isinstance(module, SpatialGroupNorm):
            module.tile_size = tile_size
    if not done:
        for layer in (*tiled_layers, *(each for each in model.encoder.sparing_layers() if each.run_tiles is not None)):
            layer.run_tiles = partial(layer.run_tiles, group=group)
        for layer in model.encoder.attention_layers():
            layer.gather_tokens = group.gather_tokens


def _split_layer(name: str, module: nn.Module, group: SpatialGroup) -> nn.Module | None:
    """What takes the place of a layer; None where it needs no other strip, or other layers of it do."""
    if type(module) in SPATIAL_LAYERS:
        if isinstance(module, nn.Conv2d | nn.MaxPool2d) and not reaches_over(name, module):
            return None
        return rebuild(module, SPATIAL_LAYERS[type(module)], spatial_group=group)
    if not isinstance(module, PER_PIXEL) and next(module.children(), None) is None:
        raise InputError(
            f"--scale.spatial-parallel: {name} is a {type(module).__name__}, which is not known to be exact in strips; "
            "give another --model.encoder, or omit the flag"
        )
    return None


class SpatialUpsample(BilinearUpsample):
    """Bilinear upsampling to twice the size over all strips of an image: one row from each side."""

    spatial_group: SpatialGroup

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, C, rows of this strip, W). Returns (B, C, 2 rows, 2 W)."""
        return _UpsampleStrip.apply(features, self.spatial_group, self.gathers(features.device))


class _UpsampleStrip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, group: SpatialGroup, gathers: bool) -> Tensor:
        wait = group.exchange(features[:, :, :1], features[:, :, -1:])
        output = upsample(features)
        above, below = wait()
        # Of the four rows made of two, the middle ones lie between the two.
        if group.has_previous:
            output[:, :, :1] = upsample(torch.cat([above, features[:, :, :1]], dim=2))[:, :, 2:3]
        if group.has_next:
            output[:, :, -1:] = upsample(torch.cat([features[:, :, -1:], below], dim=2))[:, :, 1:2]
        ctx.shape, ctx.group, ctx.gathers = features.shape, group, gathers
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        group, gradient_of = ctx.group, upsample_gradient if ctx.gathers else _cpu_gradient
        # A quarter of a border row comes from the neighbour's row, and not, as at the image's border, from its own.
        quarters = [
            gradient_of(0.125 * part.expand(-1, -1, 2, -1)) for part in (gradient[:, :, :1], gradient[:, :, -1:])
        ]
        wait = group.exchange(*quarters)
        total = gradient_of(gradient)
        if group.has_previous:
            total[:, :, :1] -= quarters[0]
        if group.has_next:
            total[:, :, -1:] -= quarters[1]
        add_to_borders(total, *wait())
        return total, None, None


def _cpu_gradient(gradient: Tensor) -> Tensor:
    """What PyTorch's own backward pass gives, which is deterministic on the CPU; in the gradient's layout."""
    output_size = gradient.shape[2:]
    shape = (*gradient.shape[:2], *(side // 2 for side in output_size))
    dense = gradient.contiguous(memory_format=layout_of(gradient))
    return torch.ops.aten.upsample_bilinear2d_backward(dense, output_size, shape, False, 2.0, 2.0)


class SpatialMaxPool2d(nn.MaxPool2d):
    """MaxPool2d over all strips of an image. Keeps its input, and finds the largest a second time."""

    spatial_group: SpatialGroup

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, C, rows of this strip, W). Returns (B, C, rows / stride, W / stride)."""
        return _SpatialPool.apply(features, self)


class _SpatialPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, layer: SpatialMaxPool2d) -> Tensor:
        window, group = window_of(layer), layer.spatial_group
        received = group.exchange(features[:, :, : window.below], features[:, :, features.shape[2] - window.above :])()
        halo = [each.contiguous(memory_format=layout_of(features)) for each in received]
        for number, present in enumerate((group.has_previous, group.has_next)):
            if not present:
                halo[number].fill_(-math.inf)
        ctx.save_for_backward(features, *halo)
        ctx.layer = layer
        return _pool(layer, halo[0], features, halo[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        features, above, below = (each.detach().requires_grad_() for each in ctx.saved_tensors)
        with torch.enable_grad():
            output = _pool(ctx.layer, above, features, below)
        total, of_above, of_below = torch.autograd.grad(
            output, [features, above, below], gradient, allow_unused=True, materialize_grads=True
        )
        add_to_borders(total, *ctx.layer.spatial_group.exchange(of_above, of_below)())
        return total, None


def _pool(layer: nn.MaxPool2d, above: Tensor, features: Tensor, below: Tensor) -> Tensor:
    padding = layer.padding if isinstance(layer.padding, int) else layer.padding[1]
    # An empty part would change the layout of what is joined.
    joined = torch.cat([each for each in (above, features, below) if each.shape[2]], dim=2)
    return functional.max_pool2d(joined, layer.kernel_size, layer.stride, (0, padding), layer.dilation)


class SpatialGroupNorm(nn.GroupNorm):
    """GroupNorm over all strips of an image."""

    spatial_group: SpatialGroup
    tile_size: TileSize | None = None

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, C, rows of this strip, W). Returns the same shape."""

        def normalise(part: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
            return normalise_with(self, part, mean, variance)

        statistics = GroupStatistics(self, self.spatial_group, self.tile_size)
        return checkpoint_in_tiles(
            normalise,
            [features],
            list(self.parameters()),
            self.num_channels,
            statistics=statistics,
            size=self.tile_size,
        )


SPATIAL_LAYERS = {
    nn.Conv2d: SpatialConv2d,
    nn.MaxPool2d: SpatialMaxPool2d,
    BilinearUpsample: SpatialUpsample,
    nn.GroupNorm: SpatialGroupNorm,
    StreamGroupNorm: SpatialGroupNorm,
}
"""What takes a layer's place."""
