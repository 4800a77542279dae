"""The proof run, rehearsed on the CPU at tiny sizes; and that each check fails where what it looks at is broken."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers import REPOSITORY, command
from torch import nn

from glioma_dist.benchmark.cell import attend_with_matrix
from glioma_dist.benchmark.proof import (
    interruption,
    kernels,
    large_maps,
    memory,
    numerics,
    several,
    step_costs,
    trainings,
)
from glioma_dist.benchmark.proof.checks import CHECKS
from glioma_dist.benchmark.proof.lines import Findings, Setting, judge, read_findings
from glioma_dist.scale.step import LEVELS
from glioma_dist.training import loop

WAITING = ("GPU busy", "synchronisations", "synchronising operations")
ONLY_ON_GPUS = {
    *(("preflight", name) for name in ("driver", "compute capability", "cuDNN", "memory")),
    *(("cpu", name) for name in ("losses in fp16", "fp16 rounds", "fp16, resumed")),
    *(("attention", f"fp16: {kind} attention") for kind in ("math", "fused")),
    *(("steps", f"{level}: {what}") for level in LEVELS for what in WAITING),
    ("tiles", "the default's step"),
    *(("memory", f"{size}, {level}: fits") for size, levels in memory.LEVELS_OF_SIZE.items() for level in levels),
    ("resume_2", "FSDP2, saved and resumed"),
}
"""Lines that a CPU cannot have."""


MINUTES_LONG = ("interruption", "memory")
"""Checks whose rehearsal is slow; what they check on a CPU, test_training.py and test_planner.py check, too."""


@pytest.mark.parametrize(
    "check",
    [pytest.param(each, marks=pytest.mark.slow if each.name in MINUTES_LONG else ()) for each in CHECKS],
    ids=lambda check: check.name,
)
def test_the_rehearsal_runs_every_check(check, quick_python, tmp_path):
    flags = ("--device", "cpu", "--checks", check.name, "--out", tmp_path / "out")
    ended = command("bench gpu", *flags, timeout=580, python=quick_python)
    content = json.loads((tmp_path / "out" / "proof.json").read_text())
    lines = content["lines"]
    told = [f"{line['name']}: {line['value']}, {line['note']}" for line in lines]
    assert [text for text, line in zip(told, lines, strict=True) if line["status"] == "FAIL"] == []
    assert ended.exit_code == 0, ended.stderr
    assert [line["name"] for line in lines] == list(check.lines)
    skipped = {line["name"] for line in lines if line["status"] == "SKIPPED"}
    assert skipped == {name for owner, name in ONLY_ON_GPUS if owner == check.name}
    assert all(line["note"] for line in lines if line["status"] == "SKIPPED")
    assert content["finished"]
    assert "It says nothing about a GPU" in (tmp_path / "out" / "proof.md").read_text()


@pytest.fixture
def look(shards, tmp_path) -> Callable[[Callable], dict[str, str]]:
    """Run a check in this process: name of each line -> its status."""

    def look(check: Callable[[Setting, Findings], None]) -> dict[str, str]:
        (tmp_path / "work").mkdir()
        setting = Setting("cpu", 2, str(shards), str(tmp_path / "work"))
        check(setting, Findings(tmp_path / "findings.jsonl"))
        return {name: judge("check", row).status for name, row in read_findings(tmp_path / "findings.jsonl").items()}

    return look


def broken_training(monkeypatch, breaks: Callable[[str], bool]) -> None:
    """Trainings into folders whose name `breaks` says take a larger learning rate, as a device that computes otherwise
    would come to other losses."""
    train = loop.train

    def other(config):
        broken = breaks(config.out.name)
        return train(trainings.replace(config, lr=config.lr * (3 if broken else 1)))

    monkeypatch.setattr(loop, "train", other)


@pytest.mark.slow
def test_another_device_s_losses_fail(look, monkeypatch):
    broken_training(monkeypatch, lambda name: name != "expected")
    found = look(numerics.compare_with_cpu)
    assert found["losses in fp32"] == found["losses in channels_last"] == "FAIL"


def test_a_level_with_other_gradients_fails(look, monkeypatch):
    build = numerics.build

    def other(encoder, level, device):
        model = build(encoder, level, device)
        if level == "full":
            with torch.no_grad():
                model.decoder.head.weight.mul_(1.01)
        return model

    monkeypatch.setattr(numerics, "build", other)
    assert list(look(numerics.compare_gradients).values()) == ["PASS", "PASS", "FAIL", "PASS"]


def test_bf16_that_is_fp32_fails(look, monkeypatch):
    monkeypatch.setattr(numerics, "variables", lambda setting, precision="no": trainings.variables(setting))
    found = look(numerics.compare_with_cpu)
    assert (found["losses in fp32"], found["losses in bf16"], found["bf16 rounds"]) == ("PASS", "PASS", "FAIL")


def test_two_runs_that_differ_in_their_last_bits_fail(look, monkeypatch):
    broken_training(monkeypatch, lambda name: name.endswith("2"))
    found = look(numerics.repeat)
    assert set(found.values()) == {"FAIL"}
    assert len(found) == 4


@pytest.mark.parametrize("broken", ["matrix", "math"])
def test_attention_without_a_fused_kernel_fails(look, monkeypatch, broken):
    build = kernels.build

    def without_kernel(*given: object) -> nn.Module:
        model = build(*given)
        for layer in model.encoder.attention_layers():
            layer.attend = attend_with_matrix
        return model

    if broken == "matrix":
        monkeypatch.setattr(kernels, "build", without_kernel)
        found = look(kernels.look_at_attention)
    else:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            found = look(kernels.look_at_attention)
    assert found["fp32: math attention"] == ("PASS" if broken == "matrix" else "FAIL")
    assert found["fp32: fused attention"] == found["bf16: fused attention"] == "FAIL"


@pytest.mark.slow
def test_layers_that_are_not_compiled_or_not_once_a_kind_fail(look, monkeypatch):
    build = kernels.build
    monkeypatch.setattr(kernels, "build", lambda encoder, level, device, scale=None: build(encoder, level, device))
    found = look(kernels.look_at_compiling)
    assert found["graphs, one a kind of layer"] == "FAIL"


def test_a_kernel_that_overflows_fails(look, monkeypatch):
    run = large_maps.run_last_block

    def overflowing(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        def block(features: torch.Tensor) -> torch.Tensor:
            logits = run(model)(features)
            if len(features) == 2:  # the last rows of the last image are what lies beyond 2^31
                logits = torch.cat([logits.flatten()[:-64], logits.flatten()[-64:] * 0]).view_as(logits)
            return logits

        return block

    monkeypatch.setattr(large_maps, "run_last_block", overflowing)
    found = look(large_maps.look_at_last_block)
    assert len(found) == 12
    assert set(found.values()) == {"FAIL"}


@pytest.mark.slow
def test_memory_that_was_not_counted_fails(look, monkeypatch):
    monkeypatch.setattr(memory, "TINY_SIZES", {"native": "256x192"})
    count = memory.count

    def too_little(step, level):
        counted = count(step, level)
        return trainings.replace(counted, kept=0)

    monkeypatch.setattr(memory, "count", too_little)
    found = look(memory.compare_with_estimator)
    assert [found[f"native, {level}: allocated"] for level in ("none", "selective")] == ["FAIL", "FAIL"]


def test_more_launches_than_the_limit_and_slower_steps_fail(look, monkeypatch):
    monkeypatch.setattr(step_costs, "MOST_LAUNCHES", 100)
    monkeypatch.setattr(step_costs, "SLOWEST_STEP_S", 1e-6)
    monkeypatch.setattr(step_costs, "MORE_LAUNCHES", dict.fromkeys(LEVELS, 1.0))
    monkeypatch.setattr(step_costs, "DEAREST_OF_TINY", 0.01)
    found = look(step_costs.measure_levels)
    measured = [f"{level}: {what}" for level in LEVELS for what in ("step", "launches")]
    assert {found[name] for name in measured} == {"FAIL"}


@contextmanager
def changed_code(folder: Path, lines: str, monkeypatch):
    """Within it, every new Python process runs `lines` before anything else."""
    (folder / "sitecustomize.py").write_text(lines)
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(REPOSITORY)]))
        yield


@pytest.mark.slow
def test_processes_that_do_not_share_statistics_or_rows_fail(look, tmp_path, monkeypatch):
    code = "import glioma_dist.scale.batch_norm as here\nhere.synchronise_batch_norm = lambda model, device: model\n"
    monkeypatch.setattr(several, "ENCODERS", ("mit_tiny",))
    with changed_code(tmp_path, code, monkeypatch):
        assert look(several.compare_ddp) == {"DDP, mit_tiny": "FAIL"}


@pytest.mark.slow
def test_strips_without_their_neighbours_fail(look, tmp_path, monkeypatch):
    code = "import glioma_dist.scale.spatial_layers as here\nhere.split_spatially = lambda *given: None\n"
    with changed_code(tmp_path, code, monkeypatch):
        assert set(look(several.compare_spatial).values()) == {"FAIL"}


FORGETS = "import glioma_dist.training.state as here\nhere.load_optimizer = lambda *given: None\n"
"""A run that resumes without Adam's moments."""


@pytest.mark.slow
def test_a_run_that_forgets_its_optimizer_fails_on_two_processes(look, tmp_path, monkeypatch):
    with changed_code(tmp_path, FORGETS, monkeypatch):
        assert look(several.save_and_resume)["DDP, saved and resumed"] == "FAIL"


@pytest.mark.slow
def test_a_run_that_forgets_its_optimizer_fails_on_one(look, tmp_path, monkeypatch):
    with changed_code(tmp_path, FORGETS, monkeypatch):
        found = look(interruption.stop_and_resume)
    assert found.pop("its losses, to the bit") == "FAIL"
    assert set(found.values()) == {"PASS"}


def test_processes_that_wait_too_long_for_a_killed_one_fail(look, quick_python, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(quick_python))
    monkeypatch.setattr(several, "SECONDS_TO_END", 1e-3)
    found = look(several.kill_one)
    assert found == {
        "the killed process": "PASS",
        "one killed: all have ended": "FAIL",
        "one killed: the other says so": "PASS",
    }
