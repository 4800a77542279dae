"""Large images at the level offload: the results of the plain model, and what a step keeps."""

import copy
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from encoder_helpers import narrow_everything, slow_if_deeper, smooth
from helpers import TINY_CHANNELS
from test_activation_checkpointing import build, check_equal, draw, take_steps
from torch import Tensor, nn

from glioma_dist.config import ModelConfig
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import UNet, build_model
from glioma_dist.registry import encoders
from glioma_dist.scale import (
    large_images,
    offload,
    planner,
    step_count,
    tiled_block,
    tiled_chain,
    tiled_statistics,
    tiles,
)
from glioma_dist.scale.activation_checkpointing import NUM_SPARING_BLOCKS, checkpoint_activations
from glioma_dist.scale.checkpoint_plan import NUM_DECODER_UNITS, CheckpointPlan, DecoderPlan
from glioma_dist.scale.device_memory import GIB
from glioma_dist.scale.large_images import LargeImages
from glioma_dist.scale.step import LARGE_PIXELS, Step
from glioma_dist.scale.tile_size import TileSize, largest_gpu_tile
from glioma_dist.size import Size


@pytest.fixture
def all_are_large(monkeypatch) -> None:
    """Every image is large, and goes in tiles of a few rows."""
    monkeypatch.setattr(large_images, "LARGE_PIXELS", 1)
    monkeypatch.setattr(tiles, "TILE_NUMBERS", 5000)
    monkeypatch.setattr(tiled_statistics, "CHUNK_NUMBERS", 700)
    monkeypatch.setattr(tiled_chain, "HALOS_PER_TILE", 1)


def large(plain: UNet) -> UNet:
    model = copy.deepcopy(plain)
    checkpoint_activations(model, "offload")
    return model


@pytest.mark.equality(
    flag="activation checkpointing offload, large images", encoder="mit_tiny", processes=1, kind="1e-9"
)
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (50, 33), (32, 32)])
def test_nothing_changes_in_fp64(all_are_large, norm, height, width):
    plain = build(norm=norm).double()
    found, expected = (take_steps(each, height, width, torch.optim.Adam) for each in (large(plain), plain))
    check_equal(found, expected, 1e-9)


def test_nothing_changes_in_fp32(all_are_large, monkeypatch):
    smooth(monkeypatch)
    plain = build("mit_b0")
    found, expected = (take_steps(each, 64, 96, torch.optim.SGD) for each in (large(plain), plain))
    check_equal(found, expected, 1e-5)


def gradients(model: UNet, images: Tensor, masks: Tensor, seeds: Tensor) -> dict[str, Tensor]:
    logits = model(images, seeds)
    segmentation_loss("dice+bce", logits, masks).sum().backward()
    found = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {"logits": logits.detach(), **found, **{name: each.clone() for name, each in model.named_buffers()}}


@pytest.mark.parametrize("name", map(slow_if_deeper, encoders.names()))
def test_every_encoder(all_are_large, monkeypatch, name):
    """Whatever maps an encoder hands to the decoder."""
    narrow_everything(monkeypatch)
    plain = build_model(ModelConfig(name, decoder_channels=TINY_CHANNELS), 0)[0].double()
    given = draw(2, 64, 96, torch.float64)
    check_equal(gradients(large(plain), *given), gradients(plain, *given), 1e-9)


@pytest.mark.parametrize("part", ["encoder", "decoder.blocks.4.norm1", "decoder.blocks.4.conv2", "decoder.blocks.3"])
def test_what_is_frozen(all_are_large, part):
    """Also a norm in evaluation mode, whose statistics do not depend on the map."""
    plain = build().double()
    plain.get_submodule(part).requires_grad_(False).eval()
    given = draw(2, 64, 96, torch.float64)
    check_equal(gradients(large(plain), *given), gradients(plain, *given), 1e-9)


@pytest.mark.parametrize("name", ["decoder.blocks.4", "decoder.blocks.2"])
@pytest.mark.parametrize("is_training", [True, False])
def test_a_norm_changes_its_mode_before_the_backward_pass(all_are_large, name, is_training):
    """What counts is the mode of the forward pass."""
    plain, found = build().double().eval(), []
    images, masks, seeds = draw(2, 64, 96, torch.float64)
    for model in (large(plain), plain):
        model.get_submodule(name).train(is_training)
        losses = segmentation_loss("dice+bce", model(images, seeds), masks)
        model.get_submodule(name).train(not is_training)
        losses.sum().backward()
        found.append({key: each.grad for key, each in model.named_parameters() if not key.endswith("k_proj.bias")})
    check_equal(*found, 1e-9)


def test_gradients_of_a_layer_s_output_can_be_asked_for(all_are_large):
    """No layer writes over the gradient of its output: a caller or a hook may hold it."""
    plain, found = build().double(), []
    images, masks, seeds = draw(2, 64, 96, torch.float64)
    for model in (large(plain), plain):
        outputs: list[Tensor] = []
        for layer in model.encoder.blocks():
            layer.register_forward_hook(lambda _, __, output, outputs=outputs: outputs.append(output))
        losses = segmentation_loss("dice+bce", model(images, seeds), masks)
        asked = [*outputs, next(model.encoder.parameters())]
        found.append(dict(enumerate(torch.autograd.grad(losses.sum(), asked))))
    check_equal(*found, 1e-9)


