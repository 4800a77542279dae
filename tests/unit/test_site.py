"""The documentation site, without its builder: what is collected, what is generated, and its navigation."""

import re
import sys
from itertools import pairwise
from urllib.parse import unquote

import pytest
import yaml
from helpers import REPOSITORY
from test_cli import flags_of, help_of
from test_docs import links

import glioma_dist
from glioma_dist.cli.program import COMMANDS

sys.path.insert(0, str(REPOSITORY / "website"))
import api_page
import build_site
import command_pages
import site_pages
from dialect import for_python_markdown

CONFIG = "mkdocs.yml"
PROGRAM = re.compile(
    r"(?:^|accelerate launch .*?|python )(?:glioma-dist|-m glioma_dist|(train|evaluate|predict)\.py)(?= |$)(.*)"
)
"""A command of this program in a line of code: its name, where a script has it, and the rest."""


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_of_a_command_says_of_each_flag_what_help_says(name, monkeypatch):
    """Name, text and default, as tyro prints them; no flag more than there."""
    lines = [line.strip("│| ") for line in help_of(name, monkeypatch).splitlines()]
    told = one_line(" ".join(line for line in lines if not re.match(r"[╭╰─+-]{3}", line)))
    flags = [flag for _, _, group in command_pages.flag_groups(COMMANDS[name].load().config) for flag in group]
    for flag in flags:
        default = {"": "", "required": " (required)"}.get(flag.default, f" (default: {flag.default})")
        values = r"\S*(?: \S+){0,6}?"  # the help has {a,b} where the page has a|b
        assert re.search(rf"{re.escape(flag.name)}{values} {re.escape(flag.text + default)}", told), flag
    first_words = {found[1] for line in lines if (found := re.match(r"(--[a-z][a-z0-9.-]*[a-z0-9])(?=,? |$)", line))}
    assert first_words <= {flag.name.partition(",")[0] for flag in flags}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_and_example_is_on_the_page_of_its_command(name):
    page = command_pages.command_page(name)
    shown = {word.strip("`,") for word in re.findall(r"^`\S+", page, re.MULTILINE)}
    for flag in [*flags_of(COMMANDS[name].load().config), "--config"]:
        assert flag in shown or flag[2:].upper() in shown, flag
    for example in COMMANDS[name].load().examples:
        assert one_line(example) in one_line(page.replace("\\\n", ""))
    assert max(map(len, re.findall(r"^```\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[0].splitlines())) < 100


def test_every_command_is_in_the_overview_and_has_a_page():
    overview = command_pages.overview_page()
    for flag in ("-h, --help", "-V, --version", "--print-completion"):
        assert f"\n`{flag}`\n:   " in overview
    generated = site_pages.generated_pages()
    for name, entry in COMMANDS.items():
        assert f"[{name}]({command_pages.page_name(name)}) | {entry.summary} |" in overview
        assert generated[f"reference/commands/{command_pages.page_name(name)}"]().startswith(f"# glioma-dist {name}\n")


def test_every_public_name_is_on_the_page_of_the_api():
    named = [name for names in api_page.GROUPS.values() for name in names]
    assert sorted([*named, "__version__"]) == sorted(glioma_dist.__all__)
    assert len(re.findall(r"^::: glioma_dist\.[\w.]+$", api_page.api_page(), re.MULTILINE)) == len(named)


def test_the_navigation_has_every_page_once():
    assert site_pages.navigation_faults() == []


def test_a_page_that_the_navigation_lacks_is_named(tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("docs/training.md", "docs/new.md", CONFIG):
        (tmp_path / name).touch()
    content = yaml.safe_load((REPOSITORY / CONFIG).read_text())
    content["nav"] += [{"Again": "training.md"}]
    (tmp_path / CONFIG).write_text(yaml.safe_dump(content))
    faults = site_pages.navigation_faults(tmp_path)
    assert "new.md is missing from the navigation in mkdocs.yml" in faults
    assert "memory.md, named in mkdocs.yml, does not exist" in faults
    assert "mkdocs.yml names training.md twice" in faults


def test_every_link_of_the_collected_pages_stays_in_the_site(tmp_path):
    site_pages.collect(tmp_path)
    pages = sorted(tmp_path.rglob("*.md"))
    assert len(pages) == len(site_pages.page_places()) + len(site_pages.generated_pages())
    broken = [
        f"{page.relative_to(tmp_path)}: {target}"
        for page in pages
        for target in links(page.read_text())
        if not re.match(r"[a-z][a-z0-9+.-]*:|#", target)
        and not (page.parent / unquote(target).partition("#")[0]).resolve().is_file()
    ]
    assert broken == []


def test_links_are_moved_with_their_pages_and_code_is_not(tmp_path):
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    for name in site_pages.OUTSIDE_DOCS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# A page\n")
    (tmp_path / "LICENSE").write_text("the licence")
    (tmp_path / "docs" / "a.png").touch()
    (tmp_path / "docs" / "README.md").write_text("# Top\n")
    page = tmp_path / "docs" / "deep" / "page.md"
    page.write_text(
        "[r](../../README.md#a-page) [l](../../LICENSE) ![p](../a.png) [s](../../shards/README.md) [o](#here)\n"
        "[w](https://x.y/z.md) [i](../README.md) `[c](../../README.md)`\n```\n[c](../../README.md)\n```\n"
    )
    site_pages.collect(tmp_path / "out", tmp_path)
    assert (tmp_path / "out" / "deep" / "page.md").read_text() == (
        "[r](../index.md#a-page) [l](../files/LICENSE.txt) ![p](../a.png) [s](../shards.md) [o](#here)\n"
        "[w](https://x.y/z.md) [i](../index.md) `[c](../../README.md)`\n```\n[c](../../README.md)\n```\n"
    )
    assert (tmp_path / "out" / "files" / "LICENSE.txt").read_text() == "the licence"
    page.write_text("[x](nowhere.md)\n")
    with pytest.raises(site_pages.BrokenLinkError, match=r"docs/deep/page\.md: nowhere\.md"):
        site_pages.collect(tmp_path / "out", tmp_path)


@pytest.mark.parametrize(
    ("github", "python_markdown"),
    [
        ("text\n- a\n- b\n", "text\n\n- a\n- b\n"),
        ("text\n\n- a\n  more\n- b\n", "text\n\n- a\n    more\n- b\n"),
        ("1. a\n\n   second\n\nend\n", "1. a\n\n    second\n\nend\n"),
        ("- a\n  - b\n    more\n\nend\n", "- a\n    - b\n        more\n\nend\n"),
        ("- a\n\n  ```\n  - c\n\n    d\n  ```\n- b\n", "- a\n\n    ```\n    - c\n\n      d\n    ```\n\n- b\n"),
        ("- a\n\n  more\n- b\n", "- a\n\n    more\n\n- b\n"),
        ("```\ntext\n- a\n```\n- b\n", "```\ntext\n- a\n```\n\n- b\n"),
        ("    code\n\n- a\nlazy\n- b\n", "    code\n\n- a\nlazy\n- b\n"),
        ("| a |\n|---|\n| - |\n", "| a |\n|---|\n| - |\n"),
    ],
)
def test_lists_are_made_those_of_python_markdown(github, python_markdown):
    assert for_python_markdown(github) == python_markdown


@pytest.mark.parametrize("page", site_pages.page_places(), ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_no_number_at_the_end_of_a_sentence_begins_a_list(page):
    """ "... between 0 and\n1. The ...": GitHub, too, makes an item of it."""
    text = re.sub(r"^( *)(```+|~~~+).*?^\1\2", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = text.splitlines()
    taken = [line for before, line in pairwise(lines) if re.match(r"\d+\. ", line) and re.match(r"[^\s#|\d-]", before)]
    assert [line for line in taken if not re.match(r"1\. [A-Z`*]", line) or not text.count("\n2. ")] == []


def test_markdown_that_was_not_rendered_is_found(tmp_path):
    (tmp_path / "a.html").write_text(
        "<p>text\n- one\n</p><pre>\n- code</pre><p>a\n<em>b</em>\n| c |</p><p>fine - x</p>"
    )
    assert build_site.unrendered(tmp_path) == ["a.html: not rendered: - one", "a.html: not rendered: | c |"]


def commands_of(text: str) -> list[str]:
    """Commands of this program on a page: lines of code, joined where `\\` ends one, and pieces of code in a line."""
    blocks = [found[3] for found in re.findall(r"^( *)(```+|~~~+)(\w*)\n(.*?)^\1\2", text, re.DOTALL | re.MULTILINE)]
    inline = re.findall(r"`([^`]+)`", re.sub(r"^( *)(```+|~~~+).*?^\1\2", "", text, flags=re.DOTALL | re.MULTILINE))
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n *", "", block).splitlines()]
    pieces = [re.sub(r"\s+", " ", each) for each in inline]
    return [each for each in (*lines, *pieces) if PROGRAM.search(each)]


def unknown_words(command: str) -> list[str]:
    """Flags and names of commands that the program does not have."""
    found = PROGRAM.search(command)
    words = re.sub(r"'[^']*'|\s#.*|[<>|)(].*", " ", f"{found[1] or ''} {found[2]}").split()
    if not words or words[0].startswith(("-", "COMMAND", "…")):
        return []
    names = [name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS]
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    if not names:
        return [] if words[0] in groups else [words[0]]
    known = {*flags_of(COMMANDS[names[0]].load().config), "--config", "--help"}
    typed = [word.partition("=")[0].rstrip(",.;:…") for word in words if re.match(r"--[a-z]", word)]
    return [flag for flag in typed if flag.replace(".no-", ".").replace("--no-", "--") not in known]


@pytest.mark.parametrize("page", site_pages.page_places(), ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_every_command_and_flag_of_a_page_is_one_of_the_program(page):
    assert {each: words for each in commands_of(page.read_text()) if (words := unknown_words(each))} == {}


def test_a_flag_and_a_command_that_are_gone_are_found():
    page = (
        "`glioma-dist train --rows 2`\n```\naccelerate launch --quiet x.yaml train.py \\\n    --lr 1 --gone 3 --out …\n"
        "glioma-dist fly --x\nglioma-dist convert folder --images a\n```\n`python -m glioma_dist train --epochs 2`"
    )
    assert [unknown_words(each) for each in commands_of(page)] == [["--gone"], ["fly"], [], ["--rows"], []]
