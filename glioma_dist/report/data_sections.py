"""The texts, tables and plots of a data report, as its template takes them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import glioma_dist
from glioma_dist.data.shards.storage import LocalFolder
from glioma_dist.errors import InputError, printable
from glioma_dist.files import read_json
from glioma_dist.inference.quality import FLAGS as PICTURE_FLAGS
from glioma_dist.report.data_findings import WORDS
from glioma_dist.report.data_pictures import MAX_PAIRS, TAGS, Pictures
from glioma_dist.report.data_samples import FLAGS as MASK_FLAGS
from glioma_dist.report.data_tables import DataSet, histograms, split_table
from glioma_dist.report.prediction_pictures import Thumbnail

MAX_ROWS, MAX_LISTED, MAX_GROUPS = 5000, 1000, 500
MAX_AUDIT_BYTES = 2**26
AUDIT = "audit.json"


@dataclass(frozen=True)
class Row:
    """An image in the table, with its card if it has one."""

    number: int
    name: str
    confluence: str
    flags: tuple[str, ...]
    cells: list[tuple[str, str]]
    has_card: bool
    thumbnail: Thumbnail | None


@dataclass(frozen=True)
class PairRow:
    """A pair of images on the page."""

    words: str
    similarity: str
    first: str
    second: str
    is_leak: bool
    pictures: list[tuple[Thumbnail | None, str]]


def sections(data: DataSet, pictures: Pictures) -> dict[str, Any]:
    """Return the values of the template."""
    return {
        **_head(data),
        "findings": _findings(data),
        **split_table(data),
        "histograms": histograms(data),
        **_alike(data, pictures),
        **_groups(data),
        **_images(data, pictures),
        **_defects(data),
        "licences": _licences(data),
    }


def _head(data: DataSet) -> dict[str, Any]:
    samples = data.samples
    groups = {(sample.dataset, sample.group) for sample in samples if sample.group}
    figures = [
        (str(len(samples)), "images" if len(samples) > 1 else "image"),
        (str(len(data.readers)), "splits" if len(data.readers) > 1 else "split"),
        (str(len(groups)), "groups"),
        (f"{100 * np.median([sample.confluence for sample in samples]):.1f} %", "median confluence"),
        (str(len(data.leaks)), "pairs alike in two splits"),
        (str(sum(bool(sample.flags) for sample in samples)), "with a flag"),
    ]
    sources = ", ".join(printable(reader.source) for reader in data.readers)[:400]
    datasets = ", ".join(dict.fromkeys(printable(reader.index["dataset"])[:60] for reader in data.readers))
    subtitle = f"{sources}; made by glioma-dist shards report {glioma_dist.__version__}"
    return {"title": f"Data: {datasets}", "subtitle": subtitle, "figures": figures}


def _findings(data: DataSet) -> list[tuple[bool, str, str]]:
    """What needs a look: whether it makes scores wrong, its name, and a sentence."""
    kinds = Counter((pair.kind, pair.is_exact) for pair in data.alike.pairs)
    flags = Counter(flag for sample in data.samples for flag in sample.flags)
    other_masks = sum(
        data.samples[pair.first].mask_digest != data.samples[pair.second].mask_digest
        for pair in data.alike.pairs
        if pair.is_exact
    )
    groups = len(data.alike.shared_groups)
    found = [
        (True, "leak", kinds["leak", True], "Pairs with equal pixels in two splits", "remove one of each"),
        (True, "leak", kinds["leak", False], "Pairs of nearly the same image in two splits", "look at them below"),
        (True, "leak", groups, "Groups with images in several splits", "scores are too high for new wells"),
        (True, "unreadable", len(data.unreadable), "Images that cannot be read", "see the defects"),
        (True, "two masks", other_masks, "Equal images with different masks", "keep the right one of each pair"),
        (False, "repeated", kinds["repeated", True], "Pairs with equal pixels in one split", "the image counts twice"),
        (False, "repeated", kinds["repeated", False], "Pairs of nearly the same image in one split", "see below"),
        *((False, flag, count, "Images", _meaning(flag)) for flag, count in flags.most_common()),
    ]
    return [(is_serious, name, f"{what}: {count} ({more})") for is_serious, name, count, what, more in found if count]


def _meaning(flag: str) -> str:
    return (MASK_FLAGS | PICTURE_FLAGS | TAGS).get(flag, "")


def _alike(data: DataSet, pictures: Pictures) -> dict[str, Any]:
    alike, pairs = data.alike, data.alike.pairs
    note = (
        "Pairs of images with equal pixels, or with nearly the same picture. Copies are found, too, that are brighter, "
        "darker, blurred, scaled, saved as JPEG, slightly cut at a side, mirrored or rotated by 90 degrees. Images of "
        "one group in one split are expected to be alike. In two splits they are a leak."
    )
    if alike.num_compared < len({sample.digest for sample in data.samples}):
        note += f" Near-duplicates were looked for among {alike.num_compared} images, evenly spread."
    if alike.num_omitted:
        note += f" {alike.num_omitted} pairs were not looked at, because very many are alike at first sight."
    if not pairs:
        note += " None was found."
    rows = []
    for number, pair in enumerate(pairs[:MAX_LISTED]):
        first, second = (data.named(place) for place in (pair.first, pair.second))
        shown = [(pictures.of.get(place), data.named(place)) for place in (pair.first, pair.second)]
        similarity = "equal pixels" if pair.is_exact else f"similarity {pair.similarity:.2f}"
        words = WORDS[pair.kind]
        rows.append(PairRow(words, similarity, first, second, pair.kind == "leak", shown if number < MAX_PAIRS else []))
    title = f"All {len(pairs)} pairs" if len(pairs) <= MAX_LISTED else f"The first {MAX_LISTED} of {len(pairs)} pairs"
    return {"pairs": rows, "alike_note": note, "pairs_title": title}


def _groups(data: DataSet) -> dict[str, Any]:
    shared = list(data.alike.shared_groups.items())
    note = "No group has images in two splits." if len(data.readers) > 1 else "There is one split only."
    if shared:
        note = (
            "A group is a well, a field or a stack, whose images show the same cells. glioma-dist convert keeps groups "
            "together (--split-seed, --group-pattern)."
        )
        note += f" The first {MAX_GROUPS} of {len(shared)} are listed." if len(shared) > MAX_GROUPS else ""
    rows = [
        (*name, ", ".join(f"{data.names[split]}: {count}" for split, count in sorted(counts.items())))
        for name, counts in shared[:MAX_GROUPS]
    ]
    return {"groups": rows, "groups_note": note}


def _images(data: DataSet, pictures: Pictures) -> dict[str, Any]:
    samples, cards = data.samples, set(pictures.cards)
    listed = range(len(samples))
    table_note = ""
    if len(samples) > MAX_ROWS:
        chosen = np.linspace(0, len(samples) - 1, MAX_ROWS - len(cards)).round().astype(int).tolist()
        listed = sorted({*chosen, *cards})
        table_note = f"{len(listed)} of {len(samples)} images, evenly spread, and all that have a picture. "
    rows = [_row(data, pictures, place, place in cards) for place in listed]
    counts = Counter(flag for sample in samples for flag in sample.flags)
    flags = [(name, count, _meaning(name)) for name, count in counts.most_common()]
    flags += [(tag, sum(tag in tags for tags in pictures.tags.values()), meaning) for tag, meaning in TAGS.items()]
    note = "A flag is a rule of thumb: look at the image and its mask. Words in grey only help to find images."
    if data.num_looked < len(samples):
        note += f" Flags of pictures were looked for in {data.num_looked} images, evenly spread."
    kinds = [("Image", "text"), ("Split", "text"), ("Group", "text"), ("Size", "text"), ("Confluence (%)", "number")]
    kinds += [("Cells", "number"), ("Brightness (%)", "number"), ("Contrast (%)", "number"), ("Flags", "flag")]
    pictures_note = (
        f"{len(cards)} of {len(samples)} images: with flags, the least and the most covered, and some others. Yellow: "
        "the outlines of the masks."
    )
    return {
        "rows": rows,
        "columns": kinds,
        "flags": flags,
        "quiet_flags": tuple(TAGS),
        "flags_note": note,
        "pictures_note": pictures_note,
        "table_note": f"{table_note}Click on a heading to sort.",
    }


def _row(data: DataSet, pictures: Pictures, place: int, has_card: bool) -> Row:
    sample = data.samples[place]
    name, flags = sample.file_name or sample.key, (*sample.flags, *pictures.tags.get(place, ()))
    confluence = f"{100 * sample.confluence:.1f}"
    cells = [
        (name, "text"),
        (data.names[sample.at.split], "text"),
        (sample.group, "text"),
        (f"{sample.width}x{sample.height}", "text"),
        (f"{100 * sample.confluence:.2f}", "number"),
        ("" if sample.num_cells is None else str(sample.num_cells), "number"),
        (f"{100 * sample.mean:.1f}", "number"),
        (f"{100 * sample.contrast:.1f}", "number"),
        (", ".join(flags), "flag"),
    ]
    return Row(place + 1, name, confluence, flags, cells, has_card, pictures.of.get(place) if has_card else None)


def _defects(data: DataSet) -> dict[str, Any]:
    """What cannot be read, and what the converters found."""
    rows = [
        (f"{data.names[each.at.split]}, shard {each.at.shard}, sample {each.at.place}", "unreadable", each.reason)
        for each in data.unreadable
    ]
    audits = [
        path
        for path in dict.fromkeys(
            reader.source.folder.parent / AUDIT for reader in data.readers if isinstance(reader.source, LocalFolder)
        )
        if path.is_file()
    ]
    notes = [f"Images that cannot be read: {len(rows)}."] if rows else ["Every image can be read."]
    for path in audits:
        found, left_out = _audit(path)
        notes.append(f"{printable(path)}: defects {len(found)}, images left out {left_out}.")
        rows += found
    if not audits:
        notes.append(f"There is no {AUDIT} beside the splits.")
    if len(rows) > MAX_LISTED:
        notes.append(f"The first {MAX_LISTED} are listed.")
    return {"defects": rows[:MAX_LISTED], "defects_note": " ".join(notes)}


def _audit(path: Path) -> tuple[list[tuple[str, str, str]], int]:
    """The defects that a converter wrote, and for how many an image was left out; none of a file that is no audit."""
    try:
        defects = read_json(path, MAX_AUDIT_BYTES)["defects"]
        found = [tuple(printable(each[name])[:500] for name in ("where", "kind", "detail")) for each in defects]
        return found, len({each["where"] for each in defects if each["left_out"]})
    except (InputError, KeyError, TypeError):
        return [], 0


def _licences(data: DataSet) -> list[tuple[str, str, str]]:
    rows = [
        (reader.index["dataset"], reader.index["licence"], str(reader.index.get("citation") or ""))
        for reader in data.readers
    ]
    rows += [(sample.dataset, sample.licence, "") for sample in data.samples if sample.licence]
    known = {(dataset, licence) for dataset, licence, _ in rows[: len(data.readers)]}
    kept = rows[: len(data.readers)] + [row for row in rows[len(data.readers) :] if row[:2] not in known]
    return [tuple(printable(text) for text in row) for row in dict.fromkeys(kept)][:MAX_LISTED]
