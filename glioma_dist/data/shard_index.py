"""What stands beside the shards: index.json and the tables of members, written and read with suspicion.

Whatever these files say is later joined to a path or used as a length, so all of it is checked first.
"""

import json
import os
import re
import tarfile
from pathlib import Path

from glioma_dist.errors import InputError

FORMAT_VERSION = 1
INDEX_NAME = "index.json"
EXTENSIONS = ("png", "mask.png", "json")
MAX_SHARD_BYTES = 2**40
# USTAR holds names of 100 bytes; `.mask.png` takes 9 of them.
MAX_KEY_LENGTH = 90
KEY_PATTERN = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_KEY_LENGTH}}}")
SHARD_NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}\.tar")
HOW_TO_CONVERT = "convert first, for example: python tools/convert_livecell.py --source DIR --out shards/livecell"


def members_name(shard_name: str) -> str:
    """The name of the table of members beside a shard."""
    return shard_name.removesuffix(".tar") + ".members.json"


def member_table(path: Path) -> list[dict]:
    """For each sample of a tar, in order: key and {extension: [offset, size]}, in bytes."""
    table: list[dict] = []
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            key, extension = info.name.split(".", 1)
            if not table or table[-1]["key"] != key:
                table.append({"key": key})
            table[-1][extension] = [info.offset_data, info.size]
    return table


def write_json(path: Path, content: object, indent: int | None = None) -> None:
    """Write and sync a JSON file."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=indent)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def read_index(folder: Path) -> dict:
    """index.json of a folder of shards. Raises InputError where it is missing or says what cannot be."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {HOW_TO_CONVERT}")
    path = folder / INDEX_NAME
    if not path.is_file():
        splits = sorted(index.parent.name for index in folder.glob(f"*/{INDEX_NAME}"))
        hint = f"name one of its splits: {', '.join(splits)}" if splits else HOW_TO_CONVERT
        raise InputError(f"{folder}: holds no {INDEX_NAME}, so it is no folder of shards; {hint}")
    index = _read_json(path)
    if not isinstance(index, dict) or index.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{path}: is not of format version {FORMAT_VERSION}; convert again")
    texts, shards = [index.get(name) for name in ("dataset", "split", "licence")], index.get("shards")
    if not all(isinstance(text, str) for text in texts) or not isinstance(shards, list):
        raise InputError(f"{path}: lacks dataset, split, licence or shards; convert again")
    for shard in shards:
        if not isinstance(shard, dict) or not _is_sane_shard(shard):
            raise InputError(f"{path}: describes a shard that cannot be ({str(shard)[:120]}); convert again")
    if index.get("num_samples") != sum(shard["num_samples"] for shard in shards):
        raise InputError(f"{path}: num_samples is not the sum over its shards; convert again")
    return index


def read_members(folder: Path, shard: dict) -> list[dict]:
    """A shard's table of members, checked against `shard`, its entry in the index. Raises InputError."""
    path = folder / members_name(shard["name"])
    table = _read_json(path)
    if not isinstance(table, list) or len(table) != shard["num_samples"]:
        raise InputError(f"{path}: does not list {shard['num_samples']} samples; convert again")
    for member in table:
        if not isinstance(member, dict) or not _is_sane_member(member, shard["bytes"]):
            raise InputError(f"{path}: describes a sample that cannot be ({str(member)[:120]}); convert again")
    return table


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); convert again") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: is no JSON; convert again") from None


def _is_count(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_sane_shard(shard: dict) -> bool:
    return (
        SHARD_NAME_PATTERN.fullmatch(str(shard.get("name"))) is not None
        and isinstance(shard.get("sha256"), str)
        and _is_count(shard.get("bytes"), MAX_SHARD_BYTES)
        and _is_count(shard.get("num_samples"), shard["bytes"])
    )


def _is_sane_member(member: dict, num_bytes: int) -> bool:
    """Whether the key is of the right form and each [offset, size] lies within a file of `num_bytes`."""
    return KEY_PATTERN.fullmatch(str(member.get("key"))) is not None and all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(_is_count(number, num_bytes) for number in pair)
        and sum(pair) <= num_bytes
        for pair in (member.get(extension) for extension in EXTENSIONS)
    )
