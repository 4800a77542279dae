"""Several processes train on while one of them writes; a checkpoint is complete when all know that all parts are."""

import os
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
from engines import fsdp2
from helpers import rows, run, tiny_config

from glioma_dist.model import checkpoint_writer
from glioma_dist.model.checkpoint import Checkpoint, kept_folders
from glioma_dist.training import loop
from glioma_dist.training.run_folder import RunFolder

SECONDS_TO_HOLD = 100
"""So that processes that wait for a disk which is held fail, and do not hang."""


def train_twice(shards: Path, folder: Path, engine: str) -> list[tuple[str, int]]:
    """Train in `folder`/free and in `folder`/held, where the last process that writes is held until the fourth step.
    Returns the checkpoints of the second run in the order in which they became complete."""
    from glioma_dist.distributed.context import DistributedContext

    here, completed = DistributedContext.start(), []
    writes = here.rank == (1 if engine == "FSDP2" else 0)
    with fsdp2(here) if engine == "FSDP2" else nullcontext(), pytest.MonkeyPatch.context() as patch:
        loop.train(config_of(shards, folder / "free"), here)
        config, free = config_of(shards, folder / "held"), threading.Event()
        write, step = checkpoint_writer.write_tensors, loop.train_step

        def held(path, tensors):
            assert not writes or free.wait(SECONDS_TO_HOLD), "training waits for the disk"
            return write(path, tensors)

        def stepping(trainer, batch, number):
            if number == 3:  # after the checkpoint of step 2, and before that of step 4, which has to wait
                assert trainer.saver.begun.step == 2
                assert trainer.saver.saved.step == 0
                assert not (config.out / "last").exists()
                free.set()
            return step(trainer, batch, number)

        patch.setattr(checkpoint_writer, "write_tensors", held)
        patch.setattr(loop, "train_step", stepping)
        patch.setattr(RunFolder, "checkpoint_complete", lambda _, name, step: completed.append((name, step)))
        loop.train(config, here)
    return completed


def config_of(shards: Path, out: Path):
    return tiny_config(shards, out, save_every=2, eval_every=6, keep_last=9)


def contents(out: Path) -> list[tuple[int, dict[str, bytes]]]:
    return [
        (Checkpoint.read(each).step, {path.name: path.read_bytes() for path in each.glob("*.safetensors")})
        for each in kept_folders(out / "last")
    ]


@pytest.mark.parametrize("engine", ["DDP", "FSDP2"])
def test_all_train_on_while_one_writes(shards, tmp_path, engine):
    first, second = run(train_twice, shards, tmp_path, engine, num_processes=2)
    assert first == [("last", 2), ("last", 4), ("best", 6), ("last", 6)]
    assert second == [], "the first process tells"
    assert rows(tmp_path / "held") == rows(tmp_path / "free")
    assert contents(tmp_path / "held") == contents(tmp_path / "free")
    assert [step for step, _ in contents(tmp_path / "held")] == [6, 4, 2]
    assert len(os.listdir(tmp_path / "held" / "last")) == (6 if engine == "FSDP2" else 4)
