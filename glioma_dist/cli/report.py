"""`glioma-dist report`: write one HTML file about a prediction."""

from __future__ import annotations

from glioma_dist.cli.command import Command
from glioma_dist.cli.inputs import check_checkpoint, check_folder_there
from glioma_dist.config import ReportConfig
from glioma_dist.config.paths import Url


def check(config: ReportConfig) -> None:
    """Raises InputError for missing inputs."""
    if not isinstance(config.predictions, Url):
        check_folder_there("PREDICTIONS", config.predictions)
    if config.growth is not None:
        check_folder_there("--growth", config.growth)
    if config.checkpoint is not None:
        check_checkpoint("--checkpoint", config.checkpoint)


def run(config: ReportConfig) -> None:
    """Write the report, and print where it is."""
    from glioma_dist.report.prediction_page import report_prediction
    from glioma_dist.wording import counted

    report = report_prediction(config)
    print(
        f"{report.path}: {counted(report.num_images, 'image')}, {report.num_flagged} with a flag, "
        f"{report.num_failed} failed; {report.num_bytes / 1e6:.1f} MB"
    )


REPORT = Command(
    ReportConfig,
    run,
    (
        "glioma-dist report preds --out report.html",
        "glioma-dist report preds --growth growth --out report.html",
    ),
    check,
)
