"""`glioma-dist reproduce`: reproduce the article's tables and figures."""

from __future__ import annotations

import os
import sys

from glioma_dist.cli.command import Command
from glioma_dist.cli.inputs import check_file, check_shards
from glioma_dist.config.reproduction import ReproduceConfig
from glioma_dist.distributed.launcher import check_launch_file
from glioma_dist.reproduction.protocol import Pretraining, find_studies


def check(config: ReproduceConfig) -> None:
    """Raises InputError for missing inputs; a dry run needs none."""
    if config.dry_run:
        return
    if config.launch is not None:
        check_file("--launch", config.launch)
        check_launch_file("--launch", config.launch)
    if config.report_only:
        return
    # A study that was started before has the images in this folder.
    if not os.path.isdir(config.out / "target" / "all"):
        for folder in config.target:
            check_shards("--target", folder)
    if config.num_tasks == 1 and not os.path.isdir(config.out / "runs") and pretrains(config):
        for name in config.source_splits:
            check_shards("--source", config.source / name)


def pretrains(config: ReproduceConfig) -> bool:
    """Whether a row of the chosen studies starts from a pretrained model."""
    studies = find_studies(config.study, config.native)
    return any(isinstance(row.start, Pretraining) for study in studies for row in study.rows)


def run(config: ReproduceConfig) -> None:
    """Run or list the study; exit code 1 if a run failed."""
    from glioma_dist.reproduction.run import reproduce

    if not reproduce(config):
        sys.exit(1)


REPRODUCE = Command(
    ReproduceConfig,
    run,
    (
        "glioma-dist reproduce all --dry-run",
        "glioma-dist reproduce table1 --source shards/livecell --target shards/glioma_c6/all --out studies/article",
        "glioma-dist reproduce table3 --native --preset small --imagenet none --out studies/small",
    ),
    check,
)
