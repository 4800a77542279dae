"""Which frames of a time-lapse, or pages of a stack, a user wants: `all`, `3`, `-1`, `1:10`, `5:`, `1:100:10`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from glioma_dist.errors import InputError, one_line

NUMBER = r"-?[0-9]{1,9}"
SINGLE = re.compile(NUMBER)
SPAN = re.compile(rf"({NUMBER})?:({NUMBER})?(?::([0-9]{{1,9}}))?")


@dataclass(frozen=True)
class Places:
    """Places from `first` to `last`, both included, every `step`-th; counted from 1, or from the end where negative.
    None: from the beginning, to the end."""

    first: int | None = None
    last: int | None = None
    step: int = 1

    @classmethod
    def parse(cls, flag: str, text: str) -> Places:
        """Raises InputError, naming the flag, for a text that means no places."""
        if text == "all":
            return cls()
        found = SPAN.fullmatch(text)
        if SINGLE.fullmatch(text):
            place = cls(int(text), int(text))
        elif found:
            place = cls(*(int(each) if each else None for each in found.groups()[:2]), int(found[3] or 1))
        else:
            place = cls(0)
        if 0 in (place.first, place.last, place.step):
            raise InputError(
                f"{flag} {one_line(text, 60)}: give all, a number from 1 (-1 is the last one), or a range such as 1:10"
            )
        return place

    def among(self, count: int) -> range:
        """The places that are meant where there are `count`; none where they lie beyond."""
        first = 1 if self.first is None else self.first if self.first > 0 else count + 1 + self.first
        last = count if self.last is None else self.last if self.last > 0 else count + 1 + self.last
        if self.first is not None and self.first == self.last:
            return range(first, first + 1) if 1 <= first <= count else range(0)
        return range(max(first, 1), min(last, count) + 1, self.step)
