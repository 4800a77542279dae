"""Files beside shards that no index lists, and so no step reads."""

from __future__ import annotations

from collections import Counter

from glioma_dist.data.shards.index import INDEX_NAME
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.storage import LocalFolder
from glioma_dist.errors import printable

PAPERS = ("readme", "licence", "license", "audit.json", "citation")
"""How the names of files begin that are about the data and no part of it."""
NUM_KINDS = 5


def describe_unlisted(reader: ShardReader) -> str | None:
    """How many entries of which kind lie beside the shards of a local folder and are not read; None where none does.

    A URL's are not listed: that would be a request for each thousand.
    """
    if not isinstance(reader.source, LocalFolder):
        return None
    listed = {INDEX_NAME}
    for shard in reader.index["shards"]:
        listed |= {shard["name"], shard["name"].removesuffix(".tar") + ".members.json"}
    kinds: Counter[str] = Counter()
    for path in reader.source.folder.iterdir():
        if path.name not in listed and not path.name.startswith(".") and not path.name.lower().startswith(PAPERS):
            kinds["folder" if path.is_dir() else printable(path.suffix.lower())[:20] or "without a suffix"] += 1
    if not kinds:
        return None
    named = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    told = ", ".join(f"{count} {kind}" for kind, count in named[:NUM_KINDS]) if len(kinds) > 1 else named[0][0]
    more = f" and {len(kinds) - NUM_KINDS} more kinds" if len(kinds) > NUM_KINDS else ""
    total = kinds.total()
    entries, are = ("entry", "is") if total == 1 else ("entries", "are")
    what = f"{total} {entries} that index.json does not list {are}"
    return f"{reader.source}: {what} not read ({told}{more})"
