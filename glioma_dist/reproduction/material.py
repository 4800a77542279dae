"""The target's images as a study takes them: brought to one size, and divided again for each repetition."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from glioma_dist.config.reproduction import OWN_GROUP
from glioma_dist.data.sample import Sample, encode_image
from glioma_dist.data.shards.index import INDEX_NAME
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.subsets import link_subset, write_singly
from glioma_dist.data.splits import SPLIT_NAMES, draw_repetitions, read_splits, write_splits
from glioma_dist.data.transforms import resize_image, resize_mask
from glioma_dist.errors import InputError
from glioma_dist.files import read_json, write_atomically
from glioma_dist.reproduction.plan import Settings, default_picture
from glioma_dist.reproduction.protocol import Study
from glioma_dist.size import Size


def prepare(settings: Settings, targets: Sequence[Path], group_by: str, studies: Sequence[Study]) -> None:
    """Write, where they are not there yet, the target's images, the splits, and a folder for each part of each.

    targets: folders of shards; their images together are the target. group_by: "group" for the fact that the shards
    have, "none", or a regular expression whose first group, found in an image's file name, names its group.
    """
    _check_counts(settings, studies)
    everything = settings.target
    if not (everything / INDEX_NAME).is_file():
        everything.parent.mkdir(parents=True, exist_ok=True)
        write_singly(targets, everything, lambda sample: at_native_size(sample, settings.preset.target_size))
    reader = ShardReader(everything)
    metadata = {key: reader.read(number, 0).metadata for number, key in enumerate(reader.keys())}
    if not settings.splits_file.exists():
        groups = None if group_by == "none" else {key: group_of(key, metadata[key], group_by) for key in metadata}
        counts = dict(zip(SPLIT_NAMES, settings.counts, strict=True))
        drawn = draw_repetitions(metadata, counts, settings.seed, settings.preset.num_repetitions, groups)
        told = {"dataset": reader.index["dataset"], "seed": settings.seed, "counts": counts, "group_by": group_by}
        write_splits(settings.splits_file, drawn, told | {"groups": groups})
    link_splits(settings, read_splits(settings.splits_file), studies)
    picture = default_picture(settings)
    if not picture.exists():
        first = read_splits(settings.splits_file)[0]["test"][0]
        image = reader.read(reader.keys().index(first), 0).image
        write_atomically(picture, encode_image(image))


def _sizes(studies: Sequence[Study]) -> list[int]:
    """Numbers of training images that studies ask for by themselves, in their order."""
    tunings = [row.fine_tuning for study in studies for row in study.rows if row.fine_tuning]
    return sorted({tuning.num_train for tuning in tunings if tuning.num_train})


def _check_counts(settings: Settings, studies: Sequence[Study]) -> None:
    """Raises InputError where no repetition can have as many training images as a study asks for."""
    sizes = _sizes(studies)
    if sizes and settings.counts[0] < sizes[-1]:
        raise InputError(
            f"--counts {' '.join(map(str, settings.counts))}: {settings.counts[0]} training images, but figure 3 "
            f"trains on up to {sizes[-1]}; give {sizes[-1]} or more as the first number"
        )


def link_splits(settings: Settings, repetitions: list[dict[str, list[str]]], studies: Sequence[Study]) -> None:
    """A folder for each split of each repetition, and for each smaller training set that a study asks for."""
    sizes = _sizes(studies)
    if len(repetitions) < settings.preset.num_repetitions:
        raise InputError(
            f"{settings.splits_file}: has {len(repetitions)} repetitions, {settings.preset.num_repetitions} are asked "
            "for; give --repetitions, or another --out"
        )
    for number, splits in enumerate(repetitions[: settings.preset.num_repetitions]):
        for name in SPLIT_NAMES:
            link_subset(settings.target, splits[name], settings.split(number, name))
        train = np.random.default_rng(settings.seed + number).permutation(splits["train"]).tolist()
        for size in sizes:  # the smaller are parts of the larger
            if size > len(train):
                raise InputError(
                    f"{settings.splits_file}: repetition {number} has {len(train)} training images, as the groups of "
                    f"images allow no more, but figure 3 trains on {sizes[-1]}; give a larger first number of --counts "
                    "than now, or --group-by none, and another --out"
                )
            link_subset(settings.target, train[:size], settings.split(number, f"train-{size:02d}"))


def at_native_size(sample: Sample, size: Size | None) -> Sample:
    """The middle window of the size's proportions, as large as can be, scaled to the size; as it is where None."""
    if size is None:
        return sample
    height, width = sample.mask.shape
    scale = min(width / size.width, height / size.height)
    window = Size(round(size.width * scale), round(size.height * scale))
    left, top = (width - window.width) // 2, (height - window.height) // 2
    cut = (slice(top, top + window.height), slice(left, left + window.width))
    metadata = sample.metadata | {"width": size.width, "height": size.height}
    return Sample(sample.key, resize_image(sample.image[cut], size), resize_mask(sample.mask[cut], size), metadata)


def group_of(key: str, metadata: dict, group_by: str) -> str:
    if group_by == OWN_GROUP:
        return str(metadata.get("group") or key)
    name = str(metadata.get("file_name") or key)
    try:
        found = re.search(group_by, name)
        group = found and found[1]  # None where the group is optional
    except (re.error, IndexError, OverflowError, RecursionError):
        group = None
    if not group:
        raise InputError(
            f"--group-by {group_by}: finds no group in {name}; give a regular expression with one pair of parentheses"
        )
    return group


def read_groups(settings: Settings) -> dict[str, str] | None:
    """The group of each image, as the splits were drawn; None where they were drawn without."""
    read_splits(settings.splits_file)  # raises InputError where it is damaged
    return read_json(settings.splits_file).get("groups")
