"""Collect the pages of the documentation site in one folder, and make those that are generated.

The site shows the same files as the repository: docs/, README and a few others. Links between them are changed to the
places that the files have in the site. A linked file that is no page, such as a script, is copied.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml
from api_page import api_page
from command_pages import COMMANDS, command_page, overview_page, page_name
from dialect import FENCE, for_python_markdown

REPOSITORY = Path(__file__).resolve().parents[1]
OUTSIDE_DOCS = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "vulnerabilities.md",
    "shards/README.md": "shards.md",
    "examples/README.md": "examples.md",
    "glioma_dist/networks/t98g-small/README.md": "t98g_small.md",
}
"""Page of the repository -> its place in the site. The pages of docs/ keep their names."""
STYLE = Path(__file__).with_name("extra.css")
COPIED = {".png", ".jpg", ".json", ".csv", ".svg"}
"""Endings of files of docs/ that pages show or link."""
SHOWN_AS_TEXT = {"", ".py", ".cff", ".toml", ".yaml"}
"""Endings of linked files that a browser would not show; they get .txt."""
CODE_OR_LINK = re.compile(
    r"(?P<code>`[^`\n]*`)|(?P<before>\]\(\s*<?|<(?:img|a)\b[^>]*?(?:src|href)=[\"'])(?P<target>[^)<>\s\"']+)"
)
EXTERNAL = re.compile(r"[a-z][a-z0-9+.-]*:|#")


class BrokenLinkError(Exception):
    """A link of a page leads to no file of the repository."""


def collect(out: Path, repository: Path = REPOSITORY) -> None:
    """Write all pages and the files that they need to the folder `out`, which is emptied first.

    Raises BrokenLinkError.
    """
    shutil.rmtree(out, ignore_errors=True)
    pages = page_places(repository)
    for source in sorted((repository / "docs").rglob("*")):
        if source.suffix in COPIED:
            _copy(source, out / source.relative_to(repository / "docs"))
    for source, place in pages.items():
        text = move_links(source.read_text(), lambda target, page=source: _place(page, target, pages, repository, out))
        _write(out / place, for_python_markdown(text))
    for place, make in generated_pages().items():
        _write(out / place, make())
    _copy(STYLE, out / STYLE.name)


def page_places(repository: Path = REPOSITORY) -> dict[Path, str]:
    """Return each page of the repository that the site shows, and its place in the site."""
    places = {repository / name: place for name, place in OUTSIDE_DOCS.items()}
    for page in sorted((repository / "docs").rglob("*.md")):
        name = page.relative_to(repository / "docs").as_posix()
        places[page] = re.sub(r"(^|/)README\.md$", r"\1index.md", name)
    return places


def generated_pages() -> dict[str, Callable[[], str]]:
    """Return the place of each generated page, and the function that makes its text."""
    pages: dict[str, Callable[[], str]] = {"reference/commands/index.md": overview_page, "reference/api.md": api_page}
    for name in COMMANDS:
        pages[f"reference/commands/{page_name(name)}"] = lambda name=name: command_page(name)
    return pages


def navigation_faults(repository: Path = REPOSITORY) -> list[str]:
    """Return each page that the navigation in mkdocs.yml lacks, names twice, or names although it does not exist."""
    named = list(_named_in(yaml.safe_load((repository / "mkdocs.yml").read_text())["nav"]))
    there = {*page_places(repository).values(), *generated_pages()}
    return [
        *(f"{place} is missing from the navigation in mkdocs.yml" for place in sorted(there - set(named))),
        *(f"{place}, named in mkdocs.yml, does not exist" for place in sorted(set(named) - there)),
        *(f"mkdocs.yml names {place} twice" for place in sorted(set(named)) if named.count(place) > 1),
    ]


def _named_in(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for each in nav if isinstance(nav, list) else nav.values():
            yield from _named_in(each)


def move_links(text: str, move: Callable[[str], str]) -> str:
    """Return a page with `move(target)` in place of each link target, except in code and outside the repository."""

    def moved(found: re.Match[str]) -> str:
        if found["code"] or EXTERNAL.match(found["target"]):
            return found[0]
        return found["before"] + move(found["target"])

    lines, fence = [], ""
    for line in text.splitlines(keepends=True):
        mark = FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
            lines.append(line)
        else:
            lines.append(line if fence else CODE_OR_LINK.sub(moved, line))
    return "".join(lines)


def _place(page: Path, target: str, pages: dict[Path, str], repository: Path, out: Path) -> str:
    """Return where a link of `page` leads in the site. Copy the file if it is no page."""
    path, hash_mark, anchor = target.partition("#")
    file = (page.parent / unquote(path)).resolve()
    if not file.is_file() or not file.is_relative_to(repository):
        raise BrokenLinkError(f"{page.relative_to(repository)}: {target} leads to no file of the repository")
    if file in pages:
        place = pages[file]
    elif file.is_relative_to(repository / "docs") and file.suffix in COPIED:
        place = file.relative_to(repository / "docs").as_posix()
    else:
        suffix = ".txt" if file.suffix in SHOWN_AS_TEXT else ""
        place = f"files/{file.relative_to(repository).as_posix()}{suffix}"
        _copy(file, out / place)
    return os.path.relpath(place, os.path.dirname(pages[page]) or ".") + hash_mark + anchor


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
