"""Settings of the U-Net and its starting weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glioma_dist.config.paths import PathOrUrl
from glioma_dist.errors import InputError, one_line, printable
from glioma_dist.limits import MAX_CLASS_CHARACTERS, MAX_CLASSES
from glioma_dist.registry import encoders


@dataclass(frozen=True)
class ModelConfig:
    """The U-Net's encoder, decoder and starting weights."""

    encoder: str = "mit_b3"
    """mit_b0 to mit_b5 (SegFormer's Mix Transformers; mit_tiny is for demos, tests and t98g-small), one of the
    article's convolutional networks, timm/NAME for any timm model with feature maps, or one that you registered.
    `glioma-dist encoders` lists all with their costs."""
    init: PathOrUrl = "random"
    """Starting weights: random, imagenet (encoder only, from the hub), a checkpoint folder or URL of this toolkit,
    t98g-small (a network that comes with the package), or a checkpoint of segmentation_models.pytorch: a file
    (.safetensors, .pth) or a folder from its save_pretrained."""
    weights: Path | None = None
    """With --model.init imagenet: a file of the encoder's weights (.safetensors, .pth) to load instead of a
    download."""
    norm: Literal["batch", "group"] = "batch"
    """The decoder's normalisation. Batch norm takes its statistics over all processes."""
    decoder_channels: tuple[int, int, int, int, int] = (256, 128, 64, 32, 16)
    """Channels of the decoder's blocks, from the coarsest to full size."""
    classes: tuple[str, ...] = ()
    """Names of the classes of cells in the masks, in the order of their numbers, without the background: two or more.
    By default: one class, cell or not."""
    targets: tuple[Literal["mask", "boundary", "distance"], ...] = ("mask",)
    """What the network predicts: mask, or mask and a second target that tells touching cells apart: boundary (pixels
    near another cell or the background) or distance (to the cell's edge). The shards must have a number for each
    cell."""

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
        if min(self.decoder_channels) < 1:
            raise InputError(f"--model.decoder-channels {self.decoder_channels}: each must be 1 or more")
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
