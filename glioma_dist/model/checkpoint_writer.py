"""Writing checkpoints: under a temporary name, then renamed, with the ones before kept.

A checkpoint is written in stages. Each stage is a function that a process can run in any thread; between two stages the
processes tell each other, in their main threads, what came of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from glioma_dist.config import TrainConfig
from glioma_dist.config.file import to_dict
from glioma_dist.errors import RunError
from glioma_dist.files import cannot_write, link_files, read_bytes, remove_tree, rename_in_order, write_json_atomically
from glioma_dist.model.checkpoint import kept_folders, sibling
from glioma_dist.model.manifest import EMA, FORMAT_VERSION, MANIFEST, MODEL, OPTIMIZER, STATE, part_name
from glioma_dist.model.tensor_files import FlatTensors, write_tensors

Result = TypeVar("Result")
Tensors = dict[str, Tensor] | FlatTensors
Stages = Generator[Callable[[], Any], list[Any], None]
"""Yields the work of each stage, and is sent what it returned on each process. Where it failed, throw its error in."""


@dataclass(frozen=True)
class Writer:
    """One of the processes that write a checkpoint together, each its part of the tensors."""

    number: int = 0
    count: int = 1
    gather: Callable[[list[Any]], list[Any]] = lambda items: items
    """The lists of all processes, joined in the order of their numbers; each waits for all."""
    check: Callable[[], None] = lambda: None
    """Called before anything is written: raises InputError where the run may not write any more."""

    def together(self, work: Callable[[], Result]) -> list[Result]:
        """What `work` returned on each process. Raises RunError on all of them where it failed on any."""
        result, failure = None, None
        try:
            result = work()
        except RunError as error:
            failure = error
        told = self.gather([(result, failure)])
        failures = [failure for _, failure in told if failure is not None]
        if failures:
            error = failure or failures[0]
            error.is_shared = True
            raise error
        return [result for result, _ in told]


ALONE = Writer()


def write_checkpoint(
    folder: Path,
    config: TrainConfig,
    metadata: dict[str, Any],
    model: Tensors | None,
    optimizer: Tensors | None = None,
    writer: Writer = ALONE,
    num_parts: int = 1,
    keep: int = 1,
    average: Tensors | None = None,
) -> None:
    """Write a checkpoint so that a kill or a full disk at any moment leaves this one or the one before, complete.

    All processes call it. Where the tensors are in `num_parts` parts, each process writes its own; else the first
    writes all, and what the others give is not looked at. The last `keep` checkpoints stay: `folder` itself, and
    before it folder.1, folder.2 and so on. The folder that holds them has to exist. Raises InputError on every
    process where any cannot write.
    """
    tensors = {MODEL: model, OPTIMIZER: optimizer, EMA: average}
    run_stages(checkpoint_stages(folder, config, metadata, lambda: tensors, writer, num_parts, keep), writer)


def run_stages(stages: Stages, writer: Writer) -> None:
    """Write a checkpoint here and now. Raises RunError on all processes where a stage fails on any."""
    try:
        work = next(stages)
        while True:
            work = stages.send(writer.together(work))
    except StopIteration:
        return
    except RunError as error:
        stages.throw(error)


def checkpoint_stages(
    folder: Path,
    config: TrainConfig,
    metadata: dict[str, Any],
    take: Callable[[], Mapping[str, Tensors | None]],
    writer: Writer,
    num_parts: int,
    keep: int,
    check: Callable[[Tensors], None] = lambda tensors: None,
    also: Path | None = None,
) -> Stages:
    """The stages of `write_checkpoint`. Only the first one needs to run before training continues.

    take: called in the first stage; returns the tensors that this process writes, by MODEL, OPTIMIZER and EMA. check:
    called with each of them in the second; raises RunError where they are not to be written. also: a folder that gets
    the same files for good, before `folder` has them.
    """
    new = sibling(folder, "new")
    taken: list[tuple[str, Tensors | None]] = []

    def begin() -> None:
        taken.extend(take().items())
        if writer.number == 0:
            writer.check()
            _begin(new)

    def write_files() -> dict[str, dict[str, Any]]:
        own = [(name, tensors) for name, tensors in taken if tensors is not None and writer.number < num_parts]
        for _, tensors in own:
            check(tensors)
        files = {part_name(name, writer.number, num_parts): tensors for name, tensors in own}
        return {file: write_tensors(new / file, tensors) for file, tensors in files.items()}

    def finish(parts: list[dict[str, dict[str, Any]]]) -> None:
        if writer.number == 0:
            writer.check()
            files = {name: entry for part in parts for name, entry in part.items()}
            _finish(folder, new, config, metadata, files, keep, also)

    try:
        yield begin
        if num_parts == 1:
            yield lambda: finish([write_files()])
        else:
            parts = yield write_files
            yield lambda: finish(parts)
    except RunError:
        if writer.number == 0:
            remove_tree(new)
        raise


def _begin(new: Path) -> None:
    remove_tree(new)  # of a write that was killed
    try:
        new.mkdir()  # without its parents: a run folder that was removed must not come back
    except OSError as error:
        raise cannot_write(new, error) from error


def _finish(
    folder: Path,
    new: Path,
    config: TrainConfig,
    metadata: dict[str, Any],
    files: dict[str, dict[str, Any]],
    keep: int,
    also: Path | None,
) -> None:
    """Write what is no tensor, and put the new folder in the old one's place."""
    state = {"format_version": FORMAT_VERSION, **metadata, "config": to_dict(config)}
    write_json_atomically(new / STATE, state)
    files[STATE] = file_entry(new / STATE)
    write_json_atomically(new / MANIFEST, {"format_version": FORMAT_VERSION, "files": dict(sorted(files.items()))})
    try:
        if also is not None:
            _keep(new, also)
        _rotate(folder, new, keep)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _keep(new: Path, kept: Path) -> None:
    """Give the files of the new folder second names in `kept`, whose parent is made where it is missing."""
    kept.parent.mkdir(exist_ok=True)
    linked = sibling(kept, "new")
    link_files(new, linked)
    remove_tree(kept)  # of a run that went back behind it
    rename_in_order((linked, kept))


def _rotate(folder: Path, new: Path, keep: int) -> None:
    """Rename `new` to `folder`, and each of those before to the next number, up to the first number that is free.

    A kill between two renames leaves a number free: nothing is lost, and the next write fills it.
    """
    names, taken = [folder], {path.name for path in kept_folders(folder)}
    while names[-1].name in taken:
        names.append(sibling(folder, str(len(names))))
    rename_in_order(*reversed(list(pairwise(names))), (new, folder))
    for extra in kept_folders(folder)[1:]:
        if int(extra.suffix[1:]) >= keep:
            remove_tree(extra)


def file_entry(path: Path) -> dict[str, Any]:
    """A manifest's entry of a file that holds no tensors."""
    data = read_bytes(path, 2**30)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
