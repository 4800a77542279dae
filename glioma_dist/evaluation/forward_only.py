"""A U-Net prepared for a CPU that trains nothing: less memory, less time, the same masks.

Maps of the image's own size are computed a few rows at a time, while they are in the processor's cache; convolutions
get their weights in the order in which oneDNN is quickest. Probabilities stay equal to 1e-5; so they are exact but for
rounding. docs/log.md has what each of these brings, and what was tried and brought nothing.
"""

from __future__ import annotations

import torch
from torch import nn

from glioma_dist.evaluation.forward_decoder import StreamedDecoder, fold
from glioma_dist.evaluation.forward_mit import ForwardLayer
from glioma_dist.model.decoder import BilinearDecoder
from glioma_dist.model.encoders.mit import Layer, MitEncoder
from glioma_dist.model.modules import rebuild, replace_modules
from glioma_dist.model.unet import UNet


@torch.no_grad()
def forward_only(model: UNet) -> None:
    """Prepare a model on the CPU, in evaluation mode, for forward passes without gradients.

    Its weights and their names stay, so it can be saved as before. It can't be trained afterwards.
    """

    def replacement(_: str, module: nn.Module) -> nn.Module | None:
        if type(module) is Layer:
            return rebuild(module, ForwardLayer)
        if type(module) is BilinearDecoder:
            convolutions = fold(module)
            return None if convolutions is None else rebuild(module, StreamedDecoder, convolutions=convolutions)
        return None

    replace_modules(model, replacement)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # `contiguous` leaves depthwise weights as they are
    if isinstance(model.encoder, MitEncoder):
        # The order in which tokens lie: the other one is a copy of each stage's map.
        model.encoder.memory_format = torch.channels_last
