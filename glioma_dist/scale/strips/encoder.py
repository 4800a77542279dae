"""Splits the encoder of a U-Net, whatever it is made of, function by function."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from glioma_dist.config.scale import UNIT_ROWS
from glioma_dist.model.encoders.contract import Encoder, compute
from glioma_dist.model.modules import rebuild, replace_modules
from glioma_dist.scale.batch_norm_layer import OVER_PROCESSES
from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.scale.strips.exchange import own_rows, recut
from glioma_dist.scale.strips.parallel import compute_watched
from glioma_dist.scale.strips.rows import Rows, exact, mark, rows_of, unmark


def split_encoder(encoder: Encoder, group: SpatialGroup) -> None:
    """Have `encoder` compute on this process's strip, in units of rows as `group.cut` cuts them."""
    encoder.__class__ = _split_class(type(encoder))
    encoder.spatial_group, encoder.watched = group, set()
    replace_modules(encoder, lambda _, module: _split_norm(module, group))
    if encoder.run_segment is not compute:
        encoder.run_segment = partial(run_strips, encoder.run_segment, encoder.watched)


class SplitEncoder(Encoder):
    """What the class of a split encoder derives from, too."""

    spatial_group: SpatialGroup
    watched: set

    def forward(self, images: Tensor, seeds: Tensor | None = None) -> list[Tensor]:
        """As the encoder's own, of strips; its maps are cut where the decoder's are."""
        group = self.spatial_group
        rows = Rows(group, 2, tuple(accumulate((units * UNIT_ROWS for units in group.units), initial=0)))
        found = compute_watched(self, super().forward, (mark(images.view_as(images), rows), seeds), {})
        return [_cut_as_images(each, rows) for each in found]


@lru_cache(None)
def _split_class(kind: type[Encoder]) -> type[Encoder]:
    return type(f"Split{kind.__name__}", (SplitEncoder, kind), {})


def _cut_as_images(features: Tensor, images: Rows) -> Tensor:
    here = rows_of(features)
    if here is None:
        return unmark(own_rows(features, images.scaled(features.shape[2])))
    return unmark(recut(features, images.scaled(here.size)))


class StripSegment(nn.Module):
    """A segment of an encoder that may be computed again, outside the encoder's own computation."""

    def __init__(self, segment: Callable[[Tensor], Tensor], watched: set, rows: Rows | None) -> None:
        super().__init__()
        self.segment, self.watched, self.rows = segment, watched, rows
        self.found: Rows | None = None
        """The cut of the output, after a computation."""

    def forward(self, features: Tensor) -> Tensor:
        if self.rows is not None:
            features = mark(features.view_as(features), self.rows)
        # A segment is an object of one computation, the layers in it stay.
        layers = tuple(map(id, self.segment.children())) if isinstance(self.segment, nn.Module) else ()
        output = compute_watched(self, self.segment, (features,), {}, layers)
        self.found = rows_of(output)
        return unmark(output)


@exact
def run_strips(
    run: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor],
    watched: set,
    segment: Callable[[Tensor], Tensor],
    features: Tensor,
) -> Tensor:
    """What `run_segment` is in a split encoder. run: what it was before. watched: the encoder's."""
    if has_torch_function_unary(features):
        return handle_torch_function(run_strips, (features,), run, watched, segment, features)
    part = StripSegment(segment, watched, rows_of(features))
    output = run(part, features)
    return output if part.found is None else mark(output, part.found)


def _split_norm(module: nn.Module, group: SpatialGroup) -> nn.Module | None:
    if not isinstance(module, OVER_PROCESSES):
        return None
    return rebuild(module, _norm_class(type(module)), spatial_group=group)


class StripNorm(nn.Module):
    """What the class of a batch norm over all processes derives from, too: on strips it is exact as it is."""

    spatial_group: SpatialGroup

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, C, rows of this strip, W), or a whole map."""
        if has_torch_function_unary(features):
            return handle_torch_function(compute_norm, (features,), features, self)
        return super().forward(features)


@lru_cache(None)
def _norm_class(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Strip{kind.__name__}", (StripNorm, kind), {})


@exact
def compute_norm(features: Tensor, norm: Any) -> Tensor:
    """What `StripNorm` computes. A whole map is counted by each process of the group, so the running variance is too
    small by the part that makes it unbiased; all else is a mean, and right."""
    rows = rows_of(features)
    if rows is not None:
        return mark(super(StripNorm, norm).forward(features), rows)
    before = None if norm.running_var is None or not norm.training else norm.running_var.clone()
    output = super(StripNorm, norm).forward(features)
    if before is not None:
        group = norm.spatial_group
        once = features.numel() // features.shape[1] * group.dp_size
        share = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
        ratio = _bessel(once) / _bessel(once * group.size)
        with torch.no_grad():
            kept = before * (1 - share)
            norm.running_var.copy_(kept + (norm.running_var - kept) * ratio)
    return output


def _bessel(count: int) -> float:
    return count / max(1, count - 1)
