"""Each name of the package is used by the package: what only tests use belongs to them."""

import ast
import re
from collections.abc import Iterator
from functools import cache

from helpers import REPOSITORY

SOURCES = [
    *(path for folder in ("glioma_dist", "tools", "benchmarks") for path in (REPOSITORY / folder).rglob("*.py")),
    *(REPOSITORY / f"{name}.py" for name in ("train", "evaluate", "predict")),
]
SHARED_WITH_TESTS = "benchmarks/faults/"
TARGET = re.compile(r"(?:.*:)?(\w+)")
"""A name in a string: `module:name`, as registries and commands have it, or the name alone, as of a public one."""
CODE = re.compile(r".*from glioma_dist\.\S+ import .*", re.DOTALL)
"""A string that is code of another process."""


def defined_in(tree: ast.Module) -> Iterator[str]:
    """Functions, classes and constants of a module; a function that a decorator registers is used by what it is in."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) or (isinstance(node, ast.FunctionDef) and not node.decorator_list):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def is_export(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"


def used_in(tree: ast.Module) -> Iterator[str]:
    """Names that code reads. To import a name is no use of it."""
    no_use = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    no_use |= {id(name) for node in tree.body if is_export(node) for name in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in no_use:
            if CODE.fullmatch(node.value):
                yield from re.findall(r"\w+", node.value)
            elif found := TARGET.fullmatch(node.value):
                yield found[1]


@cache
def names_of(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """What a source defines, and what it uses."""
    tree = ast.parse(text)
    return frozenset(defined_in(tree)), frozenset(used_in(tree))


def unused(sources: dict[str, str]) -> list[str]:
    """File and name of what no source uses. sources: file -> its text."""
    used = frozenset().union(*(names_of(text)[1] for text in sources.values()))
    return sorted(
        f"{file}: {name}"
        for file, text in sources.items()
        for name in names_of(text)[0]
        if name not in used and not name.startswith("__")
    )


def test_no_name_is_there_for_tests_alone():
    found = unused({str(path.relative_to(REPOSITORY)): path.read_text() for path in SOURCES})
    manifest = (REPOSITORY / "glioma_dist/app/napari.yaml").read_text()  # napari calls what it names
    named = {
        f"glioma_dist/app/napari.py: {name}" for name in re.findall(r"python_name: glioma_dist\.\S+:(\w+)", manifest)
    }
    assert named
    assert [name for name in found if not name.startswith(SHARED_WITH_TESTS) and name not in named] == []


def test_what_faults_the_benchmarks_and_the_tests_share_is_used():
    paths = [*SOURCES, *(REPOSITORY / "tests").rglob("*.py")]
    found = unused({str(path.relative_to(REPOSITORY)): path.read_text() for path in paths})
    assert [name for name in found if name.startswith(SHARED_WITH_TESTS)] == []


def test_the_scan_sees_what_nothing_uses():
    code = 'import b\nSIGNS = (1,)\nLIMIT: int = 2\n"""LIMIT"""\n\ndef help():\n    return b.told\n'
    other = 'from a import SIGNS\nHOMES = {"x": "a:help"}\nprint(HOMES)\ntold = 1\n'
    assert unused({"a.py": code, "b.py": other}) == ["a.py: LIMIT", "a.py: SIGNS"]
