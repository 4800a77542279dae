"""Of tiles that do the same one is computed where a step is counted, and every figure is that of all tiles."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from encoder_helpers import narrow_everything
from helpers import TINY_CHANNELS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from glioma_dist.config import ModelConfig
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.encoders.contract import Encoder
from glioma_dist.model.unet import UNet
from glioma_dist.model.upsampling import upsample
from glioma_dist.registry import encoders
from glioma_dist.scale import step_count
from glioma_dist.scale.counted_tiles import CountedTiles
from glioma_dist.scale.observed_step import observe
from glioma_dist.scale.spatial_group import ImaginarySpatialGroup
from glioma_dist.scale.step import Step
from glioma_dist.scale.step_count import model_of_one_device
from glioma_dist.scale.step_units import StepUnits, Unit
from glioma_dist.scale.storage_ledger import StorageLedger
from glioma_dist.scale.tile_rows import Tile
from glioma_dist.scale.tile_size import MAX_ELEMENTS, TileSize
from glioma_dist.size import Size

STEP = Step(
    ModelConfig(encoder="mit_tiny", decoder_channels=TINY_CHANNELS),
    Size(64, 64),
    2,
    bf16=True,
    tile_size=TileSize(2**13, MAX_ELEMENTS),
    loss=partial(segmentation_loss, "dice"),
)
"""Most maps go in many tiles."""


@pytest.fixture(autouse=True)
def narrow_encoders(monkeypatch):
    narrow_everything(monkeypatch)


def with_some_and_all(monkeypatch, count: Callable[[], Any]) -> tuple[Any, Any]:
    """What is counted with some tiles, and with all of them."""
    some: list[Tile] = []
    every: list[Tile] = []
    compute_some = CountedTiles.computed

    def computed(size: CountedTiles, tiles: Sequence[Tile]) -> Iterator[Tile]:
        every.extend(tiles)
        for tile in compute_some(size, tiles):
            some.append(tile)
            yield tile

    monkeypatch.setattr(CountedTiles, "computed", computed)
    with_some = count()
    monkeypatch.setattr(CountedTiles, "computed", lambda size, tiles: tiles)
    with_all = count()
    assert len(some) < len(every)
    return with_some, with_all


class MapsAlone(nn.Module):
    """In the place of an encoder that computes nothing in tiles: its maps, of no contents."""

    is_frozen = False

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.strides, self.channels = encoder.strides, encoder.channels
        self.scale = nn.Parameter(torch.empty(1, device="meta"))

    def forward(self, images: Tensor, _seeds: Tensor | None) -> list[Tensor]:
        num_images, _, height, width = images.shape
        return [
            self.scale * torch.zeros(num_images, channels, height // stride, width // stride)
            for channels, stride in zip(self.channels, self.strides, strict=True)
        ]


@pytest.mark.parametrize("name", encoders.names())
def test_a_step_takes_as_much_memory_with_all_its_tiles(monkeypatch, name):
    def model_of(step: Step, level: str) -> tuple[UNet, Size, ImaginarySpatialGroup]:
        model, *others = model_of_one_device(step, level)
        if not model.encoder.tileable_layers():
            model.encoder = MapsAlone(model.encoder)
        return model, *others

    monkeypatch.setattr(step_count, "model_of_one_device", model_of)
    step = replace(STEP, model=replace(STEP.model, encoder=name))
    with_some, with_all = with_some_and_all(monkeypatch, lambda: step_count.count_at_size(step, "full"))
    assert with_some == with_all


@pytest.mark.parametrize("level", ["offload", "full"])
@pytest.mark.parametrize("num_strips", [1, 3])
def test_levels_and_strips(monkeypatch, level, num_strips):
    step = replace(STEP, spatial_parallel=num_strips, size=Size(64, 96), optimizer_in_backward=level == "offload")
    with_some, with_all = with_some_and_all(monkeypatch, lambda: step_count.count_at_size(step, level))
    assert with_some == with_all


@pytest.mark.parametrize(
    ("encoder", "size", "elements", "rel"),
    [
        ("mit_tiny", Size(64, 96), 2**13, 0.4),  # tiles of two rows, and two of neighbours
        ("mit_tiny", Size(128, 256), 2**16, 0.1),
        ("resnet50", Size(128, 256), 2**16, 0.25),
    ],
)
def test_units_take_as_much_memory_and_nearly_the_work_of_all_their_tiles(monkeypatch, encoder, size, elements, rel):
    model = replace(STEP.model, encoder=encoder)
    step = replace(STEP, model=model, size=size, tile_size=TileSize(elements, MAX_ELEMENTS))
    with_some, with_all = with_some_and_all(monkeypatch, lambda: observe(step))
    assert all_but_work(with_some) == all_but_work(with_all)
    for some, every in zip(with_some.units, with_all.units, strict=True):
        for one, other in zip(some.options, every.options, strict=True):
            assert (one.seconds, one.flops) == pytest.approx((other.seconds, other.flops), rel=rel, abs=1e-9)


def all_but_work(units: StepUnits) -> StepUnits:
    def without(unit: Unit) -> Unit:
        return replace(unit, options=tuple(replace(each, seconds=0, flops=0) for each in unit.options))

    return replace(
        units, segments=tuple(map(without, units.segments)), decoder=tuple(map(without, units.decoder)), seconds=0
    )


@pytest.mark.parametrize(
    "features",
    [
        torch.zeros(2, 3, 4, 5),
        torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.zeros(2, 3, 8, 5)[:, :, 2:5],
        torch.zeros(1, 3, 8, 5).to(memory_format=torch.channels_last)[:, :, 2:5],
        torch.zeros(2, 1, 4, 5),
        torch.zeros(2, 3, 1, 1),
        torch.zeros(1, 4, 1, 5, dtype=torch.bfloat16).to(memory_format=torch.channels_last),
    ],
    ids=lambda each: f"{tuple(each.shape)} {each.stride()}",
)
def test_a_counted_upsampling_is_laid_out_as_pytorch_says(features):
    def upsampled(mode: AbstractContextManager) -> Tensor:
        with FakeTensorMode(), mode:
            made = torch.empty_strided(features.shape, features.stride(), dtype=features.dtype)
            return upsample(made)

    counted, expected = upsampled(StorageLedger()), upsampled(nullcontext())
    assert (counted.shape, counted.stride(), counted.dtype) == (expected.shape, expected.stride(), expected.dtype)
