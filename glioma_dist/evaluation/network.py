"""A trained network where it computes, and what it says of the pixels of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from glioma_dist.config import check_spatial_parallel
from glioma_dist.data.loader import image_tensor
from glioma_dist.data.transforms import resize_image
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.evaluation.forward_only import forward_only
from glioma_dist.evaluation.maps import ONE_CLASS, cell_map, maps_of
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


def load_network(
    folder: Path, num_processes: int, context: DistributedContext, raw_weights: bool = False
) -> tuple[Network, Checkpoint]:
    """The U-Net that a checkpoint folder holds, ready for `cell_probability`, and all else that the folder says.

    num_processes: processes that share each image. raw_weights: as of `load_model`. Raises InputError where the
    launch or the encoder does not allow it.
    """
    model, checkpoint = load_model(folder, raw_weights)
    note = checkpoint.note_on_weights(raw_weights)
    if note and context.is_main:
        print(note, flush=True)
    whole_images = forward_only(model) if context.device.type == "cpu" and num_processes == 1 else None
    check_spatial_parallel(num_processes)
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
