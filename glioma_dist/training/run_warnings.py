"""What a run warns of: told once, on the first process, and kept in status.json and run.json, because lines scroll
away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from glioma_dist.errors import InputError, one_line
from glioma_dist.files import read_json
from glioma_dist.training.status import MAX_STATUS_BYTES, STATUS

SHARED_IMAGES, SHARED_GROUPS, UNIFORM_MASKS = "shared-images", "shared-groups", "uniform-masks"
UNIFORM_PREDICTION, LOSS = "uniform-prediction", "loss-not-moving"
"""Kinds of warnings."""


class RunWarnings:
    """The warnings of a run. say: prints one, on the first process.

    `entries`, the newest last, has for each warning its `kind`, the `step` after which it was told, and its `text`. The
    same list is in status.json and run.json.
    """

    def __init__(self, say: Callable[[str], None] = lambda line: None) -> None:
        self._say = say
        self.entries: list[dict[str, Any]] = []

    def tell(self, kind: str, text: str, step: int = 0) -> None:
        """Tell and keep a warning, unless one of its kind was told before, by an earlier start of the run too."""
        if self.has(kind):
            return
        self.entries.append({"kind": kind, "step": step, "text": one_line(text)})
        self._say(text)

    def resume(self, out: Path) -> None:
        """Take over what earlier starts told, from the run's status.json; what is no warning there is dropped."""
        earlier = [entry for entry in earlier_warnings(out) if not self.has(entry["kind"])]
        self.entries[:0] = earlier

    def has(self, kind: str) -> bool:
        """Return whether a warning of a kind was told."""
        return any(entry["kind"] == kind for entry in self.entries)


def earlier_warnings(out: Path) -> list[dict[str, Any]]:
    """Return the warnings in the status.json of a folder; none where there is none that can be read."""
    try:
        content = read_json(out / STATUS, MAX_STATUS_BYTES)
    except InputError:
        return []
    entries = content.get("warnings") if isinstance(content, dict) else None
    return [entry for entry in entries if is_warning(entry)] if isinstance(entries, list) else []


def is_warning(entry: object) -> bool:
    """Return whether a value of status.json is a warning, because people can change the file."""
    return (
        isinstance(entry, dict)
        and entry.keys() == {"kind", "step", "text"}
        and all(isinstance(entry[name], str) for name in ("kind", "text"))
        and type(entry["step"]) is int
    )
