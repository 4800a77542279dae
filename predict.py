"""Masks for images: `accelerate launch predict.py --help`, or `python predict.py` for one process."""

import sys

from glioma_dist.distributed.run_command import run_command


def main() -> None:
    # Within run_command, so that a signal while the libraries are imported ends as any other does.
    from glioma_dist.cli.arguments import parse
    from glioma_dist.config import PredictConfig

    config = parse(PredictConfig, sys.argv[1:])

    from glioma_dist.distributed.context import DistributedContext
    from glioma_dist.inference.predict import predict

    context = DistributedContext.start()
    result = predict(config, context)
    result.raise_for_failures()
    if context.is_main:
        print(f"{len(result.images)} masks, overlays and summary.csv in {config.out}")


if __name__ == "__main__":
    run_command(main)
