"""Settings for evaluating a checkpoint and predicting with it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from glioma_dist.config.byte_size import parse_bytes
from glioma_dist.config.paths import InputPath, OptionalOutputPath, OutputPath, PathOrUrl
from glioma_dist.config.places import Places
from glioma_dist.config.scale import InferenceScaleConfig
from glioma_dist.errors import InputError
from glioma_dist.extras import require
from glioma_dist.limits import check_workers
from glioma_dist.registry import writers
from glioma_dist.size import SizeFlag

DEFAULT_FORMATS = ("mask", "overlay")
"""What `predict` writes for each image."""


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
    instances: bool = False
    """Also score cells one by one, at each image's own size: average precision as COCO defines it, F1, and the number
    of cells. The shards must have a number for each cell."""
    raw_weights: bool = False
    """Use the weights as the optimizer left them, also where training has kept their moving average (--ema-decay). By
    default: the average, if the checkpoint has one."""

    def validate(self) -> None:
        if isinstance(self.out, Path) and os.path.isdir(self.out):
            raise InputError(f"--out {self.out} is a folder; name a JSON file in it")
        check_workers("--workers", self.workers)


@dataclass(frozen=True)
class PredictConfig:
    """Segment images: write a mask and an overlay, or other formats, for each TIFF, PNG, JPEG, OME-Zarr, nd2, czi or
    lif and for each plane of a stack, and summary.csv with the confluence. A second run skips the images that are
    done."""

    checkpoint: InputPath
    """A checkpoint folder or its URL, for example runs/x/best; or t98g-small, a network that comes with the package."""
    images: PathOrUrl
    """A folder, a file, or a pattern in quotes, for example 'plates/**/*.tif', here or at a URL. JPEGs, nd2, czi
    and lif beside TIFFs or PNGs are not read, because those are usually the same pictures; a pattern chooses them."""
    out: OutputPath
    """Folder or URL for the results and summary.csv."""
    input_size: SizeFlag | None = None
    """Size to which an image is scaled for the network. By default: the training size if the checkpoint was trained
    with --data.transform resize, else each image's own size. The mask always has the image's own size."""
    threshold: float = 0.5
    """A pixel belongs to a cell if its probability is at least this value."""
    channel: str | None = None
    """Channel to segment in files with several: its number from 1, or its name. In a colour image: 1 red, 2 green,
    3 blue; by default all three."""
    time: str = "all"
    """Frames of a time-lapse to segment: all; a number from 1 (-1 is the last one); or a range, first:last or
    first:last:step."""
    page: str = "all"
    """Pages or depths (z) of a stack to segment, with values as of --time."""
    redo: bool = False
    """Segment all images again, also those that are done."""
    write: tuple[str, ...] = DEFAULT_FORMATS
    """Formats to write for each image: mask, overlay, mask-tiff (1 bit), probability, labels (connected components, or
    separated cells), qupath (GeoJSON), imagej (ROIs), coco, ome-zarr, or one that you registered.
    docs/guides/open_results.md says which programs open them."""
    memory: str = "auto"
    """Memory that this process may occupy, for example 4GiB. An image that needs more is computed in strips or tiles.
    auto: 90 % of what is free on this machine now, within the limit of its container or job."""
    scale: InferenceScaleConfig = field(default_factory=InferenceScaleConfig)
    raw_weights: bool = False
    """Use the weights as the optimizer left them, also where training has kept their moving average (--ema-decay). By
    default: the average, if the checkpoint has one."""

    @property
    def memory_bytes(self) -> int | None:
        """Return `memory` in bytes; None for auto. Raise InputError if it cannot be read."""
        return None if self.memory == "auto" else parse_bytes("--memory", self.memory, "4GiB, or auto")

    def validate(self) -> None:
        _ = self.memory_bytes  # raises if it cannot be read
        Places.parse("--time", self.time)
        Places.parse("--page", self.page)
        if self.channel is not None and not self.channel.strip():
            raise InputError("--channel: its value is empty; give a number from 1, or a name")
        if not 0 < self.threshold < 1:
            raise InputError(f"--threshold {self.threshold}: give a probability between 0 and 1")
        check_formats(self.write)


def check_formats(names: tuple[str, ...]) -> None:
    """Raise InputError for a format of results that is unknown, is named twice, or lacks its library; import none."""
    entries = [writers.find(name, "--write") for name in names]
    if len({entry.name for entry in entries}) != len(entries):
        raise InputError(f"--write {' '.join(names)}: name each format once")
    for entry in entries:
        if entry.library is not None:
            require("formats", f"--write {entry.name}", (entry.library,))
