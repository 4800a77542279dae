"""The settings of a run: frozen dataclasses, one per concern.

Everything here is checked before any data is read or any GPU is touched. Settings that decide numbers live in
`DataConfig`, `ModelConfig` and the upper part of `TrainConfig`; those that decide cost only live in `ScaleConfig` or
are listed in `COST_FIELDS`, and a run may be resumed with others.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from glioma_dist.encoder_names import ENCODER_NAMES, known_encoder
from glioma_dist.errors import InputError
from glioma_dist.idle_flags import idle_flags_of_training
from glioma_dist.paths import LocalPath, PathOrUrl
from glioma_dist.size import Size, SizeFlag

ROWS_ENCODERS = (*(name for name in ENCODER_NAMES if name.startswith("mit_")), "resnet50", "vgg19")
"""Those whose images may be split over processes; tests/distributed/test_rows.py proves each family."""
ARTICLE_SMALL = Size(704, 512)
"""The article's smallest, 704p: images of LIVECell as they are, cut to multiples of 32."""
COST_FIELDS = (
    "data.train",
    "data.val",
    "data.workers",
    "data.cache",
    "data.cache_size",
    "data.keep_decoded",
    "epochs",
    "max_steps",
    "patience",
    "eval_every",
    "save_every",
    "keep_last",
    "out",
    "resume",
    "scale.recompute",
    "scale.channels_last",
    "scale.compile",
    "scale.rows",
    "scale.timeout_s",
)
"""Fields with which a run may be resumed though they differ: where it runs, how long, and how often it is looked at.
The data sets may move, their contents may not: those are held by the fingerprint in the checkpoint."""


@dataclass(frozen=True)
class DataConfig:
    """What the network is shown."""

    train: tuple[PathOrUrl, ...] = ()
    """Folders of shards to train on, or URLs (s3://, gs://, az://, hf://, http://, https://): one, or several that
    are joined."""
    weights: tuple[float, ...] = ()
    """How often each of several --data.train is drawn from, as 0.8 0.2; by default every sample equally often."""
    val: PathOrUrl | None = None
    """Folder or URL of shards to validate on; without it there is no validation, and `best` is never written."""
    cache: Path | None = None
    """Folder on this machine that keeps shards of URLs; without it each sample is fetched on its own."""
    cache_size: str = "50GB"
    """How much the cache holds at most; the shards used longest ago are dropped."""
    keep_decoded: bool = False
    """Keep all training images decoded in memory: for small sets and many epochs."""
    size: SizeFlag = ARTICLE_SMALL
    """What a training image is brought to."""
    fit: Literal["resize", "crop", "random-resized-crop"] = "resize"
    """resize: the whole image is scaled to the size. crop: a random window of the size, scale unchanged.
    random-resized-crop: a random window, its side a fraction of the image's side, scaled to the size."""
    crop_side: tuple[float, float] = (0.27, 0.87)
    """Least and greatest side of a random-resized-crop's window, as a fraction of the image's SIDE (not area).
    The article's wide range is 57 +- 30 %, its narrow one 0.52 0.62."""
    augment: tuple[Literal["flips", "sharpen", "contrast", "rand-augment", "trivial-augment"], ...] = ()
    """Random changes: mirror flips of both axes, sharpening, contrast; or a chain of --data.chain-length changes drawn
    at random (data/chains.py), all of --data.chain-strength (rand-augment) or each of a random one (trivial-augment).
    """
    chain_length: int = 2
    """Changes in a chain."""
    chain_strength: float = 0.3
    """Of each change of rand-augment, from 0 to 1."""
    raise_contrast: Literal["percentile", "clahe", "none"] = "percentile"
    """What is done to every image before the network, in training and in testing alike."""
    workers: int = 2
    """Processes that read and augment, for each training process; 0 does it in the training process itself."""

    def __post_init__(self) -> None:
        # One folder may be given as it is, as text or as a path.
        if isinstance(self.train, str | Path):
            object.__setattr__(self, "train", (self.train,))
        object.__setattr__(self, "train", tuple(map(str, self.train)))
        object.__setattr__(self, "val", None if self.val is None else str(self.val))

    @property
    def cache_bytes(self) -> int:
        """Raises InputError where `cache_size` is no number of bytes."""
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([kMGT]?)(i?)B", self.cache_size.strip())
        num_bytes = float(match[1]) * (1024 if match[3] else 1000) ** " kMGT".index(match[2] or " ") if match else 0.0
        if num_bytes < 1:
            raise InputError(f"--data.cache-size {self.cache_size}: give a number of bytes, as 50GB or 500MB")
        return int(num_bytes)

    def validate(self) -> None:
        if not all(self.train):
            raise InputError("--data.train: one of its folders has an empty name")
        if not self.train:
            raise InputError("no training data: give a folder of shards with --data.train (tools/ makes them)")
        self._validate_weights()
        _ = self.cache_bytes  # raises where it is none
        least, greatest = self.crop_side
        if not 0 < least <= greatest <= 1:
            raise InputError(
                f"--data.crop-side {least} {greatest}: give 0 < least <= greatest <= 1 (fractions of the image's side)"
            )
        if self.workers < 0:
            raise InputError(f"--data.workers {self.workers}: give 0 or more")
        if len(set(self.augment)) != len(self.augment):
            raise InputError(f"--data.augment {' '.join(self.augment)}: name each change once")
        if self.chain_length < 1 or not 0 <= self.chain_strength <= 1:
            told = f"--data.chain-length {self.chain_length} --data.chain-strength {self.chain_strength}"
            raise InputError(f"{told}: give 1 or more changes, of a strength from 0 to 1")

    def _validate_weights(self) -> None:
        told = f"--data.weights {' '.join(map(str, self.weights))}"
        if self.weights and len(self.weights) != len(self.train):
            raise InputError(f"{told}: give one for each of the {len(self.train)} --data.train, or none")
        if not all(0 < weight < math.inf for weight in self.weights):
            raise InputError(f"{told}: each must be greater than 0")
        if len(set(self.train)) != len(self.train):
            raise InputError(f"--data.train {' '.join(self.train)}: name each once; --data.weights says how often")


