"""The demo's steps: the commands of this program, one after the other, as a user types them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from glioma_dist.config.launch_files import launch_file
from glioma_dist.distributed.children import run_child
from glioma_dist.distributed.launch import USE_CPU, flag
from glioma_dist.errors import as_error

PROGRAM = ("glioma-dist",)
TRAINING = (
    *("--data.size", "256x256", "--data.transform", "random-crop", "--data.augment", "flips", "--data.workers", "1"),
    *("--model.encoder", "mit_b0", "--batch-size", "4", "--lr", "1e-3"),
    *("--epochs", "1000", "--max-steps", "64", "--eval-every", "32"),
)
"""What every run of the demo trains with; a larger --max-steps trains longer."""


def demo_steps(out: Path, drawing: Sequence[str], training: Sequence[str], launch: Path) -> list[list[str]]:
    """The commands of the demo. drawing, training: further flags. launch: the file for accelerate launch."""
    source, shards, run = out / "source", out / "shards", out / "run"
    launched = ["accelerate", "launch", "--quiet", "--config_file", str(launch), "-m", "glioma_dist"]
    glioma = [f"{shards / 'glioma_c6' / name}" for name in ("train", "val", "test")]
    train = ["--data.train", glioma[0], "--data.val", glioma[1], *TRAINING, *training, "--out", str(run)]
    images = source / "glioma_c6" / "dataset" / "spec" / "test" / "images" / "*_0[123].tif"
    best = ["--checkpoint", str(run / "best")]
    return [
        [*PROGRAM, "demo", "--draw-only", "--out", str(out), *drawing],
        [*PROGRAM, "convert", "livecell", "--source", f"{source / 'livecell'}", "--out", f"{shards / 'livecell'}"],
        [*PROGRAM, "convert", "glioma-c6", "--source", f"{source / 'glioma_c6'}", "--out", f"{shards / 'glioma_c6'}"],
        [*launched, "train", *train],
        [*launched, "evaluate", *best, "--data", glioma[2], "--out", str(out / "scores.json")],
        [*PROGRAM, "predict", *best, "--images", str(images), "--out", str(out / "masks")],
    ]


def run_steps(steps: Sequence[Sequence[str]]) -> None:
    """Print each command and run it. Raises the RunError of the first that does not end well."""
    for words in steps:
        print(f"\n$ {shlex.join(words)}", flush=True)
        code = run_child(executable(words))
        if code:
            raise as_error(code, f"{shlex.join(words)[:300]}: ended with exit code {code}; its own lines say why")


def executable(words: Sequence[str]) -> list[str]:
    """The same command by this Python, whose folder of programs need not be on the PATH."""
    if tuple(words[:1]) == PROGRAM:
        return [sys.executable, "-m", "glioma_dist", *words[1:]]
    return [sys.executable, "-m", "accelerate.commands.launch", *words[2:]]


def choose_launch_file() -> Path:
    """One GPU where there is one, else two processes on the CPU, else one."""
    if has_gpu():
        return launch_file("gpu.yaml")
    return launch_file("cpu_2_processes.yaml" if len(os.sched_getaffinity(0)) >= 2 else "cpu.yaml")


def has_gpu() -> bool:
    """Whether the driver lists one; PyTorch, which would know for certain, takes seconds to import."""
    if shutil.which("nvidia-smi") is None or flag(os.environ, USE_CPU):
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0
