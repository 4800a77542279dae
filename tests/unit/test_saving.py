"""Checkpoints are written while the run trains on: what is saved, in which order, and what happens when it fails."""

import errno
import json
import math
import signal
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from fake_cuda import CUDA, Watch, put_on_cuda
from helpers import rows, tiny_config
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

from glioma_dist.config import ScaleConfig
from glioma_dist.errors import InputError, NonFiniteError, StopRequested
from glioma_dist.files import cannot_write
from glioma_dist.model import checkpoint_writer, tensor_files
from glioma_dist.model.checkpoint import Checkpoint, kept_folders
from glioma_dist.model.manifest import MODEL, OPTIMIZER
from glioma_dist.model.unet import UNet
from glioma_dist.scale.optimizer import make_adam
from glioma_dist.size import Size
from glioma_dist.training import loop, preparation, saving, snapshot
from glioma_dist.training.run_folder import RunFolder
from glioma_dist.training.saving import CheckpointSaver

SECONDS_TO_HOLD = 60
"""So that a training that waits for a disk which is held fails, and does not hang."""


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory, runtime):
    """A run that nothing disturbs, with all its checkpoints."""
    out = tmp_path_factory.mktemp("whole") / "run"
    loop.train(tiny_config(shards, out, save_every=2, keep_last=9), runtime)
    return out


class Disk:
    """Stands for a slow disk: it holds every file of tensors until it is let go, and counts."""

    def __init__(self, monkeypatch) -> None:
        self.free, self.at_once, self.most_at_once = threading.Event(), 0, 0
        write = checkpoint_writer.write_tensors

        def holding(path, tensors):
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            assert self.free.wait(SECONDS_TO_HOLD), "training waits for the disk"
            self.at_once -= 1
            return write(path, tensors)

        monkeypatch.setattr(checkpoint_writer, "write_tensors", holding)


@pytest.fixture
def disk(monkeypatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def completed(monkeypatch) -> list[tuple[str, int]]:
    """The checkpoints that the run says are complete, in their order."""
    told = []

    def tell(folder, name, step) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert Checkpoint.read(folder.path / name).step == step, "it has its final name"
        told.append((name, step))

    monkeypatch.setattr(RunFolder, "checkpoint_complete", tell)
    return told


@contextmanager
def before_step(number: int, act):
    """Have `act` called before the training step of a number, from 0."""
    step = loop.train_step

    def acting(trainer, batch, this):
        if this == number:
            act()
        return step(trainer, batch, this)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", acting)
        yield


@contextmanager
def before_end(act):
    """Have `act` called when the run has taken its last step and waits for what is written."""
    end = loop.TrainingLoop._end_well
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.TrainingLoop, "_end_well", lambda training: act() or end(training))
        yield


