"""How much tiles change a mask, by their overlap and size: two images put together from fields, whole and in tiles.

    python benchmarks/tile_overlap.py t98g/images/default

Prints the table of docs/guides/large_images.md, with the network t98g-small. The folder has twelve fields or more; by
their names, the first six are one image, two rows of three, and the next six the other. Both are cut to 2592x1944.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from glioma_dist.config.networks import NETWORKS
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.distributed.own_context import given_or_own
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError
from glioma_dist.evaluation.maps import class_map
from glioma_dist.evaluation.network import THRESHOLD, Network, load_network, pixel_maps
from glioma_dist.inference.large.picture import ArrayPicture
from glioma_dist.inference.large.tiles import OVERLAP, compute_in_tiles, tile_spans
from glioma_dist.size import Size

SIZE = Size(2592, 1944)
CASES = ((64, 1024), (128, 1024), (256, 1024), (384, 1024), (128, 1536), (256, 1536), (OVERLAP, 1536), (256, 2048))
"""Overlap and largest side of a tile, in pixels."""
NUM_FIELDS, LEAST_FIELD = 12, Size(SIZE.width // 3, SIZE.height // 2)


def main(*folders: str) -> None:
    """Print a row for each overlap and size."""
    if len(folders) != 1:
        raise InputError("give one folder, as in python benchmarks/tile_overlap.py t98g/images/default")
    paths = sorted(Path(folders[0]).glob("*.png"))[:NUM_FIELDS]
    fields = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths]
    shapes = {None if field is None else field.shape for field in fields}
    height, width = next((shape for shape in shapes if shape), (0, 0))
    is_large = width >= LEAST_FIELD.width and height >= LEAST_FIELD.height
    if len(fields) < NUM_FIELDS or len(shapes) > 1 or None in shapes or not is_large:
        raise InputError(
            f"{folders[0]}: give a folder with {NUM_FIELDS} or more PNG images of one size, {LEAST_FIELD} or larger"
        )
    with given_or_own(None) as context:
        network, checkpoint = load_network(NETWORKS / "t98g-small", 1, context)
        contrast = checkpoint.config.data.intensity_normalization
        images = [normalize_intensity(_joined(fields[start : start + 6]), contrast) for start in (0, 6)]
        wholes = [_mask(network, pixel_maps(network, image, None, SIZE)[0][0].cpu().numpy()) for image in images]
        confluence = " and ".join(f"{100 * whole.mean():.1f} %" for whole in wholes)
        print(f"Confluence {confluence}. Of each image: mask pixels that differ, difference of confluence\n")
        print("| Overlap in pixels | Tiles | Image 1 | Image 2 | Image 1 | Image 2 |\n|---|---|---|---|---|---|")
        for overlap, side in CASES:
            tiled = [_in_tiles(network, image, side, overlap) for image in images]
            pairs = list(zip(tiled, wholes, strict=True))
            differ = " | ".join(f"{100 * (mask != whole).mean():.3f} %" for mask, whole in pairs)
            shift = " | ".join(f"{100 * (mask.mean() - whole.mean()):+.3f}" for mask, whole in pairs)
            print(f"| {overlap} | {_tiles(side, overlap)} | {differ} | {shift} |", flush=True)


def _joined(fields: list[np.ndarray]) -> np.ndarray:
    return np.vstack([np.hstack(fields[:3]), np.hstack(fields[3:])])[: SIZE.height, : SIZE.width]


def _tiles(side: int, overlap: int) -> str:
    """Number and size of the tiles."""
    columns, rows = tile_spans(SIZE.width, side, overlap), tile_spans(SIZE.height, side, overlap)
    return f"{len(columns) * len(rows)} of {columns[0][1]}x{rows[0][1]}"


def _in_tiles(network: Network, image: np.ndarray, side: int, overlap: int) -> np.ndarray:
    parts: list[np.ndarray] = []
    compute_in_tiles(network, ArrayPicture(image), side, lambda _, rows: parts.append(rows.copy()), overlap)
    return _mask(network, np.concatenate(parts))


def _mask(network: Network, probability: np.ndarray) -> np.ndarray:
    """The mask (H, W), 0 or 1, of a probability (H, W)."""
    return class_map(network.outputs, probability[None], THRESHOLD)


if __name__ == "__main__":
    run_command(lambda: main(*sys.argv[1:]))
