"""What stands last on the screen after a launch that failed: the useful line."""

import os
import subprocess
import sys

import pytest
from helpers import REPOSITORY

ERROR = (
    "error: --out ftp://b/run: cannot write to this kind of URL; give a path of this machine, or a URL that begins "
    "with one of s3://, gs://, az://, hf://"
)
COMMANDS = {
    "torchrun, two processes": [*["-m", "torch.distributed.run", "--nproc_per_node", "2"]],
    "accelerate, two processes": [
        *["-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"],
        "accelerate_configs/cpu_2_processes.yaml",
    ],
    "accelerate --quiet, one process": [
        *["-m", "accelerate.commands.launch", "--quiet", "--config_file"],
        "accelerate_configs/cpu.yaml",
    ],
}

MARKS = {"torchrun, two processes": pytest.mark.slow}


@pytest.mark.parametrize("launch", [pytest.param(name, marks=MARKS.get(name, ())) for name in COMMANDS])
def test_the_useful_line_is_last(launch, tmp_path):
    ended = subprocess.run(
        [sys.executable, *COMMANDS[launch], "train.py", "--data.train", str(tmp_path), "--out", "ftp://b/run"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    lines = [line for line in ended.stderr.splitlines() if line.strip("= ")]
    assert ERROR in lines
    assert ERROR in lines[-1]
    assert ended.returncode == 1  # launchers have no other
    assert ("Traceback" in ended.stderr) == ("two processes" in launch)