def test_how_often_a_block_is_computed(monkeypatch):
    """In one tile: three times in the forward pass, and as often in the backward pass."""
    monkeypatch.setattr(large_images, "LARGE_PIXELS", 1)
    numbers: Counter[nn.Module] = Counter()
    convolve = tiled_block._convolve

    def counted(convolution: nn.Conv2d, part: Tensor) -> Tensor:
        numbers[convolution] += 1
        return convolve(convolution, part)

    monkeypatch.setattr(tiled_block, "_convolve", counted)
    model = large(build())
    gradients(model, *draw(1, 64, 64, torch.float32))
    for block in model.decoder.blocks[-NUM_SPARING_BLOCKS:]:
        assert (numbers[block.conv1], numbers[block.conv2]) == (6, 5)
    assert numbers[model.decoder.head] == 4


def test_another_level_takes_all_back(all_are_large):
    for level in ("none", "full"):
        model = large(build())
        checkpoint_activations(model, level)
        images, _, _ = draw(1, 64, 64, torch.float32)
        assert model.encoder.large_images is None
        assert all(layer.run_tiles is None for layer in model.encoder.sparing_layers())
        assert not any(block.keeps_inputs_only(images) for block in model.decoder.blocks)


def test_a_block_that_a_plan_computes_as_a_whole_is_computed_again(all_are_large):
    """And not left alone as one that keeps its inputs only: it would keep everything."""
    units = (*[DecoderPlan("input")] * (NUM_DECODER_UNITS - 1), DecoderPlan("input", "tiles"))
    model = build()
    checkpoint_activations(model, CheckpointPlan(("input",), ("tiles",), units, offloads=True))
    images, _, _ = draw(1, 64, 64, torch.float32)
    assert [block.keeps_inputs_only(images) for block in model.decoder.blocks] == [False] * 4 + [True]


def test_evaluation(all_are_large):
    plain = build().double().eval()
    images, _, _ = draw(2, 64, 96, torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(large(plain)(images), plain(images), rtol=1e-9, atol=1e-9)


def test_gradients_of_keys_are_summed_in_fp32(all_are_large):
    """In bf16 a sum over many tiles would lose its last digits: it may not be farther from fp64 than without tiles."""
    exact = build().double()
    plain = copy.deepcopy(exact).float()
    given = draw(1, 256, 96, torch.float64)
    expected = gradients(exact, *given)
    errors = []
    for model in (plain, large(plain)):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(model, given[0].float(), *given[1:])
        name = "encoder.segformer.stages.0.blocks.0.attention.v_proj.weight"
        errors.append(((found[name] - expected[name]).norm() / expected[name].norm()).item())
    assert errors[1] < 1.2 * errors[0]
    assert errors[0] < 0.3


def test_a_backward_pass_within_autocast_gives_all_gradients(all_are_large):
    """Autocast would hand on weights that it converted where nothing is watched."""
    plain = build("mit_b0")
    given = draw(1, 64, 96, torch.float32)
    found = []
    for model in (plain, large(plain)):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(gradients(model, *given))
    assert found[0].keys() == found[1].keys()


@pytest.mark.parametrize("strips", [1, 2, 3])
def test_all_parts_and_processes_agree_which_images_are_large(strips):
    """By the padded image's largest strip, whatever the batch and the part's stride."""
    step = Step(ModelConfig("mit_tiny"), Size(8190, 8191 * strips), 1, True, tile_size=largest_gpu_tile(), loss=None)
    for size in (step.size, Size(8160, 8191 * strips)):
        group = step_count.ImaginarySpatialGroup(strips, size.height)
        decider = LargeImages(group)
        strip = group.cut(-(-size.height // 32) * 32)
        rows, width = strip.stop - strip.start, -(-size.width // 32) * 32
        for batch, stride in ((1, 1), (3, 2), (1, 4), (2, 32)):
            features = torch.empty(batch, 1, rows // stride, width // stride, device="meta")
            expected = replace(step, size=size, spatial_parallel=strips).has_large_images
            assert decider.have(features, stride) == expected == (size == step.size)


def large_step(width: int, height: int, encoder: str) -> Step:
    loss = partial(segmentation_loss, "dice")
    return Step(ModelConfig(encoder), Size(width, height), 1, True, tile_size=largest_gpu_tile(), loss=loss)


def test_a_large_image_takes_half_the_memory_a_pixel(monkeypatch):
    step = replace(large_step(1024, 1024, "mit_b0"), tile_size=TileSize(2**18))
    monkeypatch.setattr(offload, "CPU_ELEMENTS", 2**18)
    counts = [step_count.count_at_size(step, "offload", as_large) for as_large in (False, True)]
    bytes_a_pixel = [(each.peak - each.parameters - each.optimizer - each.gradients) / 2**20 for each in counts]
    assert bytes_a_pixel[1] < 0.56 * bytes_a_pixel[0]


@pytest.mark.slow
def test_four_times_the_pixels_of_level_full_on_24_gib():
    """12,096 x 9,088 is the largest image of its shape at the level full: MiT-B3 is counted to take 22.01 GiB. With 5 %
    and 0.75 GiB left free (`device_memory.usable`), 22.05 are there."""
    step = large_step(24192, 18176, "mit_b3")
    assert step.size.width * step.size.height == 4 * 12096 * 9088 > LARGE_PIXELS
    assert planner.kernels_fit(step, "offload")
    assert not planner.kernels_fit(step, "full")
    assert step_count.count_at_size(step, "offload").peak < 0.95 * 24 * GIB - 0.75 * GIB
