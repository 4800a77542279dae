"""Train a U-Net with your own loss.

    python examples/own_loss.py runs/demo/shards/glioma_c6 runs/own_loss

The first folder has train and val, as `make demo` makes them. To use the loss with `accelerate launch train.py`, put
the function into your own package and declare an entry point (docs/guides/own_parts.md).
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import glioma_dist as gd
from glioma_dist.registry import losses


@losses.register("soft_jaccard")
def soft_jaccard(logits: Tensor, masks: Tensor, valid: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    """1 - (sum(p m) + 1) / (sum(p) + sum(m) - sum(p m) + 1) of each image, p = sigmoid(logit).

    logits, masks: (B, H, W), fp32; masks are 0 and 1. valid: (B, H, W), False where nobody labelled the pixel. total:
    converts sums over a strip of each image, (N, B), to sums over the whole image, in case several processes share an
    image. Returns (B,).
    """
    probabilities = logits.sigmoid() * valid
    sums = torch.stack([(probabilities * masks).sum((1, 2)), probabilities.sum((1, 2)), masks.sum((1, 2))])
    overlap, predicted, labelled = total(sums)
    return 1 - (overlap + 1) / (predicted + labelled - overlap + 1)


def main(shards: str, out: str) -> None:
    data = gd.DataConfig(
        train=(f"{shards}/train",),
        val=f"{shards}/val",
        size=gd.Size(64, 64),
        transform="random-resized-crop",
        workers=0,
    )
    model = gd.ModelConfig(encoder="mit_tiny", decoder_channels=(32, 32, 16, 16, 8))
    run = gd.train(
        gd.TrainConfig(data, model, loss="soft_jaccard+bce", lr=1e-3, max_steps=8, eval_every=8, out=Path(out))
    )
    print(f"step {run.step}, in {run.best}")


if __name__ == "__main__":
    main(*sys.argv[1:])
