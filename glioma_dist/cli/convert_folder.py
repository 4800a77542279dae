"""`glioma-dist convert folder`: convert a folder of images and a folder of their masks to shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glioma_dist.cli.command import Command
from glioma_dist.cli.convert_flags import SplitFlags
from glioma_dist.cli.inputs import check_folder_there
from glioma_dist.config.places import Places
from glioma_dist.data.convert.labelling import Labelling, parse_values
from glioma_dist.errors import InputError


@dataclass(frozen=True)
class FolderInputs:
    """The images and their masks, how they belong together, and where their shards go."""

    images: Path
    """Folder with the images: TIFF, PNG, JPEG, nd2, czi or lif, also stacks of time points or planes; subfolders are
    searched, too."""
    masks: Path
    """Folder with a mask for each image: TIFF or PNG, where 0 is background and any value above 0 is cell: 0 and 255,
    or one number for each cell. It may be the same folder; subfolders must have the same names as in --images."""
    out: Path
    """Folder to write the splits and audit.json to."""
    suffix: str | None = None
    """What a mask's name has after its image's name, for example _mask for x.tif and x_mask.png. By default: nothing,
    or the one of _mask, _masks, _cp_masks (Cellpose), _label, _labels, -lbl (MorphoLibJ), '_Simple Segmentation'
    (ilastik) and some more that most masks have; the command prints which. Write --suffix=-cells for one that begins
    with a dash."""
    mask_from: Literal["values", "alpha"] = "values"
    """What of a mask's file is the mask: its values, or its alpha channel (transparency), where pixels that are at
    least half opaque are cell. With alpha, --images and --masks may be one folder of pictures that hold both."""


@dataclass(frozen=True)
class FolderConfig(SplitFlags, FolderInputs):
    """Convert a folder of images and a folder of their masks to shards."""

    group_pattern: str | None = None
    """Regular expression with one group in round brackets, searched in an image's path without its ending. Images for
    which it finds the same text belong to the same split: for example '^([A-H][0-9]+)_' for wells. By default: each
    file is a group; the pages of a stack always belong to the same split."""
    dataset: str | None = None
    """Name of the data set. By default: the name of --out."""
    channel: str | None = None
    """Channel to take of images with several (stacks, nd2, czi, lif): its number from 1, or its name."""
    time: str = "all"
    """Frames of time-lapse images to take: all; a number from 1 (-1 is the last one); or a range, first:last or
    first:last:step. The mask has a page for each picture that is taken."""
    page: str = "all"
    """Pages or depths (z) of stacks of images to take, with values as of --time."""
    licence: str | None = None
    """Licence of the data. By default: the first line of a LICENSE file in --images. Checkpoints trained on the data
    name it."""
    strict: bool = False
    """Stop at the first defect. By default: leave out images that a defect makes unusable, and continue."""
    classes: tuple[str, ...] = ()
    """What the masks' values mean, as VALUE=NAME: 1=live 2=dead makes two classes. By default: values above 0 are
    cells of one class."""
    ignore_value: int | None = None
    """Value of pixels in the masks that are neither cell nor background, often 255: training and scores leave them
    out. By default: none."""
    instances: bool = False
    """Write a number for each cell, too: for --model.targets boundary or distance, and for counts of cells. These are
    the masks' values. With --classes, and in masks with one value, connected regions are numbered."""

    def validate(self) -> None:
        """Raises InputError for a bad name or range."""
        super().validate()
        Places.parse("--time", self.time)
        Places.parse("--page", self.page)
        if self.channel is not None and not self.channel.strip():
            raise InputError("--channel: its value is empty; give a number from 1, or a name")
        parse_values(self.classes, self.ignore_value)
        if self.suffix is not None and "/" in self.suffix:
            raise InputError(f"--suffix {self.suffix}: is part of a file's name; give --masks for the folder")


def run_folder(config: FolderConfig) -> None:
    """Convert."""
    from glioma_dist.data.convert.division import Division
    from glioma_dist.data.convert.folder import convert_folder
    from glioma_dist.data.images.choice import Choice

    names, values = parse_values(config.classes, config.ignore_value)
    convert_folder(
        config.images,
        config.masks,
        config.out,
        config.dataset or config.out.resolve().name,
        config.suffix,
        Division(config.split_seed, config.split_counts, config.split_shares, config.split),
        config.group_pattern,
        config.licence,
        config.strict,
        from_alpha=config.mask_from == "alpha",
        labelling=Labelling(names, config.instances, values=values, ignored_value=config.ignore_value),
        choice=Choice(config.channel, Places.parse("--time", config.time), Places.parse("--page", config.page)),
    )


def check_folder(config: FolderConfig) -> None:
    """Raises InputError for missing inputs."""
    check_folder_there("--images", config.images)
    check_folder_there("--masks", config.masks)


FOLDER = Command(
    FolderConfig,
    run_folder,
    (
        "glioma-dist convert folder --images data/images --masks data/masks --split-seed 0 --out shards/plate_7",
        "glioma-dist convert folder --images data --masks data --suffix _cp_masks --split-seed 0 "
        "--group-pattern '^([A-H][0-9]+)_' --out shards/plate_7",
    ),
    check_folder,
)
