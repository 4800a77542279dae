"""One checker for every network: what processes compute of strips equals what one computes of whole images."""

import copy
import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.scale.strips.parallel import spatial_parallel
from glioma_dist.scale.strips.rows import tensors_in

TOLERANCE = 1e-9


class Exchange:
    """What the threads of a group give each other."""

    def __init__(self, size: int) -> None:
        self.slots: list = [None] * size
        self.barrier = threading.Barrier(size, timeout=60)

    def swap(self, rank: int, value: object) -> list:
        self.slots[rank] = value
        self.barrier.wait()
        found = list(self.slots)
        self.barrier.wait()
        return found


class ThreadGroup(SpatialGroup):
    """A spatial group of threads: each does what a process would do, without the start of one."""

    def __init__(self, rank: int, exchange: Exchange) -> None:
        super().__init__(len(exchange.slots), rank)
        self.threads = exchange

    def exchange(self, to_previous: Tensor, to_next: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        sent = self.threads.swap(self.rank, (to_previous.clone(), to_next.clone()))
        assert len({each[0].shape for each in sent} | set()) == len({each[1].shape for each in sent}) == 1
        above = sent[self.rank - 1][1] if self.has_previous else torch.zeros_like(to_next)
        below = sent[self.rank + 1][0] if self.has_next else torch.zeros_like(to_previous)
        return lambda: (above.contiguous(), below.contiguous())

    def _all_gather(self, part: Tensor) -> Tensor:
        return torch.stack(self.threads.swap(self.rank, part.clone()))

    def _reduce_scatter(self, parts: Tensor) -> Tensor:
        return torch.stack([each[self.rank] for each in self.threads.swap(self.rank, parts.clone())]).sum(0)

    def all_reduce(self, values: Tensor) -> Tensor:
        return values.copy_(torch.stack(self.threads.swap(self.rank, values.clone())).sum(0))


def on_threads(size: int, function: Callable[[ThreadGroup], object]) -> list:
    """`function(group)` in each of `size` threads; raises what one of them raises."""
    exchange, found, errors = Exchange(size), [None] * size, []

    def work(rank: int) -> None:
        try:
            found[rank] = function(ThreadGroup(rank, exchange))
        except BaseException as error:
            errors.append(error)
            exchange.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for error in sorted(errors, key=lambda each: isinstance(each, threading.BrokenBarrierError)):
        raise error
    return found


def step(module: nn.Module, images: Tensor, group: SpatialGroup | None) -> dict[str, Tensor]:
    """Outputs, and this process's addends of the gradients of weights and images, and buffers. The loss weighs each
    number of the outputs; of a strip it is that of its own rows."""
    images = images.detach().requires_grad_(images.is_floating_point())
    outputs = [each for each in tensors_in(module(images)) if each.is_floating_point()]
    loss = images.new_zeros(())
    for number, each in enumerate(outputs):
        weights = weights_of(number, each, group)
        loss = loss + (each * weights).sum()
    if loss.requires_grad:
        loss.backward()
    found = {f"output {number}": each.detach() for number, each in enumerate(outputs)}
    found |= {f"gradient {name}": each.grad for name, each in module.named_parameters() if each.grad is not None}
    found |= {f"buffer {name}": each.clone() for name, each in module.named_buffers()}
    return found | {"images": images.grad}


def weights_of(number: int, output: Tensor, group: SpatialGroup | None) -> Tensor:
    """Fixed numbers, one for each number of the whole output."""
    shape = list(output.shape)
    if group is not None and number in group.known:
        shape[2] = group.known[number]
    generator = torch.Generator().manual_seed(number)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64).to(output.dtype)
    return weights if shape == list(output.shape) else weights[:, :, group.rows_of(shape[2])]


def split_equals_whole(
    module: nn.Module,
    images: Tensor,
    heights: list[int],
    tolerance: float = TOLERANCE,
    split: Callable[[nn.Module, SpatialGroup], nn.Module] = spatial_parallel,
) -> dict[str, float]:
    """Assert that threads with strips of `heights` rows compute what one does with whole images: outputs, gradients of
    weights and images, buffers. Returns the largest difference of each, in units of the largest number. split: makes
    one process's module of a copy of `module`."""
    assert sum(heights) == images.shape[2]
    plain = step(copy.deepcopy(module), images, None)
    sizes = {int(name.split()[1]): each.shape[2] for name, each in plain.items() if "output" in name and each.ndim == 4}

    def compute(group: ThreadGroup) -> dict[str, Tensor]:
        own = images[:, :, group.cut_at(heights)]
        group.known = sizes
        return step(split(copy.deepcopy(module), group), own, group)

    found = on_threads(len(heights), compute)
    return compare(plain, found, tolerance)


def compare(plain: dict[str, Tensor], found: list[dict[str, Tensor]], tolerance: float) -> dict[str, float]:
    """Assert that strips joined, and addends of gradients added, are what one process has."""
    differences = {}
    # Some gradients are 0 but for rounding, as that of a bias before a batch norm: in units of the largest, then.
    gradients = [float(each.abs().max()) for name, each in plain.items() if name.startswith(("gradient", "images"))]
    largest = max(gradients, default=1.0)
    for name, expected in plain.items():
        parts = [each[name] for each in found]
        if name.startswith("gradient"):
            joined = torch.stack(parts).sum(0)
        elif name == "images" or (name.startswith("output") and parts[0].shape != expected.shape):
            joined = torch.cat(parts, dim=2)
        else:
            joined = parts[0]
            assert all(torch.equal(each, joined) for each in parts), f"{name} differs from process to process"
        assert joined.shape == expected.shape, f"{name}: {joined.shape}, not {expected.shape}"
        least = 1e-3 * (largest if name.startswith(("gradient", "images")) else 1)
        scale = expected.abs().max().clamp(min=least) if expected.is_floating_point() else 1
        difference = float((joined - expected).abs().max() / scale) if expected.numel() else 0.0
        assert difference <= tolerance, f"{name} differs by {difference}"
        differences[name] = difference
    for name in {name for each in found for name in each} - set(plain):
        raise AssertionError(f"{name} is only there in strips")
    return differences
