"""Peak speeds of GPUs, and the share of it that a training step uses: model FLOPs utilisation (MFU)."""

from __future__ import annotations

import re

from glioma_dist.config import ModelConfig
from glioma_dist.scale.operations import forward_operations
from glioma_dist.size import Size

TENSOR_TFLOP_S = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200 NVL": 836.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "A30": 165.0,
    "A40": 149.7,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}
"""Dense bf16 on tensor cores with fp32 sums, in 10^12 operations per second. Source: NVIDIA's data sheets of these
products, halved where they assume sparsity; the same figures are in torchtitan's `get_peak_flops` (tools/utils.py)."""
OTHER_PRODUCT = re.compile(r" (mig|grid|laptop|max q|ti|super|d|\d+[abcq]) ")
"""Words of a name that tell a part of a GPU, as NVIDIA's MIG or a virtual GPU (GRID, "A40-8Q"), or another GPU than the
one that the other words name."""
STEP_OVER_FORWARD = 3
"""A backward pass takes the operations of two forward passes (Kaplan et al. 2020, arXiv 2001.08361, section 2.1)."""


def find_peak(device: str, precision: str) -> float | None:
    """TFLOP/s of a device by PyTorch's name for it; None if the table does not have it.

    None in fp32, too: depending on settings, a GPU computes fp32 on tensor cores (TF32), without them, or on both.
    """
    if precision == "fp32":
        return None
    words = f" {re.sub(r'[^a-z0-9]+', ' ', device.lower())} "
    if OTHER_PRODUCT.search(words):
        return None
    return next(
        (peak for name, peak in TENSOR_TFLOP_S.items() if all(f" {word} " in words for word in name.lower().split())),
        None,
    )


def step_operations(encoder: str, size: Size, num_images: int) -> int:
    """Operations of a training step of the network; a multiply-add counts as two.

    Operations that activation checkpointing repeats are not counted (Chowdhery et al. 2022, arXiv 2204.02311, appendix
    B), so a level that repeats more does not get a higher MFU.
    """
    return STEP_OVER_FORWARD * num_images * forward_operations(ModelConfig(encoder=encoder), size)


def utilisation(operations: int, seconds: float, device: str, precision: str, num_devices: int = 1) -> float | None:
    """The share of a device's peak speed that a step uses; None if the peak is not known."""
    peak = find_peak(device, precision)
    return None if peak is None else operations / seconds / num_devices / (peak * 1e12)
