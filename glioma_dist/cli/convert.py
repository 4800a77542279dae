"""`glioma-dist convert`: convert data sets to shards, one folder per split, and list their defects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from glioma_dist.cli.command import Command
from glioma_dist.cli.inputs import check_file, check_folder_there, check_source
from glioma_dist.config.data import ARTICLE_COUNTS, SPLIT_SHARES
from glioma_dist.config.idle_flags import idle_flags
from glioma_dist.config.places import Places
from glioma_dist.data.convert.labelling import Labelling, check_names, parse_values
from glioma_dist.errors import InputError


@dataclass(frozen=True)
class LivecellConfig:
    """Convert LIVECell, as published, to shards."""

    source: Path
    """Folder with the images and any of livecell_coco_train.json, livecell_coco_val.json, livecell_coco_test.json."""
    out: Path
    """Folder to write the splits and audit.json to, for example shards/livecell."""
    strict: bool = False
    """Stop at the first defect. By default: leave out images that a defect makes unusable, and continue."""
    categories: tuple[str, ...] | None = None
    """Names of the categories to take as cells. By default: all, except names that mean something else, such as
    background and soma."""
    classes: tuple[str, ...] = ()
    """Names of two or more categories that become the classes 1, 2, … of the masks, in this order; others are left
    out. A pixel of several belongs to the one named last. By default: all cells are one class."""
    ignore: tuple[str, ...] = ()
    """Names of categories whose pixels are neither cell nor background: training and scores leave them out. Pixels
    that are part of a cell, too, are cell."""
    ignore_crowds: bool = False
    """Do the same with labels that have iscrowd 1: COCO's regions of several cells, but also CVAT's brush masks."""
    instances: bool = False
    """Write a number for each cell, too: for --model.targets boundary or distance, and for counts of cells. A pixel
    of several cells of one class belongs to the smallest."""

    def validate(self) -> None:
        """Raises InputError for categories that cannot be classes."""
        check_names(self.classes, self.ignore, self.categories)


@dataclass(frozen=True)
class GliomaC6Config:
    """Convert Glioma C6, as published or as a CVAT export (COCO 1.0), or a data set of the same layout, to shards."""

    source: Path
    """Folder of the published archive, one of its subfolders, or the folder of a CVAT export."""
    out: Path
    """Folder to write the splits and audit.json to; its name becomes the name of the data set."""
    split_seed: int | None = None
    """Draw train, val and test at random with this seed. By default: a CVAT export becomes one split, all."""
    split_counts: tuple[int, int, int] = ARTICLE_COUNTS
    """Number of samples for train, val and test, with --split-seed."""
    strict: bool = False
    """Stop at the first defect. By default: leave out images that a defect makes unusable, and continue."""
    categories: tuple[str, ...] | None = None
    """Names of the categories to take as cells. By default: all, except names that mean something else, such as
    background and soma."""
    classes: tuple[str, ...] = ()
    """Names of two or more categories that become the classes 1, 2, … of the masks, in this order; others are left
    out. A pixel of several belongs to the one named last. By default: all cells are one class."""
    ignore: tuple[str, ...] = ()
    """Names of categories whose pixels are neither cell nor background: training and scores leave them out. Pixels
    that are part of a cell, too, are cell."""
    ignore_crowds: bool = False
    """Do the same with labels that have iscrowd 1: COCO's regions of several cells, but also CVAT's brush masks."""
    instances: bool = False
    """Write a number for each cell, too: for --model.targets boundary or distance, and for counts of cells. A pixel
    of several cells of one class belongs to the smallest."""

    def validate(self) -> None:
        """Raises InputError for categories that cannot be classes."""
        check_names(self.classes, self.ignore, self.categories)


@dataclass(frozen=True)
class CocoConfig:
    """Convert any COCO file with its folder of images to shards."""

    annotations: Path
    """COCO file: JSON with images, categories, and annotations as polygons or run lengths (RLE)."""
    images: Path
    """Folder with the images (TIFF or PNG) that the COCO file names; subfolders are searched, too."""
    out: Path
    """Folder to write the splits and audit.json to; its name becomes the name of the data set."""
    split: str = "all"
    """Name of the split, without --split-seed: train, val, test or another name."""
    licence: str | None = None
    """Licence of the data. By default: what the COCO file says. Checkpoints trained on the data name it."""
    split_seed: int | None = None
    """Draw train, val and test at random with this seed."""
    split_counts: tuple[int, int, int] = ARTICLE_COUNTS
    """Number of samples for train, val and test, with --split-seed."""
    strict: bool = False
    """Stop at the first defect. By default: leave out images that a defect makes unusable, and continue."""
    categories: tuple[str, ...] | None = None
    """Names of the categories to take as cells. By default: all, except names that mean something else, such as
    background and soma."""
    classes: tuple[str, ...] = ()
    """Names of two or more categories that become the classes 1, 2, … of the masks, in this order; others are left
    out. A pixel of several belongs to the one named last. By default: all cells are one class."""
    ignore: tuple[str, ...] = ()
    """Names of categories whose pixels are neither cell nor background: training and scores leave them out. Pixels
    that are part of a cell, too, are cell."""
    ignore_crowds: bool = False
    """Do the same with labels that have iscrowd 1: COCO's regions of several cells, but also CVAT's brush masks."""
    instances: bool = False
    """Write a number for each cell, too: for --model.targets boundary or distance, and for counts of cells. A pixel
    of several cells of one class belongs to the smallest."""

    def without_effect(self) -> list[str]:
        """Flags that other flags leave without an effect, each with the reason."""
        return idle_flags(self, [("split", self.split_seed is None, "with --split-seed, which draws the splits")])

    def validate(self) -> None:
        """Raises InputError for a bad name of a split, and categories that cannot be classes."""
        check_split_name(self.split)
        check_names(self.classes, self.ignore, self.categories)


@dataclass(frozen=True)
class FolderConfig:
    """Convert a folder of images and a folder of their masks to shards."""

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
    split: str = "all"
    """Name of the split, without --split-seed: train, val, test or another name."""
    split_seed: int | None = None
    """Draw train, val and test at random with this seed."""
    split_shares: tuple[float, float, float] = SPLIT_SHARES
    """Percentages of the groups for train, val and test, at least one group each, with --split-seed."""
    split_counts: tuple[int, ...] | None = None
    """Three numbers, with --split-seed, instead of shares: samples for train, val and test."""
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

    def without_effect(self) -> list[str]:
        """Flags that other flags leave without an effect, each with the reason."""
        return idle_split_flags(self)

    def validate(self) -> None:
        """Raises InputError for a bad name or range."""
        check_split_name(self.split)
        Places.parse("--time", self.time)
        Places.parse("--page", self.page)
        if self.channel is not None and not self.channel.strip():
            raise InputError("--channel: its value is empty; give a number from 1, or a name")
        check_split_counts(self.split_counts)
        parse_values(self.classes, self.ignore_value)
        if self.suffix is not None and "/" in self.suffix:
            raise InputError(f"--suffix {self.suffix}: is part of a file's name; give --masks for the folder")


def idle_split_flags(config: Any) -> list[str]:
    """Flags of splits that have no effect, of a config that draws by shares or by counts, each with the reason."""
    is_drawn = config.split_seed is not None
    why = "without --split-seed" if not is_drawn else "with --split-counts"
    return idle_flags(
        config,
        [
            ("split", not is_drawn, "with --split-seed, which draws the splits"),
            ("split_counts", is_drawn, "without --split-seed"),
            ("split_shares", is_drawn and config.split_counts is None, why),
        ],
    )


def check_split_counts(counts: tuple[int, ...] | None) -> None:
    """Raises InputError where they are not three."""
    if counts is not None and len(counts) != len(SPLIT_SHARES):
        given = " ".join(map(str, counts))
        raise InputError(f"--split-counts {given}: give three numbers, for train, val and test")


def check_split_name(name: str) -> None:
    """Raises InputError for a name that no split can have."""
    if not name.replace("-", "").replace("_", "").isalnum() or name != name.lower():
        raise InputError(f"--split {name}: give a name of lower-case letters and digits, for example train")


def run_livecell(config: LivecellConfig) -> None:
    """Convert."""
    from glioma_dist.data.convert.conversion import convert
    from glioma_dist.data.convert.sources import find_livecell

    source = find_livecell(config.source)
    labelling, dataset = _labelling(config), "livecell"
    convert(source, config.out, dataset, config.strict, categories=config.categories, labelling=labelling)


def run_glioma_c6(config: GliomaC6Config) -> None:
    """Convert."""
    from glioma_dist.data.convert.conversion import convert
    from glioma_dist.data.convert.sources import find_glioma_c6

    _convert_drawn(convert, find_glioma_c6(config.source), config)


def run_coco(config: CocoConfig) -> None:
    """Convert."""
    from glioma_dist.data.convert.conversion import convert
    from glioma_dist.data.convert.sources import find_coco

    _convert_drawn(convert, find_coco(config.annotations, config.images, config.split, config.licence), config)


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


def _labelling(config: LivecellConfig | GliomaC6Config | CocoConfig) -> Labelling:
    return Labelling(config.classes, config.instances, config.ignore, config.ignore_crowds)


def _convert_drawn(convert, source, config: GliomaC6Config | CocoConfig) -> None:
    dataset = config.out.resolve().name
    convert(
        source,
        config.out,
        dataset,
        config.strict,
        config.split_seed,
        config.split_counts,
        categories=config.categories,
        labelling=_labelling(config),
    )


def check_coco(config: CocoConfig) -> None:
    """Raises InputError for missing inputs."""
    check_file("--annotations", config.annotations)
    check_source(config.images)


def check_folder(config: FolderConfig) -> None:
    """Raises InputError for missing inputs."""
    check_folder_there("--images", config.images)
    check_folder_there("--masks", config.masks)


LIVECELL = Command(
    LivecellConfig,
    run_livecell,
    (
        "glioma-dist convert livecell --source data/LIVECell --out shards/livecell",
        "glioma-dist convert livecell --source data/LIVECell --out shards/livecell --strict",
    ),
    lambda config: check_source(config.source),
)
GLIOMA_C6 = Command(
    GliomaC6Config,
    run_glioma_c6,
    (
        "glioma-dist convert glioma-c6 --source data/glioma_c6 --out shards/glioma_c6",
        "glioma-dist convert glioma-c6 --source data/cvat_export --out shards/plate_7 --split-seed 0 "
        "--split-counts 15 5 10",
    ),
    lambda config: check_source(config.source),
)
COCO = Command(
    CocoConfig,
    run_coco,
    (
        "glioma-dist convert coco --annotations data/labels.json --images data/images --out shards/plate_7",
        "glioma-dist convert coco --annotations data/labels.json --images data/images --out shards/plate_7 "
        "--split-seed 0 --split-counts 15 5 10 --licence 'CC BY 4.0'",
    ),
    check_coco,
)
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
