"""Counting a step's memory: against sums done by hand."""

from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from glioma_dist.config import ModelConfig
from glioma_dist.errors import InputError
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import UNet
from glioma_dist.scale.memory_estimator import estimate_unet_step
from glioma_dist.scale.module_memory import estimate_step_memory
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
    counted = estimate_unet_step(model, LOSS, Size(64, 32))
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
    peak = estimate_unet_step(nn.Sequential(*layers), LOSS, size).peak
    states = 3 * FLOAT * sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    one_map = channels * size.width * size.height * FLOAT
    assert 4.9 * one_map < peak - states < 5.5 * one_map


def test_memory_grows_evenly_with_the_batch_and_bf16_takes_less():
    peaks = [estimate_unet_step(tiny(), LOSS, Size(64, 64), batch_size).peak for batch_size in (4, 8, 12)]
    assert peaks[2] - peaks[1] == pytest.approx(peaks[1] - peaks[0], rel=0.02)
    assert estimate_unet_step(tiny(), LOSS, Size(64, 64), 8, bf16=True).peak < 0.8 * peaks[1]


def test_an_image_of_native_size_is_counted_without_the_memory_for_it():
    counted = estimate_unet_step(tiny(), LOSS, Size(2592, 1952), batch_size=64)
    assert counted.peak > 64 * 2**30


def cross_entropy(output: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(output, torch.zeros(len(output), dtype=torch.long))


def bytes_kept(module: nn.Module, inputs: torch.Tensor) -> int:
    """Bytes that autograd really keeps between the passes: each storage once, the weights' own not."""
    weights = {each.untyped_storage().data_ptr() for each in (*module.parameters(), *module.buffers())}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = module(inputs)
        loss = cross_entropy(output)
    for tensor in (inputs, output, loss):
        keep(tensor)
    return sum(found.values())


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5"])
def test_what_others_modules_keep_is_what_autograd_keeps_of_real_tensors(name):
    """At the peak, which is early in the backward pass, nearly all of it is still there."""
    module, shape = torchvision.models.get_model(name), (4, 3, 160, 160)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    random_state = torch.get_rng_state()
    counted = estimate_step_memory(module, shape, cross_entropy)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    num_bytes = sum(parameter.nbytes for parameter in module.parameters())
    assert counted.parameters == num_bytes + sum(buffer.nbytes for buffer in module.buffers())
    assert counted.optimizer == 2 * num_bytes + FLOAT * len(list(module.parameters()))
    assert 0.95 < counted.kept / bytes_kept(module, torch.zeros(shape)) <= 1


def test_a_module_that_has_gradients_is_on_meta_or_is_compiled_counts_the_same():
    module, shape = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()), (2, 3, 16, 16)
    expected = estimate_step_memory(module, shape, cross_entropy)
    module(torch.zeros(shape)).sum().backward()
    assert estimate_step_memory(module, shape, cross_entropy) == expected
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert estimate_step_memory(torch.compile(module), shape, cross_entropy) == expected
    assert estimate_step_memory(module.to("meta"), shape, cross_entropy) == expected


def test_frozen_and_shared_weights_are_counted_as_they_are():
    matrix = 64 * 64 * FLOAT

    def two() -> nn.Sequential:
        return nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))

    frozen, shared = two(), two()
    frozen[0].weight.requires_grad_(False)
    shared[1].weight = shared[0].weight
    for module, parameters, moments in ((two(), 2, 4), (frozen, 2, 2), (shared, 1, 2)):
        counted = estimate_step_memory(module, (1, 64), torch.sum)
        num_steps = moments // 2 * FLOAT
        assert (counted.parameters, counted.optimizer - num_steps) == (parameters * matrix, moments * matrix)


class LooksAtValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs) if inputs.sum() > 0 else inputs


class CannotBeCopied(nn.Linear):
    def __deepcopy__(self, memo: dict) -> nn.Module:
        raise TypeError("no copies")


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (LooksAtValues(), "LooksAtValues, its loss or its optimizer looks at values of a tensor"),
        (CannotBeCopied(4, 4), "CannotBeCopied cannot be copied"),
        (nn.LazyLinear(4), "LazyLinear has layers whose sizes are not known yet"),
        (nn.ReLU(), "ReLU has no parameter that requires a gradient"),
        (nn.Linear(4, 4).requires_grad_(False), "Linear has no parameter that requires a gradient"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_counted_is_named(module, expected):
    with pytest.raises(InputError, match=expected):
        estimate_step_memory(module, (2, 4), torch.sum)


@pytest.mark.parametrize(
    ("shape", "loss", "expected"),
    [
        ((-1, 4), torch.sum, r"inputs \(-1, 4\): give a shape, whole numbers"),
        ((2.0, 4), torch.sum, "inputs"),
        ("2x4", torch.sum, "inputs 2x4"),
        ((), torch.sum, "inputs"),
        ({"inputs": 4}, torch.sum, "inputs"),
        ((2, 4), lambda _: None, "loss: returned NoneType; return a tensor computed from what Linear returns"),
        ((2, 4), lambda _: 1.0, "loss: returned float"),
        ((2, 4), lambda output: output.detach().sum(), "loss: returned a tensor without a gradient"),
    ],
    ids=["negative", "fractions", "text", "empty", "numbers", "no-loss", "number", "detached"],
)
def test_a_shape_or_a_loss_that_is_none_is_named(shape, loss, expected):
    with pytest.raises(InputError, match=expected):
        estimate_step_memory(nn.Linear(4, 4), shape, loss)
