"""Names of cultures, hours computed from dates, and notes for the user about the sources of both."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath

from glioma_dist.growth_curves.table import NotUsed, Picture
from glioma_dist.wording import counted, short

DIFFERENCE_H = 0.5
"""Hours that dates may differ from other times without a word: clocks and scans of a whole plate differ so much."""
ROUNDING_H = 0.01


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
class Guess:
    """What is known of a picture while it is placed."""

    picture: Picture
    culture: str | None = None
    culture_from: str = ""
    field: str | None = None
    hours: float | None = None
    """Of the file, since the start of the experiment."""
    hours_from: str = ""
    is_of_plane: bool = False
    """Whether `hours` is the time of this plane, to which no time within the file is added."""
    date: datetime | None = None
    """Of the file, where that is told in place of the hours."""
    within: float = 0.0
    """Hours since the file's first picture."""


def name_cultures(guesses: list[Guess], done: Placement) -> None:
    """Give short names to cultures that are files or folders, and different names to wells of the same name.

    A well is taken for two where one field has two pictures at one time, in two folders: two plates.
    """
    for kind in ("the file", "the folder"):
        own = [guess for guess in guesses if (guess.culture_from or "the folder") == kind]
        paths = {guess.picture.image if kind == "the file" else _folder(guess.picture.image) for guess in own}
        names = _short(paths, are_files=kind == "the file")
        for guess in own:
            path = guess.picture.image if kind == "the file" else _folder(guess.picture.image)
            guess.culture, guess.culture_from = names[path], kind
    repeated: dict[tuple, set[str]] = defaultdict(set)
    for guess in guesses:
        at = (guess.culture, guess.field, guess.hours, guess.date, guess.within)
        if guess.culture_from != "--metadata":
            repeated[at].add(_folder(guess.picture.image))
    twice = {at[0] for at, folders in repeated.items() if len(folders) > 1}
    names = _short({_folder(guess.picture.image) for guess in guesses if guess.culture in twice}, are_files=False)
    for guess in guesses:
        if guess.culture in twice:
            guess.culture = f"{names[_folder(guess.picture.image)]}/{guess.culture}"
    if twice:
        done.notes.append(
            f"{counted(len(twice), 'well has', 'wells have')} two images of one field at one time, in "
            "different folders: each folder counts as a plate"
        )


def _folder(image: str) -> str:
    return image.replace("\\", "/").rpartition("/")[0]


def _short(paths: set[str], are_files: bool) -> dict[str, str]:
    """For each path its last part, of a file without its suffix, with as many parts before it as make it the only
    one."""
    parts = {path: list(PurePosixPath(path).parts) for path in paths}
    if are_files:
        parts = {path: [*own[:-1], PurePosixPath(path).stem] for path, own in parts.items()}
    names: dict[str, str] = {}
    for depth in range(1, max(map(len, parts.values()), default=0) + 1):
        candidates = {path: "/".join(own[-depth:]) for path, own in parts.items() if path not in names}
        times = Counter([*candidates.values(), *names.values()])
        names |= {path: name for path, name in candidates.items() if times[name] == 1}
    return {path: names.get(path, path) or "all" for path in paths}


def align_dates(guesses: list[Guess], done: Placement) -> list[Guess]:
    """Turn dates into hours since the first picture of the culture. In a culture with dates and hours, the hours
    count."""
    cultures: dict[str, list[Guess]] = defaultdict(list)
    for guess in guesses:
        cultures[guess.culture or ""].append(guess)
    kept, several = [], 0
    for name, own in cultures.items():
        dated = [guess for guess in own if guess.date is not None]
        if dated and len(dated) < len(own):
            reason = f"it has a date, and other images of {name} have hours: give --metadata"
            done.not_used += [NotUsed(each.picture.image, each.picture.plane, reason) for each in dated]
            own, dated = [guess for guess in own if guess.date is None], []
        first = min((guess.date for guess in dated if guess.date), default=None)
        for guess in dated:
            guess.hours = hours_since(guess.date, first) if first else None
        kept += own
        own_files = {guess.picture.image for guess in own if guess.hours_from in ("the file", "--frame-hours")}
        several += len(own_files) > 1
    if several:
        done.notes.append(
            f"{counted(several, 'culture has', 'cultures have')} several time-lapse files without a "
            "date: they are assumed to begin at the same time"
        )
    return kept


def note_sources(guesses: list[Guess], done: Placement) -> None:
    """Note where wells and times come from."""
    for what, names in (
        ("wells", Counter(guess.culture_from for guess in guesses)),
        ("times", Counter(guess.hours_from for guess in guesses)),
    ):
        if names:
            told = ", ".join(f"{name} ({count_images(count)})" for name, count in names.most_common())
            done.notes.append(f"{what} from {told}")
    if folders := {guess.culture for guess in guesses if guess.culture_from == "the folder"}:
        done.notes.append(
            f"the well of some images is not known: all such images of a folder are one culture "
            f"({counted(len(folders), 'culture')}); give --pattern or --metadata to name wells"
        )


def differences(guesses: list[Guess]) -> list[str]:
    """Note where times of the files differ from those that are used."""
    notes = []
    overruled = [
        guess
        for guess in guesses
        if "--frame-hours" in guess.hours_from
        and guess.picture.time_h
        and abs(guess.picture.time_h - guess.within) > ROUNDING_H
    ]
    if overruled:
        notes.append(
            f"--frame-hours and the files give different times for {count_images(len(overruled))}: "
            "--frame-hours is used"
        )
    cultures: dict[str, list[float]] = defaultdict(list)
    for guess in guesses:
        date = guess.picture.acquired
        if date is not None and guess.hours_from != "the file's dates" and guess.hours is not None:
            cultures[guess.culture or ""].append(date.timestamp() / 3600 - guess.hours - guess.within)
    spreads = [max(values) - min(values) for values in cultures.values()]
    if spreads and max(spreads) > DIFFERENCE_H:
        num = sum(spread > DIFFERENCE_H for spread in spreads)
        notes.append(
            f"the files' dates differ from these times by up to {short(max(spreads))} h in "
            f"{counted(num, 'culture')}: the dates are not used"
        )
    return notes


def count_images(number: int) -> str:
    """Return a number of images as text."""
    return f"{number} image{'' if number == 1 else 's'}"


def hours_since(date: datetime | None, since: datetime) -> float | None:
    """Return the hours from one date to another."""
    return None if date is None else (date - since).total_seconds() / 3600
