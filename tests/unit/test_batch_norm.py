"""Batch norm over processes equals PyTorch's own on the joined batch."""

import copy

import numpy as np
import pytest
import torch
from encoder_helpers import narrow_everything
from helpers import TINY_CHANNELS, run
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from glioma_dist.config import ModelConfig
from glioma_dist.errors import InputError
from glioma_dist.model.unet import UNet
from glioma_dist.registry import encoders
from glioma_dist.scale.batch_norm import (
    counterparts_on,
    depends_on_batch,
    synchronise_batch_norm,
)
from glioma_dist.scale.batch_norm_layer import ProcessesBatchNorm2d
from glioma_dist.scale.tiled_statistics import BatchStatistics, normalise_with, statistics_of
from glioma_dist.scale.timm_batch_norm import GpuBatchNormAct2d, ProcessesBatchNormAct2d

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def make_model(dtype: torch.dtype = torch.float64, with_rare: bool = True) -> nn.Module:
    """Batch norms with every setting that changes what they do; each one's gradient passes through those before it.

    with_rare: settings, too, for which PyTorch's own layer is taken on GPUs.
    """
    torch.manual_seed(0)
    rare = [BatchNormAct2d(5, momentum=None, eps=1e-3), nn.BatchNorm2d(5, track_running_stats=False)]
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.BatchNorm2d(5, affine=False),
        BatchNormAct2d(5, act_layer=nn.SiLU),
        *(rare if with_rare else []),
        nn.Conv2d(5, 4, 1),
        nn.BatchNorm2d(4, momentum=0.3, eps=1e-3),
    ).to(dtype)
    randomise(model)
    return model


def randomise(model: nn.Module) -> None:
    """Weights and running statistics of batch norms as training could leave them."""
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        if norm.weight is not None:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
        if norm.running_mean is not None:
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.running_mean)


def batches(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """(3 steps, 7 images, 3, 6, 5), far from mean 0 and each image elsewhere, and a gradient for each output."""
    generator = torch.Generator().manual_seed(1)
    shift = torch.randn(3, 7, 3, 1, 1, generator=generator, dtype=torch.float64) * 5 + 20
    return (torch.randn(3, 7, 3, 6, 5, generator=generator, dtype=torch.float64) + shift).to(dtype)


def gradients_of_outputs(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(3, 7, 4, 6, 5, generator=generator, dtype=torch.float64).to(dtype)


def steps(model: nn.Module, rows: slice, dtype: torch.dtype = torch.float64) -> dict[str, np.ndarray]:
    """Outputs, gradients by input, summed gradients by parameter, and buffers after three steps on `rows`."""
    outputs, inputs = [], []
    for images, gradient in zip(batches(dtype), gradients_of_outputs(dtype), strict=True):
        images = images[rows].clone().requires_grad_()
        output = model(images)
        output.backward(gradient[rows])
        outputs.append(output.detach())
        inputs.append(images.grad)
    found = {"output": torch.stack(outputs), "input gradient": torch.stack(inputs)}
    found |= {f"gradient {name}": parameter.grad for name, parameter in model.named_parameters()}
    found |= {f"buffer {name}": buffer for name, buffer in model.named_buffers()}
    return {name: value.numpy() for name, value in found.items()}


def rank_steps(shares: list[int], dtype: torch.dtype = torch.float64) -> dict[str, np.ndarray]:
    """`steps` of one rank, whose part of a batch is `shares[rank]` images."""
    from glioma_dist.distributed.context import DistributedContext

    here = DistributedContext.start()
    assert here.num_processes == len(shares)
    first = sum(shares[: here.rank])
    model = synchronise_batch_norm(make_model(dtype), here.device)
    return steps(model, slice(first, first + shares[here.rank]), dtype)


@pytest.mark.parametrize("shares", [[5, 2], [1, 4, 2]], ids=str)
def test_several_processes_with_unequal_shares_equal_the_joined_batch(shares):
    expected = steps(make_model(), slice(None))
    ranks = run(rank_steps, shares, num_processes=len(shares))
    tolerance = {"rtol": 1e-9, "atol": 1e-9}
    for name in ("output", "input gradient"):
        np.testing.assert_allclose(np.concatenate([rank[name] for rank in ranks], 1), expected[name], **tolerance)
    for name in expected:
        if name.startswith("gradient"):
            np.testing.assert_allclose(sum(rank[name] for rank in ranks), expected[name], **tolerance, err_msg=name)
        elif name.startswith("buffer"):
            for rank in ranks:
                np.testing.assert_allclose(rank[name], expected[name], **tolerance, err_msg=name)
    assert all(rank["buffer 1.num_batches_tracked"] == 3 for rank in ranks)


def rank_steps_as_on_gpus(shares: list[int]) -> dict[str, np.ndarray]:
    """`rank_steps` with the layers of GPUs, whose kernels are written out."""
    from fake_cuda import GpuKernels

    from glioma_dist.distributed.context import DistributedContext

    here = DistributedContext.start()
    first = sum(shares[: here.rank])
    model = synchronise_batch_norm(make_model(with_rare=False), GPU)
    assert {module.is_exchanging for module in model if isinstance(module, nn.SyncBatchNorm)} == {True}
    with GpuKernels():
        return steps(model, slice(first, first + shares[here.rank]))


def test_the_layers_of_gpus_equal_the_joined_batch():
    """The way from PyTorch's kernels to outputs, gradients and running statistics; not the kernels."""
    shares = [5, 2]
    expected = steps(make_model(with_rare=False), slice(None))
    ranks = run(rank_steps_as_on_gpus, shares, num_processes=2)
    for name, value in expected.items():
        parts = [rank[name] for rank in ranks]
        if name.startswith("buffer"):
            found = parts[0]
        else:
            found = sum(parts) if name.startswith("gradient") else np.concatenate(parts, 1)
        np.testing.assert_allclose(found, value, rtol=1e-9, atol=1e-9, err_msg=name)


def test_one_process_equals_pytorchs_own():
    expected = steps(make_model(), slice(None))
    for name, value in steps(synchronise_batch_norm(make_model(), CPU), slice(None)).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-9, atol=1e-9, err_msg=name)


def test_a_mean_far_from_nought_loses_no_digits():
    """E[x^2] - E[x]^2 in fp32 would be nothing but rounding here."""
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 5000
    norm = synchronise_batch_norm(nn.Sequential(nn.BatchNorm2d(3)), CPU)
    exact = nn.BatchNorm2d(3).double()
    np.testing.assert_allclose(norm(images).detach(), exact(images.double()).detach(), atol=2e-3)


def test_bf16_features_keep_statistics_in_fp32():
    images = torch.randn(4, 5, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    norm, plain = synchronise_batch_norm(nn.Sequential(nn.BatchNorm2d(5)), CPU)[0], nn.BatchNorm2d(5)
    ours, theirs = images.clone().requires_grad_(), images.float().requires_grad_()
    output, expected = norm(ours), plain(theirs)
    output.float().square().sum().backward()
    expected.square().sum().backward()
    assert output.dtype == ours.grad.dtype == torch.bfloat16
    assert norm.running_mean.dtype == torch.float32
    torch.testing.assert_close(norm.running_mean, plain.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var, plain.running_var, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.float(), expected, rtol=0.02, atol=0.02)


def test_in_evaluation_it_is_pytorchs_own_and_names_stay():
    plain = make_model()
    ours = synchronise_batch_norm(copy.deepcopy(plain), CPU)
    kinds = [type(module) for module in ours.modules()]
    assert (kinds.count(ProcessesBatchNorm2d), kinds.count(ProcessesBatchNormAct2d)) == (4, 2)
    assert list(ours.state_dict()) == list(plain.state_dict())
    images = batches()[0]
    assert torch.equal(ours.eval()(images), plain.eval()(images))
    for name, value in ours.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name])


