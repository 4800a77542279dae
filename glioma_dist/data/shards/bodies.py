"""What one try to read a URL asks for, what can be wrong with the answer, and how much of its body is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PIECE_BYTES = 2**18

Take = Callable[[bytes], None]
"""Receives the body's pieces in order."""


class AnswerError(Exception):
    """An answer that cannot be used. is_final: the same question would be answered the same. is_content: it is the
    file that is wrong, not the service. retry_after: seconds that the server asks to wait. is_missing: there is no
    such file."""

    def __init__(
        self,
        what: str,
        is_final: bool = False,
        is_content: bool = False,
        retry_after: float = 0.0,
        is_missing: bool = False,
    ) -> None:
        super().__init__(what)
        self.is_final, self.is_content, self.retry_after = is_final, is_content, retry_after
        self.is_missing = is_missing


class NoRangesError(Exception):
    """The server sends the complete file whatever range of it is asked for."""


@dataclass(frozen=True)
class Span:
    """What is asked for: bytes `start` up to `end` of a file; or all of it, at most `end` bytes, where `start` is None.

    may_skip: a server without ranges is read from the beginning, and what is not wanted thrown away."""

    start: int | None
    end: int
    may_skip: bool = False

    @property
    def limits(self) -> dict[str, int | None]:
        """As fsspec's functions take them."""
        return {"start": self.start, "end": None if self.start is None else self.end}

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.start is None else {"Range": f"bytes={self.start}-{self.end - 1}"}


async def take_body(body: Any, start: int, size: int | None, span: Span, take: Take) -> bool:
    """Hand over the bytes of `span` from a body that begins at byte `start` of the file and has `size` bytes, where
    that is told. Returns whether it was read to its end.

    Raises AnswerError where more bytes come than were asked for, but for a span that may skip them.
    """
    first = span.start or 0
    too_many = AnswerError(f"more than the {span.end - first} bytes came that were asked for", is_content=True)
    if size is not None and start + size > span.end and not span.may_skip:
        raise too_many
    at = start
    while piece := await body.read(PIECE_BYTES):
        wanted = piece[max(0, first - at) : max(0, span.end - at)]
        if wanted:
            take(wanted)
        at += len(piece)
        if at > span.end:
            if span.may_skip:
                return False
            raise too_many
    return True
