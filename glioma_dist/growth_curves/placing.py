"""Which culture and time each picture belongs to, and from where that is known.

The well comes from the first of these that tells it: `--metadata`, `--pattern`, the name; else a time-lapse file is a
culture, and the other pictures of a folder are one. The time comes from `--metadata`, `--pattern`, `--frame-hours`, the
name, the file. A picture of a time-lapse file is at the file's time plus that within the file.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from glioma_dist.config.growth import GrowthConfig
from glioma_dist.growth_curves.cultures import (
    Guess,
    Placed,
    Placement,
    align_dates,
    count_images,
    differences,
    hours_since,
    name_cultures,
    note_sources,
)
from glioma_dist.growth_curves.metadata import Metadata
from glioma_dist.growth_curves.names import Told, read_name, read_pattern
from glioma_dist.growth_curves.table import NotUsed, Picture

MAX_DIGITS = 9
"""Of a frame's number: a name with more, in a table of any origin, tells no frame."""


def place(pictures: Sequence[Picture], config: GrowthConfig) -> Placement:
    """Find the culture and the time of all images of a table.

    Raises:
        InputError: the table of `--metadata` cannot be used.
    """
    done = Placement()
    guesses = _told_by_user_and_names(pictures, config, done)
    files: dict[str, list[Guess]] = defaultdict(list)
    for guess in guesses:
        files[guess.picture.image].append(guess)
    has_times = any(len(file) == 1 and file[0].picture.time_h for file in files.values())
    kept: list[Guess] = []
    for file in files.values():
        kept += _place_in_file(file, config, has_times, done)
    name_cultures(kept, done)
    kept = align_dates(kept, done)
    done.placed = [
        Placed(each.picture, each.culture or "", each.field or "", (each.hours or 0.0) + each.within) for each in kept
    ]
    note_sources(kept, done)
    done.notes += differences(kept)
    return done


def _told_by_user_and_names(pictures: Sequence[Picture], config: GrowthConfig, done: Placement) -> list[Guess]:
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
        done.notes.append(
            f"{first} and the file names give different times for {count_images(differing)}: {first} is used"
        )
    return guesses


def _merge(picture: Picture, sources: Iterable[tuple[str, Told]], frame_hours: float | None) -> Guess:
    """The first source that tells the culture, and the first that tells a time."""
    guess = Guess(picture)
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
                guess.is_of_plane = told.is_of_plane
    return guess


def _place_in_file(file: list[Guess], config: GrowthConfig, has_times: bool, done: Placement) -> list[Guess]:
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
        first = min([1, *(frame for frame in frames if frame is not None)])  # 0, where a table counts so
        within = [None if frame is None else (frame - first) * config.frame_hours for frame in frames]
        source = "--frame-hours"
    elif len({picture.time_h for picture in pictures}) > 1:
        within, source = [picture.time_h for picture in pictures], "the file"
    elif len(set(dates)) > 1:
        within = [hours_since(picture.acquired, min(dates)) for picture in pictures]
        source = "the file's dates"
    elif len(set(frames)) > 1:
        within = [None] * len(file)
    kept = []
    for guess, of_frame in zip(file, within, strict=True):
        picture = guess.picture
        hours = 0.0 if guess.is_of_plane else of_frame
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
        if guess.culture is None and (source or guess.is_of_plane):
            guess.culture, guess.culture_from = picture.image, "the file"
        kept.append(guess)
    return kept


def _frame(plane: str, form: str) -> int | None:
    found = next((re.fullmatch(form, part) for part in plane.split("-") if re.fullmatch(form, part)), None)
    return int(found[1]) if found and len(found[1]) <= MAX_DIGITS else None


def _why_no_time(picture: Picture, config: GrowthConfig) -> str:
    if _frame(picture.plane, r"t(\d+)") and not config.frame_hours:
        return "its file does not say how much time is between its frames: give --frame-hours"
    if picture.plane and not config.frame_hours:
        return "no time is known; give --frame-hours if the pages of its file are frames, or --metadata"
    return "no time is known; give --pattern or --metadata"
