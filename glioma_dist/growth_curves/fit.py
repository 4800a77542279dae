"""Find the exponential phase of a growth curve, and its doubling time.

Exponential growth is a straight line in the logarithm of the confluence. The part of the curve that the line is fitted
to, the stretch, is chosen in five steps:

1. Candidates are all runs of at least `min_points` consecutive points that lie between the two bounds of confluence.
   If the curve reaches a plateau, 60 % of the plateau is the upper bound, if that is less: growth slows down before it.
2. A candidate is straight if its points show no curvature: the coefficient of the squared time, fitted too, is within
   its two-sided 80 % t-interval of 0.
3. The proven rate is the largest lower bound of the rates of straight candidates. The bound is so low (99.9 % for 10
   points) that noise alone rarely makes it positive in a curve that does not grow.
4. Of the straight candidates whose upper bound (80 %, one-sided) is at least the proven rate, the one with most points
   is used. Lag and plateau are less steep and drop out.
5. A tenth of its points is removed at each end that is not an end of the curve, because lag and plateau begin
   gradually.

Another method takes the steepest window of a few points, and windows that are nearly as steep (Hall et al. 2014, Mol.
Biol. Evol. 31, 232; the R packages growthrates and QurvE).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy.special import stdtrit

from glioma_dist.wording import short

LEVEL = 0.97
"""Of the t-interval of a slope. The points that give the line also choose the stretch, so 95 % would be too narrow: on
drawn cultures, intervals at 97 % contain the true doubling time in 92 to 98 of 100 (tests/unit/test_growth_fit.py)."""
STRAIGHT = 0.9
"""Quantile of t that the curvature of a straight run may have, on either side."""
PROVEN = 0.01
"""Chance, over all runs of a curve, that noise alone passes for growth: about, divided by the number of points."""
AS_STEEP = 0.8
"""Quantile of t for the upper bound of a rate."""
CUT = 0.1
"""Share of a stretch's points that is cut at an end."""
NOISE = 0.005
"""Relative standard deviation of a confluence that is always assumed, so that drawn curves without any noise work."""
MIN_RISE = 1.25
"""Times that the confluence must rise over the stretch to be called growth."""
MIN_RATE = 1e-6
"""Lower bound of a rate that is called growth, per hour: a doubling in 79 years."""
BELOW_PLATEAU = 0.6
"""Upper bound of the stretch as a share of the plateau."""
NEAR_PLATEAU, LEVEL_SHARE = 0.9, 1 / 3
"""A curve levels off if more than a third of its points, from the first that reaches half of the largest confluence on,
are within a tenth of the largest. Of exponential growth 15 % are."""
MAX_ENDS = 500
"""Points at which runs may begin and end; of a longer curve every second, third, … point."""


@dataclass(frozen=True)
class Fit:
    """A line through the logarithms of the confluence in the exponential phase, called the stretch here. Intervals are
    97 % t-intervals of the slope: they tell how well the line is known, not how much cultures differ."""

    doubling_time_h: float
    """Hours in which the confluence doubles."""
    doubling_time_low_h: float
    doubling_time_high_h: float
    rate_per_h: float
    """Slope of the natural logarithm, per hour."""
    rate_low_per_h: float
    rate_high_per_h: float
    r_squared: float
    start_h: float
    """Time of the stretch's first point."""
    end_h: float
    num_points: int
    confluence_at_start: float
    """Of the line at `start_h`."""
    max_confluence: float
    """Upper bound of the stretch's points: what was asked for, or less where the curve levels off."""

    def confluence(self, hours: ndarray) -> ndarray:
        """Return the confluence of the line at these times, in hours."""
        return self.confluence_at_start * np.exp(self.rate_per_h * (hours - self.start_h))


@dataclass(frozen=True)
class _Line:
    """A line through logarithms of confluence. se: standard error of the slope; curvature: t of the squared time."""

    first: int
    last: int
    slope: float
    se: float
    middle_h: float
    middle: float
    r_squared: float


def fit_line(hours: ndarray, logs: ndarray, first: int, last: int) -> _Line:
    """Fit a line by least squares, in fp64, to the points `first` to `last`."""
    x, y = hours[first : last + 1], logs[first : last + 1]
    x_mean, y_mean = float(x.mean()), float(y.mean())
    x, y = x - x_mean, y - y_mean
    s_xx, s_yy = float(x @ x), float(y @ y)
    slope = float(x @ y) / s_xx
    rest = float(np.sum((y - slope * x) ** 2))
    se = math.sqrt(rest / (len(x) - 2) / s_xx)
    return _Line(first, last, slope, se, x_mean, y_mean, 1 - rest / s_yy if s_yy > 0 else 0.0)


