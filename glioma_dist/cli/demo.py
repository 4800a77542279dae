"""`glioma-dist demo`: from drawn cells to scores and masks, by the commands that a user types."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glioma_dist.cli.command import Command
from glioma_dist.errors import InputError
from glioma_dist.files import check_new_folder

BATCH_SIZE = 4
"""Of the training (see `glioma_dist.demo.steps`)."""


@dataclass(frozen=True)
class DemoConfig:
    """Draw cells, convert them, train on them, score and mask, in some minutes and without any data. Every command that
    is run is printed. The cells are drawn, not photographed: the scores say nothing about biology."""

    out: Path = Path("runs/demo")
    """Folder for everything: source/, shards/, run/, scores.json, masks/."""
    draw_only: bool = False
    """Draw the two data sets into source/, and do nothing else."""
    seed: int = 0
    """Of the drawing: the same seed (and the same libraries) gives the same bytes."""
    livecell: tuple[int, int, int] = (24, 6, 6)
    """Number of LIVECell-like images for training, validation and test."""
    glioma: tuple[int, int, int] = (15, 5, 10)
    """Number of Glioma-like images for training, validation and test."""
    max_steps: int = 64
    """Steps of the training."""

    def validate(self) -> None:
        """Raises InputError where nothing could be drawn."""
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: give 0 or more")
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
    """Draw, or draw and do all the rest."""
    if config.draw_only:
        from glioma_dist.demo.drawing import draw_sets

        draw_sets(config.out / "source", config.seed, config.livecell, config.glioma)
        return
    from glioma_dist.demo.steps import choose_launch_file, demo_steps, run_steps

    training = [] if config.max_steps == DemoConfig.max_steps else ["--max-steps", str(config.max_steps)]
    run_steps(demo_steps(config.out, drawing_flags(config), training, choose_launch_file()))
    print(f"\nScores: {config.out / 'scores.json'}. Pictures to look at (drawn cells, not photographed ones):")
    for path in sorted((config.out / "masks").glob("*.overlay.png")):
        print(f"  {path}")


def drawing_flags(config: DemoConfig) -> list[str]:
    """Those of the drawing that differ from the defaults."""
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
