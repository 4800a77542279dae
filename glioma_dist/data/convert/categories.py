"""Which of a COCO file's categories are cells."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from glioma_dist.errors import InputError, one_line

# Labels of a part of a cell, which lies inside a cell that has an outline of its own.
CELL_PART = "cell_part"
SOMA = "soma"
NO_CELLS = frozenset(
    (
        *("background", "bg", "ignore"),
        *("ignored", "ignore region"),
        *("unlabeled", "unlabelled", "not labeled", "not labelled"),
        *("void", "empty"),
        *("no cell", "no cells", "not cell", "not a cell", "non cell"),
        *("debris", "artifact", "artefact", "scale bar", "scalebar"),
    )
)
"""Names, as `plain_name` gives them, of categories that are no cells, whoever made the file."""


class Category(NamedTuple):
    """name: as the file gives it. taken: whether its labels are cells. why: where they are not, or it is unknown."""

    name: str
    taken: bool
    why: str = ""


def plain_name(name: object) -> str:
    """A category's name for comparison: case, spaces, hyphens and underscores make no difference."""
    return re.sub(r"[\s_.-]+", " ", unicodedata.normalize("NFKC", str(name))).strip().casefold()


def read_categories(
    records: list,
    chosen: Sequence[str] | None,
    is_ignored: Callable[[str], bool] = lambda _: False,
    class_of: Callable[[str, bool], int] = lambda *_: 1,
) -> dict[str, Category]:
    """Id -> category, of a COCO file's records. chosen: the names that are cells; None: all but those that by their
    names are none. is_ignored: whether a name is one whose pixels are to be ignored: such a category is taken, too.
    class_of: the class number of a name that is taken (`Labelling.class_of`).

    Raises InputError where one id is that of cells and of something else, or of two classes.
    """
    wanted = None if chosen is None else {plain_name(name) for name in chosen}
    found: dict[str, Category] = {}
    for record in records:
        if isinstance(record, dict):
            name = str(record.get("name", "")).strip() or "(no name)"
            number = identity(record.get("id"))
            category = _judge(name, record.get("supercategory"), wanted)
            if is_ignored(name):
                category = Category(name, True, ", ignored")
            first = found.setdefault(number, category)
            is_of_one_kind = first.taken == category.taken and is_ignored(first.name) == is_ignored(name)
            if not is_of_one_kind or (category.taken and class_of(first.name, False) != class_of(name, False)):
                what = "two classes" if is_of_one_kind else "both cells and something else"
                names = f"{one_line(first.name, 80)} and {one_line(name, 80)}"
                raise InputError(
                    f"the category id {one_line(number, 40)} names {what} ({names}); give each category its own id"
                )
    return found


def unknown_category(number: str, chosen: Sequence[str] | None) -> Category:
    """The category of labels whose id no record has: cells, unless names were chosen."""
    name = f"(id {number}, not among the file's categories)"
    return Category(name, chosen is None, "" if chosen is None else ", not chosen")


def _judge(name: str, supercategory: object, wanted: set[str] | None) -> Category:
    if wanted is not None:
        taken = plain_name(name) in wanted
        return Category(name, taken, "" if taken else ", not chosen")
    if plain_name(supercategory) == plain_name(CELL_PART) or plain_name(name) == SOMA:
        return Category(name, False, ", parts of cells")
    if plain_name(name) in NO_CELLS:
        return Category(name, False, ", no cells by its name")
    return Category(name, True)


def identity(value: object) -> str:
    """An id as text, so that 5, 5.0 and "5" are one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def count_labels(categories: dict[str, Category], labels: Counter) -> list[dict]:
    """For audit.json: each category with its number of labels, those of one name together, most labels first."""
    together: dict[Category, int] = Counter()
    for number, category in categories.items():
        together[category] += labels[number]
    entries = [{"name": c.name, "labels": n, "taken": c.taken, "why": c.why} for c, n in together.items()]
    return sorted(entries, key=lambda entry: (-entry["labels"], entry["name"]))
