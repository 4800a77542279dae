"""Launchers as users start them: what they start trains one model, or ends with one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY, Ended, command, rows, tiny_config

from glioma_dist.training import loop

ACCELERATE, TORCHRUN = ("accelerate.commands.launch",), ("torch.distributed.run", "--nproc_per_node", "2")


@pytest.fixture(scope="module")
def one(shards, tmp_path_factory, runtime) -> Path:
    """A run of two steps without a launcher."""
    out = tmp_path_factory.mktemp("launches") / "one"
    loop.train(tiny_config(shards, out, max_steps=2, eval_every=None), runtime)
    return out


def launch(
    launcher: tuple[str, ...], one: Path, out: Path, home: Path, python: Path | str = sys.executable
) -> subprocess.CompletedProcess:
    """Train again, by a launcher, in a shell that says nothing of one and for a user without settings."""
    return subprocess.run(
        [str(python), "-m", *launcher, "train.py", "--config", str(one / "config.json"), "--out", str(out)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**{key: value for key, value in os.environ.items() if "ACCELERATE" not in key}, "HF_HOME": str(home)},
    )


@pytest.mark.parametrize(("launcher", "processes"), [(ACCELERATE, 1), (TORCHRUN, 2)], ids=["accelerate", "torchrun"])
def test_launchers_without_settings_train_one_model(one, quick_python, tmp_path, launcher, processes):
    """accelerate and its one process are new interpreters."""
    ended = launch(launcher, one, tmp_path / "out", tmp_path, sys.executable if processes == 1 else quick_python)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert f"on {processes} process" in ended.stdout
    found, expected = ([row["loss"] for row in rows(out)][:1] for out in (tmp_path / "out", one))
    assert found == pytest.approx(expected, rel=1e-6)


def test_settings_that_do_not_work_end_with_one_line(one, quick_python, tmp_path):
    """By the real launcher, whose own traceback of the process that failed comes after it."""
    config = tmp_path / "settings.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nnum_machines: 1\nnum_processes: 1\nuse_cpu: true\n"
        "dynamo_config:\n  dynamo_backend: INDUCTOR\n"
    )
    ended = launch((*ACCELERATE, "--config_file", str(config)), one, tmp_path / "out", tmp_path, quick_python)
    assert ended.returncode != 0
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "ACCELERATE_DYNAMO_BACKEND=INDUCTOR: accelerate would compile the whole network" in errors[0]
    assert not (tmp_path / "out").exists()


NO_GPU = {"ACCELERATE_USE_CPU": "false", "ACCELERATE_MIXED_PRECISION": "bf16", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}, "gradient accumulation is not supported"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported"),
        (NO_GPU, "mixed_precision: bf16 asks for a GPU"),
    ],
    ids=["accumulation", "DeepSpeed", "no GPU"],
)
@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "predict.py"])
def test_every_command_refuses_alike(one, shards, tmp_path, script, environment, expected):
    (tmp_path / "in").mkdir()
    arguments = {
        "train.py": ["--config", one / "config.json"],
        "evaluate.py": ["--checkpoint", one / "last", "--data", shards / "train"],
        "predict.py": ["--checkpoint", one / "last", "--images", tmp_path / "in"],
    }[script]
    ended: Ended = command(script, *arguments, "--out", tmp_path / "out", environment=environment)
    assert (ended.exit_code, ended.stderr.count("\n")) == (2, 1), ended.stderr[-2000:]
    assert ended.stderr.startswith("error: ")
    assert expected in ended.stderr
    assert not (tmp_path / "out").exists()
