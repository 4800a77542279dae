"""Sizes of tiles: launches and memory counted on fake tensors, the roofline, and that no size changes a result."""

from functools import partial

import pytest
import torch
from helpers import TINY_CHANNELS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.torch_version import TorchVersion

from glioma_dist.config import ModelConfig, ScaleConfig
from glioma_dist.errors import InputError
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.encoders.mit_layers import MixFFN
from glioma_dist.model.unet import UNet, build_model
from glioma_dist.scale import memory_estimator
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.kernel_limits import KernelCalls
from glioma_dist.scale.memory_estimator import StepMemory, estimate_unet_step, make_fake
from glioma_dist.scale.tile_size import (
    BYTES_PER_ELEMENT,
    CPU_TILE,
    LAUNCHES_PER_TILE,
    LEAST_GPU_ELEMENTS,
    MAX_ELEMENTS,
    MOST_GPU_ELEMENTS,
    TileSize,
    largest_gpu_tile,
    roofline_elements,
    tile_size,
)
from glioma_dist.scale.tiles import checkpoint_in_tiles
from glioma_dist.size import Size

GIB = 2**30
NATIVE = Size(2592, 1952)


class Launches(KernelCalls):
    """Counts operations that start kernels, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__(self._count)
        self.number = self.num_bytes = 0

    def _count(self, _, tensors: list[Tensor]) -> None:
        self.number += 1
        self.num_bytes += sum(each.nbytes for each in tensors)


def count_native_step(monkeypatch, encoder: str, level: str, size: TileSize) -> tuple[int, StepMemory]:
    """Launches of a step's forward and backward pass in bf16, its optimizer aside, and the step's memory."""
    launches = Launches()
    with torch.device("meta"):  # of which nothing is drawn
        model = UNet(ModelConfig(encoder=encoder))
    checkpoint_activations(model, level, size)
    compute_gradients = memory_estimator.compute_gradients

    def counted(*given, **named):
        with launches:
            return compute_gradients(*given, **named)

    monkeypatch.setattr(memory_estimator, "compute_gradients", counted)
    memory = estimate_unet_step(model, partial(segmentation_loss, "dice"), NATIVE, bf16=True)
    monkeypatch.undo()
    return launches.number, memory


def test_a_gpus_tiles_need_far_fewer_launches_than_a_cpus(monkeypatch):
    """mit_b0 at native size: 4,075 with 2^24 elements, 8,076 with 2^22."""
    launches = [count_native_step(monkeypatch, "mit_b0", "full", size)[0] for size in (largest_gpu_tile(), CPU_TILE)]
    assert launches[0] < 4500 < 7500 < launches[1] < 8500


@pytest.mark.parametrize(("elements", "most_gib"), [(MOST_GPU_ELEMENTS, 1.8), (LEAST_GPU_ELEMENTS, 1.6)])
def test_the_studys_network_fits_at_native_size(monkeypatch, elements, most_gib):
    launches, memory = count_native_step(monkeypatch, "mit_b3", "full", TileSize(elements, MAX_ELEMENTS))
    assert memory.peak / GIB < most_gib
    assert launches < 7500 or elements == LEAST_GPU_ELEMENTS


def test_the_rooflines_constants_are_what_is_counted():
    """Of one more tile of the first Mix-FFN of mit_b1 and larger, in bf16."""
    counted = [count_mix_ffn(num_tiles) for num_tiles in (4, 8)]
    of_old = TorchVersion(torch.__version__) < "2.9"
    launches, num_bytes = (31, 61.4) if of_old else (LAUNCHES_PER_TILE, BYTES_PER_ELEMENT)
    assert (counted[1].number - counted[0].number) / 4 == launches
    assert counted[0].num_bytes / FFN_ELEMENTS == pytest.approx(num_bytes, rel=0.03)


FFN_CHANNELS, FFN_SIDE = 64, 1024
FFN_ELEMENTS = 4 * FFN_CHANNELS * FFN_SIDE**2


def count_mix_ffn(num_tiles: int) -> Launches:
    layer, mode, launches = MixFFN(FFN_CHANNELS), FakeTensorMode(), Launches()
    layer.run_tiles = partial(checkpoint_in_tiles, size=TileSize(FFN_ELEMENTS // num_tiles))
    make_fake(layer, mode)
    with mode:
        tokens = torch.zeros(1, FFN_SIDE**2, FFN_CHANNELS, dtype=torch.bfloat16, requires_grad=True)
        gradient = torch.zeros_like(tokens)
        with launches:
            with torch.autocast("cpu", torch.bfloat16):
                output = layer(tokens, FFN_SIDE, FFN_SIDE)
            output.backward(gradient)
    return launches


@pytest.mark.parametrize(
    ("bytes_per_second", "power"),
    [(0.13e12, 22), (0.32e12, 23), (0.768e12, 24), (1.555e12, 24), (3.35e12, 24), (8e12, 24)],
    ids=["GTX 1650", "T4", "RTX A6000", "A100 40GB", "H100 SXM", "B200"],
)
def test_the_roofline_of_known_gpus(bytes_per_second, power):
    assert roofline_elements(bytes_per_second) == 2**power


def test_what_the_setting_comes_down_to():
    assert tile_size("auto", torch.device("cpu")) == CPU_TILE == TileSize(2**22, None)
    assert tile_size(2**20, torch.device("cpu")) == TileSize(2**20, None)
    assert tile_size("auto", torch.device("cuda")) == TileSize(2**24, MAX_ELEMENTS)  # a GPU that says nothing
    assert tile_size(2**20, torch.device("cuda")) == TileSize(2**20, MAX_ELEMENTS)
    assert [TileSize(2**power).widened for power in (20, 22, 23, 24)] == [2**20, 2**22, 2**22, 2**23]


@pytest.mark.parametrize("value", [0, -1, 2**16 - 1, 2**28 + 1, True, 5e6, "Auto", ""])
def test_another_setting_is_refused(value):
    with pytest.raises(InputError, match=r"--scale.tile-elements .*: give auto, or 65536 to 268435456"):
        ScaleConfig(tile_elements=value).validate()


SIZES = {
    "no kernel takes a map": TileSize(5000, 700),
    "some blocks too large": TileSize(40_000, 60_000),
}


def take_step(model: UNet, layout: torch.memory_format, encoder_layout: bool) -> dict[str, Tensor]:
    """Logits, gradients and buffers of a step of two images of an odd size in fp64."""
    if encoder_layout:
        model.to(memory_format=layout)
        model.encoder.memory_format = layout
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 50, 70, generator=generator, dtype=torch.float64)
    masks = (torch.rand(2, 50, 70, generator=generator) > 0.7).to(torch.uint8)
    logits = model(images, torch.arange(2))
    segmentation_loss("dice+bce", logits, masks).mean().backward()
    found = {"logits": logits.detach()} | {name: each.grad for name, each in model.named_parameters()}
    return found | {f"buffer {name}": each for name, each in model.named_buffers()}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("level", ["none", "selective", "full"])
@pytest.mark.parametrize("size", SIZES)
def test_no_size_of_tiles_changes_a_result(size, level, norm, layout):
    config = ModelConfig(encoder="mit_tiny", decoder_channels=TINY_CHANNELS, norm=norm)
    plain, ours = (build_model(config, 0)[0].double() for _ in range(2))
    checkpoint_activations(ours, level, SIZES[size])
    assert list(ours.state_dict()) == list(plain.state_dict())
    found, expected = (take_step(model, layout, model is ours) for model in (ours, plain))
    for name, value in expected.items():
        if not name.endswith("k_proj.bias"):  # nought but for rounding
            scale = value.abs().max().clamp(min=1e-3) if value.is_floating_point() else 1
            assert (found[name] - value).abs().max() <= 1e-9 * scale, name
    evaluate_alike(ours, plain)


@torch.inference_mode()
def evaluate_alike(ours: nn.Module, plain: nn.Module) -> None:
    images = torch.linspace(-2, 2, 3 * 33 * 65, dtype=torch.float64).reshape(1, 3, 33, 65)
    torch.testing.assert_close(ours.eval()(images), plain.eval()(images), rtol=1e-9, atol=1e-9)
