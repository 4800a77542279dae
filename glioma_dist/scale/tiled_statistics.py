"""Mean and variance for norms: over an image too large to be widened at once, and over the processes of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.scale.tile_size import CPU_ELEMENTS, TileSize, default_tile_size, dense

CHUNK_NUMBERS = CPU_ELEMENTS
"""Elements of a map that are converted to fp32 at once on a CPU, if no size of tiles is given."""


class Statistics(Protocol):
    """Mean and variance that a norm takes of a map, and what their gradients add to the map's."""

    size: TileSize | None

    @property
    def fixed(self) -> bool:
        """Whether they do not depend on the map."""

    def of_parts(self, parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """parts: (B, C, some rows, W) in fp32 at least, together a map. Returns mean and variance, of a shape that
        `normalise_with` takes."""

    def sums_of(self, gradients: list[Tensor]) -> list[Tensor]:
        """Gradients of mean and variance, by which `gradient_of_part` knows those of the map: summed over the
        processes."""

    def gradient_of_part(self, values: Tensor, mean: Tensor, sums: list[Tensor]) -> Tensor:
        """What they add to the gradient of `values`, some rows of the map; fp32 at least."""


def statistics_of(statistics: Statistics, features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a map (B, C, H, W) that is there as a whole."""
    size = statistics.size
    return statistics.of_parts(_widened(values, features, size) for values in chunks(features, size))


def add_gradient(
    statistics: Statistics, total: Tensor, features: Tensor, mean: Tensor, gradients: list[Tensor]
) -> None:
    """Add to `total` (B, C, H, W), in place, what gradients of mean and variance give."""
    if statistics.fixed:
        return
    sums = statistics.sums_of(gradients)
    for part, values in zip(chunks(total, statistics.size), chunks(features, statistics.size), strict=True):
        part += statistics.gradient_of_part(values, mean, sums)


class BatchStatistics:
    """Of a BatchNorm2d: per channel, over the batch, and over all processes where `over_processes`.

    In evaluation mode they are the running ones, where the norm keeps any; in training mode these are updated.
    """

    def __init__(
        self, norm: nn.BatchNorm2d | nn.SyncBatchNorm, over_processes: bool, size: TileSize | None = None
    ) -> None:
        # As PyTorch's SyncBatchNorm: in evaluation mode each process is on its own.
        self.norm, self.over_processes, self.size = norm, over_processes and norm.training, size
        self.fixed = not norm.training and norm.running_mean is not None
        """In whatever mode the norm is when the gradients are asked for."""

    def of_parts(self, parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns mean and variance (C,)."""
        if self.fixed:
            return self.norm.running_mean, self.norm.running_var
        mean, variance, self.count = _batch_moments(parts, self.over_processes)
        if self.norm.training:
            update_running(self.norm, mean, variance, self.count)
        return mean, variance

    def sums_of(self, gradients: list[Tensor]) -> list[Tensor]:
        both = torch.cat(gradients)
        if self.over_processes and dist.is_initialized():
            dist.all_reduce(both)
        return [each.view(1, -1, 1, 1) for each in (both / self.count).chunk(2)]

    def gradient_of_part(self, values: Tensor, mean: Tensor, sums: list[Tensor]) -> Tensor:
        of_mean, of_variance = sums
        # d mean / d x = 1 / n; d variance / d x = 2 (x - mean) / n
        return of_mean + 2 * of_variance * (values.to(mean.dtype) - mean.view(1, -1, 1, 1))


class GroupStatistics:
    """Of a GroupNorm: per image and group of channels, over all tiles of the image."""

    def __init__(self, norm: nn.GroupNorm, group: SpatialGroup, size: TileSize | None = None) -> None:
        self.num_groups, self.spatial_group, self.size = norm.num_groups, group, size

    @property
    def fixed(self) -> bool:
        """Never: a group norm keeps no running statistics."""
        return False

    def of_parts(self, parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns mean and variance (B, groups)."""
        found = []
        for values in parts:
            wide = values.unflatten(1, (self.num_groups, -1))
            variance, mean = torch.var_mean(wide, dim=(2, 3, 4), correction=0)
            found.append(torch.stack([mean, variance, torch.full_like(mean, wide[0, 0].numel())]))
        moments = torch.stack(found).flatten(2)
        if self.spatial_group.size > 1:
            here = torch.stack(join_moments(*moments.unbind(1)))
            moments = self.spatial_group.gather(here[None, None], [3] * self.spatial_group.size).unflatten(2, (-1, 3))[
                0, 0
            ]
        mean, variance, count = (each.view(mean.shape) for each in join_moments(*moments.unbind(1)))
        self.count = count
        return mean, variance

    def sums_of(self, gradients: list[Tensor]) -> list[Tensor]:
        both = self.spatial_group.all_reduce(torch.stack(gradients))
        shape = (*self.count.shape, 1, 1, 1)
        return [each.view(shape) for each in (*both, self.count)]

    def gradient_of_part(self, values: Tensor, mean: Tensor, sums: list[Tensor]) -> Tensor:
        of_mean, of_variance, count = sums
        wide = values.to(mean.dtype).unflatten(1, (self.num_groups, -1))
        return ((of_mean + 2 * of_variance * (wide - mean.view(count.shape))) / count).flatten(1, 2)


def normalise_with(norm: nn.Module, features: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """What `norm` makes of `features` (B, C, H, W) with the statistics given, in the type of `features`."""
    shape = (1, -1, 1, 1)
    if isinstance(norm, nn.GroupNorm):
        per_group = features.shape[1] // norm.num_groups
        mean, variance = (each.repeat_interleave(per_group, dim=1)[..., None, None] for each in (mean, variance))
    else:
        mean, variance = mean.view(shape), variance.view(shape)
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.view(shape)
    normalised = (features - mean) * scale
    return (normalised if norm.bias is None else normalised + norm.bias.view(shape)).to(features.dtype)


def batch_moments(
    features: Tensor, over_processes: bool, size: TileSize | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), variance (C,) and number of pixels (), over (B, H, W) and over the processes; fp32 at least."""
    return _batch_moments((_widened(values, features, size) for values in chunks(features, size)), over_processes)


def _batch_moments(parts: Iterable[Tensor], over_processes: bool) -> tuple[Tensor, Tensor, Tensor]:
    found = []
    for values in parts:
        variance, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
        found.append(torch.cat([mean, variance, mean.new_full((1,), values.numel() // values.shape[1])]))
    moments = torch.stack(found)
    if over_processes and dist.is_initialized():
        here = torch.cat([each.flatten() for each in join_moments(*_split(moments))])
        moments = here.new_empty(dist.get_world_size(), len(here))
        dist.all_gather_into_tensor(moments.flatten(), here)
    return join_moments(*_split(moments))


def join_moments(means: Tensor, variances: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means and variances (parts, …) of `counts` (parts,) numbers each, joined to those of all: Chan, Golub and
    LeVeque 1979, which does not lose the digits that E[x^2] - E[x]^2 does. counts: (parts,), or as means."""
    count = counts.sum(0)
    shares = (counts / count).view(len(means), -1, *(1,) * (means.ndim - 2))
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean) ** 2)).sum(0), count


@torch.no_grad()
def update_running(norm: nn.Module, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """Move a batch norm's running statistics as PyTorch does: by `momentum`, or to the mean of all batches so far where
    that is None; the variance unbiased. A norm that keeps none is left alone."""
    if norm.running_mean is None:
        return
    norm.num_batches_tracked += 1
    share: float | Tensor | None = norm.momentum
    if share is None:  # not read: on a GPU the CPU would wait for it
        share = norm.num_batches_tracked.double().reciprocal().to(norm.running_mean.dtype)
    unbiased = variance * (count / (count - 1).clamp(min=1))
    norm.running_mean.lerp_(mean.to(norm.running_mean), share)
    norm.running_var.lerp_(unbiased.to(norm.running_var), share)


def chunks(features: Tensor, size: TileSize | None = None) -> Iterator[Tensor]:
    """Views of some rows each, of (B, C, H, W), together all of it."""
    numbers = CHUNK_NUMBERS if features.device.type == "cpu" else default_tile_size(features.device).widened
    numbers = size.widened if size else numbers
    rows = max(1, numbers // (features.numel() // features.shape[2]))
    yield from features.split(rows, dim=2)


def _widened(values: Tensor, features: Tensor, size: TileSize | None) -> Tensor:
    """A chunk of `features` in fp32, or fp64 for fp64."""
    size = size or default_tile_size(features.device)
    return dense(values.to(torch.promote_types(features.dtype, torch.float32)), features, size)


def _split(moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(parts, 2 C + 1) to means (parts, C), variances (parts, C), counts (parts,)."""
    means, variances = moments[:, :-1].chunk(2, dim=1)
    return means, variances, moments[:, -1]
