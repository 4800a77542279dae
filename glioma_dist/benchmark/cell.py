"""One cell of the resolution benchmark: a network's training step at one size, timed and its memory measured.

A process measures one cell and ends: nothing that one leaves behind stands in another's way.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from glioma_dist.benchmark.peak_memory import PeakMemory
from glioma_dist.config import DataConfig, ModelConfig
from glioma_dist.data.loader import Batch, training_batches
from glioma_dist.data.sampler import DeterministicSampler
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.worker_pool import WorkerPool
from glioma_dist.distributed.context import keep_freed_memory
from glioma_dist.distributed.numerics import numerics, numerics_in_force
from glioma_dist.distributed.signals import get_signal_at_parents_death
from glioma_dist.errors import OUT_OF_MEMORY, InputError, is_out_of_memory
from glioma_dist.loss_names import DEFAULT_LOSS
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import UNet
from glioma_dist.registry import encoders
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.gradients import compute_gradients
from glioma_dist.scale.kernel_limits import check_kernels
from glioma_dist.scale.optimizer import make_adam
from glioma_dist.scale.step import Step
from glioma_dist.scale.tile_size import tile_size
from glioma_dist.size import Size

OURS = "glioma-dist"
BASELINES = {"smp": "segmentation_models.pytorch", "eager": "transformers eager"}
BATCHES_AHEAD = 2
"""Batches that each worker prepares ahead (data/loader.py)."""


@dataclass(frozen=True)
class Cell:
    """What one process measures."""

    network: str
    level: str
    layout: str
    precision: str
    size: str
    encoder: str
    batch_size: int
    repeats: int
    warm_up: int
    device: str
    data: str | None
    """Folder of shards for the measurement with data loading."""
    workers: int
    keeps_freed_memory: bool = True
    """On a CPU: as training does it, which is quicker, but leaves gaps between tensors."""

    @property
    def megapixels(self) -> float:
        size = Size.parse(self.size)
        return size.width * size.height / 1e6


def measure_or_say_why_not(cell: Cell) -> dict:
    """The figures of a cell, or that its memory did not suffice; and how a GPU rounds (`numerics_in_force`)."""
    get_signal_at_parents_death(signal.SIGTERM)
    with contextlib.suppress(OSError):  # where memory ends, the system shall end this process and no other
        Path("/proc/self/oom_score_adj").write_text("1000")
    with numerics():  # those of a run, for the baselines as well
        row = {"numerics": numerics_in_force()}
        try:
            check_size(cell)
        except InputError as error:
            return {"status": "refused", "error": str(error), **row}
        try:
            # Forked before the device is set up, as a run's workers are.
            with WorkerPool(cell.workers if cell.data else 0) as pool:
                return {"status": "ok", **measure(cell, pool), **row}
        except InputError as error:  # of the data: measured again when the benchmark continues
            return {"status": "failed", "error": str(error), **row}
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return {"status": OUT_OF_MEMORY, "error": (str(error) or "MemoryError").splitlines()[0], **row}


def check_size(cell: Cell) -> None:
    """Raises InputError where training would refuse the cell, because a GPU's kernels cannot take its maps."""
    if cell.network == BASELINES["smp"]:
        return
    step = Step(
        ModelConfig(encoder=cell.encoder),
        Size.parse(cell.size),
        cell.batch_size,
        cell.precision == "bf16",
        tile_size=tile_size("auto", cell.device),
        loss=partial(segmentation_loss, DEFAULT_LOSS),
    )
    check_kernels(step, cell.level)


