"""How a run ends early: all that is finished is saved, what a failing step had changed is put back, and the same
command ends with the bits of a run that nothing disturbed."""

import gc
import json
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import (
    FIRST_SCALE,
    change_loss,
    draw_sample,
    rows,
    run,
    start,
    start_fp16,
    tiny_config,
    train_here,
    write_shards,
)
from test_training import check_same_run

from glioma_dist.config import EvaluateConfig, ScaleConfig
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import (
    ExitCode,
    InputError,
    MemoryFullError,
    NonFiniteError,
    RunError,
    StopRequested,
    UnavailableError,
)
from glioma_dist.evaluation.protocol import evaluate
from glioma_dist.files import remove_tree
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.unet import UNet
from glioma_dist.size import Size
from glioma_dist.training import loop, validation
from glioma_dist.training.metrics_file import MetricsFile
from glioma_dist.training.status import StatusFile


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory, runtime):
    """A run that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    loop.train(tiny_config(shards, out), runtime)
    return out


def fail_at(monkeypatch, module, name: str, number: int, error: Exception, after: bool = False) -> None:
    """Have the `number`-th call of a function raise `error`, before or after its work; later calls are as before."""
    calls = []

    def failing(function, *arguments):
        calls.append(1)
        if len(calls) != number:
            return function(*arguments)
        if after:
            function(*arguments)
        if isinstance(error, StopRequested):
            signal.raise_signal(signal.SIGTERM)
            return function(*arguments)
        raise error

    if name == LOSS:
        change_loss(monkeypatch, module is loop, failing)
    else:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *arguments: failing(function, *arguments))


LOSS = "loss"
"""Of training steps, with `loop`, or of validations."""
FULL = torch.OutOfMemoryError("CUDA out of memory")
LOST_PROCESS = RuntimeError("Connection closed by peer")
"""As gloo says it of another process that has ended."""
CASES = {
    # Module, function, call, error, and the step that is saved. A step's forward pass moves running statistics.
    "memory is full in a step": (loop, LOSS, 5, FULL, 4, MemoryFullError),
    "memory is full after a step's backward pass": (loop, "clip_gradients", 5, FULL, 4, MemoryFullError),
    "another process dies during a step": (loop, LOSS, 2, LOST_PROCESS, 1, UnavailableError),
    "a stop during a step": (loop, LOSS, 2, StopRequested("SIGTERM"), 2, StopRequested),
    "a stop during validation": (validation, LOSS, 2, StopRequested("SIGTERM"), 3, StopRequested),
    "another process dies during validation": (validation, LOSS, 2, LOST_PROCESS, 3, UnavailableError),
    "memory is full during the last validation": (validation, LOSS, 5, FULL, 6, MemoryFullError),
    "a gradient is not finite": (loop, "clip_gradients", 3, None, 2, NonFiniteError),
    "a fault of the program": (loop, LOSS, 3, ZeroDivisionError("a bug"), 2, ZeroDivisionError),
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
        assert ("need another --out" in str(ended.value)) == (kind is MemoryFullError)
        assert status["code"] == kind.exit_code
    else:
        assert status["code"] == 1
    assert status["state"] == ("stopped" if kind is StopRequested else "failed")
    assert (status["step"], status["checkpoint_step"]) == (saved, saved)
    loop.train(config, runtime)
    check_same_run(config.out, whole)


def test_a_stop_between_micro_batches_is_a_stop_after_the_step(shards, tmp_path, runtime, monkeypatch):
    """Whichever of a step's micro-batches is being computed: no gradient of it is lost or added twice."""
    scale = ScaleConfig(gradient_accumulation=2)
    undisturbed = tiny_config(shards, tmp_path / "whole", scale=scale, norm="group", max_steps=4, save_every=1)
    loop.train(undisturbed, runtime)
    for number in (3, 4):  # of the losses: the first and the second micro-batch of step 2
        config = replace(undisturbed, out=tmp_path / f"stopped at {number}")
        with monkeypatch.context() as patch:
            fail_at(patch, loop, LOSS, number, StopRequested("SIGTERM"))
            with pytest.raises(StopRequested, match="checkpoint saved at step 2"):
                loop.train(config, runtime)
        loop.train(config, runtime)
        check_same_run(config.out, undisturbed.out)


