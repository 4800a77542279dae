"""Trainings of the proof run: small, the same on every device, with all that is random switched on."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from glioma_dist.benchmark.proof.lines import Setting, worst
from glioma_dist.config import DataConfig, ModelConfig, TrainConfig
from glioma_dist.scale.planner import Level
from glioma_dist.size import Size
from glioma_dist.training import loop

SIZE, BATCH_SIZE, LEARNING_RATE = Size(64, 64), 4, 1e-4
DECODER_CHANNELS = (16, 16, 8, 8, 8)
USE_CPU, PRECISION = "ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION"


def make_config(setting: Setting, name: str, **changes: Any) -> TrainConfig:
    """A run of four steps with two validations in the folder `name`; `changes` are fields of the config, of its data,
    its model and its scale."""
    shards = Path(setting.shards)
    config = TrainConfig(
        data=DataConfig(
            train=shards / "train",
            val=shards / "val",
            size=SIZE,
            transform="random-crop",
            augment=("flips",),
            workers=0,
        ),
        model=ModelConfig(encoder="mit_tiny", decoder_channels=DECODER_CHANNELS),
        batch_size=BATCH_SIZE,
        max_steps=4,
        eval_every=2,
        lr=LEARNING_RATE,
        out=Path(setting.folder) / name,
    )
    for part in ("data", "model", "scale"):
        section = getattr(config, part)
        own = {field.name for field in fields(section)} & changes.keys()
        config = replace(config, **{part: replace(section, **{each: changes.pop(each) for each in own})})
    return replace(config, **changes)


def step_config(
    setting: Setting, name: str, level: Level, encoder: str, size: Size, num_steps: int, tiny: bool | None = None
) -> TrainConfig:
    """A run of one image a step without validation, of the network at its full width. tiny: of the smallest network
    and size instead; by default in a rehearsal."""
    changes: dict[str, Any] = {"val": None, "max_steps": num_steps, "eval_every": num_steps, "batch_size": 1}
    changes |= {"activation_checkpointing": level, "transform": "resize", "epochs": num_steps}
    if not (setting.tiny if tiny is None else tiny):
        changes |= {"encoder": encoder, "size": size, "decoder_channels": ModelConfig.decoder_channels}
    return make_config(setting, name, **changes)


def variables_of_step(setting: Setting) -> dict[str, str]:
    """Of the environment of such a run: bf16 on a GPU, as its launch files have it."""
    return variables(setting, "no" if setting.tiny else "bf16")


def variables(setting: Setting, precision: str = "no") -> dict[str, str]:
    """What the environment of a run on the setting's device has in it."""
    return {USE_CPU: "true" if setting.device == "cpu" else "false", PRECISION: precision}


def train_command(setting: Setting, out: Path, **flags: object) -> list[str]:
    """`glioma-dist train` of such a run, as a user starts it, without validation or an end of its epochs.

    flags: more of them, by their names with _ for -; True for one that takes no value.
    """
    shared = {"data.train": f"{setting.shards}/train", "data.size": SIZE, "data.transform": "random-crop"}
    shared |= {"data.augment": "flips", "data.workers": 0, "model.encoder": "mit_tiny", "batch-size": BATCH_SIZE}
    shared |= {"model.decoder-channels": DECODER_CHANNELS, "epochs": 100_000, "out": out}
    words = [sys.executable, "-m", "glioma_dist", "train"]
    for name, value in (shared | {each.replace("_", "-"): value for each, value in flags.items()}).items():
        values = value if isinstance(value, tuple) else () if value is True else (value,)
        words += [f"--{name}", *map(str, values)]
    return words


@contextmanager
def environment(changes: Mapping[str, str]) -> Generator[None]:
    """Within it, this process's environment has these variables."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def train_here(config: TrainConfig, with_variables: Mapping[str, str]) -> list[dict]:
    """Train in this process; returns the rows of its metrics."""
    with environment(with_variables):
        loop.train(config)
    return read_rows(config.out)


def read_rows(out: Path) -> list[dict]:
    """metrics.jsonl, as far as it is written; of a run that has not ended, without a line of which a part is there."""
    file = out / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def largest_difference(rows: list[dict], expected: list[dict]) -> float:
    """Of the losses and scores of two runs: the largest difference, in shares of the expected number. Infinite where
    the runs have not the same rows, or none."""
    names = ("step", "epoch", "split")
    if [[row.get(name) for name in names] for row in rows] != [[row.get(name) for name in names] for row in expected]:
        return float("inf")
    return worst(
        abs(one["loss"] - other["loss"]) / max(abs(other["loss"]), 1e-12)
        for one, other in zip(rows, expected, strict=True)
    )
