"""Bad input to the commands: one line that names the file, the sample, the value and what to do; exit code 2."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import (
    REPOSITORY,
    Ended,
    command,
    damage_sample,
    draw_sample,
    draw_shards,
    save_state,
    seal,
    tiny_config,
    write_shards,
)
from safetensors.torch import load_file, save_file

from glioma_dist.data.shards import writer as shards_writer
from glioma_dist.model.unet import build_model
from glioma_dist.training.state import TrainState


def check_line(ended: Ended, *fragments: str, code: int = 2) -> None:
    assert ended.exit_code == code, ended.stderr
    assert re.fullmatch(r"error: .*\n", ended.stderr), ended.stderr
    for fragment in fragments:
        assert str(fragment) in ended.stderr


def arguments(shards: Path, out: Path, **flags: object) -> list[str]:
    """Flags of a training of one step; `flags` replace or add to them."""
    known = {
        "data.train": shards / "train",
        "data.val": shards / "val",
        "data.size": "64x64",
        "data.workers": 0,
        "model.encoder": "mit_tiny",
        "model.decoder-channels": "16 16 8 8 8",
        "batch-size": 4,
        "max-steps": 1,
        "out": out,
    } | flags
    return [part for name, value in known.items() for part in (f"--{name}", *str(value).split(" "))]


def truncate(folder: Path) -> None:
    path = folder / "00001.tar"
    os.truncate(path, path.stat().st_size // 2)


def truncate_behind_the_indexs_back(folder: Path) -> None:
    """Cut short after it was opened: the index agrees with the file, its members do not."""
    path = folder / "00001.tar"
    index = json.loads((folder / "index.json").read_text())
    index["shards"][1]["bytes"] //= 2
    (folder / "index.json").write_text(json.dumps(index))
    os.truncate(path, index["shards"][1]["bytes"])


def shrink_a_mask(folder: Path) -> None:
    samples = [draw_sample(number) for number in range(6)]
    samples[3] = replace(samples[3], mask=np.ascontiguousarray(samples[3].mask[:, :-1]))
    shutil.rmtree(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards_writer, "check_same_size", lambda *_: None)
        write_shards(folder, samples)


def leave_three(folder: Path) -> None:
    shutil.rmtree(folder)
    draw_shards(folder, range(3))


@pytest.mark.parametrize(
    ("harm", "fragments"),
    [
        (shutil.rmtree, ("train: no such folder", "convert")),
        (lambda folder: (folder / "index.json").unlink(), ("index.json", "shards index")),
        (lambda folder: (folder / "index.json").write_text("{"), ("index.json", "convert again")),
        (lambda folder: (folder / "00002.tar").unlink(), ("00002.tar", "convert again")),
        (truncate, ("00001.tar", "bytes found", "convert again")),
        (truncate_behind_the_indexs_back, ("00001", "convert again")),
        (shrink_a_mask, ("cell-003", "96x80", "95x80", "convert again")),
        (lambda folder: damage_sample(folder, "cell-005"), ("cell-005.png", "damaged")),
        (leave_three, ("3 samples", "--batch-size 4")),
    ],
    ids=[
        "missing folder",
        "no index",
        "broken index",
        "missing tar",
        "truncated tar",
        "truncated tar, agreeing index",
        "mask of another size",
        "corrupt PNG",
        "fewer samples than the batch",
    ],
)
def test_training_data_that_cannot_be_used_is_one_line(shards, tmp_path, harm, fragments):
    shutil.copytree(shards, tmp_path / "data")
    harm(tmp_path / "data" / "train")
    # Enough steps for every sample to be read.
    ended = command("train.py", *arguments(tmp_path / "data", tmp_path / "run", **{"max-steps": 6}))
    check_line(ended, tmp_path / "data" / "train" if harm is not leave_three else "", *fragments)


def test_a_damaged_validation_image_is_one_line(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "data")
    damage_sample(tmp_path / "data" / "val", "cell-101")
    check_line(command("train.py", *arguments(tmp_path / "data", tmp_path / "run")), "cell-101", "val")


def test_a_folder_above_the_splits_names_them(shards, tmp_path):
    ended = command("train.py", *arguments(shards, tmp_path / "run", **{"data.train": shards}))
    check_line(ended, "name one of its splits", "train", "val")


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        ({"data.size": "64"}, ("'64' is not a size", "WIDTHxHEIGHT")),
        ({"model.encoder": "mit_b8"}, ("mit_b8", "did you mean mit_b")),
        ({"model.init": "nowhere"}, ("--model.init nowhere", "no such file or folder")),
        ({"lr": "-1"}, ("--lr -1",)),
        (
            {"data.transform": "random-crop", "data.size": "128x64"},
            ("cell-0", "96x80", "128x64", "--data.transform resize"),
        ),
        ({"config": "nowhere.json"}, ("nowhere.json",)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_value_that_cannot_be_used_is_one_line(shards, tmp_path, flags, fragments):
    check_line(command("train.py", *arguments(shards, tmp_path / "run", **flags)), *fragments)
    if "data.transform" not in flags:
        assert not (tmp_path / "run").exists()


def test_the_run_of_others_is_one_line(shards, tmp_path):
    first = command("train.py", *arguments(shards, tmp_path / "run"))
    assert first.exit_code == 0, first.stderr
    assert first.stderr == ""
    ended = command("train.py", *arguments(shards, tmp_path / "run", seed=3, lr=0.5))
    check_line(ended, f"--out {tmp_path / 'run'} belongs to another run", "seed 0 -> 3", "lr 0.0001 -> 0.5")
    check_line(command("train.py", *arguments(shards, tmp_path / "run", resume="never")), "--resume never")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    check_line(command("train.py", *arguments(shards, tmp_path / "other")), "holds no run", tmp_path / "other")


def test_an_out_that_cannot_be_made_is_one_line(shards, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        check_line(command("train.py", *arguments(shards, out)), out)


@pytest.fixture(scope="module")
def checkpoint(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "best"
    config = tiny_config(shards, folder.parent)
    save_state(folder, config, TrainState(step=1), build_model(config.model, 0)[0], None, {"lineage": []})
    return folder


def test_a_loss_that_is_no_number_is_one_line(shards, checkpoint, tmp_path):
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    save_file(
        {
            name: tensor * 1e38 if name.startswith("decoder.blocks.4.norm") and tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        },
        broken / "model.safetensors",
    )
    seal(broken)
    ended = command("train.py", *arguments(shards, tmp_path / "run", **{"model.init": broken}))
    check_line(ended, "step 1: the loss is nan", "cell-0", "--lr", code=4)


def test_evaluation_of_what_is_not_there_is_one_line(shards, checkpoint, tmp_path):
    nowhere = tmp_path / "nowhere"
    check_line(command("evaluate.py", "--checkpoint", nowhere, "--data", shards / "val"), nowhere, "runs/x/best")
    check_line(command("evaluate.py", "--checkpoint", checkpoint, "--data", nowhere), f"{nowhere}: no such folder")
    damaged = shutil.copytree(checkpoint, tmp_path / "damaged")
    os.truncate(damaged / "model.safetensors", 1000)
    check_line(command("evaluate.py", "--checkpoint", damaged, "--data", shards / "val"), damaged / "model.safetensors")


def test_prediction_of_what_is_not_there_is_one_line(checkpoint, tmp_path):
    out = ["--out", tmp_path / "out"]
    check_line(command("predict.py", "--checkpoint", checkpoint, "--images", tmp_path, *out), tmp_path, ".tif", ".png")
    (tmp_path / "a.png").write_bytes(b"no image")
    check_line(command("predict.py", "--checkpoint", checkpoint, "--images", tmp_path, *out), "1 of 1", "a.png")
    check_line(command("predict.py", "--checkpoint", tmp_path, "--images", tmp_path, *out), "no checkpoint there")


def test_the_commands_themselves_speak_so_too(tmp_path):
    """As a user starts them, once: all else above runs the same files in processes that start faster."""
    ended = subprocess.run(
        [
            sys.executable,
            "train.py",
            "--data.train",
            str(tmp_path / "nowhere"),
            "--out",
            str(tmp_path / "run"),
            "--model.encoder",
            "mit_tiny",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    check_line(Ended(ended.returncode, None, ended.stdout, ended.stderr), f"{tmp_path / 'nowhere'}: no such folder")
