"""Host memory in which activations wait is allocated, and page-locked, once."""

import gc
import sys

import pytest
import torch
from torch import Tensor

from glioma_dist.scale.host_memory import HostMemory

STORAGES = (40, 400, 160, 8)
"""Bytes an image of what a pass keeps, in its order."""


class Counting(HostMemory):
    """Notes what is given up."""

    def __init__(self) -> None:
        super().__init__()
        self.given_up: list[int] = []

    def _give_up(self, memory: Tensor | None = None) -> None:
        self.given_up.append(0 if memory is None else len(memory))
        super()._give_up(*([] if memory is None else [memory]))


def take_pass(host: HostMemory, num_images: int) -> list[Tensor]:
    """A forward and a backward pass. Returns the memory that it used."""
    sources = [torch.randint(256, (num_images * each,), dtype=torch.uint8) for each in STORAGES]
    used = [host.leave(source)[0] for source in sources]
    for source, memory in reversed(list(zip(sources, used, strict=True))):
        host.arrive(memory, target := torch.empty_like(source))
        assert torch.equal(target, source)
        host.release(memory)
    return used


@pytest.mark.parametrize("sizes", [(3, 2), (2, 2, 1, 1), (2, 3)])
def test_uneven_micro_batches_share_their_memory(sizes):
    """And the largest of them, which comes first in a step, needs no more of it than alone."""
    host = Counting()
    for size in sizes:
        take_pass(host, size)
    host.given_up.clear()
    places = {memory.data_ptr(): len(memory) for _ in range(2) for size in sizes for memory in take_pass(host, size)}
    assert host.given_up == []
    if sizes[0] == max(sizes):
        assert sum(places.values()) == max(sizes) * sum(STORAGES)


class Parcel:
    """Host memory that only the garbage collector gives back: it refers to itself."""

    def __init__(self, host: HostMemory, memory: Tensor) -> None:
        self.host, self.memory, self.itself = host, memory, self

    def __del__(self) -> None:
        self.host.release(self.memory)


def calls_of(function, collect_at: int) -> int:
    """The number of calls of Python's functions in a call of `function`; garbage is collected before one of them."""
    calls = 0

    def look(_: object, event: str, __: object) -> None:
        nonlocal calls
        if event == "call":
            if calls == collect_at:
                gc.collect(0)  # of what is new
            calls += 1

    sys.setprofile(look)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


def test_garbage_may_be_collected_while_memory_is_looked_for():
    was_on = gc.isenabled()
    gc.disable()
    try:
        at, calls = 0, 1
        while at < calls:
            host, source = HostMemory(), torch.randint(256, (450,), dtype=torch.uint8)
            for size in range(100, 900, 100):
                host.release(torch.empty(size, dtype=torch.uint8))
            Parcel(host, torch.empty(50, dtype=torch.uint8))
            found = []
            calls = calls_of(lambda host=host, source=source, found=found: found.append(host.leave(source)[0]), at)
            assert torch.equal(found[0][:450], source)
            assert len(found[0]) == 500
            at += 1
    finally:
        if was_on:
            gc.enable()
    assert calls > 3
