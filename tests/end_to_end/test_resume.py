"""Runs whose files, folder or disk fail: one line, nothing that is complete is lost, and the result afterwards is
the same as without the fault, bit for bit."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import rows, start, tiny_config, train_here

from glioma_dist.config import TrainConfig
from glioma_dist.config.file import read_config
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError
from glioma_dist.files import partial_name
from glioma_dist.model import checkpoint_writer
from glioma_dist.model.checkpoint import Checkpoint, kept_folders
from glioma_dist.training import loop, opening
from glioma_dist.training.metrics_file import MetricsFile


def contents(out: Path) -> dict[str, bytes]:
    """The tensors' files of last/ and best/, bit for bit."""
    files = [path for name in ("last", "best") for path in (out / name).glob("*.safetensors")]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def check_same_run(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    expected, found = contents(other), contents(one)
    assert len(expected) == 3
    assert [name for name in expected if found.get(name) != expected[name]] == []


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory, runtime):
    """Six steps in one run, validated after the third and sixth, saved also after the second and fourth."""
    out = tmp_path_factory.mktemp("whole") / "run"
    loop.train(tiny_config(shards, out, save_every=2), runtime)
    return out


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("model.safetensors", 3),
        ("model.safetensors", 4),
        ("model.safetensors", 5),
        ("optimizer.safetensors", 4),
        ("state.json", 5),
        ("manifest.json", 3),
    ],
)
def test_the_run_falls_back_and_ends_the_same(whole, shards, tmp_path, runtime, capfd, name, steps):
    config = tiny_config(shards, tmp_path / "run", save_every=2)
    loop.train(replace(config, max_steps=steps), runtime)
    flip(config.out / "last" / name)
    before = Checkpoint.read(config.out / "last.1").step
    capfd.readouterr()
    loop.train(config, runtime)
    said = capfd.readouterr()
    assert said.err.count("\n") == 1
    assert f"resuming from last.1/, step {before}, instead" in said.err
    check_same_run(config.out, whole)


@pytest.mark.parametrize("steps", [3, 6], ids=["to go on with", "finished"])
def test_what_a_killed_writer_left_is_removed(whole, shards, tmp_path, runtime, steps):
    """Of every file of a run, also of one that a finished run does not write again."""
    config = tiny_config(shards, tmp_path / "run", save_every=2)
    loop.train(replace(config, max_steps=steps), runtime)
    files = [path for path in config.out.iterdir() if path.is_file()]
    assert {"run.json", "status.json", "config.json"} <= {path.name for path in files}
    for path in files:
        partial_name(path).write_bytes(b"half")
    (config.out / ".notes.partial").write_text("a user's own")
    loop.train(config, runtime)
    assert {path.name for path in config.out.glob(".*.partial")} == {".notes.partial"}
    (config.out / ".notes.partial").unlink()
    check_same_run(config.out, whole)


def test_a_run_that_lost_last_is_refused_and_left_alone(whole, shards, tmp_path, runtime):
    out = shutil.copytree(whole, tmp_path / "run")
    for folder in kept_folders(out / "last"):
        shutil.rmtree(folder)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="no last/ to resume from"):
        loop.train(tiny_config(shards, out, save_every=2), runtime)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def at_step(number: int, action) -> None:
    """Have `action` happen after the row of a step is written."""
    write = MetricsFile.write

    def writing(self, **row) -> None:
        write(self, **row)
        if row["step"] == number and "split" not in row:
            action()

    MetricsFile.write = writing


def without_its_folder(config, how: str, step: int) -> None:
    def act() -> None:
        if how == "removed":
            shutil.rmtree(config.out)
        elif how == "unmounted":
            subprocess.run(["umount", "--lazy", str(config.out)], check=True)
        else:
            config.out.rename(config.out.with_name("elsewhere"))
        if how == "replaced":
            config.out.mkdir()

    at_step(step, act)
    run_command(lambda: train_here(config))


@pytest.mark.parametrize(
    ("how", "step"),
    [("removed", 1), ("removed", 2), ("removed", 3), ("removed", 6), ("replaced", 2), ("moved", 3), ("unmounted", 2)],
)
def test_a_folder_that_is_gone_stops_the_run_and_is_not_made_again(shards, tmp_path, how, step):
    """After a step whose next write is a row, one that is saved, one that is validated, and the last one."""
    config = tiny_config(shards, tmp_path / "run", save_every=2, workers=1 if step == 1 else 0)
    if how == "unmounted" and not mounted(config.out, 2**24):
        pytest.skip("file systems cannot be mounted here")
    (ended,) = start(without_its_folder, config, how, step).wait()
    assert ended.exit_code == 2, ended.stderr
    assert re.fullmatch(r"error: .*was removed, replaced or unmounted.*\n", ended.stderr), ended.stderr
    assert config.out.exists() == (how in ("replaced", "unmounted"))
    assert not config.out.exists() or list(config.out.iterdir()) == []


