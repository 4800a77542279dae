"""From a data set as found to shards, one folder a split, with an audit of every defect met."""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from glioma_dist.config.data import ARTICLE_COUNTS
from glioma_dist.data.convert.audit import (
    DOUBLED_NAME,
    IMAGE_WITHOUT_LABELS,
    MAX_NAMES,
    Audit,
)
from glioma_dist.data.convert.categories import plain_name
from glioma_dist.data.convert.division import Division, draw_parts
from glioma_dist.data.convert.image_folder import walk_files
from glioma_dist.data.convert.jobs import find_jobs
from glioma_dist.data.convert.labelling import PLAIN, Labelling
from glioma_dist.data.convert.mask_pairs import stem_of
from glioma_dist.data.convert.pages import check_pattern, find_groups
from glioma_dist.data.convert.prepare import NO_CELL, Job, prepare
from glioma_dist.data.convert.sources import Source, SourceSplit, licence_files
from glioma_dist.data.convert.writing import (
    AUDIT_NAME,
    finish,
    refuse_other_division,
    tell_groups,
    with_progress,
    write_samples,
)
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.data.sample import Sample
from glioma_dist.data.shards.reader import ShardWriter
from glioma_dist.data.splits import SPLIT_NAMES
from glioma_dist.errors import InputError, printable
from glioma_dist.files import cannot_write, check_new_folder


def convert(
    source: Source,
    out: str | Path,
    dataset: str,
    strict: bool = False,
    split_seed: int | None = None,
    split_counts: tuple[int, int, int] = ARTICLE_COUNTS,
    console: Console | None = None,
    categories: Sequence[str] | None = None,
    division: Division | None = None,
    group_pattern: str | None = None,
    frame_minutes: float | None = None,
    labelling: Labelling = PLAIN,
) -> None:
    """Write `<out>/<split>/` for each split, and `<out>/audit.json`.

    With `split_seed`, a data set without splits of its own is drawn into train, val and test, each of as
    many samples as `split_counts` says; `division` says the same in more ways. group_pattern: see `find_groups`.
    frame_minutes: between two frames, of sources that number them. categories: the names of those whose labels are
    cells; None: all, except those whose names say otherwise (see `categories.py`). labelling: classes, ignored pixels,
    instances. Raises InputError where that cannot be, where nothing can be converted, or, with `strict`, at the first
    defect.
    """
    out, console, audit = Path(out), console or Console(stderr=True, markup=False, emoji=False), Audit(strict)
    check_new_folder("--out", out)
    if division is None:
        division = Division(split_seed, split_counts)
        if split_seed is None and split_counts != ARTICLE_COUNTS:
            raise InputError("--split-counts needs --split-seed; give both, or omit --split-counts")
    is_drawn = division.seed is not None
    if is_drawn and source.has_own_splits:
        names = ", ".join(split.name for split in source.splits)
        raise InputError(f"{source.folder}: has splits of its own ({names}); omit --split-seed")
    division.check()
    check_pattern(group_pattern)
    refuse_other_division(out, SPLIT_NAMES if is_drawn else [split.name for split in source.splits])
    written: dict[str, int] = {}
    used: dict[Path, str] = {}
    _audit_lookalikes(source, audit)
    # All splits get their names at the end, together: half of one draw beside half of another would leak.
    try:
        with contextlib.ExitStack() as writers, ImageReader() as reader, source.reader or contextlib.nullcontext():
            for split in source.splits:
                jobs = find_jobs(source, split, used, audit, dataset, categories, labelling)
                if group_pattern is not None:
                    _group(jobs, group_pattern, console)
                if frame_minutes is not None:
                    _time(jobs, frame_minutes)
                # What is examined to draw splits has its defects noted then, once.
                part_audit = Audit() if is_drawn else audit
                divided = _divide(split, jobs, division, audit, out, console, reader)
                for name, part in divided.items():
                    head = {
                        "split": name,
                        "licence": part[0].licence if part else "",
                        "citation": source.citation,
                        "classes": labelling.classes,
                        "has_instances": labelling.instances,
                    }
                    writer = ShardWriter(out / name, dataset, **head)
                    written[name] = _write_split(writer, writers, part, part_audit, console, reader)
                # The next split's JSON may be as large again.
                del jobs, divided, part
            _refuse_unknown_choice(source, audit, "categories", categories)
            _refuse_unknown_choice(source, audit, "classes", labelling.classes)
            _refuse_unknown_choice(source, audit, "ignore", labelling.ignored)
            _audit_unlisted(source, used, audit)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(error.filename or out, error) from None
    audit.note_files_not_read(_files_not_read(source, out))
    finish(out, audit, written, console)
    if not any(written.values()):
        raise InputError(f"{source.folder}: {audit.why_none(out / AUDIT_NAME)}")


