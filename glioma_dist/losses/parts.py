"""Images of which each process has only a part: what a loss needs to know of the rest."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Parts(Protocol):
    """The processes that share each image by its rows. `SpatialGroup` is one; `WholeImages` is a process alone.

    All processes of a group compute the same loss. So gradients need no sum over them: each takes its own rows'.
    """

    def total(self, sums: Tensor) -> Tensor:
        """Sums over this process's part of each image to sums over the whole images."""

    def whole(self, part: Tensor) -> Tensor:
        """part: (B, …, rows of this process, W). Returns the whole images (B, …, H, W), with their gradients."""

    def own(self, whole: Tensor) -> Tensor:
        """whole: (B, …, H, W). Returns the rows of this process."""


class WholeImages:
    """A process that has whole images."""

    def total(self, sums: Tensor) -> Tensor:
        return sums

    def whole(self, part: Tensor) -> Tensor:
        return part

    def own(self, whole: Tensor) -> Tensor:
        return whole


WHOLE = WholeImages()
