"""Installs requirements into the environment of the Python that runs this: with uv, or with pip where uv cannot.

    .venv/bin/python .ci/install.py --constraint constraints.txt --editable '.[dev]'

The arguments are pip's. uv takes a fifth of pip's CPU seconds, but does not read pip's settings (pip.conf, PIP_*):
it is given the indexes, proxy and certificates that pip has. A variable UV_* that is set stays as it is.
"""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from itertools import chain, pairwise
from pathlib import Path

UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}
"""pip's settings and the variables through which uv reads the same."""
RELATIVES = {
    "UV_DEFAULT_INDEX": ("UV_INDEX_URL",),
    "UV_INDEX": ("UV_EXTRA_INDEX_URL",),
    "ALL_PROXY": ("HTTPS_PROXY", "https_proxy", "all_proxy"),
}
"""Other variables that say the same."""
SEPARATED_BY_COMMAS = {"UV_FIND_LINKS"}
PIP = [sys.executable, "-m", "pip"]


def pip_settings() -> dict[str, str]:
    """Name -> value of pip's settings for `pip install`: files, then the environment, which comes first."""
    listed = subprocess.run([*PIP, "config", "list"], stdout=subprocess.PIPE, text=True, check=False).stdout
    ranked: list[tuple[int, str, str]] = []
    for line in listed.splitlines():
        name, equals, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if equals and section in SECTIONS:
            ranked.append((SECTIONS.index(section), key, str(ast.literal_eval(value))))
    return {key: value for _, key, value in sorted(ranked)}


SECTIONS = ("global", "install", ":env:")
"""Of pip's settings; a later one wins."""


def uv_environment(settings: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of uv that give it pip's settings, those that `environment` has already left out."""
    found = {}
    for key, name in UV_NAMES.items():
        if key in settings and not {name, *RELATIVES.get(name, ())} & environment.keys():
            separator = "," if name in SEPARATED_BY_COMMAS else " "
            found[name] = separator.join(settings[key].split())
    # As pip does: of all indexes the newest version that fits, not that of the first index which has the package.
    if {"UV_INDEX", "UV_DEFAULT_INDEX"} & found.keys() and "UV_INDEX_STRATEGY" not in environment:
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return found


def find_uv(arguments: list[str]) -> str | None:
    """uv's path: in the environment, installed there by pip if need be, or else on PATH; None where there is none."""
    own = Path(sys.executable).parent / "uv"
    if not own.is_file():
        constraints = [words for words in pairwise(arguments) if words[0] == "--constraint"]
        subprocess.run([*PIP, "install", "--quiet", *chain.from_iterable(constraints), "uv"], check=False)
    return str(own) if own.is_file() else shutil.which("uv")


def main(arguments: list[str]) -> int:
    uv = find_uv(arguments)
    if uv is not None:
        # Compiled now: where bytecode is not kept later, each start would compile the libraries, 6 CPU seconds.
        how = ["pip", "install", "--python", sys.executable, "--quiet", "--compile-bytecode"]
        environment = {**os.environ, **uv_environment(pip_settings(), os.environ)}
        if subprocess.run([uv, *how, *arguments], env=environment, check=False).returncode == 0:
            return 0
    print("uv is not there or could not install; pip does it, which takes a few minutes", file=sys.stderr)
    return subprocess.run([*PIP, "install", "--quiet", *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
