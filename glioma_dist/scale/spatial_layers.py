"""Makes a model work on bands of rows (`rows.py`): which layers need other bands, and what takes their place."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import AttentionInterface
from transformers.activations import GELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.segformer.modeling_segformer import SegformerAttention

from glioma_dist.errors import InputError
from glioma_dist.model.unet import UNet
from glioma_dist.scale.activation_checkpointing import BandedBlock, BandedMixFFN, RecomputedDecoder
from glioma_dist.scale.spatial_convolution import RowsConv2d, reaches_over, window_of
from glioma_dist.scale.spatial_group import Rows, add_to_borders
from glioma_dist.scale.tiled_statistics import GroupStatistics, normalise_with
from glioma_dist.scale.tiles import in_bands

ATTENTION_OVER_ROWS = "sdpa_over_rows"
"""The name under which transformers finds it."""
PER_PIXEL = (
    nn.Linear,
    nn.LayerNorm,
    nn.BatchNorm2d,  # its statistics are taken over all processes by `batch_norm.py`
    nn.SyncBatchNorm,
    nn.ReLU,
    nn.GELU,
    GELUActivation,
    nn.Dropout,
    nn.Identity,
)
"""Layers that need no other row."""


def split_rows(model: UNet, rows: Rows) -> None:
    """Make `model`, in place, work on this process's band of each image; weights and their names stay as they are.

    Call it after `recompute`. Raises InputError where a layer is not known to be exact in bands.
    """
    if rows.size == 1:
        return
    banded = {
        inner
        for module in model.modules()
        if isinstance(module, BandedMixFFN | BandedBlock)
        for inner in module.modules()
        if isinstance(inner, nn.Conv2d | nn.Upsample)
    }
    if isinstance(model.decoder, RecomputedDecoder):
        banded.add(model.decoder.head)
    for name, module in model.named_modules():
        if isinstance(module, BandedMixFFN | BandedBlock):
            module.rows = rows
        if module not in banded:
            _split_layer(name, module, rows)


def _split_layer(name: str, module: nn.Module, rows: Rows) -> None:
    if isinstance(module, SegformerAttention):
        AttentionInterface.register(ATTENTION_OVER_ROWS, attend_over_rows)
        module.config._attn_implementation = ATTENTION_OVER_ROWS
        module.rows = rows
    elif type(module) in ROW_LAYERS:
        if not isinstance(module, nn.Conv2d | nn.MaxPool2d) or reaches_over(name, module):
            module.__class__ = ROW_LAYERS[type(module)]
            module.rows = rows
    elif not isinstance(module, PER_PIXEL) and next(module.children(), None) is None:
        raise InputError(f"--scale.rows: {name} is a {type(module).__name__}, which is not known to be exact in bands")


def attend_over_rows(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **how: object
) -> tuple[Tensor, None]:
    """Attention of this band's queries to the keys and values of the whole image; transformers' attention interface.

    query, key, value: (B, heads, tokens, C). Returns (B, tokens, heads, C).
    """
    key, value = module.rows.gather_tokens(torch.cat([key, value], dim=-1)).chunk(2, dim=-1)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **how)


class RowsUpsample(nn.Upsample):
    """Bilinear upsampling to twice the size over all bands of an image: one row from each side."""

    rows: Rows

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, C, rows of this band, W). Returns (B, C, 2 rows, 2 W)."""
        return _UpsampleRows.apply(features, self.rows)


class _UpsampleRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, rows: Rows) -> Tensor:
        wait = rows.exchange(features[:, :, :1], features[:, :, -1:])
        output = upsample(features)
        above, below = wait()
        # Of the four rows made of two, the middle ones lie between the two.
        if rows.has_previous:
            output[:, :, :1] = upsample(torch.cat([above, features[:, :, :1]], dim=2))[:, :, 2:3]
        if rows.has_next:
            output[:, :, -1:] = upsample(torch.cat([features[:, :, -1:], below], dim=2))[:, :, 1:2]
        ctx.shape, ctx.dtype, ctx.rows = features.shape, features.dtype, rows
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        rows = ctx.rows
        # A quarter of a border row comes from the neighbour's row, and not, as at the image's border, from its own.
        quarters = [
            _upsample_gradient(0.125 * part.expand(-1, -1, 2, -1), (*ctx.shape[:2], 1, ctx.shape[3])).to(ctx.dtype)
            for part in (gradient[:, :, :1], gradient[:, :, -1:])
        ]
        wait = rows.exchange(*quarters)
        total = _upsample_gradient(gradient, ctx.shape).to(ctx.dtype)
        if rows.has_previous:
            total[:, :, :1] -= quarters[0]
        if rows.has_next:
            total[:, :, -1:] -= quarters[1]
        add_to_borders(total, *wait())
        return total, None


def upsample(features: Tensor) -> Tensor:
    return functional.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)


def _upsample_gradient(gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.ops.aten.upsample_bilinear2d_backward(
        gradient.contiguous(), gradient.shape[2:], shape, False, 2.0, 2.0
    )


class RowsMaxPool2d(nn.MaxPool2d):
    """MaxPool2d over all bands of an image. Keeps its input, and finds the largest a second time."""

    rows: Rows

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, C, rows of this band, W). Returns (B, C, rows / stride, W / stride)."""
        return _PoolRows.apply(features, self)


class _PoolRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, layer: RowsMaxPool2d) -> Tensor:
        window, rows = window_of(layer), layer.rows
        halo = list(rows.exchange(features[:, :, : window.below], features[:, :, features.shape[2] - window.above :])())
        for number, present in enumerate((rows.has_previous, rows.has_next)):
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
        total, of_above, of_below = torch.autograd.grad(output, [features, above, below], gradient)
        add_to_borders(total, *ctx.layer.rows.exchange(of_above, of_below)())
        return total, None


def _pool(layer: nn.MaxPool2d, above: Tensor, features: Tensor, below: Tensor) -> Tensor:
    padding = layer.padding if isinstance(layer.padding, int) else layer.padding[1]
    joined = torch.cat([above, features, below], dim=2)
    return functional.max_pool2d(joined, layer.kernel_size, layer.stride, (0, padding), layer.dilation)


class RowsGroupNorm(nn.GroupNorm):
    """GroupNorm over all bands of an image."""

    rows: Rows

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, C, rows of this band, W). Returns the same shape."""

        def normalise(part: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
            return normalise_with(self, part, mean, variance)

        statistics = GroupStatistics(self, self.rows)
        return in_bands(normalise, [features], list(self.parameters()), self.num_channels, statistics=statistics)


ROW_LAYERS = {
    nn.Conv2d: RowsConv2d,
    nn.MaxPool2d: RowsMaxPool2d,
    nn.Upsample: RowsUpsample,
    nn.GroupNorm: RowsGroupNorm,
}
"""What takes a layer's place."""
