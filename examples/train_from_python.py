"""Train a U-Net, score it on images that it has not seen, and segment one of them.

    python examples/train_from_python.py runs/demo/shards/glioma_c6 runs/from_python

`make demo` makes these shards. To use several GPUs, write `accelerate launch --config_file FILE` instead of `python`.
"""

import argparse
from pathlib import Path

import torch

import glioma_dist as gd

parser = argparse.ArgumentParser()
parser.add_argument("shards", type=Path, help="a folder with train, val and test")
parser.add_argument("out", type=Path, help="folder of the run; the same command again resumes it")
parser.add_argument("--steps", type=int, default=64)
parser.add_argument("--size", type=gd.Size.parse, default=gd.Size(256, 256))
arguments = parser.parse_args()

data = gd.DataConfig(
    train=(str(arguments.shards / "train"),),
    val=str(arguments.shards / "val"),
    size=arguments.size,
    transform="random-crop",
    augment=("flips",),
)
config = gd.TrainConfig(
    data, gd.ModelConfig(encoder="mit_b0"), lr=1e-3, epochs=1000, max_steps=arguments.steps, out=arguments.out
)
run = gd.train(config)
print(f"{run.step} steps, best validation Dice {run.best_dice}, in {run.best}")

scores = gd.evaluate(gd.EvaluateConfig(run.best, str(arguments.shards / "test")))
for image in scores.images:
    print(f"{image.dice:.3f}  {image.key}")
print(f"{scores.mean_dice:.3f}  mean Dice")

model, _ = gd.load_model(run.best)
sample = gd.ShardReader(arguments.shards / "test").read(shard=0, place=0)
with torch.no_grad():
    logits = model(gd.normalise(torch.from_numpy(sample.image)[None, None]))  # a grey uint8 image: (1, 1, H, W)
print(f"{sample.key}: {(logits > 0).float().mean():.1%} of the image is covered by cells")
