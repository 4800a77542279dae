"""`glioma-dist growth`: growth curves and doubling times from the table of a prediction."""

from __future__ import annotations

from glioma_dist.cli.command import Command
from glioma_dist.cli.inputs import check_file, check_folder_there
from glioma_dist.config.growth import GrowthConfig
from glioma_dist.config.paths import Url
from glioma_dist.errors import printable


def check(config: GrowthConfig) -> None:
    """Raises InputError for missing inputs."""
    check_file("--metadata", config.metadata)
    if isinstance(config.predictions, Url):
        return
    if config.predictions.suffix.lower() == ".csv":
        check_file("PREDICTIONS", config.predictions)
    else:
        check_folder_there("PREDICTIONS", config.predictions)


def run(config: GrowthConfig) -> None:
    """Print a line a culture, and where wells and times come from."""
    from glioma_dist.growth_curves.run import growth
    from glioma_dist.wording import counted

    result = growth(config)
    for note in result.notes:
        print(f"note: {printable(note)}")
    for culture in result.cultures:
        print(culture.describe())
    number = counted(len(result.cultures), "culture")
    print(f"{number}: growth.csv, points.csv, growth.json and plots in {printable(config.out)}")
    result.raise_for_not_used()


GROWTH = Command(
    GrowthConfig,
    run,
    (
        "glioma-dist growth preds --out growth",
        "glioma-dist growth preds --pattern '(?P<well>[A-H][0-9]+)_f(?P<field>[0-9]+)_(?P<hour>[0-9]+)h' --out growth",
        "glioma-dist growth preds --metadata wells.csv --out growth",
    ),
    check,
)
