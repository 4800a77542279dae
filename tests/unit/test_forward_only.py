"""The U-Net for a CPU that trains nothing computes what the plain one does, for every encoder, in less memory."""

import pytest
import torch
from encoder_helpers import narrow_everything, slow_if_deeper
from helpers import TINY_CHANNELS
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from glioma_dist.benchmark.peak_memory import peak_of_profile
from glioma_dist.config import ModelConfig
from glioma_dist.evaluation import forward_decoder
from glioma_dist.evaluation.forward_decoder import StreamedDecoder
from glioma_dist.evaluation.forward_only import forward_only
from glioma_dist.model.unet import UNet
from glioma_dist.registry import encoders

NAMES = [slow_if_deeper(name) for name in encoders.names() if not name.endswith("/")] + ["timm/convnext_atto"]


def build(encoder: str, norm: str = "batch", channels: tuple[int, ...] = TINY_CHANNELS) -> UNet:
    """In fp64, with norms and statistics that are not at rest."""
    torch.manual_seed(0)
    model = UNet(ModelConfig(encoder=encoder, norm=norm, decoder_channels=channels)).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model


@torch.inference_mode()
def largest_difference(model: UNet, images: Tensor) -> float:
    expected = model(images)
    found = forward_only(model)(images)
    assert found.shape == expected.shape
    assert expected.numel() == 1 or expected.max() - expected.min() > 1e-6
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_every_encoder_gives_the_same_logits(name, monkeypatch):
    narrow_everything(monkeypatch)
    monkeypatch.setattr(forward_decoder, "ELEMENTS_PER_THREAD", 2**12)  # several parts
    model = build(name)
    before = {key: each.clone() for key, each in model.state_dict().items()}
    assert largest_difference(model, torch.randn(1, 3, 96, 70, dtype=torch.float64)) < 1e-9
    after = model.state_dict()
    assert list(after) == list(before) == list(forward_only(model).state_dict())
    assert all(torch.equal(each, before[key]) for key, each in after.items())


@pytest.mark.parametrize("elements", [2**20, 2**11, 1])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 32, 32), (1, 1, 100), (1, 133, 1), (1, 288, 40), (3, 64, 40)])
@pytest.mark.parametrize("encoder", ["mit_tiny", "mobilenet_v2"])
def test_images_of_every_shape_and_parts_of_every_height(encoder, shape, elements, monkeypatch):
    monkeypatch.setattr(forward_decoder, "ELEMENTS_PER_THREAD", elements)
    batch, height, width = shape
    assert largest_difference(build(encoder), torch.randn(batch, 3, height, width, dtype=torch.float64)) < 1e-9


def test_group_norm_keeps_the_plain_decoder():
    model = build("mit_tiny", "group")
    assert not isinstance(forward_only(model).decoder, StreamedDecoder)
    assert largest_difference(model, torch.randn(1, 3, 64, 96, dtype=torch.float64)) < 1e-9


def test_under_autocast_it_computes_in_the_narrow_type():
    model = build("mit_tiny").float()
    images = torch.randn(1, 3, 64, 96)
    plain = model(images)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = forward_only(model)(images)
    assert 0 < (found - plain).abs().max() < 0.1 * plain.abs().max()


def test_the_plain_model_is_left_as_it_is():
    """Its own layers, which others replace, and its gradients."""
    model = build("mit_tiny")
    kinds, images = [type(each) for each in model.modules()], torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = model(images)
    forward_only(model)
    assert [type(each) for each in model.modules()] == kinds
    found = model(images)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    found.sum().backward()
    assert all(each.grad is not None for each in model.parameters())


def test_it_holds_no_second_copy_of_the_weights():
    model = build("resnet50", channels=ModelConfig.decoder_channels).float()
    forward = forward_only(model)
    assert isinstance(forward.decoder, StreamedDecoder)
    own = {each.untyped_storage().data_ptr() for each in model.parameters()}
    held = [each for block in forward.decoder.convolutions for one in block for each in one if each is not None]
    held += [*forward.parameters()]
    assert sum(each.numel() for each in held if each.untyped_storage().data_ptr() not in own) < 10_000


@pytest.mark.parametrize(("encoder", "share"), [("mit_b0", 0.5), ("mobilenet_v2", 0.8)])
def test_it_takes_less_memory(encoder, share):
    model, images = build(encoder, channels=ModelConfig.decoder_channels).float(), torch.randn(1, 3, 512, 704)
    peaks = []
    for each in (model, forward_only(model)):
        with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            each(images)
        peaks.append(peak_of_profile(profiler, 0))
    assert peaks[1] < share * peaks[0], peaks
