"""What the golden values take from the package, and nothing else here does: a renaming is followed in this file alone.

Imports wait until a function is called, so that the environment can be set first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

TINY_DECODER = (16, 16, 8, 8, 8)


def encoder_names() -> tuple[str, ...]:
    """Names of all encoders, in the order of their registration."""
    from glioma_dist.registry import encoders

    return encoders.names()


def initial(encoder: str, images: np.ndarray) -> tuple[list[Tensor], Tensor]:
    """A new U-Net with random weights of seed 0: its weights and buffers, in the order of its modules, and what it
    makes in training mode of images, uint8 (B, H, W): logits (B, 1, H, W). The second tells two layers of one shape
    apart, which the first does not."""
    import torch

    from glioma_dist.config import ModelConfig
    from glioma_dist.model.unet import build_model, normalise

    model = build_model(ModelConfig(encoder=encoder), 0)[0]
    weights = [tensor.clone() for tensor in model.state_dict().values()]
    with torch.no_grad():
        return weights, model(normalise(torch.from_numpy(images)[:, None]))


@contextmanager
def narrow_resnet() -> Iterator[None]:
    """Within it resnet50 is built shallow and narrow, the architecture the same."""
    import pytest
    from encoder_helpers import narrow

    with pytest.MonkeyPatch.context() as patch:
        narrow(patch, "resnet50")
        yield


def write_shards(folder: Path, samples: Iterable[tuple[str, np.ndarray, np.ndarray]]) -> None:
    """Write shards of three samples each. samples: key, image uint8 (H, W), mask uint8 (H, W) of 0 and 1."""
    from glioma_dist.data.sample import Sample
    from glioma_dist.data.shards.reader import ShardWriter

    with ShardWriter(folder, "drawn", folder.name, "CC0", samples_per_shard=3) as writer:
        for key, image, mask in samples:
            writer.write(Sample(key, image, mask, {"num_cells": 1}))


def train(encoder: str, data: dict[str, Any], num_steps: int, out: Path) -> list[dict[str, Any]]:
    """Train a U-Net with a narrow decoder on this process alone; it is written to `out`.

    data: `train`, `val` (folders of shards), `side` of the square crops, `resized` (whether a crop's window has a size
    of its own, drawn at random), `augment`. Returns the rows of metrics.jsonl without the speed, with its last
    validation.
    """
    from glioma_dist.config import DataConfig, ModelConfig, TrainConfig
    from glioma_dist.distributed.context import DistributedContext
    from glioma_dist.size import Size
    from glioma_dist.training import loop

    shown = DataConfig(
        train=data["train"],
        val=data["val"],
        size=Size(data["side"], data["side"]),
        transform="random-resized-crop" if data["resized"] else "random-crop",
        augment=data["augment"],
        workers=0,
    )
    config = TrainConfig(
        data=shown,
        model=ModelConfig(encoder=encoder, decoder_channels=TINY_DECODER),
        loss="dice+bce",
        batch_size=4,
        lr=1e-3,
        max_steps=num_steps,
        eval_every=num_steps,  # and so one checkpoint, of which convolutional networks' take longest
        out=out,
    )
    loop.train(config, DistributedContext.start())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    speed = ("images_per_second", "step_seconds", "data_wait_share")
    return [{name: value for name, value in row.items() if name not in speed} for row in rows]


def trained(out: Path, image: np.ndarray) -> tuple[list[Tensor], Tensor]:
    """What `train` left: weights and buffers in the order of the modules, and the logits (H, W) of an image, uint8
    (H, W), after the contrast that it was trained with."""
    import torch

    from glioma_dist.data.loader import image_tensor
    from glioma_dist.data.transforms import normalize_intensity
    from glioma_dist.model.unet import load_model, normalise

    model, checkpoint = load_model(out / "last")
    shown = image_tensor(normalize_intensity(image, checkpoint.config.data.intensity_normalization))[None]
    with torch.inference_mode():
        logits = model(normalise(shown))[0, 0]
    return list(model.state_dict().values()), logits
