"""What a second output brings: scores of single cells by the components of the mask, and by a watershed with several
limits of its markers.

    python benchmarks/touching_cells.py runs/cells/best shards/cells/val

Choose limits by validation images, and report test images with `MARKER_LIMITS` and `LEAST_MARKER_PIXELS` alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from glioma_dist.data.loader import evaluation_samples
from glioma_dist.data.sample import IGNORE, Sample
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.distributed.own_context import given_or_own
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError
from glioma_dist.evaluation import separation
from glioma_dist.evaluation.dice import class_counts, dice_from
from glioma_dist.evaluation.image_score import found_cells
from glioma_dist.evaluation.instances import MatchedCells, match_cells, mean_by_cell, score_instances
from glioma_dist.evaluation.maps import cell_map, class_map
from glioma_dist.evaluation.network import THRESHOLD, Network, load_network, pixel_maps
from glioma_dist.size import Size

LIMITS = (0.3, 0.4, 0.5, 0.6)
LEAST_PIXELS = (5, 20, 50)


def main(*given: str) -> None:
    """Print a row for each way."""
    if len(given) != 2:
        raise InputError("give two, as in python benchmarks/touching_cells.py runs/cells/best shards/cells/val")
    checkpoint, reader = given[0], ShardReader(given[1])
    if not reader.has_instances:
        raise InputError(f"{given[1]}: has no number for each cell; convert it again with --instances")
    with given_or_own(None) as context:
        network, read = load_network(Path(checkpoint), 1, context)
        contrast = read.config.data.intensity_normalization
        samples = list(evaluation_samples(reader, 0, 1, 0, 0, contrast, with_instances=True))
        maps = [_maps(network, sample) for sample in samples]
    dice = [_dice(network, each, sample) for each, sample in zip(maps, samples, strict=True)]
    print(f"{len(samples)} images, mean Dice {np.mean(dice):.4f}")
    print("way | AP | AP at 0.5 | F1 at 0.5 | found | true | mean error of the count")
    for name, each in _ways(network):
        score = score_instances([_matched(each, of, sample) for of, sample in zip(maps, samples, strict=True)])
        figures = (score.ap, score.ap_50, score.f1_50)
        print(name, *("–" if value is None else f"{value:.4f}" for value in figures), sep=" | ", end=" | ")
        print(score.num_found, score.num_true, f"{score.mean_count_error:.1f}", sep=" | ")


def _ways(network: Network) -> Iterator[tuple[str, Network]]:
    """Networks that read the same maps in several ways. The limits hold until the next one is asked for."""
    target = network.outputs.target
    yield "components", replace(network, outputs=replace(network.outputs, target=None))
    if target is None:
        return
    yield "watershed", network
    for limit, pixels in product(LIMITS, LEAST_PIXELS):
        separation.MARKER_LIMITS[target], separation.LEAST_MARKER_PIXELS = limit, pixels
        yield f"watershed, limit {limit}, markers of {pixels} pixels or more", network


def _maps(network: Network, sample: Sample) -> np.ndarray:
    height, width = sample.mask.shape
    return pixel_maps(network, sample.image, None, Size(width, height))[0].cpu().numpy()


def _dice(network: Network, maps: np.ndarray, sample: Sample) -> float:
    """Of cells of any class, as `evaluate` scores one class: of the pixels that are labelled."""
    found, true = torch.from_numpy(class_map(network.outputs, maps, THRESHOLD)), torch.from_numpy(sample.mask)
    return float(dice_from(class_counts(found, true))[0])


def _matched(network: Network, maps: np.ndarray, sample: Sample) -> MatchedCells:
    """As `evaluate --instances` matches them: pixels that nobody labelled belong to no cell."""
    known = sample.mask != IGNORE
    found, true = found_cells(network, maps) * known, np.asarray(sample.instances) * known
    return match_cells(found, mean_by_cell(found, cell_map(network.outputs, maps)), true)


if __name__ == "__main__":
    run_command(lambda: main(*sys.argv[1:]))
