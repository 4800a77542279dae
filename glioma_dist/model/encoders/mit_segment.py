"""Some layers of a Mix Transformer, as activation checkpointing takes them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn


class MitSegment(NamedTuple):
    """What `Stage.compute_layers` computes."""

    stage: Any
    """A `Stage` of mit.py."""
    layers: range
    branches: list[tuple[Tensor, Tensor] | None]

    def __call__(self, features: Tensor) -> Tensor:
        """Compute the layers."""
        return self.stage.compute_layers(self.layers, self.branches, features)

    @property
    def kind(self) -> Hashable:
        """Equal for segments of a forward pass that compute the same, with other weights."""
        return id(self.stage), len(self.layers), self.begins_stage, self.ends_stage

    @property
    def begins_stage(self) -> bool:
        """Whether it embeds the stage's patches first."""
        return self.layers.start == 0

    @property
    def ends_stage(self) -> bool:
        """Whether it normalises the stage's map at last."""
        return self.layers.stop == len(self.stage.blocks)

    def parts(self) -> Iterator[nn.Module]:
        """The modules that it runs, in their order."""
        if self.begins_stage:
            yield self.stage.patch_embeddings
        yield from (self.stage.blocks[number] for number in self.layers)
        if self.ends_stage:
            yield self.stage.layer_norm

    def modules(self) -> Iterator[nn.Module]:
        """As `nn.Module.modules`."""
        return (module for part in self.parts() for module in part.modules())

    def parameters(self) -> Iterator[Tensor]:
        """Give all weights that the layers use."""
        return (weight for part in self.parts() for weight in part.parameters())
