"""The lock of a study's folder: whoever starts next waits for the holder, and for no child that the holder left."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import draw_shards

from glioma_dist.config.launch_files import FOLDER
from glioma_dist.config.reproduction import ReproduceConfig
from glioma_dist.errors import InputError
from glioma_dist.reproduction import folder as study_folder
from glioma_dist.reproduction import material
from glioma_dist.reproduction.folder import one_at_a_time
from glioma_dist.reproduction.plan import Settings
from glioma_dist.reproduction.presets import PRESETS
from glioma_dist.reproduction.protocol import figure3
from glioma_dist.reproduction.run import reproduce

HOLDER = """
import os, sys, time
from pathlib import Path
from glioma_dist.reproduction.folder import one_at_a_time
with one_at_a_time(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(600)
"""


def test_a_killed_start_holds_nothing_though_a_forked_child_of_it_lives(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "study")], stdout=subprocess.PIPE, text=True
    )
    orphan = int(holder.stdout.readline())
    try:
        holder.kill()
        holder.wait()
        start = time.monotonic()
        with one_at_a_time(tmp_path / "study"):
            assert time.monotonic() - start < 60
        os.kill(orphan, 0)  # it is still there
    finally:
        os.kill(orphan, signal.SIGKILL)
        holder.stdout.close()


def test_a_start_that_fails_before_it_begins_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="odd"), one_at_a_time(tmp_path / "study"):
        raise ValueError("odd")
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "no locks"), NotImplementedError(), OSError(errno.EIO, "bad")])
def test_without_locks_it_goes_ahead_and_a_bad_disk_is_named(tmp_path, monkeypatch, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(study_folder.FileLock, "acquire", fail)
    if getattr(error, "errno", None) == errno.EIO:
        with pytest.raises(InputError, match=r"\.lock: cannot be written"), one_at_a_time(tmp_path):
            pass
    else:
        with one_at_a_time(tmp_path):
            pass


def test_few_training_images_are_said_to_be_the_counts_or_the_groups_fault(tmp_path, monkeypatch):
    """Of --counts at once, with the largest number that is asked for; of groups with the repetition."""
    monkeypatch.setattr(material, "link_subset", lambda *_: None)
    settings, studies = Settings(PRESETS["small"], tmp_path, tmp_path / "out", counts=(3, 5, 10)), [figure3()]
    with pytest.raises(InputError, match=r"--counts 3 5 10: 3 training images, but .* up to 10; give 10 or more"):
        material.prepare(settings, [tmp_path / "gone"], "none", studies)
    drawn = [{"train": ["a"] * number, "val": [], "test": []} for number in (10, 9)]
    with pytest.raises(InputError, match=r"repetition 1 has 9 training images, as the groups .* trains on 10; give a"):
        material.link_splits(dataclasses.replace(settings, counts=(10, 5, 10)), drawn, studies)


def test_a_first_start_that_fails_removes_what_it_made_and_nothing_else(tmp_path):
    images = draw_shards(tmp_path / "out" / "target" / "mine", range(12))

    def start(study: str, group_by: str) -> None:
        reproduce(
            ReproduceConfig(
                study,
                source=tmp_path / "none",
                target=(images,),
                out=tmp_path / "out",
                preset="small",
                counts=(6, 2, 4),
                imagenet=("none",),
                group_by=group_by,
                launch=FOLDER / "cpu.yaml",
            )
        )

    def files() -> set[Path]:
        return {path for path in (tmp_path / "out").rglob("*") if path.name != ".lock"}

    before = files()
    with pytest.raises(InputError, match=r"--group-by .*: finds no group in"):
        start("table1", r"(culture\d+)_")
    assert files() == before, "the data of the target lay in a folder of that name"
    # Splits of so few training images would stay for a start with more.
    with pytest.raises(InputError, match="--counts 6 2 4: 6 training images, but figure 3 trains on up to 10; give 10"):
        start("figure3", "none")
    assert files() == before
