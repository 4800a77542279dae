"""No kernel of a step is given a tensor of 2^31 elements or more: every call of whole steps on fake tensors."""

from dataclasses import replace
from functools import partial
from itertools import product
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from glioma_dist.config import ModelConfig
from glioma_dist.errors import InputError
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.encoders.contract import build_encoder
from glioma_dist.model.unet import UNet
from glioma_dist.scale import planner
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.kernel_limits import (
    InTiles,
    KernelCalls,
    device_pixels,
    largest_pixels_of_kernels,
    run_without_tiles,
)
from glioma_dist.scale.memory_estimator import estimate_unet_step, make_fake
from glioma_dist.scale.planner import LEVELS, Step
from glioma_dist.scale.spatial_group import ImaginarySpatialGroup
from glioma_dist.scale.spatial_layers import split_spatially
from glioma_dist.scale.tile_size import MAX_ELEMENTS, TileSize
from glioma_dist.size import Size

LIMIT = 2**31
COUNTS_IN_64_BITS = {
    *("copy_", "_to_copy", "clone", "zero_", "fill_"),
    *("add_", "sub_", "mul_", "add", "sub", "mul", "div", "neg", "sum"),
}
"""Operations that PyTorch computes by TensorIterator, which splits what lies too far apart for 32 bits (`with_32bit_
indexing`): of them only the number of elements is asked for. All others must also get tensors that lie close."""
SIZES = {
    "68 Mpx": Size(8256, 8256),
    "100 Mpx": Size(10016, 10016),
    "135 Mpx": Size(11648, 11648),
    "270 Mpx": Size(16448, 16448),
    "270 Mpx, flat": Size(270016, 1024),
}
QUICK = TileSize(2**28, MAX_ELEMENTS)
"""Tiles of the largest size that can be asked for: few, and nearest to the limit."""


def reach(tensor: Tensor) -> int:
    """Elements of memory from a tensor's first to its last."""
    return 1 + sum((length - 1) * abs(step) for length, step in zip(tensor.shape, tensor.stride(), strict=True))


class TooLarge(KernelCalls):
    """Notes every call that is given, or gives, a tensor of 2^31 elements or more."""

    def __init__(self) -> None:
        super().__init__(self._check)
        self.calls: set[tuple] = set()

    def _check(self, operation, tensors: list[Tensor]) -> None:
        name = operation._schema.name.split("::")[1]
        for each in tensors:
            lies_apart = name not in COUNTS_IN_64_BITS and each.numel() and reach(each) >= LIMIT - 1
            if each.numel() >= LIMIT - 1 or lies_apart:
                self.calls.add((name, tuple(each.shape), each.stride()))


def take_step(
    level: str,
    size: Size,
    tiles: TileSize = QUICK,
    *,
    norm: str = "batch",
    layout: torch.memory_format = torch.contiguous_format,
    batch_size: int = 1,
    spatial_parallel: int = 1,
    encoder: str = "mit_tiny",
) -> set[tuple]:
    """What is too large in a step in bf16 with the decoder's usual channels."""
    with torch.device("meta"):  # of which nothing is drawn
        model = UNet(ModelConfig(encoder=encoder, norm=norm))
    group = ImaginarySpatialGroup(spatial_parallel, size.height)
    checkpoint_activations(model, level, tiles)
    split_spatially(model, group, tiles)
    strip = group.cut(size.height)
    if layout is torch.channels_last:
        model.to(memory_format=layout)
        model.encoder.memory_format = layout
    with TooLarge() as seen:
        strip_size = Size(size.width, strip.stop - strip.start)
        estimate_unet_step(model, partial(segmentation_loss, "dice"), strip_size, batch_size, bf16=True)
    return seen.calls


LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def sizes_levels_layouts() -> list:
    """All combinations. Quick are, of the sizes but 270 Mpx, half of them: each size with each level in one of the
    layouts, and each size and each level in both."""
    combinations = []
    for (row, size), (column, level), (number, layout) in product(*map(enumerate, (SIZES, LEVELS, LAYOUTS))):
        is_quick = not size.startswith("270") and (row + column + number) % 2
        combinations.append(pytest.param(size, level, layout, marks=() if is_quick else pytest.mark.slow))
    return combinations


@pytest.mark.parametrize(("size", "level", "layout"), sizes_levels_layouts())
def test_no_call_of_a_step_is_too_large(size, level, layout):
    assert not take_step(level, SIZES[size], layout=LAYOUTS[layout])


HOW = {
    "group norm": {"norm": "group"},
    "batch of 4": {"batch_size": 4},
    "2 strips": {"spatial_parallel": 2},
    "3 strips, group norm": {"spatial_parallel": 3, "norm": "group"},
}


QUICK_STRIPS = (("2 strips", "none"), ("3 strips, group norm", "full"))


@pytest.mark.parametrize(
    ("name", "level"),
    [
        pytest.param(name, level, marks=() if (name, level) in QUICK_STRIPS else pytest.mark.slow)
        for name in HOW
        for level in ("none", "full")
    ],
)
def test_norms_batches_and_strips(name, level):
    how = HOW[name]
    side = 8224 if "batch_size" in how else 16448
    side = 23264 if "spatial_parallel" in how else side  # 541 million pixels, 270 or 180 of them a device
    assert not take_step(level, Size(side, side), layout=torch.channels_last, **how)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_four_times_the_pixels_of_level_full(layout):
    """440 million, of MiT-B1, which has the maps of MiT-B3: at the level full they would be too many for a kernel."""
    size = Size(24192, 18176)
    assert not take_step("offload", size, layout=layout, encoder="mit_b1")
    assert take_step("full", size, layout=layout, encoder="mit_b1")


