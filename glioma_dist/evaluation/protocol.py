"""DS of the article: Dice after bringing an image to one size for the network and to another for the comparison."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from glioma_dist.config import EvaluateConfig, check_spatial_parallel
from glioma_dist.config.file import checked
from glioma_dist.config.paths import Url
from glioma_dist.data.background import check_cells
from glioma_dist.data.loader import evaluation_samples, image_tensor
from glioma_dist.data.remote_checkpoint import fetch_checkpoint
from glioma_dist.data.sample import Sample
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.store import Store
from glioma_dist.data.shards.unlisted import describe_unlisted
from glioma_dist.data.transforms import normalize_intensity, resize_image, resize_mask
from glioma_dist.data.worker_pool import WorkerPool
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.numerics import numerics
from glioma_dist.distributed.own_context import given_or_own
from glioma_dist.errors import InputError
from glioma_dist.evaluation.dice import dice
from glioma_dist.evaluation.forward_only import forward_only
from glioma_dist.evaluation.maps import ONE_CLASS, cell_map, maps_of
from glioma_dist.files import check_new_file, make_folder, write_json_atomically
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.encoders.contract import TileableLayer
from glioma_dist.model.outputs import Outputs
from glioma_dist.model.unet import load_model, normalise
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.kernel_limits import check_forward, forward_fits
from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.scale.spatial_layers import split_spatially
from glioma_dist.scale.tile_size import CPU_TILE, TileSize, tile_size
from glioma_dist.scale.tiles import checkpoint_in_tiles
from glioma_dist.size import Size

Contrast = Literal["percentile", "clahe", "none"]
"""`DataConfig.intensity_normalization`."""
THRESHOLD = 0.5
"""On the probability, after scaling. The article does not name its own."""


@dataclass(frozen=True)
class ImageScore:
    """Dice of one image, from 0 to 1."""

    key: str
    dice: float


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of a checkpoint on shards."""

    mean_dice: float
    """Mean Dice over the images, from 0 to 1: DS of the article."""
    images: tuple[ImageScore, ...]
    """Each image once, sorted by key."""
    input_size: Size | None
    """R1: the size that images were scaled to for the network; None: each image's own."""
    metric_size: Size | None
    """R2: the size that output and reference were scaled to for Dice; None: each image's own."""
    checkpoint: Path | Url
    step: int | None
    """Optimizer steps that the checkpoint was trained for; None where it is not of a training run."""
    data: dict[str, str]
    """Name of the data set, of the split, and the licence."""
    path: Path | Url | None
    """The JSON file with these scores, where `config.out` asked for one."""

    def to_dict(self) -> dict[str, Any]:
        """What the JSON file holds."""
        return {
            "dice_mean": self.mean_dice,
            "num_images": len(self.images),
            "input_size": str(self.input_size or "own"),
            "metric_size": str(self.metric_size or "own"),
            "checkpoint": str(self.checkpoint),
            "step": self.step,
            "data": self.data,
            "images": [{"key": image.key, "dice": image.dice} for image in self.images],
        }


def evaluate(
    config: EvaluateConfig, context: DistributedContext | None = None, workers: WorkerPool | None = None
) -> EvaluationResult:
    """Score a checkpoint on shards with DS, the Dice of the article (`dice_at_sizes`).

    Starts no processes: it computes in this one. If the script was started by `accelerate launch`, every process of the
    launch calls it. Every image is scored once, whatever the number of processes.

    Args:
        config: the checkpoint, the shards and the two sizes. Paths and sizes may be given as text.
        context: rank and device of this process; by default it is made here, and closed at the end.
        workers: processes that read the data; by default they are started here before anything else, and end with the
            call.

    Returns the scores, the same on all processes. They are written to `config.out` if it is given.

    Raises:
        InputError: the checkpoint, the data or a setting cannot be used.
        UnavailableError: a process, a worker or a store did not answer.
    """
    config = checked(EvaluateConfig, config)
    started = nullcontext(workers) if workers else WorkerPool(config.workers)
    with started as pool, given_or_own(context) as here, numerics():
        return _evaluate(config, here, pool)


def _evaluate(config: EvaluateConfig, context: DistributedContext, pool: WorkerPool) -> EvaluationResult:
    if isinstance(config.out, Url):
        if context.is_main:
            Store(config.out.parent).check()
    elif config.out:
        check_new_file("--out", config.out)
    reader = ShardReader(config.data)
    if context.is_main:
        for note in (describe_unlisted(reader), check_cells([reader], "--data", is_needed=False)):
            if note:
                print(note, flush=True)
    network, checkpoint = load_network(fetch_checkpoint(config.checkpoint), config.scale.spatial_parallel, context)
    contrast = checkpoint.config.data.intensity_normalization
    if config.input_size:
        network.fit(config.input_size)
    group = network.spatial_group
    samples = evaluation_samples(
        reader, group.dp_rank, group.dp_size, config.workers, context.seconds_to_answer, contrast, pool
    )
    here = [  # their contrast is stretched already
        ImageScore(sample.key, dice_at_sizes(network, sample, "none", config.input_size, config.metric_size))
        for sample in samples
    ]
    images = tuple(sorted(context.gather_objects(here if group.rank == 0 else []), key=lambda image: image.key))
    result = EvaluationResult(
        mean_dice=statistics.fmean(image.dice for image in images),
        images=images,
        input_size=config.input_size,
        metric_size=config.metric_size,
        checkpoint=config.checkpoint,
        step=checkpoint.step,
        data={name: reader.index[name] for name in ("dataset", "split", "licence")},
        path=config.out,
    )
    if isinstance(config.out, Url):
        if context.is_main:
            Store(config.out.parent).put(config.out.name, (json.dumps(result.to_dict(), indent=2) + "\n").encode())
    elif config.out and context.is_main:
        make_folder(config.out.parent)
        write_json_atomically(config.out, result.to_dict())
    return result


