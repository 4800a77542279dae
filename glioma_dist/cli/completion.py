"""Shell completion of commands and flags, made by tyro."""

from __future__ import annotations

from typing import Annotated, Any, Union

import tyro

from glioma_dist.cli.help import help_registry


def print_completion(program: str, commands: dict[str, tuple[type, str]], shell: str) -> None:
    """Print the script for `shell`. commands: name (one or two words) -> dataclass of its flags, summary."""
    tree: dict[str, Any] = {}
    for name, (kind, summary) in commands.items():
        *groups, last = name.split()
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[last] = (kind, summary)
    try:
        registry = help_registry(*(kind for kind, _ in commands.values()))
        tyro.cli(_union(tree), prog=program, args=["--tyro-print-completion", shell], registry=registry)
    except SystemExit as end:
        if end.code:
            raise


def _union(tree: dict[str, Any]) -> Any:
    """Return a union of subcommands for tyro; a group of commands is a nested union."""
    arms = []
    for name, found in tree.items():
        if isinstance(found, dict):
            arms.append(Annotated[_union(found), tyro.conf.subcommand(name)])
        else:
            kind, summary = found
            arms.append(Annotated[kind, tyro.conf.subcommand(name, description=summary)])
    return Union[tuple(arms)]  # noqa: UP007 (the list is made here)
