"""The decoder where nothing is trained: a few rows at a time pass through all its blocks.

Each operation keeps the last rows of its input, so no row is computed twice and no map of the image's own size exists
but the logits. Batch norm and ReLU write over what a convolution returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from glioma_dist.model.decoder import BilinearDecoder, DecoderBlock
from glioma_dist.model.upsampling import upsample

ELEMENTS_PER_THREAD = 2**20
"""Of the widest map of a part: 4 MiB, about a core's cache. Smaller parts start more operations; with larger ones a map
leaves the cache between two operations."""


def rows_at_once(elements_per_row: int) -> int:
    """Return how many rows of a feature map are computed together."""
    return max(1, ELEMENTS_PER_THREAD * torch.get_num_threads() // elements_per_row)


class Convolution(NamedTuple):
    """A 3x3 convolution with padding 1, and batch norm and ReLU in place behind it. It shares the layer's weights."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None = None
    """(1, C, 1, 1), of the batch norm; None: there is none, and no ReLU."""
    shift: Tensor | None = None

    @classmethod
    def normalised(cls, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Convolution:
        """Return the convolution that computes ReLU(norm(convolution(x))) in evaluation mode."""
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or variance is None:
            raise ValueError("a batch norm without running statistics")
        scale = norm.weight / torch.sqrt(variance + norm.eps)
        shift = norm.bias - mean * scale
        scale, shift = (each.detach().view(1, -1, 1, 1) for each in (scale, shift))
        return cls(convolution.weight.detach(), convolution.bias, scale, shift)

    def __call__(self, rows: Tensor) -> Tensor:
        """rows: (B, C, R, W). Returns (B, C', R - 2, W): rows at the image's border come with those beyond it."""
        rows = functional.conv2d(rows, self.weight, self.bias, padding=(0, 1))
        if self.scale is None or self.shift is None:
            return rows
        return torch.addcmul(self.shift, rows, self.scale, out=rows).relu_()


class _StreamedConvolution:
    """A convolution that gets its input a few rows at a time."""

    def __init__(self, convolution: Convolution) -> None:
        self._convolution = convolution
        self._held: Tensor | None = None

    def push(self, parts: list[Tensor], is_last: bool) -> Tensor | None:
        """Return the next rows of the output, those whose inputs are all there.

        parts: maps (B, C_i, R, W) that are joined along the channels. is_last: they end the map.
        """
        first, held = parts[0], self._held
        num_held = 1 if held is None else held.shape[2]  # at the top a row of zeros
        num_rows = num_held + first.shape[2] + is_last
        shape = (first.shape[0], sum(each.shape[1] for each in parts), num_rows, first.shape[3])
        joined = torch.empty(shape, dtype=first.dtype, memory_format=torch.channels_last)
        joined[:, :, :num_held] = 0 if held is None else held
        if is_last:
            joined[:, :, -1] = 0
        start = 0
        for each in parts:
            joined[:, start : start + each.shape[1], num_held : num_held + each.shape[2]] = each
            start += each.shape[1]
        # A copy: a view would hold on to all rows.
        self._held = None if is_last else joined[:, :, -2:].clone(memory_format=torch.channels_last)
        return self._convolution(joined) if num_rows > 2 else None


class _StreamedUpsampling:
    """Bilinear upsampling to twice the size of a map that comes a few rows at a time."""

    def __init__(self) -> None:
        self._held: Tensor | None = None

    def push(self, rows: Tensor, is_last: bool) -> Tensor:
        """rows: (B, C, R, W). Returns the next rows of (B, C, 2H, 2W): two a row, one row late."""
        if self._held is not None:
            rows = torch.cat([self._held, rows], dim=2)
        doubled = upsample(rows.contiguous(memory_format=torch.channels_last))
        start, stop = 0 if self._held is None else 1, doubled.shape[2] - (not is_last)
        self._held = rows[:, :, -1:].clone(memory_format=torch.channels_last)
        return doubled[:, :, start:stop]


class _StreamedBlock:
    """A decoder block whose input comes a few rows at a time. skip: the encoder's map that it joins, as a whole."""

    def __init__(self, convolutions: list[Convolution], skip: Tensor | None) -> None:
        self._upsampling = _StreamedUpsampling()
        self._first, *others = map(_StreamedConvolution, convolutions)
        self._others = others
        self._skip, self._num_done = skip, 0

    def push(self, rows: Tensor, is_last: bool) -> Tensor | None:
        """rows: (B, C, R, W). Returns the next rows of the output, or None where more are needed."""
        doubled = self._upsampling.push(rows, is_last)
        parts = [doubled]
        if self._skip is not None:
            parts.append(self._skip[:, :, self._num_done : self._num_done + doubled.shape[2]])
        self._num_done += doubled.shape[2]
        output = self._first.push(parts, is_last)
        for each in self._others:
            if output is None:
                return None
            output = each.push([output], is_last)
        return output


class StreamedDecoder(BilinearDecoder):
    """A decoder with batch norm, in evaluation mode and without gradients; its weights and their names stay."""

    convolutions: list[list[Convolution]]
    """Of each block; the last block's end with the head."""

    def forward(self, encoder_features: list[Tensor]) -> Tensor:
        """As BilinearDecoder's."""
        features = self.center(encoder_features[-1])
        batch, _, height, width = features.shape
        scale = 2 ** len(self.blocks)
        logits = features.new_empty(batch, self.head.out_channels, height * scale, width * scale)
        blocks = [_StreamedBlock(*each) for each in zip(self.convolutions, self.skips(encoder_features), strict=True)]
        row = 0
        for part in _run(blocks, features, True):
            logits[:, :, row : row + part.shape[2]] = part
            row += part.shape[2]
        return logits


def convolutions_of(decoder: BilinearDecoder) -> list[list[Convolution]] | None:
    """Return the convolutions of each block, the last with the head. None if there is another norm than batch norm,
    because its statistics are those of a whole map."""
    found = []
    for block in decoder.blocks:
        if not isinstance(block, DecoderBlock):
            return None
        pairs: list[tuple[Any, Any]] = [(block.conv1, block.norm1), (block.conv2, block.norm2)]
        if not all(type(norm) is nn.BatchNorm2d for _, norm in pairs):
            return None
        found.append([Convolution.normalised(*pair) for pair in pairs])
    found[-1].append(Convolution(decoder.head.weight.detach(), decoder.head.bias))
    return found


def _run(blocks: list[_StreamedBlock], rows: Tensor, is_last: bool) -> Iterator[Tensor]:
    """Push rows through all blocks, so many at a time as fit in a cache."""
    if not blocks:
        yield rows
        return
    block, *others = blocks
    height = rows_at_once(4 * rows.shape[0] * rows.shape[1] * rows.shape[3])
    for start in range(0, rows.shape[2], height):
        ends = is_last and start + height >= rows.shape[2]
        output = block.push(rows[:, :, start : start + height], ends)
        if output is not None:
            yield from _run(others, output, ends)
