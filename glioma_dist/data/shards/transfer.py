"""One try to read a URL: bounded in bytes and in time, whatever the server does.

Bodies are read piece by piece, and the connection is closed where more comes than was asked for. HTTP goes through
fsspec's own session, S3 through s3fs's client. The libraries of the other schemes return complete answers only, so
there the size that the store declares is looked at first.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

from glioma_dist.data.shards.bodies import AnswerError, NoRangesError, Span, Take, take_body
from glioma_dist.data.shards.http_transfer import stream_http

PACE_BYTES = 2**23
"""Of a body: for each further so many that came, a read may take as long again."""


def read_span(files: Any, url: str, span: Span, seconds: float) -> bytes:
    """The bytes of `span`, at most as many as it has; fewer where the file is shorter. See `stream_span`."""
    pieces: list[bytes] = []
    stream_span(files, url, span, seconds, pieces.append)
    return b"".join(pieces)


def stream_span(files: Any, url: str, span: Span, seconds: float, take: Take) -> None:
    """Read a URL in one try, handing the pieces of `span` to `take`, on another thread, while they come.

    files: fsspec's file system of the URL's scheme. seconds: for each PACE_BYTES, or a part of them. Raises
    AnswerError, NoRangesError, and what the scheme's library raises; TimeoutError where it takes longer.
    """
    lock, ended = threading.Lock(), []

    def take_until_the_end(piece: bytes) -> None:
        # A request that is given up may hand over a last piece later: its taker is gone then.
        with lock:
            if not ended:
                take(piece)

    try:
        if not files.async_impl:
            within(seconds, lambda: take_until_the_end(_read_at_once(files, url, span)))
            return
        from fsspec.asyn import sync

        # A request that takes too long is called off: left alone it would hold one of few connections.
        sync(files.loop, _read_at_a_pace, files, url, span, seconds, take_until_the_end)
    finally:
        with lock:
            ended.append(True)


async def _read_at_a_pace(files: Any, url: str, span: Span, seconds: float, take: Take) -> None:
    protocols = (files.protocol,) if isinstance(files.protocol, str) else files.protocol
    read = stream_http if "http" in protocols else _stream_s3 if "s3" in protocols else _read_whole_answer
    start, num_bytes, paces = asyncio.get_running_loop().time(), 0, 1

    def take_and_extend(piece: bytes) -> None:
        nonlocal num_bytes, paces
        take(piece)
        num_bytes += len(piece)
        if num_bytes >= paces * PACE_BYTES:
            paces = 1 + num_bytes // PACE_BYTES
            limit.reschedule(start + seconds * paces)

    async with asyncio.timeout(seconds) as limit:
        await read(files, url, span, seconds, take_and_extend)


async def _stream_s3(files: Any, url: str, span: Span, seconds: float, take: Take) -> None:
    bucket, key, version = files.split_path(url)
    options = {"VersionId": version} if version else {}
    answer = await files._call_s3("get_object", Bucket=bucket, Key=key, **options, **span.headers)
    try:
        if answer.get("ContentEncoding", "") not in ("", "identity", "aws-chunked"):
            raise AnswerError(f"stored compressed ({answer['ContentEncoding'][:20]}); store it plain", is_final=True)
        if span.start is not None and not answer.get("ContentRange") and not span.may_skip:
            raise NoRangesError
        start = span.start if answer.get("ContentRange") else 0
        await take_body(answer["Body"], start or 0, answer.get("ContentLength"), span, take)
    finally:
        answer["Body"].close()


async def _read_whole_answer(files: Any, url: str, span: Span, seconds: float, take: Take) -> None:
    async def read() -> bytes:
        if span.start is None:
            _check_declared((await files._info(url)).get("size"), span.end)
        return await files._cat_file(url, **span.limits)

    try:
        data = await read()
    except Exception as error:
        if not _is_not_found(error):
            raise
        files.invalidate_cache()
        data = await read()
    take(_check_length(data, span))


def _read_at_once(files: Any, url: str, span: Span) -> bytes:
    def read() -> bytes:
        if span.start is None:
            _check_declared(files.info(url).get("size"), span.end)
        return files.cat_file(url, **span.limits)

    try:
        data = read()
    except Exception as error:
        if not _is_not_found(error):
            raise
        files.invalidate_cache()
        data = read()
    return _check_length(data, span)


def _is_not_found(error: Exception) -> bool:
    """Whether a file was missing, perhaps only in a listing that the library has kept from before it was written."""
    return isinstance(error, FileNotFoundError) or type(error).__name__.endswith("EntryNotFoundError")


def _check_declared(size: int | None, most: int) -> None:
    if size is not None and size > most:
        raise AnswerError(f"has {size} bytes, at most {most} are read", is_final=True, is_content=True)


def _check_length(data: bytes, span: Span) -> bytes:
    if len(data) > span.end - (span.start or 0):
        raise AnswerError(f"{len(data)} bytes came, more than were asked for", is_content=True)
    return data


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """What `function` returns; TimeoutError where it takes longer. A thread that is given up ends whenever its library
    lets go of it, and does not keep the process from ending."""
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def answer() -> None:
        try:
            answers.put((function(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=answer, daemon=True).start()
    try:
        value, error = answers.get(timeout=None if seconds == float("inf") else seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return value
