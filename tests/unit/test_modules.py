"""Modules that take the place of others, and what an encoder has to say of itself."""

import ast
import copy
import re

import pytest
import torch
from helpers import REPOSITORY, TINY_CHANNELS
from torch import nn

from glioma_dist.config import ModelConfig
from glioma_dist.model.encoders.contract import Encoder
from glioma_dist.model.modules import rebuild, replace_modules
from glioma_dist.model.unet import UNet, build_model
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.batch_norm import synchronise_batch_norm
from glioma_dist.scale.fsdp import sharded_units
from glioma_dist.scale.spatial_group import ImaginarySpatialGroup
from glioma_dist.scale.spatial_layers import split_spatially

FAMILIES = {"MitEncoder", "TimmEncoder", "MIT_SHAPES", "TIMM_MODELS"}
IN_PLACE = {("encoder.py", 1), ("parallel.py", 1), ("fsdp.py", 1)}
"""Files that may give an object another class, and how often; the reason stands there."""


class Doubled(nn.Conv2d):
    factor = 2.0

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features) * self.factor


def test_a_rebuilt_module_shares_weights_and_changes_nothing_of_the_old_one():
    torch.manual_seed(0)
    old = nn.Conv2d(3, 4, 3, padding=1).eval()
    calls = []
    old.register_forward_hook(lambda *_: calls.append("hook"))
    images = torch.randn(1, 3, 5, 5)
    new, other = rebuild(old, Doubled), rebuild(old, Doubled, factor=3.0)
    assert torch.equal(new(images), 2 * old(images))
    assert torch.equal(other(images), 3 * old(images))
    assert calls == ["hook"] * 4
    assert type(old) is nn.Conv2d
    assert new.weight is old.weight
    assert not new.training
    new.register_buffer("more", torch.zeros(1))
    new.train()
    assert not old.training
    assert list(old.state_dict()) == ["weight", "bias"]


def test_replacements_stand_wherever_a_module_is_registered_and_names_stay():
    shared = nn.Conv2d(2, 2, 1)
    model = nn.ModuleDict({"a": nn.Sequential(shared, nn.ReLU()), "b": shared, "c": nn.Sequential(nn.Conv2d(2, 2, 1))})
    names, weights = list(model.state_dict()), list(model.parameters())
    asked = []

    def new_of(name: str, module: nn.Module) -> nn.Module | None:
        asked.append(name)
        if type(module) is nn.Sequential:  # a parent and its child are both replaced
            return rebuild(module, Chain)
        return rebuild(module, Doubled) if type(module) is nn.Conv2d else None

    replace_modules(model, new_of)
    assert asked == ["a", "a.0", "a.1", "c", "c.0"]
    assert [type(each) for each in model.modules()][1:] == [Chain, Doubled, nn.ReLU, Chain, Doubled]
    assert model["a"][0] is model["b"]
    assert list(model.state_dict()) == names
    assert all(one is other for one, other in zip(model.parameters(), weights, strict=True))


class Chain(nn.Sequential):
    """A class of its own."""


@pytest.mark.parametrize("level", ["none", "selective", "full"])
@pytest.mark.parametrize("encoder", ["mit_tiny", "resnet50"])
def test_a_scaled_model_has_the_plain_ones_weights_under_their_names(encoder, level):
    model = build_model(ModelConfig(encoder=encoder, decoder_channels=TINY_CHANNELS), 0)[0]
    plain = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    synchronise_batch_norm(model, torch.device("cpu"))
    checkpoint_activations(model, level)
    split_spatially(model, ImaginarySpatialGroup(2, 64))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, each in model.named_parameters() if each is not parameters[name]] == []
    assert {name: each.training for name, each in model.named_modules()} == {
        name: each.training for name, each in plain.named_modules()
    }


class PlainEncoder(Encoder):
    """The least that the contract asks for."""

    channels, strides = (4, 6), (4, 32)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 6, 8, 8)

    def forward(self, images: torch.Tensor, seeds: torch.Tensor | None = None) -> list[torch.Tensor]:
        fine = self.run_segment(self.first, images)
        return [fine, self.run_segment(self.second, fine)]


@pytest.mark.parametrize("level", ["none", "selective", "full"])
def test_an_encoder_with_no_more_than_the_contract_asks_for_is_scaled(monkeypatch, level):
    monkeypatch.setattr("glioma_dist.model.unet.build_encoder", lambda _: PlainEncoder())
    torch.manual_seed(0)
    plain = UNet(ModelConfig(encoder="mit_tiny", decoder_channels=TINY_CHANNELS, norm="group")).double()
    ours = copy.deepcopy(plain)
    checkpoint_activations(ours, level)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for model in (plain, ours):
        model(images, torch.arange(2)).square().sum().backward()
    for (name, one), other in zip(plain.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-9, atol=1e-9, msg=name)
    units = sharded_units(ours)
    assert ours.encoder.first in units
    assert ours.encoder.second in units


def test_the_rooms_that_scale_a_model_name_no_family_of_encoders():
    files = sorted((REPOSITORY / "glioma_dist" / "scale").glob("*.py"))
    assert len(files) > 10
    found = {(path.name, node.id) for path in files for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Name) and node.id in FAMILIES}  # fmt: skip
    assert found == set()


def test_no_object_is_given_another_class_in_place():
    counts = {
        (path.name, len(found))
        for path in (REPOSITORY / "glioma_dist").rglob("*.py")
        if (found := re.findall(r"__class__\b.*= ", path.read_text()))
    }
    assert counts == IN_PLACE
