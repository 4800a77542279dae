"""Every encoder: two processes with unequal shares of a batch equal one plain process, in fp64, to 1e-9.

Outputs, gradients and buffers, with DDP at every level of activation checkpointing and with FSDP2. Each process
compares with the plain network that it computes itself. Most encoders are narrow, with every kind of layer that they
have; the slow test takes them as they are.
"""

import gc
from functools import cache

import pytest
import torch
from encoder_helpers import DEEPER, narrow_everything
from engines import fsdp2
from helpers import TINY_CHANNELS, run
from torch import Tensor, nn

from glioma_dist.config import ModelConfig
from glioma_dist.registry import encoders
from glioma_dist.scale.tile_size import TileSize

SHARES = (1, 2)
"""Images of each process."""
SIDE = 64
TOLERANCE = 1e-9
LEVELS = ("none", "selective", "full", "offload")
LARGE = "offload, large images"
"""The level at which every image counts as large, and maps go in small tiles."""
TILE = TileSize(5000)
ENGINES = ("DDP", "FSDP2")
TOGETHER = 4
NARROW = [name for name in encoders.names() if name not in DEEPER]
FAR = 1e-3
"""Below which a tensor's largest number is taken for this, where differences are measured by it."""


def make_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Images (3, 3, SIDE, SIDE) of different brightness and contrast, masks, seeds."""
    generator = torch.Generator().manual_seed(1)
    size = sum(SHARES)
    images = torch.randn(size, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    images = images * torch.tensor([0.5, 1.0, 2.0]).view(-1, 1, 1, 1) + torch.tensor([1.0, -1.0, 0.0]).view(-1, 1, 1, 1)
    masks = (torch.rand(size, SIDE, SIDE, generator=generator) > 0.7).to(torch.uint8)
    return images, masks, torch.arange(size) + 3


def take_step(model: nn.Module, own: slice, num_processes: int) -> Tensor:
    """Forward and backward as `loop.train_step` does them. Returns the logits of the images `own`."""
    from glioma_dist.losses import segmentation_loss

    images, masks, seeds = make_batch()
    logits = model(images[own], seeds[own])
    losses = segmentation_loss("dice+bce", logits, masks[own])
    (losses.sum() * (num_processes / sum(SHARES))).backward()
    return logits.detach()


def found_in(model: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    """Logits, gradients and buffers, whole; clears the gradients."""
    from torch.distributed.tensor import DTensor

    found = {"logits": logits}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        found[f"gradient of {name}"] = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    found |= {f"buffer {name}": buffer.clone() for name, buffer in model.named_buffers()}
    model.zero_grad()
    return found


def largest_difference(found: dict[str, Tensor], plain: dict[str, Tensor], own: slice) -> tuple[float, str]:
    """In shares of each tensor's largest number, and where."""
    assert found.keys() == plain.keys()
    differences = {}
    for name, tensor in plain.items():
        expected = tensor[own] if name == "logits" else tensor
        scale = expected.abs().max().clamp(min=FAR) if expected.is_floating_point() else 1
        differences[name] = float((found[name] - expected).abs().max() / scale)
    worst = max(differences, key=differences.get)
    return differences[worst], worst


def compare(names: tuple[str, ...], narrow: bool) -> dict[str, dict[str, tuple[float, str]]]:
    """Encoder -> variant -> `largest_difference`."""
    from glioma_dist.distributed.context import DistributedContext

    here = DistributedContext.start()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glioma_dist.scale.offload.MIN_BYTES", 1)
        if narrow:
            narrow_everything(patch)
        return {name: compare_encoder(name, here, variants_of(name, narrow)) for name in names}


def variants_of(name: str, narrow: bool) -> tuple[tuple[str, str], ...]:
    """Engines and levels to compare. Without attention selective keeps of an encoder what full keeps, and of the
    decoder what none does: narrow encoders are not compared at it. Under FSDP2 every unit is gathered at the level full
    as it is at none, and once more: of the narrow ones without attention one is compared at none as well. So it is at
    offload, which has the bits of full with every encoder (tests/unit/test_offload.py)."""
    if name.startswith("mit_") or not narrow:
        levels = (*LEVELS, LARGE) if narrow else LEVELS
        return tuple((engine, level) for level in levels for engine in ENGINES)
    return (
        ("DDP", "none"),
        *(
            (("FSDP2", "none"), *((engine, level) for level in ("offload", LARGE) for engine in ENGINES))
            if name == "resnet50"
            else ()
        ),
        ("DDP", "full"),
        ("FSDP2", "full"),
    )


