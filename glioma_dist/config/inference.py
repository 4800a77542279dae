"""Evaluation of a checkpoint, and prediction with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from glioma_dist.config.paths import LocalPath, PathOrUrl
from glioma_dist.config.scale import InferenceScaleConfig
from glioma_dist.errors import InputError
from glioma_dist.size import SizeFlag


@dataclass(frozen=True)
class EvaluateConfig:
    """Dice of a checkpoint on shards, as the article measures it: DS(x, y, R1, R2)."""

    checkpoint: Path
    """A checkpoint folder, as runs/x/best."""
    data: PathOrUrl
    """Folder of shards, or the URL of one."""
    input_size: SizeFlag | None = None
    """R1: size to which an image is scaled for the network. By default: each image's own size."""
    metric_size: SizeFlag | None = None
    """R2: size to which output and reference are scaled for Dice. By default: each image's own size."""
    out: Path | None = None
    """JSON file for the scores."""
    workers: int = 2
    """Worker processes that read images ahead, per evaluating process."""
    scale: InferenceScaleConfig = field(default_factory=InferenceScaleConfig)

    def validate(self) -> None:
        if self.out is not None and self.out.is_dir():
            raise InputError(f"--out {self.out} is a folder; name a JSON file in it")
        if self.workers < 0:
            raise InputError(f"--workers {self.workers}: give 0 or more")


@dataclass(frozen=True)
class PredictConfig:
    """Predict cell masks: a mask and an overlay for each TIFF or PNG, and summary.csv."""

    checkpoint: Path
    """A checkpoint folder, as runs/x/best."""
    images: LocalPath
    """A folder, a file, or a pattern in quotes, as 'plates/**/*.tif'."""
    out: Path
    """Folder for the masks, overlays and summary.csv."""
    input_size: SizeFlag | None = None
    """Size to which an image is scaled for the network; by default the training size if the checkpoint was trained with
    --data.transform resize, else each image's own size. The mask always has the image's own size."""
    threshold: float = 0.5
    """Probability from which a pixel belongs to a cell."""
    scale: InferenceScaleConfig = field(default_factory=InferenceScaleConfig)

    def validate(self) -> None:
        if not 0 < self.threshold < 1:
            raise InputError(f"--threshold {self.threshold}: give a probability between 0 and 1")
