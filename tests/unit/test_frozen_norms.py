"""--model.encoder-norm frozen: the encoder's batch norms keep what they have, and images do not depend on others."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from encoder_helpers import DEEPER, narrow_everything
from fp64 import train_in_fp64
from helpers import TINY_CHANNELS, tiny_config
from safetensors.torch import load_file, save_file
from test_micro_batches import FP64, largest_difference, take_step
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from glioma_dist.config import ModelConfig, ScaleConfig, TrainConfig
from glioma_dist.config.file import from_dict, to_dict
from glioma_dist.errors import InputError
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import UNet
from glioma_dist.registry import encoders
from glioma_dist.scale import planner
from glioma_dist.scale.micro_batches import batch_norms
from glioma_dist.scale.planner import Step
from glioma_dist.scale.step_count import build_without_weights
from glioma_dist.scale.tile_size import CPU_TILE
from glioma_dist.size import Size
from glioma_dist.training import loop
from glioma_dist.training.reproducible import check_reproducible

NARROW = [name for name in encoders.names() if name not in DEEPER]
FROZEN = ModelConfig("mobilenet_v2", norm="group", decoder_channels=TINY_CHANNELS, encoder_norm="frozen")


def norms_of(model: nn.Module) -> dict[str, _BatchNorm]:
    return {name: each for name, each in model.encoder.named_modules() if isinstance(each, _BatchNorm)}


def build(config: ModelConfig) -> UNet:
    """A network whose statistics, weights and biases are those of no layer's start."""
    torch.manual_seed(0)
    model = UNet(config)
    for norm in norms_of(model).values():
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.add_(torch.rand_like(tensor), alpha=0.1)
    return model.double()


@pytest.mark.equality(flag="micro-batches, encoder norm frozen", encoder="{name}", processes=1, kind="1e-9")
@pytest.mark.parametrize("name", NARROW)
def test_each_encoders_norms_are_frozen_or_there_are_none(name, monkeypatch, record_property):
    """Of every encoder: --reproducible refuses its batch norms and takes them frozen, and images in micro-batches give
    what they give together."""
    narrow_everything(monkeypatch)
    context = SimpleNamespace(accelerator=SimpleNamespace(is_fsdp2=False, scaler=None))
    plain, frozen = (replace(FROZEN, encoder=name, encoder_norm=kind) for kind in ("batch", "frozen"))
    model = build_without_weights(plain).train()
    if not norms_of(model):
        with pytest.raises(InputError, match=f"--model.encoder-norm frozen: {name} has no batch norm"):
            build_without_weights(frozen)
        record_property("equality kind", "refused")
        check_reproducible(TrainConfig(model=plain), context, model)
        return
    with pytest.raises(InputError, match=r"--reproducible: batch norm .*\(encoder\..*frozen") as refused:
        check_reproducible(TrainConfig(model=plain), context, model)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) <= 500
    model = build(frozen).train()
    assert batch_norms(model) == []
    check_reproducible(TrainConfig(model=frozen), context, model)
    whole = take_step(model, 1)
    without = {name for name, each in whole.items() if each is None}
    assert without == {f"encoder.{norm}.{each}" for norm in norms_of(model) for each in ("weight", "bias")}, (
        "all else is trained"
    )
    parts = take_step(model, 4)
    for found in (whole, parts):
        for each in without:
            del found[each]
    assert largest_difference(parts, whole) <= FP64


def test_a_step_is_that_of_torchvisions_frozen_batch_norm():
    model, expected = build(FROZEN).train(), build(replace(FROZEN, encoder_norm="batch")).train()
    for name, norm in norms_of(expected).items():
        frozen = FrozenBatchNorm2d(norm.num_features, norm.eps).double()
        state = {key: each for key, each in norm.state_dict().items() if key != "num_batches_tracked"}
        frozen.load_state_dict(state)
        act = getattr(norm, "act", nn.Identity())  # of timm's norms with an activation
        expected.encoder.set_submodule(name, nn.Sequential(frozen, act))
    found, theirs = take_step(model, 1), take_step(expected, 1)
    shared = {name: each for name, each in found.items() if each is not None}
    assert len(shared) > 50
    renamed = {name: theirs[name] for name in shared}
    assert largest_difference(shared, renamed) <= FP64


def test_norms_stay_as_they_are_in_a_training_with_any_level(shards, tmp_path, runtime, monkeypatch):
    """The encoder's starting weights are a file; the run, its restart and evaluation use the statistics in it."""
    start = tmp_path / "encoder.safetensors"
    encoder = build(replace(FROZEN, encoder_norm="batch")).float().encoder
    save_file({name: each.contiguous() for name, each in encoder.body.state_dict().items()}, start)
    kept = {f"{name}.{key}" for name in norms_of(SimpleNamespace(encoder=encoder)) for key in ("weight", "bias")}
    kept |= {f"{name}.running_{key}" for name in norms_of(SimpleNamespace(encoder=encoder)) for key in ("mean", "var")}
    found = {}
    train_in_fp64(monkeypatch)
    for level in ("none", "full"):
        config = tiny_config(
            *(shards, tmp_path / level),
            **{"encoder": "mobilenet_v2", "init": str(start), "norm": "group", "encoder_norm": "frozen", "val": None},
            **{
                "size": Size(32, 32),
                "batch_size": 2,
                "max_steps": 1,
                "scale": ScaleConfig(activation_checkpointing=level),
            },
        )
        loop.train(config, runtime)
        found[level] = load_file(config.out / "last" / "model.safetensors")
        for name, tensor in encoder.state_dict().items():
            same = torch.equal(found[level][f"encoder.{name}"].double(), tensor.double())
            assert same == (name in kept or name.endswith("num_batches_tracked")), name
    assert largest_difference(found["full"], found["none"]) <= FP64
    loop.train(replace(config, max_steps=2), runtime)
    with pytest.raises(InputError, match="encoder_norm"):
        loop.train(replace(config, max_steps=3, model=replace(config.model, encoder_norm="batch")), runtime)


def test_the_planner_counts_them():
    settings = {"tile_size": CPU_TILE, "loss": partial(segmentation_loss, "dice")}
    steps = [
        Step(replace(FROZEN, encoder_norm=kind), Size(64, 64), 2, False, **settings) for kind in ("frozen", "batch")
    ]
    frozen, batch = (planner.count(step, "none") for step in steps)
    tensors = [each for norm in norms_of(build(FROZEN)).values() for each in (norm.weight, norm.bias)]
    # Adam's two moments in fp32, and its number of steps.
    assert batch.optimizer - frozen.optimizer == sum(2 * 4 * each.numel() + 4 for each in tensors)


def test_it_is_refused_where_it_cannot_help(shards, tmp_path):
    config = tiny_config(shards, tmp_path, encoder="mobilenet_v2", encoder_norm="frozen")
    with pytest.raises(InputError, match=r"--model.encoder-norm frozen: the norms of random weights") as refused:
        config.validate()
    assert len(str(refused.value)) <= 500
    old = to_dict(config)
    del old["model"]["encoder_norm"]
    assert from_dict(TrainConfig, old).model.encoder_norm == "batch", "a checkpoint of before has none"
    idle = replace(config, freeze_encoder=True, model=replace(config.model, init="imagenet"))
    assert "--model.encoder-norm with --freeze-encoder" in idle.without_effect()
