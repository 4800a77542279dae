"""Some layers of a Mix Transformer, as activation checkpointing takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor


class MitSegment(NamedTuple):
    """What `Stage.compute_layers` computes."""

    stage: Any
    """A `Stage` of mit.py."""
    layers: range
    branches: list[tuple[Tensor, Tensor] | None]

    def __call__(self, features: Tensor) -> Tensor:
        """Compute the layers."""
        return self.stage.compute_layers(self.layers, self.branches, features)

    def parameters(self) -> Iterator[Tensor]:
        """Give all weights that the layers use."""
        yield from self.stage.patch_embeddings.parameters() if self.layers.start == 0 else ()
        for number in self.layers:
            yield from self.stage.blocks[number].parameters()
        yield from self.stage.layer_norm.parameters() if self.layers.stop == len(self.stage.blocks) else ()
