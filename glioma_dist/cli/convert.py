"""`glioma-dist convert` of data sets in COCO's format: LIVECell, Glioma C6, and any other COCO file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glioma_dist.cli.command import Command
from glioma_dist.cli.convert_flags import CategoryFlags, check_split_name
from glioma_dist.cli.inputs import check_file, check_source
from glioma_dist.config.data import ARTICLE_COUNTS
from glioma_dist.config.idle_flags import idle_flags


@dataclass(frozen=True)
class LivecellFolders:
    """Where LIVECell is, and where its shards go."""

    source: Path
    """Folder with the images and any of livecell_coco_train.json, livecell_coco_val.json, livecell_coco_test.json."""
    out: Path
    """Folder to write the splits and audit.json to, for example shards/livecell."""


@dataclass(frozen=True)
class LivecellConfig(CategoryFlags, LivecellFolders):
    """Convert LIVECell, as published, to shards."""


@dataclass(frozen=True)
class GliomaC6Folders:
    """Where the data set is, where its shards go, and how it is divided."""

    source: Path
    """Folder of the published archive, one of its subfolders, or the folder of a CVAT export."""
    out: Path
    """Folder to write the splits and audit.json to; its name becomes the name of the data set."""
    split_seed: int | None = None
    """Draw train, val and test at random with this seed. By default: a CVAT export becomes one split, all."""
    split_counts: tuple[int, int, int] = ARTICLE_COUNTS
    """Number of samples for train, val and test, with --split-seed."""


@dataclass(frozen=True)
class GliomaC6Config(CategoryFlags, GliomaC6Folders):
    """Convert Glioma C6, as published or as a CVAT export (COCO 1.0), or a data set of the same layout, to shards."""


@dataclass(frozen=True)
class CocoInputs:
    """The COCO file and its images, where their shards go, and how they are divided."""

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


@dataclass(frozen=True)
class CocoConfig(CategoryFlags, CocoInputs):
    """Convert any COCO file with its folder of images to shards."""

    def without_effect(self) -> list[str]:
        """Flags that other flags leave without an effect, each with the reason."""
        return idle_flags(self, [("split", self.split_seed is None, "with --split-seed, which draws the splits")])

    def validate(self) -> None:
        """Raises InputError for a bad name of a split, and categories that cannot be classes."""
        check_split_name(self.split)
        super().validate()


def run_livecell(config: LivecellConfig) -> None:
    """Convert."""
    from glioma_dist.data.convert.conversion import convert
    from glioma_dist.data.convert.sources import find_livecell

    source = find_livecell(config.source)
    convert(source, config.out, "livecell", config.strict, categories=config.categories, labelling=config.labelling)


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
        source,
        config.out,
        dataset,
        config.strict,
        config.split_seed,
        config.split_counts,
        categories=config.categories,
        labelling=config.labelling,
    )


def check_coco(config: CocoConfig) -> None:
    """Raises InputError for missing inputs."""
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
