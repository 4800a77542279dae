"""The curves that `glioma-dist growth` wrote, for a report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glioma_dist.errors import InputError, printable
from glioma_dist.files import cannot_read, read_json
from glioma_dist.report.prediction_curves import Curve, CurvePoint
from glioma_dist.report.prediction_results import MAX_HOURS
from glioma_dist.wording import short

GROWTH = "growth.json"
MAX_BYTES = 2**28


def read_curves(folder: Path) -> list[Curve]:
    """Read the cultures that growth wrote to a folder, each with its points in the order of time.

    Raises InputError where growth.json is missing or is not what growth writes.
    """
    path = folder / GROWTH
    try:
        is_there = path.is_file()
    except OSError as error:
        raise cannot_read(f"--growth {printable(folder)}", error) from None
    if not is_there:
        raise InputError(
            f"--growth {printable(folder)}: has no {GROWTH}; give the folder that glioma-dist growth wrote"
        )
    content = read_json(path, MAX_BYTES)
    try:
        curves = [_curve(culture) for culture in content["cultures"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"{path}: is no {GROWTH} of this version of glioma-dist; run glioma-dist growth again"
        ) from None
    return [curve for curve in curves if curve.points]


def _curve(culture: Mapping[str, Any]) -> Curve:
    points = sorted((_point(each) for each in culture["points"]), key=lambda point: point.hours)
    return Curve(printable(culture["culture"]), tuple(points), _remark(culture))


def _point(content: Mapping[str, Any]) -> CurvePoint:
    low, high = (None if content.get(name) is None else _share(content[name]) for name in ("low", "high"))
    hours = float(content["time_h"])
    if not abs(hours) <= MAX_HOURS:
        raise ValueError(hours)
    return CurvePoint(hours, _share(content["confluence"]), low, high)


def _share(value: Any) -> float:
    if not 0 <= (share := float(value)) <= 1:
        raise ValueError(value)
    return share


def _remark(culture: Mapping[str, Any]) -> str:
    """The doubling time, or why there is none."""
    middle, low, high = (culture.get(f"doubling_time_{name}h") for name in ("", "low_", "high_"))
    if middle is None:
        return f"no doubling time: {printable(culture['reason'])}" if culture.get("reason") else ""
    if not all(0 < float(each) <= MAX_HOURS for each in (middle, low, high) if each is not None):
        raise ValueError(culture)
    interval = "" if low is None or high is None else f" ({short(float(low))} to {short(float(high))} h)"
    return f"doubles in {short(float(middle))} h{interval}"
