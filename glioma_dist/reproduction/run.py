"""The article's tables and figures, one command each: what `glioma-dist reproduce` does.

Makes every training, scoring and picture that a table or figure takes, each a run of the command train, evaluate or
predict through `accelerate launch`, and a report with our numbers beside the article's. The same command again resumes
where it was stopped.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from glioma_dist.benchmark.environment import describe_device, find_device, find_own_commit, find_version
from glioma_dist.config.launch_files import launch_file
from glioma_dist.config.reproduction import ReproduceConfig
from glioma_dist.data.shards.index import INDEX_NAME
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.distributed.launcher import check_launch_file
from glioma_dist.errors import InputError
from glioma_dist.files import remove_tree
from glioma_dist.report.study_page import write_study_report
from glioma_dist.reproduction.estimate import hours
from glioma_dist.reproduction.execute import describe_missing, execute, is_finished, launcher
from glioma_dist.reproduction.folder import SETTINGS, hold_settings, one_at_a_time, settings_text
from glioma_dist.reproduction.material import prepare, read_groups
from glioma_dist.reproduction.plan import Job, Plan, Settings, make_plan, share
from glioma_dist.reproduction.presets import PRESETS
from glioma_dist.reproduction.protocol import find_studies
from glioma_dist.reproduction.results import collect

LIBRARIES = ("torch", "transformers", "timm", "glioma-dist")
LIVECELL_IMAGES = (3253, 570)
"""Of LIVECell's own train and val, for the estimate where no data is here."""


def reproduce(config: ReproduceConfig) -> bool:
    """Run or list what a study takes. Returns whether every run ended well."""
    plans = make_plans(config)
    jobs = jobs_of(plans)
    costs = {job.config_file: hours(job, config.gpu_tflops * 1e12) for job in jobs} if needs_costs(config) else {}
    if config.num_tasks > 1:
        jobs = share(jobs, costs, config.task, config.num_tasks)
    if config.dry_run:
        list_runs(config, plans, jobs, costs)
        return True
    return run_study(config, plans, jobs)


def settings_of(config: ReproduceConfig) -> Settings:
    """What a study runs on, beside its protocol."""
    preset = PRESETS[config.preset]
    if config.repetitions is not None:
        preset = replace(preset, num_repetitions=config.repetitions)
    names = ("source", "out", "source_splits", "seed", "counts", "imagenet", "activation_checkpointing", "workers")
    return Settings(preset, **{name: getattr(config, name) for name in names})


def launch_file_of(config: ReproduceConfig) -> Path:
    """The file that the runs are launched with."""
    return config.launch or launch_file("gpu.yaml" if find_device() == "cuda" else "cpu.yaml")


def needs_costs(config: ReproduceConfig) -> bool:
    return config.dry_run or config.num_tasks > 1


def make_plans(config: ReproduceConfig) -> list[Plan]:
    studies = find_studies(config.study, config.native)
    num_source = count_source(config)
    return [make_plan(study, settings_of(config), num_source, config.picture) for study in studies]


def count_source(config: ReproduceConfig) -> tuple[int, int]:
    """Images of the source to train and validate with. The published numbers decide which of several tasks runs what,
    because all must decide alike."""
    folders = [config.source / name for name in config.source_splits[:2]]
    if config.num_tasks > 1 or not all((folder / "index.json").is_file() for folder in folders):
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
    """Prepare the data, run what is not finished, write the reports. Returns whether every run of `jobs` is finished,
    or, with --report-only, true."""
    settings, file = settings_of(config), launch_file_of(config)
    check_launch_file("--launch", file)
    with one_at_a_time(settings.out):
        chosen = settings_text(settings) | {"group_by": config.group_by} | fingerprints(config)
        begun = hold_settings(settings.out, chosen)
        if not config.report_only or not settings.splits_file.exists():
            before = made_of_target(settings)
            try:
                prepare(settings, config.target, config.group_by, [plan.study for plan in plans])
            except InputError:
                if begun:  # nothing of a first start that failed decides over the next
                    for path in made_of_target(settings) - before:
                        remove_tree(path)
                    (settings.out / SETTINGS).unlink()
                raise
    device = describe_device(find_device())
    metadata = {"device": device, "commit": find_own_commit()}
    failed = [] if config.report_only else execute(jobs, launcher(file), metadata, tell)
    metadata |= {
        "command": shlex.join(["glioma-dist", *sys.argv[1:]]),
        "versions": {name: find_version(name) for name in LIBRARIES},
    }
    groups = read_groups(settings)
    with one_at_a_time(settings.out):  # other tasks write the same files
        for plan in plans:
            files = write_study_report(collect(plan, settings, file, groups, metadata), config.out)
            tell(f"{plan.study.title}: {', '.join(map(str, files))}")
    missing = describe_missing(jobs_of(plans))
    if missing is not None:
        tell(missing)
    return config.report_only or (not failed and all(map(is_finished, jobs)))


def made_of_target(settings: Settings) -> set[Path]:
    """What is there of the images and splits that `prepare` makes; other things of the user may be beside them."""
    folder = settings.target.parent
    inside = folder.iterdir() if folder.is_dir() else ()
    return {path for path in (folder, settings.splits_file, *inside) if os.path.lexists(path)}


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