def bits(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def check_equal(out, whole) -> None:
    """All checkpoints of two runs are equal, and so are their rows."""
    assert rows(out) == rows(whole)
    assert [path.name for path in kept_folders(out / "last")] == [path.name for path in kept_folders(whole / "last")]
    for ours, theirs in zip(kept_folders(out / "last"), kept_folders(whole / "last"), strict=True):
        assert Checkpoint.read(ours).step == Checkpoint.read(theirs).step
        assert bits(ours) == bits(theirs)
    assert bits(out / "best") == bits(whole / "best")


def test_steps_are_taken_while_a_checkpoint_is_written_and_change_no_bit_of_it(
    whole, shards, tmp_path, runtime, disk, completed
):
    config = tiny_config(shards, tmp_path / "run", save_every=2, keep_last=9)

    def look() -> None:
        """After step 2's checkpoint was begun, and before step 3's validation wants to save."""
        assert [path.name for path in config.out.glob("last*")] == ["last.new"]
        assert json.loads((config.out / "status.json").read_text())["checkpoint_step"] is None
        assert completed == []
        disk.free.set()

    with before_step(2, look):
        loop.train(config, runtime)
    assert [step for name, step in completed if name == "last"] == [2, 3, 4, 6]
    for place, (name, step) in enumerate(completed):
        assert name == "last" or completed[place + 1] == ("last", step), (
            "best is there before the last that tells of it"
        )
    assert ("best", 3) in completed
    assert disk.most_at_once == 1
    check_equal(config.out, whole)


def test_a_checkpoint_holds_the_weights_of_its_step(whole, shards, tmp_path, runtime):
    """Those of a run that ended there."""
    config = tiny_config(shards, tmp_path / "run", max_steps=2)
    loop.train(config, runtime)
    (ours,) = [folder for folder in kept_folders(whole / "last") if Checkpoint.read(folder).step == 2]
    assert bits(ours) == bits(config.out / "last")


@pytest.mark.parametrize("in_backward", [False, True], ids=["after", "in_backward"])
def test_tensors_are_copied_during_the_next_step_and_change_only_then(
    shards, tmp_path, runtime, monkeypatch, in_backward
):
    """A thread that copies begins late: when the next step has computed its losses, running statistics included. It is
    slow, too: weights, optimizer and moving average that did not wait for it would have changed by then."""
    small = {"decoder_channels": (2, 2, 2, 2, 2), "size": Size(32, 32), "ema_decay": 0.5, "keep_last": 9}
    scale = ScaleConfig(optimizer_in_backward=in_backward)
    fields = {**small, "max_steps": 3, "save_every": 1, "eval_every": 3, "scale": scale}
    whole, config = (tiny_config(shards, tmp_path / name, **fields) for name in ("whole", "late"))
    loop.train(whole, runtime)
    copy, move, has_losses = tensor_files.FlatTensors.copy_, CheckpointSaver.let_tensors_change, threading.Event()
    late = []

    def copying(flat, tensors):
        if threading.current_thread() is not threading.main_thread():
            late.append(has_losses.wait(SECONDS_TO_HOLD))
            time.sleep(0.1)
        copy(flat, tensors)

    def moving(saver):
        has_losses.set()
        move(saver)
        has_losses.clear()

    monkeypatch.setattr(tensor_files.FlatTensors, "copy_", copying)
    monkeypatch.setattr(CheckpointSaver, "let_tensors_change", moving)
    with before_end(has_losses.set):
        loop.train(config, runtime)
    assert late == [True] * 9, "weights, optimizer and average of three steps"
    check_equal(config.out, whole.out)


def test_a_request_to_stop_waits_for_the_write_and_saves_the_last_step(shards, tmp_path, runtime, disk):
    config = tiny_config(shards, tmp_path / "run", save_every=2, val=None)

    def stop() -> None:
        threading.Timer(0.3, disk.free.set).start()
        signal.raise_signal(signal.SIGTERM)

    with before_step(2, stop), pytest.raises(StopRequested, match="checkpoint saved at step 3"):
        loop.train(config, runtime)
    assert [Checkpoint.read(folder).step for folder in kept_folders(config.out / "last")] == [3, 2]
    assert not list(config.out.glob("*.new"))


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("name", ["best", "last"])
def test_after_a_failed_write_the_run_ends_and_resumes_bit_for_bit(
    whole, shards, tmp_path, runtime, monkeypatch, name, times
):
    """Once: at its end the run writes again what failed. Twice: nothing tells of a `best` that is not there."""
    config, write, failed = tiny_config(shards, tmp_path / "run", keep_last=9), checkpoint_writer.write_tensors, []

    def failing(path, tensors):
        if path.parent.name == f"{name}.new" and len(failed) < times:
            failed.append(path)
            raise cannot_write(path, OSError(errno.ENOSPC, "full"))
        return write(path, tensors)

    monkeypatch.setattr(checkpoint_writer, "write_tensors", failing)
    with pytest.raises(InputError, match="the disk is full") as ended:
        loop.train(config, runtime)
    saved = [Checkpoint.read(folder).step for folder in kept_folders(config.out / "last")]
    if times == 1:
        assert f"checkpoint saved at step {saved[0]}" in str(ended.value)
    else:
        assert saved == []
        assert "could not be saved" in str(ended.value)
    assert (config.out / "best").exists() == (times == 1 or name == "last")
    assert not list(config.out.glob("*.new"))
    assert json.loads((config.out / "status.json").read_text())["checkpoint_step"] == (saved[0] if saved else None)
    loop.train(config, runtime)
    assert rows(config.out) == rows(whole)
    assert bits(config.out / "last") == bits(whole / "last")
    assert bits(config.out / "best") == bits(whole / "best")


def test_minutes_between_checkpoints(shards, tmp_path, runtime, monkeypatch, completed):
    """By a clock that a step moves on by 40 s. A checkpoint at a fixed step begins the minutes again. While one is
    written, no other is due, so each write is waited for here."""
    now, agree = 0.0, saving.CheckpointSaver.agree
    monkeypatch.setattr(saving.CheckpointSaver, "agree", lambda saver, *given: saver.wait() or agree(saver, *given))
    monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=lambda: now))
    step = loop.train_step

    def taking_40_s(*given):
        nonlocal now
        now += 40
        return step(*given)

    monkeypatch.setattr(loop, "train_step", taking_40_s)
    config = tiny_config(shards, tmp_path / "run", val=None, eval_every=4, max_steps=8, save_every_minutes=1.0)
    loop.train(config, runtime)
    assert completed == [("last", step) for step in (2, 4, 6, 8)]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_minutes_that_are_none_are_refused(shards, tmp_path, value):
    with pytest.raises(InputError, match="--save-every-minutes"):
        tiny_config(shards, tmp_path, save_every_minutes=value).validate()


