"""How a run ends early: all that is finished is saved, what a failing step had changed is put back, and the same
command ends with the bits of a run that nothing disturbed."""

import contextlib
import json
import math
import os
import signal

import pytest
import torch
from helpers import start, tiny_config, train_here
from test_training import check_same_run

from glioma_dist.errors import ExitCode, MemoryFullError, NonFiniteError, RunError, StopRequested, UnavailableError
from glioma_dist.run_command import run_command
from glioma_dist.training import loop, validation
from glioma_dist.training.telemetry import MetricsFile


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory, runtime):
    """A run that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    loop.train(tiny_config(shards, out), runtime)
    return out


def fail_at(monkeypatch, module, name: str, number: int, error: Exception, after: bool = False) -> None:
    """Have the `number`-th call of a function raise `error`, before or after its work; later calls are as before."""
    function, calls = getattr(module, name), []

    def failing(*arguments):
        calls.append(1)
        if len(calls) != number:
            return function(*arguments)
        if after:
            function(*arguments)
        if isinstance(error, StopRequested):
            signal.raise_signal(signal.SIGTERM)
            return function(*arguments)
        raise error

    monkeypatch.setattr(module, name, failing)


FULL = torch.OutOfMemoryError("CUDA out of memory")
LOST_WORKER = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
CASES = {
    # Module, function, call, error, and the step that is saved. A step's forward pass moves running statistics.
    "memory is full in a step": (loop, "segmentation_loss", 5, FULL, 4, MemoryFullError),
    "memory is full after a step's backward pass": (loop, "clip_gradients", 5, FULL, 4, MemoryFullError),
    "a worker dies during a step": (loop, "segmentation_loss", 2, LOST_WORKER, 1, UnavailableError),
    "a stop during a step": (loop, "segmentation_loss", 2, StopRequested("SIGTERM"), 2, StopRequested),
    "a stop during validation": (validation, "segmentation_loss", 2, StopRequested("SIGTERM"), 3, StopRequested),
    "a worker dies during validation": (validation, "segmentation_loss", 2, LOST_WORKER, 3, UnavailableError),
    "memory is full during the last validation": (validation, "segmentation_loss", 5, FULL, 6, MemoryFullError),
    "a gradient is no number": (loop, "clip_gradients", 3, None, 2, NonFiniteError),
    "a fault of the program": (loop, "segmentation_loss", 3, ZeroDivisionError("a bug"), 2, ZeroDivisionError),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_ended_early_is_saved_and_resumes_bit_for_bit(whole, shards, tmp_path, runtime, monkeypatch, name):
    module, function, number, error, saved, kind = CASES[name]
    config = tiny_config(shards, tmp_path / "run")
    with monkeypatch.context() as patch:
        if error is None:
            clip, calls = loop.clip_gradients, []
            patch.setattr(
                loop,
                "clip_gradients",
                lambda *given: calls.append(1) or (math.nan if len(calls) == 3 else clip(*given)),
            )
        else:
            fail_at(patch, module, function, number, error)
        with pytest.raises(kind) as ended:
            loop.train(config, runtime)
    assert json.loads((config.out / "last" / "state.json").read_text())["position"]["step"] == saved
    status = json.loads((config.out / "status.json").read_text())
    if issubclass(kind, RunError):
        assert f"checkpoint saved at step {saved}" in str(ended.value)
        assert status["reason"] == str(ended.value)
        assert status["code"] == kind.exit_code
    else:
        assert status["code"] == 1
    assert status["state"] == ("stopped" if kind is StopRequested else "failed")
    assert (status["step"], status["checkpoint_step"]) == (saved, saved)
    loop.train(config, runtime)
    check_same_run(config.out, whole)


def test_weights_that_have_begun_to_move_are_not_saved(shards, tmp_path, runtime, monkeypatch):
    """Adam makes its moments in its first step, where memory can end with half of the weights moved."""
    config = tiny_config(shards, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", lambda *_given, **_named: (_ for _ in ()).throw(FULL))
        with pytest.raises(MemoryFullError) as ended:
            loop.train(config, runtime)
    assert "checkpoint saved" not in str(ended.value)
    assert not (config.out / "last").exists()


def test_a_step_that_overflows_fp16_is_repeated(whole, shards, tmp_path, runtime, monkeypatch):
    """The gradient scaler skips the optimizer and halves its scale; such a step does not count."""
    step, calls = loop.train_step, []

    def skipping(training, batch, number):
        calls.append(number)
        if len(calls) not in (2, 3):
            return step(training, batch, number)
        with contextlib.suppress(KeyError):
            training.model(loop.normalise(batch.images), batch.seeds)  # moves running statistics, as the step does
        return None

    monkeypatch.setattr(loop, "train_step", skipping)
    config = tiny_config(shards, tmp_path / "run")
    loop.train(config, runtime)
    assert calls == [0, 1, 1, 1, 2, 3, 4, 5]
    check_same_run(config.out, whole)


def test_a_step_that_always_overflows_ends_the_run(shards, tmp_path, runtime, monkeypatch):
    monkeypatch.setattr(loop, "train_step", lambda *_: None)
    with pytest.raises(NonFiniteError, match="step 1: its gradient overflows fp16 at any loss scale"):
        loop.train(tiny_config(shards, tmp_path / "run"), runtime)


def train_with_output_closed(config) -> None:
    """Nobody reads the output any more from the second step on: the next line is that of the validation after three."""
    reading, writing = os.pipe()
    os.close(reading)
    write = MetricsFile.write

    def closing(self, **row) -> None:
        write(self, **row)
        if row["step"] == 2:
            os.dup2(writing, 1)

    MetricsFile.write = closing
    run_command(lambda: train_here(config))


def test_a_closed_output_ends_the_run_with_its_work_saved(whole, shards, tmp_path, runtime):
    """As `train.py | head` does."""
    config = tiny_config(shards, tmp_path / "run")
    (ended,) = start(train_with_output_closed, config).wait()
    assert ended.exit_code == ExitCode.STOPPED
    assert ended.stderr == (
        "stopped: standard output was closed, checkpoint saved at step 3. Run the same command to resume.\n"
    )
    loop.train(config, runtime)
    check_same_run(config.out, whole)
