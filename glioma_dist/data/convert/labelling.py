"""What a conversion makes of labels: one class or several, pixels that are ignored, and a number for each cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glioma_dist.data.convert.categories import plain_name
from glioma_dist.errors import InputError, one_line, printable
from glioma_dist.limits import IGNORE, MAX_CLASS_CHARACTERS, MAX_CLASSES, MAX_INSTANCES

MAX_VALUE = MAX_INSTANCES
"""Of a mask's pixel that a flag can name."""


@dataclass(frozen=True)
class Labelling:
    """classes: names of the masks' classes 1, 2, …; none: one class. instances: whether each cell gets a number.

    Of labels with categories: ignored: names of those whose pixels are ignored; ignores_crowds: the same of labels with
    `iscrowd` 1. Of masks: values: the value of each class; ignored_value: that of pixels that are ignored.
    """

    classes: tuple[str, ...] = ()
    instances: bool = False
    ignored: tuple[str, ...] = ()
    ignores_crowds: bool = False
    values: tuple[int, ...] = ()
    ignored_value: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether masks are of 0 and 1 alone."""
        return self == Labelling()

    def class_of(self, name: str, is_crowd: bool) -> int:
        """The number in a mask of a label of the category `name`, which is taken."""
        plain = plain_name(name)
        if plain in map(plain_name, self.ignored) or (is_crowd and self.ignores_crowds):
            return IGNORE
        return [plain_name(each) for each in self.classes].index(plain) + 1 if self.classes else 1

    def chosen(self, categories: Sequence[str] | None) -> Sequence[str] | None:
        """The categories that are taken; None: all that by their names are cells. categories: those of --categories."""
        if not self.classes and categories is None:
            return None
        return (*(categories or ()), *self.classes, *self.ignored)

    def takes(self, name: str) -> bool:
        """Whether a category that by its name is no cell is taken, because it is to be ignored."""
        return plain_name(name) in map(plain_name, self.ignored)


PLAIN = Labelling()


def check_names(classes: Sequence[str], ignored: Sequence[str], categories: Sequence[str] | None) -> None:
    """Raise InputError for categories that cannot be classes of a mask."""
    _check_classes(classes)
    if classes and categories is not None:
        raise InputError("--categories and --classes: give one of them; --classes takes the named categories only")
    ignored_names = set(map(plain_name, ignored))
    both = [name for name in (*classes, *(categories or ())) if plain_name(name) in ignored_names]
    if both:
        raise InputError(f"--ignore {one_line(both[0], 80)}: is taken as a cell, too; name it once")


def parse_values(classes: Sequence[str], ignored_value: int | None) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and values of `1=live 2=dead`. Raises InputError where they cannot be."""
    names, values = [], []
    for text in classes:
        value, equals, name = text.partition("=")
        if not equals or not value.strip().isdecimal() or not 1 <= int(value) <= MAX_VALUE:
            raise InputError(
                f"--classes {one_line(text, 80)}: give VALUE=NAME, the value of the class in the masks, from 1 to "
                f"{MAX_VALUE}, and its name: --classes 1=live 2=dead"
            )
        names.append(name.strip())
        values.append(int(value))
    _check_classes(names)
    if ignored_value is not None and not 1 <= ignored_value <= MAX_VALUE:
        raise InputError(f"--ignore-value {ignored_value}: give a value from 1 to {MAX_VALUE}; 0 is background")
    doubled = [value for value in (*values, ignored_value) if (*values, ignored_value).count(value) > 1]
    if doubled:
        raise InputError(f"--classes {' '.join(classes)}: the value {doubled[0]} stands for two things; name it once")
    return tuple(names), tuple(values)


def _check_classes(names: Sequence[str]) -> None:
    told = f"--classes {one_line(' '.join(names), 200)}"
    if len(names) == 1:
        raise InputError(f"{told}: name two classes or more; one class needs no name: omit the flag")
    if len(names) > MAX_CLASSES:
        raise InputError(f"--classes: {len(names)} names; give at most {MAX_CLASSES}")
    if any(not name or len(name) > MAX_CLASS_CHARACTERS or printable(name).strip() != name for name in names):
        raise InputError(f"{told}: a name has 1 to {MAX_CLASS_CHARACTERS} printable characters")
    if len(set(map(plain_name, names))) < len(names):
        raise InputError(f"{told}: name each class once")
