"""The U-Net: an encoder and the bilinear decoder with its head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from glioma_dist.config import ModelConfig
from glioma_dist.config.networks import hub_name
from glioma_dist.distributed.own_modes import own_modes
from glioma_dist.errors import InputError
from glioma_dist.limits import check_seed
from glioma_dist.model.checkpoint import Checkpoint, find_checkpoint, naming_another
from glioma_dist.model.decoder import BilinearDecoder
from glioma_dist.model.encoders.contract import IMAGENET_MEAN, IMAGENET_STD, build_encoder, filled
from glioma_dist.model.outputs import Outputs
from glioma_dist.model.pretrained.starting_points import fetch_repository, is_encoder_file, load_encoder_file
from glioma_dist.model.pretrained.weight_files import check_digest
from glioma_dist.model.pretrained.weights import initialise, is_smp, load_smp


def normalise(images: Tensor) -> Tensor:
    """Turn uint8 images (B, 1 or 3, H, W) into what the encoders were pretrained on: fp32 (B, 3, H, W), ImageNet's mean
    0 and deviation 1 a channel. Grey images are repeated over the channels."""
    return _normalise_by(images, *(filled(values, images.device) for values in (IMAGENET_MEAN, IMAGENET_STD)))


def _normalise_by(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    # In place where a map is this function's own, and repeated as late as can be: a third of the time on a CPU.
    return images.float().div_(255).sub(mean).div_(std)


class UNet(nn.Module):
    """Gives logits as `outputs` (model/outputs.py) says: by default one a pixel, 0 or more is a cell."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.outputs = Outputs.of(config)
        self.encoder = build_encoder(config.encoder)
        if config.encoder_norm == "frozen" and not self.encoder.freeze_norms():
            raise InputError(
                f"--model.encoder-norm frozen: {config.encoder} has no batch norm to freeze; omit the flag"
            )
        self.decoder = BilinearDecoder(
            self.encoder.channels,
            self.encoder.strides,
            config.decoder_channels,
            config.norm,
            center=self.encoder.decoder_center,
            num_outputs=config.num_outputs,
        )
        # On the model's device, so that no step copies them there; in no checkpoint.
        self.register_buffer("image_mean", filled(IMAGENET_MEAN), persistent=False)
        self.register_buffer("image_std", filled(IMAGENET_STD), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """What the function `normalise` returns, of images on the model's device."""
        return _normalise_by(images, self.image_mean, self.image_std)

    def forward(self, images: Tensor, seeds: Tensor | None = None) -> Tensor:
        """images: (B, 3, H, W) as `normalise` makes them, of any size; they are padded inside with zeros (the mean
        colour) at the right and bottom to a multiple of the coarsest stride, and the logits are cropped back.
        seeds: (B,) int64, each image's own, needed in training mode for stochastic depth; or what `encoder.draw` made
        of them, on the device of the images, for which no seed has to be read in the forward pass.

        Returns logits (B, num_outputs, H, W).
        """
        height, width = images.shape[-2:]
        stride = self.encoder.strides[-1]
        if width % stride or height % stride:
            images = functional.pad(images, (0, -width % stride, 0, -height % stride))
        logits = self.decoder(self._features(images, seeds))
        return logits if logits.shape[-2:] == (height, width) else logits[..., :height, :width]

    def _features(self, images: Tensor, seeds: Tensor | None) -> list[Tensor]:
        if not self.encoder.is_frozen:
            return self.encoder(images, seeds)
        with torch.no_grad():  # or what its layers keep would wait for a backward pass
            return self.encoder(images, seeds)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that DDP has wrapped, or `model` itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


@own_modes()  # or a model built in `torch.inference_mode` could never be trained
def build_model(
    config: ModelConfig, seed: int, note: Callable[[str], None] = lambda line: None
) -> tuple[UNet, list[dict[str, str]]]:
    """Build a U-Net with the starting weights of `config.init`; what is random is drawn from `seed` alone.

    The head of a checkpoint with other classes or targets is not taken, which is told to `note`.

    Returns the model, whose forward pass takes fp32 images (B, 3, H, W) of any size, as `normalise` makes them, and
    gives logits (B, num_outputs, H, W); and the lineage of its weights: what they come from, and under which licence.

    Raises InputError where weights are not there, are damaged, or are of another network, and for a seed that is no
    whole number from 0 to 2^63 - 1.
    """
    check_seed("seed", seed)
    with torch.random.fork_rng(devices=[]):  # what a constructor draws: most of it is drawn again below
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed those of all GPUs, too
        model = UNet(config)
    initialise(model, torch.Generator().manual_seed(seed))
    if config.init == "random":
        return model, []
    if config.init in ("imagenet", "timm"):
        return model, [model.encoder.load_imagenet(config.encoder, config.weights)]
    if (name := hub_name(config.init)) is not None:
        return model, _load_repository(model, config, name, note)
    path = Path(config.init)
    if config.init_sha256:
        check_digest(path, config.init_sha256)
    found = find_checkpoint(path)
    if found is None and not path.exists():
        raise InputError(
            f"--model.init {config.init}: no such file or folder; give random, imagenet, a checkpoint's folder as "
            "runs/x/best, or a file of weights"
        )
    if found is None and is_encoder_file(path):
        return model, load_encoder_file(model.encoder, config.encoder, path, path.name, "not stated")
    if found is None and is_smp(path):
        return model, [load_smp(model, config.encoder, path, config.norm, note)]
    with naming_another(path):
        return model, _load_checkpoint(model, config, path, note)


def _load_checkpoint(
    model: UNet, config: ModelConfig, folder: Path, note: Callable[[str], None]
) -> list[dict[str, str]]:
    """Put a checkpoint into `model`, without its head where that is for other outputs. Returns its lineage."""
    checkpoint = Checkpoint.read(folder)
    theirs = checkpoint.config.model
    starts_head = (theirs.classes, theirs.targets) != (config.classes, config.targets)
    checkpoint.load_into(model, config.encoder, keep_head=starts_head)
    if starts_head:
        note(f"--model.init {config.init}: has other classes or targets; its head is not taken, all else is")
    return checkpoint.lineage


def _load_repository(model: UNet, config: ModelConfig, name: str, note: Callable[[str], None]) -> list[dict[str, str]]:
    """Put what a repository of the hub holds into `model`. Returns its lineage."""
    found = fetch_repository(name)
    if found.is_checkpoint:
        return _load_checkpoint(model, config, found.path, note)
    source = found.describe(name)
    if found.path.is_dir():
        lineage = load_smp(model, config.encoder, found.path, config.norm, note)
        return [{"weights": f"{lineage['weights']}, {source}", "licence": found.licence}]
    return load_encoder_file(model.encoder, config.encoder, found.path, source, found.licence)


@own_modes()
def load_model(folder: str | Path, raw_weights: bool = False) -> tuple[UNet, Checkpoint]:
    """Load the U-Net that a checkpoint folder, as runs/x/best, holds.

    raw_weights: take the weights as the optimizer left them, also where the run has kept their moving average
    (--ema-decay), which is taken otherwise.

    Returns the model in evaluation mode on the CPU (see `build_model`), and the `Checkpoint`: its `config`, `step` and
    `lineage`. Raises InputError where there is no checkpoint, or where it is damaged: every byte is checked.
    """
    if not isinstance(folder, str | Path) or not str(folder):
        raise InputError(f"load_model: cannot use {folder!r}; give a checkpoint folder, as runs/x/best")
    folder = Path(folder)
    with naming_another(folder):
        checkpoint = Checkpoint.read(folder)
        model = UNet(checkpoint.config.model)
        checkpoint.load_into(model, checkpoint.config.model.encoder, raw_weights)
    return model.eval(), checkpoint