def find_fit(
    hours: Sequence[float], confluence: Sequence[float], low: float, high: float, min_points: int
) -> tuple[Fit | None, str]:
    """Fit the exponential phase of one culture.

    Args:
        hours: times in hours, rising.
        confluence: share of the area that cells cover at each time, from 0 to 1.
        low, high: bounds of the confluence of the points that are fitted, from 0 to 1.
        min_points: least number of points of a fit, 4 or more.

    Returns the fit and an empty text, or None and the reason in words.
    """
    times, values = np.asarray(hours, np.float64), np.asarray(confluence, np.float64)
    high = _upper_bound(values, low, high, min_points)
    usable = (values >= low) & (values <= high)
    if reason := _why_none(times, values, usable, (low, high), min_points):
        return None, reason
    logs = np.log(np.where(usable, values, 1.0))
    chosen = _find_stretch(times, logs, usable, min_points)
    if chosen is None:
        return None, _why_no_growth(times, logs, usable)
    first, last = _cut(*chosen, usable, min_points)
    line = fit_line(times, logs, first, last)
    num_points = last - first + 1
    half = float(stdtrit(num_points - 2, 0.5 + LEVEL / 2)) * line.se
    rise = math.exp(line.slope * (times[last] - times[first]))
    if line.slope - half < MIN_RATE or rise < MIN_RISE:
        return None, _why_no_growth(times, logs, usable)
    doubling = [math.log(2) / rate for rate in (line.slope, line.slope + half, line.slope - half)]
    at_start = math.exp(line.middle + line.slope * (times[first] - line.middle_h))
    rates = (line.slope, line.slope - half, line.slope + half)
    ends = (float(times[first]), float(times[last]))
    return Fit(*doubling, *rates, line.r_squared, *ends, num_points, at_start, high), ""


def _upper_bound(values: ndarray, low: float, high: float, min_points: int) -> float:
    """`high`, or less where the curve levels off and has enough points below."""
    plateau = float(np.sort(values)[-3:].mean())
    late = values[np.argmax(values >= plateau / 2) :]
    num_near = int((late >= NEAR_PLATEAU * plateau).sum())
    bound = BELOW_PLATEAU * plateau
    levels_off = num_near > max(3, LEVEL_SHARE * len(late))
    has_enough = _longest((values >= low) & (values <= bound)) >= min_points
    return bound if levels_off and has_enough and bound < high else high


def _find_stretch(hours: ndarray, logs: ndarray, usable: ndarray, min_points: int) -> tuple[int, int] | None:
    """First and last point of the exponential phase before it is cut; None if nothing grows."""
    runs = _runs(hours, logs, usable, min_points)
    if not len(runs["slope"]):
        return None
    straight = runs["is_straight"]
    if not straight.any():  # very regular points, all of them curved
        straight = runs["count"] == runs["count"].min()
    slope, se, freedom = runs["slope"], runs["se"], runs["count"] - 2
    proven = slope - stdtrit(freedom, 1 - PROVEN / usable.sum()) * se
    least = proven[straight].max()
    if least <= 0:
        return None
    eligible = np.flatnonzero(straight & (slope + stdtrit(freedom, AS_STEEP) * se >= least) & (proven > 0))
    best = eligible[np.lexsort((se[eligible], -runs["count"][eligible]))[0]]
    return int(runs["first"][best]), int(runs["last"][best])


