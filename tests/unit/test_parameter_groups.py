"""Which weights decay: exactly those of convolutions and linear layers, in every encoder, as timm says."""

import pytest
import timm
import torch
from encoder_helpers import slow_if_deeper
from helpers import TINY_CHANNELS
from timm.optim import param_groups_weight_decay
from torch import nn

from glioma_dist.config import ModelConfig
from glioma_dist.model.parameter_groups import decayed_names, parameter_groups
from glioma_dist.model.unet import UNet
from glioma_dist.registry import encoders

WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


def build(encoder: str, norm: str = "batch") -> UNet:
    with torch.device("meta"):
        return UNet(ModelConfig(encoder, norm=norm, decoder_channels=TINY_CHANNELS))


def weights_of_layers(model: nn.Module) -> set[str]:
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, WEIGHTED)}


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("encoder", encoders.names())
def test_the_weights_of_convolutions_and_linear_layers_decay_and_nothing_else(encoder, norm):
    model = build(encoder, norm)
    assert decayed_names(model) == weights_of_layers(model)


@pytest.mark.parametrize("encoder", encoders.names())
def test_they_are_those_that_timm_would_decay(encoder):
    model = build(encoder)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    without, decayed = param_groups_weight_decay(model, weight_decay=0.1)
    assert (without["weight_decay"], decayed["weight_decay"]) == (0.0, 0.1)
    assert {names[id(each)] for each in decayed["params"]} == decayed_names(model)


OTHERS = ("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "hiera_tiny_224", "convnextv2_atto", "mvitv2_tiny")
"""timm's models with embeddings of positions of several dimensions, scales of heads, and response norms."""


@pytest.mark.parametrize("name", OTHERS)
def test_what_timm_s_models_exclude_by_name_does_not_decay(name):
    """Their feature networks, which the encoders are, do not say it; here are the whole models."""
    model = timm.create_model(name)
    excluded = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    _, decayed = param_groups_weight_decay(model, weight_decay=0.1, no_weight_decay_list=excluded)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decayed_names(model) == {names[id(each)] for each in decayed["params"]}


def test_norms_of_several_dimensions_do_not_decay():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.LayerNorm((2, 4, 4)), nn.GroupNorm(1, 2))
    assert decayed_names(model) == {"0.weight"}


@pytest.mark.parametrize("encoder", [slow_if_deeper(name) for name in encoders.names()])
def test_every_trained_parameter_is_in_one_group_with_its_settings(encoder):
    model = build(encoder)
    groups = parameter_groups(model, 0.5, 0.1, 0.25)
    found = {id(each): group for group in groups for each in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found) == len(list(model.parameters()))
    assert len(groups) == 4
    weights = weights_of_layers(model)
    for name, parameter in model.named_parameters():
        group = found[id(parameter)]
        assert group["weight_decay"] == (0.1 if name in weights else 0.0)
        assert group["lr_factor"] == (0.25 if name.startswith("encoder.") else 1.0)
        assert group["lr"] == 0.5 * group["lr_factor"]


def test_by_default_all_are_in_one_group_in_their_order():
    model = build("mit_tiny")
    (group,) = parameter_groups(model, 0.5)
    assert [id(each) for each in group["params"]] == [id(each) for each in model.parameters()]


def test_a_frozen_encoder_is_in_no_group():
    model = build("mit_tiny")
    model.encoder.freeze()
    (group,) = parameter_groups(model, 0.5)
    assert [id(each) for each in group["params"]] == [id(each) for each in model.decoder.parameters()]
