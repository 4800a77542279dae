"""`glioma-dist reproduce`: the article's tables and figures, one command each."""

from __future__ import annotations

import sys

from glioma_dist.cli.command import Command
from glioma_dist.cli.inputs import check_shards
from glioma_dist.config.reproduction import ReproduceConfig
from glioma_dist.distributed.launcher import check_launch_file


def check(config: ReproduceConfig) -> None:
    """Raises InputError for inputs that are not there; a dry run needs none."""
    if config.dry_run:
        return
    if config.launch is not None:
        check_launch_file("--launch", config.launch)
    if not config.report_only:
        for name in config.source_splits:
            check_shards("--source", config.source / name)
        for folder in config.target:
            check_shards("--target", folder)


def run(config: ReproduceConfig) -> None:
    """Run or list the study; exit code 1 where a run did not end well."""
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
