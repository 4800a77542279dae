"""Help, mistakes, lists and refusals cost no import of the large libraries, for every command of the program."""

import dataclasses
import functools
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY

from glioma_dist.cli.program import COMMANDS
from glioma_dist.config.paths import path_flags
from glioma_dist.registry import sources

HEAVY = {"torch", "transformers", "timm", "albumentations", "accelerate", "matplotlib", "webdataset", "scipy", "cv2"}
LOOK_FOR_IMAGES = {"predict --images", "export onnx --images", "export bioimageio --images"}
"""Flags whose check takes OpenCV, and nothing that is slower."""
SECONDS = 1.0
"""Of processor time, for the whole process with the start of Python. Where the machine is slower: half of what it takes
there to import PyTorch."""
PROGRAM = """
import atexit, json, resource, runpy, sys
def tell():
    used = resource.getrusage(resource.RUSAGE_SELF)
    told = {"modules": sorted(sys.modules), "seconds": used.ru_utime + used.ru_stime}
    sys.__stdout__.write("\\nTOLD " + json.dumps(told))
atexit.register(tell)
sys.argv = json.loads(sys.argv[1])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SERVER = """
import json, os, resource, sys
from contextlib import suppress
from glioma_dist.cli.arguments import parse
from glioma_dist.cli.program import COMMANDS
from glioma_dist.errors import InputError
with suppress(InputError):
    parse(COMMANDS["train"].load().config, ["--no-such-flag"])
used = resource.getrusage(resource.RUSAGE_SELF)
before = used.ru_utime + used.ru_stime
for line in sys.stdin:
    request = json.loads(line)
    pid = os.fork()
    if pid == 0:
        for number, path in enumerate(request["streams"], 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["-c", json.dumps(request["argv"])]
        exec(request["program"], {"__name__": "__main__"})
        sys.exit()
    status = os.waitpid(pid, 0)[1]
    print(json.dumps([os.waitstatus_to_exitcode(status), before]), flush=True)
"""
"""Forks for each request, so that no interpreter is started, and what reads a command line is imported once."""
SHIMS = {
    "train.py": "train",
    "evaluate.py": "evaluate",
    "predict.py": "predict",
    "tools/convert_livecell.py": "convert livecell",
    "tools/convert_glioma_c6.py": "convert glioma-c6",
}
MAIN = "glioma_dist/__main__.py"
OUTPUTS = ("--out", "--json", "--sheet", "--data.cache", "--stage")
BASES = {
    "train": "--data.train SHARDS",
    "evaluate": "--checkpoint FOLDER --data SHARDS",
    "predict": "--checkpoint FOLDER --images IMAGE --out OUT",
    "app": "--checkpoint FOLDER",
    "export onnx": "--checkpoint FOLDER --out OUT/model.onnx",
    "export bioimageio": "--checkpoint FOLDER --images IMAGE --out OUT/model.zip",
    "growth": "FOLDER --out OUT",
    "merge": "--checkpoint FOLDER --out OUT",
    "report": "FOLDER --out OUT/report.html",
    **{f"convert {name}": "--source FOLDER --out OUT" for name in sources.names()},
    "convert coco": "--annotations IMAGE --images FOLDER --out OUT",
    "convert folder": "--images FOLDER --masks FOLDER --out OUT",
    "run-status": "FOLDER",
    "verify": "FOLDER",
    "shards inspect": "SHARDS",
    "shards index": "FOLDER",
    "shards verify": "SHARDS",
    "shards report": "SHARDS --out OUT/report.html",
    "bench resolution": "--sizes 64x64 --out OUT",
    "bench spatial-parallel": "--out OUT",
    "reproduce": "table1 --source SPLITS --target SHARDS --imagenet none --out OUT",
}
"""Flags of which every input is there, for the commands that have one."""
WITH = {"--model.weights": ("--model.init", "imagenet")}
WITHOUT_INPUTS = ("plan", "demo", "encoders", "configs", "bench gpu", "bench predict")
WITHOUT_INPUTS += ("download livecell", "download glioma-c6")


@functools.cache
def seconds_of_torch() -> float:
    """Of processor time, for a process that imports PyTorch."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def check(ended: int, code: int, out: str, err: str, allowed: str = "", seconds_before: float = 0) -> tuple[str, str]:
    """stdout and stderr of a light end of a command, which may import `allowed` of what is heavy."""
    assert ended == code, err
    out, _, told = out.rpartition("\nTOLD ")
    told = json.loads(told)
    assert "glioma_dist.cli.arguments" in told["modules"]
    assert HEAVY.intersection(told["modules"]) - {allowed} == set()
    seconds = told["seconds"] + seconds_before
    assert seconds < SECONDS or seconds < seconds_of_torch() / 2
    return out, err


def run(script: str, arguments: list[str], code: int) -> tuple[str, str]:
    """`check` of a new interpreter."""
    command = [sys.executable, "-c", PROGRAM, json.dumps([str(REPOSITORY / script), *arguments])]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return check(ended.returncode, code, ended.stdout, ended.stderr)


@pytest.fixture(scope="module")
def run_forked(tmp_path_factory):
    """As `run`, of the program, forked from an interpreter that has read a command line before."""
    streams = [tmp_path_factory.mktemp("streams") / name for name in ("out", "err")]
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=-1, stdout=-1, text=True, cwd=REPOSITORY) as server:

        def run_in_fork(arguments: list[str], code: int, allowed: str = "") -> tuple[str, str]:
            argv = [str(REPOSITORY / MAIN), *arguments]
            request = {"argv": argv, "program": PROGRAM, "streams": [str(each) for each in streams]}
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            ended, seconds = json.loads(server.stdout.readline())
            out, err = (each.read_text() for each in streams)
            return check(ended, code, out, err, allowed, seconds)

        yield run_in_fork
        server.stdin.close()


