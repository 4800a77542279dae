"""Which culture and time each picture belongs to, and from where that is known.

The well comes from the first of these that tells it: `--metadata`, `--pattern`, the name; else a time-lapse file is a
culture, and the other pictures of a folder are one. The time comes from `--metadata`, `--pattern`, `--frame-hours`, the
name, the file. A picture of a time-lapse file is at the file's time plus that within the file.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath

from glioma_dist.config.growth import GrowthConfig
from glioma_dist.growth_curves.metadata import Metadata
from glioma_dist.growth_curves.names import Told, read_name, read_pattern
from glioma_dist.growth_curves.table import NotUsed, Picture

DIFFERENCE_H = 0.5
"""Hours that two sources of a time may differ without a word."""


@dataclass(frozen=True)
class Placed:
    """A picture in a growth curve."""

    picture: Picture
    culture: str
    field: str
    """Of the well: what the same place has at all times."""
    hours: float


@dataclass
class Placement:
    """All pictures of a table: where each belongs, or why it does not; and notes for the user."""

    placed: list[Placed] = field(default_factory=list)
    not_used: list[NotUsed] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Guess:
    """What is known of a picture while it is placed."""

    picture: Picture
    culture: str | None = None
    culture_from: str = ""
    field: str | None = None
    hours: float | None = None
    """Of the file, since the start of the experiment."""
    hours_from: str = ""
    date: datetime | None = None
    """Of the file, where that is told in place of the hours."""
    within: float = 0.0
    """Hours since the file's first picture."""


def place(pictures: Sequence[Picture], config: GrowthConfig) -> Placement:
    """Place all pictures of a table. Raises InputError for a table of metadata that cannot be used."""
    done = Placement()
    guesses = _told_by_user_and_names(pictures, config, done)
    files: dict[str, list[_Guess]] = defaultdict(list)
    for guess in guesses:
        files[guess.picture.image].append(guess)
    has_times = any(len(file) == 1 and file[0].picture.time_h for file in files.values())
    kept: list[_Guess] = []
    for file in files.values():
        kept += _place_in_file(file, config, has_times, done)
    _name_cultures(kept, done)
    kept = _align_dates(kept, done)
    done.placed = [
        Placed(each.picture, each.culture or "", each.field or "", (each.hours or 0.0) + each.within) for each in kept
    ]
    _note_sources(kept, done)
    done.notes += _differences(kept)
    return done


def _told_by_user_and_names(pictures: Sequence[Picture], config: GrowthConfig, done: Placement) -> list[_Guess]:
    """What `--metadata`, `--pattern` and the names tell; pictures that a source of the user's leaves out are not
    used."""
    metadata = Metadata(config.metadata) if config.metadata else None
    keys = metadata.match(pictures) if metadata else {}
    guesses, differing = [], 0
    for picture in pictures:
        sources: list[tuple[str, Told]] = []
        try:
            if metadata:
                key = keys[picture.name]
                if isinstance(key, str):
                    raise ValueError(key)
                sources.append(("--metadata", metadata.told(key)))
            if config.pattern:
                told = read_pattern(config.pattern, picture.image)
                if told is None and not metadata:
                    raise ValueError("its name does not match --pattern")
                sources += [("--pattern", told)] if told else []
        except ValueError as error:
            done.not_used.append(NotUsed(picture.image, picture.plane, str(error)))
            continue
        if told := read_name(picture.image):
            sources.append(("the name", told))
        guess = _merge(picture, sources, config.frame_hours)
        hours = {round(told.hours, 2) for _, told in sources if told.hours is not None}
        differing += len(hours) > 1
        guesses.append(guess)
    if metadata:
        done.notes += [note for note in (metadata.describe_unmatched(),) if note]
        if metadata.unused_columns:
            done.notes.append(f"--metadata: columns that are not used: {', '.join(metadata.unused_columns)}")
    if differing:
        first = "--metadata" if metadata else "--pattern"
        done.notes.append(f"{first} and the names tell other times for {_images(differing)}: {first} counts")
    return guesses


