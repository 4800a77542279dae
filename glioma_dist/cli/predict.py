"""`glioma-dist predict`: segment images."""

from __future__ import annotations

from glioma_dist.cli.command import Command
from glioma_dist.cli.inputs import check_checkpoint, check_images
from glioma_dist.config import PredictConfig


def check(config: PredictConfig) -> None:
    """Raises InputError for missing inputs."""
    check_checkpoint("--checkpoint", config.checkpoint)
    check_images(config.images)


def run(config: PredictConfig) -> None:
    """Predict, and print where the masks are."""
    from glioma_dist.distributed.context import DistributedContext
    from glioma_dist.inference.predict import predict

    context = DistributedContext.start()
    result = predict(config, context)
    result.raise_for_failures()
    if context.is_main:
        num = f"{len(result.images)} image{'s' * (len(result.images) != 1)}"
        print(f"{num} in {config.out}: {', '.join([*config.write, 'summary.csv'])}")


PREDICT = Command(
    PredictConfig,
    run,
    (
        "glioma-dist predict --checkpoint t98g-small --images plate_7 --out preds",
        "glioma-dist predict --checkpoint runs/glioma/best --images plate_7 --out preds --write mask labels imagej",
        "glioma-dist predict --checkpoint t98g-small --images lapse.ome.tif --channel 1 --time 1:100:10 --out preds",
    ),
    check,
)
