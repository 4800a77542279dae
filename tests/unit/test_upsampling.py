"""Upsampling as a GPU computes it: forward in the input's type, backward by a gather that PyTorch's own confirms."""

import pytest
import torch
from torch.nn import functional

from glioma_dist.model import upsampling
from glioma_dist.model.upsampling import BilinearUpsample, upsample, upsample_gradient

LAYOUTS = (torch.contiguous_format, torch.channels_last)
SHAPES = ((1, 1, 1, 1), (2, 3, 1, 5), (2, 3, 5, 1), (2, 4, 7, 9), (1, 16, 2, 3), (3, 5, 8, 6))
BITS_OF_BF16 = 8


def gradient_of(shape, layout, dtype=torch.float64):
    """Of the output for an input of `shape`."""
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randn(*shape[:2], 2 * shape[2], 2 * shape[3], generator=generator, dtype=torch.float64)
    return values.to(dtype).to(memory_format=layout)


def exact_gradient(gradient, shape):
    """By autograd through the four weights of every output, which knows of no stencil."""
    source = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    output = functional.interpolate(source, scale_factor=2, mode="bilinear", align_corners=False)
    return torch.autograd.grad(output, source, gradient.double())[0]


@pytest.mark.parametrize("numbers", [1, 60, 2**25])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gather_is_the_gradient(monkeypatch, shape, layout, numbers):
    monkeypatch.setattr(upsampling, "GATHERED_NUMBERS", numbers)
    gradient = gradient_of(shape, layout)
    found = upsample_gradient(gradient)
    height, width = gradient.shape[2:]
    own = torch.ops.aten.upsample_bilinear2d_backward(gradient, (height, width), shape, False, 2.0, 2.0)
    for expected in (exact_gradient(gradient, shape), own):
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    if min(shape[1:]) > 1:
        assert found.is_contiguous(memory_format=layout)


def test_the_gather_takes_gradients_that_are_no_dense_tensors():
    row = gradient_of((2, 3, 4, 5), torch.contiguous_format)[:, :, :1]
    spread, cut = row.expand(-1, -1, 8, -1), gradient_of((2, 3, 4, 5), torch.contiguous_format)[:, :, 2:6, 2:8]
    for gradient in (spread, cut, cut.transpose(2, 3)):
        shape = (2, 3, gradient.shape[2] // 2, gradient.shape[3] // 2)
        torch.testing.assert_close(upsample_gradient(gradient), exact_gradient(gradient, shape), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_gather_rounds_once(dtype, layout):
    gradient = gradient_of((2, 8, 9, 11), layout, dtype)
    exact = exact_gradient(gradient, (2, 8, 9, 11))
    found = upsample_gradient(gradient)
    assert found.dtype == dtype
    half_a_step = torch.finfo(dtype).eps / 2
    # Beside the one rounding to the type, sums of 16 numbers in fp32.
    allowed = half_a_step * exact.abs() + 16 * 2.0**-24 * upsample_gradient(gradient.double().abs())
    assert bool(((found.double() - exact).abs() <= allowed).all())


def test_the_gather_is_more_exact_than_addends_added_in_bf16():
    """PyTorch's CUDA kernel, written out: each addend is rounded to bf16, and each sum of them."""
    gradient = gradient_of((1, 4, 8, 8), torch.contiguous_format, torch.bfloat16)
    exact = exact_gradient(gradient, (1, 4, 8, 8))
    added = torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16)
    for y in range(16):
        for x in range(16):
            weights = exact_gradient(torch.eye(256)[16 * y + x].view(1, 1, 16, 16), (1, 1, 8, 8))
            added += (weights * gradient[:, :, y : y + 1, x : x + 1].double()).to(torch.bfloat16)
    errors = [(found.double() - exact).abs().max() for found in (upsample_gradient(gradient), added)]
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_both_ways_give_the_same_output(dtype, layout):
    features = gradient_of((2, 4, 3, 5), layout, dtype)
    expected = BilinearUpsample()(features)
    assert torch.equal(expected, functional.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(upsample(features), expected)
        assert upsample(features).is_contiguous(memory_format=layout)


def test_the_module_gathers_on_every_device_but_the_cpu():
    layer = BilinearUpsample()
    found = {}
    for device in ("cpu", "meta"):
        features = torch.zeros(1, 2, 4, 4, device=device, requires_grad=True)
        found[device] = type(layer(features).grad_fn).__name__
        assert torch.autograd.grad(layer(features).sum(), features)[0].shape == features.shape
    assert found == {"cpu": "UpsampleBilinear2DBackward0", "meta": "_UpsampleBackward"}


@pytest.mark.parametrize("shape", SHAPES)
def test_gradcheck(shape):
    layer = BilinearUpsample()
    layer.as_on_gpu = True
    torch.autograd.gradcheck(layer, torch.randn(shape, dtype=torch.float64, requires_grad=True))
