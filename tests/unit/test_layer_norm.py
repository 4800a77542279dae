"""The layer norm of bf16 tokens, widened as a whole or a few tokens at a time, against PyTorch's in fp32."""

import pytest
import torch
from torch.nn import functional

from glioma_dist.model.layer_norm import StreamLayerNorm

CHANNELS = 24


def norm_of(elements: int | None) -> StreamLayerNorm:
    norm = StreamLayerNorm(CHANNELS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(CHANNELS, generator=generator))
        norm.bias.copy_(torch.randn(CHANNELS, generator=generator))
    norm.elements_at_once = elements
    return norm


def take(norm: StreamLayerNorm, tokens: torch.Tensor, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    tokens = tokens.clone().requires_grad_()
    output = norm(tokens)
    output.backward(gradient)
    return {"output": output, "tokens": tokens.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}


@pytest.mark.parametrize("elements", [1, 7 * CHANNELS, 2 * 50 * CHANNELS, 2 * 101 * CHANNELS, None])
@pytest.mark.parametrize("shape", [(2, 101), (1, 3, 101), (101,)], ids=str)
def test_tokens_have_the_same_bits_and_weights_the_same_sums(shape, elements):
    generator = torch.Generator().manual_seed(1)
    tokens, gradient = (torch.randn(*shape, CHANNELS, generator=generator).bfloat16() for _ in range(2))
    found, whole = (take(norm_of(each), tokens, gradient) for each in (elements, None))
    for name in ("output", "tokens"):
        assert torch.equal(found[name], whole[name])
        assert found[name].dtype == torch.bfloat16
    wide = tokens.double().requires_grad_()
    weight, bias = (each.detach().double().requires_grad_() for each in (norm_of(None).weight, norm_of(None).bias))
    functional.layer_norm(wide, (CHANNELS,), weight, bias).backward(gradient.double())
    torch.testing.assert_close(found["weight"].double(), weight.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["bias"].double(), bias.grad, rtol=1e-5, atol=1e-5)
