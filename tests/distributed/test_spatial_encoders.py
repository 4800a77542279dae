"""An image split over processes against one plain process, for every encoder and for networks of other libraries.

One launch goes through many networks. Each process computes the plain network, too, and compares.
"""

import copy
import gc

import pytest
import torch
from encoder_helpers import DEEPER, narrow_everything
from helpers import TINY_CHANNELS, run
from strip_helpers import TOLERANCE, compare, step
from test_every_encoder import shard
from torch import Tensor, nn

from glioma_dist.config import ModelConfig
from glioma_dist.registry import encoders

BATCH_SIZE, HEIGHT, WIDTH = 2, 150, 64
"""Five units of 32 rows, the last not whole."""
ENCODERS = [name for name in encoders.names() if name not in DEEPER]
QUICK = ("resnest50d", "densenet169", "timm/convnext_atto")
"""A batch norm of a pooled map; pooling and joining; norms over channels, and a name of timm's."""
OTHERS = (*ENCODERS, "timm/convnext_atto", "timm/pvt_v2_b0", "timm/regnety_002", "timm/hrnet_w18_small")
SMP = ("Unet", "UnetPlusPlus", "FPN", "DeepLabV3", "DeepLabV3Plus", "PSPNet", "MAnet", "Linknet")
TORCHVISION = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")


def compare_encoders(cases: list[tuple[str, ...]], size: int) -> dict[str, float]:
    """Of one step of each U-Net, `size` processes to an image: its largest difference."""
    from glioma_dist.distributed.context import DistributedContext
    from glioma_dist.scale.spatial_group import SpatialGroup

    here = DistributedContext.start()
    group = SpatialGroup.join(here, size)
    with pytest.MonkeyPatch.context() as patch:
        narrow_everything(patch)
        return {" ".join(case): _compare_encoder(here, group, *case) for case in cases}


def _compare_encoder(here, group, name: str, level: str, engine: str = "DDP") -> float:
    from glioma_dist.losses import segmentation_loss
    from glioma_dist.model.unet import build_model
    from glioma_dist.scale.activation_checkpointing import checkpoint_activations
    from glioma_dist.scale.batch_norm import synchronise_batch_norm
    from glioma_dist.scale.spatial_layers import split_spatially

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH_SIZE, 3, HEIGHT, WIDTH, generator=generator, dtype=torch.float64)
    masks = (torch.rand(BATCH_SIZE, HEIGHT, WIDTH, generator=generator) > 0.7).to(torch.uint8)
    plain = build_model(ModelConfig(encoder=name, decoder_channels=TINY_CHANNELS), 0)[0].double()
    model = synchronise_batch_norm(copy.deepcopy(plain), here.device)
    checkpoint_activations(model, level)
    split_spatially(model, group)
    if engine == "FSDP2":
        shard(model, here)
    else:
        model = here.accelerator.prepare_model(model)
    seeds, share = torch.arange(BATCH_SIZE), BATCH_SIZE // group.dp_size
    own, strip = slice(group.dp_rank * share, (group.dp_rank + 1) * share), group.cut(HEIGHT)
    expected, found = plain(images, seeds), model(images[own, :, strip], seeds[own])
    segmentation_loss("dice+bce", expected, masks).sum().backward()
    (segmentation_loss("dice+bce", found, masks[own, strip], group).sum() * here.num_processes).backward()
    gc.collect()
    found = all_of(model.module if hasattr(model, "module") else model, group.gather_strip(found.detach()))
    return max(compare(all_of(plain, expected[own]), [found], TOLERANCE).values())


def all_of(model: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    from torch.distributed.tensor import DTensor

    found = {"output": logits.detach()}
    for name, each in model.named_parameters():
        found[f"gradient {name}"] = each.grad.full_tensor() if isinstance(each.grad, DTensor) else each.grad
    return found | {f"buffer {name}": each for name, each in model.named_buffers()}


def compare_others(names: list[str]) -> dict[str, float]:
    """Of one step of each network of another library, all processes to an image: its largest difference."""
    from glioma_dist.distributed.context import DistributedContext
    from glioma_dist.scale.spatial_group import SpatialGroup
    from glioma_dist.scale.strips.parallel import spatial_parallel

    DistributedContext.start()
    group = SpatialGroup.over()
    found = {}
    for name in names:
        torch.manual_seed(0)
        plain = without_dropout(build_other(name)).double()
        images = torch.randn(BATCH_SIZE, 3, 160, WIDTH, dtype=torch.float64)
        split = spatial_parallel(copy.deepcopy(plain), group)
        expected = step(plain, images, None)
        group.known = {int(each.split()[1]): value.shape[2] for each, value in expected.items() if "output" in each}
        here = step(split, images[:, :, group.cut(160)], group)
        for each, value in here.items():
            if each.startswith("gradient"):
                group.all_reduce(value)
            elif each.startswith("output") or each == "images":
                here[each] = group.gather(value, [_length(group, rank, expected[each]) for rank in range(group.size)])
        found[name] = max(compare(expected, [here], TOLERANCE).values())
        gc.collect()
    return found


def _length(group, rank: int, whole: Tensor) -> int:
    edges = [sum(group.heights[:number]) * whole.shape[2] // sum(group.heights) for number in (rank, rank + 1)]
    return edges[1] - edges[0]


def without_dropout(module: nn.Module) -> nn.Module:
    for each in module.modules():
        if isinstance(each, nn.modules.dropout._DropoutNd):
            each.p = 0.0
    return module


def build_other(name: str) -> nn.Module:
    """A network of segmentation_models.pytorch or torchvision, narrow where it can be."""
    library, _, name = name.partition(" ")
    if library == "smp":
        smp = pytest.importorskip("segmentation_models_pytorch")
        narrow = {"decoder_channels": (16, 16, 8, 8, 4)} if name in ("Unet", "UnetPlusPlus", "MAnet") else {}
        narrow = {"decoder_channels": 16} if name.startswith("DeepLab") else narrow
        return getattr(smp, name)("resnet18", encoder_weights=None, classes=2, **narrow)
    from torchvision.models import segmentation

    return getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=2)


def test_a_few_encoders_on_two_processes():
    cases = [*zip(QUICK, ("full", "none", "offload"), strict=True), (QUICK[2], "none", "FSDP2")]
    found = run(compare_encoders, cases, 2, num_processes=2, timeout=240)
    assert [list(each) for each in found] == [[" ".join(case) for case in cases]] * 2


@pytest.mark.slow
@pytest.mark.parametrize(("num_processes", "size"), [(2, 2), (3, 3), (4, 4), (4, 2)])
def test_every_encoder(num_processes, size):
    """At each level of activation checkpointing; on four processes also two groups of two."""
    levels = ("none", "full", "offload") if num_processes == 2 else ("full",)
    cases = [(name, level) for name in OTHERS for level in levels]
    for each in run(compare_encoders, cases, size, num_processes=num_processes, timeout=1800):
        print({name: f"{value:.1e}" for name, value in each.items()})


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 3, 4])
def test_networks_of_other_libraries(num_processes):
    """All that is asked of `spatial_parallel`: pyramids, dilated convolutions, nested skips, pooling to a few rows."""
    pytest.importorskip("segmentation_models_pytorch")
    names = [*(f"smp {name}" for name in SMP), *(f"torchvision {name}" for name in TORCHVISION)]
    for each in run(compare_others, names, num_processes=num_processes, timeout=1800):
        print({name: f"{value:.1e}" for name, value in each.items()})