@pytest.mark.slow
def test_the_usual_tiles_of_a_gpu():
    assert not take_step("full", Size(8256, 8256), TileSize(2**24, MAX_ELEMENTS))


@pytest.mark.parametrize(("level", "size"), [("none", "68 Mpx"), ("selective", "68 Mpx"), ("full", "135 Mpx")])
def test_without_the_bound_calls_are_too_large(level, size):
    """As before tiles knew it: the test would see it."""
    assert take_step(level, SIZES[size], TileSize(2**28, None))


def too_large_in_encoder(name: str, in_tiles: InTiles, pixels: float) -> bool:
    """Whether a call is too large in a real pass, forwards and back, over an image of so many pixels."""
    side = int(pixels**0.5) // 32 * 32
    with torch.device("meta"):
        encoder = build_encoder(name)
    make_fake(encoder, mode := FakeTensorMode())
    run_without_tiles(encoder, in_tiles)
    with mode, TooLarge() as seen:
        maps = encoder.eval()(torch.zeros(1, 3, side, side))  # in evaluation mode one image is enough for every norm
        sum(each.sum() for each in maps).backward()
    return bool(seen.calls)


ANY_LEVEL = ("resnet50", "efficientnet_b5", "vgg19", "mobilenet_v2")
"""Encoders that have no layers to take in tiles."""


@pytest.mark.parametrize("name", ANY_LEVEL)
def test_an_encoder_without_layers_in_tiles_has_one_bound(name):
    with torch.device("meta"):
        assert not build_encoder(name).tileable_layers()


@pytest.mark.parametrize(
    ("name", "in_tiles"),
    [
        *(("mit_b0", in_tiles) for in_tiles in ("no", "tileable layers")),
        *(("mit_b1", in_tiles) for in_tiles in get_args(InTiles)),
        *((name, "no") for name in ANY_LEVEL),
        *(pytest.param("mit_b3", in_tiles, marks=pytest.mark.slow) for in_tiles in get_args(InTiles)),
    ],
)
def test_the_bound_of_an_encoder_is_where_a_call_becomes_too_large(name, in_tiles):
    most = largest_pixels_of_kernels(name, in_tiles)
    assert not too_large_in_encoder(name, in_tiles, most)
    assert too_large_in_encoder(name, in_tiles, 1.03 * most) or most == MAX_ELEMENTS // 3  # then it is the image itself


STEP = Step(
    ModelConfig(encoder="mit_b3"),
    Size(16448, 16448),
    batch_size=1,
    bf16=True,
    tile_size=TileSize(2**24, MAX_ELEMENTS),
    loss=partial(segmentation_loss, "dice"),
)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (
            STEP,
            "1 image of 16448x16448: .* 270.5 million .* 134.2 million at.*: give --scale.activation-check.* full$",
        ),
        (replace(STEP, batch_size=2, model=ModelConfig(encoder="resnet50")), "at most --data.size 8160x8160$"),
        (replace(STEP, size=Size(8256, 8256), batch_size=7), "429.5 million at.*: give --scale.activation-.* offload$"),
        (replace(STEP, size=Size(8256, 8256), batch_size=8), "give --batch-size 6$"),
        (replace(STEP, size=Size(8256, 8256), batch_size=8, num_micro_batches=4), "give --batch-size 24$"),
        (replace(STEP, model=ModelConfig(encoder="vgg19")), "give at most --data.size 5792x5792$"),
    ],
    ids=["level", "size of several", "offload", "batch", "micro-batches", "size"],
)
def test_what_no_kernel_takes_is_refused_with_what_fits(step, expected):
    level = "full" if step.batch_size > 2 else "none"
    with pytest.raises(InputError, match=expected) as caught:
        planner.resolve(level, step, 0)
    assert len(str(caught.value)) <= 500
    assert "\n" not in str(caught.value)


def test_what_the_refusal_advises_is_taken():
    assert planner.resolve("full", STEP, 0) == "full"
    batch = replace(STEP, size=Size(8256, 8256), batch_size=6)
    assert planner.resolve("full", batch, 0) == "full"
    vgg = replace(STEP, model=ModelConfig(encoder="vgg19"), size=Size(5792, 5792))
    assert planner.resolve("none", vgg, 0) == "none"
    two = replace(STEP, batch_size=2, model=ModelConfig(encoder="resnet50"), size=Size(8160, 8160))
    assert planner.resolve("none", two, 0) == "none"
    assert planner.resolve("none", replace(STEP, tile_size=TileSize()), 0) == "none"  # a CPU has no such bound


def test_strips_and_padding_are_what_a_device_gets():
    step = replace(STEP, size=Size(33, 100), spatial_parallel=2, batch_size=3)
    assert device_pixels(step) == 3 * 64 * 64  # 33 is padded to 64; of 100 rows, 4 units, each has two


def test_the_planner_offers_no_batch_and_no_size_that_no_kernel_takes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    step = replace(STEP, size=Size(1472, 1120), model=ModelConfig(encoder="vgg19"))
    endless = 2**50
    size = planner.largest_size(step, "full", endless)
    assert 32e6 < size.width * size.height <= MAX_ELEMENTS / 64
    assert planner.largest_batch(step, "full", endless) == int(MAX_ELEMENTS / 64 / (1472 * 1120))
