"""One image over several processes: each keeps a strip of its rows.

Each spatial group consists of `size` neighbouring ranks, which get the same images. This module decides which rows each
process has and sends tensors between the strips; `spatial_layers.py` has the layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from glioma_dist.config.scale import UNIT_ROWS, strip_edges
from glioma_dist.errors import InputError
from glioma_dist.model.layout import layout_of

if TYPE_CHECKING:
    from glioma_dist.distributed.context import DistributedContext  # imports accelerate, which estimates do not need


class SpatialGroup:
    """This process's place in its spatial group. `SpatialGroup()` is a process that has whole images."""

    def __init__(
        self,
        size: int = 1,
        rank: int = 0,
        dp_rank: int = 0,
        dp_size: int = 1,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.size, self.rank = size, rank
        self.dp_rank, self.dp_size = dp_rank, dp_size
        self.group = group
        self.units, self.heights = [1] * size, [UNIT_ROWS] * size
        """Of each strip of the image that is worked on: units of `UNIT_ROWS` rows, and rows."""

    @classmethod
    def join(cls, context: DistributedContext, size: int) -> SpatialGroup:
        """Form the spatial groups of a launch; all processes must call it.

        Raises InputError where `size` does not divide the processes.
        """
        check_division(size, context.num_processes)
        dp_rank, rank = divmod(context.rank, size)
        dp_size = context.num_processes // size
        groups = [None] * dp_size
        # One group of all takes the launch's communicator: NCCL's kernels of two over the same GPUs may wait for each
        # other for ever (PyTorch's documentation of new_group).
        if size > 1 and dp_size > 1:
            patience = timedelta(seconds=context.seconds_to_answer)
            strips = (range(first * size, (first + 1) * size) for first in range(dp_size))
            groups = [dist.new_group(each, timeout=patience) for each in strips]
        return cls(size, rank, dp_rank, dp_size, groups[dp_rank])

    @classmethod
    def over(cls, group: dist.ProcessGroup | None = None) -> SpatialGroup:
        """All processes of `group`, by default of the launch, share each image."""
        return cls(dist.get_world_size(group), dist.get_rank(group), group=group)

    def cut(self, height: int) -> slice:
        """This process's rows of an image `height` rows high. Layers take the image to have this height until the next
        call, in the backward pass, too.

        Raises InputError where the image has fewer units than there are processes.
        """
        edges = strip_edges(height, self.size)
        self.units = [math.ceil((stop - start) / UNIT_ROWS) for start, stop in pairwise(edges)]
        self.heights = [stop - start for start, stop in pairwise(edges)]
        return slice(edges[self.rank], edges[self.rank + 1])

    def cut_at(self, heights: Sequence[int]) -> slice:
        """As `cut`, with any number of rows for each process: for `spatial_parallel`."""
        if len(heights) != self.size or min(heights) < 1:
            raise InputError(f"strips of {list(heights)} rows: give 1 or more for each of {self.size} processes")
        self.heights = list(heights)
        first = sum(heights[: self.rank])
        return slice(first, first + heights[self.rank])

    def rows_of(self, height: int) -> slice:
        """This process's rows of a map of `height` rows that shows the image: in proportion, rounded down."""
        edges = [0, *accumulate(self.heights)]
        return slice(*(edges[number] * height // edges[-1] for number in (self.rank, self.rank + 1)))

    @property
    def has_previous(self) -> bool:
        """Whether another process has the rows above."""
        return self.rank > 0

    @property
    def has_next(self) -> bool:
        """Whether another process has the rows below."""
        return self.rank < self.size - 1

    def exchange(self, to_previous: Tensor, to_next: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        """Begin to send rows to both neighbours, and to receive theirs.

        to_previous, to_next: (B, C, any number of rows, W), the same shapes on all processes. Returns a function that
        waits: it returns what the previous process sent to its next, and the next to its previous; zeros where there
        is no neighbour.
        """
        from_previous, from_next = (
            torch.zeros(each.shape, dtype=each.dtype, device=each.device) for each in (to_next, to_previous)
        )
        requests = self._start(
            [(-1, to_previous.contiguous(), from_previous)] * self.has_previous
            + [(1, to_next.contiguous(), from_next)] * self.has_next
        )

        def wait() -> tuple[Tensor, Tensor]:
            for request in requests:
                request.wait()
            return from_previous, from_next

        return wait

    def total(self, values: Tensor) -> Tensor:
        """Sum over the spatial group of what each took from its strip. The gradient of each addend is the sum's own,
        for a loss that all processes compute from it is one loss."""
        return values if self.size == 1 else _Total.apply(values, self)

    def whole(self, part: Tensor) -> Tensor:
        """part: (B, …, rows of this strip, W). Returns the images (B, …, H, W) on all processes, for a loss that all
        compute from them: the gradient of each strip is that of the image's rows, without a sum over the group."""
        return part if self.size == 1 else _Whole.apply(part, self.heights, self)

    def own(self, whole: Tensor) -> Tensor:
        """This strip's rows of images (B, …, H, W)."""
        return whole if self.size == 1 else whole.split(self.heights, dim=-2)[self.rank]

    def gather_tokens(self, tokens: Tensor) -> Tensor:
        """tokens: (B, heads, tokens of this strip, C), a fixed number a unit. Returns those of the whole image, in its
        order; gradients go back to where the tokens came from, summed over the group."""
        per_unit = tokens.shape[2] // self.units[self.rank]
        return _Gather.apply(tokens, [units * per_unit for units in self.units], self)

    def gather_strip(self, strip: Tensor) -> Tensor:
        """strip: (B, C, rows of this strip, W). Returns (B, C, H, W) on all processes; without gradient."""
        return strip if self.size == 1 else self.gather(strip, self.heights)

    def gather(self, part: Tensor, lengths: list[int]) -> Tensor:
        """Join parts along dimension 2, of `lengths` on each process."""
        if part.shape[2] < max(lengths):  # all processes send as many numbers
            longest = part.new_zeros(*part.shape[:2], max(lengths), *part.shape[3:])
            longest[:, :, : part.shape[2]] = part
            part = longest
        parts = self._all_gather(part.contiguous())
        return torch.cat([each[:, :, :length] for each, length in zip(parts, lengths, strict=True)], dim=2)

    def sum_of_own(self, whole: Tensor, lengths: list[int]) -> Tensor:
        """This process's part, along dimension 2, of the sum over the spatial group of `whole`; without gradient."""
        parts = whole.new_zeros(self.size, *whole.shape[:2], max(lengths), *whole.shape[3:])
        for part, values in zip(parts, whole.split(lengths, dim=2), strict=True):
            part[:, :, : values.shape[2]] = values
        return self._reduce_scatter(parts)[:, :, : lengths[self.rank]]

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum over the spatial group, in place; without gradient."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def _all_gather(self, part: Tensor) -> Tensor:
        """part: (B, C, …), contiguous. Returns (processes, B, C, …)."""
        # One tensor, because NCCL would receive a list of tensors in a copy of its own.
        parts = part.new_empty(self.size, *part.shape)
        dist.all_gather_into_tensor(parts.flatten(0, 1), part, group=self.group)
        return parts

    def _reduce_scatter(self, parts: Tensor) -> Tensor:
        """parts: (processes, B, C, …), contiguous. Returns (B, C, …)."""
        total = torch.empty_like(parts[0])
        if parts.device.type == "cpu":
            # gloo adds the parts of a list in another order than those of one tensor, which changes last bits from
            # three processes on. With the list, runs on CPUs keep the bits of earlier versions. It holds views.
            dist.reduce_scatter(total, list(parts), group=self.group)
        else:
            dist.reduce_scatter_tensor(total, parts.flatten(0, 1), group=self.group)
        return total

    def _start(self, transfers: list[tuple[int, Tensor, Tensor]]) -> list[dist.Work]:
        """Begin transfers: (which neighbour, what is sent, what is received)."""
        group = self.group or dist.group.WORLD
        operations = []
        for where, sent, received in transfers:
            peer = dist.get_global_rank(group, self.rank + where)
            if sent.numel():
                operations.append(dist.P2POp(dist.isend, sent, peer, group))
            if received.numel():
                operations.append(dist.P2POp(dist.irecv, received, peer, group))
        return dist.batch_isend_irecv(operations) if operations else []


class ImaginarySpatialGroup(SpatialGroup):
    """A process of a spatial group of which there are no others: for counting what it holds, and what it would send.

    It stands where most is to do: in a largest strip, and, where there are three or more, as if between two others.
    """

    def __init__(self, size: int, height: int) -> None:
        heights = [stop - start for start, stop in pairwise(strip_edges(height, size))]
        super().__init__(size, heights.index(max(heights)))
        self.halo_bytes = self.gathered_bytes = 0
        """Sent to neighbours; and sent so that all have tokens, or a sum, of all (by rings, as NCCL does it)."""

    @property
    def has_previous(self) -> bool:
        return self.rank > 0 or self.size > 2

    @property
    def has_next(self) -> bool:
        return self.rank < self.size - 1 or self.size > 2

    def all_reduce(self, values: Tensor) -> Tensor:
        self.gathered_bytes += 2 * (self.size - 1) * values.nbytes // self.size
        return values

    def _all_gather(self, part: Tensor) -> Tensor:
        self.gathered_bytes += (self.size - 1) * part.nbytes
        return part.new_empty(self.size, *part.shape)

    def _reduce_scatter(self, parts: Tensor) -> Tensor:
        self.gathered_bytes += (self.size - 1) * parts[0].nbytes
        return torch.empty_like(parts[0])

    def _start(self, transfers: list[tuple[int, Tensor, Tensor]]) -> list[dist.Work]:
        self.halo_bytes += sum(sent.nbytes for _, sent, _ in transfers)
        return []


def check_division(size: int, num_processes: int) -> None:
    """Raises InputError where strips of `size` processes do not divide a launch."""
    if num_processes % size:
        processes = f"{num_processes} process{'es' if num_processes > 1 else ''}"
        raise InputError(
            f"--scale.spatial-parallel {size} does not divide the {processes} of this launch: launch a "
            f"multiple of {size} (accelerate launch --quiet --num_processes {size} …)"
        )


def rows_between(above: Tensor, features: Tensor, below: Tensor, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of `features` (B, C, H, W), with `above` before row 0 and `below` after the last."""
    parts, first = [], -above.shape[2]
    for part in (above, features, below):
        part_start, part_stop = max(0, start - first), min(part.shape[2], stop - first)
        if part_start < part_stop:
            parts.append(part[:, :, part_start:part_stop])
        first += part.shape[2]
    if len(parts) == 1:
        return parts[0]
    # Halos arrive contiguous, and parts of two layouts join to a contiguous one, which cuDNN would transpose. On a
    # CPU it stays so, because convolutions of another layout give other last bits there.
    if features.device.type != "cpu":
        parts = [each.contiguous(memory_format=layout_of(features)) for each in parts]
    return torch.cat(parts, dim=2)


def add_to_borders(total: Tensor, from_previous: Tensor, from_next: Tensor) -> None:
    """Add to the first and last rows of `total` (B, C, H, W), in place, the gradients that both neighbours sent."""
    total[:, :, : from_previous.shape[2]] += from_previous
    total[:, :, total.shape[2] - from_next.shape[2] :] += from_next


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, group: SpatialGroup) -> Tensor:
        return group.all_reduce(values.clone())

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx, part: Tensor, heights: list[int], group: SpatialGroup) -> Tensor:
        ctx.heights, ctx.rank = heights, group.rank
        rows, width = part.shape[-2:]
        whole = group.gather(part.reshape(len(part), -1, rows, width), heights)
        return whole.reshape(*part.shape[:-2], -1, width)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.split(ctx.heights, dim=-2)[ctx.rank], None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, part: Tensor, lengths: list[int], group: SpatialGroup) -> Tensor:
        ctx.lengths, ctx.group = lengths, group
        return group.gather(part, lengths)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.group.sum_of_own(gradient, ctx.lengths), None, None
