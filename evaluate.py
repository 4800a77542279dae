"""Dice of a checkpoint on shards, as the article measures it: `accelerate launch evaluate.py --help`."""

import sys

from glioma_dist.distributed.run_command import run_command


def main() -> None:
    # Within run_command, so that a signal while the libraries are imported ends as any other does.
    from glioma_dist.cli.arguments import parse
    from glioma_dist.config import EvaluateConfig

    config = parse(EvaluateConfig, sys.argv[1:])

    from glioma_dist.distributed.context import DistributedContext
    from glioma_dist.evaluation.protocol import evaluate

    context = DistributedContext.start()
    result = evaluate(config, context)
    if context.is_main:
        for image in result.images:
            print(f"{image.dice:.4f}  {image.key}")
        print(
            f"{result.mean_dice:.4f}  mean Dice of {len(result.images)} images (input {result.input_size or 'own'}, "
            f"compared at {result.metric_size or 'own'} size)"
        )


if __name__ == "__main__":
    run_command(main)
