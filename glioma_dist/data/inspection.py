"""Looking after shards: an index for somebody else's, every checksum of any, and what the samples look like."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np

from glioma_dist.data.augment import raise_contrast
from glioma_dist.data.cache import CHUNK_BYTES
from glioma_dist.data.sample import Sample
from glioma_dist.data.shard_index import FORMAT_VERSION, INDEX_NAME, SHARD_NAME_PATTERN, members_name, write_json
from glioma_dist.data.shards import ShardReader
from glioma_dist.data.tar_members import OUR_MEMBERS, member_table
from glioma_dist.errors import InputError

CELL_PX, LINE_PX = 360, 20
"""Of a contact sheet: width and height that an image is fitted into, and the height of the line below it."""


def index_folder(
    folder: Path, dataset: str, split: str, licence: str, members: Mapping[str, str] = OUR_MEMBERS
) -> None:
    """Write index.json and the tables of members for a folder of plain WebDataset tars; index.json last.

    members: what the tars' members end with, by what each is here (see `member_table`). Raises InputError where there
    is an index already, no tar, or one that cannot be used.
    """
    if (folder / INDEX_NAME).exists():
        raise InputError(f"{folder}: holds an {INDEX_NAME} already; remove it first if it is to be made anew")
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise InputError(f"{folder}: holds no .tar; name the folder of the shards, and uncompress .tar.gz")
    shards: list[dict] = []
    seen: dict[str, Path] = {}
    for path in paths:
        if not SHARD_NAME_PATTERN.fullmatch(path.name):
            raise InputError(f"{path}: a shard's name is up to 64 letters, digits, _ and -, then .tar; rename it")
        members_of_shard = member_table(path, members)
        if not members_of_shard:
            raise InputError(f"{path}: holds no sample with {' and '.join(members.values())}; name the endings it has")
        for member in members_of_shard:
            if member["key"] in seen:
                raise InputError(f"{path}: sample {member['key']} is in {seen[member['key']].name}, too; mend the tars")
            seen[member["key"]] = path
        table = path.with_name(members_name(path.name))
        write_json(table, members_of_shard)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shards.append(
            {
                "name": path.name,
                "bytes": path.stat().st_size,
                "sha256": digest,
                "num_samples": len(members_of_shard),
                "members_sha256": hashlib.sha256(table.read_bytes()).hexdigest(),
            }
        )
    head = {"format_version": FORMAT_VERSION, "dataset": dataset, "split": split, "licence": licence}
    partial = folder / f".{INDEX_NAME}.partial"
    write_json(partial, {**head, "num_samples": sum(s["num_samples"] for s in shards), "shards": shards}, indent=1)
    partial.rename(folder / INDEX_NAME)


def verify(reader: ShardReader) -> Iterator[tuple[str, str | None]]:
    """For each shard its name and what is wrong with it first: its SHA-256, its table's, or one of its samples; None
    where all is well. Every byte is read, every image decoded."""
    for number, shard in enumerate(reader.index["shards"]):
        try:
            digest = hashlib.sha256()
            for start in range(0, shard["bytes"], CHUNK_BYTES):
                end = min(start + CHUNK_BYTES, shard["bytes"])
                digest.update(reader.source.read_range(shard["name"], start, end))
            # The samples first: what is wrong with one says more than what is wrong with the whole.
            for place in range(shard["num_samples"]):
                reader.read(number, place)
            if digest.hexdigest() != shard["sha256"]:
                raise InputError(
                    f"{reader.source.where(shard['name'])}: its SHA-256 is {digest.hexdigest()}, index.json says "
                    f"{shard['sha256']}; convert again"
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
        image = cv2.resize(raise_contrast(sample.image, "percentile"), size, interpolation=cv2.INTER_AREA)
        # Outlined at the picture's size, or they would vanish in the shrinking of a large one.
        mask = cv2.resize(sample.mask, size, interpolation=cv2.INTER_NEAREST)
        sheet[top : top + size[1], left : left + size[0]] = draw(image, mask)
        line = (left + 4, top + CELL_PX + LINE_PX - 6)
        cv2.putText(sheet, sample.key[:44], line, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return sheet
