"""A layer of the Mix Transformer where nothing is trained: a few rows of tokens at a time, in place.

Beside the stage's tokens only keys and values exist for the whole image. No row is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from glioma_dist.evaluation.forward_decoder import rows_at_once
from glioma_dist.model.encoders.mit_layers import FFN_RATIO, Layer, MixFFN, as_map, as_tokens


class ForwardLayer(Layer):
    """A layer in evaluation mode and without gradients, for one image at a time; its weights and their names stay."""

    def forward(
        self,
        tokens: Tensor,
        height: int,
        width: int,
        scales: tuple[Tensor, Tensor] | None = None,
        in_tiles: bool = False,
    ) -> Tensor:
        """As Layer's; `tokens` are changed in place."""
        if len(tokens) > 1 or not tokens.is_contiguous() or torch.is_autocast_enabled(tokens.device.type):
            return super().forward(tokens, height, width, scales, in_tiles)
        self._attend(tokens, height, width)
        self._mix(tokens, height, width)
        return tokens

    def _attend(self, tokens: Tensor, height: int, width: int) -> None:
        """Add what attention makes of the tokens. tokens: (1, height * width, C)."""
        layer, channels = self.attention, tokens.shape[2]
        reduction = layer.sequence_reduction
        side = 1 if reduction is None else reduction.sequence_reduction.stride[0]
        rows = rows_at_once(2 * channels * width)
        found = []
        for part, num_rows in _parts(tokens, height, width, -(-rows // side) * side):
            part = self.layernorm_before(part)
            part = part if reduction is None else reduction(part, num_rows, width)
            found.append((layer._heads(layer.k_proj(part)), layer._heads(layer.v_proj(part))))
        key, value = (torch.cat(each, dim=2) for each in zip(*found, strict=True))
        if layer.gather_tokens is not None:
            key, value = layer.gather_tokens(torch.cat([key, value], dim=-1)).chunk(2, dim=-1)
        for part, _ in _parts(tokens, height, width, rows):
            part += layer.attend_to(layer.queries(self.layernorm_before(part)), key, value)

    def _mix(self, tokens: Tensor, height: int, width: int) -> None:
        """Add what the Mix-FFN makes of the tokens. tokens: (1, height * width, C)."""
        layer, inner = self.mlp, FFN_RATIO * tokens.shape[2]
        rows = min(height, rows_at_once(inner * width))
        # Rows of the inner map: two of the rows before, then new ones. Beyond the image they are 0.
        held = tokens.new_empty((rows + 2) * width, inner)
        held[: 2 * width] = 0
        edges = [*range(0, height, rows), height]
        num_before = 1
        for start, stop in pairwise(edges):
            # One row ahead of the output, which the convolution needs; that row's tokens are still the old ones.
            until = min(stop + 1, height)
            first = start + (start > 0)
            new = tokens[0, first * width : until * width]
            stop_held = (num_before + until - first) * width
            torch.addmm(
                layer.fc1.bias,
                self.layernorm_after(new),
                layer.fc1.weight.t(),
                out=held[num_before * width : stop_held],
            )
            if until < stop + 1:
                held[stop_held : stop_held + width] = 0
                stop_held += width
            tokens[0, start * width : stop * width] += _mixed(layer, held[:stop_held], width)
            held[: 2 * width] = held[stop_held - 2 * width : stop_held].clone()
            num_before = 2


def _mixed(layer: MixFFN, held: Tensor, width: int) -> Tensor:
    """held: (rows + 2) * width tokens of the inner map. Returns (rows * width, C)."""
    convolution: Any = layer.dwconv["dwconv"]
    features = as_map(held[None], len(held) // width, width)
    features = functional.conv2d(
        features, convolution.weight, convolution.bias, padding=(0, 1), groups=convolution.groups
    )
    return layer.fc2(functional.gelu(as_tokens(features)[0]))


def _parts(tokens: Tensor, height: int, width: int, rows: int) -> Iterator[tuple[Tensor, int]]:
    """`rows` rows of tokens at a time, as views, and how many they are."""
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        yield tokens[:, start * width : stop * width], stop - start