def _merge(picture: Picture, sources: Iterable[tuple[str, Told]], frame_hours: float | None) -> _Guess:
    """The first source that tells the culture, and the first that tells a time."""
    guess = _Guess(picture)
    for name, told in sources:
        if guess.culture is None and told.culture is not None:
            guess.culture, guess.culture_from = told.culture, name
        if guess.field is None:
            guess.field = told.field
        if guess.hours is None and guess.date is None:
            if told.frame is not None and frame_hours is not None:
                guess.hours, guess.hours_from = (told.frame - 1) * frame_hours, "--frame-hours"
            elif told.hours is not None or told.date is not None:
                guess.hours, guess.date, guess.hours_from = told.hours, told.date, name
    return guess


def _place_in_file(file: list[_Guess], config: GrowthConfig, has_times: bool, done: Placement) -> list[_Guess]:
    """Times within a file, and of the file where only it tells; the culture of a file that nothing else tells.

    has_times: whether the column time_h tells times of files with one picture, too. Returns the pictures that have a
    time.
    """
    pictures = [guess.picture for guess in file]
    frames = [_frame(picture.plane, r"t(\d+)") for picture in pictures]
    if None in frames and config.frame_hours and len(file) > 1:
        frames = [_frame(picture.plane, r"p(\d+)") for picture in pictures]
    dates = [picture.acquired for picture in pictures if picture.acquired]
    within: list[float | None] = [0.0] * len(file)
    source = ""
    if config.frame_hours and len(set(frames)) > 1:
        within = [None if frame is None else (frame - 1) * config.frame_hours for frame in frames]
        source = "--frame-hours"
    elif len({picture.time_h for picture in pictures}) > 1:
        within, source = [picture.time_h for picture in pictures], "the file"
    elif len(set(dates)) > 1:
        within = [_hours(picture.acquired, min(dates)) for picture in pictures]
        source = "the file's dates"
    elif len(set(frames)) > 1:
        within = [None] * len(file)
    kept = []
    for guess, hours in zip(file, within, strict=True):
        picture = guess.picture
        if guess.hours is None and guess.date is None:
            if len(file) == 1 and has_times and picture.time_h is not None:
                guess.hours, guess.hours_from = picture.time_h, "time_h"
            elif dates:
                guess.date, guess.hours_from = min(dates), "the file's dates"
            elif source:
                guess.hours, guess.hours_from = 0.0, source
        elif source and guess.hours_from != "--metadata":
            guess.hours_from += f" and {source}"
        if hours is None or (guess.hours is None and guess.date is None):
            done.not_used.append(NotUsed(picture.image, picture.plane, _why_no_time(picture, config)))
            continue
        guess.within = hours
        # Of the plane all but the time.
        rest = "-".join(part for part in picture.plane.split("-") if not re.fullmatch(r"t\d+", part))
        rest = "" if source == "--frame-hours" and re.fullmatch(r"p\d+", rest) else rest
        guess.field = "/".join(filter(None, (guess.field or picture.image, rest)))
        if guess.culture is None and source:
            guess.culture, guess.culture_from = picture.image, "the file"
        kept.append(guess)
    return kept


def _frame(plane: str, form: str) -> int | None:
    found = next((re.fullmatch(form, part) for part in plane.split("-") if re.fullmatch(form, part)), None)
    return int(found[1]) if found else None


def _hours(date: datetime | None, since: datetime) -> float | None:
    return None if date is None else (date - since).total_seconds() / 3600


def _why_no_time(picture: Picture, config: GrowthConfig) -> str:
    if _frame(picture.plane, r"t(\d+)") and not config.frame_hours:
        return "its file does not tell the time between its pictures: give --frame-hours"
    if picture.plane and not config.frame_hours:
        return "no time is known; give --frame-hours if the pages of its file are times, or --metadata"
    return "no time is known; give --pattern or --metadata"