@pytest.fixture(scope="module")
def places(shards, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("places")
    (folder / "splits").mkdir()
    for name in ("train", "val", "test"):
        (folder / "splits" / name).symlink_to(shards / "val")
    (folder / "image.png").touch()
    return {
        "SHARDS": str(shards / "val"),
        "SPLITS": str(folder / "splits"),
        "FOLDER": str(folder),
        "IMAGE": str(folder / "image.png"),
        "OUT": str(folder / "out"),
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_a_mistyped_flag(name, run_forked):
    out, err = run(MAIN, [*name.split(), "--help"], 0)
    assert out.startswith(f"usage: glioma-dist {name} ")
    assert err == ""
    out, err = run_forked([*name.split(), "--no-such-flag", "1"], 2)
    assert out == ""
    assert re.fullmatch(r"error: .*--no-such-flag.*\n|error: missing: .*\n|error: .*required.*\n", err), err


@pytest.mark.parametrize("script", SHIMS)
def test_a_shim_is_its_command(script):
    ours, _ = run(script, ["--help"], 0)
    programs, _ = run(MAIN, [*SHIMS[script].split(), "--help"], 0)
    name = Path(script).name
    assert ours.startswith(f"usage: {name} ")
    assert ours.split("\n", 1)[1].split() == programs.split("\n", 1)[1].split()
    _, err = run(script, ["--no-such-flag"], 2)
    assert err.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["--help"], 0),
        (["--version"], 0),
        (["trian"], 2),
        (["convert"], 2),
        (["download"], 2),
        (["download", "livecell", "--out", "x", "--url", "s3://a/b"], 2),
        (["encoders"], 0),
        (["configs"], 0),
        (["--print-completion", "zsh"], 0),
        (["train", "--data.train", "x", "--lr", "fast"], 2),
        (["train", "--data.train", "x", "--model.encoder", "mit_b9"], 2),
        (["train", "--data.train", "x", "--config", "no/such.json"], 2),
        (["plan", "--size", "64x64", "--gpus", "0"], 2),
        (["plan", "--size", "64x64", "--gpu-memory", "much"], 2),
        (["reproduce", "table1", "--task", "2", "--num-tasks", "2"], 2),
        (["bench", "spatial-parallel", "--spatial-parallel", "1000"], 2),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_what_needs_no_network_imports_none(arguments, code, run_forked):
    run_forked(arguments, code)


def test_shards_are_listed(places, run_forked):
    out, err = run_forked(["shards", "inspect", places["SHARDS"]], 0, allowed="cv2")
    assert "3 samples in 1 shard," in out
    assert err == ""


def input_cases() -> list:
    """Every command with each of its flags that names an input."""
    found = []
    for name, entry in COMMANDS.items():
        kind = entry.load().config
        flags = [flag for flag in path_flags(kind) if flag not in OUTPUTS]
        if name == "plan":  # which reads no weights
            flags = []
        assert bool(flags) == (name not in WITHOUT_INPUTS), (name, flags)
        if dataclasses.fields(kind):
            flags += ["--config"]
        found += [(name, flag) for flag in flags]
    return found


@pytest.mark.parametrize(("name", "flag"), input_cases())
def test_an_input_that_is_not_there_is_refused_at_once(name, flag, places, run_forked):
    missing = str(Path(places["FOLDER"]) / "nowhere" / "x.yaml")
    base = [re.sub("|".join(places), lambda found: places[found[0]], word) for word in BASES.get(name, "").split()]
    base = base or ["--size", "64x64"] * (name == "plan")
    if not flag.startswith("--"):
        arguments = [missing, *base[1:]]
    elif flag in base:
        arguments = [*base]
        arguments[base.index(flag) + 1] = missing
    else:
        arguments = [*base, flag, missing, *WITH.get(flag, ())]
    _, err = run_forked([*name.split(), *arguments], 2, allowed="cv2" if f"{name} {flag}" in LOOK_FOR_IMAGES else "")
    assert re.fullmatch(r"error: .{1,500}\n", err), err
    assert "nowhere" in err
