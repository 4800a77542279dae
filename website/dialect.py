"""Lists as Python-Markdown reads them, from lists as GitHub reads them.

GitHub begins a list below a line of text, and takes the width of an item's mark as the indentation of what belongs to
the item. Python-Markdown needs an empty line before the list, and four spaces.
"""

from __future__ import annotations

import re

FENCE = re.compile(r" *(```+|~~~+)")
ITEM = re.compile(r"( *)([-*+] +|\d+\. +)(?=\S)")
INDENTATION = 4
"""Spaces for each level of a list, in Python-Markdown."""


def for_python_markdown(text: str) -> str:
    """Return a page whose lists Python-Markdown renders as GitHub does. Code stays as it is."""
    lines: list[str] = []
    open_items: list[int] = []  # the column at which the text of each enclosing item begins
    fence, shift, before = "", 0, ""
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip(" "))
        mark = FENCE.match(line)
        if fence:
            lines.append(" " * shift + line if line.strip() else line)
            fence = "" if mark and mark[1].startswith(fence) else fence
            before = line
            continue
        item = ITEM.match(line)
        if not line.strip():
            lines.append(line)
        else:
            if item or not before.strip():  # a line directly below text of an item belongs to the item
                while open_items and indent < open_items[-1]:
                    open_items.pop()
            if item and before.strip() and not _begins_with_item(lines):
                lines.append("")
            owner = open_items[-1] if open_items else 0
            shift = INDENTATION * len(open_items) - owner if indent >= owner else 0
            lines.append(" " * shift + line)
            if item:
                open_items.append(indent + len(item[2]))
        if mark:
            fence = mark[1]
        before = line
    return "\n".join([*lines, ""])


def _begins_with_item(lines: list[str]) -> bool:
    """Whether the paragraph at the end of `lines` is the first one of an item."""
    for line in reversed(lines):
        if not line.strip() or FENCE.match(line):
            return False
        if ITEM.match(line):
            return True
    return False