@dataclass(frozen=True)
class ModelConfig:
    """The U-Net."""

    encoder: str = "mit_b3"
    """mit_b0 to mit_b5 (SegFormer's Mix Transformers; mit_tiny is for demos and tests), or one of the article's
    convolutional networks. `list` prints them all, with what they cost."""
    init: LocalPath = "random"
    """Starting weights: random, imagenet (encoder only, from the hub), a checkpoint folder of this toolkit, or a
    checkpoint of segmentation_models.pytorch: a file (.safetensors, .pth) or what its save_pretrained writes."""
    weights: Path | None = None
    """With --model.init imagenet: a file of the encoder's weights (.safetensors, .pth) to take instead of the hub's."""
    norm: Literal["batch", "group"] = "batch"
    """The decoder's normalisation. Batch norm takes its statistics over all processes."""
    decoder_channels: tuple[int, int, int, int, int] = (256, 128, 64, 32, 16)
    """Channels of the decoder's blocks, from the coarsest to full size."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder", known_encoder(self.encoder))

    def validate(self) -> None:
        if self.encoder not in ENCODER_NAMES:
            near = difflib.get_close_matches(self.encoder, ENCODER_NAMES, n=1, cutoff=0.0)[0]
            raise InputError(
                f"--model.encoder {self.encoder}: unknown; did you mean {near}? (known: {', '.join(ENCODER_NAMES)})"
            )
        if min(self.decoder_channels) < 1:
            raise InputError(f"--model.decoder-channels {self.decoder_channels}: each must be 1 or more")
        if self.weights is not None and self.init != "imagenet":
            raise InputError(
                f"--model.weights {self.weights}: is for --model.init imagenet, not for {self.init}; "
                "a checkpoint of a whole network is given by --model.init FILE"
            )


def check_rows(rows: int, encoder: str) -> None:
    """Raises InputError where an image cannot be split over `rows` processes."""
    if rows < 1:
        raise InputError(f"--scale.rows {rows}: give 1 or more")
    if rows > 1 and encoder not in ROWS_ENCODERS:
        raise InputError(f"--scale.rows {rows}: not proved exact with {encoder}; it is with {', '.join(ROWS_ENCODERS)}")


@dataclass(frozen=True)
class InferenceScaleConfig:
    """What an image costs; it changes no number."""

    rows: int = 1
    """Processes that share each image, a band of its rows each; it must divide the processes of the launch."""


@dataclass(frozen=True)
class ScaleConfig:
    """What a step costs; none of it changes a number."""

    recompute: Literal["none", "encoder", "all", "auto"] = "none"
    """What is computed a second time in the backward pass instead of being kept. encoder: its layers, but for
    attention. all: attention too, and the decoder's blocks, the largest maps in bands of rows. auto: the least that
    fits this device's memory, as tools/plan_memory.py counts it."""
    channels_last: bool = False
    """Keep maps with the channels innermost, as tensor cores like them."""
    compile: bool = False
    """Have torch.compile translate the encoder's layers; needs a C++ compiler, and minutes at the start."""
    rows: int = 1
    """Processes that share each image, a band of its rows each; it must divide the processes of the launch."""
    timeout_s: float = 600.0
    """Seconds after which a process or a worker of the run that does not answer counts as lost."""

    def validate(self, encoder: str) -> None:
        """Check the settings for `encoder`. Raises InputError."""
        check_rows(self.rows, encoder)
        if not 1 <= self.timeout_s < math.inf:
            raise InputError(f"--scale.timeout-s {self.timeout_s}: give 1 second or more")
        if self.rows > 1 and self.compile:
            raise InputError("--scale.rows and --scale.compile do not go together; omit one")


