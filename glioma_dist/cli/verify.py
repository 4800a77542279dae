"""`glioma-dist verify`: compute stretches of a run again."""

from __future__ import annotations

from pathlib import Path

from glioma_dist.cli.command import Command
from glioma_dist.cli.inputs import check_folder_there, check_shards
from glioma_dist.config.verify import VerifyConfig


def check(config: VerifyConfig) -> None:
    """Raises InputError for missing inputs."""
    check_folder_there("RUN", Path(config.run))
    for folder in config.train:
        check_shards("--train", folder)


def run(config: VerifyConfig) -> None:
    """Verify the run. Raises InputError afterwards where it is not what its files say."""
    from glioma_dist.data.loader import start_workers
    from glioma_dist.distributed.context import DistributedContext
    from glioma_dist.training.verification import read_settings, verify

    settings = read_settings(config)
    with start_workers(settings.data) as workers:  # before a GPU and connections are set up
        verify(config, DistributedContext.start(settings.scale.timeout_s), workers)


VERIFY = Command(
    VerifyConfig,
    run,
    (
        "glioma-dist verify runs/glioma",
        "glioma-dist verify runs/glioma --stretches 10 --seed 7 --train /data/glioma_c6/train",
        'accelerate launch --quiet --config_file "$(glioma-dist configs multi_gpu.yaml)" --num_processes 4 '
        "-m glioma_dist verify runs/glioma",
    ),
    check,
)
