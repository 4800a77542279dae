"""A frozen encoder: computes as in prediction, keeps nothing, has no gradients, at every level, in every encoder."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from encoder_helpers import narrow_everything, slow_if_deeper
from helpers import TINY_CHANNELS

from glioma_dist.config import ModelConfig
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import UNet
from glioma_dist.registry import encoders
from glioma_dist.scale import planner
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.step import LEVELS, Step
from glioma_dist.scale.tile_size import largest_gpu_tile
from glioma_dist.size import Size

SEEDS = torch.tensor([3, 4])


def build(name: str) -> UNet:
    torch.manual_seed(0)
    return UNet(ModelConfig(name, decoder_channels=TINY_CHANNELS)).double().train()


def draw_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 64, 64, generator=generator, dtype=torch.float64)
    return images, (torch.rand(2, 64, 64, generator=generator) > 0.7).to(torch.uint8)


@pytest.mark.parametrize("name", [slow_if_deeper(name) for name in encoders.names()])
def test_only_the_decoder_gets_gradients_and_the_encoder_stays_as_it_is(name, monkeypatch):
    """The decoder's are those of a plain network whose encoder was run before, in evaluation mode."""
    narrow_everything(monkeypatch)
    images, masks = draw_batch()
    plain = build(name)
    with torch.no_grad():
        features = plain.encoder.eval()(images)
    segmentation_loss("dice+bce", plain.decoder(features), masks).sum().backward()
    for level in LEVELS:
        model = build(name)
        before = {key: tensor.clone() for key, tensor in model.encoder.state_dict().items()}
        model.encoder.freeze()
        checkpoint_activations(model, level)
        model.eval().train()
        assert not any(each.training for each in model.encoder.modules())
        assert all(each.training for each in model.decoder.modules())
        segmentation_loss("dice+bce", model(images, SEEDS), masks).sum().backward()
        assert all(each.grad is None for each in model.encoder.parameters())
        assert all(torch.equal(before[key], tensor) for key, tensor in model.encoder.state_dict().items())
        for (key, ours), theirs in zip(model.decoder.named_parameters(), plain.decoder.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=lambda text, key=key: key)


def step_of(encoder: str, **fields) -> Step:
    """Of a size that no formula is traced for."""
    loss = partial(segmentation_loss, "dice")
    return Step(ModelConfig(encoder), Size(250, 190), 1, bf16=False, tile_size=largest_gpu_tile(), loss=loss, **fields)


@pytest.mark.parametrize("encoder", ["mit_b0", "resnet50"])
def test_the_estimator_counts_no_activations_gradients_and_moments_of_a_frozen_encoder(encoder):
    step = step_of(encoder, freeze_encoder=True)
    trained = list(UNet(step.model).decoder.parameters())
    weights, counters = sum(each.nbytes for each in trained), 4 * len(trained)  # Adam counts its steps for each
    memory, whole = (planner.count(each, "none") for each in (step, replace(step, freeze_encoder=False)))
    assert memory.optimizer == 2 * weights + counters
    assert memory.parameters == whole.parameters
    assert memory.kept < 0.75 * whole.kept
    # The encoder keeps nothing: there is nothing to compute again.
    assert memory.kept == planner.count(step, "selective").kept
    assert planner.count(replace(step, num_devices=2), "none").gradients == weights + counters // 2