@dataclass(frozen=True)
class Network:
    """A trained U-Net where it computes, and the processes that share each image with this one."""

    model: nn.Module
    device: torch.device
    spatial_group: SpatialGroup = field(default_factory=SpatialGroup)
    encoder: str = ""
    """Its name."""
    tileable_layers: Sequence[TileableLayer] = ()
    """Of the encoder; none where several processes share an image."""
    tile_size: TileSize = CPU_TILE
    """Of the device."""
    outputs: Outputs = ONE_CLASS
    """What the channels of its logits mean."""
    whole_images: nn.Module | None = None
    """What computes whole images in place of `model`, whose weights it has, with less memory and in less time: there on
    a CPU where one process has the whole image."""

    def fit(self, size: Size) -> None:
        """Have layers go in tiles for an image of `size` where a GPU's kernels cannot take their maps otherwise, and
        only there. Raises InputError where tiles are not enough. The decoder takes care of itself."""
        if self.tile_size.max_elements is None:
            return
        asked = (self.encoder, size, self.spatial_group.size, self.tile_size)
        in_tiles = len(self.tileable_layers) > 0 and not forward_fits(*asked, in_tiles=False)
        check_forward(*asked, in_tiles)
        for layer in self.tileable_layers:
            layer.run_tiles = partial(checkpoint_in_tiles, size=self.tile_size) if in_tiles else None


def load_network(folder: Path, num_processes: int, context: DistributedContext) -> tuple[Network, Checkpoint]:
    """The U-Net that a checkpoint folder holds, ready for `cell_probability`, and all else that the folder says.

    num_processes: processes that share each image. Raises InputError where the launch or the encoder does not allow it.
    """
    model, checkpoint = load_model(folder)
    whole_images = forward_only(model) if context.device.type == "cpu" and num_processes == 1 else None
    check_spatial_parallel(num_processes, checkpoint.config.model.encoder)
    group = SpatialGroup.join(context, num_processes)
    size = tile_size("auto", context.device)
    checkpoint_activations(model, "none", size)  # nothing is kept here; maps too large for a GPU's kernels go in tiles
    split_spatially(model, group, size)
    layers = model.encoder.tileable_layers() if num_processes == 1 else ()
    prepare = partial(context.accelerator.prepare_model, evaluation_mode=True)
    model, whole_images = prepare(model.to(context.device)), whole_images and prepare(whole_images)
    settings = checkpoint.config.model
    outputs = Outputs.of(settings)
    return Network(model, context.device, group, settings.encoder, layers, size, outputs, whole_images), checkpoint


def dice_at_sizes(
    network: Network, sample: Sample, contrast: Contrast, input_size: Size | None, metric_size: Size | None
) -> float:
    """DS(x, y, R1, R2) = Dice(scale(f(scale(x, R1)), R2), scale(y, R2)); R1 `input_size`, R2 `metric_size`, each the
    image's own size where None. The output is scaled as a probability, bilinearly; of the reference every value above
    0 counts as 1."""
    height, width = sample.mask.shape
    metric_size = metric_size or Size(width, height)
    try:
        probabilities = cell_probability(network, normalize_intensity(sample.image, contrast), input_size, metric_size)
    except InputError as error:
        raise InputError(f"sample {sample.key}: {error}") from error
    reference = torch.from_numpy(resize_mask(sample.mask, metric_size)).to(network.device)
    return float(dice(probabilities >= THRESHOLD, reference))


@torch.inference_mode()
def pixel_maps(network: Network, image: np.ndarray, input_size: Size | None, *output_sizes: Size) -> list[Tensor]:
    """Compute the network's maps of an image (`maps.py`), (C, H, W) fp32 of each of `output_sizes`, on all processes
    that share it.

    image: uint8 (H, W) or (H, W, 3) with its contrast raised; it is scaled to `input_size` for the network, or goes
    in as it is where None. Raises InputError for an image that is too large for a GPU's kernels.
    """
    scaled = resize_image(image, input_size) if input_size else image
    network.fit(Size(scaled.shape[1], scaled.shape[0]))
    strip = network.spatial_group.cut(len(scaled))
    model = network.model if network.whole_images is None else network.whole_images
    logits = model(normalise(image_tensor(scaled)[None, :, strip].to(network.device)))
    maps = maps_of(network.outputs, network.spatial_group.gather_strip(logits).float())
    found = []
    for size in ((each.height, each.width) for each in output_sizes):
        same = maps.shape[-2:] == size
        found.append((maps if same else functional.interpolate(maps, size, mode="bilinear", align_corners=False))[0])
    return found


def cell_probability(network: Network, image: np.ndarray, input_size: Size | None, output_size: Size) -> Tensor:
    """Compute the probability of each pixel to belong to a cell, (H, W) fp32 of `output_size`: with K classes, 1 minus
    that of background. Otherwise as `pixel_maps`."""
    return cell_map(network.outputs, pixel_maps(network, image, input_size, output_size)[0])
