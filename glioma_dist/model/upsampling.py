"""Bilinear upsampling to twice the size, in its input's type on every device, and with a backward pass that is
deterministic and exact to one rounding on a GPU.

Under CUDA autocast PyTorch's `interpolate` converts its input to fp32 (docs.pytorch.org/docs/stable/amp.html, "CUDA Ops
that can autocast to float32"), which doubles the largest tensor of a training step. CPU autocast keeps bf16.

The forward pass loses no precision in bf16: the kernel computes each output in fp32 and rounds it once, and the next
convolution would round an fp32 output to the same bf16. PyTorch converts to fp32 because of the backward pass: its CUDA
kernel (ATen/native/cuda/UpSampleBilinear2d.cu, `upsample_bilinear2d_backward_out_frame`) rounds each of the 16 terms of
an input's gradient to the type of the gradient, and adds them with atomic operations in that type, in an order that
differs from run to run. `upsample_gradient` sums in fp32 in a fixed order instead.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from glioma_dist.model.layout import layout_of

GATHERED_NUMBERS = 2**25
"""Largest number of elements of a gradient that are summed at once (at least two rows). The intermediate result between
the two axes takes as many bytes as these elements in bf16."""
_SCALES = (2.0, 2.0)


class BilinearUpsample(nn.Upsample):
    """Bilinear upsampling to twice the size, pixels as areas (`align_corners=False`)."""

    as_on_gpu: bool | None = None
    """Whether the backward pass uses `upsample_gradient`; None: on every device but the CPU. The memory estimator sets
    it, because it counts on the CPU what a GPU does."""

    def __init__(self) -> None:
        super().__init__(scale_factor=2, mode="bilinear")

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, C, H, W). Returns (B, C, 2H, 2W) of the same type and layout."""
        return _Upsample.apply(features) if self.gathers(features.device) else super().forward(features)

    def gathers(self, device: torch.device) -> bool:
        """Whether the backward pass uses `upsample_gradient` on `device`. PyTorch's CPU kernel is deterministic."""
        return device.type != "cpu" if self.as_on_gpu is None else self.as_on_gpu


def upsample(features: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, 2H, 2W) of the same type and layout, also under autocast and with deterministic algorithms
    (for which PyTorch's `interpolate` uses a slower implementation on a GPU, with other sums)."""
    kind = features.device.type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        return torch.ops.aten.upsample_bilinear2d(features, [2 * side for side in features.shape[2:]], False, *_SCALES)


class _Upsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor) -> Tensor:
        return upsample(features)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        return upsample_gradient(gradient)


def upsample_gradient(gradient: Tensor) -> Tensor:
    """The gradient of `upsample`'s input: (B, C, 2H, 2W) to (B, C, H, W), in the same type and layout.

    Along an axis, output 2i is 3/4 x[i] + 1/4 x[i-1] and output 2i+1 is 3/4 x[i] + 1/4 x[i+1], where x beyond the
    border is the border's own x (PyTorch's `area_pixel_compute_source_index`, ATen/native/UpSample.h, for scale 2 and
    align_corners False). So the gradient of x[i] is

        1/4 g[2i-1] + 3/4 g[2i] + 3/4 g[2i+1] + 1/4 g[2i+2],  with g[-1] = g[0] and g[2n] = g[2n-1],

    first along the rows, then along the columns. All is summed in fp32 (fp64 for fp64), in a fixed order, and rounded
    to the gradient's type once; the weights 3 and 1 and the division by 16 are exact. It uses no atomic operations and
    no operation that deterministic algorithms refuse.
    """
    height = gradient.shape[2] // 2
    numbers_per_row = 2 * (gradient.numel() // max(1, gradient.shape[2]))
    rows = max(1, GATHERED_NUMBERS // max(1, numbers_per_row))
    shape = (*gradient.shape[:2], height, gradient.shape[3] // 2)
    result = torch.empty(shape, dtype=gradient.dtype, device=gradient.device, memory_format=layout_of(gradient))
    for start, stop in pairwise([*range(0, height, rows), height]):
        # Sums with the weights 1, 3, 3, 1 along both axes: 16 times the gradient.
        sums = _gather(gradient, 2, start, stop)
        torch.mul(_gather(sums, 3, 0, shape[3]), 1 / 16, out=result[:, :, start:stop])
    return result


def _gather(values: Tensor, axis: int, start: int, stop: int) -> Tensor:
    """g[2i-1] + 3 g[2i] + 3 g[2i+1] + g[2i+2] for `start` <= i < `stop` along `axis` of g, `values` (B, C, …); fp32 at
    least."""
    count, length = values.shape[axis] // 2, stop - start

    def every_second(first: int, number: int = length) -> Tensor:
        """values[first], values[first + 2], …: a view."""
        return values[(slice(None),) * axis + (slice(first, first + max(0, 2 * number - 1), 2),)]

    total = every_second(2 * start).to(torch.promote_types(values.dtype, torch.float32), copy=True)
    total.add_(every_second(2 * start + 1)).mul_(3)
    first, last = int(start == 0), int(stop == count)
    # Neighbours before: those inside, and at the border the border itself; then the same for those behind.
    total.narrow(axis, first, length - first).add_(every_second(2 * (start + first) - 1, length - first))
    total.narrow(axis, 0, length - last).add_(every_second(2 * start + 2, length - last))
    if first:
        total.narrow(axis, 0, 1).add_(values.narrow(axis, 0, 1))
    if last:
        total.narrow(axis, length - 1, 1).add_(values.narrow(axis, 2 * count - 1, 1))
    return total
