"""Several processes agree on the checkpoint that they resume from, and end together where one of them cannot."""

import os
import re
import resource
import shutil
from dataclasses import replace

import pytest
from helpers import rows, run, start, tiny_config, train_here

from glioma_dist.distributed.run_command import run_command
from glioma_dist.model import checkpoint_writer
from glioma_dist.model.checkpoint import Checkpoint, kept_folders


def train_own(config) -> None:
    """Train in a folder of each process's own, as on machines that share none."""
    rank = os.environ.get("RANK", "0")
    run_command(lambda: train_here(replace(config, out=config.out.with_name(f"{config.out.name}-{rank}"))))


def contents(out) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "last").glob("*.safetensors")}


def test_two_processes_fall_back_together_and_end_the_same(shards, tmp_path):
    config = tiny_config(shards, tmp_path / "run", save_every=1)
    run(train_here, replace(config, out=tmp_path / "whole"), num_processes=2)
    run(train_here, replace(config, max_steps=4), num_processes=2)
    path = config.out / "last" / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    ended = start(train_here, config, num_processes=2).wait()
    assert [end.exit_code for end in ended] == [0, 0], [end.stderr[-2000:] for end in ended]
    assert [end.stderr.count("resuming from last.1/, step 3, instead") for end in ended] == [1, 0]
    assert contents(config.out) == contents(tmp_path / "whole")
    steps = [row for row in rows(config.out) if "split" not in row]
    assert steps == [row for row in rows(tmp_path / "whole") if "split" not in row]


def test_processes_that_find_different_checkpoints_do_not_train(shards, tmp_path):
    config = tiny_config(shards, tmp_path / "run", save_every=1)
    run(train_here, replace(config, max_steps=2), num_processes=2)
    shutil.copytree(config.out, tmp_path / "run-0")
    ended = start(train_own, config, num_processes=2).wait()
    assert [end.exit_code for end in ended] == [2, 2], [end.stderr[-2000:] for end in ended]
    assert all("processes 0 and 1 find different checkpoints" in end.stderr for end in ended)
    assert all("(none on " in end.stderr for end in ended)
    assert Checkpoint.read(tmp_path / "run-0" / "last").step == 2
    assert not (tmp_path / "run-1").exists()
    shutil.copytree(tmp_path / "run-0" / "last", tmp_path / "run-1" / "last")
    first, second = start(train_own, config, num_processes=2).wait()
    assert [first.exit_code, second.exit_code] == [0, 0], first.stderr
    assert "does not see what the first machine" in first.stderr
    assert "to resume, each machine needs a copy of last/" in first.stderr
    assert Checkpoint.read(tmp_path / "run-0" / "last").step == 6
    assert [path.name for path in (tmp_path / "run-1").iterdir()] == ["last"], "only the first process writes"


def without_space(config, rank: int) -> None:
    """Train; the second checkpoint's tensors find no space on one of the processes."""
    write, calls = checkpoint_writer.write_tensors, 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def writing(path, tensors):
        nonlocal calls
        calls += 1
        full = calls == 3 and int(os.environ["RANK"]) == rank
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]) if full else limits)
        try:
            return write(path, tensors)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    checkpoint_writer.write_tensors = writing

    def train() -> None:
        if rank:  # a part on every process
            from test_fsdp import train_here as train_in_parts

            train_in_parts(config)
        else:
            train_here(config)

    run_command(train)


@pytest.mark.parametrize("rank", [0, 1], ids=["DDP", "FSDP2, second process"])
def test_a_process_without_space_ends_all_and_the_checkpoint_before_stays(shards, tmp_path, rank):
    config = tiny_config(shards, tmp_path / "run", save_every=1, val=None)
    ended = start(without_space, config, rank, num_processes=2).wait()
    assert [end.exit_code for end in ended] == [2, 2], [end.stderr[-2000:] for end in ended]
    steps = [Checkpoint.read(folder).step for folder in kept_folders(config.out / "last")]
    told = f"cannot be written (File too large); check the path and the disk (checkpoint saved at step {steps[0]})\n"
    assert ended[0].stderr.endswith(told), ended[0].stderr
    assert ended[1].stderr == "", "the first process speaks for all"
    # At its end a run tries once more to save the last step: the one after which it learned that a write had failed.
    assert steps in ([2, 1], [3, 1])
    Checkpoint.read(config.out / "last").check()
    assert not (config.out / "last.new").exists()


def without_room_for_tensors(config) -> None:
    """Train; the first process can write small files only."""
    if os.environ["RANK"] == "0":
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    run_command(lambda: train_here(config))


def test_no_space_for_the_first_checkpoint_is_told_once(shards, tmp_path):
    config = tiny_config(shards, tmp_path / "run", save_every=1, val=None)
    ended = start(without_room_for_tensors, config, num_processes=2).wait()
    assert [end.exit_code for end in ended] == [2, 2], [end.stderr[-2000:] for end in ended]
    assert ended[0].stderr.count("File too large") == 1, ended[0].stderr
    # As above: of the step whose write failed, or of the last one, whose write was tried at the end.
    assert re.search(r"; a checkpoint of step [123] could not be saved\n$", ended[0].stderr), ended[0].stderr
    assert ended[1].stderr == "", "the first process speaks for all"
