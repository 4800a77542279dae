"""What there is to convert: each image of a split with its file, its cells and a key of its own."""

from __future__ import annotations

import filecmp
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from glioma_dist.data.convert.audit import DOUBLED_NAME, LABELS_WITHOUT_IMAGE, UNKNOWN_CATEGORY, Audit
from glioma_dist.data.convert.coco import CocoFile, CocoImage
from glioma_dist.data.convert.labelling import PLAIN, Labelling
from glioma_dist.data.convert.prepare import Job
from glioma_dist.data.convert.sources import Source, SourceSplit, licence_of
from glioma_dist.data.shards.index import MAX_KEY_LENGTH
from glioma_dist.files import cannot_read


def make_keys(names: Iterable[str]) -> dict[str, str]:
    """Give each of a split's file names a key that no other has, whatever the names' order.

    A key is the name without folder and suffix, with whatever is no letter, digit, `_` or `-` turned to `_`.
    Where several names would get the same, each gets its folder too, and where that is not enough a part of
    its SHA-256.
    """
    names = sorted(set(names))

    def plain(text: str) -> str:
        return re.sub(r"[^A-Za-z0-9_-]", "_", text) or "_"

    def with_hash(name: str) -> str:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{plain(PurePosixPath(name).stem)[:60]}-{digest[:16]}"

    makers = (
        lambda name: plain(PurePosixPath(name).stem),
        lambda name: plain(str(PurePosixPath(name).with_suffix(""))),
        with_hash,
    )
    keys: dict[str, str] = {}
    for make in makers:
        proposed = {name: make(name) for name in names if name not in keys}
        times, taken = Counter(proposed.values()), set(keys.values())
        for name, key in proposed.items():
            if times[key] == 1 and key not in taken and len(key) <= MAX_KEY_LENGTH:
                keys[name] = key
    return keys


def find_jobs(
    source: Source,
    split: SourceSplit,
    used: dict[Path, str],
    audit: Audit,
    dataset: str,
    categories: Sequence[str] | None,
    labelling: Labelling = PLAIN,
) -> list[Job]:
    """Find each image's file, and note what is odd about the list itself; `used` gains the files named."""
    coco = split.read_labels(categories, labelling)
    licence = licence_of(source, coco)
    _audit_labels(split, coco, audit)
    times = Counter(PurePosixPath(image.file_name).name for image in coco.images)
    found: dict[str, tuple[Path, CocoImage]] = {}
    for image in coco.images:
        where = f"{split.name}/{image.file_name}"
        paths = split.images.locate(image.file_name, times[PurePosixPath(image.file_name).name] == 1)
        for path in paths:
            if path in used:
                detail = f"the file is also that of {used[path]}"
                audit.add(DOUBLED_NAME, where, detail, left_out=False)
            used.setdefault(path, where)
        if not paths:
            audit.add(LABELS_WITHOUT_IMAGE, where, split.images.why_missing(image.file_name), left_out=True)
        elif any(not _alike(paths[0], other) for other in paths[1:]):
            audit.add(DOUBLED_NAME, where, f"may be {paths[0]} or {paths[1]}, which differ", left_out=True)
        elif image.file_name in coco.shared_ids:
            audit.add(DOUBLED_NAME, where, "shares its id with another image, and so its labels", left_out=True)
        else:
            if len(image.sizes) > 1:
                detail = f"listed {len(image.sizes)} times; all its labels are united"
                audit.add(DOUBLED_NAME, where, detail, left_out=False)
            found[image.file_name] = (paths[0], image)
    keys = make_keys(found)
    jobs = [
        Job(keys[name], path, image, split.name, dataset, licence, labelling) for name, (path, image) in found.items()
    ]
    # Names sorted would put one cell line's images, or one well's, into the same shard. The hash of the key
    # mixes them once and for all, in the same way whatever the order in the JSON.
    return sorted(jobs, key=lambda job: hashlib.sha256(job.key.encode()).digest())


def _audit_labels(split: SourceSplit, coco: CocoFile, audit: Audit) -> None:
    """Note which labels are taken as cells, and labels that belong to nothing."""
    audit.note_labels(split.name, coco.categories, coco.num_crowds)
    for number, count in coco.unknown.items():
        where = f"{split.annotations.name}: category id {number}"
        audit.add(
            UNKNOWN_CATEGORY, where, f"{count} labels of a category that the file does not define", left_out=False
        )
    for image_id, count in coco.orphans.items():
        where = f"{split.annotations.name}: image id {image_id}"
        audit.add(LABELS_WITHOUT_IMAGE, where, f"{count} labels of an image that is not listed", left_out=True)


def _alike(first: Path, second: Path) -> bool:
    """Whether two files hold the same bytes."""
    try:
        return filecmp.cmp(first, second, shallow=False)
    except OSError as error:
        raise cannot_read(error.filename or first, error) from None
