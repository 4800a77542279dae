"""Settings of the U-Net and its starting weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glioma_dist.config.paths import PathOrUrl
from glioma_dist.errors import InputError, one_line, printable
from glioma_dist.limits import MAX_CLASS_CHARACTERS, MAX_CLASSES
from glioma_dist.registry import encoders

WORDS = ("random", "imagenet", "timm")
"""Values of --model.init that are no place."""
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")

MAX_DECODER_CHANNELS = 4096
"""More than any network has; a config from elsewhere may ask for memory that nobody has."""


def is_weight_file(init: str) -> bool:
    """Whether starting weights are a single file, by its name."""
    return init.lower().endswith(WEIGHT_SUFFIXES)


@dataclass(frozen=True)
class ModelConfig:
    """The U-Net's encoder, decoder and starting weights."""

    encoder: str = "mit_b3"
    """mit_b0 to mit_b5 (SegFormer's Mix Transformers; mit_tiny is for demos, tests and t98g-small), one of the
    article's convolutional networks, timm/NAME for any timm model with feature maps, or one that you registered.
    `glioma-dist encoders` lists all with their costs."""
    init: PathOrUrl = "random"
    """Starting weights: random; imagenet (encoder only, from the hub); timm (the same, for timm/NAME); a checkpoint
    folder or URL of this toolkit; t98g-small (a network that comes with the package); a checkpoint of
    segmentation_models.pytorch: a file (.safetensors, .pth), its URL, or a folder from its save_pretrained; a file of
    an encoder's weights; or ORG/NAME, a repository of the Hugging Face hub that holds one of these, for example
    timm/resnet50.a1_in1k or smp-hub/resnet50.imagenet. docs/guides/starting_weights.md has a table."""
    init_sha256: str = ""
    """With --model.init FILE or URL of a file: the SHA-256 that it must have, in hex."""
    weights: Path | None = None
    """With --model.init imagenet: a file of the encoder's weights (.safetensors, .pth) to load instead of a
    download."""
    norm: Literal["batch", "group"] = "batch"
    """The decoder's normalisation. Batch norm takes its statistics over all processes."""
    encoder_norm: Literal["batch", "frozen"] = "batch"
    """Batch norms of a convolutional encoder: batch (statistics of each batch, over all processes), or frozen
    (statistics, weights and biases stay those of --model.init, so that an image's result does not depend on the other
    images of its batch)."""
    decoder_channels: tuple[int, int, int, int, int] = (256, 128, 64, 32, 16)
    """Channels of the decoder's blocks, from the coarsest to full size."""
    classes: tuple[str, ...] = ()
    """Names of the classes of cells in the masks, in the order of their numbers, without the background: two or more.
    By default: one class, cell or not."""
    targets: tuple[Literal["mask", "boundary", "distance"], ...] = ("mask",)
    """What the network predicts: mask, or mask and a second target that tells touching cells apart: boundary (pixels
    near another cell or the background) or distance (of a pixel to its cell's edge). The shards must have a number for
    each cell."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder", encoders.canonical(self.encoder))

    @property
    def num_mask_channels(self) -> int:
        """Channels of the mask: 1 (a sigmoid), or one for each class and the background (a softmax)."""
        return len(self.classes) + 1 if self.classes else 1

    @property
    def num_outputs(self) -> int:
        """Channels of the network's head: those of the mask, then that of the second target."""
        return self.num_mask_channels + len(self.targets) - 1

    def validate(self) -> None:
        encoders.find(self.encoder, "--model.encoder")
        self._check_outputs()
        if not all(1 <= number <= MAX_DECODER_CHANNELS for number in self.decoder_channels):
            told = one_line(" ".join(map(str, self.decoder_channels)), 120)
            raise InputError(f"--model.decoder-channels {told}: each must be from 1 to {MAX_DECODER_CHANNELS}")
        if self.init_sha256 and not re.fullmatch(r"[0-9a-f]{64}", self.init_sha256):
            raise InputError(f"--model.init-sha256 {one_line(self.init_sha256, 80)}: give 64 digits of 0-9 and a-f")
        if self.init_sha256 and (self.init in WORDS or not is_weight_file(self.init)):
            raise InputError(
                f"--model.init-sha256: --model.init {self.init} is no file of weights "
                f"({', '.join(WEIGHT_SUFFIXES)}); a checkpoint's own manifest has the checksums of its files"
            )
        if self.init == "timm" and not self.encoder.startswith("timm/"):
            raise InputError(
                f"--model.init timm: is for encoders timm/NAME, not for {self.encoder}; give --model.init imagenet"
            )
        if self.weights is not None and self.init != "imagenet":
            raise InputError(
                f"--model.weights {self.weights}: is for --model.init imagenet, not for {self.init}; "
                "to start from a checkpoint of a whole network, give --model.init FILE"
            )

    def _check_outputs(self) -> None:
        told = f"--model.classes {one_line(' '.join(self.classes), 100)}"
        if len(self.classes) == 1:
            raise InputError(f"{told}: one class needs no name; omit the flag, or name two or more")
        if len(self.classes) > MAX_CLASSES:
            raise InputError(f"{told}: {len(self.classes)} classes; a mask has at most {MAX_CLASSES}")
        for name in self.classes:
            known = 1 <= len(name) <= MAX_CLASS_CHARACTERS and name == printable(name).strip()
            if not known or name.lower() == "background":
                raise InputError(
                    f"{told}: cannot use {one_line(repr(name), 80)}; name the classes of cells, without the "
                    f"background, each in 1 to {MAX_CLASS_CHARACTERS} printable characters"
                )
        if len(set(self.classes)) < len(self.classes):
            raise InputError(f"{told}: name each class once")
        if self.targets[:1] != ("mask",) or len(self.targets) > 2 or len(set(self.targets)) < len(self.targets):
            raise InputError(f"--model.targets {' '.join(self.targets)}: give mask, mask boundary, or mask distance")
