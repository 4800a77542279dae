"""`glioma-dist demo`: run all commands on drawn cells, from converting to masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glioma_dist.cli.command import Command
from glioma_dist.errors import InputError
from glioma_dist.files import check_new_folder
from glioma_dist.limits import check_seed

BATCH_SIZE = 4
"""Of the training (see `glioma_dist.demo.steps`)."""


@dataclass(frozen=True)
class DemoConfig:
    """Draw cells, convert them, train, evaluate and predict, in a few minutes and without any data. Prints every
    command that it runs. The cells are synthetic: the scores say nothing about biology."""

    out: Path = Path("runs/demo")
    """Folder for all results: source/, shards/, run/, scores.json, masks/."""
    draw_only: bool = False
    """Only draw the two data sets into source/."""
    seed: int = 0
    """Random seed of the drawing. The same seed gives the same bytes with the same versions of the libraries."""
    livecell: tuple[int, int, int] = (24, 6, 6)
    """Number of LIVECell-like images for training, validation and test."""
    glioma: tuple[int, int, int] = (15, 5, 10)
    """Number of Glioma-like images for training, validation and test."""
    max_steps: int = 64
    """Number of training steps."""

    def validate(self) -> None:
        """Raises InputError for values that cannot be used."""
        check_seed("--seed", self.seed)
        for flag, counts in (("--livecell", self.livecell), ("--glioma", self.glioma)):
            if min(counts) < 1:
                raise InputError(f"{flag} {' '.join(map(str, counts))}: give 1 image or more for each split")
        if not self.draw_only and self.glioma[0] < BATCH_SIZE:
            raise InputError(
                f"--glioma {' '.join(map(str, self.glioma))}: a batch has {BATCH_SIZE} images; give {BATCH_SIZE} or "
                "more for training"
            )
        if self.max_steps < 1:
            raise InputError(f"--max-steps {self.max_steps}: give 1 or more")

    def without_effect(self) -> list[str]:
        """Flags that other flags leave without an effect, each with the reason."""
        is_idle = self.draw_only and self.max_steps != DemoConfig.max_steps
        return ["--max-steps with --draw-only"] if is_idle else []


def run(config: DemoConfig) -> None:
    """Draw the data sets, and unless --draw-only, run all other commands."""
    if config.draw_only:
        from glioma_dist.demo.drawing import draw_sets

        draw_sets(config.out / "source", config.seed, config.livecell, config.glioma)
        return
    from glioma_dist.demo.steps import choose_launch_file, demo_steps, run_steps

    training = [] if config.max_steps == DemoConfig.max_steps else ["--max-steps", str(config.max_steps)]
    run_steps(demo_steps(config.out, drawing_flags(config), training, choose_launch_file()))
    print(f"\nScores: {config.out / 'scores.json'}. Overlays of the predicted masks (synthetic cells):")
    for path in sorted((config.out / "masks").glob("*.overlay.png")):
        print(f"  {path}")


def drawing_flags(config: DemoConfig) -> list[str]:
    """Return the flags of the drawing that differ from the defaults."""
    flags = []
    for name in ("livecell", "glioma"):
        if getattr(config, name) != getattr(DemoConfig, name):
            flags += [f"--{name}", *map(str, getattr(config, name))]
    return flags + (["--seed", str(config.seed)] if config.seed else [])


DEMO = Command(
    DemoConfig,
    run,
    ("glioma-dist demo", "glioma-dist demo --out runs/small_demo --glioma 6 2 2 --max-steps 8"),
    lambda config: check_new_folder("--out", config.out),
)
