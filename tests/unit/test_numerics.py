"""What a GPU's rounding and order of additions are set to, as PyTorch itself tells it; and that it is put back."""

import ast
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import run, tiny_config

from glioma_dist.benchmark import cell, spatial_parallel
from glioma_dist.benchmark.proof import steps
from glioma_dist.benchmark.scaling_cell import Clock
from glioma_dist.benchmark.watched_steps import watched_steps
from glioma_dist.config import DataConfig, ScaleConfig, TrainConfig
from glioma_dist.distributed.numerics import CUBLAS, SETTINGS, Numerics, numerics, numerics_in_force
from glioma_dist.errors import InputError
from glioma_dist.size import Size
from glioma_dist.training.loop import train

PACKAGE = Path(__file__).resolve().parents[2] / "glioma_dist"
HAS_NEWER_INTERFACE = pytest.mark.skipif(
    not hasattr(torch.backends.cudnn, "conv"), reason=f"PyTorch {torch.__version__} has no fp32_precision"
)
EXPECTED = {
    "default": (Numerics(), {"tf32": False, "benchmark": False, "deterministic": False}),
    "tf32": (Numerics(tf32=True), {"tf32": True, "benchmark": False, "deterministic": False}),
    "benchmark": (Numerics(cudnn_benchmark=True), {"tf32": False, "benchmark": True, "deterministic": False}),
    "deterministic": (Numerics(deterministic=True), {"tf32": False, "benchmark": False, "deterministic": True}),
}


@pytest.fixture(autouse=True)
def other_defaults(monkeypatch):
    """A process whose settings are the opposite of the defaults here: none is left as it was found."""
    monkeypatch.delenv(CUBLAS, raising=False)
    before = {name: read() for name, (read, _) in SETTINGS.items()}
    for name, (_, write) in SETTINGS.items():
        write(name != "deterministic_algorithms")
    yield {name: read() for name, (read, _) in SETTINGS.items()}
    for name, value in before.items():
        SETTINGS[name][1](value)


@pytest.mark.parametrize("name", EXPECTED)
def test_pytorch_is_told_all_and_gets_its_own_back(name, other_defaults):
    chosen, expected = EXPECTED[name]
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    with numerics(chosen):
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (expected["tf32"],) * 2
        assert cudnn.benchmark == expected["benchmark"]
        assert cudnn.deterministic == torch.are_deterministic_algorithms_enabled() == expected["deterministic"]
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert not matmul.allow_bf16_reduced_precision_reduction
        assert not matmul.allow_fp16_reduced_precision_reduction
        assert not matmul.allow_fp16_accumulation
        assert os.environ.get(CUBLAS) == (":4096:8" if expected["deterministic"] else None)
        told = numerics_in_force()
    assert told["cudnn.allow_tf32"] == expected["tf32"]
    assert told["deterministic_algorithms"] == expected["deterministic"]
    assert set(SETTINGS) < set(told)
    assert {name: read() for name, (read, _) in SETTINGS.items()} == other_defaults
    assert CUBLAS not in os.environ


def test_an_error_inside_puts_all_back(other_defaults):
    with pytest.raises(ValueError, match="inside"), numerics(Numerics(deterministic=True)):
        raise ValueError("inside")
    assert {name: read() for name, (read, _) in SETTINGS.items()} == other_defaults


@pytest.mark.parametrize("value", [":4096:8", ":16:8"])
def test_a_deterministic_workspace_of_the_user_stays(monkeypatch, value):
    monkeypatch.setenv(CUBLAS, value)
    with numerics(Numerics(deterministic=True)):
        assert os.environ[CUBLAS] == value
    assert os.environ[CUBLAS] == value


def test_another_workspace_is_refused(monkeypatch, other_defaults):
    monkeypatch.setenv(CUBLAS, ":0:0")
    with pytest.raises(InputError, match="unset it") as refused, numerics(Numerics(deterministic=True)):
        pass
    assert len(str(refused.value)) <= 500
    assert os.environ[CUBLAS] == ":0:0"
    assert {name: read() for name, (read, _) in SETTINGS.items()} == other_defaults


@HAS_NEWER_INTERFACE
def test_settings_that_pytorch_cannot_read_are_left_alone():
    """A process that used both of PyTorch's interfaces to TF32."""
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    try:
        with pytest.raises(RuntimeError):
            assert torch.backends.cudnn.allow_tf32
        with numerics():
            assert torch.backends.cudnn.allow_tf32 is False
    finally:
        torch.backends.cudnn.allow_tf32 = True


