"""Settings of the data: where it is, and how an image is prepared for the network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glioma_dist.config.byte_size import parse_bytes
from glioma_dist.config.paths import PathOrUrl
from glioma_dist.errors import InputError
from glioma_dist.limits import check_workers
from glioma_dist.registry import augmentations
from glioma_dist.size import Size, SizeFlag

ARTICLE_SMALL = Size(704, 512)
"""The article's smallest size, 704p: LIVECell's own size, cut to multiples of 32."""
ARTICLE_COUNTS = (15, 5, 10)
"""How the article splits its 30 images: train, validation, test."""
SPLIT_SHARES = (70.0, 15.0, 15.0)
"""How `convert folder` splits groups of images: train, validation, test, in percent."""


@dataclass(frozen=True)
class DataConfig:
    """Training and validation data, and how images get one size and are augmented."""

    train: tuple[PathOrUrl, ...] = ()
    """Folders of shards to train on, or URLs (s3://, gs://, az://, hf://, http://, https://). Several are
    joined."""
    weights: tuple[float, ...] = ()
    """Share of samples from each folder of --data.train, for example 0.8 0.2. By default: every sample equally
    often."""
    val: PathOrUrl | None = None
    """Folder or URL of shards to validate on. Without it there is no validation, and `best` is not written."""
    cache: Path | None = None
    """Folder on this machine to keep shards of URLs in. Without it, each sample is downloaded when it is needed."""
    cache_size: str = "50GB"
    """Maximum size of the cache. When it is full, the least recently used shards are deleted."""
    cache_in_memory: bool = False
    """Keep all training images decoded in memory: for small data sets and many epochs."""
    size: SizeFlag = ARTICLE_SMALL
    """Size of a training image in pixels, WIDTHxHEIGHT."""
    transform: Literal["resize", "random-crop", "random-resized-crop"] = "resize"
    """resize: the whole image is scaled to the size. random-crop: a random window of the size, scale unchanged.
    random-resized-crop: a random window, its side a fraction of the image's side, scaled to the size."""
    crop_side: tuple[float, float] = (0.27, 0.87)
    """Smallest and largest side of a random-resized-crop's window, as a fraction of the image's SIDE (not area).
    The article's wide range is 0.27 0.87 (57 +- 30 %), its narrow range 0.52 0.62."""
    augment: tuple[str, ...] = ()
    """Random augmentations: flips (along both axes), sharpen, contrast; rand-augment or trivial-augment, which apply
    --data.num-ops random operations, with strength --data.magnitude or a random one; or the name of one that you
    registered."""
    num_ops: int = 2
    """Number of operations of rand-augment and trivial-augment."""
    magnitude: float = 0.3
    """Strength of each operation of rand-augment, from 0 to 1."""
    intensity_normalization: Literal["percentile", "clahe", "none"] = "percentile"
    """How the contrast of every image is stretched before the network, in training and in prediction."""
    workers: int = 2
    """Worker processes per training process that read and augment images. 0: the training process does it itself."""

    def __post_init__(self) -> None:
        # One folder may be given without a tuple, as text or as a path.
        if isinstance(self.train, str | Path):
            object.__setattr__(self, "train", (self.train,))
        object.__setattr__(self, "train", tuple(map(str, self.train)))
        object.__setattr__(self, "val", None if self.val is None else str(self.val))

    @property
    def cache_bytes(self) -> int:
        """`cache_size` in bytes. Raises InputError if it cannot be read."""
        return parse_bytes("--data.cache-size", self.cache_size, "50GB or 500MB")

    def validate(self) -> None:
        if not all(self.train):
            raise InputError("--data.train: a folder has an empty name; give a folder or URL of shards")
        if not self.train:
            raise InputError(
                "no training data: give a folder of shards with --data.train (glioma-dist convert makes them)"
            )
        self._validate_weights()
        _ = self.cache_bytes  # raises if it cannot be read
        least, greatest = self.crop_side
        if not 0 < least <= greatest <= 1:
            raise InputError(
                f"--data.crop-side {least} {greatest}: give 0 < least <= greatest <= 1 (fractions of the image's side)"
            )
        check_workers("--data.workers", self.workers)
        for name in self.augment:
            augmentations.find(name, "--data.augment")
        if len(set(self.augment)) != len(self.augment):
            raise InputError(f"--data.augment {' '.join(self.augment)}: name each augmentation once")
        if self.num_ops < 1 or not 0 <= self.magnitude <= 1:
            told = f"--data.num-ops {self.num_ops} --data.magnitude {self.magnitude}"
            raise InputError(f"{told}: give 1 or more operations, and a strength from 0 to 1")

    def _validate_weights(self) -> None:
        told = f"--data.weights {' '.join(map(str, self.weights))}"
        if self.weights and len(self.weights) != len(self.train):
            raise InputError(f"{told}: give one for each of the {len(self.train)} --data.train, or omit the flag")
        if not all(0 < weight < math.inf for weight in self.weights):
            raise InputError(f"{told}: each must be greater than 0")
        if len(set(self.train)) != len(self.train):
            raise InputError(f"--data.train {' '.join(self.train)}: name each once; use --data.weights to repeat one")
