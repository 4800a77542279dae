"""`glioma-dist evaluate`: score a checkpoint on shards with Dice, as the article defines it."""

from __future__ import annotations

from glioma_dist.cli.command import Command
from glioma_dist.cli.inputs import check_checkpoint, check_shards
from glioma_dist.config import EvaluateConfig


def check(config: EvaluateConfig) -> None:
    """Raises InputError for missing inputs."""
    check_checkpoint("--checkpoint", config.checkpoint)
    check_shards("--data", config.data)


def run(config: EvaluateConfig) -> None:
    """Score, and print one line per image and the mean."""
    from glioma_dist.data.worker_pool import WorkerPool
    from glioma_dist.distributed.context import DistributedContext
    from glioma_dist.evaluation.protocol import evaluate

    with WorkerPool(config.workers) as workers:  # before a GPU and connections are set up
        context = DistributedContext.start()
        result = evaluate(config, context, workers)
    if context.is_main:
        for image in result.images:
            print(f"{image.dice:.4f}  {image.key}")
        print(
            f"{result.mean_dice:.4f}  mean Dice of {len(result.images)} images (input size "
            f"{result.input_size or 'own'}, metric size {result.metric_size or 'own'})"
        )


EVALUATE = Command(
    EvaluateConfig,
    run,
    (
        "glioma-dist evaluate --checkpoint runs/glioma/best --data shards/glioma_c6/test --out runs/glioma/scores.json",
        'accelerate launch --config_file "$(glioma-dist configs multi_gpu.yaml)" -m glioma_dist evaluate '
        "--checkpoint runs/glioma/best --data shards/glioma_c6/test --input-size 2592x1952 --metric-size 2592x1952",
    ),
    check,
)
