"""The article's tables and figures, one command each: `python tools/reproduce_article.py --help`.

Makes every training, scoring and picture that a table or figure takes, each a run of train.py, evaluate.py or
predict.py through `accelerate launch`, and a report with our numbers beside the article's. The same command again goes
on where it was stopped.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from glioma_dist.benchmark.environment import describe_device, find_commit, find_device, find_version
from glioma_dist.cli.arguments import read_arguments
from glioma_dist.config.idle_flags import idle_flags
from glioma_dist.data.shards.index import INDEX_NAME
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.distributed.launcher import check_launch_file
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError
from glioma_dist.registry import ENCODER_NAMES
from glioma_dist.report.study_page import write_study_report
from glioma_dist.reproduction.estimate import hours
from glioma_dist.reproduction.execute import execute, is_finished, launcher
from glioma_dist.reproduction.folder import SETTINGS, hold_settings, one_at_a_time, settings_text
from glioma_dist.reproduction.material import OWN_GROUP, prepare, read_groups
from glioma_dist.reproduction.plan import Job, Plan, Settings, make_plan, share
from glioma_dist.reproduction.presets import PRESETS
from glioma_dist.reproduction.protocol import find_studies
from glioma_dist.reproduction.results import collect

REPOSITORY = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "transformers", "timm", "glioma-dist")
LIVECELL_IMAGES = (3253, 570)
"""Of LIVECell's own train and val, for the estimate where no data is here."""
StudyName = Literal[
    "table1", "table2", "table3", "table4", "table5", "figure3", "figure4", "figure6", "encoders", "all"
]


