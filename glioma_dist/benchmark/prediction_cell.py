"""One cell of the prediction benchmark: a network segments one image of one size, timed and its memory measured.

A process measures one cell and ends: nothing that one leaves behind stands in another's way.
"""

from __future__ import annotations

import json
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from glioma_dist.benchmark.cell import BASELINES, OURS
from glioma_dist.benchmark.peak_memory import PeakMemory, peak_of_profile, resident_gib
from glioma_dist.config import ModelConfig
from glioma_dist.distributed.freed_memory import keep_freed_memory
from glioma_dist.distributed.numerics import numerics
from glioma_dist.distributed.signals import get_signal_at_parents_death
from glioma_dist.errors import OUT_OF_MEMORY, is_out_of_memory
from glioma_dist.evaluation.forward_only import forward_only
from glioma_dist.evaluation.network import Network, cell_probability
from glioma_dist.model.unet import UNet, normalise
from glioma_dist.registry import encoders
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.tile_size import tile_size
from glioma_dist.size import Size

Segment = Callable[[np.ndarray], np.ndarray]
"""uint8 (H, W) to float32 (H, W), the probability of each pixel."""


@dataclass(frozen=True)
class PredictionCell:
    """What one process measures."""

    network: str
    encoder: str
    size: str
    repeats: int
    warm_up: int
    device: str
    threads: int


def measure_or_say_why_not(cell: PredictionCell) -> dict:
    """The figures of a cell, or that its memory did not suffice."""
    get_signal_at_parents_death(signal.SIGTERM)
    with numerics():
        try:
            return {"status": "ok", **measure(cell)}
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return {"status": OUT_OF_MEMORY, "error": (str(error) or "MemoryError").splitlines()[0]}


def measure(cell: PredictionCell) -> dict:
    """Measure the seconds an image, of the clock and of the processor, and the peak memory.

    On a CPU: `start_gib`, what the process holds with all libraries imported and no network; `peak_gib`, the most that
    it held; `grown_gib`, their difference. On a GPU the peak of PyTorch's allocations, without a start.
    `tensors_gib`: the most that tensors took at once, weights included.
    """
    device, size = torch.device(cell.device), Size.parse(cell.size)
    torch.set_num_threads(cell.threads)
    if device.type == "cpu" and cell.network == OURS:
        keep_freed_memory()  # as `predict` does
    image = np.random.default_rng(0).integers(0, 256, (size.height, size.width), dtype=np.uint8)
    build_network = BUILDERS[cell.network](cell.encoder, device)  # which has imported what it needs
    start, memory = resident_gib("VmRSS"), PeakMemory(device)
    segment, num_bytes = build_network()
    seconds, cpu_seconds = [], []
    for _ in range(cell.warm_up + cell.repeats):
        clock, processor = time.perf_counter(), _processor_seconds()
        segment(image)
        seconds.append(time.perf_counter() - clock)
        cpu_seconds.append(_processor_seconds() - processor)
    grown = memory.allocated()
    is_cpu = device.type == "cpu" and grown is not None
    return {
        "seconds": seconds[cell.warm_up :],
        "median_seconds": statistics.median(seconds[cell.warm_up :]),
        "cpu_seconds": statistics.median(cpu_seconds[cell.warm_up :]),
        "start_gib": start if is_cpu else None,
        "grown_gib": grown,
        "peak_gib": start + grown if is_cpu else grown,
        "tensors_gib": _tensors_gib(segment, image, num_bytes) if is_cpu else grown,
    }


def ours(encoder: str, device: torch.device) -> Callable[[], tuple[Segment, int]]:
    """Returns a function that builds our network as `load_network` does, and tells the bytes of its weights."""
    encoders.load(encoder)  # with the library that it needs

    def build() -> tuple[Segment, int]:
        model, tiles = UNet(ModelConfig(encoder=encoder)).eval(), tile_size("auto", device)
        whole_images = forward_only(model) if device.type == "cpu" else None
        checkpoint_activations(model, "none", tiles)
        network = Network(model.to(device), device, encoder=encoder, tile_size=tiles, whole_images=whole_images)

        def segment(image: np.ndarray) -> np.ndarray:
            return cell_probability(network, image, None, Size(image.shape[1], image.shape[0])).cpu().numpy()

        return segment, _num_bytes(model)

    return build


def baseline(encoder: str, device: torch.device) -> Callable[[], tuple[Segment, int]]:
    """As `ours`, of segmentation_models.pytorch."""
    import segmentation_models_pytorch

    name = encoders.find(encoder).smp_name

    def build() -> tuple[Segment, int]:
        model = segmentation_models_pytorch.Unet(name, encoder_weights=None, decoder_interpolation="bilinear")
        model = model.eval().to(device)

        @torch.inference_mode()
        def segment(image: np.ndarray) -> np.ndarray:
            images = normalise(torch.from_numpy(image)[None, None].to(device)).expand(-1, 3, -1, -1)
            return model(images).sigmoid()[0, 0].cpu().numpy()

        return segment, _num_bytes(model)

    return build


BUILDERS = {OURS: ours, BASELINES["smp"]: baseline}


def _tensors_gib(segment: Segment, image: np.ndarray, num_bytes: int) -> float:
    """num_bytes: of the weights. In a pass of its own: the profiler takes memory and time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        segment(image)
    return peak_of_profile(profiler, num_bytes)


def _num_bytes(model: torch.nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in model.state_dict().values())


def _processor_seconds() -> float:
    """Of all threads of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    print(json.dumps(measure_or_say_why_not(PredictionCell(**json.loads(sys.argv[1])))))
