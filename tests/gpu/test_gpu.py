"""One GPU against the CPU, and against what the planner foretold. Needs a CUDA device; `python -m pytest -m gpu`."""

import os
import shlex
import subprocess
import sys
from functools import partial

import pytest
import torch
from helpers import REPOSITORY, rows

from glioma_dist.config import ModelConfig
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import UNet, build_model, normalise
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.planner import Step, count
from glioma_dist.size import Size

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]

RUN = shlex.split(
    "--data.size 64x64 --data.transform random-crop --data.augment flips --data.workers 0 --model.encoder mit_tiny "
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


def take_step(model: UNet, optimizer: torch.optim.Optimizer, size: Size, bf16: bool) -> dict[str, torch.Tensor]:
    """One step on the GPU; returns the gradients."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1, 1, size.height, size.width), dtype=torch.uint8, generator=generator).cuda()
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        logits = model(normalise(images), torch.zeros(1, dtype=torch.int64))
    segmentation_loss("dice", logits, (images[:, 0] > 180).to(torch.uint8)).sum().backward()
    optimizer.step()
    gradients = {name: each.grad for name, each in model.named_parameters()}
    optimizer.zero_grad()
    return gradients


def built(kind: str, encoder: str) -> tuple[UNet, torch.optim.Optimizer]:
    model = build_model(ModelConfig(encoder=encoder), 0)[0].cuda()
    checkpoint_activations(model, kind)
    return model, torch.optim.Adam(model.parameters())


@pytest.mark.parametrize("kind", ["encoder", "all"])
def test_recomputation_gives_the_plain_gradients(kind, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    expected = take_step(*built("none", "mit_b0"), Size(512, 384), bf16=False)
    for name, gradient in take_step(*built(kind, "mit_b0"), Size(512, 384), bf16=False).items():
        if not name.endswith("k_proj.bias"):  # nought but for rounding
            scale = expected[name].abs().max().clamp(min=1e-4)
            assert (gradient - expected[name]).abs().max() <= 1e-3 * scale, name


@pytest.mark.parametrize("kind", ["none", "encoder", "all"])
@pytest.mark.parametrize("size", ["704x512", "1472x1120", "2592x1952"])
def test_the_planner_foretells_the_peak_to_a_tenth(size, kind):
    size = Size.parse(size)
    step = Step(ModelConfig(encoder="mit_b3"), size, batch_size=1, bf16=True, loss=partial(segmentation_loss, "dice"))
    model, optimizer = built(kind, "mit_b3")
    take_step(model, optimizer, size, bf16=True)
    torch.cuda.reset_peak_memory_stats()
    take_step(model, optimizer, size, bf16=True)
    assert count(step, kind).peak == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.1)