def test_group_norm_is_left_alone():
    model = synchronise_batch_norm(nn.Sequential(nn.GroupNorm(1, 4), nn.BatchNorm2d(4)), CPU)
    assert [type(module) for module in model] == [nn.GroupNorm, ProcessesBatchNorm2d]


@pytest.mark.parametrize("name", encoders.names())
def test_what_gpus_compute_keeps_every_activation(monkeypatch, name):
    """The conversion for GPUs, looked at without one: in evaluation mode, where nothing is exchanged, on the CPU."""
    narrow_everything(monkeypatch)
    torch.manual_seed(0)
    model = UNet(ModelConfig(encoder=name, decoder_channels=TINY_CHANNELS))
    randomise(model)
    names, num_norms = list(model.state_dict()), sum(map(depends_on_batch, model.modules()))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(images)
        assert synchronise_batch_norm(model, GPU) is model
        assert torch.equal(model(images), expected)
    assert list(model.state_dict()) == names
    synchronised = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert len(synchronised) == num_norms > 0
    assert {type(module) for module in synchronised} <= set(counterparts_on(GPU).values())


def test_pytorch_s_own_conversion_would_lose_activations():
    """Why there is one of ours: the counter-check of the test above."""
    model = make_model().eval()
    expected = model(batches()[0])
    assert not torch.allclose(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))(batches()[0]), expected)
    ours = synchronise_batch_norm(copy.deepcopy(model), GPU)
    assert [type(module) for module in ours].count(GpuBatchNormAct2d) == 2
    assert torch.equal(ours(batches()[0]), expected)


class OwnBatchNorm(nn.BatchNorm2d):
    """A subclass may compute something else."""


class OwnNorm(nn.Module):
    """Keeps statistics, and is of no known family."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize(
    "norm",
    [OwnBatchNorm(4), OwnNorm(), nn.BatchNorm1d(4), nn.BatchNorm3d(4), nn.InstanceNorm2d(4, track_running_stats=True)],
    ids=lambda norm: type(norm).__name__,
)
def test_a_norm_that_nobody_knows_is_refused_by_name(norm, device):
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(norm))
    with pytest.raises(InputError, match=rf"1\.0 is a {type(norm).__name__}.* one process"):
        synchronise_batch_norm(model, device)
    assert type(model[0]) is nn.BatchNorm2d, "and nothing is half changed"


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_norms_of_one_image_each_need_nothing_and_twice_is_once(device):
    model = nn.Sequential(nn.GroupNorm(1, 4), nn.LayerNorm(4), nn.InstanceNorm2d(4), nn.BatchNorm2d(4))
    kinds = [type(module) for module in synchronise_batch_norm(model, device)]
    assert kinds[:3] == [nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d]
    assert [type(module) for module in synchronise_batch_norm(model, device)] == kinds


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "settings", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}], ids=str
)
def test_a_norm_in_bands_is_pytorch_s_own(settings, training):
    """`BatchStatistics` and `normalise_with`, with which activation checkpointing goes through a norm."""
    plain = nn.BatchNorm2d(3, **settings).double().train(training)
    randomise(plain)
    ours = copy.deepcopy(plain)
    for images in batches():
        statistics = BatchStatistics(ours, over_processes=True)
        found = normalise_with(ours, images, *statistics_of(statistics, images))
        torch.testing.assert_close(found, plain(images), rtol=1e-9, atol=1e-9)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=1e-9, atol=1e-9)
