"""What is changed in place between a forward and its backward pass is refused as by autograd, whatever keeps it."""

import re

import pytest
import torch
from helpers import TINY_CHANNELS
from torch import Tensor, nn

from glioma_dist.config import ModelConfig
from glioma_dist.losses import segmentation_loss
from glioma_dist.model import unet
from glioma_dist.model.encoders.contract import Encoder
from glioma_dist.model.unet import UNet, build_model
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.host_memory import HostMemory
from glioma_dist.scale.offload import ActivationOffload
from glioma_dist.scale.optimizer_in_backward import OptimizerInBackward

CHANGED = "one of the variables needed for gradient computation has been modified by an inplace operation"
LEVELS = ("none", "selective", "full", "offload")
WEIGHTS = ("attention.q_proj.weight", "mlp.fc1.weight", "blocks.1.conv1.weight", "norm2.weight", "head.weight")


def step(model: UNet, change=lambda: None) -> None:
    images = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    loss = segmentation_loss("dice", model(images, torch.arange(2)), (images[:, 0] > 0).byte()).mean()
    with torch.no_grad():
        change()
    loss.backward()


@pytest.mark.parametrize("level", LEVELS)
def test_a_weight_that_is_changed_is_refused(level):
    """A frozen one, too, on which the gradients of those before it depend."""
    for is_frozen in (False, True):
        model = build_model(ModelConfig("mit_tiny", decoder_channels=TINY_CHANNELS), 0)[0]
        checkpoint_activations(model, level)
        for ending in WEIGHTS[is_frozen::2]:
            weight = [each for name, each in model.named_parameters() if name.endswith(ending)][-1]
            weight.requires_grad_(not is_frozen)
            with pytest.raises(RuntimeError, match=CHANGED):
                step(model, lambda weight=weight: weight.mul_(2))
            weight.requires_grad_(True)
            step(model)


class OfFunctions(Encoder):
    """Its segments are functions: which weights they use is not known."""

    strides, channels = (32,), (4,)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 32, 32), nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor, seeds: Tensor | None = None) -> list[Tensor]:
        features = self.run_segment(lambda each: self.first(each).relu(), images)
        return [self.run_segment(lambda each: self.second(each).relu(), features)]


@pytest.mark.parametrize("level", LEVELS)
def test_weights_of_segments_that_are_functions(level, monkeypatch):
    """An optimizer that moves those of one before another is computed again is right."""
    monkeypatch.setattr(unet, "build_encoder", lambda name: OfFunctions())
    model = UNet(ModelConfig(decoder_channels=TINY_CHANNELS))
    checkpoint_activations(model, level)
    with OptimizerInBackward(torch.optim.SGD(model.parameters(), 0.1)).stepping():
        step(model)
    with pytest.raises(RuntimeError, match=CHANGED):
        step(model, lambda: model.encoder.second.weight.mul_(2))


@pytest.mark.parametrize(("encoder", "level"), [*(("mit_tiny", level) for level in LEVELS), ("resnet50", "full")])
def test_an_optimizer_in_the_backward_pass_is_no_such_change(encoder, level):
    model = build_model(ModelConfig(encoder, decoder_channels=TINY_CHANNELS), 0)[0]
    checkpoint_activations(model, level)
    for _ in range(2):
        with OptimizerInBackward(torch.optim.SGD(model.parameters(), 0.1)).stepping():
            step(model)


def test_attention_that_is_changed_is_refused():
    model = build_model(ModelConfig("mit_tiny", decoder_channels=TINY_CHANNELS), 0)[0]
    checkpoint_activations(model, "selective")
    layer = model.encoder.attention_layers()[0]
    kept, attend = [], layer.attend
    layer.attend = lambda *given: kept.append(attend(*given)) or kept[-1]
    with pytest.raises(RuntimeError, match=CHANGED):
        step(model, lambda: kept[0].mul_(2))


class Keeps(nn.Module):
    """Keeps maps and a weight, and says what it kept."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3, 8, 8))

    def forward(self, images: Tensor) -> Tensor:
        self.features = images * 2
        self.output = (self.features * self.weight).exp()
        self.small = self.output[0, 0, 0, 0] ** 2
        return self.output.sum() + self.small.sin()


@pytest.mark.parametrize("name", ["features", "output", "weight", "small"])
@pytest.mark.parametrize("is_held", [True, False])
def test_offload_refuses_in_autograds_words(name, is_held):
    """Something that holds a map keeps it on the device; where nothing does, its copy may be under way."""
    plain, ours = Keeps(), Keeps()
    offload = ActivationOffload(HostMemory(), min_bytes=16)
    offload.attach(ours)
    told = []
    for model in (plain, ours):
        loss = model(torch.ones(2, 3, 8, 8, requires_grad=True))
        with torch.no_grad():
            getattr(model, name).mul_(2)
        if not is_held:
            model.features = model.output = model.small = None
        with pytest.raises(RuntimeError, match=CHANGED) as raised:
            loss.backward()
        told.append(re.sub(r"\], which is output 0 of \w+,", "]", str(raised.value)).partition(" Hint")[0])
    assert told[1] == told[0]


def test_a_version_holds_no_memory():
    host, tensor = HostMemory(), torch.ones(1000)
    counted = host.watch(tensor)
    assert counted.untyped_storage().nbytes() == 0
    tensor[0] = 3
    assert counted._version == tensor._version == 1
    assert tensor.sum() == 1002