@dataclass(frozen=True)
class ReproduceConfig:
    """One of the article's tables or figures, or all of them; docs/study.md says what is run."""

    study: tyro.conf.Positional[StudyName]
    source: Path = Path("shards/livecell")
    """Shards to pretrain on, a folder a split."""
    target: tuple[Path, ...] = (Path("shards/glioma_c6/all"),)
    """Folders of shards whose images together are divided again for each repetition."""
    out: Path = Path("studies/article")
    """The study's runs and reports. Tables of one folder share their runs."""
    preset: Literal["small", "medium", "full"] = "full"
    """full: the article's protocol. medium: its sizes, three repetitions, a fifth of the epochs. small: a quarter of
    the sizes, two repetitions, a few steps, for two CPU cores."""
    native: bool = False
    """In table 3 also MiT-B3 at 2592p, which the article could not run."""
    dry_run: bool = False
    """List the runs with an estimate of their hours on a GPU; needs no data."""
    report_only: bool = False
    """Write the report of what is finished, and run nothing."""
    shard: str = "1/1"
    """Of several machines, which this is, as 2/4: each runs its part, and the last report has all of them where they
    share --out, or where their `runs` folders are copied together."""
    source_splits: tuple[str, str, str] = ("train", "val", "test")
    """Which of the source's splits to pretrain on, to validate and to test with."""
    repetitions: int | None = None
    """How many, where not as many as the preset has."""
    counts: tuple[int, int, int] = (15, 5, 10)
    """Images of the target to train on, to validate and to test."""
    group_by: str = OWN_GROUP
    """What never stands on two sides of a split. group: the fact of that name in the shards. none: single images. Or a
    regular expression whose first group is that of an image's file name, as '(culture\\d+)_'."""
    seed: int = 0
    imagenet: tuple[str, ...] = ("hub",)
    """Where ImageNet weights come from: hub, and files as vgg19=vgg19.pth; none where there are none: then rows that
    start from ImageNet are left out, and pretraining begins from random weights, which the report says."""
    picture: Path | None = None
    """For figure 6: an image; by default one that the first repetition tests."""
    launch: Path | None = None
    """A file of accelerate_configs/; by default gpu.yaml where there is a GPU, else cpu.yaml."""
    activation_checkpointing: Literal["none", "selective", "full", "auto"] = "auto"
    """As train.py's --scale.activation-checkpointing; it changes no number."""
    workers: int = 2
    """As train.py's --data.workers."""
    gpu_tflops: float = 20.0
    """For --dry-run: 10^12 operations a second that a GPU is taken to do, all in all."""

    def without_effect(self) -> list[str]:
        """Flags that other flags leave without an effect, each with the reason."""
        metadata = (
            ("picture", self.study in ("figure6", "all"), f"with {self.study}: it is for figure6"),
            ("gpu_tflops", self.dry_run, "without --dry-run"),
            ("launch", not self.dry_run and not self.report_only, "where nothing is run"),
        )
        return idle_flags(self, metadata)

    def validate(self) -> None:
        number, count = self.machine
        if not 1 <= number <= count:
            raise InputError(f"--shard {self.shard}: give the machine's number and how many there are, as 2/4")
        if self.repetitions is not None and not 1 <= self.repetitions <= 1000:
            raise InputError(f"--repetitions {self.repetitions}: give 1 to 1000")
        if min(self.counts) < 1:
            raise InputError(f"--counts {' '.join(map(str, self.counts))}: give 1 or more of each")
        if self.seed < 0 or self.workers < 0:
            name, value = ("seed", self.seed) if self.seed < 0 else ("workers", self.workers)
            raise InputError(f"--{name} {value}: give 0 or more")
        if self.source_splits[0] in self.source_splits[1:]:
            raise InputError(
                f"--source-splits {' '.join(self.source_splits)}: {self.source_splits[0]} would be pretrained on and "
                "scored; give another to pretrain on"
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
            if encoder not in ENCODER_NAMES:
                raise InputError(
                    f"--imagenet {encoder}={file}: no encoder {encoder}; train.py --model.encoder list has all"
                )
            if [each for each, _ in files].count(encoder) > 1:
                raise InputError(f"--imagenet: {encoder} is named twice; give one file for it")
            if not self.dry_run and not Path(file).is_file():
                raise InputError(f"--imagenet {encoder}={file}: no such file")
        if "none" in self.imagenet and len(self.imagenet) > 1:
            raise InputError(f"--imagenet {' '.join(self.imagenet)}: none stands alone")

    @property
    def machine(self) -> tuple[int, int]:
        match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", self.shard)
        if not match:
            raise InputError(f"--shard {self.shard}: give the machine's number and how many there are, as 2/4")
        return int(match[1]), int(match[2])

    @property
    def settings(self) -> Settings:
        preset = PRESETS[self.preset]
        if self.repetitions is not None:
            preset = replace(preset, num_repetitions=self.repetitions)
        names = ("source", "out", "source_splits", "seed", "counts", "imagenet", "activation_checkpointing", "workers")
        return Settings(preset, **{name: getattr(self, name) for name in names})

    @property
    def launch_file(self) -> Path:
        return self.launch or Path("accelerate_configs") / ("gpu.yaml" if find_device() == "cuda" else "cpu.yaml")


def main() -> None:
    config = read_arguments(ReproduceConfig)
    plans = make_plans(config)
    jobs = jobs_of(plans)
    costs = {job.config_file: hours(job, config.gpu_tflops * 1e12) for job in jobs} if needs_costs(config) else {}
    if config.machine[1] > 1:
        jobs = share(jobs, costs, *config.machine)
    if config.dry_run:
        list_runs(config, plans, jobs, costs)
    elif not run_study(config, plans, jobs):
        sys.exit(1)


def needs_costs(config: ReproduceConfig) -> bool:
    return config.dry_run or config.machine[1] > 1


def make_plans(config: ReproduceConfig) -> list[Plan]:
    studies = find_studies(config.study, config.native)
    num_source = count_source(config)
    return [make_plan(study, config.settings, num_source, config.picture) for study in studies]


def count_source(config: ReproduceConfig) -> tuple[int, int]:
    """Images of the source to train and validate with. The published numbers decide who runs what on several machines,
    for all must decide alike."""
    folders = [config.source / name for name in config.source_splits[:2]]
    if config.machine[1] > 1 or not all((folder / "index.json").is_file() for folder in folders):
        return LIVECELL_IMAGES
    train, val = (len(ShardReader(folder)) for folder in folders)
    return train, val


def jobs_of(plans: Sequence[Plan]) -> tuple[Job, ...]:
    """All of them, those that several share once."""
    return tuple({job.config_file: job for plan in plans for job in plan.jobs}.values())


def list_runs(config: ReproduceConfig, plans: Sequence[Plan], jobs: Sequence[Job], costs: dict[Path, float]) -> None:
    """The runs, and what they will take at most; those that differ in their repetition only as one line."""
    lines: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        repetition = re.fullmatch(r"\d\d", job.folder.name)
        lines.setdefault((str(job.folder.parent if repetition else job.folder), job.stem), []).append(job)
    for (folder, stem), group in lines.items():
        total, done = sum(costs[job.config_file] for job in group), sum(map(is_finished, group))
        finished = f", {done} finished" if done else ""
        print(f"{total:9.2f} h  {len(group):3} x {stem:<28} {folder}{finished}")
    left = [job for job in jobs if not is_finished(job)]
    hours_left = sum(costs[job.config_file] for job in left)
    print(
        f"{hours_left:9.2f} h at most, {len(left)} of {len(jobs)} runs, on one GPU of {config.gpu_tflops:g} TFLOP/s "
        "(assumed, --gpu-tflops); early stopping ends many sooner"
    )
    for plan in plans:
        for row in (row for row in plan.rows if row.impossible):
            print(f"{plan.study.name}: {row.row.encoder}, {row.row.start_title} will be left out: {row.impossible}")
        for note in plan.notes:
            print(f"{plan.study.name}: {note}")


def run_study(config: ReproduceConfig, plans: Sequence[Plan], jobs: Sequence[Job]) -> bool:
    """Prepare the data, run what is not finished, write the reports. Returns whether every run ended well."""
    settings, launch_file = config.settings, config.launch_file
    check_launch_file("--launch", launch_file)
    with one_at_a_time(settings.out):
        chosen = settings_text(settings) | {"group_by": config.group_by} | fingerprints(config)
        begun = hold_settings(settings.out, chosen)
        if not config.report_only or not settings.splits_file.exists():
            try:
                prepare(settings, config.target, config.group_by, [plan.study for plan in plans])
            except InputError:
                if begun:  # nothing of a first start that failed decides over the next
                    shutil.rmtree(settings.target.parent, ignore_errors=True)
                    (settings.out / SETTINGS).unlink()
                raise
    device = describe_device(find_device())
    metadata = {"device": device, "commit": find_commit(REPOSITORY)}
    failed = [] if config.report_only else execute(jobs, launcher(launch_file, REPOSITORY), metadata, tell)
    metadata |= {
        "command": shlex.join(["python", "tools/reproduce_article.py", *sys.argv[1:]]),
        "versions": {name: find_version(name) for name in LIBRARIES},
    }
    groups = read_groups(settings)
    for plan in plans:
        files = write_study_report(collect(plan, settings, launch_file, groups, metadata), config.out)
        tell(f"{plan.study.title}: {', '.join(map(str, files))}")
    return not failed


def fingerprints(config: ReproduceConfig) -> dict[str, list[str] | None]:
    """Of the images that the study is made of, wherever they lie; None where they are not here."""
    folders = {
        "source_data": [config.source / name for name in config.source_splits],
        "target_data": list(config.target),
    }
    return {
        name: [ShardReader(each).fingerprint for each in parts]
        if all((each / INDEX_NAME).is_file() for each in parts)
        else None
        for name, parts in folders.items()
    }


def tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run_command(main)
