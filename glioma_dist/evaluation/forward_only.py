"""A U-Net for a CPU that trains nothing: less memory, less time, the same masks.

Maps of the image's own size are computed a few rows at a time, while they are in the processor's cache; convolutions
have their weights in the order in which oneDNN is quickest. No step is left out, so the probabilities are the same but
for rounding (1e-5). docs/log.md says what each of these brings, and what brought nothing.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from torch import nn

from glioma_dist.evaluation.forward_decoder import StreamedDecoder, convolutions_of
from glioma_dist.evaluation.forward_mit import ForwardLayer
from glioma_dist.model.decoder import BilinearDecoder
from glioma_dist.model.encoders.mit_layers import Layer
from glioma_dist.model.modules import rebuild, replace_modules
from glioma_dist.model.unet import UNet


@torch.no_grad()
def forward_only(model: UNet) -> UNet:
    """Return a model that computes what `model` does in evaluation mode, without gradients, on a CPU.

    Both share the weights, whose values and names stay; only the order in memory of those of convolutions changes.
    """
    shared: dict[int, Any] = {id(each): each for each in chain(model.parameters(), model.buffers())}
    forward = copy.deepcopy(model, shared).eval()
    for module in forward.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # `contiguous` leaves depthwise weights as they are
    replace_modules(forward, _replacement)
    if forward.encoder.attention_layers():
        # The order in which tokens lie: the other one is a copy of each stage's map.
        forward.encoder.memory_format = torch.channels_last
    return forward


def _replacement(_: str, module: nn.Module) -> nn.Module | None:
    if type(module) is Layer:
        return rebuild(module, ForwardLayer)
    if type(module) is BilinearDecoder:
        convolutions = convolutions_of(module)
        return None if convolutions is None else rebuild(module, StreamedDecoder, convolutions=convolutions)
    return None
