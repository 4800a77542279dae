"""DS of the article over all images of shards, and scores of single cells."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glioma_dist.config import EvaluateConfig
from glioma_dist.config.file import checked
from glioma_dist.config.paths import Url
from glioma_dist.data.background import check_cells
from glioma_dist.data.loader import evaluation_samples
from glioma_dist.data.remote_checkpoint import fetch_checkpoint
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.store import Store
from glioma_dist.data.shards.unlisted import describe_unlisted
from glioma_dist.data.worker_pool import WorkerPool
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.numerics import numerics
from glioma_dist.distributed.own_context import given_or_own
from glioma_dist.distributed.own_modes import own_modes
from glioma_dist.evaluation.image_score import ImageScore, check_labels, score_image
from glioma_dist.evaluation.instances import InstanceScore, score_instances
from glioma_dist.evaluation.network import load_network
from glioma_dist.files import check_new_file, make_folder, write_json_atomically
from glioma_dist.size import Size


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of a checkpoint on shards."""

    mean_dice: float
    """Mean Dice over the images, from 0 to 1: DS of the article."""
    images: tuple[ImageScore, ...]
    """Each image once, sorted by key."""
    input_size: Size | None
    """R1: the size that images were scaled to for the network; None: each image's own."""
    metric_size: Size | None
    """R2: the size that output and reference were scaled to for Dice; None: each image's own."""
    checkpoint: Path | Url
    step: int | None
    """Optimizer steps that the checkpoint was trained for; None where it is not of a training run."""
    data: dict[str, str]
    """Name of the data set, of the split, and the licence."""
    path: Path | Url | None
    """The JSON file with these scores, where `config.out` asked for one."""
    dice_by_class: dict[str, float] = field(default_factory=dict)
    """Mean Dice over the images of each class of cells, by its name, where there are several."""
    instances: InstanceScore | None = None
    """Scores of single cells, where `config.instances` asked for them."""

    def to_dict(self) -> dict[str, Any]:
        """What the JSON file holds."""
        more: dict[str, Any] = {"dice_by_class": self.dice_by_class} if self.dice_by_class else {}
        if self.instances is not None:
            more["instances"] = self.instances.to_dict()
        return {
            "dice_mean": self.mean_dice,
            "num_images": len(self.images),
            "input_size": str(self.input_size or "own"),
            "metric_size": str(self.metric_size or "own"),
            "checkpoint": str(self.checkpoint),
            "step": self.step,
            "data": self.data,
            **more,
            "images": [image.to_dict() for image in self.images],
        }


@own_modes()
def evaluate(
    config: EvaluateConfig, context: DistributedContext | None = None, workers: WorkerPool | None = None
) -> EvaluationResult:
    """Score a checkpoint on shards with DS, the Dice of the article (`score_image`).

    Starts no processes: it computes in this one. If the script was started by `accelerate launch`, every process of the
    launch calls it. Every image is scored once, whatever the number of processes.

    Args:
        config: the checkpoint, the shards and the two sizes. Paths and sizes may be given as text.
        context: rank and device of this process; by default it is made here, and closed at the end.
        workers: processes that read the data; by default they are started here before anything else, and end with the
            call.

    Returns the scores, the same on all processes. They are written to `config.out` if it is given.

    Raises:
        InputError: the checkpoint, the data or a setting cannot be used.
        UnavailableError: a process, a worker or a store did not answer.
    """
    config = checked(EvaluateConfig, config)
    started = nullcontext(workers) if workers else WorkerPool(config.workers)
    with started as pool, given_or_own(context) as here, numerics():
        return _evaluate(config, here, pool)


def _evaluate(config: EvaluateConfig, context: DistributedContext, pool: WorkerPool) -> EvaluationResult:
    if isinstance(config.out, Url):
        if context.is_main:
            Store(config.out.parent).check()
    elif config.out:
        check_new_file("--out", config.out)
    reader = ShardReader(config.data)
    if context.is_main:
        for note in (describe_unlisted(reader), check_cells([reader], "--data", is_needed=False)):
            if note:
                print(note, flush=True)
    given = (fetch_checkpoint(config.checkpoint), config.scale.spatial_parallel, context, config.raw_weights)
    network, checkpoint = load_network(*given)
    contrast = checkpoint.config.data.intensity_normalization
    check_labels(reader, checkpoint.config.model.classes, config.instances)
    if config.input_size:
        network.fit(config.input_size)
    group = network.spatial_group
    samples = evaluation_samples(
        reader,
        group.dp_rank,
        group.dp_size,
        config.workers,
        context.seconds_to_answer,
        contrast,
        pool,
        config.instances,
    )
    # Their contrast is stretched already.
    here = [score_image(network, sample, config.input_size, config.metric_size, config.instances) for sample in samples]
    images = tuple(sorted(context.gather_objects(here if group.rank == 0 else []), key=lambda image: image.key))
    result = EvaluationResult(
        mean_dice=statistics.fmean(image.dice for image in images),
        images=images,
        input_size=config.input_size,
        metric_size=config.metric_size,
        checkpoint=config.checkpoint,
        step=checkpoint.step,
        data={name: reader.index[name] for name in ("dataset", "split", "licence")},
        path=config.out,
        dice_by_class=_means_by_class(images, checkpoint.config.model.classes),
        instances=score_instances([image.cells for image in images if image.cells]) if config.instances else None,
    )
    if isinstance(config.out, Url):
        if context.is_main:
            Store(config.out.parent).put(config.out.name, (json.dumps(result.to_dict(), indent=2) + "\n").encode())
    elif config.out and context.is_main:
        make_folder(config.out.parent)
        write_json_atomically(config.out, result.to_dict())
    return result


def _means_by_class(images: Sequence[ImageScore], classes: Sequence[str]) -> dict[str, float]:
    """Mean Dice of each class over the images; empty where there is one class."""
    each_class = zip(*(image.dice_by_class for image in images), strict=True)
    return {name: statistics.fmean(values) for name, values in zip(classes, each_class, strict=True)}
