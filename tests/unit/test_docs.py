"""The pages: every link leads somewhere, generated files are there because a page links to them, and the tables are
what the reports make of the committed figures."""

import json
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

from glioma_dist.report.resolution import csv_text, markdown_text

REPOSITORY = Path(__file__).resolve().parents[2]
SKIPPED = {".git", ".venv", "runs", "build"}
LINK = re.compile(
    r"\]\(\s*<?([^)<>\s]+)>?[^)]*\)|<(?:img|a)\b[^>]*?(?:src|href)=[\"']([^\"']+)|^ {0,3}\[[^\]^]+\]: *<?([^\s>]+)",
    re.MULTILINE,
)
CODE_BLOCK = re.compile(r"^( *)(```+|~~~+).*?^\1\2", re.DOTALL | re.MULTILINE)


def tracked(pattern: str) -> list[Path]:
    """Files of the repository; without git, of the folder."""
    command = ["git", "-C", str(REPOSITORY), "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, check=False)
    if listed.returncode == 0:
        paths = [REPOSITORY / name for name in listed.stdout.decode().split("\0") if name]
    else:
        paths = [path for path in REPOSITORY.rglob("*") if not SKIPPED & set(path.relative_to(REPOSITORY).parts)]
    return sorted(path for path in paths if path.is_file() and path.match(pattern))


PAGES = tracked("*.md")


def links(text: str) -> list[str]:
    """Targets of a page's links and pictures, except in code."""
    text = re.sub(r"`[^`\n]*`", "", CODE_BLOCK.sub("", text))
    return ["".join(found) for found in LINK.findall(text)]


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ +(.+?) *#*$", CODE_BLOCK.sub("", page.read_text()), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if name in found else name)
        found[name] = found.get(name, 0) + 1
    return names


def fault(page: Path, target: str) -> str | None:
    """Why a link leads nowhere; None where it leads somewhere, or out of the repository."""
    if re.match(r"[a-z][a-z0-9+.-]*:", target):
        return None
    path, _, anchor = unquote(target).partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.exists() or not file.is_relative_to(REPOSITORY):
        return "no such file"
    return f"no heading {anchor}" if anchor and file.suffix == ".md" and anchor not in anchors(file) else None


def test_the_check_finds_what_leads_nowhere(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "REPOSITORY", tmp_path)
    page = tmp_path / "a.md"
    page.write_text(
        "# One `two`: three\n# Same\n# Same\n[a](b.md) [c](a.md#one-two-three) [d](#same-1) ![e](e%20f.png) "
        "[f](https://x.y/z) `[g](g.md)`\n```\n[h](h.md)\n# five\n```\n[i](a.md#four) <img src='j.png'> "
        "[k](/etc/passwd) [l](#five)\n[m]: n.md\n"
    )
    (tmp_path / "e f.png").touch()
    assert [target for target in links(page.read_text()) if fault(page, target)] == [
        "b.md",
        "a.md#four",
        "j.png",
        "/etc/passwd",
        "#five",
        "n.md",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_of_a_page_leads_somewhere(page):
    assert {target: why for target in links(page.read_text()) if (why := fault(page, target))} == {}


def test_every_page_and_generated_file_is_linked():
    """Pages that a reader cannot reach, plots and tables that no page shows."""
    reached = {
        (page.parent / unquote(target).partition("#")[0]).resolve()
        for page in PAGES
        for target in links(page.read_text())
    }
    folders = ("docs/studies/**/*", "docs/pictures/*")
    kept = {path for folder in folders for path in REPOSITORY.glob(folder) if path.is_file()}
    pages = {page for page in PAGES if page.is_relative_to(REPOSITORY / "docs")}
    assert sorted(str(path.relative_to(REPOSITORY)) for path in (kept | pages) - reached) == []


@pytest.mark.parametrize(
    "rows", sorted((REPOSITORY / "docs" / "benchmarks").glob("*/resolution.json")), ids=lambda path: path.parent.name
)
def test_the_resolution_tables_are_those_of_the_committed_figures(rows):
    content = json.loads(rows.read_text())
    assert rows.with_suffix(".md").read_text() == markdown_text(content)
    assert rows.with_suffix(".csv").read_text() == csv_text(content)
