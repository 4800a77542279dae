"""The settings that decide how a GPU rounds and in which order it adds. All are set here; none is left to PyTorch.

| setting | default here | reason |
|---|---|---|
| `matmul.allow_tf32`, `cudnn.allow_tf32` | off | fp32 has the same precision on every device; PyTorch's default is TF32 (10 bits of mantissa) for convolutions and fp32 for matrix products |
| `allow_bf16_reduced_precision_reduction`, and of fp16 | off | a weight's gradient is a sum over all pixels; parts of it are not rounded to 8 bits before they are added |
| `allow_fp16_accumulation` | off | the same |
| `cudnn.benchmark` | off | it chooses algorithms by their time, so two equal runs may use different ones |
| `cudnn.deterministic`, `use_deterministic_algorithms` | off | non-deterministic algorithms are faster, but add in an order that differs from run to run |

None of these settings changes what a CPU computes.
"""  # noqa: E501

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from glioma_dist.errors import InputError

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
CUBLAS_VALUES = (":4096:8", ":16:8")
"""Values with which cuBLAS is deterministic (docs.nvidia.com/cuda/cublas, "Results reproducibility")."""


@dataclass(frozen=True)
class Numerics:
    """The settings that a run can choose."""

    tf32: bool = False
    """Round fp32 inputs of matrix products and convolutions to TF32."""
    cudnn_benchmark: bool = False
    """Let cuDNN time its algorithms for each new shape and use the fastest."""
    deterministic: bool = False
    """Use only algorithms that give the same bits in every run."""


@contextmanager
def numerics(chosen: Numerics | None = None) -> Iterator[None]:
    """Context manager that sets PyTorch to `chosen` (by default `Numerics()`), and restores its settings at the end.

    Enter it after the launch is joined, because accelerate may switch TF32 on, and before the GPU computes anything.
    Raises InputError if the environment has a CUBLAS_WORKSPACE_CONFIG that is not deterministic.
    """
    chosen = chosen or Numerics()
    before = {name: read() for name, (read, _) in SETTINGS.items()}
    environment = os.environ.get(CUBLAS)
    try:
        if chosen.deterministic:
            if environment is not None and environment not in CUBLAS_VALUES:
                raise InputError(
                    f"--deterministic: the environment has {CUBLAS}={environment[:40]}, with which cuBLAS is not "
                    f"deterministic; unset it, or set it to {' or '.join(CUBLAS_VALUES)}"
                )
            os.environ.setdefault(CUBLAS, CUBLAS_VALUES[0])
        _apply(_values(chosen))
        yield
    finally:
        _apply(before)
        if environment is None:
            os.environ.pop(CUBLAS, None)


def numerics_in_force() -> dict[str, Any]:
    """The settings in force, as PyTorch reports them, for the record of a run: JSON values by PyTorch's names."""
    cuda = torch.backends.cuda
    return {
        **{name: read() for name, (read, _) in SETTINGS.items()},
        "flash_sdp": cuda.flash_sdp_enabled(),
        "mem_efficient_sdp": cuda.mem_efficient_sdp_enabled(),
        "cudnn_sdp": cuda.cudnn_sdp_enabled(),
        "math_sdp": cuda.math_sdp_enabled(),
        CUBLAS: os.environ.get(CUBLAS),
    }


def _values(chosen: Numerics) -> dict[str, bool]:
    """The value of each of SETTINGS."""
    return {
        "matmul.allow_tf32": chosen.tf32,
        "cudnn.allow_tf32": chosen.tf32,
        **dict.fromkeys(("matmul.tf32", "cudnn.conv.tf32", "cudnn.rnn.tf32"), chosen.tf32),
        "matmul.allow_bf16_reduced_precision_reduction": False,
        "matmul.allow_fp16_reduced_precision_reduction": False,
        "matmul.allow_fp16_accumulation": False,
        "cudnn.benchmark": chosen.cudnn_benchmark and not chosen.deterministic,
        "cudnn.deterministic": chosen.deterministic,
        "deterministic_algorithms": chosen.deterministic,
        "deterministic_algorithms.warn_only": False,
        # Every tensor that is made empty here is written in full before it is read.
        "fill_uninitialized_memory": False,
    }


def _apply(values: dict[str, Any]) -> None:
    for name, value in values.items():
        read, write = SETTINGS[name]
        if value is not None and read() != value:
            write(value)


def _attribute(module: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """Functions that read and write a setting that is an attribute. It reads as None if the process has used both of
    PyTorch's interfaces to TF32 (`allow_tf32`, `fp32_precision`), which PyTorch refuses to read."""

    def read() -> Any:
        try:
            return getattr(module, name)
        except RuntimeError:
            return None

    return read, lambda value: setattr(module, name, value)


def _precision(module: Any) -> tuple[Callable[[], bool], Callable[[bool], None]]:
    """The same of TF32 by PyTorch's newer interface, where it has it: `allow_tf32 = False` leaves on what
    `torch.backends.fp32_precision = "tf32"` has switched on."""

    def read() -> bool:
        return getattr(module, "fp32_precision", None) == "tf32"

    def write(value: bool) -> None:
        if hasattr(module, "fp32_precision"):
            module.fp32_precision = "tf32" if value else "ieee"

    return read, write


def _set_warn_only(value: bool) -> None:
    torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled(), warn_only=value)


SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "matmul.allow_tf32": _attribute(torch.backends.cuda.matmul, "allow_tf32"),
    "cudnn.allow_tf32": _attribute(torch.backends.cudnn, "allow_tf32"),
    # After those before them, which set them too.
    "matmul.tf32": _precision(torch.backends.cuda.matmul),
    "cudnn.conv.tf32": _precision(getattr(torch.backends.cudnn, "conv", None)),
    "cudnn.rnn.tf32": _precision(getattr(torch.backends.cudnn, "rnn", None)),
    "matmul.allow_bf16_reduced_precision_reduction": _attribute(
        torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"
    ),
    "matmul.allow_fp16_reduced_precision_reduction": _attribute(
        torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"
    ),
    "matmul.allow_fp16_accumulation": _attribute(torch.backends.cuda.matmul, "allow_fp16_accumulation"),
    "cudnn.benchmark": _attribute(torch.backends.cudnn, "benchmark"),
    "cudnn.deterministic": _attribute(torch.backends.cudnn, "deterministic"),
    "deterministic_algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    # After the one before it, which sets it too.
    "deterministic_algorithms.warn_only": (torch.is_deterministic_algorithms_warn_only_enabled, _set_warn_only),
    "fill_uninitialized_memory": _attribute(torch.utils.deterministic, "fill_uninitialized_memory"),
}
"""PyTorch's name of each setting -> functions that read and write it."""
