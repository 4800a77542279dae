"""What a GPU could compute at best, and how much of it a training step uses: model FLOPs utilisation (MFU)."""

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
"""Dense bf16 on tensor cores with fp32 sums, 10^12 operations a second. Source: NVIDIA's data sheets of these products,
of which those with sparsity are halved; the same figures are in torchtitan's `get_peak_flops` (tools/utils.py)."""
STEP_OVER_FORWARD = 3
"""A backward pass takes two forward passes' operations (Kaplan et al. 2020, arXiv 2001.08361, section 2.1)."""


def find_peak(device: str, precision: str) -> float | None:
    """TFLOP/s of a device by its name, as PyTorch tells it; None where the table has none.

    None in fp32 as well: by its settings a GPU computes it on tensor cores (TF32), beside them, or on both.
    """
    if precision == "fp32":
        return None
    words = f" {re.sub(r'[^a-z0-9]+', ' ', device.lower())} "
    return next(
        (peak for name, peak in TENSOR_TFLOP_S.items() if all(f" {word} " in words for word in name.lower().split())),
        None,
    )


def step_operations(encoder: str, size: Size, num_images: int) -> int:
    """Operations of a training step that the network asks for; a multiply-add is two.

    What activation checkpointing computes a second time is not in it (Chowdhery et al. 2022, arXiv 2204.02311, appendix
    B): a level that computes twice as much is not twice as good.
    """
    return STEP_OVER_FORWARD * num_images * forward_operations(ModelConfig(encoder=encoder), size)


def utilisation(operations: int, seconds: float, device: str, precision: str, num_devices: int = 1) -> float | None:
    """The share of a device's peak that a step uses; None where the peak is not known."""
    peak = find_peak(device, precision)
    return None if peak is None else operations / seconds / num_devices / (peak * 1e12)
