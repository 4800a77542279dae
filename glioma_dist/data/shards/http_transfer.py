"""One try to read a URL over HTTP: which redirects are followed, and which answers are those that were asked for."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from glioma_dist.data.shards.bodies import AnswerError, NoRangesError, Span, Take, take_body

MAX_REDIRECTS = 5
OK, PARTIAL_CONTENT, TIMED_OUT, RANGE_NOT_SATISFIABLE, TOO_MANY = 200, 206, 408, 416, 429
NOT_FOUND, GONE = 404, 410
REDIRECTS = (301, 302, 303, 307, 308)
REASONS = {401: "not allowed without credentials", 403: "not allowed", 404: "no such file", 410: "no longer there"}
NO_CREDENTIALS = ("allow_redirects", "auto_decompress", "timeout", "ssl")
"""Options of a request that may go to another host than the user named."""


async def stream_http(files: Any, url: str, span: Span, seconds: float, take: Take) -> None:
    """Hand the bytes of `span` to `take`, through the session of fsspec's HTTP file system. See `stream_span`."""
    import aiohttp

    session = await files.set_session()
    # The plain bytes are asked for; nothing is unpacked in any case, because a few bytes can hold any number.
    headers = {**(files.kwargs.get("headers") or {}), **span.headers, "Accept-Encoding": "identity"}
    options = {
        **files.kwargs,
        "headers": headers,
        "allow_redirects": False,
        "auto_decompress": False,
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds),
    }
    async with AsyncExitStack() as stack:
        try:
            response = await _follow(stack, session, files.encode_url(url), options)
        except aiohttp.ClientResponseError as error:
            # Nobody asked for a status to be raised: this is the parser, and its status is not the server's.
            raise AnswerError(f"an answer that is no HTTP ({error.message})") from None
        start = _check_head(response, span)
        # An answer that is not read to its end closes the connection, or all of it would have to be read.
        if not await take_body(response.content, start, response.content_length, span, take):
            response.close()


async def _follow(stack: AsyncExitStack, session: Any, url: Any, options: dict) -> Any:
    """The answer at the end of the redirects, which `stack` lets go of."""
    import yarl

    first = here = url if isinstance(url, yarl.URL) else yarl.URL(url)
    for _ in range(MAX_REDIRECTS + 1):
        if here.origin() != first.origin():
            session, options = await _without_credentials(stack, session, options)
        response = await stack.enter_async_context(session.get(here, **options))
        if response.status not in REDIRECTS:
            return response
        location = response.headers.get("Location", "")
        response.close()
        try:
            here = here.join(yarl.URL(location))
            await check_redirect(first, here)
        except ValueError:
            raise AnswerError(f"redirects to {location[:80]!r}, which is no URL", is_final=True) from None
    raise AnswerError(f"redirects more than {MAX_REDIRECTS} times", is_final=True)


async def _without_credentials(stack: AsyncExitStack, session: Any, options: dict) -> tuple[Any, dict]:
    """A session and options for a host that the user did not name: the credentials are not for it."""
    import aiohttp

    headers = {name: options["headers"][name] for name in ("Range", "Accept-Encoding") if name in options["headers"]}
    options = {name: options[name] for name in NO_CREDENTIALS if name in options} | {"headers": headers}
    if session.headers or session.auth is not None or len(session.cookie_jar):
        session = await stack.enter_async_context(aiohttp.ClientSession(trust_env=session.trust_env))
    return session, options


async def check_redirect(first: Any, target: Any) -> None:
    """Refuse a redirect that leads away from the web, or from the web into this machine or its network.

    Raises AnswerError. A server outside must not make this process read from servers inside its network.
    """
    if target.scheme not in ("http", "https") or (first.scheme, target.scheme) == ("https", "http"):
        what = f"redirects from {first.scheme}:// to {target.scheme[:20]}://, which is not followed"
        raise AnswerError(what, is_final=True)
    if target.host == first.host:
        return
    kinds = await _kinds(target)
    if "link-local" in kinds or ("private" in kinds and "private" not in await _kinds(first)):
        what = f"redirects to {str(target.host)[:80]}, an address inside this network, which is not followed"
        raise AnswerError(what, is_final=True)


async def _kinds(url: Any) -> set[str]:
    """Which kinds of addresses a URL's host has; none where its name is unknown here, as it can be behind a proxy."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except OSError:
        return set()
    kinds = set()
    for *_, address in found:
        host = ipaddress.ip_address(address[0].partition("%")[0])
        host = getattr(host, "ipv4_mapped", None) or host
        if host.is_link_local or host.is_multicast or host.is_unspecified:
            kinds.add("link-local")
        elif not host.is_global:
            kinds.add("private")
    return kinds


def _check_head(response: Any, span: Span) -> int:
    """Look at an answer's status and headers. Returns where in the file its body begins.

    Raises AnswerError; NoRangesError where all of the file comes and a part was asked for.
    """
    status, headers = response.status, response.headers
    if status not in (OK, PARTIAL_CONTENT):
        raise status_error(status, str(response.reason or ""), headers.get("Retry-After", ""))
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise AnswerError(
            f"sent compressed ({encoding[:20]}) although plain bytes were requested; switch compression off",
            is_final=True,
        )
    if span.start is None:
        return 0
    if status == PARTIAL_CONTENT:
        told = re.match(r"\s*bytes\s+(\d{1,20})-", headers.get("Content-Range", ""))
        if told and int(told[1]) != span.start:
            raise AnswerError(f"sent bytes from {told[1]} on instead of {span.start} on", is_content=True)
        return span.start
    if not span.may_skip and (span.start, response.content_length) != (0, span.end):
        raise NoRangesError
    return 0


def status_error(status: int, reason: str, retry_after: str) -> AnswerError:
    """The error for an answer of this status. retry_after: its header of that name, or an empty text."""
    what = REASONS.get(status) or " ".join(reason.split())[:60]
    text = f"the server answers {status}, {what}" if what else f"the server answers {status}"
    if status == RANGE_NOT_SATISFIABLE:
        return AnswerError(f"the server answers {status}, the file is shorter", is_content=True)
    if status in (TIMED_OUT, TOO_MANY) or status >= 500:
        return AnswerError(text, retry_after=_seconds(retry_after))
    return AnswerError(text, is_final=True, is_missing=status in (NOT_FOUND, GONE))


def _seconds(retry_after: str) -> float:
    """What a Retry-After header asks for, a number or a date; 0 for what is neither."""
    if re.fullmatch(r"\s*\d{1,9}\s*", retry_after, re.ASCII):
        return float(retry_after)
    try:
        then = parsedate_to_datetime(retry_after)
        then = then if then.tzinfo else then.replace(tzinfo=UTC)
        return max(0.0, (then - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
