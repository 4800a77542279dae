"""`glioma-dist train`: train a U-Net on shards."""

from __future__ import annotations

from glioma_dist.cli.command import Command
from glioma_dist.cli.inputs import check_file, check_init, check_shards
from glioma_dist.config import TrainConfig
from glioma_dist.config.paths import Url


def check(config: TrainConfig) -> None:
    """Raises InputError for missing inputs."""
    for folder in config.data.train:
        check_shards("--data.train", folder, "training")
    check_shards("--data.val", config.data.val, "validation")
    if isinstance(config.out, Url) or not any(config.out.glob("last*")):  # a resumed run reads its own weights
        check_init("--model.init", config.model.init)
        check_file("--model.weights", config.model.weights)


def run(config: TrainConfig) -> None:
    """Train."""
    from glioma_dist.data.loader import start_workers
    from glioma_dist.distributed.context import DistributedContext
    from glioma_dist.training.loop import train

    with start_workers(config.data) as workers:  # before a GPU and connections are set up
        train(config, DistributedContext.start(config.scale.timeout_s), workers)


TRAIN = Command(
    TrainConfig,
    run,
    (
        'accelerate launch --quiet --config_file "$(glioma-dist configs gpu.yaml)" -m glioma_dist train '
        "--data.train shards/livecell/train --data.val shards/livecell/val --out runs/livecell",
        'accelerate launch --quiet --config_file "$(glioma-dist configs multi_gpu.yaml)" --num_processes 4 '
        "-m glioma_dist train --data.train shards/glioma_c6/train --batch-size 8 --model.init runs/livecell/best "
        "--out runs/glioma",
        'glioma-dist train --config "$(glioma-dist configs recipes/quick.yaml)" --data.train shards/t98g/train '
        "--data.val shards/t98g/val --out runs/quick",
    ),
    check,
)