def _runs(hours: ndarray, logs: ndarray, usable: ndarray, min_points: int) -> dict[str, ndarray]:
    """Every run of consecutive usable points: its ends, number of points, slope, the slope's standard error, and
    whether it is straight. Sums are taken from each beginning on, so that short runs lose no digits."""
    num_points = len(hours)
    step = -(-num_points // MAX_ENDS)
    gaps = np.flatnonzero(~usable)
    found: dict[str, list[ndarray]] = {name: [] for name in ("first", "last", "count", "slope", "se", "is_straight")}
    for first in range(0, num_points, step):
        if not usable[first]:
            continue
        after = gaps[np.searchsorted(gaps, first)] if len(gaps) and gaps[-1] > first else num_points
        lasts = np.arange(first + min_points - 1, after, step)
        if not len(lasts):
            continue
        x, y = hours[first:after] - hours[first], logs[first:after] - logs[first]
        slope, se, is_straight = _lines_from_here(x / max(x[-1], 1e-300), y, lasts - first)
        columns = (np.full(len(lasts), first), lasts, lasts - first + 1, slope / x[-1], se / x[-1], is_straight)
        for name, column in zip(found, columns, strict=True):
            found[name].append(column)
    return {name: np.concatenate(columns) if columns else np.empty(0) for name, columns in found.items()}


def _lines_from_here(x: ndarray, y: ndarray, lasts: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """Lines through the points from 0 to each of `lasts`: slopes, their standard errors, whether each is straight."""
    count = lasts + 1.0
    sums = {name: np.cumsum(values)[lasts] for name, values in _products(x, y).items()}
    mean_x, mean_y = sums["x"] / count, sums["y"] / count
    s_xx = sums["xx"] - count * mean_x**2
    s_xy = sums["xy"] - count * mean_x * mean_y
    s_yy = sums["yy"] - count * mean_y**2
    slope = s_xy / s_xx
    rest = np.maximum(s_yy - slope * s_xy, 0)
    # The squared time, made orthogonal to 1 and to the time.
    mean_q = sums["xx"] / count
    s_xq = sums["xxx"] - count * mean_x * mean_q
    s_qq = np.maximum(sums["xxxx"] - count * mean_q**2 - s_xq**2 / s_xx, 1e-300)
    s_qy = sums["xxy"] - count * mean_q * mean_y - slope * s_xq
    unexplained = np.maximum(rest - s_qy**2 / s_qq, NOISE**2 * (count - 3))
    curvature = np.abs(s_qy) / np.sqrt(unexplained / (count - 3) * s_qq)
    se = np.sqrt(np.maximum(rest / (count - 2), NOISE**2) / s_xx)
    return slope, se, curvature <= stdtrit(count - 3, STRAIGHT)


def _products(x: ndarray, y: ndarray) -> dict[str, ndarray]:
    return {"x": x, "y": y, "xx": x**2, "xy": x * y, "yy": y**2, "xxx": x**3, "xxxx": x**4, "xxy": x**2 * y}


def _cut(first: int, last: int, usable: ndarray, min_points: int) -> tuple[int, int]:
    """Without a tenth of the points at each end that is not an end of the curve, as far as `min_points` are left."""
    num_cut = math.ceil(CUT * (last - first + 1))
    cut_first = first + num_cut if first > 0 else first
    cut_last = last - num_cut if last < len(usable) - 1 else last
    return (cut_first, cut_last) if cut_last - cut_first + 1 >= min_points else (first, last)


def _why_none(hours: ndarray, values: ndarray, usable: ndarray, bounds: tuple[float, float], min_points: int) -> str:
    """Why no stretch can be looked for; empty where one can."""
    low, high = bounds
    if not values.any():
        return "no cells: the confluence is 0 at all times"
    if len(values) < min_points:
        return f"too few points: {len(values)}, at least {min_points} are needed"
    if usable.sum() >= min_points and _longest(usable) >= min_points:
        return ""
    if values.max() < low:
        return f"too sparse: the confluence stays below {percent(low)} (--min-confluence)"
    if values.min() > high:
        return f"too dense: the confluence is above {percent(high)} (--max-confluence) from the first point on"
    higher = f"; the confluence reaches {percent(values.max())} (--max-confluence)" if values.max() > high else ""
    return (
        f"too few points: {_longest(usable)} in a row are between {percent(low)} and {percent(high)}, at least "
        f"{min_points} are needed{higher}"
    )


def _longest(usable: ndarray) -> int:
    """Points of the longest run of usable points."""
    longest = run = 0
    for each in usable:
        run = run + 1 if each else 0
        longest = max(longest, run)
    return longest


def _why_no_growth(hours: ndarray, logs: ndarray, usable: ndarray) -> str:
    """No growth, or a decline: the line through all usable points tells."""
    x, y = hours[usable], logs[usable]
    line = fit_line(x, y, 0, len(x) - 1)
    half = float(stdtrit(len(x) - 2, 0.5 + LEVEL / 2)) * line.se
    change = math.expm1(line.slope * (x[-1] - x[0]))
    if line.slope + half < 0 and change < 1 / MIN_RISE - 1:
        return f"decline: the confluence falls by {percent(-change)} from {short(x[0], 4)} h to {short(x[-1], 4)} h"
    return f"no growth: the confluence nowhere rises by {percent(MIN_RISE - 1)} or more, beyond its noise"


def percent(share: float) -> str:
    """Return a share in percent as text, with three digits."""
    return f"{short(100 * share)} %"
