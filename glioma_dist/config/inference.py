"""Settings for evaluating a checkpoint and predicting with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from glioma_dist.config.byte_size import parse_bytes
from glioma_dist.config.paths import InputPath, OptionalOutputPath, OutputPath, PathOrUrl
from glioma_dist.config.scale import InferenceScaleConfig
from glioma_dist.errors import InputError
from glioma_dist.limits import check_workers
from glioma_dist.size import SizeFlag


@dataclass(frozen=True)
class EvaluateConfig:
    """Score a checkpoint on shards with Dice, as the article defines it: DS(x, y, R1, R2)."""

    checkpoint: InputPath
    """A checkpoint folder or its URL, for example runs/x/best; or t98g-small, a network that comes with the package."""
    data: PathOrUrl
    """Folder or URL of shards."""
    input_size: SizeFlag | None = None
    """R1: size to which an image is scaled for the network. By default: each image's own size."""
    metric_size: SizeFlag | None = None
    """R2: size to which the output and the reference mask are scaled for Dice. By default: each image's own size."""
    out: OptionalOutputPath = None
    """JSON file to write the scores to: a path or a URL."""
    workers: int = 2
    """Worker processes per evaluating process that read images ahead."""
    scale: InferenceScaleConfig = field(default_factory=InferenceScaleConfig)

    def validate(self) -> None:
        if isinstance(self.out, Path) and self.out.is_dir():
            raise InputError(f"--out {self.out} is a folder; name a JSON file in it")
        check_workers("--workers", self.workers)


@dataclass(frozen=True)
class PredictConfig:
    """Segment images: write a mask and an overlay for each TIFF, PNG or JPEG, and summary.csv."""

    checkpoint: InputPath
    """A checkpoint folder or its URL, for example runs/x/best; or t98g-small, a network that comes with the package."""
    images: PathOrUrl
    """A folder, a file, or a pattern in quotes, for example 'plates/**/*.tif', here or at a URL. JPEGs beside TIFFs or
    PNGs are taken for previews and not read."""
    out: OutputPath
    """Folder or URL for the masks, overlays and summary.csv."""
    input_size: SizeFlag | None = None
    """Size to which an image is scaled for the network. By default: the training size if the checkpoint was trained
    with --data.transform resize, else each image's own size. The mask always has the image's own size."""
    threshold: float = 0.5
    """A pixel belongs to a cell if its probability is at least this value."""
    memory: str = "auto"
    """Resident memory that this process may take, for example 4GiB. An image that needs more goes in strips or tiles.
    auto: what is free on this machine now, within the limit of its container or job."""
    scale: InferenceScaleConfig = field(default_factory=InferenceScaleConfig)

    @property
    def memory_bytes(self) -> int | None:
        """`memory` in bytes; None for auto. Raises InputError where it cannot be read."""
        return None if self.memory == "auto" else parse_bytes("--memory", self.memory, "4GiB, or auto")

    def validate(self) -> None:
        _ = self.memory_bytes  # raises if it cannot be read
        if not 0 < self.threshold < 1:
            raise InputError(f"--threshold {self.threshold}: give a probability between 0 and 1")
