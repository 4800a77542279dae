"""Convolution whose processes each have a strip of an image's rows (`spatial_group.py`).

Forward, it first begins to send its border rows, then computes its strip as if zeros stood beyond, and then computes
the few border rows again with the neighbours' rows (the halo). Backward, the halo's gradients go back to where its
rows came from. What is kept for the backward pass is the strip, as a convolution of one process keeps it, and the halo.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from glioma_dist.errors import InputError
from glioma_dist.scale.spatial_group import SpatialGroup, add_to_borders, rows_between


@dataclass(frozen=True)
class Window:
    """A convolution's or pooling's window along the rows of a map."""

    kernel: int
    stride: int
    padding: int

    @property
    def above(self) -> int:
        """Rows of the strip above that the first window reaches."""
        return self.padding

    @property
    def below(self) -> int:
        """Rows of the strip below that the last window reaches."""
        return max(0, self.kernel - self.stride - self.padding)

    def top(self, height: int) -> tuple[int, int, int]:
        """Number of the first output rows that need the strip above, and the input rows that they take."""
        count = math.ceil(self.above / self.stride)
        return count, -self.above, (count - 1) * self.stride - self.padding + self.kernel

    def bottom(self, height: int) -> tuple[int, int, int]:
        """Number of the last output rows that need the strip below, and the input rows that they take."""
        first = (height + self.padding - self.kernel) // self.stride + 1
        return height // self.stride - first, first * self.stride - self.padding, height + self.below


def reaches_over(name: str, layer: nn.Conv2d | nn.MaxPool2d) -> bool:
    """Whether windows of the layer reach over a border of strips.

    Raises InputError where the layer does not give one row for each `stride` rows, pads with anything but zeros, or
    returns indices.
    """
    is_known = not isinstance(layer.padding, str) and getattr(layer, "padding_mode", "zeros") == "zeros"
    is_known = is_known and not getattr(layer, "ceil_mode", False) and not getattr(layer, "return_indices", False)
    window = window_of(layer) if is_known else None
    if window is None or not 0 < window.kernel - 2 * window.padding <= window.stride:
        raise InputError(
            f"--scale.spatial-parallel: {name} is {layer}, which is not known to be exact in strips; give another "
            "--model.encoder, or omit the flag"
        )
    return window.above > 0 or window.below > 0


def window_of(layer: nn.Conv2d | nn.MaxPool2d) -> Window:
    kernel, stride, padding, dilation = (
        each if isinstance(each, int) else each[0]
        for each in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    )
    return Window((kernel - 1) * dilation + 1, stride, padding)


class SpatialConv2d(nn.Conv2d):
    """Conv2d over all strips of an image."""

    spatial_group: SpatialGroup

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, C, rows of this strip, W). Returns (B, C', rows / stride, W / stride)."""
        weight, bias, device = self.weight, self.bias, features.device.type
        if torch.is_autocast_enabled(device):  # a Function's inside is not translated
            features, weight, bias = (
                each if each is None else each.to(torch.get_autocast_dtype(device)) for each in (features, weight, bias)
            )
        how = (self.stride, self.padding, self.dilation, self.groups)
        return _SpatialConvolve.apply(features, weight, bias, how, window_of(self), self.spatial_group)


class _SpatialConvolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, features: Tensor, weight: Tensor, bias: Tensor | None, how: tuple, window: Window, group: SpatialGroup
    ):
        height = features.shape[2]
        wait = group.exchange(features[:, :, : window.below], features[:, :, height - window.above :])
        output = functional.conv2d(features, weight, bias, *how)
        above, below = wait()
        for (count, start, stop), top in _borders(window, height, group):
            strip = rows_between(above, features, below, start, stop)
            border = functional.conv2d(strip, weight, bias, *_unpadded(how))
            output[:, :, _border(count, top)] = border
        ctx.save_for_backward(features, weight, above, below)
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        ctx.how, ctx.window, ctx.group = how, window, group
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        # A convolution is linear: gradients are those of the strip with zeros beyond it, and those of the halo alone.
        features, weight, above, below = ctx.saved_tensors
        needs_features, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        halo_gradients, weight_gradient = [torch.zeros_like(above), torch.zeros_like(below)], 0
        for (count, start, stop), top in _borders(ctx.window, features.shape[2], ctx.group):
            halo = above if top else below
            rest = halo.new_zeros(*halo.shape[:2], stop - start - halo.shape[2], halo.shape[3])
            strip = torch.cat([halo, rest] if top else [rest, halo], dim=2)
            part = gradient[:, :, _border(count, top)]
            mask = [needs_features, needs_weight, False]
            of_strip, of_weight, _ = _gradients(part, strip, weight, None, _unpadded(ctx.how), mask)
            if needs_features:
                length = halo.shape[2]
                halo_gradients[0 if top else 1] = of_strip[:, :, :length] if top else of_strip[:, :, -length:]
            if needs_weight:
                weight_gradient = weight_gradient + of_weight
        wait = ctx.group.exchange(*halo_gradients) if needs_features else None
        mask = [needs_features, needs_weight, needs_bias]
        found = _gradients(gradient, features, weight, ctx.bias_sizes, ctx.how, mask)
        if wait is not None:
            add_to_borders(found[0], *wait())
        return found[0], found[1] + weight_gradient if needs_weight else None, found[2], None, None, None


def _gradients(
    gradient: Tensor, features: Tensor, weight: Tensor, bias_sizes: list[int] | None, how: tuple, mask: list[bool]
) -> tuple[Tensor | None, ...]:
    stride, padding, dilation, groups = how
    return torch.ops.aten.convolution_backward(
        gradient, features, weight, bias_sizes, stride, padding, dilation, False, [0, 0], groups, mask
    )


def _unpadded(how: tuple) -> tuple:
    """The same convolution without padding above and below."""
    stride, padding, dilation, groups = how
    return stride, (0, padding[1]), dilation, groups


def _borders(window: Window, height: int, group: SpatialGroup) -> list[tuple[tuple[int, int, int], bool]]:
    """What `Window.top` and `Window.bottom` say, where there is a strip beyond; and whether it is the top."""
    top = [(window.top(height), True)] if group.has_previous and window.above else []
    return top + ([(window.bottom(height), False)] if group.has_next and window.below else [])


def _border(count: int, top: bool) -> slice:
    return slice(0, count) if top else slice(-count, None)
