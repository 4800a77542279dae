"""Draw a plate whose growth is known: wells with several fields, pictures every few hours, in phase contrast.

    python tools/draw_time_lapse.py --out runs/growth/plate
    glioma-dist predict --checkpoint t98g-small --images runs/growth/plate --out runs/growth/preds
    glioma-dist growth runs/growth/preds --out runs/growth/curves

Names are Incucyte's: drawn_A1_2_01d04h00m.png is field 2 of well A1. The area of the cells doubles in the hours that
`--doubling-hours` names for each well, from the end of its lag to the plateau. drawn.csv has the confluence of the
drawn masks, as summary.csv has the predicted one: `glioma-dist growth runs/growth/plate/drawn.csv --out runs/drawn`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from glioma_dist.cli.arguments import parse
from glioma_dist.csv_tables import csv_table
from glioma_dist.data.sample import encode_image
from glioma_dist.demo.drawing import GLIOMA, Cell, cell_mask, draw_image, place_cells
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError
from glioma_dist.files import check_new_folder, make_folder, write_atomically
from glioma_dist.limits import check_seed

MAX_PLATEAU = 0.25
"""More cells do not find a place where they touch no other."""
GAP_PX = 7
"""Between two cells: with less, networks take the halo between them for cell."""
LOOK = replace(GLIOMA, half_length_px=22, num_debris=8)
COLUMNS = ("image", "width", "height", "confluence")


@dataclass(frozen=True)
class TimeLapseConfig:
    """Draw a plate whose growth is known."""

    out: Path
    """Folder for the pictures and drawn.csv."""
    doubling_hours: tuple[float, ...] = (18, 24, 36, 0)
    """Hours in which the cells of each well double their area; 0 for a well that does not grow."""
    lag_hours: float = 8
    """Hours before they begin to grow."""
    first: float = 0.05
    """Confluence of the first pictures."""
    plateau: float = 0.24
    """Confluence at which they stop."""
    fields: int = 3
    """Fields of a well."""
    hours: int = 72
    """Hours from the first picture to the last."""
    step_hours: int = 4
    """Hours between two pictures of a field."""
    seed: int = 0

    def validate(self) -> None:
        """Raises InputError for settings that cannot be drawn."""
        check_new_folder("--out", self.out)
        check_seed("--seed", self.seed)
        if min(self.fields, self.hours, self.step_hours) < 1:
            raise InputError("--fields, --hours, --step-hours: give 1 or more")
        if min(self.doubling_hours, default=-1) < 0 or self.lag_hours < 0:
            raise InputError("--doubling-hours, --lag-hours: give 0 or more")
        if not 0 < self.first <= self.plateau <= MAX_PLATEAU:
            raise InputError(f"--first, --plateau: give shares above 0, at most {MAX_PLATEAU}, in this order")

    def confluence(self, well: int, hour: float) -> float:
        """Of a well at a time."""
        doubling = self.doubling_hours[well]
        doublings = max(hour - self.lag_hours, 0) / doubling if doubling else 0
        return min(self.first * 2 ** min(doublings, 64), self.plateau)


def choose_cells(config: TimeLapseConfig, well: int, field: int) -> tuple[list[Cell], np.ndarray]:
    """Cells of a field in the order in which they appear, none of which touches another; and the confluence with the
    first, the first two, ... of them."""
    generator = np.random.default_rng([config.seed, well, field])
    taken = np.zeros((LOOK.height, LOOK.width), np.uint8)
    around = np.ones((2 * GAP_PX + 1, 2 * GAP_PX + 1), np.uint8)
    cells: list[Cell] = []
    covered: list[float] = []
    while not covered or covered[-1] < config.confluence(well, config.hours):
        for cell in place_cells(generator, replace(LOOK, num_cells=(60, 60)), age=1):
            mask = cell_mask(cell.outline, LOOK)
            if not (cv2.dilate(mask, around) & taken).any():
                taken |= mask
                cells.append(cell)
                covered.append(float(taken.mean()))
    return cells, np.array(covered)


def draw_field(config: TimeLapseConfig, well: int, field: int) -> Iterator[tuple[int, np.ndarray, float]]:
    """Hour, picture (height, width) uint8 and confluence of each picture of a field. Cells stay where they are."""
    cells, covered = choose_cells(config, well, field)
    for hour in range(0, config.hours + 1, config.step_hours):
        number = int(np.abs(covered - config.confluence(well, hour)).argmin()) + 1
        generator = np.random.default_rng([config.seed, well, field, hour])
        yield hour, draw_image(generator, LOOK, cells[:number], rgb=False), float(covered[number - 1])


def run(config: TimeLapseConfig) -> None:
    """Draw all pictures, and the table of their confluence."""
    make_folder(config.out)
    rows = []
    for well in range(len(config.doubling_hours)):
        for field in range(config.fields):
            for hour, picture, confluence in draw_field(config, well, field):
                name = f"drawn_A{well + 1}_{field + 1}_{hour // 24:02d}d{hour % 24:02d}h00m.png"
                write_atomically(config.out / name, encode_image(picture))
                row = (str(config.out / name), LOOK.width, LOOK.height, confluence)
                rows.append(dict(zip(COLUMNS, row, strict=True)))
        print(f"{config.out}: well A{well + 1} doubles in {config.doubling_hours[well]:g} h", flush=True)
    write_atomically(config.out / "drawn.csv", csv_table(COLUMNS, rows))


if __name__ == "__main__":
    run_command(lambda: run(parse(TimeLapseConfig)))
