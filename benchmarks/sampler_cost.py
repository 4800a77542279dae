"""What the order of samples costs over virtual shards, how many shards a process touches, and how well it mixes."""

import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
from webdataset.filters import shuffle

from glioma_dist.cli.arguments import parse
from glioma_dist.data.sampler import SHARDS_IN_WINDOW, DeterministicSampler
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError
from glioma_dist.limits import check_batch_size

COST_STEPS = 2000


@dataclass(frozen=True)
class SimulationConfig:
    """Prints two Markdown tables: cost over a billion virtual samples; mixing, beside webdataset's shuffle buffer."""

    huge_shards: int = 100_000
    """Shards of the set that cost is measured on."""
    huge_samples: int = 10_000
    """Samples in each of them."""
    shards: int = 10_240
    """Shards of the set that mixing is measured on."""
    samples: int = 25
    """Samples in each of them."""
    batch_size: int = 1024
    processes: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    """Each must divide the batch."""
    buffer: int = 1000
    """Samples in webdataset's shuffle buffer, in each process."""

    def validate(self) -> None:
        check_batch_size(self.batch_size)
        odd = [count for count in self.processes if count < 1 or self.batch_size % count]
        if odd or not self.processes:
            raise InputError(f"--processes {odd}: each must divide --batch-size {self.batch_size}")


def measure_cost(config: SimulationConfig, slots: int) -> tuple[float, float, float, float]:
    """Seconds to make the order, MiB it holds after COST_STEPS, microseconds a batch of `slots` in sequence, and for
    one batch anywhere, as when a run is resumed. The process has the first `slots` slots of the batch."""
    tracemalloc.start()
    start = time.perf_counter()
    order = DeterministicSampler([config.huge_samples] * config.huge_shards, config.batch_size, seed=0)
    order.batch(0, range(slots))
    made = time.perf_counter() - start
    for step in range(COST_STEPS):
        order.batch(step, range(slots))
    mib = tracemalloc.get_traced_memory()[0] / 2**20
    tracemalloc.stop()
    start = time.perf_counter()
    for step in range(COST_STEPS):
        order.batch(step, range(slots))
    walking = (time.perf_counter() - start) / COST_STEPS
    steps = np.random.default_rng(0).integers(order.steps_per_epoch, size=200).tolist()
    start = time.perf_counter()
    for step in steps:
        order.batch(step, range(slots))
    return made, mib, 1e6 * walking, 1e6 * (time.perf_counter() - start) / len(steps)


def draw_ours(config: SimulationConfig) -> np.ndarray:
    """The shard of every sample of an epoch: (steps, batch_size). It is the same for any number of processes."""
    order = DeterministicSampler([config.samples] * config.shards, config.batch_size, seed=0)
    return np.array([[place.shard for place in order.batch(step)] for step in range(order.steps_per_epoch)])


def draw_webdatasets(config: SimulationConfig, num_processes: int) -> np.ndarray:
    """The same for webdataset: shards shuffled and dealt to processes, samples through a shuffle buffer in each."""
    shards = np.random.default_rng(0).permutation(config.shards)
    share = config.batch_size // num_processes

    def stream(rank: int) -> Iterator[int]:
        samples = (int(shard) for shard in shards[rank::num_processes] for _ in range(config.samples))
        return shuffle(config.buffer, rng=Random(rank))(samples)

    columns = [np.fromiter(stream(rank), np.int64) for rank in range(num_processes)]
    steps = min(map(len, columns)) // share
    return np.concatenate([column[: steps * share].reshape(steps, share) for column in columns], axis=1)


def describe(drawn: np.ndarray, num_processes: int, num_shards: int) -> tuple[float, float, float, float]:
    """Of (steps, batch) shards drawn: shards a process touches, processes that touch a shard, both on average; shards
    in a batch; and how far a batch's mean place in the set strays, where 1 is what a shuffle of everything gives."""
    touched = [len(np.unique(part)) for part in np.split(drawn, num_processes, axis=1)]
    in_batch = np.mean([len(np.unique(batch)) for batch in drawn])
    strays = (drawn / num_shards).mean(axis=1).std() / np.sqrt(1 / 12 / drawn.shape[1])
    return float(np.mean(touched)), sum(touched) / num_shards, float(in_batch), float(strays)


def simulate(config: SimulationConfig) -> None:
    """Print both tables."""
    total = config.huge_samples * config.huge_shards
    print(f"{total:.0e} samples in {config.huge_shards:.0e} shards, batch {config.batch_size}:\n")
    print("| slots of a process | to make, s | MiB held | µs a batch, one after another | µs a batch, anywhere |")
    print("|---|---|---|---|---|")
    for slots in (1, 4, 32):
        made, mib, walking, anywhere = measure_cost(config, slots)
        print(f"| {slots} | {made:.2f} | {mib:.1f} | {walking:.0f} | {anywhere:.0f} |", flush=True)
    print(
        f"\n{config.shards * config.samples} samples, sorted, in {config.shards} shards, batch {config.batch_size}; "
        f"windows of {SHARDS_IN_WINDOW} shards, webdataset's buffer {config.buffer}:\n"
    )
    print(
        "| processes | order | shards a process | processes a shard | shards a batch | strays |\n"
        "|---|---|---|---|---|---|"
    )
    ours = draw_ours(config)
    everything = np.random.default_rng(0).permutation(np.repeat(np.arange(config.shards), config.samples))
    everything = everything[: ours.size].reshape(ours.shape)
    for num_processes in config.processes:
        for name, drawn in (
            ("glioma-dist", ours),
            ("webdataset", draw_webdatasets(config, num_processes)),
            ("everything shuffled", everything),
        ):
            touched, sharing, in_batch, strays = describe(drawn, num_processes, config.shards)
            row = f"{touched:.0f} | {sharing:.2f} | {in_batch:.0f} | {strays:.2f}"
            print(f"| {num_processes} | {name} | {row} |", flush=True)


def main() -> None:
    config = parse(SimulationConfig)
    simulate(config)


if __name__ == "__main__":
    run_command(main)
