"""`glioma-dist convert`: turn data sets into shards, one folder a split, with an audit of their defects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glioma_dist.cli.command import Command
from glioma_dist.cli.inputs import check_file, check_source
from glioma_dist.config.data import ARTICLE_COUNTS
from glioma_dist.config.idle_flags import idle_flags
from glioma_dist.errors import InputError


@dataclass(frozen=True)
class LivecellConfig:
    """Turn LIVECell, as its authors publish it, into shards."""

    source: Path
    """The folder with livecell_coco_{train,val,test}.json, whichever are there, and the images."""
    out: Path
    """Where the folders of the splits and audit.json are written, for example shards/livecell."""
    strict: bool = False
    """Stop at the first defect instead of leaving out the images that it spoils."""
    categories: tuple[str, ...] | None = None
    """Names of the categories whose labels are cells; by default all, except those whose names say otherwise, such as
    background and soma."""


@dataclass(frozen=True)
class GliomaC6Config:
    """Turn Glioma C6, as published or as a CVAT export (COCO 1.0), or any data set in these layouts, into shards."""

    source: Path
    """The published archive's folder, a folder of it, or the folder of a CVAT export."""
    out: Path
    """Where the folders of the splits and audit.json are written; its name becomes the data set's."""
    split_seed: int | None = None
    """Draw train, val and test at random with this seed; otherwise an export is one split, all."""
    split_counts: tuple[int, int, int] = ARTICLE_COUNTS
    """How many samples train, val and test get where they are drawn."""
    strict: bool = False
    """Stop at the first defect instead of leaving out the images that it spoils."""
    categories: tuple[str, ...] | None = None
    """Names of the categories whose labels are cells; by default all, except those whose names say otherwise, such as
    background and soma."""


@dataclass(frozen=True)
class CocoConfig:
    """Turn any COCO file with its folder of images into shards."""

    annotations: Path
    """The COCO file: JSON with images, categories, and annotations as polygons or run lengths."""
    images: Path
    """The folder with the images (TIFF or PNG) that the file names, at any depth."""
    out: Path
    """Where the folders of the splits and audit.json are written; its name becomes the data set's."""
    split: str = "all"
    """Name of the one split, where none are drawn: train, val, test or another."""
    licence: str | None = None
    """Licence of the data; by default what the COCO file says. It is handed on to what is trained from it."""
    split_seed: int | None = None
    """Draw train, val and test at random with this seed."""
    split_counts: tuple[int, int, int] = ARTICLE_COUNTS
    """How many samples train, val and test get where they are drawn."""
    strict: bool = False
    """Stop at the first defect instead of leaving out the images that it spoils."""
    categories: tuple[str, ...] | None = None
    """Names of the categories whose labels are cells; by default all, except those whose names say otherwise, such as
    background and soma."""

    def without_effect(self) -> list[str]:
        """Flags that other flags leave without an effect, each with the reason."""
        return idle_flags(self, [("split", self.split_seed is None, "with --split-seed, which draws the splits")])

    def validate(self) -> None:
        """Raises InputError for a name that no split can have."""
        if not self.split.replace("-", "").replace("_", "").isalnum() or self.split != self.split.lower():
            raise InputError(f"--split {self.split}: give a name of small letters and digits, as train")


def run_livecell(config: LivecellConfig) -> None:
    """Convert."""
    from glioma_dist.data.convert.conversion import convert
    from glioma_dist.data.convert.sources import find_livecell

    source = find_livecell(config.source)
    convert(source, config.out, dataset="livecell", strict=config.strict, categories=config.categories)


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


def _convert_drawn(convert, source, config: GliomaC6Config | CocoConfig) -> None:
    dataset = config.out.resolve().name
    convert(
        source, config.out, dataset, config.strict, config.split_seed, config.split_counts, categories=config.categories
    )


def check_coco(config: CocoConfig) -> None:
    """Raises InputError for inputs that are not there."""
    check_file("--annotations", config.annotations)
    check_source(config.images)


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
