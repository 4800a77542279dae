"""Modules import only from lower layers (here: floors), as in the table of docs/architecture.md."""

import ast
import re
from pathlib import Path

import pytest

import glioma_dist

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = "glioma_dist"
MAY_USE_BESIDE = {
    *(("training", "evaluation"), ("inference", "evaluation"), ("training", "report"), ("growth_curves", "report")),
    ("report", "inference"),
    *(("reproduction", "benchmark"), ("__main__", "cli")),
}
SOURCES = sorted((REPOSITORY / PACKAGE).rglob("*.py"))
ON_TOP = [REPOSITORY / name for name in ("train.py", "evaluate.py", "predict.py")] + sorted(
    path for folder in ("tools", "benchmarks") for path in (REPOSITORY / folder).glob("*.py")
)


def read_floors() -> dict[str, int]:
    """Room or module on the floors -> floor, from the table."""
    floors = {}
    for line in (REPOSITORY / "docs" / "architecture.md").read_text().splitlines():
        cells = line.split("|")
        if len(cells) > 3 and re.fullmatch(r" \d+ ", cells[1]):
            for name in re.findall(r"`([a-z_]+)(?:\.py|/)`", cells[2]):
                floors[name] = int(cells[1])
    return floors


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every name that a module imports anywhere in it, in full; `from a import b` gives a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = node.module or ""
            if node.level:
                package = module_name(path).split(".")
                package = package if path.name == "__init__.py" else package[:-1]
                package = package[: len(package) - node.level + 1]
                parent = ".".join([*package, *parent.split(".")] if parent else package)
            found |= {parent} | {f"{parent}.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str:
    return module.split(".")[1]


def offence(importer: str, imported: str, floors: dict[str, int]) -> str | None:
    """Why one module of the package may not import another; None where it may."""
    here, there = room(importer), room(imported)
    if here == there or (here, there) in MAY_USE_BESIDE or floors[there] < floors[here]:
        return None
    if floors[here] == floors[there] == 0:
        return None  # single files; that they import each other in no circle is looked at below
    return f"{importer} (floor {floors[here]}) imports {imported} (floor {floors[there]})"


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Module of the package -> modules of the package that it imports."""
    modules = {module_name(path): path for path in SOURCES if module_name(path) != PACKAGE}
    return {name: (imports(path) & set(modules)) - {name, PACKAGE} for name, path in modules.items()}


def test_the_rule_refuses_what_it_should():
    floors = {"config": 0, "data": 1, "model": 1, "training": 3, "evaluation": 3, "inference": 3}
    allowed = [("training", "data"), ("training", "evaluation"), ("inference", "evaluation"), ("data", "data")]
    refused = [("data", "training"), ("data", "model"), ("evaluation", "training"), ("config", "data")]
    for pairs, expected in ((allowed, True), (refused, False)):
        for here, there in pairs:
            assert (offence(f"{PACKAGE}.{here}.x", f"{PACKAGE}.{there}.y", floors) is None) == expected, (here, there)


def test_every_room_has_a_floor():
    floors = read_floors()
    rooms = {room(module_name(path)) for path in SOURCES if path != REPOSITORY / PACKAGE / "__init__.py"}
    assert rooms <= set(floors)
    assert {path.stem if path.parent == REPOSITORY else path.parent.name for path in ON_TOP} <= set(floors)


def test_the_page_names_every_module_and_none_that_is_gone():
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"\b([a-z][a-z0-9_]*\.py)\b", page))
    modules = {path.name for path in SOURCES} - {"__init__.py", "__main__.py"}
    assert modules - named == set()
    everywhere = {path.name for folder in (PACKAGE, "tests") for path in (REPOSITORY / folder).rglob("*.py")}
    assert named - everywhere - {path.name for path in ON_TOP} == set()


def test_modules_import_from_lower_floors_only(graph):
    floors = read_floors()
    assert sum(map(len, graph.values())) > 20  # the graph is not empty by mistake
    found = [offence(name, other, floors) for name, others in graph.items() for other in others]
    assert [line for line in found if line] == []


def test_no_module_goes_through_the_front_door():
    """`from glioma_dist import train` in a module would be an arrow that the graph does not see."""
    public = {f"{PACKAGE}.{name}" for name in glioma_dist.__all__} - {f"{PACKAGE}.__version__"}
    found = {(module_name(path), name) for path in SOURCES for name in imports(path) if module_name(path) != PACKAGE}
    assert {pair for pair in found if pair[1] in public} == set()


def test_the_package_never_imports_entry_points_or_tools():
    top = {path.stem for path in ON_TOP[:3]} | {"tools", "benchmarks"}
    found = {(module_name(path), name) for path in SOURCES for name in imports(path)}
    assert {pair for pair in found if pair[1].split(".")[0] in top} == set()


def test_entry_points_and_tools_import_each_other_nowhere():
    top = {module_name(path) for path in ON_TOP} | {path.stem for path in ON_TOP}
    assert {(path.name, name) for path in ON_TOP for name in imports(path) if name in top} == set()


def test_no_modules_import_each_other_in_a_circle(graph):
    """Takes away, over and over, the modules that import nothing that is left: what stays stands in a circle."""
    left = dict(graph)
    while free := [name for name, others in left.items() if not others & set(left)]:
        for name in free:
            del left[name]
    assert left == {}


def test_the_page_counts_packages_and_dependencies(graph):
    """A new dependency is a decision: whoever adds one says so on the page."""

    def part(module: str) -> str:
        name = room(module)
        return name if (REPOSITORY / PACKAGE / name).is_dir() else "single files"

    modules = [name for name in graph if room(name) != "__main__"]
    arrows = {(part(a), part(b)) for a in modules for b in graph[a] if part(a) != part(b)}
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    num_parts, num_arrows = map(int, re.search(r"There are (\d+) packages with (\d+) dependencies", text).groups())
    assert (len(set(map(part, modules))), len(arrows)) == (num_parts, num_arrows)
