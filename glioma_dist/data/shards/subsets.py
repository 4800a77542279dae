"""Folders of shards that share their files: each holds some of a data set's samples, and no byte twice.

A data set is written once with one sample a shard; a subset is an index.json beside hard links to those shards. It is
read like any other folder of shards.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from uuid import uuid4

from glioma_dist.data.mixture import common_classes
from glioma_dist.data.sample import Sample
from glioma_dist.data.shards.index import INDEX_NAME, members_name, write_json
from glioma_dist.data.shards.reader import ShardReader, ShardWriter
from glioma_dist.errors import InputError
from glioma_dist.files import cannot_write, rename_in_order


def write_singly(folders: Iterable[Path], out: Path, change: Callable[[Sample], Sample]) -> dict[str, dict]:
    """Write the samples of `folders`, each in a shard of its own, as `change` makes them, without instances.

    Returns the metadata of each sample by its key. Raises InputError where a key comes twice, or classes differ.
    """
    readers = [ShardReader(folder) for folder in folders]
    metadata: dict[str, dict] = {}
    names, licences = (
        ", ".join(dict.fromkeys(str(reader.index[name]) for reader in readers)) for name in ("dataset", "licence")
    )
    with ShardWriter(out, names, "all", licences, samples_per_shard=1, classes=common_classes(readers)) as writer:
        for reader in readers:
            for shard, size in enumerate(reader.shard_sizes):
                for place in range(size):
                    sample = change(reader.read(shard, place, with_instances=False))
                    writer.write(sample)
                    metadata[sample.key] = sample.metadata
    return metadata


def link_subset(samples: Path, keys: Iterable[str], out: Path) -> None:
    """Make `out` a folder of the samples `keys` of `samples`, which `write_singly` wrote. One that is there stays.
    Several processes may make the same one.

    Raises InputError for a key that `samples` has not, where its shards hold several samples, and where `out` cannot be
    written.
    """
    if (out / INDEX_NAME).is_file():
        return
    reader = ShardReader(samples)
    index, present = reader.index, reader.keys()
    if len(present) != len(index["shards"]):
        raise InputError(f"{samples}: has shards of several samples; remove the folder and run the command again")
    keys, shards = sorted(keys), dict(zip(present, index["shards"], strict=True))
    missing = [key for key in keys if key not in shards]
    if missing:
        raise InputError(f"{samples}: has no sample {missing[0]}; remove the study's splits to draw them again")
    chosen = [shards[key] for key in keys]
    partial = out.with_name(f".{out.name}.{uuid4().hex}.partial")  # another process may be making the same subset
    try:
        partial.mkdir(parents=True)
        for shard in chosen:
            for name in (shard["name"], members_name(shard["name"])):
                link(samples / name, partial / name)
        write_json(partial / INDEX_NAME, index | {"split": out.name, "num_samples": len(chosen), "shards": chosen}, 1)
        rename_in_order((partial, out))
    except OSError as error:
        if not (out / INDEX_NAME).is_file():  # or another process was first
            raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
