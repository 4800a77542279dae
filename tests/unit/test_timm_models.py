"""The article's convolutional encoders, against timm's own: features, segments, names, activation checkpointing."""

import copy

import pytest
import timm
import torch
from encoder_helpers import NARROW, narrow, narrow_everything
from helpers import TINY_CHANNELS
from torch import Tensor, nn

from glioma_dist.config import ModelConfig, ScaleConfig
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.encoders.contract import IMAGENET_MEAN, IMAGENET_STD
from glioma_dist.model.encoders.timm_models import TIMM_MODELS, TimmEncoder
from glioma_dist.model.unet import UNet, build_model
from glioma_dist.scale import tiled_statistics, tiles
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.scale_model import scale_model
from glioma_dist.scale.spatial_group import SpatialGroup

NARROWED = ("vgg19", *(name for name in NARROW if "resnext" not in name))
OTHER_TAPS = ("densenet169", "dpn92", "efficientnet_b5", "inceptionv4", "mobilenet_v2", "xception")
"""Encoders whose maps are not taken where timm takes them."""


def draw_images(num_images: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(num_images, 3, height, width, generator=torch.Generator().manual_seed(height), dtype=dtype)


def build(name: str, norm: str = "batch") -> UNet:
    """In fp64, with running statistics that are not at rest."""
    model = build_model(ModelConfig(encoder=name, decoder_channels=TINY_CHANNELS, norm=norm), 0)[0].double()
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 2, generator=generator)
    return model


