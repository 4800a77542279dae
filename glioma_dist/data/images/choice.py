"""Which planes of a file a user wants: by channel, time and page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from glioma_dist.config.places import Places
from glioma_dist.data.images.tiff_planes import Plane, Planes
from glioma_dist.errors import InputError, one_line

MAX_PLANES = 100_000
"""Of one file. Metadata can promise any number."""


@dataclass(frozen=True)
class Choice:
    """What the user wants of each file. channel: a number from 1, or a name; None: the only one."""

    channel: str | None = None
    times: Places = field(default_factory=Places)
    pages: Places = field(default_factory=Places)


EVERYTHING = Choice()
"""All planes of a file of one channel."""


class ChannelError(InputError):
    """A file has several channels, and the user has not said which one to take. channels: how many, and their names."""

    channels = ""


def choose_planes(planes: Planes, choice: Choice, where: str) -> tuple[list[Plane], int | None]:
    """The chosen ones of a file's planes, in its order, and the number of the chosen channel, from 1; None where the
    file has one channel, which may have colours. Raises InputError where nothing is chosen."""
    channel = choose_channel(choice, planes.num_channels, planes.channels, where)
    frames, positions = (
        max(each or 1 for each in numbers) for numbers in zip(*(plane[1:3] for plane in planes.planes), strict=True)
    )
    times = choose_places(choice.times, "--time", frames, "times", where)
    pages = choose_places(choice.pages, "--page", positions, "pages", where)
    found = [
        plane
        for plane in planes.planes
        if (plane.frame or 1) in times
        and (plane.position or 1) in pages
        and (channel is None or planes.num_samples > 1 or plane.channel == channel)
    ]
    if not found:
        raise InputError(f"{where}: has no plane of the chosen --channel, --time and --page")
    return found, channel


def choose_channel(choice: Choice, count: int, names: Sequence[str], where: str) -> int | None:
    """The number of the chosen channel, from 1; None where there is one, which may have colours."""
    if count == 1:
        return None
    listed = one_line(", ".join(f"{number} {name}".strip() for number, name in _numbered(count, names)), 200)
    if choice.channel is None:
        error = ChannelError(f"{where}: {count} channels ({listed}); choose one by number or name: --channel 1")
        error.channels = f"{count} channels ({listed})"
        raise error
    by_name = [number for number, name in _numbered(count, names) if name.casefold() == choice.channel.casefold()]
    if len(by_name) == 1:
        return by_name[0]
    if choice.channel.isdecimal() and 1 <= int(choice.channel[:9]) <= count:
        return int(choice.channel)
    raise InputError(f"{where}: no channel {one_line(choice.channel, 40)} among its {count} ({listed})")


def choose_places(places: Places, flag: str, count: int, what: str, where: str) -> range:
    """The chosen times or pages of `count`, from 1. Raises InputError for none, or more than are read."""
    found = places.among(count)
    if not found:
        raise InputError(f"{where}: {flag} means none of its {count} {what if count > 1 else what[:-1]}")
    if len(found) > MAX_PLANES:
        raise InputError(f"{where}: {len(found)} {what}, more than {MAX_PLANES}; choose some of them by {flag}")
    return found


def _numbered(count: int, names: Sequence[str]) -> list[tuple[int, str]]:
    return [(number + 1, names[number] if names else "") for number in range(min(count, 100))]