def measure(cell: Cell, pool: WorkerPool | None = None) -> dict:
    """Measure the seconds of steps, and the peak memory since before the model was made (`PeakMemory`), without the
    uint8 batch. pool: workers that read the data."""
    device = torch.device(cell.device)
    if device.type == "cpu" and cell.keeps_freed_memory:
        keep_freed_memory()
    batch = draw_batch(cell)
    build = network_builder(cell)
    memory = PeakMemory(device)
    model = build().to(device).train()
    optimizer = make_adam(model)

    def take_step(batch: Batch) -> None:
        batch = batch.to(device)
        compute_gradients(
            model,
            batch.images,
            batch.masks,
            partial(segmentation_loss, DEFAULT_LOSS),
            partial(torch.autocast, device.type, torch.bfloat16, enabled=cell.precision == "bf16"),
            seeds=None if cell.network == BASELINES["smp"] else batch.seeds,
            factor=1 / cell.batch_size,
        )
        optimizer.step()
        optimizer.zero_grad()

    seconds = time_steps(take_step, itertools.repeat(batch), cell.warm_up + cell.repeats, device)[cell.warm_up :]
    median = statistics.median(seconds)
    return {
        "peak_gib": memory.allocated(),
        "peak_reserved_gib": memory.reserved(),
        "seconds": seconds,
        "median_seconds": median,
        "images_per_second": cell.batch_size / median,
        **({} if cell.data is None else rate_with_data(cell, take_step, device, pool)),
    }


def draw_batch(cell: Cell) -> Batch:
    """Noise, grey, as the loader hands it over."""
    size = Size.parse(cell.size)
    shape, drawn = (cell.batch_size, 1, size.height, size.width), torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=drawn)
    batch = Batch(images, (images[:, 0] > 180).to(torch.uint8), torch.arange(cell.batch_size), ())
    return batch.pin_memory() if cell.device == "cuda" else batch


def network_builder(cell: Cell) -> Callable[[], torch.nn.Module]:
    """Imports the network's library; what is returned builds the network, on the CPU."""
    if cell.network == BASELINES["smp"]:
        import segmentation_models_pytorch

        name = encoders.find(cell.encoder).smp_name
        return lambda: segmentation_models_pytorch.Unet(name, encoder_weights=None, decoder_interpolation="bilinear")

    def build() -> UNet:
        model = UNet(ModelConfig(encoder=cell.encoder))
        checkpoint_activations(model, cell.level)
        if cell.network == BASELINES["eager"]:
            for layer in model.encoder.attention_layers():
                layer.attend = attend_with_matrix
        if cell.layout == "channels_last":
            model.encoder.memory_format = torch.channels_last
            model.to(memory_format=torch.channels_last)
        return model

    return build


def attend_with_matrix(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention as transformers' "eager" computes it, which holds the matrix of all weights, softmax in fp32.

    query, key, value: (B, heads, tokens, C). Returns the shape of `query`.
    """
    scores = query @ key.transpose(2, 3) * scale
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ value


def time_steps(
    take_step: Callable[[Batch], None], batches: Iterator[Batch], count: int, device: torch.device
) -> list[float]:
    """Seconds of each of `count` steps, waiting for its batch included; the device has finished each."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        take_step(next(batches))
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def rate_with_data(
    cell: Cell, take_step: Callable[[Batch], None], device: torch.device, pool: WorkerPool | None
) -> dict[str, float]:
    """Images per second over all timed steps together, and the share of the time spent waiting for batches. Batches
    arrive in bursts, so the median of a step would hide the wait. Batches prepared before the start are not timed."""
    reader = ShardReader(cell.data)
    data = DataConfig(
        size=Size.parse(cell.size),
        transform="random-resized-crop",
        augment=("flips", "sharpen", "contrast"),
        workers=cell.workers,
    )
    sampler = DeterministicSampler(reader.shard_sizes, cell.batch_size, seed=0)
    batches = Waited(training_batches(reader, sampler, data, device=device, pool=pool))
    time_steps(take_step, batches, cell.warm_up + cell.workers * BATCHES_AHEAD, device)
    batches.seconds = 0.0
    seconds = sum(time_steps(take_step, batches, cell.repeats, device))
    rate = cell.batch_size * cell.repeats / seconds
    return {"images_per_second_with_data": rate, "waiting_share": batches.seconds / seconds}


class Waited:
    """An iterator that counts the seconds its user waits for it."""

    def __init__(self, items: Iterator[Batch]) -> None:
        self._items, self.seconds = items, 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        item = next(self._items)
        self.seconds += time.perf_counter() - start
        return item


if __name__ == "__main__":
    print(json.dumps(measure_or_say_why_not(Cell(**json.loads(sys.argv[1])))))
