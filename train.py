"""Train a U-Net on shards: `accelerate launch train.py --help`."""

import sys

from glioma_dist.distributed.run_command import run_command


def main() -> None:
    # The libraries take seconds to import: within run_command, so that a signal during them ends as any other does.
    from glioma_dist.benchmark.encoder_table import asks_for_table, encoder_table
    from glioma_dist.cli.arguments import parse
    from glioma_dist.config import TrainConfig

    if asks_for_table(sys.argv[1:]):
        print(encoder_table())
        return
    config = parse(TrainConfig, sys.argv[1:])

    from glioma_dist.distributed.context import DistributedContext
    from glioma_dist.training.loop import train

    train(config, DistributedContext.start(config.scale.timeout_s))


if __name__ == "__main__":
    run_command(main)
