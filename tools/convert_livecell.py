"""Turn LIVECell, as its authors publish it, into shards: one folder a split, with an audit of its defects."""

from pathlib import Path

from glioma_dist.cli.arguments import run_function
from glioma_dist.data.convert.conversion import convert
from glioma_dist.data.convert.sources import find_livecell
from glioma_dist.distributed.run_command import run_command


def convert_livecell(source: Path, out: Path, strict: bool = False, categories: tuple[str, ...] | None = None) -> None:
    """Turn LIVECell into shards.

    Args:
        source: The folder with livecell_coco_{train,val,test}.json, whichever are there, and the images.
        out: Where the folders of the splits and audit.json are written, for example shards/livecell.
        strict: Stop at the first defect instead of leaving out the images that it spoils.
        categories: Names of the categories whose labels are cells; by default all, except those whose names say
            otherwise, such as background and soma.
    """
    convert(find_livecell(source), out, dataset="livecell", strict=strict, categories=categories)


if __name__ == "__main__":
    run_command(lambda: run_function(convert_livecell))
