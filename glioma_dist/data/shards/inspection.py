"""Looking after shards: an index for somebody else's, every checksum of any, and what the samples look like."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from glioma_dist.data.images.value_range import find_range
from glioma_dist.data.sample import IGNORE, Sample, cells_of
from glioma_dist.data.shards.cache import CHUNK_BYTES
from glioma_dist.data.shards.checks import SHARD_NAME_PATTERN, fault_of_classes
from glioma_dist.data.shards.index import (
    FORMAT_VERSION,
    INDEX_NAME,
    PLAIN_VERSION,
    index_texts,
    members_name,
    write_json,
)
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.tar_members import scan_tar, unused_members
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.errors import InputError, one_line, printable
from glioma_dist.files import open_plain

PLAIN_MEMBERS = {extension: extension for extension in ("png", "mask.png", "json")}
"""Of tars without instances."""
MOST_NAMES = 20
"""Of unused members, that an index keeps."""
CELL_PX, LINE_PX = 360, 20
"""Of a contact sheet: width and height that an image is fitted into, and the height of the line below it."""


def index_folder(
    folder: Path,
    dataset: str,
    split: str,
    licence: str,
    members: Mapping[str, str] = PLAIN_MEMBERS,
    classes: Sequence[str] = (),
    has_ignore: bool = False,
) -> list[str]:
    """Write index.json and the tables of members for a folder of plain WebDataset tars; index.json last.

    Returns the members that no sample took, as `tar: name`. members: what the tars' members end with, by what each is
    here (see `scan_tar`). classes, has_ignore: of the masks' values, as in index.json; with both empty all but black is
    cell. Raises InputError where there is an index already, no tar, or one that cannot be used.
    """
    labels = {"classes": list(classes), "has_instances": "instances.png" in members, "has_ignore": has_ignore}
    fault = fault_of_classes(labels)
    if fault:
        raise InputError(f"{folder}: {fault}")
    texts = index_texts(folder, dataset, split, licence)
    if (folder / INDEX_NAME).exists():
        raise InputError(f"{folder}: holds an {INDEX_NAME} already; remove it first to have it made again")
    paths = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    if not paths:
        raise InputError(f"{folder}: has no .tar files; give the folder of the shards, and uncompress .tar.gz files")
    shards: list[dict] = []
    unused: list[str] = []
    seen: dict[str, Path] = {}
    for path in paths:
        if not SHARD_NAME_PATTERN.fullmatch(path.name):
            what = "a shard's name is up to 64 letters, digits, _ and -, then .tar; rename it"
            raise InputError(one_line(f"{path}: {what}"))
        contents = scan_tar(path, members)
        if not contents.table:
            names = f"; it has {_some(contents.unused, 3)}" if contents.unused else ""
            what = f"holds no sample with {' and '.join(members.values())}; name the endings it has{names}"
            raise InputError(one_line(f"{path}: {what}"))
        for member in contents.table:
            if labels["has_instances"] and "instances.png" not in member:
                lacks = f"sample {member['key']} has no {members['instances.png']}"
                raise InputError(f"{path}: {lacks}; each sample needs one, or none: omit --instances")
            if member["key"] in seen:
                other = seen[member["key"]].name
                raise InputError(f"{path}: sample {member['key']} is in {other}, too; rename one, or remove it")
            seen[member["key"]] = path
        unused += [f"{path.name}: {name}" for name in contents.unused]
        shards.append(_write_table(path, contents.table))
    head = {"format_version": PLAIN_VERSION, **texts}
    if any(labels.values()):
        head |= {"format_version": FORMAT_VERSION, **labels}
    if unused:
        head["unused_members"] = {
            "count": len(unused),
            "names": [printable(name)[:200] for name in unused[:MOST_NAMES]],
        }
    index = {**head, "num_samples": sum(shard["num_samples"] for shard in shards), "shards": shards}
    write_json(folder / INDEX_NAME, index, indent=1)
    return unused


def _write_table(path: Path, table: list[dict]) -> dict:
    """Write the table of members beside a tar. Returns the tar's entry in the index."""
    table_path = path.with_name(members_name(path.name))
    write_json(table_path, table)
    with open_plain(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        num_bytes = os.fstat(file.fileno()).st_size
    return {
        "name": path.name,
        "bytes": num_bytes,
        "sha256": digest,
        "num_samples": len(table),
        "members_sha256": hashlib.sha256(table_path.read_bytes()).hexdigest(),
    }


def tell_unused(names: Sequence[str], count: int | None = None) -> str | None:
    """One line about members that no sample took, `count` in all; None where there is none."""
    count = len(names) if count is None else count
    if not count:
        return None
    are = "1 member belongs" if count == 1 else f"{count} members belong"
    return one_line(f"{are} to no sample and {'is' if count == 1 else 'are'} not read: {_some(names, count)}")


def _some(names: Sequence[str], count: int) -> str:
    shown = [one_line(name, 80) for name in names[:3]]
    return ", ".join(shown) + (f" and {count - len(shown)} more" if count > len(shown) else "")


def find_unused(reader: ShardReader) -> list[str]:
    """The members of a local folder's tars that no sample takes, as `tar: name`. Raises InputError."""
    unused = []
    for number, shard in enumerate(reader.index["shards"]):
        path = reader.source.folder / shard["name"]
        unused += [f"{path.name}: {name}" for name in unused_members(path, reader.member_ranges(number))]
    return unused


def verify(reader: ShardReader) -> Iterator[tuple[str, str | None]]:
    """For each shard its name and what is wrong with it first: its SHA-256, its table's, one of its samples, or a key
    that an earlier shard has; None where nothing is. Every byte is read, every image decoded."""
    seen: dict[str, str] = {}
    for number, shard in enumerate(reader.index["shards"]):
        try:
            digest = hashlib.sha256()
            for start in range(0, shard["bytes"], CHUNK_BYTES):
                end = min(start + CHUNK_BYTES, shard["bytes"])
                digest.update(reader.source.read_range(shard["name"], start, end))
            # The samples first: what is wrong with one says more than what is wrong with the whole.
            for place in range(shard["num_samples"]):
                sample = reader.read(number, place)
                key = sample.key
                if sample.instances is not None and not np.array_equal(sample.instances > 0, cells_of(sample.mask)):
                    what = "its mask and its instances have cells at different pixels; convert it again"
                    raise InputError(f"{reader.source.where(shard['name'])}: sample {key}: {what}")
                if sample.value_range not in (None, find_range(sample.image)):
                    what = "its PNG states other percentiles than its pixels have; convert it again"
                    raise InputError(f"{reader.source.where(shard['name'])}: sample {key}: {what}")
                if seen.setdefault(key, shard["name"]) != shard["name"]:
                    where = reader.source.where(shard["name"])
                    raise InputError(f"{where}: sample {key} is in {seen[key]}, too; rename one, or remove it")
            if digest.hexdigest() != shard["sha256"]:
                raise InputError(
                    f"{reader.source.where(shard['name'])}: its SHA-256 is {digest.hexdigest()}, {INDEX_NAME} says "
                    f"{shard['sha256']}; {reader.source.remedy}"
                )
        except InputError as error:
            yield shard["name"], str(error)
        else:
            yield shard["name"], None


def pick_samples(reader: ShardReader, count: int) -> list[Sample]:
    """At most `count` samples, spread evenly over the shards."""
    places = [(shard, place) for shard, size in enumerate(reader.shard_sizes) for place in range(size)]
    chosen = np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int)
    return [reader.read(*places[number]) for number in chosen]