@pytest.mark.parametrize("name", sorted(set(TIMM_MODELS) - set(OTHER_TAPS)))
def test_maps_are_those_of_timms_feature_extraction(name):
    """The whole network, with weights handed over by timm's names."""
    encoder = TimmEncoder(name).double().eval()
    reference = timm.create_model(TIMM_MODELS[name].name, features_only=True, pretrained=False).double().eval()
    ours = {each.replace("_", "."): tensor for each, tensor in encoder.body.state_dict().items()}
    tensors = {each: ours.pop(each.replace("_", ".")) for each in reference.state_dict()}
    assert not ours
    reference.load_state_dict(tensors)
    images = draw_images(1, 64, 96)
    with torch.no_grad():
        maps = encoder(images)
        if encoder.colours:
            images = recolour(images, timm.get_pretrained_cfg(TIMM_MODELS[name].name).to_dict())
        expected = reference(images)[-5:]
    for found, wanted, stride, channels in zip(maps, expected, encoder.strides, encoder.channels, strict=True):
        assert found.shape == (1, channels, 64 // stride, 96 // stride)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def recolour(images: Tensor, published: dict) -> Tensor:
    """From ImageNet's normalisation back to colours in [0, 1], and to the published weights' normalisation."""
    mean, std, new_mean, new_std = (
        images.new_tensor(values).view(1, 3, 1, 1)
        for values in (IMAGENET_MEAN, IMAGENET_STD, published["mean"], published["std"])
    )
    return (images * std + mean - new_mean) / new_std


@pytest.mark.parametrize("name", OTHER_TAPS)
def test_strides_are_exact(name):
    encoder = TimmEncoder(name).eval()
    with torch.no_grad():
        maps = encoder(draw_images(1, 64, 96, torch.float32))
    assert encoder.strides == (2, 4, 8, 16, 32)
    assert [tuple(each.shape) for each in maps] == [
        (1, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(encoder.channels, encoder.strides, strict=True)
    ]


@pytest.mark.parametrize("name", NARROWED)
def test_parts_are_the_whole_and_names_are_timms(monkeypatch, name):
    narrow(monkeypatch, name)
    encoder = TimmEncoder(name)
    parts = []
    encoder.run_segment = lambda part, features: parts.append(part) or part(features)
    encoder(draw_images(2, 32, 32, torch.float32))
    assert len(parts) > 5
    held = [parameter for part in parts for parameter in part.parameters()]
    assert {id(each) for each in held} == {id(each) for each in encoder.parameters()}
    assert len(held) == len(list(encoder.parameters()))
    source = TIMM_MODELS[name]
    known = timm.create_model(source.name, pretrained=False, **source.options).state_dict()
    assert all(known[each].shape == tensor.shape for each, tensor in encoder.body.state_dict().items())


@pytest.fixture
def many_tiles(monkeypatch) -> None:
    monkeypatch.setattr(tiles, "TILE_NUMBERS", 5000)
    monkeypatch.setattr(tiled_statistics, "CHUNK_NUMBERS", 700)


@pytest.mark.parametrize("kind", ["selective", "full"])
@pytest.mark.parametrize("name", NARROWED)
def test_recomputation_changes_nothing(monkeypatch, many_tiles, name, kind):
    """Two steps in fp64, one at a size that is padded: losses, gradients, weights, running statistics."""
    narrow(monkeypatch, name)
    plain = build(name)
    ours = copy.deepcopy(plain)
    checkpoint_activations(ours, kind)
    for height, width in ((64, 32), (50, 33)):
        images, masks = draw_images(2, height, width), (draw_images(2, height, width)[:, 0] > 0).to(torch.uint8)
        for model in (plain, ours):
            model.zero_grad()
            segmentation_loss("dice+bce", model(images, torch.arange(2)), masks).mean().backward()
        for (parameter_name, expected), found in zip(plain.named_parameters(), ours.parameters(), strict=True):
            # A bias before a batch norm has no gradient but for rounding.
            scale = max(float(expected.grad.abs().max()), 1e-3)
            assert (found.grad - expected.grad).abs().max() <= 1e-9 * scale, parameter_name
        for model in (plain, ours):
            torch.optim.SGD(model.parameters(), lr=1e-2).step()
    assert list(ours.state_dict()) == list(plain.state_dict())
    for tensor_name, expected in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[tensor_name], expected, rtol=1e-9, atol=1e-9, msg=tensor_name)


@pytest.mark.parametrize("name", ["resnet50", "dpn92"])
def test_checkpointing_computes_parts_twice_and_keeps_less(monkeypatch, name):
    narrow(monkeypatch, name)
    counts, kept = {}, {}
    for kind in ("none", "selective"):
        model = build(name)
        checkpoint_activations(model, kind)
        calls, saved = [], []
        model.encoder.blocks()[-1].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, saved=saved: saved.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            logits = model(draw_images(2, 64, 64))
        kept[kind] = sum(saved)
        logits.sum().backward()
        counts[kind] = len(calls)
    assert counts == {"none": 1, "selective": 2}
    assert kept["selective"] < 0.8 * kept["none"]


@pytest.mark.parametrize("name", ["resnet50", "vgg19"])
def test_channels_last_changes_nothing(monkeypatch, name):
    narrow(monkeypatch, name)
    plain = build(name).eval()
    ours = copy.deepcopy(plain)
    scale_model(ours, ScaleConfig(channels_last="on"), "none", SpatialGroup())
    images = draw_images(2, 64, 96)
    with torch.no_grad():
        maps = ours.encoder(images)
        torch.testing.assert_close(ours(images), plain(images), rtol=1e-9, atol=1e-9)
    assert maps[0].is_contiguous(memory_format=torch.channels_last)


SIZES = ((512, 704), (389, 517))


@pytest.mark.parametrize("size", [pytest.param(SIZES[0], marks=pytest.mark.slow), SIZES[1]], ids=str)
@pytest.mark.parametrize("name", sorted(TIMM_MODELS))
def test_each_encoder_at_the_articles_size_and_an_odd_one(name, size):
    """The whole network, forward and backward, on tensors without contents; `make test-slow` takes real ones. At a size
    of whole units, as the article's, other tests here take each encoder with contents."""
    with torch.random.fork_rng(), torch.device("meta"):
        model = UNet(ModelConfig(encoder=name))
    take_whole_step(model, *size)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*sorted(TIMM_MODELS), "mit_b0", "mit_b3"])
def test_a_real_step_of_each_encoder_at_the_articles_size_and_an_odd_one(name):
    model = build_model(ModelConfig(encoder=name), 0)[0]
    for height, width in SIZES:
        take_whole_step(model, height, width)
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def take_whole_step(model: UNet, height: int, width: int) -> None:
    """Two images, for ResNeSt normalises globally pooled maps, a number an image."""
    device = next(model.parameters()).device
    model.zero_grad()
    logits = model(draw_images(2, height, width, torch.float32).to(device))
    assert logits.shape == (2, 1, height, width)
    masks = torch.zeros(2, height, width, dtype=torch.uint8, device=device)
    segmentation_loss("dice", logits, masks).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", [*sorted(TIMM_MODELS), "mit_tiny", "mit_b0"])
def test_a_step_lowers_the_loss_and_the_state_comes_back(monkeypatch, name):
    narrow_everything(monkeypatch)
    config = ModelConfig(encoder=name, decoder_channels=TINY_CHANNELS)
    model = build_model(config, 0)[0]
    images = draw_images(2, 64, 64, torch.float32)
    masks = (images[:, 0] > 0).to(torch.uint8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        loss = segmentation_loss("dice", model(images, torch.arange(2)), masks).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[1] < losses[0]
    other = build_model(config, 1)[0]
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other.eval()(images), model.eval()(images))
    assert any("running_mean" in tensor_name for tensor_name in model.state_dict())
