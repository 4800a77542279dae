"""Whether code is still the code that computed something: for results that are kept between runs."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).parent


def code_fingerprint(kinds: Iterable[type]) -> str | None:
    """16 hexadecimal digits of the code of this package and of the files that define the classes `kinds`, and of the
    versions of the libraries that these files belong to.

    None where the code of a class is in no file, as in a notebook.
    """
    sources, libraries = set(PACKAGE.rglob("*.py")), set()
    for kind in set(kinds):
        try:
            sources.add(Path(inspect.getfile(kind)))
        except (TypeError, OSError):
            return None
        library = sys.modules[kind.__module__.partition(".")[0]]
        libraries.add(f"{library.__name__} {getattr(library, '__version__', '')}")
    digest = hashlib.sha256("\n".join(sorted(libraries)).encode())
    for path in sorted(sources):
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError:
            return None
    return digest.hexdigest()[:16]