def compare_encoder(name: str, here, variants: tuple[tuple[str, str], ...]) -> dict:
    """Engine and level -> `largest_difference`; and "sharded": `look_at_shards`."""
    from glioma_dist.model.unet import UNet
    from glioma_dist.scale.batch_norm import synchronise_batch_norm

    def build() -> nn.Module:
        torch.manual_seed(0)
        return UNet(ModelConfig(encoder=name, decoder_channels=TINY_CHANNELS)).double()

    model = build()
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    plain = found_in(model, take_step(model, slice(None), 1))
    own = slice(sum(SHARES[: here.rank]), sum(SHARES[: here.rank + 1]))
    synchronise_batch_norm(model, here.device)
    found = {}
    for engine, level in variants:
        if engine == "DDP":
            checkpoint(model, level)
            model.load_state_dict(buffers, strict=False)
            parallel = here.accelerator.prepare_model(model)
            logits = take_step(parallel, own, 2)
            found[f"DDP, {level}"] = largest_difference(found_in(model, logits), plain, own)
            del parallel
            here.accelerator._models.clear()
            gc.collect()  # or its hooks on the parameters would stay
        else:
            sharded = build()
            synchronise_batch_norm(sharded, here.device)
            checkpoint(sharded, level)
            shard(sharded, here)
            found["sharded"] = look_at_shards(sharded)
            logits = take_step(sharded, own, 2)
            found[f"FSDP2, {level}"] = largest_difference(found_in(sharded, logits), plain, own)
    return found


def checkpoint(model: nn.Module, level: str) -> None:
    """Set one of `LEVELS`, or `LARGE`."""
    from glioma_dist.scale.activation_checkpointing import checkpoint_activations

    if level != LARGE:
        checkpoint_activations(model, level)
        return
    checkpoint_activations(model, "offload", TILE)
    model.encoder.large_images.pixels = 1


def shard(model: nn.Module, here) -> None:
    """FSDP2 as training sets it up, in place."""
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    from glioma_dist.scale.fsdp import choose_shards

    with fsdp2(here):
        choose_shards(model, here)
        fsdp2_prepare_model(here.accelerator, model)


def look_at_shards(model: nn.Module) -> tuple[bool, bool]:
    """Whether every weight is sharded; and whether exactly the units and the whole are gathered as one."""
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    from glioma_dist.scale.fsdp import sharded_units

    units = sharded_units(model)
    gathered = {name for name, module in model.named_modules() if isinstance(module, FSDPModule)}
    expected = {"", *(name for name, module in model.named_modules() if any(module is unit for unit in units))}
    return all(isinstance(each, DTensor) for each in model.parameters()), gathered == expected


@cache
def differences_with(names: tuple[str, ...]) -> list[dict]:
    """Of both processes: encoder -> variant -> (largest difference, where)."""
    return run(compare, names, True, num_processes=2, timeout=500)


def differences(name: str) -> list[dict]:
    """Computed together with a few encoders' more, because processes take time to start."""
    first = NARROW.index(name) // TOGETHER * TOGETHER
    return differences_with(tuple(NARROW[first : first + TOGETHER]))


def check(differences: list[dict], name: str, narrow: bool = False) -> None:
    variants = [f"{engine}, {level}" for engine, level in variants_of(name, narrow)]
    for rank in differences:
        assert set(rank[name]) == {*variants, "sharded"}
        for variant in variants:
            difference, where = rank[name][variant]
            assert difference <= TOLERANCE, f"{variant}: {where} differs by {difference:.1e}"


@pytest.mark.parametrize("name", NARROW)
def test_two_processes_with_unequal_shares_equal_one(name):
    check(differences(name), name, narrow=True)


@pytest.mark.parametrize("name", NARROW)
def test_fsdp2_shards_every_weight_and_gathers_it_block_by_block(name):
    for rank in differences(name):
        all_sharded, units_only = rank[name]["sharded"]
        assert all_sharded
        assert units_only


@pytest.mark.parametrize("name", encoders.names())
def test_little_of_an_encoder_stays_gathered(name):
    from glioma_dist.model.unet import UNet
    from glioma_dist.scale.fsdp import sharded_units

    with torch.device("meta"):  # of which nothing is drawn
        model = UNet(ModelConfig(encoder=name, decoder_channels=TINY_CHANNELS))
    within = [parameter for unit in sharded_units(model) for parameter in unit.parameters()]
    assert len({id(parameter) for parameter in within}) == len(within), "no weight is in two units"
    whole, encoder = (sum(each.numel() for each in part.parameters()) for part in (model, model.encoder))
    assert (whole - sum(each.numel() for each in within)) / encoder < (0.3 if name == "mit_tiny" else 0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", encoders.names())
def test_the_same_with_encoders_of_full_size(name):
    check(run(compare, (name,), False, num_processes=2, timeout=550), name)
