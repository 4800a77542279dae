"""Every path of every command, found in its flags, with everything that can be wrong with one: one line, exit code 2,
nothing left behind. Commands run one after another in a process of their own that may read only what it owns."""

import contextlib
import ctypes
import io
import os
import re
import runpy
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import pytest
from data_helpers import CELL, annotation, image_record, square, write_coco, write_tiff
from data_helpers import draw_image as draw_picture
from helpers import REPOSITORY, draw_sample, run, save_state, tiny_config

from glioma_dist.data.sample import encode_image, encode_mask
from glioma_dist.model.unet import build_model
from glioma_dist.registry import sources
from glioma_dist.training.state import TrainState

OUTPUTS = ("--out", "--json", "--sheet", "--data.cache")
FILES = (
    "--json",
    "--sheet",
    "--model.weights",
    "--weights",
    "--picture",
    "--launch",
    "--launch-file",
    "--config",
    "--annotations",
)
"""Flags that name a file; --out of evaluate, export and report does, too."""
SECONDS = 60
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
"""Of Linux's linux/capability.h: what lets root read everything."""
LINUX_CAPABILITY_VERSION_3 = 0x20080522

BASES = {
    "train": "--data.train SHARDS/train --data.workers 0 --model.encoder mit_tiny --max-steps 1 --out OUT",
    "evaluate": "--checkpoint BEST --data SHARDS/val --workers 0",
    "predict": "--checkpoint BEST --images IMAGES --out OUT",
    "app": "--checkpoint BEST",
    "export onnx": "--checkpoint BEST --out OUT/model.onnx",
    "export bioimageio": "--checkpoint BEST --images IMAGES --out OUT/model.zip",
    "merge": "--checkpoint BEST --out OUT",
    "report": "PREDS --out OUT/report.html",
    "run-status": "OUT",
    "verify": "OUT",
    "shards inspect": "SHARDS/val",
    "shards index": "TARS",
    "shards verify": "SHARDS/val",
    "shards report": "SHARDS/val --out OUT/report.html",
    "plan": "--size 64x64 --model.encoder mit_tiny",
    **{f"convert {name}": "--source SHARDS --out OUT" for name in sources.names()},
    "convert coco": "--annotations COCO/labels.json --images COCO --out OUT",
    "convert folder": "--images IMAGES --masks MASKS --out OUT",
    "download livecell": "--out OUT --url http://127.0.0.1:9",
    "download glioma-c6": "--out OUT --url http://127.0.0.1:9",
    "demo": "--draw-only --out OUT --livecell 1 1 1 --glioma 1 1 1",
    "bench resolution": "--sizes 64x64 --encoder mit_tiny --out OUT",
    "bench predict": "--sizes 64x64 --encoders mit_tiny --out OUT",
    "growth": "PREDS --out OUT",
    "bench spatial-parallel": "--out OUT",
    "bench gpu": "--device cpu --checks preflight --out OUT",
    "bench scaling": "--sizes 64x64 --encoder mit_tiny --out OUT",
    "reproduce": "table1 --source SHARDS --source-splits train val val --target SHARDS/train --out OUT --preset small",
    "benchmarks/loader.py": "--workers 0 --num-images 1 --rounds 1 --batch-size 1",
    "benchmarks/starting_weights.py": "--source SHARDS --out OUT",
    "benchmarks/recipes.py": "--source SHARDS --out OUT --screen",
    "benchmarks/chaos.py": "--out OUT",
    "benchmarks/module_memory.py": "--out OUT",
}
"""The shortest valid flags of each command; what is tested is added to them, or replaces theirs."""
UNUSED = {
    "plan": ("--model.init", "--model.weights"),
    "train": ("--data.cache", "--stage"),  # test_remote_run.py tries --stage with a URL
    "run-status": ("--exit-codes",),  # an empty folder has a meaning: test_run_status.py
}
"""Flags of paths that a command does not look at with these others; it says so ("no effect")."""
WITH = {"--model.weights": ("--model.init", "imagenet"), "--picture": ("--imagenet", "none")}
PROGRAM = "glioma_dist/__main__.py"


@pytest.fixture(scope="module")
def places(shards, tmp_path_factory):
    """Valid values for the words of `BASES`."""
    folder = tmp_path_factory.mktemp("places")
    config = tiny_config(shards, folder / "run")
    save_state(folder / "best", config, TrainState(step=1), build_model(config.model, 0)[0], None, {"lineage": []})
    (folder / "images").mkdir()
    (folder / "images" / "a.png").write_bytes(encode_image(draw_sample(0).image))
    (folder / "masks").mkdir()
    (folder / "masks" / "a.png").write_bytes(encode_mask(draw_sample(0).mask))
    (folder / "tars").mkdir()
    shutil.copy(shards / "val" / "00000.tar", folder / "tars")
    (folder / "coco").mkdir()
    write_tiff(folder / "coco" / "a.tif", draw_picture(0))
    write_coco(
        folder / "coco" / "labels.json", [image_record(1, "a.tif")], [annotation(1, 1, square(4, 5, 9))], (CELL,)
    )
    found = {"SHARDS": shards, "BEST": folder / "best", "IMAGES": folder / "images", "TARS": folder / "tars"}
    (folder / "preds").mkdir()
    (folder / "preds" / "summary.csv").write_text("image,confluence\na.png,0.5\n")
    found |= {"COCO": folder / "coco", "MASKS": folder / "masks", "PREDS": folder / "preds"}
    return {name: str(path) for name, path in found.items()}


