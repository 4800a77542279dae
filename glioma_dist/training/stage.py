"""The local folder in which a run at a URL is staged, and what this machine knows of the run there.

In it: `run/`, a run folder like any other; `bucket.json`, what this machine knows of the URL; `links/`, what is being
uploaded; and `run.old/`, this machine's copy of an earlier run at the same URL.
"""

from __future__ import annotations

import hashlib
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glioma_dist.config.paths import Url
from glioma_dist.data.cache_folder import cache_folder
from glioma_dist.data.remote_checkpoint import CheckpointIndex
from glioma_dist.errors import InputError, one_line
from glioma_dist.files import cannot_write, make_folder, read_json, remove_tree, rename_in_order, write_json_atomically
from glioma_dist.training.folder_lock import LOCK, folder_lock

KNOWN = "bucket.json"


class Stage:
    """The folder `folder`, made if need be, where the run of `url` is staged.

    Raises InputError where the folder holds other things, or another URL's run.
    """

    def __init__(self, folder: Path, url: Url) -> None:
        make_folder(folder)
        self.folder, self.url = folder, url
        self.run, self.links = folder / "run", folder / "links"
        self._known = {"url": str(url), "run": uuid.uuid4().hex, "holder": uuid.uuid4().hex, "committed": False}
        self._read()

    @property
    def run_id(self) -> str:
        """Of the run that is staged: which run at this URL it is."""
        return self._known["run"]

    @property
    def holder(self) -> str:
        """Under which name this machine takes the lease."""
        return self._known["holder"]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it, no other training of this machine uses the stage. Raises InputError where one does."""
        with folder_lock(self.folder) as has_locks:
            if not has_locks:  # then nothing says that a holder of this name is dead
                self._known["holder"] = uuid.uuid4().hex
            yield

    def belong_to(self, run_id: str | None) -> None:
        """Set aside what is of another run than `run_id`; None begins a new one."""
        if run_id is not None and run_id == self.run_id:
            return
        if self.run.exists():
            aside = self.folder / "run.old"
            remove_tree(aside)
            try:
                rename_in_order((self.run, aside))
            except OSError as error:
                raise cannot_write(aside, error) from error
            warn(f"{self.url} is another run than this machine's copy, which is kept as {aside}")
        self._known |= {"run": run_id or uuid.uuid4().hex, "committed": False}
        self.write()

    def note_committed(self) -> None:
        """From now on, a URL without checkpoints is one that has lost them."""
        if not self._known["committed"]:
            self._known["committed"] = True
            self.write()

    def check_not_lost(self, index: CheckpointIndex | None) -> None:
        """Raises InputError where the URL has had checkpoints of this run and has none now."""
        if self._known["committed"] and (index is None or not index.last):
            raise InputError(
                f"--out {self.url}: the run has no checkpoints there any more, though this machine has uploaded some; "
                f"restore them, remove {self.folder} to start again, or give another --out"
            )

    def write(self) -> None:
        """Write what is known."""
        write_json_atomically(self.folder / KNOWN, self._known)

    def _read(self) -> None:
        path = self.folder / KNOWN
        if not os.path.lexists(path):
            others = sorted(name for name in set(os.listdir(self.folder)) - {LOCK} if not name.endswith(".partial"))
            if others:
                raise InputError(
                    f"--stage {self.folder}: is not empty and holds no staged run (it has {one_line(others[0], 60)}); "
                    "give another folder"
                )
            self.write()
            return
        known = read_json(path)
        if not isinstance(known, dict) or self._known.keys() - known.keys():
            raise InputError(f"{path}: is not what a run wrote; remove {self.folder}, or give another --stage")
        if known["url"] != self.url:
            raise InputError(
                f"--stage {self.folder}: the run of {one_line(known['url'], 200)} is staged there; give another folder"
            )
        self._known = known


def default_stage(url: Url) -> Path:
    """A folder of the user's cache, the same at each start."""
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    return cache_folder() / "runs" / f"{one_line(url.name, 40).replace('/', '_')}-{digest}"


def warn(line: str) -> None:
    """Print a warning."""
    sys.stderr.write(f"warning: {one_line(line)}\n")
    sys.stderr.flush()
