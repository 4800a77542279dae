"""The folder of a run: which checkpoint is resumed from, what is refused, and who may write there."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import REPOSITORY, save_state, seal, tiny_config

from glioma_dist.errors import InputError, Interrupted, StopRequested, UnavailableError
from glioma_dist.model.checkpoint import Checkpoint, is_whole
from glioma_dist.model.manifest import MANIFEST, MODEL, OPTIMIZER, STATE
from glioma_dist.model.unet import build_model
from glioma_dist.training.folder_lock import LOCK, folder_lock
from glioma_dist.training.resume import RESUMABLE
from glioma_dist.training.run_folder import RunFolder
from glioma_dist.training.state import TrainState, read_train_state

FACTS = {"lineage": [], "fingerprints": {"train": "a", "val": "b"}}


@pytest.fixture(scope="module")
def made(shards, tmp_path_factory):
    """A run with three checkpoints, of steps 2, 4 and 6, and the best model, of step 4."""
    out = tmp_path_factory.mktemp("made") / "run"
    out.mkdir()
    config = tiny_config(shards, out, keep_last=3, decoder_channels=(2, 2, 2, 2, 2))
    model, _ = build_model(config.model, 0)
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for step in (2, 4, 6):
        position = TrainState(step, 0.5, 0.25, 1)
        if step == 4:
            save_state(out / "best", config, position, model, None, FACTS)
        save_state(out / "last", config, position, model, optimizer, FACTS, keep=3)
    (out / "config.json").write_text("{}")
    (out / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in range(1, 7))
        + '{"step": 4, "split": "val"}\n'
    )
    (out / RESUMABLE).touch()
    return config


@pytest.fixture
def run(made, tmp_path):
    """The config of a copy of it."""
    shutil.copytree(made.out, tmp_path / "run")
    return replace(made, out=tmp_path / "run")


def opened(config, runtime) -> Checkpoint | None:
    with RunFolder(config, runtime) as folder:
        return folder.checkpoint


def refused(config, runtime) -> str:
    """The one line that the run is refused with; its files stay as they are."""
    before = sorted(path for path in config.out.rglob("*") if path.name != LOCK)
    with pytest.raises(InputError) as error:
        opened(config, runtime)
    assert sorted(path for path in config.out.rglob("*") if path.name != LOCK) == before
    message = str(error.value)
    assert "\n" not in message
    assert len(message) <= 500
    return message


def damage(folder: Path, name: str = MODEL) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER, STATE, MANIFEST])
@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_the_checkpoint_before_is_taken_and_it_is_said(run, runtime, capfd, name, how):
    if how == "damaged":
        damage(run.out / "last", name)
    else:
        (run.out / "last" / name).unlink()
    assert opened(run, runtime).step == 4
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    for part in (str(run.out / "last"), "resuming from last.1/, step 4", "last.damaged/"):
        assert part in said
    assert (run.out / "last.damaged").is_dir()
    assert not (run.out / "last").exists()
    assert opened(run, runtime).step == 4
    assert capfd.readouterr().err == "", "what was said once and set aside is not said again"


def test_two_damaged_checkpoints_are_both_named(run, runtime, capfd):
    damage(run.out / "last")
    damage(run.out / "last.1", OPTIMIZER)
    assert opened(run, runtime).step == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2
    assert str(run.out / "last" / MODEL) in said[0]
    assert str(run.out / "last.1" / OPTIMIZER) in said[1]
    assert all("resuming from last.2/, step 2" in line for line in said)


def test_where_all_are_damaged_one_line_says_so(run, runtime):
    for name in ("last", "last.1", "last.2"):
        damage(run.out / name)
    message = refused(run, runtime)
    assert str(run.out / "last" / MODEL) in message
    assert "this run has no undamaged checkpoint" in message
    assert f"--model.init {run.out / 'best'}" in message
    damage(run.out / "best")
    message = refused(run, runtime)
    assert "--model.init" not in message
    assert "give another --out" in message


@pytest.mark.parametrize("how", ["damaged", "missing", "of another run", "without a manifest"])
def test_a_best_that_is_lost_is_said_and_not_taken_for_the_best(run, runtime, capfd, how):
    best = run.out / "best"
    if how == "damaged":
        damage(best)
    elif how == "missing":
        shutil.rmtree(best)
    elif how == "without a manifest":
        (best / MANIFEST).unlink()
    else:
        state = json.loads((best / STATE).read_text())
        state["config"]["lr"] = 0.5
        (best / STATE).write_text(json.dumps(state))
        seal(best)
    checkpoint = opened(run, runtime)
    assert read_train_state(checkpoint) == TrainState(6, evaluations_since_best=1)
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert str(best) in said
    assert "the best model so far is lost" in said
    assert not best.exists()
    assert (run.out / "best.damaged").exists() == (how != "missing")


def remove_last(out: Path) -> None:
    for path in out.glob("last*"):
        shutil.rmtree(path)


@pytest.mark.parametrize("left", [(), (RESUMABLE,), ("best",), ("metrics.jsonl",), ("status.json",)])
def test_a_run_that_lost_its_checkpoints_is_refused(run, runtime, left):
    """Whatever is left that tells of one, and be it one thing alone; `()`: all."""
    remove_last(run.out)
    (run.out / "status.json").write_text('{"state": "stopped", "checkpoint_step": 6}')
    if left == ("best",):
        (run.out / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 7)))
    for path in list(run.out.iterdir()):
        if (
            left
            and path.name not in (*left, "config.json")
            and not (left == ("best",) and path.name == "metrics.jsonl")
        ):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    message = refused(run, runtime)
    assert "no last/ to resume from" in message
    assert str(run.out) in message


def test_a_run_that_ended_before_its_first_checkpoint_starts_again(run, runtime):
    """With rows of steps and of a validation, with best/ or without it: status.json says that there was no last/."""
    remove_last(run.out)
    (run.out / RESUMABLE).unlink()
    rows = "".join(f'{{"step": {step}}}\n' for step in range(1, 5))
    (run.out / "status.json").write_text('{"state": "failed", "checkpoint_step": null}')
    for text in (rows, rows + '{"step": 4, "split": "val"}\n'):
        (run.out / "metrics.jsonl").write_text(text)
        assert opened(run, runtime) is None
    # A run trains on while its first best/ and last/ are written.
    on = rows + '{"step": 4, "split": "val"}\n{"step": 5}\n{"step": 6}\n'
    (run.out / "metrics.jsonl").write_text(on)
    assert opened(run, runtime) is None
    shutil.rmtree(run.out / "best")
    for text in (on, rows + '{"ste'):
        (run.out / "metrics.jsonl").write_text(text)
        assert opened(run, runtime) is None
    with pytest.raises(InputError, match=r"--resume never.*give another --out, or omit the flag to resume$"):
        opened(replace(run, resume="never"), runtime)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "[" * 100_000, '{"lr": 1e999}', "\0" * 100, '{"x": "' + "y" * 100_000 + '"}']
)
def test_a_damaged_config_json_does_not_keep_a_run_from_resuming(run, runtime, content):
    """The checkpoint has the settings, too, with a checksum."""
    (run.out / "config.json").write_text(content)
    assert opened(run, runtime).step == 6
    (run.out / "config.json").unlink()
    assert opened(run, runtime).step == 6


def test_other_settings_are_held_against_the_checkpoint_s(run, runtime):
    with pytest.raises(InputError, match=r"lr 0\.001 -> 0\.5; seed 0 -> 9"):
        opened(replace(run, lr=0.5, seed=9), runtime)
    assert opened(replace(run, keep_last=1, save_every=9), runtime).step == 6


def test_best_in_the_place_of_last_is_refused(run, runtime):
    remove_last(run.out)
    shutil.copytree(run.out / "best", run.out / "last")
    assert "of the model alone" in refused(run, runtime)


@pytest.mark.parametrize("how", ["removed", "replaced", "moved"])
def test_a_folder_that_is_gone_is_noticed_before_every_write(run, runtime, tmp_path, how):
    with RunFolder(run, runtime) as folder:
        folder.claim()
        folder.check()
        if how == "removed":
            shutil.rmtree(run.out)
        else:
            run.out.rename(tmp_path / "elsewhere")
        if how == "replaced":
            run.out.mkdir()
        for write in (folder.check, folder.mark_resumable):
            with pytest.raises(InputError, match="was removed, replaced or unmounted") as error:
                write()
            assert str(run.out) in str(error.value)
        assert run.out.exists() == (how == "replaced")
        assert not run.out.exists() or list(run.out.iterdir()) == []


def test_a_new_folder_is_made_only_when_it_is_claimed(run, runtime, tmp_path):
    new = replace(run, out=tmp_path / "a" / "new")
    with RunFolder(new, runtime) as folder:
        assert folder.checkpoint is None
        assert not new.out.parent.exists()
        folder.claim()
        assert [path.name for path in new.out.iterdir()] == [LOCK]
    assert opened(new, runtime) is None


def test_what_another_training_wrote_meanwhile_is_not_written_over(run, runtime, tmp_path):
    new = replace(run, out=tmp_path / "new")
    with RunFolder(new, runtime) as folder:
        shutil.copytree(run.out, new.out)
        with pytest.raises(InputError, match="another training wrote there meanwhile"):
            folder.claim()
    assert is_whole(new.out / "last")


def test_the_lock_is_this_process_s_once(tmp_path):
    with folder_lock(tmp_path):
        with pytest.raises(InputError, match="another training is writing there"), folder_lock(tmp_path):
            raise AssertionError("locked twice")
        assert not lock_elsewhere(tmp_path), "the second try must not drop the lock of the first"
    assert lock_elsewhere(tmp_path)


def test_where_there_are_no_locks_a_warning_says_so_and_the_run_resumes(run, runtime, monkeypatch, capsys):
    def refuse(*_given) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert opened(run, runtime).step == 6
    assert f"warning: --out {run.out}: this file system has no locks" in capsys.readouterr().err


LOCKING = """
import sys
from pathlib import Path
from glioma_dist.errors import InputError, Interrupted, StopRequested, UnavailableError
from glioma_dist.training.folder_lock import folder_lock
try:
    with folder_lock(Path(sys.argv[1])):
        {inside}
