"""An image computed in strips, layer by layer, exactly as it would be as a whole."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from glioma_dist.config.scale import SPATIAL_LAYERS_ENCODERS, UNIT_ROWS, strip_edges
from glioma_dist.data.loader import image_tensor
from glioma_dist.errors import InputError
from glioma_dist.evaluation.maps import by_rows, maps_of
from glioma_dist.evaluation.network import Network
from glioma_dist.inference.large.picture import LazyPicture
from glioma_dist.inference.large.scratch import Scratch
from glioma_dist.inference.large.turns import Turns, TurnsGroup
from glioma_dist.model.unet import UNet, normalise, unwrapped
from glioma_dist.scale.spatial_layers import split_spatially


def can_be_split(network: Network) -> bool:
    """Return whether this network can be computed in strips: whether its encoder and its layers have counterparts for
    strips."""
    if network.encoder not in SPATIAL_LAYERS_ENCODERS or not isinstance(unwrapped(network.model), UNet):
        return False
    try:
        split_model(network, TurnsGroup(2, 2 * UNIT_ROWS))
    except InputError:  # a layer that nobody has proved
        return False
    return True


def all_strips_wait(network: Network) -> bool:
    """Return whether a layer needs all strips at once, so that all are under way: attention, or group norm."""
    model = unwrapped(network.model)
    return bool(model.encoder.attention_layers()) or any(isinstance(each, nn.GroupNorm) for each in model.modules())


def split_model(network: Network, group: TurnsGroup) -> UNet:
    """Return a copy of the network that computes strips. It shares its weights with `network`, which is not changed.

    Raises InputError where a layer is not known to be exact in strips.
    """
    model = unwrapped(network.model)
    shared: dict[int, Any] = {id(each): each for each in model.buffers()}
    for each in model.parameters():
        # Without a gradient: autocast would keep a narrow copy of a weight for all strips, and count it to one.
        shared[id(each)] = nn.Parameter(each.detach(), requires_grad=False)
    model = copy.deepcopy(model, shared)
    split_spatially(model, group, network.tile_size)
    return model


def compute_in_strips(
    network: Network,
    picture: LazyPicture,
    num_strips: int,
    is_full: Callable[[], bool],
    folder: Path,
    write: Callable[[int, np.ndarray], None],
) -> int:
    """Compute the maps of `picture` in strips, and pass each strip to `write(first row, float32 (rows, W))`, of several
    channels (rows, C, W).

    is_full: whether a strip that waits must leave the memory; its maps go to a file in `folder` then.
    Returns how many bytes went there.
    """
    height = picture.shape[0]
    edges = strip_edges(height, num_strips)
    group = TurnsGroup(num_strips, height)
    model = split_model(network, group)
    kind = next(model.parameters()).dtype

    def compute(number: int) -> torch.Tensor:
        pixels = picture.rows(edges[number], edges[number + 1])
        images = normalise(image_tensor(pixels)[None].to(network.device)).to(kind)
        del pixels
        return maps_of(network.outputs, model(images))[0].cpu()

    with Scratch(folder) as scratch:
        turns = Turns(group, is_full, scratch)
        turns.run(compute, lambda number, rows: write(edges[number], by_rows(rows)))
        return turns.spilled_bytes


def num_strips_for(height: int, width: int, pixels: int) -> int:
    """Return into how many strips an image is cut so that a strip has at most about `pixels` pixels, and at least 32
    rows."""
    rows = max(UNIT_ROWS, pixels // max(1, width) // UNIT_ROWS * UNIT_ROWS)
    return max(1, -(-height // rows))
