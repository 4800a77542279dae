"""The lock of a study's folder: whoever starts next waits for the holder, and for no child that the holder left."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from glioma_dist.errors import InputError
from glioma_dist.reproduction import folder as study_folder
from glioma_dist.reproduction.folder import one_at_a_time

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
