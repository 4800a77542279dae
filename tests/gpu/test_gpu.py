"""One GPU against the CPU: the same run, launched twice. Needs a CUDA device; `python -m pytest -m gpu`."""

import os
import shlex
import subprocess
import sys

import pytest
import torch
from helpers import REPOSITORY, rows

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]

RUN = shlex.split(
    "--data.size 64x64 --data.fit crop --data.augment flips --data.workers 0 --model.encoder mit_tiny "
    "--model.decoder-channels 16 16 8 8 8 --batch-size 4 --max-steps 4 --eval-every 2 --lr 1e-4"
)


def losses(shards, out, **environment: str) -> list[float]:
    command = [sys.executable, "train.py", "--data.train", shards / "train", "--data.val", shards / "val", *RUN]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    subprocess.run([*map(str, command), "--out", str(out)], cwd=REPOSITORY, env={**clean, **environment}, check=True)
    return [row["loss"] for row in rows(out)]


def test_a_run_on_the_gpu_gives_the_losses_of_the_cpu(shards, tmp_path):
    here = losses(shards, tmp_path / "gpu", NVIDIA_TF32_OVERRIDE="0")
    there = losses(shards, tmp_path / "cpu", ACCELERATE_USE_CPU="true")
    assert here == pytest.approx(there, rel=1e-4)


def test_bf16_stays_close_to_fp32(shards, tmp_path):
    exact = losses(shards, tmp_path / "fp32")
    rounded = losses(shards, tmp_path / "bf16", ACCELERATE_MIXED_PRECISION="bf16")
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=2e-2)
