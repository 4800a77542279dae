"""run.json: the machine, versions and settings of each start of a run."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from glioma_dist.config import TrainConfig
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.environment import device_name, find_own_commit, versions
from glioma_dist.distributed.numerics import numerics_in_force
from glioma_dist.errors import ExitCode, InputError, one_line
from glioma_dist.files import read_json, remove_tree, rename_in_order, write_json_atomically
from glioma_dist.scale.scale_model import resolve_layout
from glioma_dist.scale.tile_size import tile_size

RUN = "run.json"
DAMAGED = "run.json.damaged"


class RunRecord:
    """Writes <out>/run.json: {"starts": […]}, one entry for each start of the run, the newest last.

    No result depends on the file. If it is damaged, a warning says so, it is kept as run.json.damaged, and a new list
    begins. check: called before each write, as in `Reporter`. say: prints the warning.

    Raises InputError if the file cannot be written.
    """

    def __init__(
        self,
        out: Path,
        start: dict[str, Any],
        check: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._path, self._check = out / RUN, check
        check()
        self._starts = [*self._read(say), start]
        self._write()

    @property
    def earlier_summaries(self) -> list[object]:
        """What each earlier start says that it took; None where it says nothing."""
        return [each.get("summary") for each in self._starts[:-1]]

    def note(self, summary: dict[str, Any]) -> None:
        """Record what this start took so far, so that a kill loses only what came after. Raises InputError."""
        self._starts[-1]["summary"] = summary
        self._check()
        self._write()

    def ended(self, ending: BaseException | None, step: int, summary: dict[str, Any] | None = None) -> None:
        """Record the end of this start, after `step`; `ending` is the exception that ended it early. summary: what it
        took (summary.py)."""
        code = ExitCode.FINISHED if ending is None else getattr(ending, "exit_code", ExitCode.UNEXPECTED)
        reason = None if ending is None else one_line(str(ending) or type(ending).__name__)
        self._starts[-1] |= {"ended": _now(), "code": int(code), "reason": reason, "to_step": step}
        self._starts[-1] |= {} if summary is None else {"summary": summary}
        self._check()
        self._write()

    def _write(self) -> None:
        write_json_atomically(self._path, {"starts": self._starts})

    def _read(self, say: Callable[[str], None]) -> list[dict[str, Any]]:
        """The entries of earlier starts."""
        if not os.path.lexists(self._path):
            return []
        try:
            content = read_json(self._path)
            starts = content.get("starts") if isinstance(content, dict) else None
            if isinstance(starts, list) and all(isinstance(each, dict) for each in starts):
                return starts
            fault = f"{self._path}: holds no list of starts"
        except InputError as error:
            fault = str(error)
        aside = self._path.with_name(DAMAGED)
        with suppress(OSError):
            remove_tree(aside)
            rename_in_order((self._path, aside))
        say(f"{fault}; it is kept as {DAMAGED}, and a new {RUN} begins with this start (no result depends on it)")
        return []


def describe_start(config: TrainConfig, context: DistributedContext, level: object, step: int) -> dict[str, Any]:
    """The entry of a start, as JSON values. All processes call it together.

    level: of activation checkpointing, with `auto` resolved, or the plan for a memory budget. step: from which the run
    starts or resumes.
    """
    here = {"host": platform.node(), "device": device_name(context.device)}
    precision, elements = context.accelerator.mixed_precision, config.scale.tile_elements
    return {
        "started": _now(),
        "ended": None,
        "code": None,
        "reason": None,
        "from_step": step,
        "to_step": None,
        "command": [one_line(word, 1000) for word in sys.argv],
        "host": here["host"],
        "system": platform.platform(),
        "processes": context.gather_objects([here]),
        "engine": _engine(context),
        "mixed_precision": precision,
        "scale": asdict(resolve_layout(config, context))
        | {"activation_checkpointing": str(level), "tile_elements": tile_size(elements, context.device).elements},
        "threads": torch.get_num_threads(),
        "deterministic": config.deterministic or config.reproducible,
        "reproducible": config.reproducible,
        "numerics": numerics_in_force(),
        "versions": versions(),
        "commit": find_own_commit(),
        "track": list(config.track),
        "warnings": [],
        "summary": None,
    }


def _engine(context: DistributedContext) -> str:
    if context.num_processes == 1:
        return "one process"
    return "FSDP2" if context.accelerator.is_fsdp2 else "DDP"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