def test_weights_that_have_begun_to_move_are_not_saved(shards, tmp_path, runtime, monkeypatch):
    """Adam makes its moments in its first step, where memory can end with half of the weights moved."""
    config = tiny_config(shards, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", lambda *_given, **_named: (_ for _ in ()).throw(FULL))
        with pytest.raises(MemoryFullError) as ended:
            loop.train(config, runtime)
    assert "checkpoint saved" not in str(ended.value)
    assert not (config.out / "last").exists()


def test_a_context_keeps_no_model_of_the_runs_that_it_was_given_to(shards, tmp_path, runtime):
    """accelerate keeps all models and optimizers that it prepared, and in fp16 unscales all of them."""

    def living() -> int:
        gc.collect()
        return sum(type(each) is UNet for each in gc.get_objects())

    before, held = living(), (list(runtime.accelerator._models), list(runtime.accelerator._optimizers))
    config = tiny_config(shards, tmp_path / "run", max_steps=1)
    loop.train(config, runtime)
    evaluate(EvaluateConfig(config.out / "last", shards / "val", workers=0), runtime)
    assert (runtime.accelerator._models, runtime.accelerator._optimizers) == held
    assert living() == before


def train_in_fp16(config, first_scale: float = FIRST_SCALE) -> list[int]:
    """Train in real fp16, which PyTorch computes on CPUs too. Returns the number of each step that was tried."""
    here = start_fp16()
    here.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=first_scale, growth_interval=2)
    tried, step = [], loop.train_step

    def noting(training, batch, number):
        tried.append(number)
        return step(training, batch, number)

    loop.train_step = noting
    loop.train(config, here)
    return tried


@pytest.mark.parametrize("num_processes", [1, 2])
def test_steps_that_overflow_fp16_are_repeated_and_a_restart_changes_no_bit(shards, tmp_path, num_processes):
    config = tiny_config(shards, tmp_path / "whole", size=Size(32, 32), save_every=1)  # CPUs are slow in fp16
    tried = run(train_in_fp16, config, num_processes=num_processes)
    assert tried == [tried[0]] * num_processes
    assert sorted(set(tried[0])) == list(range(6))
    assert tried[0].count(0) > 1, "the first loss scale overflows"
    resumed = replace(config, out=tmp_path / "resumed")
    run(train_in_fp16, replace(resumed, max_steps=3), num_processes=num_processes)
    run(train_in_fp16, resumed, num_processes=num_processes)
    assert rows(resumed.out) == rows(config.out)
    for name in ("model", "optimizer"):
        ours, theirs = (config.out / "last" / f"{name}.safetensors" for config in (resumed, config))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_step_that_overflows_at_any_loss_scale_ends_the_run(shards, tmp_path, runtime, monkeypatch):
    monkeypatch.setattr(loop, "step_was_skipped", lambda *_: True)
    monkeypatch.setattr(loop, "scale_is_exhausted", lambda *_: True)
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


def test_training_images_without_a_cell_are_refused(tmp_path, runtime):
    """A network would learn to see nothing, and score well."""
    samples = [replace(draw_sample(number), mask=np.zeros((80, 96), np.uint8)) for number in range(4)]
    write_shards(tmp_path / "train", samples)
    write_shards(tmp_path / "val", samples)
    with pytest.raises(InputError, match=r"--data\.train .*: no mask of 4 samples has a cell"):
        loop.train(tiny_config(tmp_path, tmp_path / "run"), runtime)


def test_a_metrics_file_that_was_removed_stops_the_run_with_its_work_saved(shards, tmp_path, runtime, monkeypatch):
    config, step = tiny_config(shards, tmp_path / "run", save_every=1), loop.train_step

    def removing(training, batch, number):
        if number == 2:
            (config.out / "metrics.jsonl").unlink()
        return step(training, batch, number)

    monkeypatch.setattr(loop, "train_step", removing)
    with pytest.raises(InputError, match=r"metrics\.jsonl: was removed or replaced.*checkpoint saved at step 3"):
        loop.train(config, runtime)


