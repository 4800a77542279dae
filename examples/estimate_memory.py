"""Estimate the memory of a training step for networks of other libraries, without a GPU and without data.

python examples/estimate_memory.py 704x512 1472x1120
"""

import sys
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

import glioma_dist as gd


def loss_of_logits(logits: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, logits.new_zeros(logits.shape))


def loss_of_torchvision(output: dict[str, Tensor]) -> Tensor:
    return loss_of_logits(output["out"])


def show(name: str, module: nn.Module, loss, sizes: list[gd.Size]) -> None:
    for size in sizes:
        for precision in ("fp32", "bf16"):
            memory = gd.estimate_step_memory(module, (1, 3, size.height, size.width), loss, precision=precision)
            kept = f"{memory.kept / 2**30:.2f} GiB of activations"
            print(f"{name}, {size}, {precision}: {memory.peak / 2**30:.2f} GiB, {kept}")


sizes = [gd.Size.parse(text) for text in sys.argv[1:]]
network = partial(lraspp_mobilenet_v3_large, weights=None, weights_backbone=None)
show("LR-ASPP MobileNetV3", network(num_classes=1), loss_of_torchvision, sizes)
try:
    from segmentation_models_pytorch import Unet
except ImportError:
    print("segmentation_models.pytorch is not installed (pip install 'glioma-dist[bench]'): its U-Net is omitted")
else:
    show("U-Net MiT-B0", Unet("mit_b0", encoder_weights=None, classes=1), loss_of_logits, sizes)
