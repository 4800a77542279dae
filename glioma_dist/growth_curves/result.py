"""What `growth` returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glioma_dist.config.paths import Url
from glioma_dist.errors import MAX_LINE, PartialError, one_line, printable
from glioma_dist.growth_curves.fit import Fit
from glioma_dist.growth_curves.points import Point
from glioma_dist.growth_curves.table import NotUsed
from glioma_dist.wording import short

LONGEST = 120
"""Characters of a name, and of a reason, in a line."""


@dataclass(frozen=True)
class Culture:
    """A culture (a well, a dish, a time-lapse file), and how it grows."""

    name: str
    points: tuple[Point, ...]
    """In the order of time; at least one."""
    images: int
    """Number of its images."""
    fit: Fit | None
    """The fit of the exponential phase; None if there is no doubling time."""
    reason: str
    """Why there is no doubling time; empty where there is one."""
    lag_h: float | None
    """Hours from the first point until the fitted line reaches the first point's confluence, at least 0. None without a
    fit, and if the first point is below --min-confluence."""

    @property
    def largest(self) -> Point:
        """The point of the largest confluence: the plateau, if the culture reached one."""
        return max(self.points, key=lambda point: point.confluence)

    def in_stretch(self, point: Point) -> bool:
        """Return whether a point was fitted."""
        return self.fit is not None and self.fit.start_h <= point.time_h <= self.fit.end_h

    def row(self) -> dict[str, Any]:
        """Return the row of growth.csv; None for what is unknown."""
        first, last, largest, fit = self.points[0], self.points[-1], self.largest, self.fit
        return {
            "culture": printable(self.name),
            "doubling_time_h": fit and fit.doubling_time_h,
            "doubling_time_low_h": fit and fit.doubling_time_low_h,
            "doubling_time_high_h": fit and fit.doubling_time_high_h,
            "reason": self.reason,
            "rate_per_h": fit and fit.rate_per_h,
            "r_squared": fit and fit.r_squared,
            "stretch_points": fit and fit.num_points,
            "stretch_start_h": fit and fit.start_h,
            "stretch_end_h": fit and fit.end_h,
            "stretch_max_confluence": fit and fit.max_confluence,
            "lag_h": self.lag_h,
            "first_confluence": first.confluence,
            "largest_confluence": largest.confluence,
            "largest_at_h": largest.time_h,
            "first_h": first.time_h,
            "last_h": last.time_h,
            "time_points": len(self.points),
            "images": self.images,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the row, the interval of the rate, and the points, for growth.json."""
        points = [asdict(point) | {"in_stretch": self.in_stretch(point)} for point in self.points]
        fit = self.fit
        rates = {"rate_low_per_h": fit and fit.rate_low_per_h, "rate_high_per_h": fit and fit.rate_high_per_h}
        at_start = {"fit_confluence_at_start": fit and fit.confluence_at_start}
        return self.row() | rates | at_start | {"points": points}

    def describe(self) -> str:
        """Return one line for the terminal."""
        name = one_line(self.name, LONGEST)
        if self.fit is None:
            return f"{name}: no doubling time: {self.reason}"
        fit = self.fit
        return (
            f"{name}: doubles in {short(fit.doubling_time_h)} h ({short(fit.doubling_time_low_h)} to "
            f"{short(fit.doubling_time_high_h)} h), by {fit.num_points} points from {short(fit.start_h)} h to "
            f"{short(fit.end_h)} h"
        )


@dataclass(frozen=True)
class GrowthResult:
    """Growth curves of all cultures, and the files that were written."""

    out: Path | Url
    """Folder of the files."""
    cultures: tuple[Culture, ...]
    """Sorted by name."""
    not_used: tuple[NotUsed, ...]
    """Images that belong to no curve, with the reason."""
    notes: tuple[str, ...]
    """Where wells and times come from, and which sources differ."""
    files: tuple[Path | Url, ...]
    """growth.csv, points.csv, growth.json and the plots."""

    def raise_for_not_used(self) -> None:
        """Raise PartialError if some images belong to no curve; its message names the first ones."""
        if self.not_used:
            raise PartialError(describe_not_used(self.not_used, "; growth.json lists them: "))


def describe_not_used(not_used: tuple[NotUsed, ...], then: str) -> str:
    """Say in one line of at most `MAX_LINE` characters how many images are not used, and why the first ones are not."""
    one = len(not_used) == 1
    line = f"{len(not_used)} image{'' if one else 's'} {'is' if one else 'are'} in no growth curve{then}"
    for number, each in enumerate(not_used):
        name = one_line(f"{each.image} {each.plane}".rstrip() or "a row without an image", LONGEST)
        part = f"{name}: {one_line(each.reason, LONGEST)}"
        more = f"and {len(not_used) - number} more"
        if number and len(part) > MAX_LINE - len(line) - len(more) - 2:
            return line + more
        line += part + ("; " if number + 1 < len(not_used) else "")
    return line
