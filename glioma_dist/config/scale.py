"""What a step or an image costs; none of it changes a number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from glioma_dist.errors import InputError
from glioma_dist.registry import ENCODER_NAMES

ROWS_ENCODERS = (*(name for name in ENCODER_NAMES if name.startswith("mit_")), "resnet50", "vgg19")
"""Those whose images may be split over processes; tests/distributed/test_rows.py proves each family."""


def check_rows(rows: int, encoder: str) -> None:
    """Raises InputError where an image cannot be split over `rows` processes."""
    if rows < 1:
        raise InputError(f"--scale.rows {rows}: give 1 or more")
    if rows > 1 and encoder not in ROWS_ENCODERS:
        raise InputError(f"--scale.rows {rows}: not supported with {encoder}; use {', '.join(ROWS_ENCODERS)}")


@dataclass(frozen=True)
class InferenceScaleConfig:
    """What an image costs; it changes no number."""

    rows: int = 1
    """Processes that share each image, a band of its rows each; the number must divide that of the launch."""


@dataclass(frozen=True)
class ScaleConfig:
    """What a step costs; none of it changes a number."""

    recompute: Literal["none", "encoder", "all", "auto"] = "none"
    """What is computed a second time in the backward pass instead of being kept. encoder: its layers, but for
    attention. all: attention too, and the decoder's blocks, the largest maps in bands of rows. auto: the least that
    fits this device's memory, as tools/plan_memory.py counts it."""
    channels_last: bool = False
    """Store maps in channels-last layout, which is faster on tensor cores."""
    compile: bool = False
    """Compile the encoder's layers with torch.compile. Needs a C++ compiler, and takes minutes at the start."""
    rows: int = 1
    """Processes that share each image, a band of its rows each; it must divide the processes of the launch."""
    timeout_s: float = 600.0
    """A process or a worker of the run that does not answer for this many seconds counts as lost."""

    def validate(self, encoder: str) -> None:
        """Check the settings for `encoder`. Raises InputError."""
        check_rows(self.rows, encoder)
        if not 1 <= self.timeout_s < math.inf:
            raise InputError(f"--scale.timeout-s {self.timeout_s}: give 1 second or more")
        if self.rows > 1 and self.compile:
            raise InputError("--scale.rows and --scale.compile cannot be combined; omit one of them")
