"""Sizes of images, as they are written on the command line and in files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

import tyro

from glioma_dist.errors import InputError
from glioma_dist.limits import MAX_PIXELS


@dataclass(frozen=True)
class Size:
    """Width and height in pixels, in the order in which the article and file browsers write them."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if not (self.width >= 1 and self.height >= 1):
            raise InputError(f"Size({self.width}, {self.height}): give a width and a height of 1 pixel or more")

    @classmethod
    def parse(cls, text: str) -> Size:
        """Read "1472x1120". Raises InputError for anything else."""
        match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text.strip())
        if not match or int(match[1]) < 1 or int(match[2]) < 1:
            raise InputError(f"{text!r} is not a size: write WIDTHxHEIGHT in pixels, as in 1472x1120")
        if int(match[1]) * int(match[2]) > MAX_PIXELS:
            raise InputError(f"{text!r} is too large: at most {MAX_PIXELS} pixels")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


SizeFlag = Annotated[
    Size,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="WxH",
        instance_from_str=lambda args: Size.parse(args[0]),
        is_instance=lambda value: isinstance(value, Size),
        str_from_instance=lambda size: [str(size)],
    ),
]