def contact_sheet(samples: list[Sample], draw: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """All samples on one picture, each with its key: uint8 (H, W, 3) RGB.

    draw: from an image, uint8, and its mask to a picture of both, uint8 (H, W, 3).
    """
    num_columns = int(np.ceil(np.sqrt(len(samples))))
    num_rows = int(np.ceil(len(samples) / num_columns))
    sheet = np.full((num_rows * (CELL_PX + LINE_PX), num_columns * CELL_PX, 3), 255, np.uint8)
    for number, sample in enumerate(samples):
        row, column = divmod(number, num_columns)
        top, left = row * (CELL_PX + LINE_PX), column * CELL_PX
        height, width = sample.mask.shape
        scale = CELL_PX / max(height, width)
        size = (max(1, round(scale * width)), max(1, round(scale * height)))
        image = cv2.resize(normalize_intensity(sample.image, "percentile"), size, interpolation=cv2.INTER_AREA)
        # Outlined at the picture's size, or they would vanish in the shrinking of a large one.
        mask = np.where(sample.mask == IGNORE, np.uint8(0), sample.mask)
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
        sheet[top : top + size[1], left : left + size[0]] = draw(image, mask)
        line = (left + 4, top + CELL_PX + LINE_PX - 6)
        cv2.putText(sheet, sample.key[:44], line, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return sheet
