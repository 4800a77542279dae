"""The transformer layers of a Mix Transformer (`mit.py`): efficient self-attention and Mix-FFN, whole or in tiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from glioma_dist.model.layer_norm import StreamLayerNorm

FFN_RATIO = 4
AUTHORS_EPSILON = 1e-6
"""In the norms of layers and stages, as in SegFormer's released code, with which its weights were trained; the other
norms have PyTorch's 1e-5."""


class Layer(nn.Module):
    """A transformer layer: attention and Mix-FFN, each with a norm before and the residual around both."""

    def __init__(self, channels: int, num_heads: int, reduction: int, tiles_attention: bool = False) -> None:
        super().__init__()
        self.layernorm_before = StreamLayerNorm(channels, eps=AUTHORS_EPSILON)
        self.attention = EfficientSelfAttention(channels, num_heads, reduction)
        self.layernorm_after = StreamLayerNorm(channels, eps=AUTHORS_EPSILON)
        self.mlp = MixFFN(channels)
        self.tiles_attention = tiles_attention
        self.run_tiles: Callable[..., Tensor] | None = None

    def forward(
        self,
        tokens: Tensor,
        height: int,
        width: int,
        scales: tuple[Tensor, Tensor] | None = None,
        in_tiles: bool = False,
    ) -> Tensor:
        """tokens: (B, height * width, C). scales: (B, 1, 1) of the two branches. in_tiles: whether the layer runs in
        tiles of rows as a whole, if it can. Returns the same shape."""
        of_attention, of_mlp = (None, None) if scales is None else scales
        if in_tiles and self.run_tiles is not None:
            return as_tokens(self._run_tiles(as_map(tokens, height, width), of_attention, of_mlp))
        tokens = _joined(self.attention(self.layernorm_before(tokens), height, width), tokens, of_attention)
        return _joined(self.mlp(self.layernorm_after(tokens), height, width), tokens, of_mlp)

    def _run_tiles(self, features: Tensor, of_attention: Tensor | None, of_mlp: Tensor | None) -> Tensor:
        """features: (B, C, H, W). Only the map before each branch is kept, and in attention the normalised one, of
        which keys and values are made."""

        def attend(part: Tensor, key: Tensor, value: Tensor) -> Tensor:
            tokens = as_tokens(part)
            branch = self.attention.attend_to(self.attention.queries(self.layernorm_before(tokens)), key, value)
            return as_map(_joined(branch, tokens, of_attention), *part.shape[2:])

        def mix(part: Tensor) -> Tensor:
            tokens = as_tokens(part)
            branch = self.mlp.compute_tile(self.layernorm_after(tokens), *part.shape[2:])
            return as_map(_joined(branch, tokens, of_mlp), *part.shape[2:])

        attention, size, inner_channels = self.attention, features.shape[2:], self.mlp.fc1.out_features
        tokens = as_tokens(features)
        if self.tiles_attention:
            used = (self.layernorm_before, attention.q_proj, attention.o_proj)
            # In fp32 at least, as their gradients are summed over the tiles.
            found = attention.keys_and_values(self.layernorm_before(tokens), *size)
            shared = [each.to(torch.promote_types(each.dtype, torch.float32)) for each in found]
            weights = [weight for module in used for weight in module.parameters()]
            features = self.run_tiles(attend, [features], weights, inner_channels, shared=shared, halo=0)
        else:
            features = as_map(_joined(attention(self.layernorm_before(tokens), *size), tokens, of_attention), *size)
        weights = [*self.layernorm_after.parameters(), *self.mlp.parameters()]
        return self.run_tiles(mix, [features], weights, inner_channels)


def _joined(branch: Tensor, tokens: Tensor, scale: Tensor | None) -> Tensor:
    """The residual connection around a branch, which stochastic depth scales."""
    return (branch if scale is None else branch * scale.to(branch.dtype)) + tokens


