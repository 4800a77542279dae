"""A second output that learns distances tells cells apart that touch."""

import csv
from dataclasses import replace

import cv2
import numpy as np
import pytest
from helpers import tiny_config, write_shards
from scipy import ndimage

from glioma_dist.config import PredictConfig
from glioma_dist.data.sample import Sample
from glioma_dist.inference.predict import predict
from glioma_dist.training import loop

RADIUS = 9


def draw_pairs(number: int) -> Sample:
    """Two pairs of discs that touch along a short line, each the brighter the deeper."""
    generator = np.random.default_rng([11, number])
    instances = np.zeros((64, 64), np.uint16)
    for pair in range(2):
        x, y = int(generator.integers(20, 44)), 15 + 32 * pair + int(generator.integers(3))
        for side in range(2):
            cv2.circle(instances, (x + (2 * side - 1) * (RADIUS - 1), y), RADIUS, 2 * pair + side + 1, thickness=-1)
    depth = sum(ndimage.distance_transform_edt(instances == cell) for cell in range(1, 5))
    image = 40 + 18 * depth + generator.normal(0, 6, depth.shape)
    return Sample(
        f"pairs-{number:03d}", image.clip(0, 255).astype(np.uint8), (instances > 0).astype(np.uint8), {}, instances
    )


def test_after_a_short_training_on_distances_more_cells_are_told_apart(tmp_path, runtime):
    pytest.importorskip("skimage", reason="pip install scikit-image")
    write_shards(tmp_path / "train", [draw_pairs(number) for number in range(8)])
    config = tiny_config(
        *(tmp_path, tmp_path / "run"),
        **{"val": None, "transform": "resize", "augment": ("flips",), "targets": ("mask", "distance"), "lr": 1e-2},
        **{
            "max_steps": 120,
            "epochs": 120,
            "loss": "dice+bce",
            "norm": "group",
            "decoder_channels": (32, 32, 16, 16, 8),
        },
    )
    loop.train(replace(config, target_weight=5.0), runtime)
    (tmp_path / "images").mkdir()
    for number in range(100, 104):
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), draw_pairs(number).image)
    predict(PredictConfig(tmp_path / "run" / "last", str(tmp_path / "images"), tmp_path / "preds"), runtime)
    with open(tmp_path / "preds" / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    cells, components = (np.array([int(row[name]) for row in rows]) for name in ("cells", "components"))
    assert len(rows) == 4
    assert (components <= 3).all(), "the discs of each pair are one component"
    assert cells.sum() > components.sum()
    assert np.abs(cells - 4).sum() < np.abs(components - 4).sum(), (cells, components)
