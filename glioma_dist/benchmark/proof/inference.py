"""Whether a network scores and segments images on a device as it does on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from glioma_dist.benchmark.proof.lines import Findings, Setting, worst
from glioma_dist.benchmark.proof.trainings import environment, make_config, train_here, variables
from glioma_dist.config import EvaluateConfig, PredictConfig
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.evaluation.protocol import EvaluationResult, evaluate
from glioma_dist.files import write_atomically
from glioma_dist.inference.predict import predict

DICE_LIMIT = 1e-3
PIXELS_LIMIT = 1e-3
"""Share of pixels whose probability lies so near the threshold that rounding decides."""
LEARNING_RATE, NUM_STEPS = 1e-2, 24
"""Of a training after which masks are neither empty nor full."""
EMPTY = 0.01


def compare_inference(setting: Setting, findings: Findings) -> None:
    """The same checkpoint on the CPU and on the device: the scores of `evaluate` and the masks of `predict`."""
    config = make_config(setting, "trained", lr=LEARNING_RATE, epochs=NUM_STEPS, max_steps=NUM_STEPS, val=None)
    train_here(config, variables(setting))
    folder, shards = Path(setting.folder), Path(setting.shards) / "val"
    (folder / "images").mkdir()
    reader = ShardReader(shards)  # so few images are in one shard
    for number in range(len(reader)):
        sample = reader.read(0, number)
        write_atomically(folder / "images" / f"{sample.key}.png", cv2.imencode(".png", sample.image)[1].tobytes())
    checkpoint = config.out / "last"
    expected, on_cpu = use(checkpoint, shards, replace(setting, device="cpu"), folder / "on_cpu")
    found, on_device = use(checkpoint, shards, setting, folder / "on_device")
    pairs = zip(found.images, expected.images, strict=True)
    told = f"mean Dice {found.mean_dice:.4f}, on the CPU {expected.mean_dice:.4f}"
    findings.at_most("evaluate: Dice", worst(abs(one.dice - other.dice) for one, other in pairs), DICE_LIMIT, note=told)
    differing = worst(float((one != other).mean()) for one, other in zip(on_device, on_cpu, strict=True))
    told = f"{len(on_cpu)} masks, with cells in {np.mean(on_cpu) / 255:.0%} of their pixels"
    findings.at_most("predict: masks", differing, PIXELS_LIMIT, "of the pixels", told)
    emptiest = min(float(min(mask.mean(), 255 - mask.mean())) / 255 for mask in on_cpu)
    findings.at_least(
        "predict: cells and background", emptiest, EMPTY, "of the pixels of each mask, else nothing is compared"
    )


def use(checkpoint: Path, shards: Path, setting: Setting, out: Path) -> tuple[EvaluationResult, list[np.ndarray]]:
    """Scores on shards, and the masks of the images, (H, W) of 0 and 255, on the setting's device."""
    with environment(variables(setting)):
        scores = evaluate(EvaluateConfig(checkpoint, str(shards), workers=0))
        result = predict(PredictConfig(checkpoint, str(out.parent / "images"), out))
    return scores, [cv2.imread(str(each.files["mask"]), cv2.IMREAD_UNCHANGED) for each in result.images]
