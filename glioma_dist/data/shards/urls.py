"""Which texts are URLs, and which of these are read."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from glioma_dist.errors import InputError

SCHEMES = ("s3", "gs", "az", "hf", "http", "https")


def is_url(text: str) -> bool:
    """Whether a user means a URL, though maybe one that is not allowed."""
    return "://" in text or "::" in text or text.startswith("pipe:")


def was_url(path: Path) -> bool:
    """Whether a path was made of a URL, of whose two slashes a path keeps one."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)) is not None


def check_url(url: str) -> None:
    """Raises InputError for a URL of a scheme that is not allowed, of several joined ones, with what is secret, or
    with a host or a port that cannot be."""
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES or "::" in url or not re.fullmatch(r"[a-z0-9]+://[^\s\x00-\x1f]+", url):
        raise InputError(
            f"{url!r} is no URL that shards are read from: give a folder, or a URL that begins with one of "
            f"{', '.join(scheme + '://' for scheme in SCHEMES)}"
        )
    if re.search(r"[?#]", url) or "@" in url.split("/")[2]:
        raise InputError(
            f"{url.partition('://')[0]}://…: a URL with a user, a query or a fragment would be written to config.json "
            "as it is; give the plain URL, and credentials through the environment"
        )
    try:
        _ = url.startswith("http") and urlsplit(url).port
    except ValueError as error:
        raise InputError(f"{url!r} is no URL that shards are read from ({error})") from None
