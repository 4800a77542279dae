"""`glioma-dist convert NAME` for each source of labelled data in the registry, those of other distributions too."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from glioma_dist.cli.command import Command
from glioma_dist.cli.convert_flags import SplitFlags
from glioma_dist.cli.inputs import check_folder_there, check_source
from glioma_dist.data.convert.labelling import Labelling, check_names
from glioma_dist.errors import InputError
from glioma_dist.registry import SourceEntry, sources


@dataclass(frozen=True)
class SourceFolders:
    """Where the labels and the images are, and where their shards go."""

    source: Path
    """Folder with the labels and the images; subfolders are searched, too."""
    out: Path
    """Folder to write the splits and audit.json to."""
    images: Path | None = None
    """Folder with the images, if it is another one."""


@dataclass(frozen=True)
class SourceConfig(SplitFlags, SourceFolders):
    """Convert a folder of labelled images to shards."""

    group_pattern: str | None = None
    """Regular expression with one group in round brackets, searched in an image's path without its ending. Images for
    which it finds the same text belong to the same split: for example '^([A-H][0-9]+)_' for wells. By default: each
    file is a group, and each sequence of the Cell Tracking Challenge."""
    instances: bool = False
    """Write a number for each cell, too: for --model.targets boundary or distance, and for counts of cells. A pixel
    of several cells of one class belongs to the smallest."""
    dataset: str | None = None
    """Name of the data set. By default: the name of --out."""
    licence: str | None = None
    """Licence of the data. By default: the first line of a LICENSE file in --source. Checkpoints trained on the data
    name it."""
    strict: bool = False
    """Stop at the first defect. By default: leave out images that a defect makes unusable, and continue."""


@dataclass(frozen=True)
class NameFlags:
    """Of sources whose labels have names."""

    categories: tuple[str, ...] | None = None
    """Names of the labels to take as cells. By default: all, except names that mean something else, such as background
    and soma."""
    classes: tuple[str, ...] = ()
    """Names of two or more labels that become the classes 1, 2, … of the masks, in this order; others are left out. A
    pixel of several belongs to the one named last. By default: one class."""
    ignore: tuple[str, ...] = ()
    """Names of labels whose pixels are neither cell nor background: training and scores leave them out. Pixels that
    are part of a cell, too, are cell."""

    def validate(self) -> None:
        """Raises InputError for names that cannot be classes."""
        super().validate()
        check_names(self.classes, self.ignore, self.categories)


@dataclass(frozen=True)
class FrameFlags:
    """Of sources that number their frames."""

    frame_minutes: float | None = None
    """Minutes between two frames. By default: the samples have no time."""

    def validate(self) -> None:
        """Raises InputError for what is no time."""
        super().validate()
        if self.frame_minutes is not None and not 0 < self.frame_minutes < float("inf"):
            raise InputError(f"--frame-minutes {self.frame_minutes}: give a number of minutes above 0")


@cache
def command_of(name: str) -> Command:
    """The command of a source. Raises UnknownNameError and BrokenEntryError of the registry."""
    entry = sources.find(name)
    layout = entry.layout or f"the source {entry.described}"
    # Only flags that have an effect on this source.
    bases = (*[NameFlags] * entry.names_labels, *[FrameFlags] * entry.numbers_frames, SourceConfig)
    words = {"__doc__": f"Convert {layout}, to shards.", "__module__": __name__}
    kind = dataclass(frozen=True)(type("SourceConfig", bases, words))
    named = f"glioma-dist convert {entry.name} --source data/plate_7"
    examples = (
        f"{named} --split-seed 0 --out shards/plate_7",
        f"{named} --split-seed 0 --group-pattern '^([A-H][0-9]+)_' --out shards/plate_7",
    )
    return Command(kind, lambda config: run_source(entry, config), examples, check_inputs)


def check_inputs(config: SourceConfig) -> None:
    """Raises InputError for missing inputs."""
    check_source(config.source)
    if config.images is not None:
        check_folder_there("--images", config.images)


def run_source(entry: SourceEntry, config: SourceConfig) -> None:
    """Convert."""
    from glioma_dist.data.convert.conversion import convert
    from glioma_dist.data.convert.division import Division
    from glioma_dist.data.convert.sources import check_found

    names = config if isinstance(config, NameFlags) else NameFlags()
    found = check_found(sources.load(entry.name)(config.source, config.images), entry.described)
    convert(
        found.changed(config.split, config.licence),
        config.out,
        config.dataset or config.out.resolve().name,
        config.strict,
        categories=names.categories,
        labelling=Labelling(names.classes, config.instances, names.ignore),
        division=Division(config.split_seed, config.split_counts, config.split_shares, config.split),
        group_pattern=config.group_pattern,
        frame_minutes=config.frame_minutes if isinstance(config, FrameFlags) else None,
    )