except InputError as error:
    print(error)
    sys.exit(2)
"""


@contextmanager
def locking(folder: Path, inside: str = "pass") -> Iterator[subprocess.Popen]:
    """Another process that locks the folder and then does what `inside` says."""
    code = LOCKING.format(inside=inside)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], env=environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def lock_elsewhere(folder: Path) -> bool:
    """Whether another process can lock the folder."""
    with locking(folder) as process:
        return process.wait() == 0


def test_of_many_starts_at_once_exactly_one_holds_the_folder(tmp_path):
    waiting = "print('held', flush=True); sys.stdin.read()"
    with ExitStack() as stack:
        started = [stack.enter_context(locking(tmp_path, waiting)) for _ in range(5)]
        said = [process.stdout.readline() for process in started]
        assert said.count("held\n") == 1
        assert sum("another training is writing there" in line for line in said) == 4
        codes = [process.wait() for process, line in zip(started, said, strict=True) if line != "held\n"]
        assert codes == [2] * 4


FORKING = """import os, time
        children = []
        for _ in range(2):
            child = os.fork()
            if not child:
                time.sleep(600)
            children.append(child)
        print(*children, flush=True)
        time.sleep(600)"""


def test_after_a_kill_with_workers_the_folder_is_free_at_once(tmp_path):
    """Workers are forked, outlive the training, and have all that it had open."""
    for _ in range(20):
        children: list[int] = []
        try:
            with locking(tmp_path, FORKING) as holder:
                children += [int(word) for word in holder.stdout.readline().split()]
                assert len(children) == 2
                os.kill(holder.pid, signal.SIGKILL)
                holder.wait()
                with folder_lock(tmp_path):
                    for child in children:
                        os.kill(child, 0)  # raises where it is not there any more
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)


def test_a_file_system_that_cannot_be_written_to_is_one_line(run, runtime):
    (run.out / LOCK).unlink(missing_ok=True)
    (run.out / LOCK).mkdir()
    with pytest.raises(InputError, match=r"\.lock: cannot be written"):
        opened(run, runtime)


def write_status(out: Path, state: str) -> dict:
    told = {"state": state, "code": None, "reason": None, "step": 6, "checkpoint_step": 6, "updated": "then"}
    told["warnings"] = [{"kind": "shared-images", "step": 0, "text": "told by an earlier start"}]
    (out / "status.json").write_text(json.dumps(told))
    return told


def fail_to_begin(config, runtime, ending: BaseException) -> dict:
    """What status.json says after a start that `ending` ends before the run begins."""
    with pytest.raises(type(ending)), RunFolder(config, runtime):
        raise ending
    return json.loads((config.out / "status.json").read_text())


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
@pytest.mark.parametrize(
    ("ending", "state_after", "code"),
    [
        (InputError("--data.train: not found"), "failed", 2),
        (UnavailableError("a store does not answer"), "failed", 69),
        (StopRequested("received SIGTERM"), "stopped", 75),
        (Interrupted(StopRequested("received SIGHUP")), "stopped", 75),
        (ZeroDivisionError("a bug"), "failed", 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_a_start_that_does_not_reach_its_first_step_is_in_the_status(run, runtime, state, ending, state_after, code):
    before = write_status(run.out, state)
    after = fail_to_begin(run, runtime, ending)
    reason = str(getattr(ending, "request", ending))
    assert after == before | {"state": state_after, "code": code, "reason": reason, "updated": after["updated"]}
    assert after["updated"] != "then"


def test_checkpoints_that_are_all_damaged_are_in_the_status(run, runtime):
    write_status(run.out, "stopped")
    for name in ("last", "last.1", "last.2"):
        damage(run.out / name)
    message = refused(run, runtime)
    after = json.loads((run.out / "status.json").read_text())
    assert (after["state"], after["code"], after["reason"]) == ("failed", 2, message)


def test_the_status_of_a_finished_run_another_run_or_one_that_has_begun_stays(run, runtime):
    before = write_status(run.out, "finished")
    assert fail_to_begin(run, runtime, InputError("no data")) == before
    before = write_status(run.out, "stopped")
    refused(replace(run, lr=0.5), runtime)
    assert json.loads((run.out / "status.json").read_text()) == before
    folder = RunFolder(run, runtime)
    folder.has_begun = True
    folder.__exit__(InputError, InputError("a full disk"), None)
    assert json.loads((run.out / "status.json").read_text()) == before


@pytest.mark.parametrize("content", [None, "", "[]", '{"state": 7}'])
def test_a_status_that_is_missing_or_damaged_does_not_hide_the_error(run, runtime, content):
    path = run.out / "status.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match="no data"), RunFolder(run, runtime):
        raise InputError("no data")
    assert (path.read_text() if path.exists() else None) == content
