"""The flags of `glioma-dist reproduce`: which of the article's studies to run, and with which data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from glioma_dist.config.data import ARTICLE_COUNTS
from glioma_dist.config.idle_flags import idle_flags
from glioma_dist.errors import InputError
from glioma_dist.limits import check_seed, check_workers
from glioma_dist.registry import encoders

OWN_GROUP = "group"
"""Value of --group-by for the groups that the shards name."""
MAX_TASKS = MAX_REPETITIONS = 1000
StudyName = Literal[
    "table1", "table2", "table3", "table4", "table5", "figure3", "figure4", "figure6", "encoders", "all"
]


@dataclass(frozen=True)
class ReproduceConfig:
    """Reproduce one of the article's tables or figures, or all. docs/study.md describes what is run."""

    study: tyro.conf.Positional[StudyName]
    """table1 to table5, figure3, figure4 or figure6; encoders: the article's comparison of encoders; all: all of
    these."""
    source: Path = Path("shards/livecell")
    """Folder of the shards to pretrain on, with one folder per split."""
    target: tuple[Path, ...] = (Path("shards/glioma_c6/all"),)
    """Folders of shards. Each repetition splits all their images at random."""
    out: Path = Path("studies/article")
    """Folder for the study's runs and reports. Tables in one folder share their runs."""
    preset: Literal["small", "medium", "full"] = "full"
    """full: the article's protocol. medium: its sizes, three repetitions, a fifth of the epochs. small: a quarter of
    the sizes, two repetitions, a few steps, for two CPU cores."""
    native: bool = False
    """Also run MiT-B3 at 2592p in table 3, which the article could not train."""
    dry_run: bool = False
    """List the runs with an estimate of their hours on a GPU; needs no data."""
    report_only: bool = False
    """Write the report of the finished runs, and run nothing."""
    task: int = 0
    """Number of this task of a job array, from 0. Each task runs its part of the study. The report covers all tasks if
    they share --out, or if you copy their `runs` folders together."""
    num_tasks: int = 1
    """Number of tasks that share the study. All runs that start from one pretraining belong to the same task."""
    source_splits: tuple[str, str, str] = ("train", "val", "test")
    """Splits of the source for training, validation and test."""
    repetitions: int | None = None
    """Number of repetitions. By default: as many as the preset has."""
    counts: tuple[int, int, int] = ARTICLE_COUNTS
    """Numbers of target images for training, validation and test."""
    group_by: str = OWN_GROUP
    """Images of one group always belong to the same split. group: the groups that the shards name. none: every image is
    its own group. Or a regular expression for the file name whose first group is the image's group, for example
    '(culture\\d+)_'."""
    seed: int = 0
    """Random seed of the splits and the starting weights: repetition k uses seed + k for both."""
    imagenet: tuple[str, ...] = ("hub",)
    """Source of the ImageNet weights: hub, and files such as vgg19=vgg19.pth. none: omit rows that start from ImageNet,
    and pretrain from random weights; the report says so."""
    picture: Path | None = None
    """Image for figure 6. By default: a test image of the first repetition."""
    launch: Path | None = None
    """File for accelerate launch --config_file. By default: the package's gpu.yaml if there is a GPU, else its
    cpu.yaml."""
    activation_checkpointing: Literal["none", "selective", "full", "offload", "auto"] = "auto"
    """Level of activation checkpointing, as --scale.activation-checkpointing. It changes no result beyond rounding."""
    workers: int = 2
    """Worker processes that load data, as --data.workers."""
    gpu_tflops: float = 20.0
    """Assumed overall speed of a GPU in TFLOP/s, for the estimate of --dry-run."""

    def without_effect(self) -> list[str]:
        """Flags that other flags leave without an effect, each with the reason."""
        metadata = (
            ("picture", self.study in ("figure6", "all"), f"with {self.study}: it is for figure6"),
            ("gpu_tflops", self.dry_run, "without --dry-run"),
            ("launch", not self.dry_run and not self.report_only, "with --dry-run or --report-only"),
        )
        return idle_flags(self, metadata)

    def validate(self) -> None:
        if not 1 <= self.num_tasks <= MAX_TASKS:
            raise InputError(f"--num-tasks {self.num_tasks}: give 1 to {MAX_TASKS}")
        if not 0 <= self.task < self.num_tasks:
            several = f"0 to {self.num_tasks - 1}" if self.num_tasks > 1 else "it together with --num-tasks"
            raise InputError(f"--task {self.task} of --num-tasks {self.num_tasks}: give {several}")
        if self.repetitions is not None and not 1 <= self.repetitions <= MAX_REPETITIONS:
            raise InputError(f"--repetitions {self.repetitions}: give 1 to {MAX_REPETITIONS}")
        if min(self.counts) < 1:
            raise InputError(f"--counts {' '.join(map(str, self.counts))}: give 1 or more of each")
        check_seed("--seed", self.seed, MAX_REPETITIONS)  # each repetition takes one
        check_workers("--workers", self.workers)
        if self.source_splits[0] in self.source_splits[1:]:
            raise InputError(
                f"--source-splits {' '.join(self.source_splits)}: {self.source_splits[0]} would be pretrained on and "
                "scored; give another split to pretrain on"
            )
        for flag, folder in [("source", self.source), *(("target", each) for each in self.target)]:
            if re.match(r"\w+:/", str(folder)):
                raise InputError(f"--{flag} {folder}: give a folder of this machine; a study takes no URLs")
        if self.picture is not None and not self.picture.is_file() and not self.dry_run:
            raise InputError(f"--picture {self.picture}: no such file")
        if not self.gpu_tflops > 0:
            raise InputError(f"--gpu-tflops {self.gpu_tflops}: give more than 0")
        if self.native and self.study not in ("table3", "all"):
            raise InputError(f"--native is for table3, not for {self.study}")
        if not self.target:
            raise InputError("--target: give one or more folders of shards")
        for each in self.imagenet:
            if each not in ("hub", "none") and not re.fullmatch(r"[a-z0-9_]+=.+", each):
                raise InputError(f"--imagenet {each}: give hub, none, or ENCODER=FILE")
        files = [each.split("=", 1) for each in self.imagenet if "=" in each]
        for encoder, file in files:
            if encoder not in encoders.names():
                raise InputError(f"--imagenet {encoder}={file}: no encoder {encoder}; glioma-dist encoders lists all")
            if [each for each, _ in files].count(encoder) > 1:
                raise InputError(f"--imagenet: {encoder} is named twice; give one file for it")
            if not self.dry_run and not Path(file).is_file():
                raise InputError(f"--imagenet {encoder}={file}: no such file")
        if "none" in self.imagenet and len(self.imagenet) > 1:
            raise InputError(f"--imagenet {' '.join(self.imagenet)}: none cannot be combined with other values")