def _refuse_unknown_choice(source: Source, audit: Audit, flag: str, categories: Sequence[str] | None) -> None:
    """Raise InputError for a name chosen that is in no JSON of the source."""
    found = [entry["name"] for labels in audit.labels.values() for entry in labels["categories"]]
    known = {plain_name(name) for name in found}
    missing = [name for name in categories or () if plain_name(name) not in known]
    if missing:
        raise InputError(
            f"--{flag} {' '.join(missing)}: not in {source.folder}; its categories are "
            f"{', '.join(sorted(set(found))[:MAX_NAMES]) or 'none'}"
        )


def _group(jobs: list[Job], pattern: str, console: Console) -> None:
    """Give each image the group that its name tells, and print the first groups."""
    groups = find_groups({job.image.file_name: stem_of(job.image.file_name) for job in jobs}, pattern)
    for job in jobs:
        job.image.group = groups[job.image.file_name]
    tell_groups([job.image.group for job in jobs], console)


def _time(jobs: list[Job], frame_minutes: float) -> None:
    """Give each frame its time."""
    for job in jobs:
        if job.image.frame is not None:
            job.image.hours = (job.image.frame - 1) * frame_minutes / 60


def _divide(
    split: SourceSplit,
    jobs: list[Job],
    division: Division,
    audit: Audit,
    out: Path,
    console: Console,
    reader: ImageReader,
) -> dict[str, list[Job]]:
    """The jobs of each split to write: all in one, or drawn among those that can be converted."""
    if division.seed is None:
        return {split.name: jobs}
    prepared = _prepare_each(with_progress(jobs, "examining", console), audit, reader)
    groups = {job.key: sample.metadata["group"] for job, sample in prepared if sample is not None}
    return draw_parts(jobs, groups, division, audit, out, console)


def _write_split(
    writer: ShardWriter,
    writers: contextlib.ExitStack,
    jobs: list[Job],
    audit: Audit,
    console: Console,
    reader: ImageReader,
) -> int:
    """Convert and write one split's images, to be renamed when `writers` closes; nothing where none can be converted.
    Returns their number."""
    prepared = _prepare_each(with_progress(jobs, printable(writer.folder.name), console), audit, reader)
    return write_samples(writer, writers, (sample for _, sample in prepared if sample is not None))


def _prepare_each(jobs: Iterable[Job], audit: Audit, reader: ImageReader) -> Iterator[tuple[Job, Sample | None]]:
    """Each job with its sample; None, with the reason in the audit, where a defect spoils it."""
    # Each image is decoded while the one before is drawn and written, so the jobs run ahead of the images by one.
    ahead, behind = itertools.tee(jobs)
    images = reader.read_each(job.path for job in ahead if job.image.may_have_cells)
    for job in behind:
        if job.image.may_have_cells:
            yield job, prepare(job, next(images), audit)
            continue
        audit.add(IMAGE_WITHOUT_LABELS, job.where, f"listed, {NO_CELL}", left_out=True)
        yield job, None


def _audit_unlisted(source: Source, used: dict[Path, str], audit: Audit) -> None:
    """Note the image files that no JSON names."""
    files = {path for split in source.splits for path in split.images.files}
    for path in sorted(files - used.keys()):
        audit.add(IMAGE_WITHOUT_LABELS, _within(source, path), f"{source.why_unlisted}; not converted", left_out=True)


def _audit_lookalikes(source: Source, audit: Audit) -> None:
    """Note files that a user cannot tell apart by their names."""
    noted = set()
    for folder in (split.images for split in source.splits):
        for first, *others in folder.lookalikes():
            if first not in noted:
                noted.add(first)
                names = ", ".join(ascii(path.name) for path in others)
                audit.add(
                    DOUBLED_NAME, _within(source, first), f"looks like {names}; rename all but one", left_out=False
                )


def _within(source: Source, path: Path) -> str:
    """An image's path within the source; within the folder of the images where that is another one, by --images."""
    roots = (source.folder, *(split.images.root for split in source.splits))
    return next((path.relative_to(root).as_posix() for root in roots if path.is_relative_to(root)), path.as_posix())


def _files_not_read(source: Source, out: Path) -> list[str]:
    """Files of the source, as paths within it, that no step took, but for what is written to `out` within it."""
    taken = {path for split in source.splits for path in (*split.label_files, *split.images.files)}
    taken |= set(licence_files(source.folder))
    # --images and --annotations may name files of the source by other paths, such as absolute ones.
    real = set(map(os.path.realpath, taken))
    written = out.resolve()
    found = (path for path in walk_files(source.folder) if path not in taken and os.path.realpath(path) not in real)
    return [
        path.relative_to(source.folder).as_posix()
        for path in found
        if not path.parent.resolve().is_relative_to(written)
    ]