def bad_values(folder: Path, flag: str, is_file: bool) -> dict[str, Path]:
    """What can be wrong with a path: name of the fault -> a path with it."""
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(b"\x93NUMPY\x00\xff" * 50)
    (folder / "closed").mkdir()
    (folder / "closed" / "inside").write_text("x")
    (folder / "empty-folder").mkdir()
    (folder / "empty").touch()
    (folder / "unreadable").write_text("{}")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "unreadable").chmod(0)
    (folder / "closed").chmod(0)
    found = {"pipe": folder / "pipe", "loop": folder / "loop", "below a file": folder / "file" / "x"}
    if flag in OUTPUTS:
        return found | {
            "not writable": folder / "closed" / "x",
            "the other kind": folder / ("empty-folder" if is_file else "file"),
        }
    return found | {
        "missing": folder / "nowhere",
        "unreadable": folder / ("unreadable" if is_file else "closed"),
        "in an unreadable folder": folder / "closed" / "inside",
        "garbage": folder / "file",
        "an empty file": folder / "empty",
        "an empty folder": folder / "empty-folder",
    }


def drop_rights() -> None:
    """Have root obey the modes of files, as any other user must. Nothing to do for others."""
    header = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, data) == 0
    for word in (0, 1):  # effective, permitted
        data[word] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    assert libc.capset(header, data) == 0


def run_cases(script: str, cases: list[tuple[str, str, list[str]]]) -> list[tuple]:
    """Run a command once for each case, in this process. Returns for each: flag, fault, exit code, stderr, seconds."""
    drop_rights()
    os.chdir("/")
    ended = []

    def too_late(*_: object) -> None:
        raise RuntimeError(f"still running after {SECONDS} s")

    signal.signal(signal.SIGALRM, too_late)
    for flag, fault, arguments in cases:
        said, started = io.StringIO(), time.monotonic()
        said.reconfigure = lambda **_: None
        command = [] if script.endswith(".py") else script.split()
        sys.argv = [script, *command, *arguments]
        signal.alarm(SECONDS)
        code: object = 0
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            try:
                runpy.run_path(str(REPOSITORY / (PROGRAM if command else script)), run_name="__main__")
            except SystemExit as end:
                code = end.code
            except BaseException:
                code = traceback.format_exc(limit=-4)
        signal.alarm(0)
        ended.append((flag, fault, code, said.getvalue(), time.monotonic() - started))
    return ended


def cases_of(name: str, folder: Path, places: dict[str, str], flags: dict[str, bool]) -> list:
    words = places | {"OUT": str(folder / "out")}
    base = [re.sub("|".join(words), lambda found: words[found[0]], word) for word in BASES[name].split()]
    cases = []
    for number, flag in enumerate(flags):
        writes_file = ("evaluate", "export onnx", "export bioimageio", "report", "shards report")
        is_file = flag in FILES or (flag == "--out" and name in writes_file)
        for fault, value in bad_values(folder / str(number), flag, is_file).items():
            arguments = list(base)
            if not flag.startswith("--"):
                arguments[0] = str(value)
            elif flag in base:
                arguments[base.index(flag) + 1] = str(value)
            else:
                arguments += [flag, str(value), *WITH.get(flag, ())]
            cases.append((flag, fault, arguments))
    return cases


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_size for path in folder.rglob("*")}


@pytest.mark.parametrize("name", BASES)
def test_a_path_that_cannot_be_used_is_one_line(name, tmp_path, places):
    sys.path.insert(0, str(REPOSITORY / "tests" / "unit"))
    from test_paths import path_flags, target_of

    flags = path_flags(target_of(name)) | ({} if name.endswith(".py") else {"--config": False})
    flags = {flag: each for flag, each in flags.items() if flag not in UNUSED.get(name, ())}
    cases = cases_of(name, tmp_path, places, flags)
    before = snapshot(tmp_path)
    (ended,) = run(run_cases, name, cases, timeout=SECONDS * 10)
    faults = []
    for flag, fault, code, said, seconds in ended:
        good = code == 2 and re.fullmatch(r"error: .{1,500}\n", said) and seconds < SECONDS
        if not good:
            faults.append(f"{flag}, {fault}: {code} {said!r} {seconds:.1f} s")
    assert not faults, "\n".join(faults)
    assert snapshot(tmp_path) == before


def test_every_command_that_takes_a_path_is_tried():
    sys.path.insert(0, str(REPOSITORY / "tests" / "unit"))
    from test_paths import NAMES, path_flags, target_of

    assert {name for name in NAMES if path_flags(target_of(name))} == BASES.keys()
