"""Batch norms in evaluation mode that write over the map that a convolution gave them, where nothing else reads it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from glioma_dist.model.encoders.contract import Encoder
from glioma_dist.model.modules import rebuild, replace_modules

PROBE_SIDES = 64, 96
TOLERANCE = 1e-4
"""Relative: rounding is far below it, and a map that was written over while somebody needed it far above."""


class _InPlace:
    """What both kinds of norm share."""

    scale: Tensor
    """(1, C, 1, 1)"""
    shift: Tensor

    def _write_over(self, features: Tensor) -> Tensor:
        return torch.addcmul(self.shift, features, self.scale, out=features)


class InPlaceBatchNorm(_InPlace, nn.BatchNorm2d):
    """BatchNorm2d that changes its input."""

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, C, H, W). Returns it."""
        return self._write_over(features)


def normalise_in_place(encoder: Encoder) -> Encoder:
    """Return an encoder, with the weights of `encoder`, whose batch norms write over what a convolution returned.

    It is tried: a norm counts whose input is a convolution's output. If the maps of a drawn image then differ, because
    something else reads that output too, `encoder` itself is returned.
    """
    kinds = _kinds()
    if not any(type(module) in kinds for module in encoder.modules()):
        return encoder
    like = next(encoder.parameters())
    image = torch.linspace(-2, 2, 3 * PROBE_SIDES[0] * PROBE_SIDES[1], dtype=like.dtype).reshape(1, 3, *PROBE_SIDES)
    fitting, expected = _behind_convolutions(encoder, image, kinds)
    changed = copy_sharing(encoder)
    replace_modules(changed, lambda name, module: kinds[type(module)](module) if name in fitting else None)
    found = changed(image)
    same = all(
        (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()
        for ours, theirs in zip(found, expected, strict=True)
    )
    return changed if same else encoder


def copy_sharing(module: nn.Module) -> Any:
    """Modules of their own with the same parameters and buffers."""
    shared: dict[int, Any] = {id(each): each for each in chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, shared)


def _behind_convolutions(
    encoder: Encoder, image: Tensor, kinds: dict[type[nn.Module], Any]
) -> tuple[set[str], list[Tensor]]:
    """Names of the norms that were called once, with a convolution's output; and the maps of the image."""
    outputs: dict[int, Tensor] = {}
    calls: dict[str, list[bool]] = {}

    def after_convolution(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        outputs[id(output)] = output  # which is held, so that no other gets its number

    handles = []
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after_convolution))
        elif type(module) in kinds:

            def before_norm(_module: nn.Module, inputs: tuple, name: str = name) -> None:
                calls.setdefault(name, []).append(id(inputs[0]) in outputs)

            handles.append(module.register_forward_pre_hook(before_norm))
    try:
        maps = encoder(image)
    finally:
        for handle in handles:
            handle.remove()
    return {name for name, seen in calls.items() if seen == [True]}, [each.clone() for each in maps]


def _kinds() -> dict[type[nn.Module], Callable[[nn.Module], nn.Module]]:
    """What takes a norm's place. timm's norm with an activation is known where timm is."""
    kinds: dict[type[nn.Module], Callable[[nn.Module], nn.Module]] = {
        nn.BatchNorm2d: lambda norm: rebuild(norm, InPlaceBatchNorm, **_factors(norm))
    }
    if "timm" in sys.modules:
        from timm.layers.norm_act import BatchNormAct2d

        class InPlaceBatchNormAct(_InPlace, BatchNormAct2d):
            """BatchNormAct2d that changes its input."""

            def forward(self, features: Tensor) -> Tensor:
                """features: (B, C, H, W). Returns a map of this shape."""
                return self.act(self.drop(self._write_over(features)))

        kinds[BatchNormAct2d] = lambda norm: rebuild(norm, InPlaceBatchNormAct, **_factors(norm))
    return kinds


def _factors(norm: nn.BatchNorm2d) -> dict[str, Tensor]:
    """Scale and shift of a norm in evaluation mode."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    return {name: each.detach().view(1, -1, 1, 1) for name, each in (("scale", scale), ("shift", shift))}
