"""Checkpoints: what is saved comes back, nothing in them is executed, and a kill never leaves half of one."""

import json
import math
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import save_state, seal, tiny_config

from glioma_dist.errors import InputError
from glioma_dist.model import checkpoint_writer, tensor_files
from glioma_dist.model.checkpoint import Checkpoint, find_checkpoint, kept_folders
from glioma_dist.model.manifest import MANIFEST, MODEL, OPTIMIZER, STATE
from glioma_dist.model.unet import build_model
from glioma_dist.training.metrics_file import MetricsFile
from glioma_dist.training.state import TrainState, load_optimizer, load_weights


def make(seed: int, config) -> SimpleNamespace:
    model, _ = build_model(config.model, seed)
    return SimpleNamespace(model=model, optimizer=torch.optim.Adam(model.parameters(), lr=config.lr))


def step(made: SimpleNamespace, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    made.optimizer.zero_grad()
    for parameter in made.model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    made.optimizer.step()
    for name, buffer in made.model.named_buffers():
        buffer += 1 if "num_batches" in name else 0.25


@pytest.fixture
def saved(shards, tmp_path):
    """A checkpoint after two steps, as a namespace: folder, config, and what was saved."""
    config = tiny_config(shards, tmp_path)
    made = make(0, config)
    for number in range(2):
        step(made, number)
    folder = tmp_path / "last"
    save_state(folder, config, TrainState(2, 0.125, 0.75, 1), made.model, made.optimizer, {"lineage": [], "more": "x"})
    return SimpleNamespace(folder=folder, config=config, made=made)


def load_state(checkpoint: Checkpoint, model, optimizer) -> TrainState:
    position = load_weights(checkpoint, model)
    load_optimizer(checkpoint, model, optimizer)
    return position


def check_equal(one: SimpleNamespace, other: SimpleNamespace) -> None:
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name
    states = one.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"]
    assert states[0].keys() == states[1].keys()
    for number, values in states[0].items():
        assert values.keys() == states[1][number].keys()
        assert all(torch.equal(value, states[1][number][name]) for name, value in values.items())


def test_what_is_saved_comes_back_and_goes_on_alike(saved):
    read = Checkpoint.read(saved.folder)
    assert read.config == saved.config
    assert read.metadata["more"] == "x"
    fresh = make(1, saved.config)
    assert load_state(read, fresh.model, fresh.optimizer) == TrainState(2, 0.125, 0.75, 1)
    check_equal(saved.made, fresh)
    step(saved.made, 2)
    step(fresh, 2)
    check_equal(saved.made, fresh)


def sgd(model, momentum: float) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_state_of_sgd_comes_back(saved, momentum):
    """Without momentum there is nothing to keep."""
    config, folder = saved.config, saved.folder.parent / "sgd"
    made, fresh = make(0, config), make(1, config)
    made.optimizer, fresh.optimizer = sgd(made.model, momentum), sgd(fresh.model, momentum)
    step(made, 0)
    save_state(folder, config, TrainState(1), made.model, made.optimizer, {})
    read = Checkpoint.read(folder)
    read.check()
    assert len(read.tensors(OPTIMIZER)) == (len(list(made.model.parameters())) if momentum else 0)
    load_state(read, fresh.model, fresh.optimizer)
    step(made, 1)
    step(fresh, 1)
    check_equal(made, fresh)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_state_of_another_optimizer_is_refused(saved, momentum):
    other = make(1, saved.config)
    kept = "momentum_buffer" if momentum else "nothing"
    with pytest.raises(InputError, match=rf"exp_avg, exp_avg_sq, step for each parameter, and this one keeps {kept};"):
        load_optimizer(Checkpoint.read(saved.folder), other.model, sgd(other.model, momentum))


def test_a_state_of_what_a_run_does_not_train_is_refused(saved):
    other = make(1, saved.config)
    other.model.encoder.freeze()
    optimizer = torch.optim.Adam(other.model.decoder.parameters())
    with pytest.raises(InputError, match=r"holds 'encoder\..*', which this run does not train; give another --out"):
        load_optimizer(Checkpoint.read(saved.folder), other.model, optimizer)


def test_training_on_does_not_change_the_files(saved):
    before = {path.name: path.read_bytes() for path in saved.folder.iterdir()}
    fresh = make(1, saved.config)
    load_state(Checkpoint.read(saved.folder), fresh.model, fresh.optimizer)
    step(fresh, 3)
    assert {path.name: path.read_bytes() for path in saved.folder.iterdir()} == before


def test_a_checkpoint_holds_safetensors_and_json_only(saved):
    assert sorted(path.name for path in saved.folder.iterdir()) == [MANIFEST, MODEL, OPTIMIZER, STATE]
    assert sorted(path.name for path in saved.folder.parent.iterdir()) == ["last"]


def test_the_optimizer_s_state_lies_as_its_weights_do(saved):
    """PyTorch's fused kernels go through both in the order of memory."""
    made = make(1, saved.config)
    made.model.to(memory_format=torch.channels_last)
    load_state(Checkpoint.read(saved.folder), made.model, made.optimizer)
    strides = [each.stride() for each in made.model.parameters()]
    assert any(not each.is_contiguous() for each in made.model.parameters())
    for what in ("exp_avg", "exp_avg_sq"):
        assert [made.optimizer.state[each][what].stride() for each in made.model.parameters()] == strides
    check_equal(made, saved.made)


def test_the_model_alone_has_no_optimizer(saved):
    best = saved.folder.parent / "best"
    save_state(best, saved.config, TrainState(), saved.made.model, None, {})
    assert sorted(path.name for path in best.iterdir()) == [MANIFEST, MODEL, STATE]


def test_state_json_is_json_even_before_there_is_a_best(saved):
    folder = saved.folder.parent / "first"
    save_state(folder, saved.config, TrainState(step=1), saved.made.model, saved.made.optimizer, {})

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    json.loads((folder / STATE).read_text(), parse_constant=refuse)
    fresh = make(1, saved.config)
    assert load_state(Checkpoint.read(folder), fresh.model, fresh.optimizer).best_loss == math.inf


class Trap:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_pickles_are_never_executed(saved, tmp_path, name, how):
    trap = Trap(tmp_path / "sprung")
    if how == "pickle":
        (saved.folder / name).write_bytes(pickle.dumps(trap))
    else:
        torch.save({"x": trap}, saved.folder / name)
    fresh = make(1, saved.config)
    with pytest.raises(InputError) as error:
        load_state(Checkpoint.read(saved.folder), fresh.model, fresh.optimizer)
    assert str(saved.folder / name) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_tensors_that_are_cut_short_are_one_line(saved, name, keep):
    data = (saved.folder / name).read_bytes()
    (saved.folder / name).write_bytes(data[: int(len(data) * keep)])
    fresh = make(1, saved.config)
    with pytest.raises(InputError) as error:
        load_state(Checkpoint.read(saved.folder), fresh.model, fresh.optimizer)
    assert str(saved.folder / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_checkpoint_without_optimizer_cannot_be_gone_on_from(saved):
    (saved.folder / OPTIMIZER).unlink()
    fresh = make(1, saved.config)
    with pytest.raises(InputError, match=OPTIMIZER):
        load_state(Checkpoint.read(saved.folder), fresh.model, fresh.optimizer)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        "{}",
        '{"format_version": 1}',
        '{"format_version": 1, "config": []}',
        '{"format_version": 1, "config": {"a": 1}}',
    ],
)
def test_a_state_that_is_none_is_one_line(saved, content):
    (saved.folder / STATE).write_text(content)
    seal(saved.folder)
    with pytest.raises(InputError) as error:
        Checkpoint.read(saved.folder)
    assert str(saved.folder / STATE) in str(error.value)
    assert "\n" not in str(error.value)


