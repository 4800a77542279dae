"""The optimizer's step inside the backward pass: the weights of plain steps, and what it gives up."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY_CHANNELS, change_loss, rows, tiny_config
from torch import Tensor

from glioma_dist.config import ModelConfig, ScaleConfig, TrainConfig
from glioma_dist.errors import InputError, NonFiniteError
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.manifest import MODEL, OPTIMIZER
from glioma_dist.model.unet import build_model
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.optimizer import make_optimizer
from glioma_dist.scale.optimizer_in_backward import OptimizerInBackward, check_optimizer_in_backward
from glioma_dist.scale.step import LEVELS
from glioma_dist.training.loop import train

IN_BACKWARD = ScaleConfig(optimizer_in_backward=True)


def tensors_of(config: TrainConfig) -> dict[str, Tensor]:
    last = Checkpoint.read(config.out / "last")
    return {f"{name} {key}": each for name in (MODEL, OPTIMIZER) for key, each in last.tensors(name).items()}


def check_same_run(one: TrainConfig, other: TrainConfig) -> None:
    assert rows(other.out) == rows(one.out)
    found, expected = tensors_of(other), tensors_of(one)
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "adamw", "weight_decay": 0.1, "encoder_lr_factor": 0.1, "ema_decay": 0.9, "warmup_steps": 2},
        {"optimizer": "sgd", "momentum": 0.9, "lr": 0.1},
    ],
    ids=["adam", "adamw", "sgd"],
)
def test_a_run_and_a_resumed_one_have_the_bits_of_plain_steps(shards, tmp_path, runtime, changes):
    """The resumed run changes from one kind of step to the other: with AdamW from plain steps, else to them."""
    plain = tiny_config(shards, tmp_path / "plain", max_steps=2, val=None, **changes)
    ours = replace(plain, out=tmp_path / "ours", scale=IN_BACKWARD)
    moving = replace(plain, out=tmp_path / "moving")
    first, last = (ScaleConfig(), IN_BACKWARD) if plain.optimizer == "adamw" else (IN_BACKWARD, ScaleConfig())
    for config in (plain, ours, replace(moving, max_steps=1, scale=first), replace(moving, scale=last)):
        train(config, runtime)
    check_same_run(plain, ours)
    check_same_run(plain, moving)


def note_gradients(parameters: list[Tensor], found: list[int], _: Tensor) -> None:
    found.append(sum(each.grad is not None for each in parameters))


@pytest.mark.parametrize("level", LEVELS)
def test_no_gradient_is_left_at_any_level(level):
    """And the weights and moments of three steps are those of plain ones, to the bit."""
    found = []
    for in_backward in (False, True):
        model = build_model(ModelConfig("mit_tiny", decoder_channels=TINY_CHANNELS), 0)[0]
        checkpoint_activations(model, level)
        optimizer = make_optimizer(model, TrainConfig())
        moving, alive = OptimizerInBackward(optimizer), []
        images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        watched = [each for each in model.parameters() if each.requires_grad]
        for each in watched:
            each.register_post_accumulate_grad_hook(partial(note_gradients, watched, alive))
        for step in range(3):
            losses = segmentation_loss("dice", model(images, torch.tensor([step, 7])), (images[:, 0] > 0).byte())
            if in_backward:
                with moving.stepping():
                    losses.sum().backward()
                norm = moving.norm()
            else:
                losses.sum().backward()
                norm = torch.nn.utils.get_total_norm([each.grad for each in watched])
                optimizer.step()
                optimizer.zero_grad()
            found.append({"norm": norm, **{name: each.clone() for name, each in model.state_dict().items()}})
        assert max(alive) == (1 if in_backward else len(watched))
        assert all(each.grad is None for each in watched)
    for plain, ours in zip(found[:3], found[3:], strict=True):
        torch.testing.assert_close(ours.pop("norm"), plain.pop("norm"))
        assert [name for name, tensor in plain.items() if not torch.equal(tensor, ours[name])] == []


def test_a_loss_that_is_not_finite_ends_the_run_before_any_weight_moves(shards, tmp_path, runtime, monkeypatch):
    config = tiny_config(shards, tmp_path / "ours", max_steps=1, val=None)
    train(replace(config, scale=IN_BACKWARD), runtime)
    before = tensors_of(config)
    change_loss(monkeypatch, True, lambda own, *given: own(*given) * torch.nan)
    longer = replace(config, max_steps=2, scale=IN_BACKWARD)
    with pytest.raises(NonFiniteError, match=r"step 2: the loss is nan \(samples .*\)"):
        train(longer, runtime)
    after = tensors_of(config)
    assert [name for name, tensor in before.items() if not torch.equal(tensor, after[name])] == []


def test_a_gradient_that_is_not_finite_ends_the_run_and_is_not_saved(shards, tmp_path, runtime, monkeypatch):
    """Weights have moved: the checkpoint is that of the step before."""
    config = tiny_config(shards, tmp_path / "ours", max_steps=1, val=None)
    train(replace(config, scale=IN_BACKWARD), runtime)
    before = tensors_of(config)

    def broken(own, name, logits, *given):
        logits.register_hook(lambda gradient: gradient * torch.inf)
        return own(name, logits, *given)

    change_loss(monkeypatch, True, broken)
    with pytest.raises(NonFiniteError, match=r"step 2: the loss is .* but its gradient is not finite"):
        train(replace(config, max_steps=2, scale=IN_BACKWARD), runtime)
    after = tensors_of(config)
    assert [name for name, tensor in before.items() if not torch.equal(tensor, after[name])] == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"clip_norm": 1.0}, "--clip-norm 1.0"),
        ({"scale": replace(IN_BACKWARD, gradient_accumulation=2), "norm": "group"}, "--scale.gradient-accumulation 2"),
        ({"reproducible": True, "norm": "group"}, "--reproducible"),
        ({"scale": replace(IN_BACKWARD, spatial_parallel=2)}, "--scale.spatial-parallel 2"),
    ],
)
def test_settings_that_need_all_gradients_are_refused(shards, tmp_path, changes, told):
    config = tiny_config(shards, tmp_path / "x", **{"scale": IN_BACKWARD, **changes})
    with pytest.raises(InputError, match=f"--scale.optimizer-in-backward and {told} cannot be combined") as refused:
        config.validate()
    assert len(str(refused.value)) < 500
    replace(config, scale=replace(config.scale, optimizer_in_backward=False)).validate()


@pytest.mark.parametrize(
    ("num_processes", "precision", "told"), [(2, "no", "the 2 processes"), (1, "fp16", "use bf16"), (1, "bf16", None)]
)
def test_launches_that_need_all_gradients_are_refused(shards, tmp_path, num_processes, precision, told):
    context = SimpleNamespace(num_processes=num_processes, accelerator=SimpleNamespace(mixed_precision=precision))
    config = tiny_config(shards, tmp_path / "x", scale=IN_BACKWARD)
    check_optimizer_in_backward(replace(config, scale=ScaleConfig()), context)
    if told is None:
        check_optimizer_in_backward(config, context)
        return
    with pytest.raises(InputError, match=told):
        check_optimizer_in_backward(config, context)
