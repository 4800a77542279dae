"""The audit: every defect met in a data set, the labels taken and left out, and the files that nothing read: in words
for the screen and in audit.json."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from rich.console import Console

from glioma_dist.errors import InputError, one_line, printable
from glioma_dist.files import write_atomically

MAX_NAMES = 12
"""Names that one line on the screen lists; audit.json has all."""

IMAGE_WITHOUT_LABELS = "image-without-labels"
LABELS_WITHOUT_IMAGE = "labels-without-image"
DOUBLED_NAME = "doubled-name"
DOUBLED_CONTOUR = "doubled-contour"
EMPTY_SEGMENTATION = "empty-segmentation"
COORDINATES_OUTSIDE = "coordinates-outside"
SIZE_MISMATCH = "size-mismatch"
UNREADABLE_FILE = "unreadable-file"
SUSPICIOUS_MASK = "suspicious-mask"
ORIENTATION = "orientation"
PIXEL_VALUES = "pixel-values"
UNKNOWN_CATEGORY = "unknown-category"
OVERLAP = "overlap"
KINDS = (
    IMAGE_WITHOUT_LABELS,
    LABELS_WITHOUT_IMAGE,
    DOUBLED_NAME,
    DOUBLED_CONTOUR,
    EMPTY_SEGMENTATION,
    COORDINATES_OUTSIDE,
    SIZE_MISMATCH,
    UNREADABLE_FILE,
    SUSPICIOUS_MASK,
    ORIENTATION,
    PIXEL_VALUES,
    UNKNOWN_CATEGORY,
    OVERLAP,
)


class Finding(NamedTuple):
    """Something odd about one sample. spoils: whether the sample cannot be used because of it."""

    kind: str
    detail: str
    spoils: bool


class Audit:
    """Collects defects. With `strict`, the first one is raised as an InputError instead.

    labels: for each split, what `note_labels` was told. files_not_read: how many files of each suffix no step took,
    and one of them.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.defects: list[dict] = []
        self.labels: dict[str, dict] = {}
        self.files_not_read: dict[str, dict] = {}

    def add(self, kind: str, where: str, detail: str, left_out: bool) -> None:
        """Note a defect. where: the file or sample; left_out: whether its image is not among the samples."""
        if kind not in KINDS:
            raise ValueError(f"no such kind of defect: {kind}")
        if self.strict:
            raise InputError(f"{where}: {kind}: {detail}; correct it, or convert without --strict")
        self.defects.append({"kind": kind, "where": where, "detail": detail, "left_out": left_out})

    def note_labels(self, split: str, categories: list[dict], num_crowds: int) -> None:
        """Note a split's categories: `name`, `labels` (how many), `taken` and `why`; and how many labels taken say
        `iscrowd` 1, which brush masks of CVAT do, and regions of many cells, too."""
        self.labels[split] = {"categories": categories, "iscrowd": num_crowds}

    def note_files_not_read(self, files: Iterable[str]) -> None:
        """Note files of the source that no step took, by their paths within it."""
        for name in sorted(files):
            suffix = PurePosixPath(name).suffix.lower()[:20] or "(no suffix)"
            entry = self.files_not_read.setdefault(suffix, {"files": 0, "for_example": name})
            entry["files"] += 1

    def summary(self) -> dict[str, dict[str, int]]:
        """For each kind, also those never met: how many were found, and how many images left out for them."""
        found = Counter(defect["kind"] for defect in self.defects)
        left_out = {
            kind: len({defect["where"] for defect in self.defects if defect["kind"] == kind and defect["left_out"]})
            for kind in KINDS
        }
        return {kind: {"found": found[kind], "left_out": left_out[kind]} for kind in KINDS}

    @property
    def num_left_out(self) -> int:
        """Images and labels that are not among the samples because of a defect."""
        return len({defect["where"] for defect in self.defects if defect["left_out"]})

    def why_left_out(self, path: Path) -> str:
        """Why images are not among the samples, for a message: the kinds of defects, the most frequent first, with its
        first example, and `path`, where all are; "" where none was left out."""
        defects = [defect for defect in self.defects if defect["left_out"]]
        if not defects:
            return ""
        numbers = {kind: counts["left_out"] for kind, counts in self.summary().items() if counts["left_out"]}
        (most, number), *others = sorted(numbers.items(), key=lambda item: -item[1])
        first = min((defect for defect in defects if defect["kind"] == most), key=lambda defect: defect["where"])
        example = one_line(f"{first['where']}: {first['detail']}", 200)
        more = "".join(f", {kind} {count}" for kind, count in others[:2]) + (", …" if len(others) > 2 else "")
        are = "the defect is" if len(self.defects) == 1 else f"all {len(self.defects)} defects are"
        return f"{most} {number} (first: {example}){more}; {are} in {one_line(path, 80)}"

    def why_none(self, path: Path) -> str:
        """Why there is no sample at all, for a message."""
        reasons = [each for each in (self._why_no_label(), self.why_left_out(path)) if each]
        return "no sample could be converted: " + ("; ".join(reasons) or "the source lists no image")

    def _why_no_label(self) -> str:
        """Where all labels are of categories that were left out: these."""
        entries = [entry for labels in self.labels.values() for entry in labels["categories"] if entry["labels"]]
        if not entries or any(entry["taken"] for entry in entries):
            return ""
        names = ", ".join(sorted({entry["name"] for entry in entries})[:MAX_NAMES])
        return f"none of its labels is taken as a cell, and --categories can choose them: {one_line(names, 150)}"

    def write(self, path: Path) -> None:
        """Write all of it, sorted so that the same input gives the same bytes, replacing `path` at once."""
        defects = sorted(self.defects, key=lambda defect: (KINDS.index(defect["kind"]), defect["where"]))
        content = {
            "summary": self.summary(),
            "labels": self.labels,
            "files_not_read": dict(sorted(self.files_not_read.items())),
            "defects": defects,
        }
        # Bytes of names that are not UTF-8 become JSON's own escapes.
        write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def show(self, console: Console, path: Path) -> None:
        """Print the labels taken and left out, the files not read, and one line for each kind of defect met: how
        often, how many images left out for it, and an example."""
        lines = []
        for kind, counts in self.summary().items():
            if counts["found"]:
                first = next(defect for defect in self.defects if defect["kind"] == kind)
                example = f"{first['where']}: {first['detail']}"
                numbers = f"{counts['found']:>6} found, {counts['left_out']:>6} left out"
                lines.append(f"  {kind:<21}{numbers}, for example {one_line(example, 400)}")
        lines.insert(0, f"audit: {'every defect is in' if lines else 'no defects,'} {path}")
        lines = [*self._label_lines(), *self._file_lines(), *lines]
        # Not as markup: file names may hold brackets.
        console.print("\n".join(map(printable, lines)), markup=False, highlight=False, soft_wrap=True)

    def _label_lines(self) -> list[str]:
        lines = []
        for split, labels in self.labels.items():
            for taken, title in ((True, "taken as cells"), (False, "left out")):
                found = [entry for entry in labels["categories"] if entry["taken"] == taken]
                names = [
                    f"{one_line(entry['name'], 80)} ({_count(entry['labels'], 'label')}{entry['why']})"
                    for entry in found
                ]
                # Sources that name no labels, such as ROIs, have no categories to tell of.
                if names or (taken and labels["categories"]):
                    more = f" and {len(names) - MAX_NAMES} more categories" if len(names) > MAX_NAMES else ""
                    lines.append(f"{split}: {title}: {', '.join(names[:MAX_NAMES]) or 'nothing'}{more}")
            if labels["iscrowd"]:
                lines.append(
                    f"{split}: {_count(labels['iscrowd'], 'label')} taken with iscrowd 1: brush masks, or regions of "
                    "several cells"
                )
        return lines

    def _file_lines(self) -> list[str]:
        found = self.files_not_read.items()
        names = [
            f"{entry['files']} {suffix} (for example {one_line(entry['for_example'], 80)})"
            for suffix, entry in sorted(found)
        ]
        more = f" and {len(names) - MAX_NAMES} other suffixes" if len(names) > MAX_NAMES else ""
        return [f"files not read: {', '.join(names[:MAX_NAMES])}{more}"] if names else []


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")
