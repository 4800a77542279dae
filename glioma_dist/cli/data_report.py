"""`glioma-dist shards report`: write one HTML file about shards."""

from __future__ import annotations

from pathlib import Path

from glioma_dist.cli.command import Command
from glioma_dist.cli.inputs import check_shards
from glioma_dist.config.data_report import DataReportConfig


def check(config: DataReportConfig) -> None:
    """Raises InputError for a folder without shards and without splits."""
    for folder in config.shards:
        if "://" in str(folder) or not any(Path(folder).glob("*/index.json")):
            check_shards("SHARDS", folder)


def run(config: DataReportConfig) -> None:
    """Write the report, and print where it is."""
    from glioma_dist.report.data_page import report_data
    from glioma_dist.wording import counted

    report = report_data(config)
    pairs, groups = counted(report.num_leaks, "pair"), counted(report.num_shared_groups, "group")
    shared = ""  # with one split nothing can be in two
    if report.num_splits > 1:
        has_any = report.num_leaks or report.num_shared_groups
        shared = f" {pairs} alike and {groups} in two splits," if has_any else " nothing in two splits,"
    print(
        f"{report.path}: {counted(report.num_images, 'image')},{shared} {report.num_flagged} with a flag, "
        f"{report.num_unreadable} unreadable; {report.num_bytes / 1e6:.1f} MB"
    )


DATA_REPORT = Command(
    DataReportConfig,
    run,
    (
        "glioma-dist shards report shards/plate_7 --out plate_7.html",
        "glioma-dist shards report shards/glioma_c6/train shards/glioma_c6/val --out data.html",
        "glioma-dist shards report s3://cells/livecell/train s3://cells/livecell/val --out livecell.html",
    ),
    check,
)
