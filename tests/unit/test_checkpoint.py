"""Damaged checkpoints: every kind of damage to every file is refused in one line, wherever a checkpoint is loaded."""

import json
import os
import re
import shutil
import stat
from pathlib import Path

import pytest
import torch
from helpers import TINY_CHANNELS, command, save_state, seal, tiny_config
from safetensors.torch import load_file, save_file

from glioma_dist.cli.inputs import check_checkpoint
from glioma_dist.config import ModelConfig
from glioma_dist.errors import InputError, NonFiniteError
from glioma_dist.inference.export import export
from glioma_dist.model import tensor_files
from glioma_dist.model.checkpoint import Checkpoint, is_whole
from glioma_dist.model.hub import PretrainedUNet
from glioma_dist.model.manifest import MANIFEST, MODEL, OPTIMIZER, STATE
from glioma_dist.model.tensor_files import DTYPES, write_tensors
from glioma_dist.model.unet import build_model, load_model
from glioma_dist.training.state import TrainState, load_optimizer, load_weights, read_scaler

HEAD = "decoder.head.bias"


def make(config, seed: int):
    """A model with an optimizer that has made a step."""
    model, _ = build_model(config.model, seed)
    optimizer = torch.optim.Adam(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    return model, optimizer


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory) -> Path:
    """A folder with `one` and `two`: runs with last/ and best/, of the same settings and step, and other weights."""
    folder = tmp_path_factory.mktemp("runs")
    for number, name in enumerate(("one", "two")):
        config = tiny_config(shards, folder / name, decoder_channels=TINY_CHANNELS)
        (folder / name).mkdir()
        model, optimizer = make(config, number)
        for kind in ("last", "best"):
            moments = optimizer if kind == "last" else None
            save_state(folder / name / kind, config, TrainState(2, 0.5, 0.25), model, moments, {"lineage": []})
    return folder


@pytest.fixture
def run(runs, tmp_path) -> Path:
    """A copy of the run `one`, to be damaged."""
    return shutil.copytree(runs / "one", tmp_path / "run")


