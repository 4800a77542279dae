"""Whether what a backward pass needs is still what it was: of what autograd does not keep, and so does not check."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Version(NamedTuple):
    """How often a tensor had been changed in place when it was kept."""

    counted: Tensor
    """The tensor, or one of its type that is counted with it."""
    number: int
    size: torch.Size

    @classmethod
    def of(cls, tensor: Tensor, counted: Tensor | None = None) -> Version:
        """counted: stands for the tensor, whose memory it does not hold."""
        counted = tensor if counted is None else counted
        return cls(counted, counted._version, tensor.shape)

    def check(self) -> None:
        """Raise what autograd raises, where the tensor has been changed in place since."""
        if self.counted._version != self.number:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"[{self.counted.type()} {list(self.size)}] is at version {self.counted._version}; expected version "
                f"{self.number} instead. Hint: enable anomaly detection to find the operation that failed to compute "
                "its gradient, with torch.autograd.set_detect_anomaly(True)."
            )


class WeightVersions:
    """Of the weights of a part that is computed again."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        with torch._C.DisableTorchFunction():  # spatial parallelism sees all functions of strips; these are none
            is_trained = torch.is_grad_enabled()
            self._known = [Version.of(each) for each in weights if not each.is_inference()] if is_trained else []

    def check(self) -> None:
        """As `Version.check`. What an optimizer moves in the backward pass is moved when no part needs it any more."""
        with torch._C.DisableTorchFunction():
            for each in self._known:
                if not each.counted._post_accumulate_grad_hooks:
                    each.check()
