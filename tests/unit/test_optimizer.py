"""Adam by device: fused on a GPU; its state goes from one to the other and back."""

import pytest
import torch
from fake_cuda import CUDA, put_on_cuda
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from glioma_dist.scale.optimizer import make_adam


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
