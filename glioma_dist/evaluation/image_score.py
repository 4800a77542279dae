"""Scores of one image: Dice after bringing it to one size for the network and to another for the comparison, and the
cells that were found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from glioma_dist.data.sample import IGNORE, Sample
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.transforms import normalize_intensity, resize_mask
from glioma_dist.errors import InputError, one_line
from glioma_dist.evaluation.dice import class_counts, dice_from
from glioma_dist.evaluation.instances import MatchedCells, match_cells, mean_by_cell
from glioma_dist.evaluation.maps import cell_map, class_map, target_map
from glioma_dist.evaluation.network import THRESHOLD, Contrast, Network, pixel_maps
from glioma_dist.evaluation.separation import check_separable, numbered, separate
from glioma_dist.size import Size


@dataclass(frozen=True)
class ImageScore:
    """Scores of one image."""

    key: str
    dice: float
    """From 0 to 1; the mean over the classes where there are several."""
    dice_by_class: tuple[float, ...] = ()
    """Of each class of cells, where there are several."""
    cells: MatchedCells | None = field(default=None, compare=False)
    """The cells that were found, and which of them are right, where `config.instances` asked for them."""

    def to_dict(self) -> dict[str, Any]:
        """What the JSON file holds."""
        told: dict[str, Any] = {"key": self.key, "dice": self.dice}
        if self.dice_by_class:
            told["dice_by_class"] = list(self.dice_by_class)
        if self.cells is not None:
            told |= {"num_found": self.cells.num_found, "num_true": self.cells.num_true}
        return told


def check_labels(reader: ShardReader, classes: Sequence[str], instances: bool) -> None:
    """Raise InputError where shards have other classes than a network, or no numbers of cells where they are needed."""
    if tuple(reader.classes) != tuple(classes):
        told = [one_line(" ".join(names), 100) or "one class" for names in (reader.classes, classes)]
        raise InputError(
            f"--data: its masks have {told[0]}, the network tells {told[1]}; give shards of the same classes"
        )
    if instances and not reader.has_instances:
        raise InputError(
            "--instances: the shards of --data have no number for each cell; convert them again with --instances"
        )


def score_image(
    network: Network,
    sample: Sample,
    input_size: Size | None,
    metric_size: Size | None,
    instances: bool = False,
    contrast: Contrast = "none",
) -> ImageScore:
    """Score a sample: DS(x, y, R1, R2) = Dice(scale(f(scale(x, R1)), R2), scale(y, R2)), R1 `input_size`, R2
    `metric_size`, each the image's own size where None, and with `instances` its cells, at the image's own size.

    The output is scaled as probabilities, bilinearly; of a reference of one class every value above 0 counts as 1.
    """
    height, width = sample.mask.shape
    own = Size(width, height)
    metric_size = metric_size or own
    try:
        if instances:
            check_separable(height, width, "omit --instances")
        image = normalize_intensity(sample.image, contrast)
        maps, *own_maps = pixel_maps(network, image, input_size, metric_size, *((own,) if instances else ()))
    except InputError as error:
        raise InputError(f"sample {sample.key}: {error}") from error
    reference = torch.from_numpy(resize_mask(sample.mask, metric_size)).to(network.device)
    predicted = class_map(network.outputs, maps, THRESHOLD)
    by_class = dice_from(class_counts(predicted, reference, network.outputs.num_mask_channels)).tolist()
    is_first = network.spatial_group.rank == 0  # the others have the same maps
    cells = _matched(network, own_maps[0].cpu().numpy(), sample) if instances and is_first else None
    mean = sum(by_class) / len(by_class)
    return ImageScore(sample.key, mean, tuple(by_class) if len(by_class) > 1 else (), cells)


def _matched(network: Network, maps: np.ndarray, sample: Sample) -> MatchedCells:
    """The cells found in `maps` (C, H, W) against those of the sample. Pixels that nobody labelled belong to none."""
    known = sample.mask != IGNORE
    found = found_cells(network, maps) * known
    reference = np.asarray(sample.instances) * known
    return match_cells(found, mean_by_cell(found, cell_map(network.outputs, maps)), reference)


def found_cells(network: Network, maps: np.ndarray) -> np.ndarray:
    """Return the cells of an image's maps (C, H, W) as int32 (H, W), numbers from 1: separated by the network's second
    output; the connected components of each class where it has none."""
    from scipy import ndimage

    mask, target = class_map(network.outputs, maps, THRESHOLD), network.outputs.target
    if target is not None:
        return separate(mask, target_map(network.outputs, maps), target)
    found, num = np.zeros(mask.shape, np.int32), 0
    for number in range(1, max(2, network.outputs.num_mask_channels)):
        labels, more = ndimage.label(mask == number, np.ones((3, 3)))
        np.add(labels, num, out=found, where=labels > 0, casting="unsafe")
        num += more
    return numbered(found)