def flip(path: Path, _other: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 16
    path.write_bytes(data)


def zero(path: Path, _other: Path) -> None:
    data = bytearray(path.read_bytes())
    start = len(data) // 2
    data[start : start + 40_000] = bytes(len(data[start : start + 40_000]))
    path.write_bytes(data)


def cut(path: Path, _other: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def lengthen(path: Path, _other: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path, _other: Path) -> None:
    path.write_bytes(b"")


def swap(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


def remove(path: Path, _other: Path) -> None:
    path.unlink()


def folder_instead(path: Path, _other: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe_instead(path: Path, _other: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def endless_instead(path: Path, _other: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


DAMAGES = (flip, zero, cut, lengthen, empty, swap, remove, folder_instead, pipe_instead, endless_instead)


def one_line_of(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) <= 500
    return message


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda each: each.__name__)
@pytest.mark.parametrize("name", [MODEL, OPTIMIZER, STATE, MANIFEST])
def test_every_damage_to_every_file_is_one_line_that_names_it(runs, run, name, damage):
    damage(run / "last" / name, runs / "two" / "last" / name)
    with pytest.raises(InputError) as error:
        Checkpoint.read(run / "last").check()
    message = one_line_of(error)
    if name != MANIFEST or damage is swap:  # a manifest that says other things accuses the files
        assert str(run / "last") in message
    if name != MANIFEST:
        assert str(run / "last" / name) in message
    if damage in (folder_instead, pipe_instead, endless_instead):
        assert "plain file" in message or "is a folder" in message
    assert not is_whole(run / "last")
    assert is_whole(run / "best")


LOADS = {
    "resume weights": lambda run: load_weights(Checkpoint.read(run / "best"), build_model(CONFIG, 0)[0]),
    "evaluate and predict": lambda run: load_model(run / "best"),
    "init": lambda run: build_model(ModelConfig("mit_tiny", str(run / "best"), decoder_channels=TINY_CHANNELS), 0),
    "export": lambda run: export(run / "best", run / "model.onnx"),
    "hub": lambda run: PretrainedUNet.from_pretrained(run / "best"),
}
CONFIG = ModelConfig("mit_tiny", decoder_channels=TINY_CHANNELS)


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("damage", [flip, swap], ids=lambda each: each.__name__)
def test_every_load_checks(runs, run, load, damage):
    damage(run / "best" / MODEL, runs / "two" / "best" / MODEL)
    with pytest.raises(InputError, match="is damaged") as error:
        LOADS[load](run)
    message = one_line_of(error)
    assert str(run / "best" / MODEL) in message
    if load != "resume weights":
        assert f"give {run / 'last'}, which is undamaged" in message


def test_a_whole_checkpoint_is_named_only_where_there_is_one(run):
    flip(run / "best" / MODEL, run)
    zero(run / "last" / OPTIMIZER, run)
    with pytest.raises(InputError) as error:
        load_model(run / "best")
    assert "which is undamaged" not in one_line_of(error)
    shutil.copytree(run / "last", run / "last.1")
    seal(run / "last.1")
    with pytest.raises(InputError, match=r"last\.1, which is undamaged"):
        load_model(run / "best")


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
@pytest.mark.parametrize("damage", [flip, remove], ids=lambda each: each.__name__)
def test_merging_checks(run, tmp_path, name, damage):
    damage(run / "last" / name, run)
    ended = command("merge", "--checkpoint", run / "last", "--out", tmp_path / "merged")
    assert ended.exit_code == 2
    assert ended.stderr.count("\n") == 1
    assert f"{run / 'last' / name}: is " in ended.stderr
    assert not (tmp_path / "merged").exists()


def without(tensors: dict, name: str) -> dict:
    return {key: tensor for key, tensor in tensors.items() if key != name}


SPOILT = {
    "a missing tensor": lambda tensors, name: without(tensors, name),
    "a tensor more": lambda tensors, name: {**tensors, "more": tensors[name].clone()},
    "another shape": lambda tensors, name: {**tensors, name: tensors[name].repeat(2)},
    "not a number": lambda tensors, name: {**tensors, name: tensors[name] * float("nan")},
    "infinite": lambda tensors, name: {**tensors, name: tensors[name] * float("inf") + float("inf")},
    "whole numbers": lambda tensors, name: {**tensors, name: tensors[name].to(torch.int64)},
}


@pytest.mark.parametrize("sealed", [False, True], ids=["old manifest", "new manifest"])
@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize(("file", "name"), [(MODEL, HEAD), (OPTIMIZER, f"{HEAD}/exp_avg")])
def test_tensors_that_are_not_the_model_s_are_one_line(run, file, name, spoil, sealed):
    """Even where somebody wrote a manifest that fits."""
    path = run / "last" / file
    save_file(SPOILT[spoil](load_file(path), name), path)
    if sealed:
        seal(run / "last")

    def load() -> None:
        checkpoint, (model, optimizer) = Checkpoint.read(run / "last"), make(tiny_config(Path("x"), Path("y")), 5)
        load_weights(checkpoint, model)
        load_optimizer(checkpoint, model, optimizer)

    with pytest.raises(InputError) as error:
        load()
    assert str(run / "last") in one_line_of(error)


def test_a_checkpoint_of_an_older_version_is_one_line(run):
    for folder in (run / "last", run / "best"):
        (folder / MANIFEST).unlink()
    with pytest.raises(InputError, match=r"manifest\.json: is missing.*older version"):
        load_model(run / "best")


def test_a_checkpoint_that_a_run_replaces_meanwhile_is_said_to_be(runs, run):
    checkpoint = Checkpoint.read(run / "last")
    shutil.rmtree(run / "last")
    shutil.copytree(runs / "two" / "last", run / "last")
    with pytest.raises(InputError, match="was replaced by a newer checkpoint") as error:
        checkpoint.check()
    assert error.value.exit_code == 69
    assert "damaged" not in one_line_of(error)


@pytest.mark.parametrize("which", ["model", "optimizer"])
def test_what_is_not_finite_is_not_saved_over_what_is(runs, run, shards, which):
    config = tiny_config(shards, run)
    model, optimizer = make(config, 3)
    with torch.no_grad():
        if which == "model":
            model.decoder.head.bias.fill_(float("nan"))
        else:
            optimizer.state[model.decoder.head.bias]["exp_avg_sq"].fill_(float("inf"))
    with pytest.raises(NonFiniteError, match=r"step 7: 1 tensors.*decoder\.head\.bias"):
        save_state(run / "last", config, TrainState(7), model, optimizer, {})
    assert Checkpoint.read(run / "last").step == 2
    assert sorted(path.name for path in run.iterdir()) == ["best", "last"]


SCALER = {"scale": 65536.1, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 13}


def test_the_scaler_s_state_comes_back_exactly(run, shards):
    config = tiny_config(shards, run)
    model, optimizer = make(config, 3)
    scaler = {**SCALER, "scale": torch.tensor(65536.1)}
    save_state(run / "last", config, TrainState(3), model, optimizer, {}, scaler=scaler)
    found = read_scaler(Checkpoint.read(run / "last"))
    assert found == {**SCALER, "scale": torch.tensor(65536.1).item()}
    assert {name: type(value) for name, value in found.items()} == {name: type(value) for name, value in SCALER.items()}
    assert read_scaler(Checkpoint.read(run / "best")) is None


@pytest.mark.parametrize("scaler", [[], "x", {"scale": None}, {"scale": "1"}, {"scale": True}, {"scale": 1e999}, 3])
def test_a_scaler_that_is_none_is_one_line(run, scaler):
    path = run / "last" / STATE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scaler": scaler}))
    seal(run / "last")
    with pytest.raises(InputError, match=r"state\.json: its scaler") as error:
        read_scaler(Checkpoint.read(run / "last"))
    one_line_of(error)


def test_files_get_the_mode_that_the_umask_gives(shards, tmp_path):
    config = tiny_config(shards, tmp_path)
    model, optimizer = make(config, 3)
    before = os.umask(0o027)
    try:
        save_state(tmp_path / "last", config, TrainState(3), model, optimizer, {})
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "last").iterdir()}
    assert modes == dict.fromkeys((MODEL, OPTIMIZER, STATE, MANIFEST), 0o640)


def test_the_format_is_the_library_s_for_every_type_and_shape(tmp_path):
    """Written by us, read by safetensors; and what it writes from the same tensors is the same file."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{name} ü {shape}": (torch.randn(shape, generator=generator) * 3).to(kind)
        for kind, name in DTYPES.items()
        for shape in ((), (0,), (3,), (2, 5), (1, 2, 3, 1))
    }
    entry = write_tensors(tmp_path / "ours", tensors)
    assert entry["bytes"] == (tmp_path / "ours").stat().st_size
    found = load_file(tmp_path / "ours")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    save_file(tensors, tmp_path / "theirs")
    assert (tmp_path / "theirs").read_bytes() == (tmp_path / "ours").read_bytes()
    again = tensor_files.read_tensors(tmp_path / "ours", entry)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_where_no_checkpoint_is_the_message_names_those_of_the_run(tmp_path):
    """A run without --data.val has no best/."""
    for written in ("", "last", "best"):
        if written:
            (tmp_path / written).mkdir()
            (tmp_path / written / MANIFEST).touch()
        expected = f"for example {tmp_path / written if written else 'runs/x/best'}"
        for folder in (tmp_path, tmp_path / "of_nothing"):
            with pytest.raises(InputError, match=f"no checkpoint there.*{re.escape(expected)}$"):
                Checkpoint.read(folder)
        with pytest.raises(InputError, match=f"no such folder; .*{re.escape(expected)}, or"):
            check_checkpoint("--checkpoint", folder)


@pytest.mark.parametrize("folder", [None, 3, ""])
def test_what_is_no_folder_is_refused(folder):
    with pytest.raises(InputError, match="load_model: cannot use"):
        load_model(folder)


def test_a_folder_may_be_text(tmp_path):
    with pytest.raises(InputError, match="no checkpoint there"):
        load_model(str(tmp_path))
