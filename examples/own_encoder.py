"""Train a U-Net with your own encoder.

    python examples/own_encoder.py runs/demo/shards/glioma_c6 runs/own_encoder

The first folder has train, val and test, as `make demo` makes them. To use the encoder with `accelerate launch
train.py`, put the class into your own package and declare an entry point (docs/guides/own_parts.md).
"""

import sys
from itertools import pairwise
from pathlib import Path

from torch import Tensor, nn

import glioma_dist as gd
from glioma_dist.registry import encoders


@encoders.register("plain_cnn")
class PlainCNN(gd.Encoder):
    """Five stages, each with a strided and a plain convolution, at strides 2 to 32."""

    strides = (2, 4, 8, 16, 32)
    channels = (16, 24, 32, 48, 64)

    def __init__(self, name: str) -> None:
        super().__init__()
        widths = (3, *self.channels)
        self.stages = nn.ModuleList([stage(*pair) for pair in pairwise(widths)])

    def forward(self, images: Tensor, seeds: Tensor | None = None) -> list[Tensor]:
        """images: (B, 3, H, W). Returns maps (B, channels[i], H / strides[i], W / strides[i]), finest first."""
        features, maps = images, []
        for each in self.stages:
            features = self.run_segment(each, features)  # so that activation checkpointing can compute it again
            maps.append(features)
        return maps

    def blocks(self) -> list[nn.Module]:
        """Return the units that FSDP2 shards and --scale.compile compiles."""
        return list(self.stages)


def stage(channels_in: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


def main(shards: str, out: str) -> None:
    data = gd.DataConfig(
        train=(f"{shards}/train",),
        val=f"{shards}/val",
        size=gd.Size(64, 64),
        transform="random-resized-crop",
        augment=("flips",),
        workers=0,
    )
    model = gd.ModelConfig(encoder="plain_cnn", decoder_channels=(32, 32, 16, 16, 8))
    run = gd.train(gd.TrainConfig(data, model, lr=1e-3, max_steps=8, eval_every=8, out=Path(out)))
    scores = gd.evaluate(gd.EvaluateConfig(run.best, f"{shards}/test", out=Path(out) / "scores.json"))
    print(f"mean Dice {scores.mean_dice:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
