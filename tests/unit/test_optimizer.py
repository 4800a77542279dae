"""Optimizers by device: fused on a GPU; Adam's state goes from one to the other and back."""

from typing import get_args

import pytest
import torch
from fake_cuda import CUDA, put_on_cuda
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from glioma_dist.config import TrainConfig
from glioma_dist.config.recipe import OptimizerName, num_moments
from glioma_dist.scale.optimizer import make_adam, make_optimizer, set_learning_rate, state_names


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))


def take_steps(optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_it_is_fused_on_a_gpu_only():
    assert make_adam(model(), 0.1).defaults["fused"] is None
    assert make_adam(model(), 0.1).defaults["lr"] == 0.1
    there = model()
    put_on_cuda(there, FakeTensorMode())
    assert make_adam(there).defaults["fused"]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, torch.optim.Adam),
        ({"optimizer": "adamw"}, torch.optim.AdamW),
        ({"optimizer": "sgd"}, torch.optim.SGD),
        ({"optimizer": "sgd", "momentum": 0.0}, torch.optim.SGD),
    ],
    ids=str,
)
@pytest.mark.parametrize("has_loss_scale", [False, True])
def test_each_optimizer_is_fused_on_a_gpu(fields, kind, has_loss_scale):
    config = TrainConfig(**fields)
    assert type(make_optimizer(model(), config, has_loss_scale)) is kind
    assert make_optimizer(model(), config, has_loss_scale).defaults["fused"] is None
    there = model()
    put_on_cuda(there, FakeTensorMode())
    is_unsafe = has_loss_scale and config.optimizer == "sgd" and config.momentum > 0
    assert make_optimizer(there, config, has_loss_scale).defaults["fused"] == (None if is_unsafe else True)


@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_what_an_optimizer_keeps_is_known(optimizer, momentum):
    made = make_optimizer(model(), TrainConfig(optimizer=optimizer, momentum=momentum))
    take_steps(made, 0, 1)
    kept = [frozenset(made.state[each]) for each in made.param_groups[0]["params"]]
    assert set(kept) == {state_names(made)}
    num_tensors = sum(each.ndim > 0 for each in made.state[made.param_groups[0]["params"][0]].values())
    assert num_tensors == num_moments(optimizer, momentum)


def test_the_rate_of_a_group_is_its_share():
    made = make_optimizer(nn.ModuleDict({"encoder": model(), "decoder": model()}), TrainConfig(encoder_lr_factor=0.25))
    assert [group["lr"] for group in made.param_groups] == [0.25e-4, 1e-4]
    set_learning_rate(made, 0.5)
    assert [group["lr"] for group in made.param_groups] == [0.125, 0.5]


def test_a_state_of_a_cpu_lies_on_the_gpu_when_loaded_there():
    """Fused Adam counts its steps there; each that is not would be copied in each step."""
    here, there = model(), model()
    optimizer = make_adam(here)
    take_steps(optimizer, 0, 2)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    put_on_cuda(there, mode)
    with mode:
        moved = make_adam(there)
        moved.load_state_dict({**optimizer.state_dict(), "param_groups": moved.state_dict()["param_groups"]})
    found = [(name, each.device) for values in moved.state.values() for name, each in values.items()]
    assert found == [(name, CUDA) for _ in there.parameters() for name in ("step", "exp_avg", "exp_avg_sq")]


@pytest.mark.parametrize("first", [True, False], ids=["GPU to CPU", "CPU to GPU"])
def test_a_state_is_of_use_to_the_other_kind(first):
    """Fused Adam runs on CPUs, too."""
    plain, other = model(), model()
    whole = make_adam(plain, 0.01)
    take_steps(whole, 0, 5)
    one = torch.optim.Adam(other.parameters(), lr=0.01, fused=first)
    take_steps(one, 0, 3)
    another = torch.optim.Adam(other.parameters(), lr=0.01, fused=not first)
    another.load_state_dict({**one.state_dict(), "param_groups": another.state_dict()["param_groups"]})
    take_steps(another, 3, 5)
    for ours, theirs in zip(other.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
