"""`accelerate launch -m glioma_dist train` is a training like any other, with one process and with two."""

import os
import shlex
import subprocess
import sys

import pytest
from helpers import rows, run, tiny_config, train_here

from glioma_dist.config.file import to_dict
from glioma_dist.config.launch_files import FOLDER
from glioma_dist.files import write_json_atomically


@pytest.mark.parametrize(("file", "num_processes"), [("cpu.yaml", 1), ("cpu_2_processes.yaml", 2)])
def test_the_program_trains_under_a_launcher_as_without(shards, quick_python, tmp_path, file, num_processes):
    """Outside the clone, whose files must not be needed. One process and its launcher are new interpreters."""
    python = sys.executable if num_processes == 1 else str(quick_python)
    run(train_here, tiny_config(shards, tmp_path / "expected"), num_processes=num_processes)
    write_json_atomically(tmp_path / "config.json", to_dict(tiny_config(shards, tmp_path / "run")))
    launch = ["-m", "accelerate.commands.launch", "--quiet", "--config_file", str(FOLDER / file)]
    command = [python, *launch, "-m", "glioma_dist", "train", "--config", str(tmp_path / "config.json")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, f"{shlex.join(command)}\n{ended.stderr[-3000:]}"
    assert rows(tmp_path / "run") == rows(tmp_path / "expected")
