"""Activation checkpointing against the plain model: outputs, loss, every gradient and buffer of three steps."""

import copy
from functools import partialmethod

import pytest
import torch
from encoder_helpers import smooth
from helpers import TINY_CHANNELS
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from glioma_dist.config import ModelConfig
from glioma_dist.errors import InputError
from glioma_dist.losses import segmentation_loss
from glioma_dist.model import unet
from glioma_dist.model.encoders.contract import Encoder
from glioma_dist.model.unet import UNet, build_model
from glioma_dist.scale import attention_memory, tiled_statistics, tiles
from glioma_dist.scale.activation_checkpointing import PlannedSegments, checkpoint_activations
from glioma_dist.scale.attention_memory import ATTENTION_KERNELS
from glioma_dist.scale.checkpoint_plan import LEVEL_PLANS
from glioma_dist.scale.strips.encoder import StripSegment

KINDS = ("selective", "full", "offload")


def build(encoder: str = "mit_tiny", norm: str = "batch") -> UNet:
    """With stochastic depth that drops many branches."""
    model = build_model(ModelConfig(encoder=encoder, decoder_channels=TINY_CHANNELS, norm=norm), 0)[0]
    model.encoder.stochastic_depth.rates *= 6
    return model


def draw(num_images: int, height: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Images, masks, seeds."""
    generator = torch.Generator().manual_seed(height)
    images = torch.randn(num_images, 3, height, width, generator=generator, dtype=dtype)
    masks = (torch.rand(num_images, height, width, generator=generator) > 0.7).to(torch.uint8)
    return images, masks, torch.arange(num_images)


def take_steps(model: UNet, height: int, width: int, kind: type[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Logits, losses and gradients of each step, weights and buffers after the last, by name."""
    # A key's bias moves all of a query's scores alike: its gradient is nought but for rounding, which Adam blows up.
    dtype = next(model.parameters()).dtype
    optimizer = kind(model.parameters(), lr=1e-3)
    found = {}
    for step in range(3):
        images, masks, seeds = draw(2, height, width + 32 * step, dtype)
        logits = model(images, seeds)
        assert (model.encoder.stochastic_depth.draw(seeds, images.device) == 0).any()
        losses = segmentation_loss("dice+bce", logits, masks)
        losses.mean().backward()
        found |= {f"{step} logits": logits.detach(), f"{step} losses": losses.detach()}
        found |= {f"{step} gradient of {name}": each.grad.clone() for name, each in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
    weights = copy.deepcopy(dict(model.state_dict()))
    return {name: each for name, each in {**found, **weights}.items() if not name.endswith("k_proj.bias")}


def check_equal(ours: dict[str, Tensor], plain: dict[str, Tensor], tolerance: float) -> None:
    assert list(ours) == list(plain)
    for name, expected in plain.items():
        scale = expected.abs().max().clamp(min=1e-3) if expected.is_floating_point() else 1
        assert (ours[name] - expected).abs().max() <= tolerance * scale, name


class CountAttention(TorchDispatchMode):
    """Counts attention kernels that are really run."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation in ATTENTION_KERNELS
        return operation(*args, **(kwargs or {}))


@pytest.fixture
def many_tiles(monkeypatch) -> None:
    """Tiles of a row or a few, and statistics in chunks of a row or a few."""
    monkeypatch.setattr(tiles, "TILE_NUMBERS", 5000)
    monkeypatch.setattr(tiled_statistics, "CHUNK_NUMBERS", 700)


@pytest.mark.equality(flag="activation checkpointing {kind}", encoder="mit_tiny", processes=1, kind="1e-9")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (50, 33), (32, 32)])
def test_nothing_changes_in_fp64(many_tiles, kind, norm, height, width):
    plain, ours = build(norm=norm).double(), build(norm=norm).double()
    checkpoint_activations(ours, kind)
    adam = torch.optim.Adam
    check_equal(take_steps(ours, height, width, adam), take_steps(plain, height, width, adam), 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes_in_fp32(many_tiles, monkeypatch, kind):
    """With plain gradient descent, for Adam makes as much of a gradient's last digits as of its first."""
    smooth(monkeypatch)
    plain, ours = build("mit_b0"), build("mit_b0")
    checkpoint_activations(ours, kind)
    check_equal(take_steps(ours, 64, 96, torch.optim.SGD), take_steps(plain, 64, 96, torch.optim.SGD), 1e-5)


def test_a_frozen_encoder_and_evaluation_are_the_plain_ones(many_tiles):
    plain, ours = build().double(), build().double()
    for model in (plain, ours):
        model.encoder.requires_grad_(False)
    checkpoint_activations(ours, "full")
    check_equal(take_frozen_step(ours), take_frozen_step(plain), 1e-9)
    images, _, _ = draw(2, 50, 70, torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), plain.eval()(images), rtol=1e-9, atol=1e-9)
    check_equal(ours.state_dict(), plain.state_dict(), 1e-9)  # evaluation moves no running statistics


def take_frozen_step(model: UNet) -> dict[str, Tensor]:
    images, masks, seeds = draw(2, 64, 64, torch.float64)
    segmentation_loss("dice", model(images, seeds), masks).mean().backward()
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize(("kind", "expected"), [("none", 1), ("selective", 1), ("full", 2), ("offload", 2)])
def test_what_is_computed_twice(kind, expected):
    """Attention, the costliest, is computed again by `all` only; the Mix-FFN by both."""
    model = build()
    checkpoint_activations(model, kind)
    layer = model.encoder.segformer.stages[3].blocks[0]
    counts = {"attention": 0, "mlp": 0}
    layer.mlp.register_forward_hook(lambda *_: counts.update(mlp=counts["mlp"] + 1))
    with CountAttention() as attention:
        images, masks, seeds = draw(1, 32, 32, torch.float32)
        segmentation_loss("dice", model(images, seeds), masks).mean().backward()
    assert attention.count == expected * len(list(model.encoder.segformer.stages))
    assert counts["mlp"] == (1 if kind == "none" else 2)
    assert all(norm.num_batches_tracked == 1 for norm in model.modules() if isinstance(norm, nn.BatchNorm2d))


def test_no_operation_but_attention_s_goes_through_python(monkeypatch):
    """On a GPU that took more time than all that the level computes again."""
    seen = []
    for mode in (attention_memory.AttentionKeeper, attention_memory.AttentionReplayer):
        monkeypatch.setattr(mode, "__torch_dispatch__", partialmethod(noting, seen, mode.__torch_dispatch__))
    model = build()
    checkpoint_activations(model, "selective")
    images, masks, seeds = draw(1, 64, 64, torch.float32)
    segmentation_loss("dice", model(images, seeds), masks).mean().backward()
    attention = [each for each in seen if "attention" in each]
    assert len(attention) == 2 * len(model.encoder.attention_layers())
    assert set(seen) - set(attention) <= {"aten.detach.default"}  # of what is kept, and of checkpointing's own hooks


def noting(mode, seen, dispatch, func, types, args=(), kwargs=None):
    seen.append(str(func))
    return dispatch(mode, func, types, args, kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_two_forward_passes_before_one_backward_pass(kind):
    """Each is computed again with the stochastic depth that it was drawn, not with the last one's."""
    plain, ours = build().double(), build().double()
    checkpoint_activations(ours, kind)
    for model in (plain, ours):
        images, masks, seeds = draw(2, 64, 64, torch.float64)
        losses = [segmentation_loss("dice", model(images, each), masks).mean() for each in (seeds, seeds + 5)]
        sum(losses).backward()
    check_equal(*({name: each.grad for name, each in model.named_parameters()} for model in (ours, plain)), 1e-9)


@pytest.mark.parametrize("encoder", ["mit_tiny", "resnet50"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_backward_passes_of_one_graph(encoder, kind):
    """As for the norms of two losses' gradients: what is computed again is that of the first pass."""
    model = build_model(ModelConfig(encoder=encoder, decoder_channels=TINY_CHANNELS), 0)[0]
    checkpoint_activations(model, kind)
    images, masks, seeds = draw(2, 32, 64, torch.float32)
    loss = segmentation_loss("dice", model(images, seeds), masks).mean()
    buffers = copy.deepcopy(dict(model.named_buffers()))
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    assert all(map(torch.equal, first, second))
    assert all(torch.equal(each, buffers[name]) for name, each in model.named_buffers())


class OfFunctions(Encoder):
    """Its segment is a function that runs a batch norm."""

    strides, channels = (32,), (4,)

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 32, 32), nn.BatchNorm2d(4)

    def forward(self, images: Tensor, seeds: Tensor | None = None) -> list[Tensor]:
        return [self.run_segment(lambda features: self.norm(self.convolution(features)), images)]


@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_norms_of_a_segment_that_is_a_function_move_once(kind, monkeypatch):
    monkeypatch.setattr(unet, "build_encoder", lambda name: OfFunctions())
    model = UNet(ModelConfig(decoder_channels=TINY_CHANNELS))
    checkpoint_activations(model, kind)
    model(draw(2, 64, 64, torch.float32)[0]).sum().backward()
    assert model.encoder.norm.num_batches_tracked == 1


@pytest.mark.parametrize("level", ["auto", "Full", "", None, 3])
def test_another_level_is_refused(level):
    with pytest.raises(InputError, match="give none, selective, full or offload"):
        checkpoint_activations(build(), level)


@pytest.mark.parametrize("level", ["none", *KINDS])
@pytest.mark.parametrize("foreign", [nn.Linear(2, 2), None, (1, 2)], ids=["module", "None", "pair"])
def test_a_model_that_is_no_unet_is_refused(foreign, level):
    with pytest.raises(InputError, match=f"{type(foreign).__name__}: is no U-Net of this package"):
        checkpoint_activations(foreign, level)


@pytest.mark.parametrize("kind", KINDS)
def test_norms_of_a_function_on_a_strip_move_once(kind):
    """Spatial parallelism makes a module of each segment, which does not hold the norms of a function."""
    encoder = OfFunctions()
    run = PlannedSegments(encoder, LEVEL_PLANS[kind].segments, None)
    features = torch.randn(2, 4, 8, 8, requires_grad=True)
    run(StripSegment(lambda each: encoder.norm(each), set(), None), features).sum().backward()
    assert encoder.norm.num_batches_tracked == 1
