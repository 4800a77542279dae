"""The package's types as another project's type checker sees them."""

import os
import subprocess
import sys

import pytest
from helpers import REPOSITORY

RIGHT = """
from pathlib import Path

from torch import Tensor, nn

import glioma_dist as gd


def loss(output: Tensor) -> Tensor:
    return output.sum()


data = gd.DataConfig(train=("shards/train",), val="shards/val", size=gd.Size(64, 64), transform="random-crop")
run: gd.TrainResult = gd.train(gd.TrainConfig(data, gd.ModelConfig(encoder="mit_b0"), lr=1e-3, out=Path("run")))
best: Path = run.best
scores: gd.EvaluationResult = gd.evaluate(gd.EvaluateConfig(best, "shards/test"))
dice: float = scores.mean_dice + sum(image.dice for image in scores.images)
masks: gd.PredictionResult = gd.predict(gd.PredictConfig(best, images="plate", out=Path("masks")))
sizes: list[tuple[str, float]] = [(str(each.files["mask"]), each.confluence) for each in masks.images]
memory: gd.StepMemory = gd.estimate_step_memory(nn.Linear(4, 4), (2, 4), loss, precision="bf16")
num_bytes: int = memory.peak
reader = gd.ShardReader("shards/train")
sampler = gd.DeterministicSampler(reader.shard_sizes, 4, 0)
for batch in gd.training_batches(reader, sampler, data):
    images: Tensor = batch.images
model, lineage = gd.build_model(gd.ModelConfig(), 0)
gd.checkpoint_activations(model, "full")
version: str = gd.__version__
"""
WRONG = [
    "gd.train(4)",
    "gd.train(gd.EvaluateConfig(Path('x'), 'y'))",
    "gd.TrainConfig(lr='fast')",
    "gd.DataConfig(transform='stretch')",
    "gd.Size('64x64')",
    "run.best_loss + 1",
    "scores.dice_mean",
    "gd.estimate_step_memory(nn.Linear(4, 4), (2, 4), precision='fp8')",
    "gd.traim",
]


def check(text: str, folder) -> subprocess.CompletedProcess:
    """Check a file of another project, which has this one installed."""
    (folder / "consumer.py").write_text(text)
    program = [sys.executable, "-m", "ty", "check", "--output-format", "concise", "--color", "never"]
    where = ["--project", str(folder), "--extra-search-path", str(REPOSITORY), "--python", sys.prefix]
    return subprocess.run(
        [*program, *where, "consumer.py"], cwd=folder, env=os.environ, capture_output=True, text=True, check=False
    )


def test_a_right_use_is_clean_and_each_wrong_one_is_found(tmp_path):
    pytest.importorskip("ty")
    clean = check(RIGHT, tmp_path)
    assert clean.returncode == 0, clean.stdout + clean.stderr
    num_lines = len(RIGHT.splitlines())
    found = check(RIGHT + "\n".join(WRONG) + "\n", tmp_path)
    assert found.returncode == 1, found.stdout + found.stderr
    lines = {int(line.split(":")[1]) for line in found.stdout.splitlines() if line.startswith("consumer.py:")}
    assert lines == set(range(num_lines + 1, num_lines + len(WRONG) + 1)), found.stdout
