"""--deterministic: no operation of a step is one that PyTorch refuses on a GPU under deterministic algorithms.

Steps run on fake CPU tensors, which have a backward pass, with the layers told to compute as on a GPU.
"""

import re
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from encoder_helpers import narrow_everything, slow_if_deeper
from fake_helpers import on_fake
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from glioma_dist.config import ModelConfig
from glioma_dist.config.scale import SPATIAL_LAYERS_ENCODERS
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import UNet
from glioma_dist.registry import encoders
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.gradients import compute_gradients
from glioma_dist.scale.memory_estimator import compute_as_on_gpu
from glioma_dist.scale.spatial_group import ImaginarySpatialGroup
from glioma_dist.scale.spatial_layers import split_spatially

LEVELS = ("none", "selective", "full", "offload")
REFUSED = {
    "AvgPool3d": "avg_pool3d_backward",
    "AdaptiveAvgPool2d": "_adaptive_avg_pool2d_backward",
    "AdaptiveAvgPool3d": "_adaptive_avg_pool3d_backward",
    "AdaptiveMaxPool2d": "adaptive_max_pool2d_backward",
    "FractionalMaxPool2d": "fractional_max_pool2d_backward",
    "FractionalMaxPool3d": "fractional_max_pool3d_backward",
    "MaxUnpool1d": "max_unpool2d",
    "MaxUnpool2d": "max_unpool2d",
    "MaxUnpool3d": "max_unpool3d",
    "functional.interpolate": r"_?upsample_(linear1d|bilinear2d|bicubic2d|trilinear3d)\w*_backward",
    "ReflectionPad1d": "reflection_pad1d_backward",
    "ReflectionPad2d": "reflection_pad2d_backward",
    "ReflectionPad3d": "reflection_pad3d_backward",
    "NLLLoss": r"nll_loss\w*",
    "CTCLoss": r"_(cudnn_)?ctc_loss_backward",
    "EmbeddingBag": r"_embedding_bag\w*",
    "Tensor.put_": r"put_?",
    "histc": "histc",
    "bincount": "bincount",
    "median": r"(nan)?median",
    "functional.grid_sample": r"grid_sampler_\wd_backward",
    "Tensor.scatter_reduce": r"scatter_reduce_?",
}
"""What `torch.use_deterministic_algorithms` lists as refused on CUDA, and the names of its operations."""
REFUSED_BY_OLDER = {
    "MaxPool3d": "max_pool3d_with_indices_backward",
    "ReplicationPad1d": "replication_pad1d_backward",
    "ReplicationPad3d": "replication_pad3d_backward",
    "kthvalue": "kthvalue",
    "cumsum": "cumsum_?",
}
"""What older versions, as 2.7, refuse beside them."""


class Refusing(TorchDispatchMode):
    """Refuses what deterministic algorithms refuse on a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        assert not any(re.fullmatch(pattern, name) for pattern in (REFUSED | REFUSED_BY_OLDER).values()), name
        return func(*args, **(kwargs or {}))


def take_step(encoder: str, level: str, norm: str = "batch", spatial: int = 1, spoil=lambda model: None) -> None:
    """Forward pass, loss, backward pass, clipping and Adam's step."""
    height = 32 * (spatial + 1)
    group, mode = ImaginarySpatialGroup(spatial, height), FakeTensorMode()
    with torch.device("meta"):
        model = UNet(ModelConfig(encoder=encoder, norm=norm)).train()
    checkpoint_activations(model, level)
    split_spatially(model, group)
    compute_as_on_gpu(model)
    spoil(model)
    on_fake(model, "cpu", mode)
    strip = group.cut(height)
    with mode, Refusing():
        images = torch.zeros(2, 1, strip.stop - strip.start, 64, dtype=torch.uint8)
        loss = partial(segmentation_loss, "dice+bce", group=group)
        compute_gradients(model, images, images[:, 0], loss, nullcontext)
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        nn.utils.clip_grads_with_norm_(model.parameters(), 1.0, nn.utils.get_total_norm(gradients))
        torch.optim.Adam(model.parameters()).step()


def test_the_list_is_pytorchs():
    text = torch.use_deterministic_algorithms.__doc__
    refused = text.partition("operations will throw a")[2].partition("In addition, several operations")[0]
    names = set()
    for entry in re.split(r"\n\s+\* ", refused)[1:]:
        only_mps = "MPS tensor" in entry and "CUDA" not in entry
        names |= set() if only_mps else {re.search(r"`torch\.(?:nn\.)?([\w.]+)`", entry)[1]}
    assert names - {"Tensor.resize_"} - set(REFUSED_BY_OLDER) == set(REFUSED)  # resize_: of quantized tensors


@pytest.mark.parametrize("encoder", [slow_if_deeper(name) for name in encoders.names()])
def test_every_encoder(encoder, monkeypatch):
    narrow_everything(monkeypatch)
    take_step(encoder, "none")


@pytest.mark.slow
@pytest.mark.parametrize("encoder", encoders.names())
def test_every_encoder_of_full_size(encoder):
    take_step(encoder, "none")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_every_level_and_norm(level, norm):
    take_step("mit_tiny", level, norm)


@pytest.mark.parametrize("encoder", sorted({"mit_tiny", "vgg19", "resnet50"} & set(SPATIAL_LAYERS_ENCODERS)))
@pytest.mark.parametrize("level", ["none", "full"])
def test_every_layer_of_spatial_parallelism(encoder, level):
    take_step(encoder, level, "group", spatial=3)


def test_pytorchs_own_upsampling_is_refused():
    def spoil(model):
        for block in model.decoder.blocks:
            block.upsample = nn.Upsample(scale_factor=2, mode="bilinear")

    with pytest.raises(AssertionError, match="upsample_bilinear2d_backward"):
        take_step("mit_tiny", "none", spoil=spoil)