@HAS_NEWER_INTERFACE
@pytest.mark.parametrize("tf32", [False, True])
def test_the_newer_interface_of_a_notebook_to_tf32_is_heard_and_put_back(tf32):
    backends = torch.backends
    parts = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    before = [each.fp32_precision for each in parts]
    generic = backends.fp32_precision
    for each in parts:
        each.fp32_precision = "none"
    backends.fp32_precision = "tf32"  # which the three inherit
    try:
        told = [each.fp32_precision for each in parts]
        assert "tf32" in told
        with numerics(Numerics(tf32=tf32)):
            assert [each.fp32_precision == "tf32" for each in parts] == [tf32] * 3
            assert (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32) == (tf32, tf32)
        assert [each.fp32_precision for each in parts] == told
    finally:
        backends.fp32_precision = generic
        for each, value in zip(parts, before, strict=True):
            each.fp32_precision = value


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_user_who_is_only_warned_gets_that_back(deterministic):
    torch.use_deterministic_algorithms(True, warn_only=True)
    with numerics(Numerics(deterministic=deterministic)):
        assert torch.are_deterministic_algorithms_enabled() is deterministic
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_flags_that_contradict_each_other_are_refused(tmp_path):
    data = DataConfig(train=(str(tmp_path),))
    config = TrainConfig(data=data, deterministic=True, scale=ScaleConfig(cudnn_benchmark=True))
    with pytest.raises(InputError, match=r"--scale.cudnn-benchmark cannot be combined"):
        config.validate()


def test_no_other_module_sets_them():
    """One home: elsewhere nothing of torch.backends, and no deterministic mode, is assigned or called."""
    names = r"allow_tf32|fp32_precision|reduced_precision|cudnn\.(benchmark|deterministic)|use_determ|float32_matmul"
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "func", None)]
            if any(isinstance(each, ast.Attribute) and re.search(names, ast.unparse(each)) for each in targets):
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found == {"distributed/numerics.py"}


@pytest.mark.parametrize(
    ("flag", "device", "precision", "norm", "tf32", "expected"),
    [
        ("auto", "cpu", "bf16", "batch", False, False),
        ("auto", "cuda", "bf16", "batch", False, True),
        ("auto", "cuda", "fp16", "batch", False, True),
        ("auto", "cuda", "no", "batch", False, False),
        ("auto", "cuda", "no", "batch", True, True),
        ("auto", "cuda", "bf16", "group", False, False),
        ("on", "cpu", "no", "group", False, True),
        ("off", "cuda", "bf16", "batch", True, False),
    ],
)
def test_where_channels_last_is_the_default(flag, device, precision, norm, tf32, expected):
    scale = ScaleConfig(channels_last=flag, tf32=tf32)
    assert scale.uses_channels_last(device, precision, norm) is expected


CPU = torch.device("cpu")
CELL = {"level": "none", "encoder": "mit_tiny", "size": "64x64", "repeats": 1, "warm_up": 0}
OF_RESOLUTION = {"network": "glioma-dist", "layout": "contiguous", "precision": "fp32", "batch_size": 1}
OF_RESOLUTION |= {"device": "cpu", "data": None, "workers": 0, "keeps_freed_memory": False}


def measure_cell(shards: Path, out: Path) -> dict:
    row = cell.measure_or_say_why_not(cell.Cell(**CELL, **OF_RESOLUTION))
    assert row["status"] == "ok"
    return row["numerics"]


def measure_strips(shards: Path, out: Path) -> dict:
    sys.argv = ["", json.dumps({**CELL, "spatial_parallel": 1}), str(out)]
    spatial_parallel.main()
    return json.loads(out.read_text())["numerics"]


def watch_training(shards: Path, out: Path) -> dict:
    clock = Clock(0)
    with watched_steps(clock.watch):
        train(tiny_config(shards, out, max_steps=1))
    return clock.numerics


def take_step_of_proof(shards: Path, out: Path) -> dict:
    seen: dict = {}
    model = steps.build("mit_tiny", "none", CPU)
    model.register_forward_hook(lambda *_: seen.update(numerics_in_force()))
    steps.make_step(model, steps.draw_images(Size(64, 64), CPU), None)()
    return seen


def with_opposite_settings(measure: Callable[[Path, Path], dict], shards: Path, out: Path) -> dict:
    """In a process whose settings are the opposite of the defaults."""
    for name, (_, write) in SETTINGS.items():
        write(name != "deterministic_algorithms")
    return measure(shards, out)


@pytest.mark.parametrize("measure", [measure_cell, measure_strips, watch_training, take_step_of_proof])
def test_every_measured_step_has_the_settings_of_a_run(measure, shards, tmp_path):
    """And its row says so."""
    with numerics():
        expected = numerics_in_force()
    (found,) = run(with_opposite_settings, measure, shards, tmp_path / "out")
    assert found == expected
    assert found["cudnn.allow_tf32"] is False
