"""What processes send each other in a training step: the same, in the same order, on all of them."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import TINY_CHANNELS, load_benchmark, run
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from glioma_dist.config import ModelConfig
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import build_model
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.batch_norm import synchronise_batch_norm
from glioma_dist.scale.buckets import fix_buckets
from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.scale.spatial_layers import split_spatially

HEIGHT, WIDTH = 160, 64
EXCHANGE = "exchange"
"""A call that sends rows to neighbours and receives theirs; all its operations are one group of NCCL's."""
GATHER, SUM, SCATTER = "c10d::_allgather_base_", "c10d::allreduce_", "c10d::reduce_scatter_"
"""PyTorch's operations: the first is all_gather_into_tensor."""
COUNTS = {
    ("none", 2): {EXCHANGE: 47, GATHER: 14, SUM: 12, SCATTER: 4},
    ("selective", 2): {EXCHANGE: 55, GATHER: 18, SUM: 12, SCATTER: 4},
    ("full", 2): {EXCHANGE: 62, GATHER: 26, SUM: 12, SCATTER: 4},
    ("full", 4): {EXCHANGE: 62, GATHER: 26, SUM: 12, SCATTER: 4},
}
"""Level, processes an image: communications of one step of mit_tiny on four processes."""


@dataclass(frozen=True)
class Trace:
    """Communications of one step of a process."""

    rank: int
    order: list[str]
    """Names, in the order in which they began; of exchanges no shapes, because strips differ in their neighbours."""
    sent: list[tuple[int, str]]
    """To which process, and what, in order."""
    received: list[tuple[int, str]]


def trace_step(level: str, size: int) -> Trace:
    """Of the second step of a network as a training of this launch has it."""
    from glioma_dist.distributed.context import DistributedContext

    here = DistributedContext.start()
    group = SpatialGroup.join(here, size)
    model = build_model(ModelConfig(encoder="mit_tiny", decoder_channels=TINY_CHANNELS), 0)[0]
    model = synchronise_batch_norm(model, here.device)
    checkpoint_activations(model, level)
    split_spatially(model, group)
    model = here.accelerator.prepare(model)
    fix_buckets(model)
    take_step(model, group)

    sent, received, exchange = [], [], dist.batch_isend_irecv

    def note(operations: list[dist.P2POp]) -> list[Any]:
        for each in operations:
            kind = f"{tuple(each.tensor.shape)} {each.tensor.dtype}"
            (sent if each.op is dist.isend else received).append((each.peer, kind))
        with record_function(EXCHANGE):
            return exchange(operations)

    with pytest.MonkeyPatch.context() as patch, profile(activities=[ProfilerActivity.CPU]) as seen:
        patch.setattr(dist, "batch_isend_irecv", note)
        take_step(model, group)
    # `seen.events()` would make a tree of all: three quarters of this function's time.
    events = sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    names = [name for each in events if (name := each.name()) == EXCHANGE or name.startswith("c10d::")]
    return Trace(here.rank, [name for name in names if name not in ("c10d::send", "c10d::recv_")], sent, received)


def take_step(model: nn.Module, group: SpatialGroup) -> None:
    strip = group.cut(HEIGHT)
    images = torch.randn(1, 3, strip.stop - strip.start, WIDTH)
    logits = model(images, torch.zeros(1, dtype=torch.int64))
    segmentation_loss("dice", logits, torch.zeros_like(logits[:, 0]), group).sum().backward()


@pytest.mark.parametrize(("level", "size"), COUNTS)
def test_all_processes_communicate_in_the_same_order(level, size):
    """On GPUs a process that waits for another communication than its peers do waits for ever."""
    traces = run(trace_step, level, size, num_processes=4)
    for trace in traces:
        assert trace.order == traces[0].order
        assert len(trace.order) == len([name for name in trace.order if name in (EXCHANGE, GATHER, SUM, SCATTER)])
        for other in traces:
            to_other = [what for where, what in trace.sent if where == other.rank]
            assert to_other == [what for where, what in other.received if where == trace.rank]
    assert dict(Counter(traces[0].order)) == COUNTS[level, size]


def reduce_both_ways(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(processes, …) in fp64 from each process: this process's part of their sum, as gloo's list and tensor variants
    find it, its own part gathered from all, and what it gave."""
    from glioma_dist.distributed.context import DistributedContext

    here = DistributedContext.start()
    group = SpatialGroup.join(here, here.num_processes)
    generator = torch.Generator().manual_seed(here.rank)
    parts = torch.randn(here.num_processes, *shape, generator=generator, dtype=torch.float64)
    of_tensor = torch.empty_like(parts[0])
    dist.reduce_scatter_tensor(of_tensor, parts.flatten(0, 1), group=group.group)
    return group._reduce_scatter(parts), of_tensor, group._all_gather(parts[0]), parts


def test_tensors_are_gathered_and_added_as_lists_are():
    """GPUs take the variant of one tensor, which on a CPU must give the same numbers up to the order of sums."""
    ranks = run(reduce_both_ways, (2, 3, 5, 4), num_processes=4)
    total = sum(parts for *_, parts in ranks)
    for rank, (of_list, of_tensor, gathered, _) in enumerate(ranks):
        assert torch.allclose(of_list, total[rank], rtol=0, atol=1e-12)
        assert torch.allclose(of_tensor, total[rank], rtol=0, atol=1e-12)
        assert torch.equal(gathered, torch.stack([parts[0] for *_, parts in ranks]))


def measure_overlap(size: int) -> dict[str, tuple[float, float]]:
    """Milliseconds in flight, and of these computing, of each kind of communication of one step."""
    from glioma_dist.distributed.context import DistributedContext
    from glioma_dist.size import Size

    for script in load_benchmark("overlap"):
        config = script.OverlapConfig(size=Size(256, 256), spatial_parallel=size)
        found = script.measure(config, DistributedContext.start())
        return {name: (each.milliseconds, each.computing) for name, each in found.items()}
    raise AssertionError


@pytest.mark.slow  # its shares of time hold where no other program needs the cores
@pytest.mark.parametrize(("size", "kind", "least"), [(1, "gloo:all_reduce", 0.01), (2, "gloo:recv", 0.1)])
def test_processes_compute_while_they_communicate(size, kind, least):
    """Gradients are sent while others are computed, all but the last bucket's; halos while the strip is convolved."""
    for found in run(measure_overlap, size, num_processes=2):
        in_flight, computing = found[kind]
        assert computing > least * in_flight > 0
