"""The audit: every defect met in a data set, in words for the screen and in audit.json."""

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from glioma_dist.errors import InputError

IMAGE_WITHOUT_LABELS = "image-without-labels"
LABELS_WITHOUT_IMAGE = "labels-without-image"
DOUBLED_NAME = "doubled-name"
DOUBLED_CONTOUR = "doubled-contour"
EMPTY_SEGMENTATION = "empty-segmentation"
COORDINATES_OUTSIDE = "coordinates-outside"
SIZE_MISMATCH = "size-mismatch"
UNREADABLE_FILE = "unreadable-file"
KINDS = (
    IMAGE_WITHOUT_LABELS,
    LABELS_WITHOUT_IMAGE,
    DOUBLED_NAME,
    DOUBLED_CONTOUR,
    EMPTY_SEGMENTATION,
    COORDINATES_OUTSIDE,
    SIZE_MISMATCH,
    UNREADABLE_FILE,
)


class Finding(NamedTuple):
    """Something odd about one sample. spoils: whether the sample cannot be used because of it."""

    kind: str
    detail: str
    spoils: bool


class Audit:
    """Collects defects. With `strict`, the first one is raised as an InputError instead."""

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.defects: list[dict] = []

    def add(self, kind: str, where: str, detail: str, left_out: bool) -> None:
        """Note a defect. where: the file or sample; left_out: whether its image is not among the samples."""
        if kind not in KINDS:
            raise ValueError(f"no such kind of defect: {kind}")
        if self.strict:
            raise InputError(f"{where}: {kind}: {detail}; mend it, or convert without --strict")
        self.defects.append({"kind": kind, "where": where, "detail": detail, "left_out": left_out})

    def summary(self) -> dict[str, dict[str, int]]:
        """For each kind, also those never met: how many were found, and how many images left out for them."""
        found = Counter(defect["kind"] for defect in self.defects)
        left_out = {
            kind: len({defect["where"] for defect in self.defects if defect["kind"] == kind and defect["left_out"]})
            for kind in KINDS
        }
        return {kind: {"found": found[kind], "left_out": left_out[kind]} for kind in KINDS}

    def write(self, path: Path) -> None:
        """Write all defects, sorted so that the same input gives the same bytes, replacing `path` at once."""
        defects = sorted(self.defects, key=lambda defect: (KINDS.index(defect["kind"]), defect["where"]))
        partial = path.with_name(f".{path.name}.partial")
        content = {"summary": self.summary(), "defects": defects}
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)

    def show(self, console: Console, path: Path) -> None:
        """Print one line for each kind met: how often, how many images left out for it, and an example."""
        lines = []
        for kind, counts in self.summary().items():
            if counts["found"]:
                first = next(defect for defect in self.defects if defect["kind"] == kind)
                numbers = f"{counts['found']:>6} found, {counts['left_out']:>6} left out"
                lines.append(f"  {kind:<21}{numbers}, for example {first['where']}: {first['detail']}")
        lines.insert(0, f"audit: {'every defect is in' if lines else 'no defects,'} {path}")
        # Not as markup: file names may hold brackets.
        console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
