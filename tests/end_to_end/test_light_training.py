"""A command imports the libraries that its config needs, and no others: a look at what each process has imported."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from helpers import REPOSITORY, draw_sample, draw_shards

PROGRAM = """
import atexit, json, runpy, sys
atexit.register(lambda: sys.__stdout__.write("\\nMODULES " + json.dumps(sorted(sys.modules))))
sys.argv = json.loads(sys.argv[1])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
NOT_FOR_MIT = {
    "albumentations",
    "fsspec",
    "matplotlib",
    "mlflow",
    "pandas",
    "pycocotools",
    "scipy",
    "sklearn",
    "tensorboard",
    "timm",
    "torchvision",
    "trackio",
    "transformers",
    "wandb",
    "webdataset",
}
"""What a MiT without augmentation needs nothing of."""
FOR_OPTIMIZERS = {"torch._dynamo", "torch._inductor"}
"""PyTorch's optimizers import these when they are made, so that every training pays for them; no other command does."""


def modules_of(script: str, *arguments: object) -> set[str]:
    """Names of the modules that a command has imported when it ends well."""
    command = [sys.executable, "-c", PROGRAM, json.dumps([str(REPOSITORY / script), *map(str, arguments)])]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY), "ACCELERATE_USE_CPU": "true"}
    ended = subprocess.run(
        command, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == "", "a library complains, maybe as Python ends"
    return set(json.loads(ended.stdout.rpartition("MODULES ")[2]))


def train(shards: Path, out: Path, *more: object) -> set[str]:
    return modules_of(
        "train.py",
        *("--data.train", shards / "train", "--data.val", shards / "val", "--data.size", "64x64", "--out", out),
        *("--max-steps", 1, "--eval-every", 1, "--batch-size", 2, "--data.workers", 0, *more),
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    draw_shards(folder / "train", range(2))
    draw_shards(folder / "val", range(2, 3))
    return folder


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory) -> tuple[Path, set[str]]:
    """A checkpoint of a MiT, and what its training had imported."""
    out = tmp_path_factory.mktemp("runs") / "mit"
    return out / "best", train(shards, out, "--model.encoder", "mit_tiny")


def test_training_a_mit_imports_only_what_it_needs(trained):
    _, modules = trained
    assert {"torch", "accelerate", "glioma_dist.model.encoders.mit"} <= modules
    assert NOT_FOR_MIT & modules == set()


def test_evaluating_and_predicting_import_no_more(trained, shards, tmp_path):
    checkpoint, _ = trained
    cv2.imwrite(str(tmp_path / "image.png"), draw_sample(5).image)
    commands = (
        ("evaluate.py", "--data", shards / "val", "--workers", 0),
        ("predict.py", "--images", tmp_path / "image.png", "--out", tmp_path / "masks"),
    )
    for script, *arguments in commands:
        modules = modules_of(script, "--checkpoint", checkpoint, *arguments)
        assert "glioma_dist.model.encoders.mit" in modules
        counts_components = {"scipy"} if script == "predict.py" else set()
        assert (NOT_FOR_MIT | FOR_OPTIMIZERS) & modules == counts_components, script


def test_what_a_config_asks_for_is_imported(shards, tmp_path):
    """The counter-check: the look finds these where they are needed."""
    modules = train(shards, tmp_path / "out", "--model.encoder", "mobilenet_v2", "--data.augment", "contrast")
    assert {"timm", "albumentations"} <= modules
    assert "transformers" not in modules