def mounted(folder: Path, num_bytes: int) -> bool:
    """Whether a file system of a size could be mounted at `folder`."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    return os.getuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0


SITES = ("config", "metrics", "row", "model", "optimizer", "state", "manifest")
OF_A_NEW = tuple(site for site in SITES if site != "metrics")
"""Nothing is written into the metrics of a new run before its first row."""


def with_a_full_disk(config, site: str) -> None:
    """Train; the second write of `site`, or the first of what is written once, finds no space. What is said goes into
    files, too: for it there is."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    left = 1 if site in ("config", "metrics") else 2

    def full(function, name: str | None = None):
        def call(first, *more, **named):
            nonlocal left
            left -= site == (name or first.stem)
            if left or site != (name or first.stem):
                return function(first, *more, **named)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
            try:
                return function(first, *more, **named)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

        return call

    checkpoint_writer.write_tensors = full(checkpoint_writer.write_tensors)
    checkpoint_writer.write_json_atomically = full(checkpoint_writer.write_json_atomically)
    opening.write_json_atomically = full(opening.write_json_atomically)
    MetricsFile.__init__, MetricsFile.write = full(MetricsFile.__init__, "metrics"), full(MetricsFile.write, "row")
    run_command(lambda: train_here(config))


@pytest.mark.parametrize(
    ("site", "resumed"), [*((site, True) for site in SITES), *((site, False) for site in OF_A_NEW)]
)
def test_a_disk_that_takes_no_more_is_one_line_at_every_write(whole, shards, tmp_path, runtime, site, resumed):
    config = tiny_config(shards, tmp_path / "run", save_every=1)
    if resumed:
        loop.train(replace(config, max_steps=3), runtime)
    before = [Checkpoint.read(folder).step for folder in kept_folders(config.out / "last")]
    (ended,) = start(with_a_full_disk, config, site).wait()
    assert ended.exit_code == 2, ended.stderr
    assert re.fullmatch(r"error: .*cannot be written \(File too large\).*\n", ended.stderr), ended.stderr
    if (config.out / "config.json").exists():
        assert read_config(TrainConfig, config.out / "config.json").lr == config.lr
    after = [Checkpoint.read(folder).step for folder in kept_folders(config.out / "last")]
    assert len(after) >= len(before)
    assert not before or after[0] >= before[0]
    for folder in kept_folders(config.out / "last"):
        Checkpoint.read(folder).check()
    assert not [path for path in config.out.rglob("*") if path.name.endswith((".new", ".partial"))]
    loop.train(config, runtime)
    check_same_run(config.out, whole)


SIZES = [2**12, 2**16, 2**19, 2**20, 2**21, 3 * 2**20]
"""Bytes of a disk, from less than config.json to nearly the whole run."""


def trained(config) -> None:
    run_command(lambda: train_here(config))


@pytest.mark.parametrize("num_bytes", SIZES)
def test_a_disk_that_fills_up_is_one_line_and_the_run_resumes_when_there_is_space(whole, shards, tmp_path, num_bytes):
    """A real file system, which is full wherever it happens to be."""
    config = tiny_config(shards, tmp_path / "run", save_every=1)
    if not mounted(config.out, num_bytes):
        pytest.skip("file systems cannot be mounted here")
    try:
        (ended,) = start(trained, config).wait()
        assert ended.exit_code == 2, ended.stderr
        assert re.fullmatch(r"error: .*the disk is full; free space.*\n", ended.stderr), ended.stderr
        for folder in kept_folders(config.out / "last"):
            Checkpoint.read(folder).check()
        subprocess.run(["mount", "-o", "remount,size=64M", str(config.out)], check=True)
        (ended,) = start(trained, config).wait()
        assert ended.exit_code == 0, ended.stderr
        check_same_run(config.out, whole)
    finally:
        subprocess.run(["umount", str(config.out)], check=True)


def killed_at_step(config, step: int) -> None:
    at_step(step, lambda: os.kill(os.getpid(), signal.SIGKILL))
    train_here(config)


def test_killed_with_workers_a_run_restarts_at_once(whole, shards, tmp_path):
    """SIGKILL after each step in turn; the workers of each live on for a while."""
    config = tiny_config(shards, tmp_path / "run", save_every=1, workers=2)
    for step in (1, 2, 3, 4, 5):
        (ended,) = start(killed_at_step, config, step).wait()
        assert ended.exit_code == -signal.SIGKILL, ended.stderr
    (ended,) = start(trained, config).wait()
    assert ended.exit_code == 0, ended.stderr
    check_same_run(config.out, whole)


def test_of_two_starts_at_once_one_runs(whole, shards, tmp_path):
    config = tiny_config(shards, tmp_path / "run", save_every=2)
    both = [start(trained, config) for _ in range(2)]
    ended = [started.wait()[0] for started in both]
    codes = sorted(end.exit_code for end in ended)
    assert codes in ([0, 2], [0, 0]), [end.stderr for end in ended]
    if codes == [0, 2]:  # else the second came after the first had ended
        (refused,) = (end.stderr for end in ended if end.exit_code == 2)
        assert re.fullmatch(r"error: --out .*another training .*\n", refused)
    check_same_run(config.out, whole)
    assert json.loads((config.out / "last" / "state.json").read_text())["position"]["step"] == 6
