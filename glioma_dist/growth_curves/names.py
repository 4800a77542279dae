"""Read well, field and time from the name of an image: names of LIVECell and Incucyte, or a pattern."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath

from glioma_dist.config.growth import HOURS
from glioma_dist.data.convert.sources import describe
from glioma_dist.growth_curves.table import MAX_HOURS

# PREFIX_A1_1_00d04h00m.tif or PREFIX_A1_1_2024y05m31d_09h30m.tif: Incucyte's export. Well, field, time.
INCUCYTE_NAME = re.compile(
    r"(?:(?P<prefix>.+?)_+)?(?P<well>[A-P]\d{1,2})_(?P<field>\d+)_"
    r"(?:(?P<day>\d{1,5})d(?P<hour>\d{1,5})h(?P<minute>\d{1,5})m"
    r"|(?P<date>\d{4}y\d{2}m\d{2}d_\d{2}h\d{2}m))(?P<rest>.*)"
)
# …/2401/15/1430/700/A1-1-Ph.tif: Incucyte's archive. Year and month, day, hour and minute, vessel, well, field.
INCUCYTE_ARCHIVE = re.compile(
    r"(?:.*/)?(?P<month>\d{4})/(?P<day>\d{2})/(?P<minute>\d{4})/(?P<vessel>\d+)/"
    r"(?P<well>[A-P]\d{1,2})-(?P<field>\d+)-[^/]+"
)


@dataclass(frozen=True)
class Told:
    """What a source says about an image; None for what it does not say."""

    culture: str | None = None
    field: str | None = None
    hours: float | None = None
    """Hours since the start of the experiment."""
    date: datetime | None = None
    """When it was taken, in UTC, if the source gives a date instead of hours."""
    frame: int | None = None
    """Its number in time, from 1, if the source gives a number instead of hours."""
    is_of_plane: bool = False
    """Whether the time is that of one plane of a file, and not that of the file."""


def read_name(image: str) -> Told | None:
    """Read a name of LIVECell or Incucyte; return None for any other name.

    The culture of LIVECell's `A172_Phase_C7_1_00d04h00m_2.tif` is A172_C7, of Incucyte's `VID7_A1_3_00d04h00m.tif`
    VID7_A1. Several prefixes, plates for example, are several cultures.
    """
    path = PurePosixPath(image.replace("\\", "/"))
    try:
        culture, hours = describe(path.name)
    except (ValueError, OverflowError):  # more digits than Python's numbers take
        return None
    if hours is not None and hours <= MAX_HOURS:
        return Told(culture, re.sub(r"\d+d\d+h\d+m", "", path.stem), hours)
    if found := INCUCYTE_NAME.fullmatch(path.stem):
        culture = "_".join(filter(None, (found["prefix"], found["well"])))
        field = f"{found['field']}{found['rest']}"
        if found["date"]:
            date = _date(found["date"], "%Yy%mm%dd_%Hh%Mm")
            return None if date is None else Told(culture, field, date=date)
        hours = int(found["day"]) * 24 + int(found["hour"]) + int(found["minute"]) / 60
        return Told(culture, field, hours)
    if found := INCUCYTE_ARCHIVE.fullmatch(str(path)):
        date = _date(found["month"] + found["day"] + found["minute"], "%y%m%d%H%M")
        return None if date is None else Told(f"{found['vessel']}_{found['well']}", found["field"], date=date)
    return None


def _date(text: str, form: str) -> datetime | None:
    try:
        return datetime.strptime(text, form).replace(tzinfo=UTC)
    except ValueError:
        return None


def read_pattern(pattern: str, image: str) -> Told | None:
    """Search a pattern in a name, or in the whole path if the pattern has a slash. Return None if it does not match.

    Raises:
        ValueError: a time is not a number. Its text is the reason for the user.
    """
    path = image.replace("\\", "/")
    found = re.search(pattern, path if "/" in pattern else path.rpartition("/")[2])
    if found is None:
        return None
    told = {name: text for name, text in found.groupdict().items() if text is not None}
    culture = "_".join(told[name] for name in ("plate", "well") if told.get(name)) or None
    parts = {name: _number(name, told[name]) for name in HOURS if name in told}
    # Summed in the order of HOURS, so that equal times are equal numbers.
    hours = sum(number * HOURS[name] for name, number in parts.items()) if parts else None
    frame = int(_number("frame", told["frame"])) if "frame" in told else None
    return Told(culture, told.get("field"), hours, frame=frame)


def _number(name: str, text: str) -> float:
    try:
        number = float(text.rstrip(".,").replace(",", "."))  # [\d.]+ takes the dot of .tif, too
    except ValueError:
        raise ValueError(f"--pattern finds {name} {text!r}, which is not a number") from None
    if not abs(number) <= MAX_HOURS:
        raise ValueError(f"--pattern finds {name} {text!r}, which is out of range")
    return number