def _name_cultures(guesses: list[_Guess], done: Placement) -> None:
    """Short names for cultures that are files or folders, and two names for two wells of one name.

    A well is taken for two where one field has two pictures at one time, in two folders: two plates.
    """
    for kind in ("the file", "the folder"):
        own = [guess for guess in guesses if (guess.culture_from or "the folder") == kind]
        paths = {guess.picture.image if kind == "the file" else _folder(guess.picture.image) for guess in own}
        names = _short(paths)
        for guess in own:
            path = guess.picture.image if kind == "the file" else _folder(guess.picture.image)
            guess.culture, guess.culture_from = names[path], kind
    repeated: dict[tuple, set[str]] = defaultdict(set)
    for guess in guesses:
        at = (guess.culture, guess.field, guess.hours, guess.date, guess.within)
        if guess.culture_from != "--metadata":
            repeated[at].add(_folder(guess.picture.image))
    twice = {at[0] for at, folders in repeated.items() if len(folders) > 1}
    names = _short({_folder(guess.picture.image) for guess in guesses if guess.culture in twice})
    for guess in guesses:
        if guess.culture in twice:
            guess.culture = f"{names[_folder(guess.picture.image)]}/{guess.culture}"
    if twice:
        done.notes.append(
            f"{len(twice)} wells have two pictures of one field at one time, in different folders: each folder is taken "
            "for a plate"
        )


def _folder(image: str) -> str:
    return image.replace("\\", "/").rpartition("/")[0]


def _short(paths: set[str]) -> dict[str, str]:
    """For each path its last part without a suffix, with as many parts before it as make it the only one."""
    parts = {path: [*PurePosixPath(path).parts[:-1], PurePosixPath(path).stem] for path in paths}
    names: dict[str, str] = {}
    for depth in range(1, max(map(len, parts.values()), default=0) + 1):
        candidates = {path: "/".join(own[-depth:]) for path, own in parts.items() if path not in names}
        times = Counter([*candidates.values(), *names.values()])
        names |= {path: name for path, name in candidates.items() if times[name] == 1}
    return {path: names.get(path, path) or "all" for path in paths}


def _align_dates(guesses: list[_Guess], done: Placement) -> list[_Guess]:
    """Hours since the first picture of the culture, for dates. A culture of dates and hours keeps its hours."""
    cultures: dict[str, list[_Guess]] = defaultdict(list)
    for guess in guesses:
        cultures[guess.culture or ""].append(guess)
    kept, several = [], 0
    for name, own in cultures.items():
        dated = [guess for guess in own if guess.date is not None]
        if dated and len(dated) < len(own):
            reason = f"has a date, and other pictures of {name} have hours: give --metadata"
            done.not_used += [NotUsed(each.picture.image, each.picture.plane, reason) for each in dated]
            own, dated = [guess for guess in own if guess.date is None], []
        first = min((guess.date for guess in dated if guess.date), default=None)
        for guess in dated:
            guess.hours = _hours(guess.date, first) if first else None
        kept += own
        own_files = {guess.picture.image for guess in own if guess.hours_from in ("the file", "--frame-hours")}
        several += len(own_files) > 1
    if several:
        done.notes.append(
            f"{several} cultures have several time-lapse files without a date: the first pictures of all are taken for "
            "simultaneous"
        )
    return kept


def _note_sources(guesses: list[_Guess], done: Placement) -> None:
    """Where wells and times come from: one line."""
    for what, names in (
        ("wells", Counter(guess.culture_from for guess in guesses)),
        ("times", Counter(guess.hours_from for guess in guesses)),
    ):
        if names:
            told = ", ".join(f"{name} ({_images(count)})" for name, count in names.most_common())
            done.notes.append(f"{what} from {told}")
    if folders := {guess.culture for guess in guesses if guess.culture_from == "the folder"}:
        done.notes.append(
            f"no well is known for some images: those of a folder are one culture ({len(folders)} of them); give "
            "--pattern or --metadata for wells"
        )


def _differences(guesses: list[_Guess]) -> list[str]:
    """Cultures whose pictures were taken at other times than they are placed at, by their files' dates."""
    cultures: dict[str, list[float]] = defaultdict(list)
    for guess in guesses:
        date = guess.picture.acquired
        if date is not None and guess.hours_from != "the file's dates" and guess.hours is not None:
            cultures[guess.culture or ""].append(date.timestamp() / 3600 - guess.hours - guess.within)
    spreads = [max(values) - min(values) for values in cultures.values()]
    if not spreads or max(spreads) <= DIFFERENCE_H:
        return []
    num = sum(spread > DIFFERENCE_H for spread in spreads)
    return [
        f"the files' dates differ from these times by up to {max(spreads):.3g} h in {num} cultures: dates do not count"
    ]


def _images(number: int) -> str:
    return f"{number} image{'' if number == 1 else 's'}"
