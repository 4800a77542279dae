"""Models and autocast on fake tensors of a GPU that is not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


@contextmanager
def autocast(device: str) -> Iterator[None]:
    """bf16 autocast; `torch.autocast` would disable that of a GPU that is not there."""
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])


@cache
def fakes_need_no_driver() -> bool:
    """Whether PyTorch slices and convolves fake CUDA tensors without asking the CUDA driver: 2.11 does, 2.8 does not.
    Under autograd that aborts the process; here it is an error."""
    try:
        with FakeTensorMode(), torch.no_grad():
            features, kernel = (torch.zeros(1, 4, 8, 8, device="cuda", dtype=torch.bfloat16) for _ in range(2))
            torch.conv2d(features[:, :, :4], kernel[:, :, :4])
    except RuntimeError:
        return False
    return True


def skip_unless_fakes_need_no_driver() -> None:
    """Skip a test on a fake GPU where this PyTorch needs a GPU for it."""
    if not fakes_need_no_driver():
        pytest.skip(f"PyTorch {torch.__version__} asks the CUDA driver about fake tensors")


def on_fake(model: nn.Module, device: str, mode: FakeTensorMode) -> nn.Module:
    """Give `model`, in place, fake parameters and buffers on `device`."""
    if torch.device(device).type == "cuda":
        skip_unless_fakes_need_no_driver()
    for module in model.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            with mode:
                fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
            setattr(module, name, nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake)
    return model
