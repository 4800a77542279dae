"""Sums of losses, as flags name them. No torch here."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import NamedTuple

from glioma_dist.errors import InputError, one_line
from glioma_dist.loss_names import DECLARED
from glioma_dist.registry import losses

LARGEST_WEIGHT = 1e6


class Term(NamedTuple):
    """One of the losses that are added."""

    weight: float
    name: str


def terms_of(text: str) -> tuple[Term, ...]:
    """The losses of a flag such as `dice+0.5*bce`. Raises InputError for a weight that is none, and where a name is
    missing; the names are not looked up."""
    found = []
    for part in text.split("+"):
        weight, times, name = part.rpartition("*")
        if not name.strip():
            raise InputError(
                f"--loss {one_line(repr(text), 100)}: a name is missing before or after {'*' if times else '+'}; "
                f"give one loss, or several as dice+0.5*bce (known: {', '.join(losses.names())})"
            )
        value = 1.0 if not times else math.nan
        with suppress(ValueError):
            value = float(weight) if times else value
        if not 0 < value <= LARGEST_WEIGHT:
            raise InputError(
                f"--loss {one_line(text, 100)}: cannot use the weight {one_line(repr(weight), 40)}; give a number "
                f"above 0 and at most {LARGEST_WEIGHT:,.0f}, as dice+0.5*bce"
            )
        found.append(Term(value, name.strip()))
    return tuple(found)


def check_names(text: str, has_classes: bool) -> None:
    """Raises InputError where a loss is unknown, is named twice, or is not for the masks; imports none."""
    names = [term.name for term in terms_of(text)]
    entries = [losses.find(name, "--loss") for name in names]
    if len({entry.name for entry in entries}) != len(entries):
        raise InputError(f"--loss {one_line(text, 100)}: name each loss once")
    wrong = "one" if has_classes else "several"
    for entry in entries:
        if entry.classes == wrong:
            same = [each.name for each in DECLARED if each.classes != wrong and each.target == entry.target]
            others = [each.name for each in DECLARED if each.classes == ("several" if has_classes else "one")]
            masks = "several classes (--model.classes)" if has_classes else "one class (no --model.classes)"
            raise InputError(f"--loss {entry.name}: is not for masks of {masks}; give {(same or others)[0]}")


def own_functions(text: str) -> list[str]:
    """The losses that are given as `module:function`."""
    return [term.name for term in terms_of(text) if ":" in term.name]
