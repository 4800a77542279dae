"""What index.json and the tables of members may say: whatever else they say is named in a few words."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from glioma_dist.errors import one_line, printable
from glioma_dist.limits import MAX_CLASS_CHARACTERS, MAX_CLASSES

EXTENSIONS = ("png", "mask.png", "json", "instances.png")
"""Of a sample's members. The first two are always there, the last one where the index says `has_instances`."""
MAX_SHARD_BYTES, MAX_SAMPLE_BYTES, MAX_FACTS_BYTES = 2**40, 2**30, 2**20
MIN_SAMPLE_BYTES = 1024
"""Of a sample in a tar: an image and a mask have a header of 512 bytes each."""
MAX_SAMPLES = 2**17
"""Of one shard that is indexed here: its table of members stays below the bound that tables are read with."""
MAX_TEXT_LENGTH = 10_000
# USTAR holds names of 100 bytes; `.mask.png` takes 9 of them.
MAX_KEY_LENGTH = 90
NO_FACTS = [-1, -1]
KEY_PATTERN = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_KEY_LENGTH}}}")
SHARD_NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}\.tar")


def sample_span(ranges: Iterable[Sequence[int]]) -> tuple[int, int]:
    """First byte and end of a sample's members, each [offset, size]: they lie side by side."""
    return min(offset for offset, _ in ranges), max(offset + size for offset, size in ranges)


def short(value: object) -> str:
    """A value from a file, for a message."""
    if value is None:
        return "missing or null"
    return one_line(repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}", 80)


def _is_count(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def is_text(value: object) -> bool:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_TEXT_LENGTH:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half a character, which could not be printed
        return False
    return True


def fault_of_classes(index: dict) -> str | None:
    """What is wrong with what an index of format version 2 says of classes and instances; None where nothing is."""
    for field in ("has_instances", "has_ignore"):
        if type(index.get(field)) is not bool:
            return f"its {field} is {short(index.get(field))}, not true or false"
    classes = index.get("classes")
    if not isinstance(classes, list) or len(classes) > MAX_CLASSES or len(classes) == 1:
        what = f"{len(classes)} names" if isinstance(classes, list) else short(classes)
        return f"its classes are {what}, not a list of none or of 2 to {MAX_CLASSES} names"
    for name in classes:
        if not is_text(name) or len(name) > MAX_CLASS_CHARACTERS or name != printable(name).strip():
            return f"a class is {short(name)}, not a name of 1 to {MAX_CLASS_CHARACTERS} characters"
    return "names a class twice" if len(set(classes)) < len(classes) else None


def is_unused(value: object) -> bool:
    """Whether this is what an index says of members that no sample took: nothing, or their count and some names."""
    if value is None:
        return True
    names = value.get("names") if isinstance(value, dict) else None
    return isinstance(names, list) and all(map(is_text, names)) and _is_count(value.get("count"), 2**40)


def fault_of_shard(shard: object) -> str | None:
    """What is wrong with a shard's entry in the index; None where nothing is."""
    if not isinstance(shard, dict):
        return f"it is {short(shard)}"
    name, num_bytes, num_samples = (shard.get(field) for field in ("name", "bytes", "num_samples"))
    if not isinstance(name, str) or not SHARD_NAME_PATTERN.fullmatch(name):
        return f"its name is {short(name)}"
    if not _is_count(num_bytes, MAX_SHARD_BYTES):
        return f"{name}: its bytes are {short(num_bytes)}"
    if not _is_count(num_samples, num_bytes // MIN_SAMPLE_BYTES):
        return f"{name}: its num_samples are {short(num_samples)}, in {num_bytes} bytes"
    for field in ("sha256", "members_sha256"):
        if (field == "sha256" or field in shard) and not _is_digest(shard.get(field)):
            return f"{name}: its {field} is {short(shard.get(field))}"
    return None


def fault_of_member(member: object, num_bytes: int, has_instances: bool = False) -> str | None:
    """What is wrong with a sample's entry in a table of members, of a shard of `num_bytes`; None where nothing is.

    Metadata and SHA-256 may be missing. has_instances: whether each sample must have them.
    """
    if not isinstance(member, dict):
        return f"it is {short(member)}"
    key = member.get("key")
    if not isinstance(key, str) or not KEY_PATTERN.fullmatch(key):
        return f"its key is {short(key)}"
    if "sha256" in member and not _is_digest(member["sha256"]):
        return f"{key}: its sha256 is {short(member['sha256'])}"
    ranges = []
    optional = {"json"} if has_instances else {"json", "instances.png"}
    for extension in EXTENSIONS:
        if extension in optional and extension not in member:
            continue
        pair = member.get(extension)
        is_pair = isinstance(pair, list) and len(pair) == 2 and all(type(number) is int for number in pair)
        if not is_pair or not all(_is_count(number, num_bytes) for number in pair) or sum(pair) > num_bytes:
            shown = one_line(repr(pair), 60) if is_pair else short(pair)
            return f"{key}: its {extension} is {shown}, not [offset, size] within {num_bytes} bytes"
        ranges.append(pair)
    if "json" in member and member["json"][1] > MAX_FACTS_BYTES:
        return f"{key}: its json has {member['json'][1]} bytes, more than {MAX_FACTS_BYTES}"
    start, end = sample_span(ranges)
    return f"{key}: it spans {end - start} bytes" if end - start > MAX_SAMPLE_BYTES else None


def fault_of_table(table: list[dict]) -> str | None:
    """What is wrong with samples that are each in order: two of one key, or bytes that belong to two members."""
    keys: set[str] = set()
    for member in table:
        if member["key"] in keys:
            return f"two of the key {member['key']}"
        keys.add(member["key"])
    ranges = sorted(
        (*member[extension], member["key"]) for member in table for extension in EXTENSIONS if extension in member
    )
    for (offset, size, key), (next_offset, _, next_key) in itertools.pairwise(ranges):
        if next_offset < max(offset + size, offset + 1):
            return f"members of {key} and {next_key} overlap at byte {next_offset}"
    return None


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None
