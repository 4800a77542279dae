"""`glioma-dist evaluate`: score a checkpoint on shards with Dice, as the article defines it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glioma_dist.cli.command import Command
from glioma_dist.cli.inputs import check_checkpoint, check_shards
from glioma_dist.config import EvaluateConfig
from glioma_dist.wording import counted

if TYPE_CHECKING:
    from glioma_dist.evaluation.image_score import ImageScore
    from glioma_dist.evaluation.protocol import EvaluationResult


def check(config: EvaluateConfig) -> None:
    """Raises InputError for missing inputs."""
    check_checkpoint("--checkpoint", config.checkpoint)
    check_shards("--data", config.data, "evaluation")


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
            print(f"{image.dice:.4f}  {image.key}{_counts(image)}")
        print(
            f"{result.mean_dice:.4f}  mean Dice of {counted(len(result.images), 'image')} (input size "
            f"{result.input_size or 'own'}, metric size {result.metric_size or 'own'})"
        )
        for line in (*_of_classes(result), *_of_cells(result)):
            print(line)


def _counts(image: ImageScore) -> str:
    return f"  {counted(image.cells.num_found, 'cell')} found, {image.cells.num_true} true" if image.cells else ""


def _of_classes(result: EvaluationResult) -> list[str]:
    return [f"{dice:.4f}  mean Dice of {name}" for name, dice in result.dice_by_class.items()]


def _of_cells(result: EvaluationResult) -> list[str]:
    """Lines about single cells; none where they were not asked for."""
    score = result.instances
    if score is None:
        return []
    figures = {
        "AP of single cells, IoU 0.5 to 0.95": score.ap,
        "AP at IoU 0.5": score.ap_50,
        "AP at IoU 0.75": score.ap_75,
        "F1 at IoU 0.5": score.f1_50,
    }
    counts = f"{counted(score.num_found, 'cell')} found, {score.num_true} true; mean error of an image's count"
    return [
        *(f"{'none' if value is None else f'{value:.4f}'}  {name}" for name, value in figures.items()),
        f"{counts} {score.mean_count_error:.1f} (cells are scored at each image's own size)",
    ]


EVALUATE = Command(
    EvaluateConfig,
    run,
    (
        "glioma-dist evaluate --checkpoint runs/glioma/best --data shards/glioma_c6/test --out runs/glioma/scores.json",
        'accelerate launch --quiet --config_file "$(glioma-dist configs multi_gpu.yaml)" -m glioma_dist evaluate '
        "--checkpoint runs/glioma/best --data shards/glioma_c6/test --input-size 2592x1952 --metric-size 2592x1952",
    ),
    check,
)
