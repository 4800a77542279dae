"""Turn Glioma C6, as published or as a CVAT export (COCO 1.0), into shards with an audit of its defects."""

from pathlib import Path

from glioma_dist.cli.arguments import run_function
from glioma_dist.data.convert.conversion import ARTICLE_COUNTS, convert
from glioma_dist.data.convert.sources import find_glioma_c6
from glioma_dist.distributed.run_command import run_command


def convert_glioma_c6(
    source: Path,
    out: Path,
    split_seed: int | None = None,
    split_counts: tuple[int, int, int] = ARTICLE_COUNTS,
    strict: bool = False,
    categories: tuple[str, ...] | None = None,
) -> None:
    """Turn Glioma C6, or any data set in its layout or CVAT's, into shards.

    Args:
        source: The published archive, a folder of it, or the folder of a CVAT export.
        out: Where the folders of the splits and audit.json are written; its name becomes the data set's.
        split_seed: Draw train, val and test at random with this seed; otherwise an export is one split, all.
        split_counts: How many samples train, val and test get where they are drawn.
        strict: Stop at the first defect instead of leaving out the images that it spoils.
        categories: Names of the categories whose labels are cells; by default all, except those whose names say
            otherwise, such as background and soma.
    """
    dataset = out.resolve().name
    convert(find_glioma_c6(source), out, dataset, strict, split_seed, split_counts, categories=categories)


if __name__ == "__main__":
    run_command(lambda: run_function(convert_glioma_c6))
