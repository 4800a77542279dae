"""Which kernels a device takes: of attention, and of layers that torch.compile translates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from glioma_dist.benchmark.proof.lines import Findings, Setting
from glioma_dist.benchmark.proof.steps import build, draw_images, make_step
from glioma_dist.config import ScaleConfig
from glioma_dist.size import Size

FUSED = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
MATH = "attention_math"
"""In the names of PyTorch's operations: the one that holds the matrix of all weights."""
PREFIX = "aten::_scaled_dot_product_"
KERNELS = re.compile("fmha|flash|attention", re.IGNORECASE)
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPILED_LIMIT = 1e-3
"""Between a compiled and a plain network's losses: a compiler may sum in another order."""


def look_at_attention(setting: Setting, findings: Findings) -> None:
    """Which implementation scaled_dot_product_attention takes in a training step, by the profiler."""
    device = torch.device(setting.device)
    encoder, size = ("mit_tiny", Size(64, 64)) if setting.tiny else ("mit_b3", Size(704, 512))
    for precision, dtype in PRECISIONS.items():
        names = (f"{precision}: math attention", f"{precision}: fused attention")
        if precision == "fp16" and setting.device == "cpu":
            for name in names:
                findings.skipped(name, "fp16 needs a GPU")
            continue
        model = build(encoder, "none", device)
        found, names_of_kernels = attention_operations(make_step(model, draw_images(size, device), dtype), device)
        math = sum(number for name, number in found.items() if MATH in name)
        fused = sum(number for name, number in found.items() if any(each in name for each in FUSED))
        listed = [f"{number} {name}" for name, number in found.items()]
        told = f"{encoder} {size}: {', '.join(listed + names_of_kernels) or 'no attention'}"
        findings.equal(names[0], math, 0, "calls", told)
        findings.equal(names[1], fused, len(model.encoder.attention_layers()), "calls", told)


def attention_operations(take_step: Callable[[], Any], device: torch.device) -> tuple[Counter[str], list[str]]:
    """Name of each forward operation of attention in a step -> number of calls; and the names of a GPU's kernels that
    seem to compute attention."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        take_step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    events = list(profiler.profiler.kineto_results.events())
    names = [event.name() for event in events if event.name().startswith(PREFIX)]
    kernels = {event.name() for event in events if event.device_type() == torch.autograd.DeviceType.CUDA}
    found = sorted(name[:60] for name in kernels if KERNELS.search(name))
    return Counter(name.removeprefix(PREFIX) for name in names if "backward" not in name), found


def look_at_compiling(setting: Setting, findings: Findings) -> None:
    """Whether torch.compile translates each kind of layer once, and gives the same losses."""
    device = torch.device(setting.device)
    encoder, size = ("mit_b0", Size(64, 64)) if setting.tiny else ("mit_b3", Size(704, 512))
    # Inductor takes minutes on a CPU, and what is counted comes before it.
    backend = "aot_eager" if setting.tiny else "inductor"
    images = draw_images(size, device, 2)
    graphs, breaks, kinds, losses = compile_and_step(encoder, images, backend)
    expected = make_step(build(encoder, "none", device), images, None)()
    findings.equal("graphs, one a kind of layer", graphs, max(kinds, 1), note=f"{encoder} {size}, 2 images")
    findings.equal("graph breaks", breaks, 0)
    findings.at_most("losses against those of the plain network", _relative(losses, expected), COMPILED_LIMIT)
    graphs, *_ = compile_and_step(encoder, images[:1], "aot_eager")
    findings.equal("graphs with one image", graphs, max(kinds, 1), note=f"{encoder} {size}: one a kind")


def compile_and_step(encoder: str, images: torch.Tensor, backend: str) -> tuple[int, int, int, torch.Tensor]:
    """Two steps of the network with compiled layers: number of graphs, of graph breaks, of kinds of layers that differ
    in the shapes of their weights, and the losses of the first step."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    model = build(encoder, "none", images.device, ScaleConfig(compile=True))
    compiled = [block for block in model.encoder.blocks() if block._compiled_call_impl is not None]
    for block in compiled:
        block.compile(backend=backend)
    kinds = {tuple((name, tuple(each.shape)) for name, each in block.named_parameters()) for block in compiled}
    counters.clear()
    take_step = make_step(model, images, None)
    losses = take_step()
    take_step()
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()), len(kinds), losses


def _relative(losses: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((losses - expected).abs() / expected.abs().clamp(min=1e-6)).max())