@dataclass(frozen=True)
class TrainConfig:
    """Train a U-Net on shards: accelerate launch train.py --data.train DIR --out runs/x"""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    loss: Literal["dice", "bce", "dice+bce"] = "dice"
    """Soft Dice, binary cross-entropy, or their sum; each taken per image."""
    batch_size: int = 4
    """Images in a step, over all processes together."""
    lr: float = 1e-4
    """Adam's learning rate, fixed."""
    clip_norm: float | None = None
    """Scale the gradients down so that the norm of all together is at most this; by default they are left alone."""
    seed: int = 0
    """Decides the starting weights, the order of the samples, augmentation and stochastic depth."""
    epochs: int = 60
    max_steps: int | None = None
    """Stop after so many steps, whatever --epochs says."""
    eval_every: int | None = None
    """Validate every so many steps; by default after each epoch."""
    patience: int | None = None
    """Stop when the validation loss has not fallen for so many validations in a row; by default never."""
    save_every: int | None = None
    """Also write the checkpoint `last` every so many steps; it is always written at a validation and at the end."""
    keep_last: int = 2
    """Number of checkpoints to keep; a run resumes from the newest undamaged one of `last`, `last.1`, …"""
    out: Path = Path("runs/run")
    """Where the run is written: config.json, metrics.jsonl, last/, last.1/, best/."""
    resume: Literal["auto", "never"] = "auto"
    """auto: resume the run that --out holds. never: start a new one, in an empty folder only."""

    def without_effect(self) -> list[str]:
        """Flags that other flags leave without an effect, each with the reason."""
        return idle_flags_of_training(self)

    def validate(self) -> None:
        self.data.validate()
        self.model.validate()
        self.scale.validate(self.model.encoder)
        for name in ("batch_size", "epochs", "max_steps", "eval_every", "patience", "save_every", "keep_last"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} {value}: give 1 or more")
        if not 0 < self.lr < 1e3:
            raise InputError(f"--lr {self.lr}: give a number between 0 and 1000, as in 1e-4")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise InputError(f"--clip-norm {self.clip_norm}: give a number above 0, as in 1.0")
        if self.patience is not None and self.data.val is None:
            raise InputError("--patience needs validation: give a folder of shards with --data.val")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed {self.seed}: give a whole number from 0 to 2^63 - 1")


@dataclass(frozen=True)
class EvaluateConfig:
    """Dice of a checkpoint on shards, as the article measures it: DS(x, y, R1, R2)."""

    checkpoint: Path
    """A checkpoint folder, as runs/x/best."""
    data: PathOrUrl
    """Folder of shards, or the URL of one."""
    input_size: SizeFlag | None = None
    """R1: what an image is scaled to for the network; by default each image's own size."""
    metric_size: SizeFlag | None = None
    """R2: what output and reference are scaled to for Dice; by default each image's own size."""
    out: Path | None = None
    """JSON file for the scores."""
    workers: int = 2
    """Processes that read ahead, for each evaluating process."""
    scale: InferenceScaleConfig = field(default_factory=InferenceScaleConfig)

    def validate(self) -> None:
        if self.out is not None and self.out.is_dir():
            raise InputError(f"--out {self.out} is a folder; name a JSON file in it")
        if self.workers < 0:
            raise InputError(f"--workers {self.workers}: give 0 or more")


@dataclass(frozen=True)
class PredictConfig:
    """Masks for images: a mask and an overlay for each TIFF or PNG, and summary.csv."""

    checkpoint: Path
    """A checkpoint folder, as runs/x/best."""
    images: LocalPath
    """A folder, a file, or a pattern in quotes, as 'plates/**/*.tif'."""
    out: Path
    """Folder for the masks, overlays and summary.csv."""
    input_size: SizeFlag | None = None
    """What an image is scaled to for the network. By default: the training size if the checkpoint was trained with
    --data.fit resize, else each image's own size. The mask always has the image's own size."""
    threshold: float = 0.5
    """Probability from which a pixel belongs to a cell."""
    scale: InferenceScaleConfig = field(default_factory=InferenceScaleConfig)

    def validate(self) -> None:
        if not 0 < self.threshold < 1:
            raise InputError(f"--threshold {self.threshold}: give a probability between 0 and 1")
