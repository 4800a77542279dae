"""Whether a device gives the numbers of the CPU, and the same ones twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional

from glioma_dist.benchmark.proof.lines import Findings, Setting, worst
from glioma_dist.benchmark.proof.steps import build, draw_images, make_step
from glioma_dist.benchmark.proof.trainings import (
    PRECISION,
    USE_CPU,
    largest_difference,
    make_config,
    train_here,
    variables,
)
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.manifest import MODEL
from glioma_dist.scale.planner import Level
from glioma_dist.scale.step import LEVELS
from glioma_dist.size import Size

FP32_LIMIT, BF16_LIMIT, FP16_LIMIT = 1e-4, 2e-2, 1e-2
"""Of a loss, as a share of it, after four steps: bf16 keeps 8 bits of a number, fp16 11."""
LEAST_ROUNDING = 1e-7
"""A run in bf16 or fp16 whose losses are nearer to fp32 than this was none."""
GRADIENT_LIMIT, FAR = 1e-3, 1e-4
"""Of a gradient, in shares of its tensor's largest number, which is taken for `FAR` where it is smaller."""
ENCODER, SIZE = "mit_b0", Size(128, 96)
NOT_ALIKE_LIMIT = 1e-3
"""Between two runs on a GPU that may choose its kernels freely."""


def compare_with_cpu(setting: Setting, findings: Findings) -> None:
    """The same run on the CPU in fp32, and on the device in each precision and layout."""
    on_cpu = {USE_CPU: "true", PRECISION: "no"}
    expected = train_here(make_config(setting, "expected"), on_cpu)
    rows = train_here(make_config(setting, "fp32"), variables(setting))
    findings.at_most("losses in fp32", largest_difference(rows, expected), FP32_LIMIT)
    layout = make_config(setting, "channels_last", channels_last="on")
    rows = train_here(layout, variables(setting))
    findings.at_most("losses in channels_last", largest_difference(rows, expected), FP32_LIMIT)
    for precision, limit in (("bf16", BF16_LIMIT), ("fp16", FP16_LIMIT)):
        if precision == "fp16" and setting.device == "cpu":
            for name in ("losses in fp16", "fp16 rounds", "fp16, resumed"):
                findings.skipped(name, "fp16 needs a GPU")
            continue
        rows = train_here(make_config(setting, precision), variables(setting, precision))
        difference = largest_difference(rows, expected)
        findings.at_most(f"losses in {precision}", difference, limit)
        findings.at_least(f"{precision} rounds", difference, LEAST_ROUNDING, note="else it is fp32 under another name")
        if precision == "fp16":
            train_here(make_config(setting, "resumed", max_steps=2), variables(setting, precision))
            again = train_here(make_config(setting, "resumed"), variables(setting, precision))
            findings.at_most("fp16, resumed", largest_difference(again, rows), NOT_ALIKE_LIMIT)


def compare_gradients(setting: Setting, findings: Findings) -> None:
    """Gradients of one step in fp32: the device's at each level against the CPU's plain ones."""
    with without_kinks():
        expected = gradients("none", torch.device("cpu"))
        for level in LEVELS:
            found = gradients(level, torch.device(setting.device))
            differences = _differences(found, expected)
            told = f"{ENCODER} {SIZE}, largest in {max(differences, key=differences.__getitem__)}"
            findings.at_most(f"gradients in fp32, {level}", worst(differences.values()), GRADIENT_LIMIT, note=told)


@contextmanager
def without_kinks() -> Iterator[None]:
    """Within it, decoders of this process have SiLU for ReLU. Where an input of ReLU lies so near 0 that rounding
    decides over its gradient, gradients of two devices differ by 1e-2 and more, though both round correctly."""
    relu = functional.relu
    functional.relu = lambda features, inplace=False: functional.silu(features)
    try:
        yield
    finally:
        functional.relu = relu


def gradients(level: Level, device: torch.device) -> dict[str, torch.Tensor]:
    """Of every weight, on the CPU, but for the biases of attention's keys: they move all of a query's scores alike, so
    that their gradients are rounding alone."""
    model = build(ENCODER, level, device)
    make_step(model, draw_images(SIZE, device), None)()
    found = {name: each.grad.cpu() for name, each in model.named_parameters() if each.grad is not None}
    return {name: each for name, each in found.items() if not name.endswith("k_proj.bias")}


def repeat(setting: Setting, findings: Findings) -> None:
    """Two runs of the same settings, as a user gets them, and two under deterministic algorithms."""
    for name, chosen, limit in (
        ("as by default", {}, 0.0 if setting.device == "cpu" else NOT_ALIKE_LIMIT),
        ("deterministic", {"deterministic": True}, 0.0),
    ):
        first, second = (make_config(setting, f"{name} {number}", **chosen) for number in (1, 2))
        rows = train_here(first, variables(setting))
        findings.at_most(
            f"two equal runs, {name}: losses", largest_difference(train_here(second, variables(setting)), rows), limit
        )
        one, other = (Checkpoint.read(config.out / "last").tensors(MODEL) for config in (first, second))
        findings.at_most(f"two equal runs, {name}: weights", worst(_differences(one, other).values()), limit)


def _differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, float]:
    """The largest difference of each tensor in two sets, in shares of the tensor's largest number; infinite for one
    that only one set has."""
    return {
        name: float(
            (one[name].double() - other[name].double()).abs().max() / other[name].double().abs().max().clamp(min=FAR)
        )
        if name in one and name in other
        else float("inf")
        for name in {**one, **other}
    }
