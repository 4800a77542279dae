"""Settings of the U-Net and its starting weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glioma_dist.config.paths import PathOrUrl
from glioma_dist.errors import InputError
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
    """Names of the classes of the mask, without background."""
    targets: tuple[Literal["mask", "boundary", "distance"], ...] = ("mask",)
    """What the network predicts: the mask, and at most one of boundary or distance."""

    @property
    def num_mask_channels(self) -> int:
        """1, or the number of classes with background."""
        return len(self.classes) + 1 if self.classes else 1

    @property
    def num_outputs(self) -> int:
        """Channels of the head."""
        return self.num_mask_channels + len(self.targets) - 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder", encoders.canonical(self.encoder))

    def validate(self) -> None:
        encoders.find(self.encoder, "--model.encoder")
        if min(self.decoder_channels) < 1:
            raise InputError(f"--model.decoder-channels {self.decoder_channels}: each must be 1 or more")
        if self.weights is not None and self.init != "imagenet":
            raise InputError(
                f"--model.weights {self.weights}: is for --model.init imagenet, not for {self.init}; "
                "to start from a checkpoint of a whole network, give --model.init FILE"
            )