@pytest.mark.parametrize("number", [1, 4, 5, 8])
def test_a_row_that_found_no_space_is_written_later(whole, shards, tmp_path, runtime, monkeypatch, number):
    """At every row, the last one of all included: the run tells of it, and no row is lost."""
    config, write, calls = tiny_config(shards, tmp_path / "run"), MetricsFile.write, []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_to_a_full_disk(self, **row) -> None:
        calls.append(1)
        if len(calls) != number:
            return write(self, **row)
        # Half of the row fits.
        size = (config.out / "metrics.jsonl").stat().st_size + 30
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            return write(self, **row)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(MetricsFile, "write", write_to_a_full_disk)
    with pytest.raises(InputError, match=r"metrics\.jsonl: cannot be written .*checkpoint saved at step"):
        loop.train(config, runtime)
    assert json.loads((config.out / "status.json").read_text())["state"] == "failed"
    loop.train(config, runtime)
    check_same_run(config.out, whole)


def test_a_request_to_stop_while_the_end_is_written_finds_a_finished_run(whole, shards, tmp_path, runtime, monkeypatch):
    config, ended = tiny_config(shards, tmp_path / "run"), StatusFile.ended

    def ended_while_asked_to_stop(self, ending) -> None:
        signal.raise_signal(signal.SIGTERM)
        ended(self, ending)

    monkeypatch.setattr(StatusFile, "ended", ended_while_asked_to_stop)
    loop.train(config, runtime)
    assert json.loads((config.out / "status.json").read_text())["state"] == "finished"
    check_same_run(config.out, whole)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "file") for name in ("last", "last.1", "last.new", "last.damaged", "best", "best.new")),
        *((name, "link to nothing") for name in ("last", "last.1", "best")),
        *((name, "link to a folder elsewhere") for name in ("last", "best")),
    ],
)
def test_what_only_has_the_name_of_a_checkpoint_stops_no_run(whole, shards, tmp_path, runtime, name, kind):
    config = tiny_config(shards, tmp_path / "run", save_every=1)
    loop.train(replace(config, max_steps=4), runtime)
    path, elsewhere = config.out / name, tmp_path / "elsewhere"
    if kind == "link to a folder elsewhere":
        path.rename(elsewhere) if path.exists() else elsewhere.mkdir()
        path.symlink_to(elsewhere)
    else:
        remove_tree(path)
        path.write_text("x") if kind == "file" else path.symlink_to(tmp_path / "nothing")
    loop.train(config, runtime)
    assert Checkpoint.read(config.out / "last").step == 6
    assert sorted(path.name for path in config.out.glob("last.?")) == ["last.1"]
    for file in ("model", "optimizer"):
        ours, theirs = (out / "last" / f"{file}.safetensors" for out in (config.out, whole))
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("number", [2, 8])
def test_a_worker_that_dies_while_the_run_writes_is_noticed_later(whole, shards, tmp_path, number):
    """Never in the middle of a row or a checkpoint. At the last row of all, nobody needs the worker any more."""
    config = tiny_config(shards, tmp_path / "run", workers=2)
    (ended,) = start(train_and_lose_workers, config, number).wait()
    assert ended.exit_code == (0 if number == 8 else ExitCode.UNAVAILABLE), ended.stderr
    assert "Traceback" not in ended.stderr
    if number != 8:
        assert "worker" in ended.stderr
        # Step 3 was taken where its batch had been read before.
        assert re.search(r"checkpoint saved at step [23]\b", ended.stderr), ended.stderr
        run(train_here, config)
    assert rows(config.out) == rows(whole)


def train_and_lose_workers(config, number: int) -> None:
    """At the `number`-th row, when it was written, its workers are killed."""
    write, calls = MetricsFile.write, []

    def killing(self, **row) -> None:
        write(self, **row)
        calls.append(1)
        if len(calls) == number:
            for worker in multiprocessing.active_children():
                worker.kill()
            time.sleep(0.3)

    MetricsFile.write = killing
    run_command(lambda: train_here(config))


def test_data_that_is_gone_at_a_restart_is_in_the_status(shards, tmp_path, runtime):
    """A scheduler that saw `stopped` would run the same command again and again."""
    data = tmp_path / "data"
    shutil.copytree(shards / "train", data)
    config = tiny_config(shards, tmp_path / "run", val=None, save_every=1)
    config = replace(config, data=replace(config.data, train=(str(data),)))
    path = config.out / "status.json"
    loop.train(replace(config, max_steps=1), runtime)
    path.write_text(path.read_text().replace("finished", "stopped"))
    remove_tree(data)
    with pytest.raises(InputError) as error:
        loop.train(replace(config, max_steps=2), runtime)
    status = json.loads(path.read_text())
    assert (status["state"], status["code"], status["step"]) == ("failed", 2, 1)
    assert status["reason"] == str(error.value)
