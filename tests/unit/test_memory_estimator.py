"""Counting a step's memory: against sums done by hand."""

from functools import partial

import pytest
from torch import nn

from glioma_dist.config import ModelConfig
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import UNet
from glioma_dist.scale.memory_estimator import estimate_step_memory
from glioma_dist.size import Size

LOSS = partial(segmentation_loss, "dice")
FLOAT = 4


def tiny() -> UNet:
    return UNet(ModelConfig(encoder="mit_tiny", decoder_channels=(16, 16, 8, 8, 8)))


def test_states_are_parameters_buffers_and_adams_two_moments():
    model = tiny()
    numbers = sum(parameter.numel() for parameter in model.parameters())
    num_parameters = len(list(model.parameters()))
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    expected = 3 * numbers * FLOAT + num_parameters * FLOAT + buffers  # Adam also counts its steps, per parameter
    counted = estimate_step_memory(model, LOSS, Size(64, 32))
    assert counted.parameters + counted.optimizer == expected


def test_the_peak_of_a_chain_of_convolutions_is_what_hand_counting_gives():
    """Four maps are kept for the backward pass of four convolutions; at the peak one gradient of a map stands beside
    them. The loss's own maps, of one channel where the others have 64, are the rest."""
    channels, size = 64, Size(64, 64)
    layers = [
        nn.Conv2d(3, channels, 1),
        *(nn.Conv2d(channels, channels, 1) for _ in range(3)),
        nn.Conv2d(channels, 1, 1),
    ]
    peak = estimate_step_memory(nn.Sequential(*layers), LOSS, size).peak
    states = 3 * FLOAT * sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    one_map = channels * size.width * size.height * FLOAT
    assert 4.9 * one_map < peak - states < 5.5 * one_map


def test_memory_grows_evenly_with_the_batch_and_bf16_takes_less():
    peaks = [estimate_step_memory(tiny(), LOSS, Size(64, 64), batch_size).peak for batch_size in (4, 8, 12)]
    assert peaks[2] - peaks[1] == pytest.approx(peaks[1] - peaks[0], rel=0.02)
    assert estimate_step_memory(tiny(), LOSS, Size(64, 64), 8, bf16=True).peak < 0.8 * peaks[1]


def test_an_image_of_native_size_is_counted_without_the_memory_for_it():
    counted = estimate_step_memory(tiny(), LOSS, Size(2592, 1952), batch_size=64)
    assert counted.peak > 64 * 2**30