def test_another_format_is_refused(saved):
    content = json.loads((saved.folder / MANIFEST).read_text())
    (saved.folder / MANIFEST).write_text(json.dumps(content | {"format_version": 4}))
    with pytest.raises(InputError, match=r"format 4, this version reads 3"):
        Checkpoint.read(saved.folder)


@pytest.mark.parametrize("missing", [MODEL, OPTIMIZER, STATE, MANIFEST])
def test_a_file_that_is_missing_is_named(saved, missing):
    (saved.folder / missing).unlink()
    fresh = make(1, saved.config)
    with pytest.raises(InputError, match=rf"{missing}: is missing"):
        load_state(Checkpoint.read(saved.folder), fresh.model, fresh.optimizer)


def test_a_folder_of_neither_state_nor_manifest_is_no_checkpoint(saved):
    (saved.folder / STATE).unlink()
    (saved.folder / MANIFEST).unlink()
    assert find_checkpoint(saved.folder) is None
    with pytest.raises(InputError, match="no checkpoint there"):
        Checkpoint.read(saved.folder)


@pytest.mark.parametrize("looks", range(1, 5))
def test_a_checkpoint_is_found_while_a_training_replaces_it(tmp_path, monkeypatch, looks):
    """The training renames last to last.1, and last.new to last, after so many looks."""
    for name in ("last", "last.1", "last.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).touch()
    is_file, left = Path.is_file, [looks]

    def look(path):
        left[0] -= 1
        if left[0] == 0:
            (tmp_path / "last.1").rename(tmp_path / "last.2")
            (tmp_path / "last").rename(tmp_path / "last.1")
        elif left[0] == -1:
            (tmp_path / "last.new").rename(tmp_path / "last")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", look)
    assert find_checkpoint(tmp_path / "last") in (tmp_path / "last", tmp_path / "last.1")


class KilledError(BaseException):
    """In place of SIGKILL: nothing after it runs (what really kills is in tests/end_to_end/test_training.py)."""


PLACES = (
    (tensor_files.os, "fsync"),
    (tensor_files.os, "rename"),
    (tensor_files.os, "replace"),
    (checkpoint_writer, "write_tensors"),
    (checkpoint_writer, "remove_tree"),
)
"""Calls to the outside of a save: places to be killed at."""
NUM_PLACES = {1: 15, 2: 16, 3: 17}
"""Of a save that drops the oldest of 1, 2 or 3 checkpoints."""


def killed_at(monkeypatch, place: int, save) -> tuple[bool, int]:
    """Run `save` until it has made `place` calls to the outside; whether it was killed, and how many it made."""
    calls = 0

    def killing(function):
        def call(*arguments, **named):
            nonlocal calls
            calls += 1
            if calls > place:
                raise KilledError
            return function(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        for module, name in PLACES:
            patch.setattr(module, name, killing(getattr(module, name)))
        try:
            save()
        except KilledError:
            return True, calls
    return False, calls


@pytest.mark.parametrize(
    ("keep", "place"), [(keep, place) for keep, number in NUM_PLACES.items() for place in range(number + 1)]
)
def test_a_kill_between_any_two_calls_leaves_a_whole_checkpoint(shards, tmp_path, monkeypatch, keep, place):
    """The new state is found, or the one before; all that are kept are whole; and the next save works."""
    config = tiny_config(shards, tmp_path, decoder_channels=(2, 2, 2, 2, 2))
    made, folder = make(0, config), tmp_path / "last"

    def save(number: int) -> None:
        save_state(folder, config, TrainState(number), made.model, made.optimizer, {}, keep=keep)

    for number in range(1, keep + 1):
        save(number)
    step(made, 2)
    killed, calls = killed_at(monkeypatch, place, lambda: save(keep + 1))
    assert killed == (place < NUM_PLACES[keep]), calls
    found = kept_folders(folder)
    steps = [Checkpoint.read(path).step for path in found]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] in (keep, keep + 1)
    assert len(steps) >= keep
    for path in found[:keep]:
        Checkpoint.read(path).check()
    assert Checkpoint.read(folder).step == steps[0]
    fresh = make(1, config)
    assert load_state(Checkpoint.read(folder), fresh.model, fresh.optimizer).step == steps[0]
    if steps[0] == keep + 1:
        check_equal(fresh, made)
    save(keep + 2)
    found = kept_folders(folder)
    assert [path.name for path in found] == ["last", "last.1", "last.2"][:keep]
    assert [Checkpoint.read(path).step for path in found] == [keep + 2, *steps][:keep]
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in found]


def test_metrics_rows_after_the_checkpoint_and_a_torn_line_are_taken_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": 1 / 3}, {"step": 2, "split": "val", "loss": 5e-324}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*kept, {"step": 3, "loss": 1.0}]) + '{"step": 4, "lo')
    metrics = MetricsFile(path, 2)
    metrics.write(step=3, loss=0.5)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [*kept, {"step": 3, "loss": 0.5}]
    assert list(tmp_path.iterdir()) == [path]
    metrics._file.close()


def test_a_new_metrics_file_is_flushed_at_once(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    metrics.write(step=1, epoch=0, loss=0.25)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "epoch": 0, "loss": 0.25}\n'
    metrics._file.close()
