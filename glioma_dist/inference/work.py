"""What a prediction has to do: the pictures whose results are not complete yet, and the results that stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from glioma_dist.config.paths import Url
from glioma_dist.inference.pictures import Picture
from glioma_dist.inference.record import Place, Record, differences, digest_of, mark_of, read_row, result_names
from glioma_dist.inference.results import PredictedImage
from glioma_dist.wording import counted


@dataclass(frozen=True)
class Work:
    """pictures: to segment. done: results of pictures of this run that are complete already, by their names. kept:
    other results that stay true: of pictures that this run does not name, or that it does again. record: of `done` and
    `kept`. notes: for the user."""

    pictures: list[Picture]
    num_pictures: int
    done: dict[str, PredictedImage] = field(default_factory=dict)
    kept: dict[str, PredictedImage] = field(default_factory=dict)
    record: Record = field(default_factory=Record)
    notes: tuple[str, ...] = ()


def find_work(
    pictures: Sequence[Picture], place: Place, settings: dict[str, Any], kinds: Sequence[str], redo: bool
) -> Work:
    """Compare pictures with the record of earlier runs into the same folder.

    A picture is done where its file, the checkpoint and the settings are the same as then, and its results of all
    `kinds` are there as they were written. Raises InputError where the record is none, or cannot be read.
    """
    old, digest = place.read(), digest_of(settings)
    there = set(place.names()) if old.images and isinstance(place.out, Url) else None
    new = Record(settings={digest: settings})
    todo: list[Picture] = []
    done: dict[str, PredictedImage] = {}
    others: Counter[str] = Counter()
    stale: set[str] = set()
    for picture in pictures:
        entry = old.images.get(picture.name, {})
        row = read_row(entry, place.out) if _is_whole(entry, place.out, there) else None
        is_same = bool(picture.source) and entry.get("source") == _source(picture)
        if row is not None and is_same and entry.get("settings") != digest:
            others[str(entry.get("settings"))] += 1
            stale.update(row.files.keys() - set(kinds))
        elif row is not None and is_same and not redo and all(kind in entry["kinds"] for kind in kinds):
            done[picture.name] = replace(row, image=picture.path)
            new.images[picture.name] = entry
            continue
        todo.append(picture)
    kept = _keep(old, new, {picture.name: picture for picture in todo}, digest, place.out, there)
    new.checkpoints = {key: value for key, value in old.checkpoints.items() if key == settings["checkpoint"]}
    num_more = len(kept.keys() - {picture.name for picture in pictures})
    notes = _notes(len(pictures), len(done), num_more, others, stale, old, settings)
    names = {picture.name for picture in pictures}
    rest = {name: each for name, each in old.images.items() if name not in names and each.get("settings") != digest}
    if num_omitted := sum(_is_whole(each, place.out, there) for each in rest.values()):
        notes = (*notes, f"summary.csv omits {counted(num_omitted, 'image')} of earlier runs with other settings")
    return Work(todo, len(pictures), done, kept, new, notes)


def _keep(
    old: Record, new: Record, todo: dict[str, Picture], digest: str, out: Path | Url, there: set[str] | None
) -> dict[str, PredictedImage]:
    """Results of earlier runs with the same settings, which stay in the table; their entries are added to `new`.

    Those of a picture that is segmented again are among them where its file is the same: should it fail, they are
    still true.
    """
    kept = {}
    for name, entry in old.images.items():
        picture = todo.get(name)
        has_changed = picture is not None and entry["source"][:-1] != _source(picture)[:-1]
        if name in new.images or has_changed or entry.get("settings") != digest or not _is_whole(entry, out, there):
            continue
        row = read_row(entry, out)
        if row is not None:
            kept[name] = row
            new.images[name] = entry
    return kept


def rows_of_others(record: Record, known: set[str], digest: str, place: Place) -> dict[str, PredictedImage]:
    """Results that another run has written to the folder meanwhile, with the same settings: all but those `known`."""
    entries = {name: each for name, each in record.images.items() if name not in known and each["settings"] == digest}
    there = set(place.names()) if entries and isinstance(place.out, Url) else None
    rows = {name: read_row(each, place.out) for name, each in entries.items() if _is_whole(each, place.out, there)}
    return {name: row for name, row in rows.items() if row is not None}


def _is_whole(entry: dict[str, Any], out: Path | Url, there: set[str] | None) -> bool:
    """Whether all results of an entry are there as they were written. there: the names at a URL."""
    marks, names = entry.get("results", {}), result_names(entry.get("row"))
    if not (names or entry.get("kinds") == []) or set(names) != set(marks):
        return False
    if there is not None:
        return all(name.split("/")[0] in there for name in names)
    return all(mark_of(out / name) == mark and (out / name).exists() for name, mark in marks.items())


def _source(picture: Picture) -> list[Any]:
    return [*picture.source, picture.metadata.plane, picture.colour]


def source_of(picture: Picture) -> tuple[Any, ...]:
    """Return what the record says about the source of a picture; empty if a change of it cannot be noticed."""
    return tuple(_source(picture)) if picture.source else ()


def _notes(
    number: int,
    num_done: int,
    num_more: int,
    others: Counter[str],
    stale: set[str],
    old: Record,
    settings: dict[str, Any],
) -> tuple[str, ...]:
    notes = []
    if num_done:
        notes.append(f"{num_done} of {number} images are done already: skipped; --redo segments them again")
    if others:
        before = old.settings.get(others.most_common(1)[0][0], {})
        what = differences(before, settings) or "other settings"
        rest = (
            f"; {', '.join(sorted(stale))} there keep the earlier settings: --write does not name them" if stale else ""
        )
        notes.append(f"settings have changed ({what}): {counted(others.total(), 'image')} segmented again{rest}")
    if num_more:
        notes.append(f"summary.csv also lists {counted(num_more, 'image')} of earlier runs, whose results are there")
    return tuple(notes)
