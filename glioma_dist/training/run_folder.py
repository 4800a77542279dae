"""The folder of a run: which of its checkpoints to resume from, and that one training at a time writes there."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from glioma_dist.config import TrainConfig
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.run_command import as_run_error
from glioma_dist.errors import InputError, RunError, one_line
from glioma_dist.files import (
    cannot_read,
    cannot_write,
    remove_partials,
    remove_tree,
    rename_in_order,
    write_atomically,
)
from glioma_dist.model.checkpoint import Checkpoint, sibling
from glioma_dist.training.folder_lock import folder_lock
from glioma_dist.training.resume import (
    BEST,
    LAST,
    RESUMABLE,
    Found,
    OtherRunError,
    holds_run,
    is_before_first_checkpoint,
    look,
)
from glioma_dist.training.shared_folder import describe_blind_hosts, find_blind_hosts
from glioma_dist.training.status import mark_not_resumed
from glioma_dist.training.uploader import Uploader


class RunFolder:
    """The folder of a run while it trains. Use as a context: the first process holds the folder's lock.

    `checkpoint` is what to resume from, the same on all processes, or None where the run is new. `has_begun`: whoever
    begins to report sets it; from then on that one writes status.json. uploader: on the first process, of a run that
    belongs to a URL.
    """

    def __init__(self, config: TrainConfig, context: DistributedContext, uploader: Uploader | None = None) -> None:
        self._uploader = uploader
        self.path, self.is_main, self._gather = config.out, context.is_main, context.gather_objects
        self._all_write, self._is_alone = context.accelerator.is_fsdp2, context.num_processes == 1
        self._open = ExitStack()
        self._descriptor: int | None = None
        self.has_begun = False
        try:
            self.checkpoint = self._agree(config)
        except BaseException as error:
            self._close(error)
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close(error)

    def _close(self, error: BaseException | None) -> None:
        """Let go of the folder. What ends the run before it has begun is written to the status of an earlier start."""
        held = self.is_main and self._descriptor is not None
        if error is not None and held and not self.has_begun and not isinstance(error, OtherRunError):
            mark_not_resumed(self.path, as_run_error(error) or error)
        self._open.close()

    def _agree(self, config: TrainConfig) -> Checkpoint | None:
        """Look, on every process, and hold that all found the same. Raises InputError on all where any does."""
        found, failure = Found(), None
        try:
            if holds_run(config) and self.is_main:
                self._hold()  # first: what another training is writing would look damaged
            found = look(config, is_main=self.is_main)
        except (RunError, OSError) as error:
            failure = as_run_error(error)
            if failure is None:
                raise
        identity = found.checkpoint and found.checkpoint.manifest.identity
        told = self._gather([(identity, found.best_fault, failure, socket.gethostname())])
        _raise_shared(next((error for _, _, error, _ in told if error is not None), None), failure)
        for rank, (theirs, _, _, host) in enumerate(told):
            if theirs != told[0][0]:
                found_there = "none" if theirs is None else "another"
                raise InputError(
                    f"--out {self.path}: processes 0 and {rank} find different checkpoints there ({found_there} on "
                    f"{one_line(host, 80)}, other than on {one_line(told[0][3], 80)}); copy last/ of the machine that "
                    "is ahead to the others, or give a folder that all machines share"
                )
        return self._settle(found, told[0][1])

    def _settle(self, found: Found, best_fault: str | None) -> Checkpoint | None:
        """Set aside what is damaged, and say so."""
        checkpoint = found.checkpoint
        for fault in found.faults:
            self.say(
                f"{fault.path}: {fault.fault}; resuming from {checkpoint.folder.name}/, step {checkpoint.step}, "
                "instead (the damaged checkpoint is kept as last.damaged/)"
            )
            self._set_aside(fault.path.parent, LAST)
        if best_fault is not None:
            self.say(
                f"{best_fault}: the best model so far is lost (what is left of it is kept as best.damaged/); the best "
                "of the validations from here on becomes best/"
            )
            self._set_aside(self.path / BEST, BEST)
            kept = {
                name: value
                for name, value in checkpoint.metadata["position"].items()
                if name not in ("best_loss", "best_dice")
            }
            checkpoint = replace(checkpoint, metadata={**checkpoint.metadata, "position": kept})
        return checkpoint

    def _set_aside(self, folder: Path, name: str) -> None:
        aside = sibling(self.path / name, "damaged")
        if self.is_main and os.path.lexists(folder):
            try:
                remove_tree(aside)
                rename_in_order((folder, aside))
            except OSError as error:
                raise cannot_write(aside, error) from error

    def say(self, line: str) -> None:
        """Print a warning, on the first process."""
        if self.is_main:
            sys.stderr.write(f"warning: {one_line(line)}\n")
            sys.stderr.flush()

    def _hold(self) -> None:
        """Lock the folder, and note which one it is. Raises InputError where another training holds it."""
        if not self._open.enter_context(folder_lock(self.path)):
            self.say(f"--out {self.path}: this file system has no locks; make sure that no other training writes there")
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY)  # so that its inode is given to no other folder
        except OSError as error:
            raise cannot_read(self.path, error) from error
        self._open.callback(os.close, self._descriptor)

    def claim(self) -> None:
        """Make the folder of a new run, and hold it, once all that is read was found usable.

        Raises InputError, on every process, where that cannot be, or where another training was quicker.
        """
        failure = None
        try:
            if self.is_main:
                self._claim()
        except (RunError, OSError) as error:
            failure = as_run_error(error)
            if failure is None:
                raise
        _raise_shared(self._gather([failure])[0], failure)
        # A run that belongs to a bucket has a folder of its own on each machine.
        is_private = self._is_alone or self._uploader is not None
        hosts = find_blind_hosts(self.path, self.is_main, self._gather, is_private)
        if hosts:
            self.say(describe_blind_hosts(self.path, hosts, self._all_write))

    def _claim(self) -> None:
        if self._descriptor is None:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(f"--out {self.path}", error) from error
            self._hold()
            if not is_before_first_checkpoint(set(os.listdir(self.path))):
                raise InputError(
                    f"--out {self.path}: another training wrote there meanwhile; run the same command again to "
                    "resume it, or give another --out"
                )
        remove_partials(self.path)
        if self.checkpoint is not None:
            self.mark_resumable()

    def check(self) -> None:
        """Raises InputError where the folder is not there any more; called before every write."""
        if self._descriptor is None:
            return
        try:
            there = os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except OSError:
            there = False
        if not there:
            raise InputError(
                f"--out {self.path}: the folder was removed, replaced or unmounted while the run was writing to it; "
                "nothing more is written; put it back, or start the run again"
            )

    def checkpoint_complete(self, name: str, step: int) -> None:
        """The checkpoint `last` or `best` of this step has its final name, and all processes know it. Called in the
        main thread of the first process."""
        if self._uploader is not None:
            self._uploader.checkpoint_complete(name, step)

    def upload_problem(self) -> RunError | None:
        """What has to end the run: its checkpoints cannot be uploaded."""
        return self._uploader and self._uploader.problem

    def mark_resumable(self) -> None:
        """Note that last/ is complete."""
        if self.is_main and not (self.path / RESUMABLE).exists():
            self.check()
            write_atomically(self.path / RESUMABLE, b"")


def _raise_shared(error: RunError | None, own: RunError | None) -> None:
    """Raise what all processes raise here, so that the first can speak for all; its own where it has one."""
    if error is not None:
        error = own if own is not None else error
        error.is_shared = True
        raise error
