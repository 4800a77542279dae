"""Types, layouts and sizes of what a GPU would compute, on fake CUDA tensors under autocast: no GPU is needed.

A fake CUDA tensor has no backward pass without a driver, so these are forward passes.
"""

import pytest
import torch
from encoder_helpers import narrow_everything, slow_if_deeper
from fake_helpers import autocast, on_fake, skip_unless_fakes_need_no_driver
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glioma_dist.config import ModelConfig
from glioma_dist.model.layout import layout_of
from glioma_dist.model.modules import rebuild
from glioma_dist.model.unet import UNet
from glioma_dist.model.upsampling import BilinearUpsample
from glioma_dist.registry import encoders
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.memory_estimator import compute_as_on_gpu
from glioma_dist.scale.spatial_convolution import SpatialConv2d
from glioma_dist.scale.spatial_group import ImaginarySpatialGroup, rows_between
from glioma_dist.scale.spatial_layers import SpatialGroupNorm, SpatialMaxPool2d, SpatialUpsample

MIB = 2**20
NATIVE = (1952, 2592)


class Largest(TorchDispatchMode):
    """Keeps the largest tensor that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes, self.found = 0, ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().nbytes() > self.num_bytes:
                self.num_bytes = leaf.untyped_storage().nbytes()
                self.found = f"{func}: {tuple(leaf.shape)} {leaf.dtype}"
        return result


def types_of(encoder: str, norm: str, device: str, level: str) -> list[tuple[str, torch.dtype]]:
    """Name and output type of every layer that gives one tensor, in the order of their calls."""
    mode = FakeTensorMode()
    with torch.device("meta"):  # of which nothing is drawn
        model = UNet(ModelConfig(encoder=encoder, norm=norm)).train()
    checkpoint_activations(model, level)
    on_fake(model, device, mode)
    found = []

    def note(name):
        def hook(_module, _inputs, output):
            if isinstance(output, Tensor):
                found.append((name, output.dtype))

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(note(name))
    with mode, autocast(device):
        model(torch.zeros(2, 3, 64, 96, device=device))
    return found


@pytest.mark.parametrize("level", ["none", "full"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_every_layer_gives_bf16(norm, level):
    assert {name: kind for name, kind in types_of("mit_tiny", norm, "cuda", level) if kind != torch.bfloat16} == {}


@pytest.mark.parametrize("encoder", [slow_if_deeper(name) for name in encoders.names()])
def test_every_layer_of_every_encoder_gives_bf16(encoder, monkeypatch):
    """As on the CPU, whose autocast widens nothing here."""
    narrow_everything(monkeypatch)
    assert {name: kind for name, kind in types_of(encoder, "batch", "cuda", "none") if kind != torch.bfloat16} == {}


@pytest.mark.slow
@pytest.mark.parametrize("encoder", encoders.names())
def test_every_layer_of_every_encoder_of_full_size_gives_bf16(encoder):
    assert {name: kind for name, kind in types_of(encoder, "batch", "cuda", "none") if kind != torch.bfloat16} == {}


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_largest_tensor_of_the_decoder_is_bf16(norm):
    """At native size: 32 channels of every pixel behind the last upsampling, 309 MiB and not 618."""
    mode = FakeTensorMode()
    with torch.device("meta"):
        model = UNet(ModelConfig(encoder="mit_b3", norm=norm)).train()
    on_fake(model, "cuda", mode)
    with mode, autocast("cuda"), Largest() as largest:
        maps = [
            torch.zeros(1, channels, *(side // stride for side in NATIVE), dtype=torch.bfloat16, device="cuda")
            for channels, stride in zip(model.encoder.channels, model.encoder.strides, strict=True)
        ]
        model.decoder(maps)
    assert largest.num_bytes == 32 * NATIVE[0] * NATIVE[1] * 2, largest.found
    assert round(largest.num_bytes / MIB) == 309


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_decoder_keeps_channels_last(norm):
    """Outputs and gradients of every layer, as a GPU computes them. On real CPU tensors: a fake CUDA convolution knows
    no cuDNN, and so no layout."""
    model = UNet(ModelConfig(encoder="mit_tiny", norm=norm)).train().to(memory_format=torch.channels_last)
    found = {}
    compute_as_on_gpu(model)

    def note(name):
        def hook(_module, _inputs, output):
            found[name] = layout_of(output)
            output.register_hook(lambda gradient: found.__setitem__(f"gradient of {name}", layout_of(gradient)))

        return hook

    for name, module in model.decoder.named_modules():
        if name and not isinstance(module, nn.ModuleList | nn.Identity) and name != "head":
            module.register_forward_hook(note(name))
    maps = [
        torch.zeros(2, channels, 64 // stride, 96 // stride).to(memory_format=torch.channels_last).requires_grad_()
        for channels, stride in zip(model.encoder.channels, model.encoder.strides, strict=True)
    ]
    model.decoder(maps).sum().backward()
    found |= {f"gradient of map {number}": layout_of(each.grad) for number, each in enumerate(maps)}
    assert len(found) >= 60
    assert {name for name, layout in found.items() if layout != torch.channels_last} == set()


SPATIAL = {
    "convolution": (SpatialConv2d, nn.Conv2d(4, 8, 3, padding=1)),
    "strided convolution": (SpatialConv2d, nn.Conv2d(4, 8, 3, stride=2, padding=1)),
    "pooling": (SpatialMaxPool2d, nn.MaxPool2d(3, stride=2, padding=1)),
    "upsampling": (SpatialUpsample, BilinearUpsample()),
    "group norm": (SpatialGroupNorm, nn.GroupNorm(2, 4)),
}


@pytest.mark.parametrize("place", ["first", "middle"])
@pytest.mark.parametrize("as_on_gpu", [False, True])
@pytest.mark.parametrize("name", SPATIAL)
def test_spatial_layers_keep_channels_last(name, as_on_gpu, place):
    """Outputs and gradients, where a strip has one neighbour and where it has two."""
    kind, plain = SPATIAL[name]
    group = ImaginarySpatialGroup(2 if place == "first" else 3, 192)
    layer = rebuild(plain, kind, spatial_group=group, as_on_gpu=as_on_gpu)
    for layout in (torch.contiguous_format, torch.channels_last):
        features = torch.randn(2, 4, 64, 32).to(memory_format=layout).requires_grad_()
        output = layer(features)
        output.backward(torch.randn(output.shape).to(memory_format=layout))
        assert layout_of(output) == layout_of(features.grad) == layout


def test_halos_take_the_layout_of_the_strip_on_a_gpu():
    skip_unless_fakes_need_no_driver()
    with FakeTensorMode():
        above, below = (torch.zeros(2, 4, 1, 8, device="cuda") for _ in range(2))
        for layout in (torch.contiguous_format, torch.channels_last):
            strip = torch.zeros(2, 4, 6, 8, device="cuda").to(memory_format=layout)
            for start, stop in ((-1, 7), (-1, 3), (4, 7), (0, 6)):
                joined = rows_between(above, strip, below, start, stop)
                assert joined.shape == (2, 4, stop - start, 8)
                assert layout_of(joined) == layout
