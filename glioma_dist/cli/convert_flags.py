"""Flags that several converters of `glioma-dist convert` share.

A command's config inherits them. Dataclasses collect fields from the last base on, so its inputs are the last base and
stand first in `--help`.
"""

from __future__ import annotations

from dataclasses import dataclass

from glioma_dist.config.data import SPLIT_SHARES
from glioma_dist.config.idle_flags import idle_flags
from glioma_dist.data.convert.labelling import Labelling, check_names
from glioma_dist.errors import InputError


@dataclass(frozen=True)
class CategoryFlags:
    """Of data sets with categories, as COCO files have them: what becomes of each category."""

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

    @property
    def labelling(self) -> Labelling:
        """What is made of the labels."""
        return Labelling(self.classes, self.instances, self.ignore, self.ignore_crowds)


@dataclass(frozen=True)
class SplitFlags:
    """Of data sets without splits of their own, which are drawn by groups: by shares, or by counts."""

    split: str = "all"
    """Name of the split, without --split-seed: train, val, test or another name."""
    split_seed: int | None = None
    """Draw train, val and test at random with this seed."""
    split_shares: tuple[float, float, float] = SPLIT_SHARES
    """Percentages of the groups for train, val and test, at least one group each, with --split-seed."""
    split_counts: tuple[int, ...] | None = None
    """Three numbers, with --split-seed, instead of shares: samples for train, val and test."""

    def without_effect(self) -> list[str]:
        """Flags that other flags leave without an effect, each with the reason."""
        is_drawn = self.split_seed is not None
        why = "without --split-seed" if not is_drawn else "with --split-counts"
        return idle_flags(
            self,
            [
                ("split", not is_drawn, "with --split-seed, which draws the splits"),
                ("split_counts", is_drawn, "without --split-seed"),
                ("split_shares", is_drawn and self.split_counts is None, why),
            ],
        )

    def validate(self) -> None:
        """Raises InputError for a bad name of a split, or a number of counts that is not three."""
        check_split_name(self.split)
        if self.split_counts is not None and len(self.split_counts) != len(SPLIT_SHARES):
            given = " ".join(map(str, self.split_counts))
            raise InputError(f"--split-counts {given}: give three numbers, for train, val and test")


def check_split_name(name: str) -> None:
    """Raises InputError for a name that no split can have."""
    if not name.replace("-", "").replace("_", "").isalnum() or name != name.lower():
        raise InputError(f"--split {name}: give a name of lower-case letters and digits, for example train")
