"""What the package asks of an encoder. The network, the levels of memory, spatial parallelism, FSDP2 and
torch.compile know encoders by these attributes and methods only, never by their class.

An encoder needs `channels`, `strides` and `forward`. With nothing else it trains, alone and over processes; each
further method that it defines lets one more way to save memory or time take hold of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of the channels of images in [0, 1]: what images are normalised by."""


def compute(part: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """The plain way to run a part."""
    return part(features)


class AttentionLayer(Protocol):
    """A layer whose queries attend to keys and values of the whole image."""

    gather_tokens: Callable[[Tensor], Tensor] | None
    """None, or what makes keys and values of the whole image of those of a strip: (B, heads, tokens, C) to
    (B, heads, more tokens, C). The layer passes them through it just before attention."""


class TileableLayer(Protocol):
    """A layer whose inner maps are far wider than its input and output, and need not exist as a whole.

    A row of its output depends on the same and the neighbouring rows of its input only.
    """

    run_tiles: Callable[..., Tensor] | None
    """None, or what takes (function, [map], parameters, inner channels) and returns what function(map) is, (B, C, H, W)
    as the map is. function works on any rows of the map; parameters are all that it uses."""


class Encoder(nn.Module):
    """From an image to feature maps at growing strides. A base class with the defaults of the contract."""

    channels: tuple[int, ...]
    """Of each map."""
    strides: tuple[int, ...]
    """Of each map, finest first: powers of 2. The last must be 32."""

    def __init__(self) -> None:
        super().__init__()
        self.run_part: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] = compute
        """How `forward` runs each of its parts, from map to map. Activation checkpointing replaces it. A part that runs
        batch norms is an `nn.Module` that holds them; none changes its input in place. An encoder that never calls it
        keeps all its activations."""
        self.memory_format: Any = torch.contiguous_format
        """In which `forward` lays out its maps."""

    def forward(self, images: Tensor, seeds: Tensor | None = None) -> list[Tensor]:
        """images: (B, 3, H, W) float, H and W multiples of 32, of ImageNet's mean 0 and deviation 1. seeds: (B,) int64,
        each image's own, from which alone an encoder draws what is random.

        Returns maps (B, channels[i], H / strides[i], W / strides[i]), finest first.
        """
        raise NotImplementedError

    def blocks(self) -> list[nn.Module]:
        """The modules that the network is a chain of, in order. FSDP2 gathers the weights of one at a time;
        torch.compile compiles each. Empty: each convolution is such a unit, and nothing is compiled."""
        return []

    def attention_layers(self) -> Sequence[AttentionLayer]:
        """All layers that attend. Selective activation checkpointing keeps what they attend to; spatial parallelism
        gathers their keys and values. Layers of other kinds in a network that is split over processes are
        known by their class (`scale/spatial_layers.py`), and refused by name where they are not known."""
        return []

    def tileable_layers(self) -> Sequence[TileableLayer]:
        """The layers that full activation checkpointing runs in tiles of rows."""
        return []
