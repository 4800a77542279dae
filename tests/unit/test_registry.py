"""Encoders, losses and augmentations by name: what is declared, what others add, and what is said of the rest."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from glioma_dist.cli import encoders as encoders_command
from glioma_dist.errors import InputError
from glioma_dist.registry import (
    BrokenEntryError,
    EncoderEntry,
    Registry,
    UnknownNameError,
    augmentations,
    encoders,
    losses,
    sources,
    trackers,
    writers,
)

REPOSITORY = Path(__file__).resolve().parents[2]
ALL = (encoders, losses, augmentations, trackers, sources, writers)
GROUPS = [each.group for each in ALL]
KINDS = [(each, each.names()[0]) for each in ALL]


def fresh(registry: Registry) -> Registry:
    """A registry with the same declarations, to which nothing was added."""
    return Registry(registry.what, registry.group, registry._entry, registry._declarations, prefixes=registry._prefixes)


@dataclass
class Installed:
    """A distribution in a folder, as pip leaves it."""

    folder: Path

    def add(self, name: str, points: str, version: str = "1.2") -> None:
        info = self.folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(points)


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Installed:
    monkeypatch.syspath_prepend(str(tmp_path))
    return Installed(tmp_path)


@pytest.mark.parametrize("registry", ALL, ids=GROUPS)
def test_every_declared_target_is_there(registry):
    for name in registry.names():
        assert callable(registry.load(name)), name


def test_the_names_of_each_family_are_unlike_each_other_and_every_alias_means_one():
    for registry in ALL:
        known = [each for entry in registry.entries() for each in (entry.name, *entry.aliases)]
        own = {entry.name for entry in registry.entries()}
        # legacy_seresnet50 is timm's name, and an alias of one name only.
        assert len(known) == len(set(known))
        assert all(registry.canonical(each) in own for each in known)


@pytest.mark.parametrize(("registry", "name"), KINDS, ids=GROUPS)
def test_a_call_a_decorator_and_a_name_of_a_module_register(registry, name):
    own = fresh(registry)
    own.register("by_name", "collections:OrderedDict")

    @own.register("by_decorator")
    def added() -> None: ...

    assert own.register("by_object", added) is added
    assert own.load("by_name").__name__ == "OrderedDict"
    assert own.load("by_decorator") is added
    assert own.find("by_object").target is added
    assert own.names() == registry.names(), "names() has the package's own only"
    assert {each.name for each in own.entries()} == {*registry.names(), "by_name", "by_decorator", "by_object"}


@pytest.mark.parametrize(("registry", "name"), KINDS, ids=GROUPS)
def test_a_name_that_is_taken_or_cannot_be_used_is_refused(registry, name):
    own = fresh(registry)
    own.register("mine", "collections:OrderedDict")
    own.register("mine", "collections:OrderedDict")  # a cell of a notebook that runs again
    for taken in (name, "mine"):
        with pytest.raises(InputError, match=f"{taken}: the name is taken by {taken}"):
            own.register(taken, "collections:Counter")
    for bad in ("", " ", "a b", "a/b", "timm/x", "../x", "a\n", "é", "-x", "x" * 101):
        with pytest.raises(InputError, match="give a name of letters"):
            own.register(bad, "collections:Counter")
    for target in ("collections", "collections:", ":x", "a b:c", 5):
        with pytest.raises(InputError, match="module:attribute"):
            own.register("other", target)
    with pytest.raises(InputError, match="no such metadata: colour"):
        own.register("other", "collections:Counter", colour=1)


@pytest.mark.parametrize(("registry", "name"), KINDS, ids=GROUPS)
def test_an_unknown_name_is_one_line_with_the_nearest(registry, name):
    own = fresh(registry)
    own.register("something_own", "collections:Counter")
    for typed, meant in ((name + "x", name), ("something_on", "something_own")):
        with pytest.raises(UnknownNameError, match=f"--flag {typed}: unknown; did you mean {meant}?") as error:
            own.find(typed, "--flag")
        assert len(str(error.value)) <= 500
        assert "\n" not in str(error.value)
    with pytest.raises(UnknownNameError) as error:
        own.find("z\n" * 100_000)
    assert len(str(error.value)) <= 500


@pytest.mark.parametrize(("registry", "name"), KINDS, ids=GROUPS)
def test_entry_points_are_found_by_name_and_named_in_lists(registry, name, installed):
    (installed.folder / "outside_package.py").write_text("def thing(*_): return 'made'\nclass Group:\n    x = thing\n")
    installed.add(
        "outside", f"[{registry.group}]\nfrom_outside = outside_package:thing\nnested = outside_package:Group.x\n"
    )
    own = fresh(registry)
    entry = own.find("from_outside")
    assert (entry.target, entry.distribution) == ("outside_package:thing", "outside 1.2")
    assert "outside_package" not in sys.modules
    assert [each.name for each in own.entries()][-2:] == ["from_outside", "nested"]
    assert "outside_package" not in sys.modules, "nothing is imported for a list"
    try:
        assert own.load("from_outside")() == "made"
        assert own.load("nested")() == "made"
    finally:
        sys.modules.pop("outside_package", None)
    others = [each for each in ALL if each is not registry]
    assert all("from_outside" not in [entry.name for entry in fresh(each).entries()] for each in others)


@pytest.mark.parametrize(("registry", "name"), KINDS, ids=GROUPS)
def test_known_names_are_found_without_reading_what_is_installed(registry, name, installed, monkeypatch):
    monkeypatch.setattr("glioma_dist.registry.distributions", lambda: pytest.fail("entry points were read"))
    own = fresh(registry)
    own.register("mine", "collections:Counter")
    assert own.find(name).name == name
    assert own.find("mine").name == "mine"


BROKEN = {
    "a module that is not there": ("no_such_module_x:thing", None, "ModuleNotFoundError"),
    "an attribute that is not there": ("broken_package:other", "thing = 1", "AttributeError"),
    "a fault while it is imported": ("broken_package:thing", "1 / 0", "ZeroDivisionError"),
    "a syntax error": ("broken_package:thing", "def (", "SyntaxError"),
    "a long message": ("broken_package:thing", "raise ValueError('x\\n' * 10000)", "ValueError"),
}


@pytest.mark.parametrize("registry", ALL, ids=GROUPS)
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_entry_point_is_one_line_that_names_the_distribution(registry, kind, installed):
    target, source, error_name = BROKEN[kind]
    if source is not None:
        (installed.folder / "broken_package.py").write_text(source + "\n")
    installed.add("broken-dist", f"[{registry.group}]\nbroken = {target}\n")
    try:
        with pytest.raises(BrokenEntryError) as error:
            fresh(registry).load("broken")
    finally:
        sys.modules.pop("broken_package", None)
    text = str(error.value)
    assert "broken-dist 1.2" in text
    assert error_name in text
    assert "\n" not in text
    assert len(text) <= 500
    assert error.value.exit_code == 2


def test_two_distributions_with_one_name_and_one_with_a_taken_name_are_told(installed, monkeypatch):
    for registry in ALL:
        group = registry.group
        folder = installed.folder / group
        folder.mkdir()
        monkeypatch.syspath_prepend(str(folder))
        here = Installed(folder)
        here.add("first-dist", f"[{group}]\ntwice = a:b\n")
        here.add("second-dist", f"[{group}]\ntwice = c:d\n")
        with pytest.raises(BrokenEntryError, match=r"first-dist 1\.2, second-dist 1\.2"):
            fresh(registry).find("twice")
        (folder / "second-dist-1.2.dist-info" / "entry_points.txt").write_text(
            f"[{group}]\n{registry.names()[0]} = c:d\n"
        )
        own = fresh(registry)
        assert own.find("twice").distribution == "first-dist 1.2"
        assert own.find(registry.names()[0]).distribution is None, "the package's own come first"
        with pytest.raises(BrokenEntryError, match="second-dist"):
            own.entries()


@pytest.mark.parametrize("content", [b"\xff\xfe[glioma_dist.losses", b"[glioma_dist.losses\nx", b"x = y:z\n", b"\0"])
def test_what_other_distributions_hold_stands_in_nobodys_way(content, installed):
    installed.add("good", "[glioma_dist.losses]\ngood = collections:Counter\n")
    installed.add("odd", "")
    (installed.folder / "odd-1.2.dist-info" / "entry_points.txt").write_bytes(content)
    (installed.folder / "empty-3.dist-info").mkdir()
    (installed.folder / "nameless-3.dist-info").mkdir()
    (installed.folder / "nameless-3.dist-info" / "METADATA").write_bytes(b"\xff\xff")
    own = fresh(losses)
    assert own.find("good").distribution == "good 1.2"
    with pytest.raises(UnknownNameError) as error:
        own.find("goood")
    assert "did you mean good?" in str(error.value)


def test_an_entry_point_with_an_odd_name_or_target_is_told_and_not_taken(installed):
    installed.add("odd-dist", "[glioma_dist.losses]\na b = x:y\nmodule_alone = x\nfine = collections:Counter\n")
    own = fresh(losses)
    assert own.find("fine").distribution == "odd-dist 1.2"
    assert len(own.unread()) == 2
    with pytest.raises(UnknownNameError, match="not read: odd-dist"):
        own.find("module_alone")


def test_the_first_copy_on_the_path_counts(installed, tmp_path_factory, monkeypatch):
    installed.add("My_Dist", "[glioma_dist.losses]\nsame = old:x\n", "1.0")
    first = tmp_path_factory.mktemp("first")
    Installed(first).add("my-dist", "[glioma_dist.losses]\nsame = new:x\n", "2.0")
    monkeypatch.syspath_prepend(str(first))
    assert fresh(losses).find("same").target == "new:x"


def test_names_of_timms_models_are_left_to_timm():
    entry = encoders.find("timm/convnext_tiny.fb_in1k")
    assert (entry.name, entry.target) == (
        "timm/convnext_tiny.fb_in1k",
        "glioma_dist.model.encoders.any_timm:AnyTimmEncoder",
    )
    assert not entry.has_spatial_layers
    for name in ("timm/", "timm/../x", "timm/a b", "timm/a/b"):
        with pytest.raises(UnknownNameError):
            encoders.find(name)
    assert "timm/" not in encoders.names()


def test_every_name_is_checked_without_the_large_libraries():
    heavy = ("torch", "transformers", "timm", "albumentations", "numpy")
    code = (
        "import sys\n"
        "from glioma_dist.registry import augmentations, encoders, losses\n"
        "for each in (augmentations, encoders, losses):\n"
        "    each.entries()\n"
        "    try:\n"
        "        each.find('unknown')\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert ended.stdout.split("\n")[:4] == ["UnknownNameError"] * 3 + ["[]"]


def test_no_module_asks_for_an_encoders_family():
    """Nothing outside a family's own modules knows its classes or the beginnings of its names: the contract and the
    registry say what there is to know."""
    own = {"mit.py", "mit_names.py", "mit_weights.py", "transformers_mit.py", "timm_models.py", "timm_names.py"}
    own |= {"any_timm.py", "timm_weights.py"}
    classes = {each.target.partition(":")[2] for each in encoders.entries()} | {"AnyTimmEncoder"}
    found = []
    for path in sorted((REPOSITORY / "glioma_dist").rglob("*.py")):
        if path.name in own or path.parent.name == "scale":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name) and node.id in classes:
                found.append((path.name, node.lineno, node.id))
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("startswith"):
                found += [(path.name, node.lineno, "mit") for arg in node.args if "mit" in ast.unparse(arg)]
            if (
                isinstance(node, ast.Compare)
                and isinstance(node.ops[0], ast.In)
                and isinstance(node.left, ast.Constant)
            ):
                found += [(path.name, node.lineno, node.left.value)] if node.left.value in losses.names() else []
    assert found == []


def test_an_entry_says_what_config_needs():
    assert encoders.find("resnet50").has_spatial_layers
    assert encoders.find("mit_tiny").smp_name is None
    assert encoders.find("gernet_l").smp_name == "tu-gernet_l"
    assert encoders.find("dpn92").smp_name == "dpn92"
    assert augmentations.find("rand-augment").kind == "chain"
    assert EncoderEntry("x", "y:z").family == "own"


def test_declarations_are_light_and_only_declare():
    for registry in ALL:
        for module in registry._declarations:
            tree = ast.parse(Path(import_module(module).__file__).read_text())
            imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            assert imported <= {"glioma_dist.registry", "__future__", "dataclasses", "typing"}, module


def test_the_command_lists_encoders_of_other_distributions_and_those_that_are_broken(installed, monkeypatch, capsys):
    installed.add("outside", "[glioma_dist.encoders]\nfrom_outside = outside_package:thing\n")
    installed.add("odd", "[glioma_dist.encoders]\nmodule_alone = x\n")
    monkeypatch.setattr(encoders_command, "encoders", fresh(encoders))
    encoders_command.run(encoders_command.EncodersConfig())
    said = capsys.readouterr().out
    assert "Also from_outside (outside_package:thing, an entry point of outside 1.2)." in said
    assert [line for line in said.splitlines() if line.startswith("Cannot be used: ") and "odd" in line]


@pytest.mark.parametrize("name", ["timm/", "timm", "timm/../x", "TIMM/resnet18", "timm/hf-hub:a/b", "timm/a[b]"])
def test_a_name_of_timm_that_cannot_be_one_is_answered_with_how_to_write_it(name):
    with pytest.raises(UnknownNameError, match="unknown; write timm/NAME"):
        encoders.find(name)


@pytest.mark.parametrize("name", [None, 3, ("a",)])
def test_a_name_that_is_no_text_cannot_be_registered(name):
    with pytest.raises(InputError, match="give a name of letters"):
        fresh(encoders).register(name, "collections:Counter")
