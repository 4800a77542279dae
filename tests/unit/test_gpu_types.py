"""Types, layouts and sizes of what a GPU would compute, on fake CUDA tensors under autocast: no GPU is needed.

A fake CUDA tensor has no backward pass without a driver, so these are forward passes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glioma_dist.config import ModelConfig
from glioma_dist.model.layout import layout_of
from glioma_dist.model.unet import UNet
from glioma_dist.registry import encoders
from glioma_dist.scale.activation_checkpointing import checkpoint_activations

MIB = 2**20
NATIVE = (1952, 2592)


@contextmanager
def autocast(device: str) -> Iterator[None]:
    """bf16 autocast; `torch.autocast` would disable that of a GPU that is not there."""
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])


def on_fake(model: nn.Module, device: str, mode: FakeTensorMode) -> nn.Module:
    """Give `model`, in place, fake parameters and buffers on `device`."""
    for module in model.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            with mode:
                fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
            setattr(module, name, nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake)
    return model


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


@pytest.mark.parametrize("encoder", encoders.names())
def test_every_layer_of_every_encoder_gives_bf16(encoder):
    """As on the CPU, whose autocast widens nothing here."""
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
def test_channels_last_reaches_every_map_of_the_decoder(norm):
    mode = FakeTensorMode()
    with torch.device("meta"):
        model = UNet(ModelConfig(encoder="mit_tiny", norm=norm)).train().to(memory_format=torch.channels_last)
    on_fake(model, "cuda", mode)
    found = {}

    def note(name):
        return lambda _module, _inputs, output: found.__setitem__(name, layout_of(output))

    for name, module in model.decoder.named_modules():
        if name and not isinstance(module, nn.ModuleList | nn.Identity) and name != "head":
            module.register_forward_hook(note(name))
    with mode, autocast("cuda"):
        maps = [
            torch.zeros(2, channels, 64 // stride, 96 // stride, dtype=torch.bfloat16, device="cuda").to(
                memory_format=torch.channels_last
            )
            for channels, stride in zip(model.encoder.channels, model.encoder.strides, strict=True)
        ]
        model.decoder(maps)
    assert len(found) >= 25
    assert {name for name, layout in found.items() if layout != torch.channels_last} == set()
