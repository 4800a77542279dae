"""The public API: what it names, that importing it costs nothing, and that a call leaves its process as it was."""

import ast
import code
import inspect
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch
from helpers import REPOSITORY, draw_sample, rows, run, tiny_config

import glioma_dist as gd
from glioma_dist.errors import InputError, StopRequested

HEAVY = {"torch", "numpy", "tyro", "rich", "accelerate", "transformers", "timm", "albumentations", "cv2", "matplotlib"}


def test_importing_the_package_imports_no_library():
    program = "import sys, json, glioma_dist; dir(glioma_dist); print(json.dumps(sorted(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    modules = set(json.loads(ended.stdout))
    assert HEAVY & modules == set()
    assert {name for name in modules if name.startswith("glioma_dist")} == {"glioma_dist"}


def test_type_checkers_see_the_names_that_are_there():
    tree = ast.parse((REPOSITORY / "glioma_dist" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    homes = {name: f"glioma_dist.{home}" for name, home in gd._HOMES.items()}
    assert seen == homes
    assert sorted([*homes, "__version__"]) == sorted(gd.__all__)
    assert set(gd.__all__) <= set(dir(gd))


@pytest.mark.parametrize("name", [name for name in gd.__all__ if name != "__version__"])
def test_a_public_name_is_there_and_says_what_it_is(name):
    found = getattr(gd, name)
    text = inspect.getdoc(found) or ""
    assert len(text) > 20
    assert not text.startswith(f"{name}("), "a dataclass without a docstring of its own"
    if inspect.isfunction(found):
        assert inspect.signature(found).return_annotation is not inspect.Signature.empty


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'glioma_dist' has no attribute 'traim'"):
        _ = gd.traim


def test_the_version_stands_in_one_place():
    text = (REPOSITORY / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in text
    assert 'attr = "glioma_dist.__version__"' in text
    assert '\nversion = "' not in text


def state_of_process() -> dict:
    """All that a call could leave behind. SIGCHLD is PyTorch's from its first loader on."""
    import torch
    from accelerate.state import AcceleratorState, GradientState, PartialState

    return {
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals() - {signal.SIGCHLD}},
        "wakeup": signal.set_wakeup_fd(-1),
        "unraisable": sys.unraisablehook,
        "threads": {thread.name for thread in threading.enumerate()},
        "filters": list(warnings.filters),
        "accelerate": [dict(each._shared_state) for each in (PartialState, AcceleratorState, GradientState)],
        "groups": torch.distributed.is_initialized(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "gradients": torch.is_grad_enabled(),
        "environment": dict(os.environ),
        "children": multiprocessing.active_children(),
    }


def call_all(config, folder: Path) -> list:
    """Train, evaluate and predict twice each, the first time as a cell of a notebook, the second from a thread."""
    told: list[int] = []
    signal.signal(signal.SIGCHLD, lambda number, _: told.append(number))  # a user's own
    before = state_of_process()
    cell = (
        "run = gd.train(config)\n"
        "scores = gd.evaluate(gd.EvaluateConfig(run.best, str(config.data.val), workers=1))\n"
        "masks = gd.predict(gd.PredictConfig(run.best, str(folder / 'a.png'), folder / str(len(found))))\n"
        "found.append((run, scores, masks))\n"
    )
    found: list = []
    names = {"__name__": "__main__", "gd": gd, "config": config, "folder": folder, "found": found}
    code.InteractiveInterpreter(names).runcode(compile(cell, "<cell>", "exec"))
    names["config"] = replace(config, out=config.out.with_name("second"))
    thread = threading.Thread(target=exec, args=(cell, names), name="second")
    thread.start()
    thread.join()
    after = state_of_process()
    del told[:]
    subprocess.run(["true"], check=True)
    return [*found, {name: (before[name], after[name]) for name in before if before[name] != after[name]}, len(told)]


def test_calls_in_a_notebook_and_in_a_thread_work_and_leave_nothing_behind(shards, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), draw_sample(3).image)
    config = tiny_config(shards, tmp_path / "first", workers=1, max_steps=2, eval_every=1)
    (ended,) = run(call_all, config, tmp_path, timeout=600)
    first, second, left, num_told = ended
    assert left == {}
    assert num_told >= 1, "the user's own handler of SIGCHLD is not called any more"
    assert rows(tmp_path / "first") == rows(tmp_path / "second")
    assert len(rows(tmp_path / "first")) == 4
    result, scores, masks = first
    assert (result.out, result.step, result.best) == (config.out, 2, config.out / "best")
    lowest = min((row for row in rows(config.out) if "split" in row), key=lambda row: row["loss"])
    assert (result.best_loss, result.best_dice) == (lowest["loss"], lowest["dice"])
    assert (second[0].best_loss, second[1].images) == (result.best_loss, scores.images)
    assert scores.mean_dice == pytest.approx(sum(image.dice for image in scores.images) / 3)
    (image,) = masks.images
    mask = cv2.imread(str(image.files["mask"]), cv2.IMREAD_UNCHANGED)
    assert image.confluence == pytest.approx((mask == 255).mean(), abs=1e-6)
    assert (image.width, image.height, masks.failed, masks.summary.is_file()) == (96, 80, (), True)


def train_and_evaluate(config) -> tuple:
    run = gd.train(config)
    return run, gd.evaluate(gd.EvaluateConfig(run.best, str(config.data.val), workers=0)), gd.train(config)


def test_two_processes_of_a_launch_call_and_get_the_same_results(shards, tmp_path):
    config = tiny_config(shards, tmp_path / "run", max_steps=2, eval_every=1)
    first, second = run(train_and_evaluate, config, num_processes=2, timeout=600)
    assert first == second
    assert first[0] == first[2]
    assert [image.key for image in first[1].images] == ["cell-100", "cell-101", "cell-102"]


def test_text_is_taken_for_paths_and_sizes(shards, tmp_path, runtime):
    config = tiny_config(shards, str(tmp_path / "run"), max_steps=1, size="64x32", val=None, augment=["flips"])
    result = gd.train(config, runtime)
    assert (result.out, result.best, result.best_dice) == (tmp_path / "run", tmp_path / "run" / "last", None)
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (written["data"]["size"], written["out"]) == ("64x32", str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("call", "config", "expected"),
    [
        (gd.train, {"lr": 1e-3}, "a TrainConfig is needed, not {'lr': 0.001} of type dict"),
        (gd.train, gd.TrainConfig(), "no training data"),
        (gd.train, gd.TrainConfig(gd.DataConfig(train=("nowhere",))), "nowhere: no such folder"),
        (gd.train, gd.TrainConfig(gd.DataConfig(train=("x",)), lr="fast"), "lr: cannot use 'fast', expected float"),
        (gd.train, gd.TrainConfig(gd.DataConfig(train=("x",)), loss="dyce"), "--loss dyce: unknown; did you mean dice"),
        (gd.train, gd.TrainConfig(gd.DataConfig(train=("x",), size="big")), "size"),
        (gd.train, gd.TrainConfig(gd.DataConfig(train=("x",)), batch_size=2.5), "batch_size: cannot use 2.5"),
        (gd.train, gd.TrainConfig(gd.DataConfig(train=("x",)), out="ftp://host/run"), "--out ftp:"),
        (gd.train, gd.TrainConfig(gd.DataConfig(train=("x",)), resume="never", out="s3:/b"), "--out s3:"),
        (gd.train, gd.EvaluateConfig(Path("x"), "y"), "a TrainConfig is needed"),
        (gd.evaluate, gd.EvaluateConfig("nowhere", "nowhere"), "nowhere: no such folder"),
        (gd.evaluate, gd.EvaluateConfig("x", "y", workers=-1), "--workers -1"),
        (gd.predict, gd.PredictConfig("nowhere", "nowhere.png", "out"), "--images"),
        (gd.predict, gd.PredictConfig("x", "y", "z", threshold=2), "--threshold 2"),
    ],
)
def test_what_cannot_be_used_is_an_input_error(call, config, expected, runtime):
    with pytest.raises(InputError) as error:
        call(config, runtime)
    assert expected in str(error.value)
    assert len(str(error.value)) <= 500


@contextmanager
def callers_modes() -> Generator[None]:
    """All that a script may have switched on around a call."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"), torch.inference_mode():
        yield


def test_the_modes_around_a_call_change_nothing(shards, tmp_path, runtime):
    def call_all(name: str) -> tuple:
        config = tiny_config(shards, tmp_path / name, max_steps=1, eval_every=1)
        run = gd.train(config, runtime)
        scores = gd.evaluate(gd.EvaluateConfig(run.best, str(config.data.val), workers=0), runtime)
        return rows(run.out), scores.images, gd.build_model(config.model, 0)[0], gd.load_model(run.best)[0]

    expected = call_all("plain")
    with callers_modes():
        before = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_dtype()
        found = call_all("within")
        after = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_dtype()
    assert after == before
    assert found[:2] == expected[:2]
    for model, other in zip(found[2:], expected[2:], strict=True):
        assert all(torch.equal(*pair) for pair in zip(model.parameters(), other.parameters(), strict=True))
        model(torch.zeros(1, 3, 32, 32)).sum().backward()  # it can be trained


def interrupted(config, where: str) -> str:
    """Ctrl-C while the data is opened, or in a step."""
    from glioma_dist.training import loop, preparation

    module, name = {"opening": (preparation, "open_training_data"), "a step": (loop, "train_step")}[where]
    original = getattr(module, name)

    def interrupt(*arguments):
        signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    setattr(module, name, interrupt)
    try:
        gd.train(config)
    except StopRequested as error:
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        return str(error)
    return "finished"


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("opening", "received SIGINT"),
        ("a step", "received SIGINT, checkpoint saved at step 1. Run the same command to resume."),
    ],
)
def test_ctrl_c_stops_a_call_and_its_work_is_saved(shards, tmp_path, where, expected):
    (told,) = run(interrupted, tiny_config(shards, tmp_path / "run", max_steps=3), where, timeout=600)
    assert told == expected


NOT_CALLED = (
    *("Batch", "Encoder", "EvaluationResult", "GrowthResult", "PredictionReport", "PredictionResult", "StepMemory"),
    *("ModuleStepMemory", "TrainResult"),
)
"""Classes that a user is given, or derives from."""


def calls_of(name: str) -> dict[str, Callable]:
    """A public function, or a class and its public methods that take something."""
    found = getattr(gd, name)
    if inspect.isfunction(found):
        return {name: found}
    if name in NOT_CALLED or name.endswith("Config") or issubclass(found, Exception):
        return {}
    methods = {
        method: getattr(found, method)
        for method, value in vars(found).items()
        if not method.startswith("_") and (inspect.isfunction(value) or isinstance(value, classmethod))
    }
    if issubclass(found, gd.PretrainedUNet):  # a network is called with images, as any is
        methods = {}
    return {name: found} | {f"{name}.{method}": value for method, value in methods.items()}


def parameters_of(call: Callable) -> tuple[set[str], set[str]]:
    """Those that have to be given, and the others."""
    parameters = inspect.signature(call).parameters.values()
    required = {each.name for each in parameters if each.default is each.empty}
    return required - {"self"}, {each.name for each in parameters} - required


def test_the_page_names_every_parameter():
    """And none that is not there."""
    table = (REPOSITORY / "docs" / "api.md").read_text().partition("## Parameters")[2].partition("## ")[0]
    documented = {}
    for row in re.findall(r"^\| (`.*) \|$", table, re.MULTILINE):
        names, *columns = ([*re.findall(r"`([\w.]+)`", cell)] for cell in f"{row} ".split("|"))
        documented |= {name: tuple(map(set, columns)) for name in names}
    calls = {name: call for public in gd.__all__ if public != "__version__" for name, call in calls_of(public).items()}
    expected = {name: parameters_of(call) for name, call in calls.items()}
    assert documented == {name: found for name, found in expected.items() if "." not in name or found != (set(), set())}
