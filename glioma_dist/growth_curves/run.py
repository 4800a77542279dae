"""Growth curves and doubling times from the table of a prediction."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from glioma_dist.config.file import checked
from glioma_dist.config.growth import GrowthConfig
from glioma_dist.config.paths import Url
from glioma_dist.data.shards.store import Store
from glioma_dist.errors import InputError
from glioma_dist.growth_curves.cultures import Placed
from glioma_dist.growth_curves.fit import find_fit
from glioma_dist.growth_curves.placing import place
from glioma_dist.growth_curves.plots import MAX_PAGES, MAX_PANELS
from glioma_dist.growth_curves.points import Point, by_culture, join
from glioma_dist.growth_curves.result import Culture, GrowthResult, describe_not_used
from glioma_dist.growth_curves.table import read_predictions
from glioma_dist.growth_curves.writing import MARK, check_folder, check_names, old_plots, write_files


def growth(config: GrowthConfig) -> GrowthResult:
    """Compute a growth curve of each culture from the confluence of its images, and fit its doubling time.

    Writes growth.csv (a row per culture), points.csv (a row per culture and time), growth.json and plots to
    `config.out`.

    Args:
        config: the prediction and the folder for the results. Paths may be given as text.

    Returns:
        The curves; `not_used` names the images that belong to none.

    Raises:
        InputError: a table, a setting or the folder cannot be used, or no image belongs to a curve.
    """
    config = checked(GrowthConfig, config)
    store = Store(config.out) if isinstance(config.out, Url) else None
    if store is None:
        check_folder(Path(config.out))
    else:
        store.check()
        there = set(store.entries())
        check_names(config.out, there, lambda name: store.read_start(name, len(MARK)))
    pictures, unreadable = read_predictions(config.predictions)
    placement = place(pictures, config)
    not_used = tuple(sorted([*unreadable, *placement.not_used]))
    if not placement.placed:
        raise InputError(describe_not_used(not_used, ", and there are no others: "))
    cultures, notes = [], list(placement.notes)
    num_repeated = 0
    for name, placed in by_culture(placement.placed).items():
        culture, repeated = _measure(name, placed, config)
        cultures.append(culture)
        num_repeated += repeated
    if num_repeated:
        repeat = "image shows" if num_repeated == 1 else "images show"
        notes.append(f"{num_repeated} {repeat} a field that another image shows at the same time: all of them count")
    uneven = sum(len({point.fields for point in culture.points}) > 1 for culture in cultures)
    if uneven:
        notes.append(
            f"the number of fields changes over time in {uneven} of {len(cultures)} cultures (points.csv): that can "
            "look like growth"
        )
    if len(cultures) > MAX_PANELS * MAX_PAGES:
        notes.append(f"{len(cultures)} cultures: plots of the first {MAX_PANELS * MAX_PAGES} only")
    result = GrowthResult(config.out, tuple(cultures), not_used, tuple(notes), ())
    if store is None:
        names = write_files(Path(config.out), result, config)
    else:
        with tempfile.TemporaryDirectory(prefix="glioma-dist-") as folder:
            names = write_files(Path(folder), result, config)
            store.put_files({name: Path(folder) / name for name in names})
        store.remove(old_plots(there, names))
    files = tuple(config.out / name for name in names)
    return GrowthResult(config.out, tuple(cultures), not_used, tuple(notes), files)


def _measure(name: str, placed: list[Placed], config: GrowthConfig) -> tuple[Culture, int]:
    """The curve of one culture, and how many of its pictures repeat a field."""
    points, repeated = join(placed)
    hours, confluence = [point.time_h for point in points], [point.confluence for point in points]
    fit, reason = find_fit(hours, confluence, config.min_confluence, config.max_confluence, config.min_points)
    lag = None
    if fit is not None and points[0].confluence >= config.min_confluence:
        lag = _lag(points[0], fit.start_h, fit.confluence_at_start, fit.rate_per_h)
    return Culture(name, tuple(points), len(placed), fit, reason, lag), repeated


def _lag(first: Point, start_h: float, at_start: float, rate: float) -> float:
    """Hours from the first point to where the line has its confluence (the tangent method); 0 where the line begins
    there, or is above it at once."""
    if start_h <= first.time_h:
        return 0.0
    crossing = start_h + math.log(first.confluence / at_start) / rate
    return max(0.0, crossing - first.time_h)
