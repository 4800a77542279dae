"""The flags of `glioma-dist growth`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from glioma_dist.config.paths import InputPath, OutputPath
from glioma_dist.errors import InputError, one_line

MIN_POINTS = 4
"""Least number of points from which a line, its curvature and their errors can be computed."""
HOURS = {"day": 24.0, "hour": 1.0, "time": 1.0, "minute": 1 / 60, "second": 1 / 3600}
"""Group of a pattern that gives a time -> hours in one unit."""
GROUPS = ("plate", "well", "field", "frame", *HOURS)
"""All groups that a pattern may have."""
MAX_FRAME_HOURS = 1000.0


@dataclass(frozen=True)
class GrowthConfig:
    """Compute growth curves (confluence over time) and doubling times of cultures from the summary.csv of glioma-dist
    predict."""

    predictions: Annotated[InputPath, tyro.conf.Positional]
    """Folder or URL that glioma-dist predict wrote, or its summary.csv."""
    out: OutputPath
    """Folder or URL for growth.csv, growth.json, points.csv and the plots."""
    pattern: str | None = None
    """Regular expression that finds well and time in file names, with named groups: well, plate, field; day, hour,
    minute, second (added) or time (in hours); or frame (from 1, with --frame-hours). With a slash, it is searched in
    the whole path. By default, names of LIVECell and Incucyte are read."""
    metadata: Path | None = None
    """CSV table with the columns image (name or path), well, field, time_h (hours). It is used before all other
    sources."""
    frame_hours: float | None = None
    """Hours between two frames of a time-lapse file, if the file does not have them or has wrong ones."""
    min_confluence: float = 0.02
    """Doubling times are fitted to points of at least this confluence, from 0 to 1. Debris disturbs sparser ones."""
    max_confluence: float = 0.5
    """Doubling times are fitted to points of at most this confluence, from 0 to 1. Dense cells grow more slowly."""
    min_points: int = 5
    """Least number of points for a doubling time, 4 or more."""

    def validate(self) -> None:
        """Raise InputError for settings that cannot be used."""
        for flag, value in (("--min-confluence", self.min_confluence), ("--max-confluence", self.max_confluence)):
            if not 0 < value <= 1:
                raise InputError(f"{flag} {value}: give a share above 0, at most 1 (0.5 is 50 %)")
        if self.min_confluence >= self.max_confluence:
            raise InputError(f"--min-confluence {self.min_confluence}: give less than --max-confluence")
        if self.min_points < MIN_POINTS:
            raise InputError(f"--min-points {self.min_points}: give {MIN_POINTS} or more")
        if self.frame_hours is not None and not 0 < self.frame_hours <= MAX_FRAME_HOURS:
            raise InputError(f"--frame-hours {self.frame_hours}: give hours above 0, at most {MAX_FRAME_HOURS:g}")
        if self.pattern is not None:
            _check_pattern(self.pattern, self.frame_hours is not None)


def _check_pattern(pattern: str, has_frame_hours: bool) -> None:
    """Raises InputError for a pattern that cannot be used."""
    shown = f"--pattern {one_line(pattern, 150)}"
    try:
        groups = re.compile(pattern).groupindex
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(f"{shown}: is not a regular expression ({one_line(error, 100)})") from None
    unknown = [name for name in groups if name not in GROUPS]
    if unknown or not groups:
        found = f"has the group {one_line(unknown[0], 50)}" if unknown else "names no group"
        raise InputError(f"{shown}: {found}; give named groups such as (?P<well>[A-H][0-9]+), of {', '.join(GROUPS)}")
    if "frame" in groups and any(name in groups for name in HOURS):
        raise InputError(f"{shown}: has the group frame and a time; give one of them")
    if "frame" in groups and not has_frame_hours:
        raise InputError(f"{shown}: has the group frame; give --frame-hours, the hours from one frame to the next")
