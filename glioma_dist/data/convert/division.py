"""How the samples of a data set become splits: all in one, or drawn at random by groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from rich.console import Console

from glioma_dist.config.data import SPLIT_SHARES
from glioma_dist.data.convert.audit import Audit
from glioma_dist.data.convert.writing import AUDIT_NAME
from glioma_dist.data.splits import SPLIT_NAMES, WHOLE, check_division, draw_shares, draw_splits
from glioma_dist.errors import InputError
from glioma_dist.limits import check_seed
from glioma_dist.wording import counted


class _Keyed(Protocol):
    @property
    def key(self) -> str: ...


Item = TypeVar("Item", bound=_Keyed)


@dataclass(frozen=True)
class Division:
    """How the images become splits. seed: None: one split, `name`. counts: samples for train, val and test; None:
    `shares` of the groups, all of which are taken."""

    seed: int | None = None
    counts: tuple[int, int, int] | None = None
    shares: tuple[float, float, float] = SPLIT_SHARES
    name: str = WHOLE

    def check(self) -> None:
        """Raises InputError for counts, shares and seeds that no data can be divided by."""
        if self.seed is None:
            return
        check_seed("--split-seed", self.seed)
        if self.counts is not None:
            check_division(dict(zip(SPLIT_NAMES, self.counts, strict=True)), self.seed)
        else:
            draw_shares(
                {name: name for name in SPLIT_NAMES}, dict(zip(SPLIT_NAMES, self.shares, strict=True)), self.seed
            )

    def draw(self, groups: Mapping[str, str]) -> dict[str, list[str]]:
        """Keys of each split. groups: key -> group. Raises InputError where there are too few."""
        if self.counts is not None:
            return draw_splits(groups, dict(zip(SPLIT_NAMES, self.counts, strict=True)), self.seed, groups)
        return draw_shares(groups, dict(zip(SPLIT_NAMES, self.shares, strict=True)), self.seed)


def draw_parts(
    items: Sequence[Item], groups: Mapping[str, str], division: Division, audit: Audit, out: Path, console: Console
) -> dict[str, list[Item]]:
    """The items of each split, in their order, drawn among those that can be converted.

    groups: key -> group of these. Raises InputError where there are too few; where images were left out, it says why,
    and the audit is printed and written to `out`.
    """
    try:
        drawn = division.draw(groups)
    except InputError as error:
        why = audit.why_left_out(out / AUDIT_NAME)
        if not why:
            raise
        out.mkdir(parents=True, exist_ok=True)
        audit.write(out / AUDIT_NAME)
        audit.show(console, out / AUDIT_NAME)
        if not groups:
            told = audit.why_none(out / AUDIT_NAME)
        elif audit.num_left_out > len(groups):
            told = f"too few samples could be converted: {why}; {error}"
        else:  # the reason may be another, such as the groups
            told = f"{error}; left out: {why}"
        raise type(error)(told) from None
    num_drawn = sum(map(len, drawn.values()))
    if num_drawn < len(groups):
        left = len(groups) - num_drawn
        console.print(f"{counted(left, 'sample is', 'samples are')} in no split; --split-counts can ask for them")
    members = {name: set(keys) for name, keys in drawn.items()}
    return {name: [item for item in items if item.key in keys] for name, keys in members.items()}
