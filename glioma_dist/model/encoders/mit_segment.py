"""Some layers of a Mix Transformer, as activation checkpointing takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor


class Part(NamedTuple):
    """Of a stage."""

    layers: range
    embeds: bool = False
    """Whether the patch embedding comes before the layers."""
    ends: bool = False
    """Whether the stage's norm comes behind them."""


class MitSegment(NamedTuple):
    """What `Stage.compute_layers` computes."""

    stage: Any
    """A `Stage` of mit.py."""
    part: Part
    branches: list[tuple[Tensor, Tensor] | None]
    """For each layer what stochastic depth makes of its two branches."""
    in_tiles: bool
    """Whether layers run in tiles as a whole, where they can."""

    def __call__(self, features: Tensor) -> Tensor:
        """Compute the layers."""
        return self.stage.compute_layers(self, features)

    def parameters(self) -> Iterator[Tensor]:
        """Give all weights that the layers use."""
        yield from self.stage.patch_embeddings.parameters() if self.part.embeds else ()
        for number in self.part.layers:
            yield from self.stage.blocks[number].parameters()
        yield from self.stage.layer_norm.parameters() if self.part.ends else ()
