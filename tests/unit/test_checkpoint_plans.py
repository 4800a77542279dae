"""Plans of activation checkpointing, drawn at random, against the plain model; and as texts."""

import copy
import random
from typing import get_args

import pytest
import torch
from encoder_helpers import DEEPER, narrow_everything
from helpers import TINY_CHANNELS
from torch import Tensor, nn

from glioma_dist.config import ModelConfig
from glioma_dist.errors import InputError
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import UNet
from glioma_dist.registry import encoders
from glioma_dist.scale import tiled_statistics, tiles
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.attention_memory import RememberedAttention
from glioma_dist.scale.checkpoint_plan import (
    LEVEL_PLANS,
    NUM_DECODER_UNITS,
    CheckpointPlan,
    Cut,
    DecoderPlan,
    Keeps,
)
from glioma_dist.scale.offload import offload_of

NUM_SEGMENTS = 40
"""At least as many as any encoder has."""
FAMILIES = [name for name in encoders.names() if name not in DEEPER]
WIDE = ("inceptionv4", "xception")
"""Encoders that take seconds."""


def draw_plan(seed: str) -> CheckpointPlan:
    """Draw what each unit keeps."""
    generator = random.Random(seed)

    def draw(kind: object, number: int) -> list:
        return generator.choices(get_args(kind), k=number)

    units = map(DecoderPlan, draw(Keeps, NUM_DECODER_UNITS), draw(Cut, NUM_DECODER_UNITS))
    return CheckpointPlan(tuple(draw(Keeps, NUM_SEGMENTS)), tuple(draw(Cut, NUM_SEGMENTS)), tuple(units))


def take_step(model: nn.Module, height: int, width: int) -> dict[str, Tensor]:
    """Logits, gradients and buffers after a step."""
    generator = torch.Generator().manual_seed(height)
    images = torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)
    model.zero_grad()
    logits = model(images, torch.arange(2) + 3)
    segmentation_loss("dice+bce", logits, (images[:, 0] > 0).to(torch.uint8)).mean().backward()
    found = {"logits": logits.detach()} | {name: each.grad for name, each in model.named_parameters()}
    return found | {name: each.clone() for name, each in model.named_buffers()}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in WIDE else ()) for name in FAMILIES]
)
def test_a_drawn_plan_changes_nothing_in_fp64(monkeypatch, name):
    """Two steps, one at a size that is padded; of every second encoder with group norms in its decoder."""
    narrow_everything(monkeypatch)
    monkeypatch.setattr(tiles, "TILE_NUMBERS", 5000)
    monkeypatch.setattr(tiled_statistics, "CHUNK_NUMBERS", 700)
    norm = "group" if FAMILIES.index(name) % 2 else "batch"
    torch.manual_seed(0)
    plain = UNet(ModelConfig(encoder=name, decoder_channels=TINY_CHANNELS, norm=norm)).double()
    ours = copy.deepcopy(plain)
    checkpoint_activations(ours, draw_plan(name))
    for height, width in ((64, 32), (50, 33)):
        found, expected = take_step(ours, height, width), take_step(plain, height, width)
        assert found.keys() == expected.keys()
        for part, tensor in expected.items():
            # A bias before a batch norm has no gradient but for rounding.
            scale = tensor.abs().max().clamp(min=1e-3) if tensor.is_floating_point() else 1
            assert (found[part] - tensor).abs().max() <= 1e-9 * scale, part


def test_a_plan_as_a_text_is_read_as_the_same_plan():
    for plan in (*LEVEL_PLANS.values(), *(draw_plan(str(seed)) for seed in range(20))):
        assert CheckpointPlan.parse(str(plan)) == plan
    full = "encoder input; layers tiles; decoder input whole, input tiles x4, all tiles"
    assert str(LEVEL_PLANS["full"]) == full
    assert str(CheckpointPlan.parse(full.replace("input;", "all x2, input x3;"))).startswith(
        "encoder all x2, input x3;"
    )


@pytest.mark.parametrize(
    "text",
    [
        *("", "full", "encoder all; layers whole", "encoder all; layers whole; decoder all whole x5"),
        *("encoder some; layers whole; decoder all whole x6", "encoder all; layers whole; decoder all x6"),
        *("encoder all xx; layers whole; decoder all whole x6", "encoder all x0; layers whole; decoder all whole x6"),
    ],
)
def test_another_text_is_refused(text):
    with pytest.raises(InputError, match="plan of activation checkpointing"):
        CheckpointPlan.parse(text)


@pytest.mark.parametrize("segments", ["all x9999999", "all x9999, input", "all x-1, all"])
def test_a_text_of_more_units_than_a_network_has_is_refused(segments):
    """It would take the memory that it names."""
    test_another_text_is_refused(f"encoder {segments}; layers whole; decoder all whole x6")


def test_a_plan_takes_the_place_of_another():
    """What the first one has changed is changed back, so the last one alone decides."""
    model = UNet(ModelConfig(encoder="mit_tiny", decoder_channels=TINY_CHANNELS)).double()
    expected = take_step(copy.deepcopy(model), 32, 32)
    for plan in ("full", draw_plan("other"), "none"):
        checkpoint_activations(model, plan)
    assert all(layer.run_tiles is None for layer in model.encoder.tileable_layers())
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: saved.append(1) or each, lambda each: each):
        found = take_step(model, 32, 32)
    assert len(saved) > 100
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("first", "second"),
    [("selective", "selective"), *(("offload", second) for second in ("none", "selective", "full", "offload"))],
)
def test_a_level_takes_the_place_of_another(first, second):
    """Nothing moves to the host any more, and nothing is done twice, in a copy of the model, too."""
    model = UNet(ModelConfig(encoder="mit_tiny", decoder_channels=TINY_CHANNELS))
    plain = copy.deepcopy(model)
    checkpoint_activations(model, first)
    model = copy.deepcopy(model)
    for each in (model, plain):
        checkpoint_activations(each, second)
    assert describe(model) == describe(plain)


def describe(model: UNet) -> list[str]:
    """All that the levels set of a model, but its tensors."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")
    settings = ("elements_at_once", "has_short_segments", "lets_go")
    found = [f"offload {type(offload_of(model)).__name__}"]
    for name, module in model.named_modules():
        of_hooks = [[getattr(each, "__qualname__", each) for each in getattr(module, hook).values()] for hook in hooks]
        found.append(f"{name} {type(module).__name__} {of_hooks}")
        found += [f"{key} {getattr(module, key, None)}" for key in settings]
        attend = getattr(module, "attend", None)
        while isinstance(attend, RememberedAttention):
            found, attend = [*found, "remembered"], attend.attend
    return found
