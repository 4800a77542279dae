"""Help, mistyped flags and the list of encoders cost no import of the large libraries."""

import json
import subprocess
import sys

import pytest
from helpers import REPOSITORY

HEAVY = {"torch", "transformers", "timm", "albumentations", "accelerate", "cv2", "matplotlib"}
PROGRAM = """
import atexit, json, runpy, sys
atexit.register(lambda: sys.__stdout__.write("\\nMODULES " + json.dumps(sorted(sys.modules))))
sys.argv = json.loads(sys.argv[1])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
ENTRY_POINTS = ("train.py", "evaluate.py", "predict.py")
CASES = [
    *((name, ["--help"], 0) for name in ENTRY_POINTS),
    *((name, ["--no-such-flag", "1"], 2) for name in ENTRY_POINTS),
    ("train.py", ["--data.train", "x", "--lr", "fast"], 2),
    ("train.py", ["--data.train", "x", "--model.encoder", "mit_b9"], 2),
    ("train.py", ["--data.train", "x", "--config", "no/such.json"], 2),
    ("train.py", ["--model.encoder", "list"], 0),
]


@pytest.mark.parametrize(("name", "arguments", "code"), CASES, ids=[" ".join([n, *a]) for n, a, _ in CASES])
def test_the_large_libraries_are_not_imported(name, arguments, code):
    command = [sys.executable, "-c", PROGRAM, json.dumps([str(REPOSITORY / name), *arguments])]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == code, ended.stderr
    modules = json.loads(ended.stdout.rpartition("MODULES ")[2])
    assert "glioma_dist.cli.arguments" in modules
    assert HEAVY.intersection(modules) == set()
