"""Which URLs data sets are downloaded from."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from glioma_dist.errors import InputError, one_line


def check_http_url(url: str) -> None:
    """Raises InputError for what is no plain http or https URL. The message does not show what may be secret."""
    if not re.fullmatch(r"https?://[^\s\x00-\x1f\x7f]+", url, re.IGNORECASE):
        raise InputError(f"--url {one_line(url, 80)}: give a URL that begins with http:// or https://")
    if "@" in urlsplit(url).netloc or re.search(r"[?#]", url):
        raise InputError(
            "--url: a URL with a user, a query or a fragment is not taken; give the plain URL of the folder"
        )
    try:
        host = urlsplit(url).hostname and (urlsplit(url).port or True)
    except ValueError as error:
        raise InputError(f"--url {one_line(url, 80)}: is no URL ({error}); correct it") from None
    if not host:
        raise InputError(f"--url {one_line(url, 80)}: names no host; correct it")