class EfficientSelfAttention(nn.Module):
    """Multi-head attention to keys and values of squares of tokens, by PyTorch's fused kernel: no attention matrix is
    ever held."""

    def __init__(self, channels: int, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (channels // num_heads) ** -0.5
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.o_proj = nn.Linear(channels, channels)
        self.sequence_reduction = SequenceReduction(channels, reduction) if reduction > 1 else None
        self.gather_tokens: Callable[[Tensor], Tensor] | None = None
        self.attend: Callable[[Tensor, Tensor, Tensor, float], Tensor] = attend

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """tokens: (B, height * width, C). Returns the same shape."""
        query = self.queries(tokens)  # first: gradients of the tokens are summed in the opposite order
        return self.attend_to(query, *self.keys_and_values(tokens, height, width))

    def queries(self, tokens: Tensor) -> Tensor:
        """tokens: (B, any number, C). Returns (B, heads, as many, C / heads)."""
        return self._heads(self.q_proj(tokens))

    def keys_and_values(self, tokens: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """tokens: (B, height * width, C). Returns (B, heads, fewer tokens, C / heads) each, those of all strips."""
        reduced = tokens if self.sequence_reduction is None else self.sequence_reduction(tokens, height, width)
        key, value = self._heads(self.k_proj(reduced)), self._heads(self.v_proj(reduced))
        if self.gather_tokens is not None:
            key, value = self.gather_tokens(torch.cat([key, value], dim=-1)).chunk(2, dim=-1)
        return key, value

    def attend_to(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What each query (B, heads, any number, C / heads) finds in all keys and values. Returns tokens (B, as many,
        C)."""
        attended = self.attend(query, key.to(query.dtype), value.to(query.dtype), self.scale)
        return self.o_proj(attended.transpose(1, 2).contiguous().flatten(2))

    def _heads(self, tokens: Tensor) -> Tensor:
        """(B, tokens, C) to (B, heads, tokens, C / heads)."""
        return tokens.view(*tokens.shape[:2], self.num_heads, -1).transpose(1, 2)


class SequenceReduction(nn.Module):
    """Squares of tokens, each to one: a convolution whose stride is its side, and a norm."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.sequence_reduction = nn.Conv2d(channels, channels, side, side)
        self.layer_norm = StreamLayerNorm(channels)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """tokens: (B, height * width, C). Returns (B, fewer, C)."""
        return self.layer_norm(as_tokens(self.sequence_reduction(as_map(tokens, height, width))))


class MixFFN(nn.Module):
    """Two linear layers, and between them a depthwise 3x3 convolution, by which tokens learn where they are."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = FFN_RATIO * channels
        self.fc1 = nn.Linear(channels, inner)
        self.dwconv = nn.ModuleDict({"dwconv": nn.Conv2d(inner, inner, 3, padding=1, groups=inner)})
        self.fc2 = nn.Linear(inner, channels)
        self.run_tiles: Callable[..., Tensor] | None = None

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """tokens: (B, height * width, C). Returns the same shape."""
        if self.run_tiles is None:
            return self._compute(tokens, height, width, self.dwconv["dwconv"])
        features = as_map(tokens, height, width)
        return as_tokens(self.run_tiles(self._compute_map, [features], list(self.parameters()), self.fc1.out_features))

    def compute_tile(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """The same of a tile, which brings the neighbours' rows with it."""
        return self._compute(tokens, height, width, partial(nn.Conv2d.forward, self.dwconv["dwconv"]))

    def _compute(self, tokens: Tensor, height: int, width: int, convolve: Callable[[Tensor], Tensor]) -> Tensor:
        tokens = self.fc1(tokens)
        tokens = as_tokens(convolve(as_map(tokens, height, width)))
        tokens = functional.gelu(tokens)
        return self.fc2(tokens)

    def _compute_map(self, features: Tensor) -> Tensor:
        return as_map(self.compute_tile(as_tokens(features), *features.shape[2:]), *features.shape[2:])


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """(B, heads, tokens, C) each. Returns the shape of `query`."""
    return functional.scaled_dot_product_attention(query, key, value, scale=scale)


def as_tokens(features: Tensor) -> Tensor:
    """(B, C, H, W) to (B, HW, C)."""
    return features.flatten(2).transpose(1, 2)


def as_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, HW, C) to (B, C, H, W), a view."""
    channels_first = tokens.transpose(1, 2)
    # Not `unflatten`, of which an exported graph would remember the numbers.
    return channels_first.view(*channels_first.shape[:2], height, width)
