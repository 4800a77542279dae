"""The data sets that can be downloaded: where their publishers keep them, and under which licence.

A new data set is one entry of `PUBLISHED` and one row of the program's commands.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from glioma_dist.data.convert.sources import (
    GLIOMA_C6_CITATION,
    GLIOMA_C6_LICENCE,
    LIVECELL_CITATION,
    LIVECELL_LICENCE,
    Source,
    find_glioma_c6,
    find_livecell,
)
from glioma_dist.data.download.addresses import check_http_url
from glioma_dist.data.download.unpacking import check_name
from glioma_dist.errors import InputError, one_line

MAX_FILE_BYTES = 2**34
"""Of one published file. The largest known, LIVECell's images, has 1.3 GB."""
MAX_FILES = 1000
OWN_NAMES = ("download.json",)


@dataclass(frozen=True)
class PublishedFile:
    """A file of a data set. name: its path below the folder of the data set, with slashes.

    num_bytes, md5: as its publisher tells them; None where the publisher does not.
    """

    name: str
    url: str
    num_bytes: int | None = None
    md5: str | None = None

    @property
    def is_archive(self) -> bool:
        return self.name.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"))


@dataclass(frozen=True)
class PublishedSet:
    """A published data set. Either `names` are its files below `base`, or `record` is the URL of a Zenodo record."""

    name: str
    """As in `glioma-dist convert NAME`."""
    title: str
    licence: str
    citation: str
    base: str
    find: Callable[[str], Source]
    """The converter's: raises InputError where a folder does not hold the data set."""
    names: tuple[str, ...] = ()
    record: str | None = None
    max_unpacked_bytes: int = 2**36
    """Of one archive."""

    def at(self, url: str) -> PublishedSet:
        """The same data set at a mirror: a folder with the same files, and for Zenodo's with its record, record.json.

        Raises InputError for a URL that is none, or that holds a password.
        """
        check_http_url(url)
        base = url.rstrip("/") + "/"
        return replace(self, base=base, record=base + "record.json" if self.record else None)

    def list_files(self, read_json: Callable[[str], Any]) -> list[PublishedFile]:
        """Its files. read_json: returns the JSON at a URL. Raises InputError where that is no record of Zenodo."""
        if self.record is None:
            return [PublishedFile(name, self.base + quote(name)) for name in self.names]
        in_folder = urlsplit(self.record).path.endswith("/record.json")
        return read_record(read_json(self.record), self.record, self.base if in_folder else None)


def read_record(record: Any, where: str, base: str | None = None) -> list[PublishedFile]:
    """The files of a record of Zenodo's API, with their sizes and MD5 sums.

    base: the folder that holds the files of a mirror; None: the record's own links are followed, on its own host.
    Raises InputError where it is no such record.
    """
    entries = record.get("files") if isinstance(record, dict) else None
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_FILES:
        raise InputError(f"{where}: is no record of Zenodo with a list of files; is the URL right?")
    files: dict[str, PublishedFile] = {}
    for entry in entries:
        try:
            name, num_bytes, checksum = entry["key"], entry["size"], entry["checksum"]
            link = base + quote(name) if base else urljoin(where, entry["links"]["self"])
            md5 = re.fullmatch(r"md5:([0-9a-f]{32})", checksum)
        except (TypeError, KeyError, ValueError, AttributeError):
            raise InputError(f"{where}: an entry of its list of files has no key, size, checksum or link") from None
        if md5 is None or type(num_bytes) is not int or not 0 < num_bytes <= MAX_FILE_BYTES:
            raise InputError(
                f"{where}: {one_line(name, 80)}: {one_line(checksum, 60)} and {one_line(num_bytes, 40)} are no MD5 sum "
                f"and no size up to {MAX_FILE_BYTES} bytes; is the URL right?"
            )
        check_name(name, where)
        if name in files or name in OWN_NAMES or PurePosixPath(name).parts[0].startswith("."):
            raise InputError(f"{where}: lists {one_line(name, 80)}, a name that is taken here; is the URL right?")
        if urlsplit(link)[:2] != urlsplit(where)[:2]:
            raise InputError(
                f"{where}: {one_line(name, 80)} lies on another server, {one_line(link, 120)}; not followed"
            )
        files[name] = PublishedFile(name, link, num_bytes, md5[1])
    return list(files.values())


PUBLISHED = {
    each.name: each
    for each in (
        PublishedSet(
            name="livecell",
            title="LIVECell",
            licence=LIVECELL_LICENCE,
            citation=LIVECELL_CITATION,
            # As https://sartorius-research.github.io/LIVECell/ links them, which says http; S3 answers https, too.
            base="https://livecell-dataset.s3.eu-central-1.amazonaws.com/LIVECell_dataset_2021/",
            find=find_livecell,
            names=(
                "annotations/LIVECell/livecell_coco_train.json",
                "annotations/LIVECell/livecell_coco_val.json",
                "annotations/LIVECell/livecell_coco_test.json",
                "images.zip",
            ),
        ),
        PublishedSet(
            name="glioma-c6",
            title="Glioma C6",
            licence=GLIOMA_C6_LICENCE,
            citation=GLIOMA_C6_CITATION,
            base="https://zenodo.org/",
            find=find_glioma_c6,
            record="https://zenodo.org/api/records/17352019",
        ),
    )
}
"""By the name that the commands `download` and `convert` know."""
