"""What the package asks of an encoder, and how one is built by its name. The network, the levels of memory, spatial
parallelism, FSDP2 and torch.compile know encoders by these attributes and methods only, never by their class.

An encoder needs `channels`, `strides` and `forward`. With nothing else it trains, alone and over processes; each
further method that it defines lets one more way to save memory or time take hold of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from glioma_dist.errors import InputError, RunError, one_line
from glioma_dist.model.modules import depends_on_batch
from glioma_dist.registry import encoders

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of the channels of images in [0, 1]: what images are normalised by."""
CLASSIFIERS = ("classifier", "head", "fc", "last_linear", "decode_head")
"""Names of what stands behind an encoder in files of weights."""
COARSEST_STRIDE = 32
"""The decoder begins there."""


def compute(segment: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """The plain way to run a segment."""
    return segment(features)


def filled(values: Sequence[float], device: torch.device | str = "cpu") -> Tensor:
    """Make an fp32 tensor (1, len(values), 1, 1) with one value per channel.

    It is filled on the device: for a copy from pageable memory the CPU would wait until the GPU has finished all
    earlier work.
    """
    return torch.cat([torch.full((1, 1, 1, 1), value, device=device) for value in values], dim=1)


class AttentionLayer(Protocol):
    """A layer whose queries attend to keys and values of the whole image."""

    gather_tokens: Callable[[Tensor], Tensor] | None
    """None, or what makes keys and values of the whole image of those of a strip: (B, heads, tokens, C) to
    (B, heads, more tokens, C). The layer passes them through it just before attention."""
    attend: Callable[..., Tensor]
    """What computes attention, through `torch.nn.functional.scaled_dot_product_attention`, and nothing else. The layer
    calls it with positional arguments only. Selective activation checkpointing replaces it."""


class TileableLayer(Protocol):
    """A layer whose inner maps are far wider than its input and output, and need not exist as a whole.

    A row of its output depends on the same and the neighbouring rows of its input only.
    """

    run_tiles: Callable[..., Tensor] | None
    """None, or what takes (function, [map], parameters, inner channels) and returns what function(map) is, (B, C, H, W)
    as the map is. function works on any rows of the map; parameters are all that it uses."""


class Encoder(nn.Module):
    """From an image to feature maps at growing strides. A new encoder derives from this class, sets `strides` and
    `channels`, and computes through `run_segment`; everything else has a default.

    Nothing in it may draw at random from a global generator while it computes: what a layer drops is drawn from the
    images' seeds, so that a result depends neither on the batch's layout nor on what is computed again.
    """

    strides: tuple[int, ...]
    """Of the maps, finest first: powers of two, the last one 32."""
    channels: tuple[int, ...]
    """Of the maps."""
    decoder_center = False
    """Whether the decoder convolves the coarsest map twice before its first block."""
    draws_own_weights = False
    """Whether the random weights are those that the constructor drew (with torch, from --seed). By default those of
    convolutions, linear layers and norms are drawn as `initialise` says, and the constructor's others stay."""
    has_spatial_layers = False
    """Whether spatial parallelism can replace its layers by class (`scale/spatial_layers.py`), because between them it
    only adds maps and joins channels. Other encoders compute strips function by function (`scale/strips/`)."""
    is_frozen = False
    """Whether `freeze` was called."""
    has_frozen_norms = False
    """Whether `freeze_norms` was called."""
    classifiers: tuple[str, ...] = CLASSIFIERS
    """Names at the top of a file of weights that are of no use here."""

    def __init__(self) -> None:
        super().__init__()
        self.run_segment: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] = compute
        """Run a segment of `forward`, from feature map to feature map. Activation checkpointing replaces this function.
        A segment that runs batch norms must be an `nn.Module` that holds them, and no segment may change its input in
        place. An encoder that never calls it keeps all its activations."""
        self.has_short_segments = False
        """Whether each segment is as short as can be, because what is kept between segments takes no memory of the
        device (offload)."""
        self.large_images: Any = None
        """`LargeImages` (scale/large_images.py), where less is kept of them (offload)."""
        self.memory_format: Any = torch.contiguous_format
        """In which `forward` lays out its maps."""

    def freeze(self) -> None:
        """Keep weights and running statistics as they are from now on: no gradients, and evaluation mode whatever the
        mode of the network."""
        self.is_frozen = True
        self.requires_grad_(False)
        self.eval()

    def freeze_norms(self) -> bool:
        """Keep running statistics, weights and biases of all batch norms as they are from now on, as FrozenBatchNorm2d
        of torchvision and Detectron2 does; all else is trained. Returns whether there is a batch norm."""
        self.has_frozen_norms = True
        norms = self._batch_norms()
        for norm in norms:
            norm.requires_grad_(False)
        self.train(self.training)
        return bool(norms)

    def train(self, mode: bool = True) -> Encoder:
        """As `nn.Module.train`; a frozen encoder and frozen norms stay in evaluation mode."""
        super().train(mode and not self.is_frozen)
        if self.has_frozen_norms:
            for norm in self._batch_norms():
                norm.eval()
        return self

    def _batch_norms(self) -> list[nn.Module]:
        """As they are now: other classes may have taken the place of those that the constructor made."""
        return [module for module in self.modules() if depends_on_batch(module)]

    def forward(self, images: Tensor, seeds: Tensor | None = None) -> list[Tensor]:
        """images: (B, 3, H, W) float, H and W multiples of 32, normalised with ImageNet's mean and standard deviation.
        seeds: (B,) int64, one per image, the only source of random numbers; or what `draw` returned for them.

        Returns feature maps (B, channels[i], H / strides[i], W / strides[i]), finest first.
        """
        raise NotImplementedError

    def draw(self, seeds: Tensor) -> Tensor | None:
        """Draw the random numbers of a forward pass, on the CPU and before it. seeds: (B,) int64, on the CPU.

        Returns what `forward` gets in place of the seeds, then on the device of the images: a float tensor whose first
        dimension is B, or None if nothing is drawn. By default it returns the seeds. With several processes PyTorch
        moves them to the GPU, and an encoder that reads them there waits for the GPU once in each step.
        """
        return seeds

    def blocks(self) -> list[nn.Module]:
        """The modules that the network is a chain of, in order. FSDP2 gathers the weights of one at a time;
        torch.compile compiles each. Empty: each convolution is such a unit, and nothing is compiled."""
        return []

    def attention_layers(self) -> Sequence[AttentionLayer]:
        """All layers that attend. Selective activation checkpointing keeps what they attend to; spatial parallelism
        gathers their keys and values where `has_spatial_layers`."""
        return []

    def tileable_layers(self) -> Sequence[TileableLayer]:
        """The layers that full activation checkpointing runs in tiles of rows."""
        return []

    def sparing_layers(self) -> Sequence[TileableLayer]:
        """The layers that run in tiles of rows as a whole, if images are large and what is kept waits in host
        memory."""
        return []

    def rename_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights that came under others' names, by the names of this encoder's state dict. A name that is not known
        stays as it is, and is then listed in an error."""
        return tensors

    def load_imagenet(self, name: str, file: Path | None) -> dict[str, str]:
        """Put ImageNet weights in, from `file`, or from wherever they are published, and return their lineage:
        {"weights": …, "licence": …}. name: the encoder's, for messages. Raises InputError where there are none, where
        they cannot be had here, and where they do not fit."""
        del file
        raise InputError(
            f"--model.init imagenet: there are no ImageNet weights of {name}; give an encoder that has them, "
            "or --model.init random"
        )


def build_encoder(name: str) -> Encoder:
    """The encoder that is registered as `name`. Raises InputError where there is none, and where it is not what this
    module asks for: its class, strides and channels are looked at; no image is computed."""
    entry = encoders.find(name, "--model.encoder")
    build = encoders.load(name, "--model.encoder")
    try:
        encoder = build(entry.name)
    except (RunError, MemoryError):
        raise
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise  # a fault within it
        raise InputError(
            f"--model.encoder {entry.described}: cannot be called with its name ({one_line(error, 160)})"
        ) from None
    fault = _fault(encoder)
    if fault:
        raise InputError(f"--model.encoder {entry.described}: {fault} (docs/encoders.md, Add an encoder)")
    return encoder


def _fault(encoder: object) -> str | None:
    """What keeps an object from being an encoder of a U-Net."""
    if not isinstance(encoder, Encoder):
        return (
            f"gave a {type(encoder).__name__}, which does not derive from glioma_dist.model.encoders.contract.Encoder"
        )
    for name in ("strides", "channels"):
        values = getattr(encoder, name, None)
        if not isinstance(values, tuple | list) or not values or not all(type(each) is int for each in values):
            return f"its {name} are {one_line(repr(values), 80)}; give one whole number for each map, finest first"
    strides, channels = tuple(encoder.strides), tuple(encoder.channels)
    if len(strides) != len(channels):
        return f"it has {len(strides)} strides and {len(channels)} channels; give one of each for each map"
    powers = [2**level for level in range(COARSEST_STRIDE.bit_length())]
    if (
        strides[-1] != COARSEST_STRIDE
        or any(each not in powers for each in strides)
        or sorted(set(strides)) != [*strides]
    ):
        return f"its strides are {one_line(strides, 80)}; the decoder takes growing powers of two that end with 32"
    if min(channels) < 1:
        return f"its channels are {one_line(channels, 80)}; each must be 1 or more"
    return None
