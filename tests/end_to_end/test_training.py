"""Runs: stopping and going on equals never having stopped, however it was stopped; patience; what --out may hold."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import REPOSITORY, draw_shards, rows, run, seal, start, tiny_config, train_here
from safetensors.torch import load_file, save_file

from glioma_dist.config.file import to_dict
from glioma_dist.errors import ExitCode, InputError, NonFiniteError
from glioma_dist.model import checkpoint_writer
from glioma_dist.size import Size
from glioma_dist.training import loop, preparation, validation
from glioma_dist.training.folder_lock import folder_lock
from glioma_dist.training.metrics_file import MetricsFile

FOLDERS = ("last", "best")


def contents(out: Path) -> dict[str, bytes]:
    """The tensors' files of a run's checkpoints, bit for bit."""
    return {
        f"{folder}/{path.name}": path.read_bytes()
        for folder in FOLDERS
        for path in sorted((out / folder).glob("*.safetensors"))
    }


def check_same_run(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    expected = contents(other)
    assert sorted(expected) == ["best/model.safetensors", "last/model.safetensors", "last/optimizer.safetensors"]
    found = contents(one)
    assert [name for name in expected if found.get(name) != expected[name]] == []
    names = {".lock", ".resumable", "best", "last", "last.1"}
    names |= {"config.json", "metrics.jsonl", "run.json", "status.json"}
    names |= {"curves.png"} & {path.name for path in other.iterdir()}  # of a run with a validation
    found = {path.name for path in one.iterdir()}
    assert found - {"last.damaged"} in (names, names - {"last.1"})
    status = json.loads((one / "status.json").read_text())
    last = rows(one)[-1]["step"]
    assert [status[name] for name in ("state", "code", "step", "checkpoint_step")] == ["finished", 0, last, last]


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory, runtime):
    """Six steps in one run, validated after the third and sixth, saved also after the second and fourth."""
    out = tmp_path_factory.mktemp("whole") / "run"
    loop.train(tiny_config(shards, out, save_every=2), runtime)
    return out


def test_a_run_tells_of_every_step_and_validation(whole, shards):
    told = rows(whole)
    assert [(row["step"], row.get("split")) for row in told] == [
        (1, None),
        (2, None),
        (3, None),
        (3, "val"),
        (4, None),
        (5, None),
        (6, None),
        (6, "val"),
    ]
    assert [row["epoch"] for row in told if "split" not in row] == [0, 0, 1, 1, 2, 2]  # 10 samples, batches of 4
    assert all({"step", "epoch", "loss", "dice"} <= set(row) for row in told)
    assert all(0 <= row["dice"] <= 1 and 0 < row["loss"] < 1 for row in told)
    config = json.loads((whole / "config.json").read_text())
    assert config["data"]["train"] == [str(shards / "train")]
    assert "images_per_second" in json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])


def test_a_run_is_repeated_bit_for_bit_even_with_workers(whole, shards, tmp_path, runtime):
    torch.manual_seed(123)  # which must not matter
    loop.train(tiny_config(shards, tmp_path / "run", workers=2), runtime)
    check_same_run(tmp_path / "run", whole)


def test_another_seed_is_another_run(whole, shards, tmp_path, runtime):
    loop.train(tiny_config(shards, tmp_path / "run", seed=1), runtime)
    ours, theirs = ([row["loss"] for row in rows(out)] for out in (tmp_path / "run", whole))
    assert all(one != other for one, other in zip(ours, theirs, strict=True))


def test_three_steps_and_three_more_are_six(whole, shards, tmp_path, runtime):
    config = tiny_config(shards, tmp_path / "run")
    loop.train(replace(config, max_steps=3), runtime)
    assert rows(tmp_path / "run") == rows(whole)[:4]
    loop.train(config, runtime)
    check_same_run(tmp_path / "run", whole)


def test_a_run_may_go_on_in_the_middle_of_an_epoch_and_elsewhere(whole, shards, tmp_path, runtime):
    """Stopped after a step that is no validation; then the run and the data are moved."""
    first = tmp_path / "first"
    (ended,) = start(interrupted, tiny_config(shards, first, workers=1), 4, os.getpid).wait()
    assert ended.exit_code == ExitCode.STOPPED, ended.stderr
    shutil.copytree(shards, tmp_path / "data")
    shutil.copytree(first, tmp_path / "second")
    loop.train(tiny_config(tmp_path / "data", tmp_path / "second"), runtime)
    check_same_run(tmp_path / "second", whole)


def interrupted(config, at_step: int, whom) -> None:
    """Train; after the row of `at_step` is written SIGTERM comes to the process `whom()`, or to its group."""
    from glioma_dist.distributed.run_command import run_command

    write = MetricsFile.write

    def writing(self, **row) -> None:
        write(self, **row)
        if row["step"] == at_step and "split" not in row:
            if whom is os.getpgrp:
                os.killpg(whom(), signal.SIGTERM)
            else:
                os.kill(whom(), signal.SIGTERM)

    MetricsFile.write = writing
    run_command(lambda: train_here(config))


@pytest.mark.parametrize("whom", [os.getpid, os.getpgrp], ids=["itself", "its whole group"])
def test_asked_to_stop_by_the_system_a_run_saves_says_so_and_goes_on(whole, shards, tmp_path, runtime, whom):
    """Launchers and SLURM send SIGTERM to the whole group, the workers that read included."""
    config = tiny_config(shards, tmp_path / "run", workers=1)
    (ended,) = start(interrupted, config, 1, whom).wait()
    assert ended.exit_code == ExitCode.STOPPED, ended.stderr[-2000:]
    said = r"stopped: received SIGTERM, checkpoint saved at step ([12])\. Run the same command to resume\.\n"
    assert re.fullmatch(said, ended.stderr), ended.stderr
    saved = json.loads((tmp_path / "run" / "last" / "state.json").read_text())
    assert saved["position"]["step"] in (1, 2)
    loop.train(config, runtime)
    check_same_run(tmp_path / "run", whole)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(config, point: str, folder: str, time: int) -> None:
    """Train; SIGKILL comes when the checkpoint `folder` is written for the `time`-th time, at `point` of it."""
    left = {
        "model": time,
        "optimizer": time,
        "state": time,
        "manifest": time,
        "rename away": time - 1,
        "rename": time,
        "after rename": time,
    }[point]

    def hit(found: bool) -> bool:
        nonlocal left
        left -= found
        return found and left == 0

    write_tensors, write_json = checkpoint_writer.write_tensors, checkpoint_writer.write_json_atomically
    rename = os.rename

    def saving(path, tensors) -> dict:
        entry = write_tensors(path, tensors)
        if hit(path.parent.name == f"{folder}.new" and path.stem == point):
            os.truncate(path, path.stat().st_size // 2)
            kill()
        return entry

    def renaming(source, target) -> None:
        if hit(point == "rename away" and Path(source).name == folder):
            kill()
        if hit(point == "rename" and Path(target).name == folder):
            kill()
        rename(source, target)
        if hit(point == "after rename" and Path(target).name == folder):
            kill()

    def writing(path, content) -> None:
        if hit(path.stem == point and path.parent.name == f"{folder}.new"):
            path.write_text(json.dumps(content)[:100])
            kill()
        write_json(path, content)

    checkpoint_writer.write_tensors, checkpoint_writer.write_json_atomically = saving, writing
    os.rename = renaming
    train_here(config)


@pytest.mark.parametrize(
    ("point", "folder", "time"),
    [
        ("model", "last", 1),
        ("model", "last", 2),
        ("optimizer", "last", 2),
        ("state", "last", 2),
        ("manifest", "last", 2),
        ("rename away", "last", 2),
        ("rename", "last", 1),
        ("rename", "last", 2),
        ("after rename", "last", 2),
        ("rename", "last", 4),
        ("state", "best", 1),
        ("rename", "best", 1),
        ("after rename", "best", 1),
    ],
)
def test_killed_while_a_checkpoint_is_written_a_run_goes_on_as_if_nothing_was(
    whole, shards, tmp_path, runtime, point, folder, time
):
    config = tiny_config(shards, tmp_path / "run", save_every=2)
    (ended,) = start(killed, config, point, folder, time).wait()
    assert ended.exit_code == -signal.SIGKILL, ended.stderr
    # The first write of `last` is after step 2, the second after 3, the fourth after 6.
    assert len(rows(tmp_path / "run")) >= 2
    loop.train(config, runtime)
    check_same_run(tmp_path / "run", whole)


def test_a_torn_last_line_of_metrics_is_written_anew(whole, shards, tmp_path, runtime):
    out = tmp_path / "run"
    config = tiny_config(shards, out)
    loop.train(replace(config, max_steps=3), runtime)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "epoch": 1, "loss": 9.0, "dice": 0.0}\n{"step": 5, "epo')
    loop.train(config, runtime)
    check_same_run(out, whole)


def test_training_without_validation_writes_last_only(whole, shards, tmp_path, runtime):
    loop.train(tiny_config(shards, tmp_path / "run", val=None), runtime)
    assert rows(tmp_path / "run") == [row for row in rows(whole) if "split" not in row]
    assert not (tmp_path / "run" / "best").exists()
    assert (tmp_path / "run" / "last" / "model.safetensors").read_bytes() == (
        whole / "last" / "model.safetensors"
    ).read_bytes()


def test_epochs_and_steps_end_a_run_whichever_comes_first(shards, tmp_path, runtime):
    for epochs, max_steps, expected in ((2, None, 4), (2, 3, 3), (1, 9, 2)):
        out = tmp_path / f"{epochs} {max_steps}"
        loop.train(tiny_config(shards, out, eval_every=None, epochs=epochs, max_steps=max_steps), runtime)
        told = rows(out)
        assert max(row["step"] for row in told) == expected
        # Validated after each epoch of two steps, and at the end.
        assert [row["step"] for row in told if "split" in row] == sorted({*range(2, expected + 1, 2), expected})


@pytest.fixture
def losses(monkeypatch):
    """A list from which validations take their losses."""
    values = []
    monkeypatch.setattr(validation, "validation_scores", lambda _training: loop.Scores(values.pop(0), 0.5))
    return values


def test_patience_ends_a_run_after_so_many_validations_that_were_no_better(shards, tmp_path, runtime, losses):
    losses += [0.9, 0.8, 0.8, 0.7, 0.75, 0.71, 0.1]
    loop.train(tiny_config(shards, tmp_path / "run", max_steps=9, eval_every=1, patience=2), runtime)
    assert losses == [0.1]
    assert [row["step"] for row in rows(tmp_path / "run") if "split" not in row] == [1, 2, 3, 4, 5, 6]
    position = {name: json.loads((tmp_path / "run" / name / "state.json").read_text())["position"] for name in FOLDERS}
    assert position["best"] == {
        **{"step": 4, "best_loss": 0.7, "best_dice": 0.5, "evaluations_since_best": 0, "validated_step": 4}
    }
    assert position["last"] == {
        **{"step": 6, "best_loss": 0.7, "best_dice": 0.5, "evaluations_since_best": 2, "validated_step": 6}
    }


def test_patience_is_remembered_over_a_stop(shards, tmp_path, runtime, losses):
    losses += [0.7, 0.8, 0.8, 0.1]
    config = tiny_config(shards, tmp_path / "run", max_steps=9, eval_every=1, patience=2)
    loop.train(replace(config, max_steps=2), runtime)
    loop.train(config, runtime)
    assert losses == [0.1]
    assert max(row["step"] for row in rows(tmp_path / "run")) == 3


@pytest.mark.parametrize("early", [False, True])
def test_going_on_with_a_finished_run_changes_nothing(shards, tmp_path, runtime, losses, early):
    losses += [0.5, 0.6]
    config = tiny_config(shards, tmp_path / "run", max_steps=8 if early else 2, eval_every=1, patience=1)
    loop.train(config, runtime)
    files = sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file())
    before = [path.read_bytes() for path in files]
    loop.train(config, runtime)
    assert sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file()) == files
    assert [path.read_bytes() for path in files] == before


@pytest.fixture
def finished(whole, tmp_path):
    """A copy of the whole run."""
    return shutil.copytree(whole, tmp_path / "copy")


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"seed": 7}, "seed 0 -> 7"),
        ({"lr": 0.5}, "lr 0.001 -> 0.5"),
        ({"batch_size": 2}, "batch_size 4 -> 2"),
        ({"size": Size(32, 64)}, "data.size 64x64 -> 32x64"),
        ({"norm": "group"}, "model.norm batch -> group"),
        ({"augment": ()}, "data.augment"),
        ({"loss": "bce"}, "loss dice -> bce"),
    ],
)
def test_the_run_of_other_settings_is_refused_by_their_names(finished, shards, runtime, changes, fragment):
    with pytest.raises(InputError) as error:
        loop.train(tiny_config(shards, finished, **changes), runtime)
    assert str(finished) in str(error.value)
    assert fragment in str(error.value)
    assert "\n" not in str(error.value)


def test_several_other_settings_are_all_named(finished, shards, runtime):
    with pytest.raises(InputError, match=r"lr 0\.001 -> 0\.5; seed 0 -> 7"):
        loop.train(tiny_config(shards, finished, seed=7, lr=0.5), runtime)


@pytest.mark.parametrize("split", ["train", "val"])
def test_changed_data_are_refused(finished, shards, tmp_path, runtime, split):
    shutil.copytree(shards, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / split)
    draw_shards(tmp_path / "data" / split, range(1, 11))
    with pytest.raises(InputError, match=re.escape(f"{finished} was trained on other data")):
        loop.train(tiny_config(tmp_path / "data", finished, max_steps=8), runtime)


def test_resume_never_wants_an_empty_folder(finished, shards, tmp_path, runtime):
    with pytest.raises(InputError, match="--resume never"):
        loop.train(tiny_config(shards, finished, resume="never"), runtime)
    (tmp_path / "empty").mkdir()
    loop.train(tiny_config(shards, tmp_path / "empty", resume="never", max_steps=1), runtime)
    assert [row["step"] for row in rows(tmp_path / "empty")] == [1, 1]


def test_a_folder_of_something_else_is_refused_and_left_alone(shards, tmp_path, runtime):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("1")
    with pytest.raises(InputError, match="holds no run"):
        loop.train(tiny_config(shards, tmp_path / "thesis"), runtime)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def test_another_length_of_run_or_place_of_data_is_no_other_run(finished, shards, tmp_path, runtime):
    shutil.copytree(shards, tmp_path / "moved")
    loop.train(tiny_config(tmp_path / "moved", finished, max_steps=7, epochs=9, patience=50, workers=1), runtime)
    assert [row["step"] for row in rows(finished)][-2:] == [7, 7]


def check_refused_step(config, runtime, *parts: str) -> None:
    with pytest.raises(NonFiniteError) as error:
        loop.train(config, runtime)
    message = str(error.value)
    assert "\n" not in message
    for part in (*parts, "--lr"):
        assert part in message
    assert rows(config.out) == []
    assert not (config.out / "last").exists()


def test_a_loss_that_is_no_number_stops_the_run_before_any_weight_moves(shards, tmp_path, runtime, monkeypatch):
    build_model = preparation.build_model

    def spoilt(*given):
        model, lineage = build_model(*given)
        torch.nn.init.constant_(model.decoder.head.bias, float("nan"))
        return model, lineage

    monkeypatch.setattr(preparation, "build_model", spoilt)
    check_refused_step(tiny_config(shards, tmp_path / "run"), runtime, "step 1", "loss is nan", "cell-0")


def test_a_gradient_that_is_no_number_stops_the_run_before_any_weight_moves(shards, tmp_path, runtime, monkeypatch):
    build_model = preparation.build_model

    def spoilt(*given):
        model, lineage = build_model(*given)
        model.decoder.head.bias.register_hook(lambda gradient: gradient * float("nan"))
        return model, lineage

    monkeypatch.setattr(preparation, "build_model", spoilt)
    check_refused_step(tiny_config(shards, tmp_path / "run"), runtime, "step 1", "gradient is not finite")


def test_weights_that_are_no_numbers_are_refused(shards, tmp_path, runtime):
    loop.train(tiny_config(shards, tmp_path / "first", max_steps=1), runtime)
    model = tmp_path / "first" / "last" / "model.safetensors"
    tensors = load_file(model)
    tensors["decoder.head.bias"] *= float("nan")
    save_file(tensors, model)
    seal(model.parent)
    with pytest.raises(InputError, match=r"1 tensors are not finite, the first is decoder\.head\.bias"):
        loop.train(tiny_config(shards, tmp_path / "run", init=str(model.parent)), runtime)


def fail_in_a_step(config) -> None:
    def failing(*_given):
        raise RuntimeError("the third kind of failure")

    loop.train_step = failing
    train_here(config)


def test_a_failure_of_any_kind_ends_the_process_though_workers_read(shards, tmp_path):
    (ended,) = start(fail_in_a_step, tiny_config(shards, tmp_path / "run", workers=2)).wait()
    assert ended.exit_code not in (0, None)
    assert "the third kind of failure" in ended.stderr


def test_two_trainings_cannot_write_into_one_folder(shards, tmp_path, runtime):
    out = tmp_path / "run"
    out.mkdir()
    with folder_lock(out), pytest.raises(InputError, match="another training is writing there"):
        loop.train(tiny_config(shards, out), runtime)
    loop.train(tiny_config(shards, out, max_steps=1), runtime)


def test_a_run_that_ended_before_its_first_checkpoint_claims_nothing(shards, tmp_path, runtime):
    out = tmp_path / "run"
    with pytest.raises(InputError, match="smaller than the crop"):
        loop.train(tiny_config(shards, out, transform="random-crop", size=Size(1000, 64)), runtime)
    loop.train(tiny_config(shards, out, transform="random-crop", size=Size(32, 32), max_steps=1), runtime)
    assert len(rows(out)) == 2


def test_a_folder_of_no_validation_images_is_one_line(shards, tmp_path, runtime):
    shutil.copytree(shards, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "val")
    draw_shards(tmp_path / "data" / "val", [])
    with pytest.raises(InputError, match="val"):
        loop.train(tiny_config(tmp_path / "data", tmp_path / "run", max_steps=1), runtime)


def test_the_lineage_names_data_and_licence(whole):
    metadata = json.loads((whole / "best" / "state.json").read_text())
    assert metadata["lineage"] == [{"data": "drawn", "licence": "CC0"}]


def learned(config) -> list[dict]:
    train_here(config)
    return rows(config.out)


def test_the_smallest_network_learns_to_see_discs(shards, tmp_path):
    """Not only is everything equal: the loss falls, and held-out images are masked."""
    config = tiny_config(
        shards, tmp_path / "run", max_steps=80, eval_every=80, lr=5e-3, transform="random-crop", size=Size(64, 64)
    )
    (told,) = run(learned, config, timeout=200)
    steps = [row["loss"] for row in told if "split" not in row]
    assert sum(steps[-10:]) < 0.7 * sum(steps[:10])
    assert told[-1]["dice"] > 0.75


def test_a_run_saves_and_ends_when_its_launcher_is_asked_to(shards, tmp_path):
    """`accelerate launch` of one process ends on SIGTERM without handing it on."""
    config = tiny_config(shards, tmp_path / "run", epochs=10**6, max_steps=None, eval_every=10**6, val=None)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    with subprocess.Popen([*launch, "train.py", "--config", str(tmp_path / "config.json")], cwd=REPOSITORY) as launcher:
        wait_until(lambda: (config.out / "metrics.jsonl").exists() and rows(config.out))
        launcher.terminate()
        wait_until(lambda: (config.out / "last" / "state.json").exists())
    step = json.loads((config.out / "last" / "state.json").read_text())["position"]["step"]
    wait_until(lambda: unlocked(config.out))
    assert rows(config.out)[-1]["step"] == step, "the run went on after it had saved"


def wait_until(true, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def unlocked(out: Path) -> bool:
    try:
        with folder_lock(out):
            return True
    except InputError:
        return False
