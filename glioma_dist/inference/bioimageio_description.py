"""The description in a package of bioimage.io: what bioimageio.yaml says, in the words of its model description 0.5."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from glioma_dist.config import ModelConfig
from glioma_dist.data.images.value_range import HIGH_PERCENT, LOW_PERCENT
from glioma_dist.evaluation.network import THRESHOLD, Contrast
from glioma_dist.inference.export import OPSET, channels_of
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.unet import UNet

IMAGE, PROBABILITY = "image", "probability"
MIN_SIDE, STEP = 64, 1
"""Sides of images in pixels: the smallest, and the steps to the next. The graphs pad to what the network needs, as
`predict` does; with larger steps bioimage.io's library would refuse whole images of most sizes."""
EPSILON = 1e-6
"""Of `scale_range`."""
OFFSET_16_BIT = -0.498
"""Rounding `value / 256 + OFFSET_16_BIT` gives `value // 256` for each value of 16 bits."""
TO_FLOAT = {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}
OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}
"""--optimizer -> its name for readers."""
U_NET = {"text": "Ronneberger et al. 2015, U-Net", "doi": "10.1007/978-3-319-24574-4_28"}
TAGS = ("cells", "semantic-segmentation", "2d", "transmission-light-microscopy", "phase-contrast", "unet", "pytorch")


def preprocessing(contrast: Contrast, kind: np.dtype) -> list[dict[str, Any]]:
    """Return the steps that scale an image's values to 0 to 1, in the format of bioimage.io."""
    if contrast == "percentile":
        percents = {"min_percentile": LOW_PERCENT, "max_percentile": HIGH_PERCENT}
        return [{"id": "scale_range", "kwargs": {"axes": ["channel", "y", "x"], "eps": EPSILON, **percents}}]
    gain, offset = (1.0, 0.0) if kind == np.uint8 else (1 / 256, OFFSET_16_BIT)
    return [{"id": "scale_linear", "kwargs": {"gain": gain / 255, "offset": offset / 255}}]


def _tensors(
    num_channels: int, steps: Sequence[Mapping[str, Any]], config: ModelConfig
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What goes in, and what comes out."""
    names = channels_of(config)
    is_one = len(names) == 1
    told = f"probability of each pixel to belong to a cell; at least {THRESHOLD} means cell"
    if not is_one:
        told = f"probabilities of each pixel: {', '.join(names)}"

    def space(axis: str) -> dict[str, Any]:
        return {"type": "space", "id": axis}

    sides = [space(axis) | {"size": {"min": MIN_SIDE, "step": STEP}} for axis in "yx"]
    same = [space(axis) | {"size": {"tensor_id": IMAGE, "axis_id": axis}} for axis in "yx"]
    channels = [IMAGE] if num_channels == 1 else ["red", "green", "blue"]
    image = {
        "id": IMAGE,
        "description": "a phase-contrast image, its values as taken",
        "axes": [{"type": "batch", "size": 1}, {"type": "channel", "channel_names": channels}, *sides],
        "data": {"type": "float32"},
        "test_tensor": {"source": "test_input.npy"},
        "sample_tensor": {"source": "sample_input.png"},
        "preprocessing": [TO_FLOAT, *steps, TO_FLOAT],
    }
    probability = {
        "id": PROBABILITY,
        "description": told,
        "axes": [
            {"type": "batch", "size": 1},
            {"type": "channel", "channel_names": [PROBABILITY] if is_one else as_channels(names)},
            *same,
        ],
        "data": {"type": "float32", "range": [0.0, 1.0]},
        "test_tensor": {"source": "test_output.npy"},
        "sample_tensor": {"source": "sample_output.png"},
        "postprocessing": [{"id": "sigmoid"}, TO_FLOAT] if is_one else [TO_FLOAT],
    }
    return image, probability


def as_channels(names: Sequence[str]) -> list[str]:
    """Return names that bioimage.io takes for channels, each once."""
    channels: list[str] = []
    for name in names:
        plain = re.sub(r"\W+", "_", name).strip("_").lower() or "class"
        others = (f"{plain}_{number}" for number in range(2, len(names) + 2))
        channels.append(next(each for each in (plain, *others) if each not in channels))
    return channels


def describe(
    read: Checkpoint,
    model: UNet,
    num_channels: int,
    steps: Sequence[Mapping[str, Any]],
    name: str | None,
    authors: Sequence[str],
    licence: str | None,
) -> dict[str, Any]:
    """Return the description of a package, before bioimage.io checks it.

    Args:
        num_channels: of its images. steps: those of `preprocessing`. name, authors: as they are given.
        licence: its SPDX identifier; None where LICENCES.md says more.
    """
    from bioimageio.spec.model.v0_5 import ModelDescr

    config = read.config
    image, probability = _tensors(num_channels, steps, config.model)
    training = {
        "loss_function": config.loss,
        "training_batch_size": config.batch_size,
        "initial_learning_rate": config.lr,
        "optimizer": OPTIMIZERS.get(config.optimizer, config.optimizer),
    }
    return {
        "type": "model",
        "format_version": ModelDescr.implemented_format_version,
        "name": name or f"glioma-dist U-Net {config.model.encoder.replace('/', ' ').replace('.', '_')}",
        "description": "Segments cells in phase-contrast images: for each pixel whether it belongs to a cell.",
        "authors": [{"name": each} for each in authors],
        "cite": [U_NET],
        "license": licence or {"source": "LICENCES.md"},
        "tags": [*TAGS, config.model.encoder],
        "documentation": {"source": "README.md"},
        "covers": [{"source": "cover.png"}],
        "inputs": [image],
        "outputs": [probability],
        "weights": {
            "torchscript": {"source": "weights.pt", "pytorch_version": torch.__version__.partition("+")[0]},
            "onnx": {"source": "weights.onnx", "opset_version": OPSET, "parent": "torchscript"},
        },
        "config": {
            "bioimageio": {
                "architecture_type": "U-Net",
                "modality": "phase-contrast microscopy",
                "target_structure": list(config.model.classes) or ["cells"],
                "task": "semantic segmentation",
                "model_parameter_count": sum(each.numel() for each in model.parameters()),
                "training": training,
            },
            "glioma_dist": {"encoder": config.model.encoder, "step": read.step, "lineage": list(read.lineage)},
        },
    }
