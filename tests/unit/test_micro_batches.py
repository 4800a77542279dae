"""Gradient accumulation: several micro-batches equal the whole batch, cost its memory no more, or are refused."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from encoder_helpers import DEEPER, narrow_everything
from fp64 import train_in_fp64
from helpers import TINY_CHANNELS, rows, tiny_config
from safetensors.torch import load_file
from torch import Tensor, nn

from glioma_dist.config import ModelConfig, ScaleConfig
from glioma_dist.config.plan import PlanConfig
from glioma_dist.errors import InputError
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import UNet
from glioma_dist.registry import encoders
from glioma_dist.scale import planner
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.gradients import compute_gradients
from glioma_dist.scale.memory_estimator import estimate_unet_step
from glioma_dist.scale.micro_batches import batch_norms, check_micro_batches, images_at_once
from glioma_dist.scale.planner import Step
from glioma_dist.scale.step_count import build_without_weights
from glioma_dist.scale.tile_size import CPU_TILE
from glioma_dist.size import Size
from glioma_dist.training import loop

NUM_IMAGES, SIDE = 5, 64
NARROW = [*(name for name in encoders.names() if name not in DEEPER), "timm/convnext_atto"]
FP64 = 1e-9
LOSS = partial(segmentation_loss, "dice+bce")


def build(encoder: str, level: str = "none") -> UNet:
    torch.manual_seed(0)
    model = UNet(ModelConfig(encoder=encoder, decoder_channels=TINY_CHANNELS, norm="group"))
    checkpoint_activations(model, level)
    return model


def take_step(model: nn.Module, num_micro_batches: int, kind: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Logits, losses and gradients of one batch."""
    model.to(kind)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (NUM_IMAGES, 1, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    model.normalise = lambda each: UNet.normalise(model, each).to(kind)
    given = (images, (images[:, 0] > 150).to(torch.uint8), LOSS, nullcontext)
    seeds = torch.arange(NUM_IMAGES) + 7
    logits, losses = compute_gradients(model, *given, seeds=seeds, factor=0.2, num_micro_batches=num_micro_batches)
    found = {"logits": logits.detach(), "losses": losses.detach()}
    found |= {name: each.grad for name, each in model.named_parameters()}
    model.zero_grad()
    return found


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """In shares of each tensor's largest number."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - each).abs().max() / each.abs().max().clamp(min=1e-3)) for name, each in expected.items()
    )


@pytest.mark.equality(flag="micro-batches", encoder="{name}", processes=1, kind="1e-9")
@pytest.mark.parametrize("name", NARROW)
def test_micro_batches_equal_the_batch_or_are_refused(name, monkeypatch, record_property):
    """Every registered encoder: without batch norm, five images in two and in four uneven parts equal the batch, with
    stochastic depth; with it, they are refused by the name of the layer."""
    narrow_everything(monkeypatch)
    model = build(name)
    config = ModelConfig(encoder=name, norm="group")
    if any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in model.modules()):
        with pytest.raises(
            InputError, match=rf"\(encoder\..*--model.norm group, and .*frozen.*such as mit_b0; .* {name} has"
        ):
            check_micro_batches(model, config, 2, NUM_IMAGES)
        record_property("equality kind", "refused")
        check_micro_batches(model.eval(), config, 2, NUM_IMAGES)  # of frozen statistics images do not depend
        return
    check_micro_batches(model, config, NUM_IMAGES, NUM_IMAGES)
    whole = take_step(model, 1)
    assert largest_difference(take_step(model, 2), whole) <= FP64
    assert largest_difference(take_step(model, 4), whole) <= FP64


@pytest.mark.parametrize("level", ["selective", "full"])
def test_micro_batches_equal_the_batch_with_activation_checkpointing(level):
    whole = take_step(build("mit_tiny"), 1)
    assert largest_difference(take_step(build("mit_tiny", level), 3), whole) <= FP64


def test_the_encoders_with_and_without_batch_norm_are_both_compared():
    without = [name for name in NARROW if not batch_norms(build_without_weights(ModelConfig(name, norm="group")))]
    assert {"mit_tiny", "mit_b0", "vgg19"} <= set(without) < set(NARROW)


def test_in_fp32_the_first_loss_is_equal():
    one, three = (take_step(build("mit_tiny"), number, torch.float32)["losses"] for number in (1, 3))
    torch.testing.assert_close(three, one, rtol=1e-6, atol=0)


def test_without_the_whole_batch_batch_norm_gives_another_result():
    """The counter-check of what is refused."""
    torch.manual_seed(0)
    model = UNet(ModelConfig(encoder="mit_tiny", decoder_channels=TINY_CHANNELS))
    assert largest_difference(take_step(model, 2), take_step(model, 1)) > 1e-3


def test_gradients_are_sent_after_the_last_micro_batch_only():
    inside, seen = [False], []

    @contextmanager
    def no_sync():
        inside[0] = True
        yield
        inside[0] = False

    def backward(loss: Tensor) -> None:
        seen.append(inside[0])
        loss.backward()

    images = torch.zeros(NUM_IMAGES, 1, SIDE, SIDE, dtype=torch.uint8)
    how = {"num_micro_batches": 3, "no_sync": no_sync, "backward": backward}
    compute_gradients(build("mit_tiny"), images, images[:, 0], LOSS, nullcontext, seeds=torch.arange(5), **how)
    assert seen == [True, True, False]


@pytest.mark.parametrize(
    ("num_micro_batches", "norm", "told"),
    [
        (0, "group", "--scale.gradient-accumulation 0: give 1 to --batch-size, 4"),
        (5, "group", "--scale.gradient-accumulation 5: give 1 to --batch-size, 4"),
        (2, "batch", "batch norm takes its statistics over the whole batch.*give --model.norm group"),
    ],
)
def test_settings_that_are_not_possible_are_refused(shards, tmp_path, num_micro_batches, norm, told):
    scale = ScaleConfig(gradient_accumulation=num_micro_batches)
    with pytest.raises(InputError, match=told):
        tiny_config(shards, tmp_path, scale=scale, norm=norm).validate()


def test_more_micro_batches_than_a_process_has_images_are_refused():
    config = ModelConfig("mit_tiny", norm="group")
    with pytest.raises(InputError, match=r"a process has 2 images of a batch; give --scale.gradient-accumulation 2"):
        check_micro_batches(UNet(config), config, 4, 2)


def test_a_run_equals_that_of_the_whole_batch_and_resumes_with_another_number(shards, tmp_path, runtime, monkeypatch):
    """In fp64, six steps with augmentation, a validation and the moving average of the weights."""
    train_in_fp64(monkeypatch)
    config = tiny_config(shards, tmp_path / "whole", norm="group", ema_decay=0.9, loss="dice+bce")
    loop.train(config, runtime)
    parts = replace(config, out=tmp_path / "parts")
    for number, steps in ((3, 2), (1, 3), (4, 6)):
        loop.train(replace(parts, max_steps=steps, scale=ScaleConfig(gradient_accumulation=number)), runtime)
    ours, theirs = ([row for row in rows(each.out) if "split" not in row] for each in (parts, config))
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=FP64)
    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        found, expected = (load_file(each.out / "last" / file) for each in (parts, config))
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=FP64, atol=FP64)


STEP = Step(
    ModelConfig("mit_tiny", decoder_channels=TINY_CHANNELS, norm="group"),
    Size(256, 192),
    6,
    False,
    tile_size=CPU_TILE,
    loss=partial(segmentation_loss, "dice"),
)


@pytest.mark.parametrize("number", [2, 4, 6])
@pytest.mark.parametrize("level", ["none", "full"])
def test_the_planner_foretells_what_is_counted(level, number):
    model = UNet(STEP.model)
    checkpoint_activations(model, level)
    counted = estimate_unet_step(model, STEP.loss, STEP.size, STEP.batch_size, num_micro_batches=number)
    at_once = images_at_once(STEP.batch_size, number)
    foretold = planner.count(replace(STEP, batch_size=at_once, num_micro_batches=number), level)
    assert foretold.peak == pytest.approx(counted.peak, rel=0.05)
    whole = planner.count(STEP, level)
    assert counted.kept < whole.kept * (at_once + 1) / STEP.batch_size
    assert foretold.gradients == foretold.optimizer // 2


def test_the_planner_counts_the_logits_of_all_classes_and_targets():
    config = replace(STEP.model, classes=tuple("abcdefgh"), targets=("mask", "boundary"))
    step = replace(STEP, model=config, batch_size=1, num_micro_batches=3, loss=lambda logits, _: logits.mean((1, 2, 3)))
    model = UNet(config)
    checkpoint_activations(model, "full")
    counted = estimate_unet_step(model, step.loss, step.size, 3, num_micro_batches=3)
    assert planner.count(step, "full").peak == pytest.approx(counted.peak, rel=0.05)


def test_the_planner_counts_the_moving_average():
    without, with_it = (planner.count(replace(STEP, has_average=has), "none") for has in (False, True))
    model = UNet(STEP.model)
    held = sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    assert with_it.peak - without.peak == held


def test_full_memory_is_answered_by_a_number_of_micro_batches_that_fits():
    two = replace(STEP, batch_size=2, num_micro_batches=3)  # after halves of 3
    memory = planner.count(two, "full").peak * 1.02
    told = planner.advice(STEP, memory, "full")
    assert told.endswith(
        "give --scale.activation-checkpointing full and --scale.gradient-accumulation 3, which changes no result"
    )
    assert planner.fits(two, "full", memory)
    of_batch_norm = replace(STEP, model=replace(STEP.model, norm="batch"))
    assert planner.least_micro_batches(of_batch_norm, memory) is None


def test_auto_takes_the_level_that_a_micro_batch_fits():
    one = replace(STEP, batch_size=1, num_micro_batches=6)
    memory = planner.count(one, "none").peak
    assert planner.resolve("auto", one, memory) == "none"
    with pytest.raises(InputError, match=r"--scale\.gradient-accumulation"):
        planner.resolve("auto", replace(STEP, batch_size=12), memory)


def test_the_plan_says_what_fits_in_micro_batches():
    from glioma_dist.benchmark.memory_plan import choice
    from glioma_dist.benchmark.plan_levels import levels_of

    size = Size(256, 192)
    asked = PlanConfig((size,), STEP.model, batch_size=8, gpu_memory="8GiB", gradient_accumulation=4, ema_decay=0.99)
    asked.validate()
    asked_at_once = replace(asked, gradient_accumulation=1)
    parts, whole = (next(levels_of(plan, size, None)) for plan in (asked, asked_at_once))
    assert parts["peak_gib"] < whole["peak_gib"] / 2
    fitting = parts | {"fits": True, "bf16": True}
    assert "--scale.gradient-accumulation 4 --ema-decay 0.99" in choice(asked, size, [fitting])["command"]
    with pytest.raises(InputError, match="has batch norm"):
        next(levels_of(replace(asked, model=ModelConfig("resnet50", norm="group")), size, None))