@pytest.fixture
def on_gpu(tmp_path, monkeypatch):
    """A network and its optimizer with a state, on a fake GPU; the mode to work with them in."""
    model, mode = UNet(tiny_config(tmp_path, tmp_path).model), FakeTensorMode(allow_non_fake_inputs=True)
    put_on_cuda(model, mode)
    optimizer = make_adam(model, 1e-3)
    with mode:
        for each in model.parameters():
            optimizer.state[each] = {
                "step": torch.ones((), device=CUDA),
                "exp_avg": torch.zeros_like(each),
                "exp_avg_sq": torch.zeros_like(each),
            }
    monkeypatch.setattr(tensor_files, "_arrival", lambda gpu: lambda: None)  # there is no driver to ask
    return model, optimizer, mode


def test_a_snapshot_of_a_gpu_waits_for_nothing(on_gpu):
    """The copies are queued; nothing is copied to the GPU."""
    model, optimizer, mode = on_gpu
    memory = snapshot.SnapshotMemory()
    with mode, Watch(value=1) as watch:
        weights, moments = memory.take(model, optimizer, 1, checkpoint_writer.ALONE).values()
    copies = len(weights.tensors) + len(moments.tensors)
    assert watch.to_host == ["copy_"] * copies
    assert watch.going_ahead == copies
    assert watch.to_device == []
    with mode, Watch(value=1) as watch:
        again, _ = memory.take(model, optimizer, 1, checkpoint_writer.ALONE).values()
    assert again is weights
    assert watch.to_host == ["copy_"] * len(moments.tensors), "best and last share the weights"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_found_in_any_tensor(value):
    tensors = {
        "a": torch.ones(3),
        "b": torch.ones((), dtype=torch.float64),
        "c": torch.ones(2, 2, dtype=torch.bfloat16),
        "d": torch.arange(4),
        "e": torch.ones(0),
        "f": torch.ones(5),
    }
    for broken in ("a", "b", "c", "f"):
        changed = {name: each.clone() for name, each in tensors.items()}
        changed[broken].view(-1)[-1] = value
        flat = tensor_files.FlatTensors(changed)
        flat.copy_(changed)
        assert flat.not_finite() == [broken]
    flat.copy_(tensors)
    assert flat.not_finite() == []


def test_weights_that_are_not_finite_end_the_run_and_are_not_saved(shards, tmp_path, runtime, monkeypatch):
    """The thread finds it: at the latest when the next checkpoint waits for it."""
    config = tiny_config(shards, tmp_path / "run", save_every=2, val=None)
    take = snapshot.SnapshotMemory.take

    def breaking(memory, model, optimizer, step, *others):
        copies = take(memory, model, optimizer, step, *others)
        if step >= 2 and OPTIMIZER in copies:
            memory.wait()
            moments = copies[OPTIMIZER].tensors
            moments[next(iter(moments))].fill_(math.inf)
        return copies

    monkeypatch.setattr(snapshot.SnapshotMemory, "take", breaking)
    with pytest.raises(NonFiniteError, match="tensors of the model or the optimizer are not finite"):
        loop.train(config, runtime)
    assert not list(config.out.glob("last*"))


def test_the_memory_is_used_again(shards, tmp_path):
    config = tiny_config(shards, tmp_path)
    model, _ = preparation.build_model(config.model, 0)
    optimizer = torch.optim.Adam(model.parameters())
    for each in model.parameters():
        each.grad = torch.ones_like(each)
    memory, found = snapshot.SnapshotMemory(), []
    for step in (1, 2):
        optimizer.step()
        weights, moments = memory.take(model, optimizer, step, checkpoint_writer.ALONE).values()
        memory.wait()
        found.append([{name: each.data_ptr() for name, each in kept.tensors.items()} for kept in (weights, moments)])
        tensor_files.write_tensors(tmp_path / MODEL, weights)
        tensor_files.write_tensors(tmp_path / OPTIMIZER, moments)
        written = load_file(tmp_path / MODEL)
        assert all(torch.equal(written[name], each) for name, each in model.state_dict().items())
        written = load_file(tmp_path / OPTIMIZER)
        assert all(
            torch.equal(written[f"{name}/{what}"], value)
            for name, each in model.named_parameters()
            for what, value in optimizer.state[each].items()
        )
    assert found[0] == found[1]
