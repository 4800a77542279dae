"""A missing library of an extra is one line with a command that installs it: into a clone, and beside a wheel."""

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from fsspec.registry import _registry
from helpers import REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from glioma_dist import extras
from glioma_dist.cli import export
from glioma_dist.config.benchmark import ResolutionConfig
from glioma_dist.config.inference import check_formats
from glioma_dist.config.plan import PlanConfig
from glioma_dist.config.train import check_trackers
from glioma_dist.data.images.microscope import FORMATS, require_library
from glioma_dist.data.images.ome_zarr import OmeZarr
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.errors import InputError
from glioma_dist.size import Size

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
REQUIREMENTS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PACKAGE = export.BioimageioConfig(Path("t98g-small"), str(REPOSITORY / "README.md"), Path("model.zip"))
ASKING: dict[str, tuple[str, str, Callable]] = {
    "plan": ("bench", "segmentation_models_pytorch", lambda: PlanConfig((Size(64, 64),), smp=True).validate()),
    "bench": (
        "bench",
        "segmentation_models_pytorch",
        lambda: ResolutionConfig((Size(64, 64),), baselines=("smp",)).validate(),
    ),
    **{
        f"--images a{suffix}": (
            "microscope",
            kind.library,
            partial(require_library, f"a{suffix}", f"--images a{suffix}"),
        )
        for suffix, kind in FORMATS.items()
    },
    "--images a.zarr": ("formats", "zarr", lambda: OmeZarr("a.zarr", None, "yx").read()),
    "export": ("export", "onnx", lambda: export.check_onnx(export.OnnxConfig(Path("best"), Path("x.onnx")))),
    "export, run": (
        "export",
        "onnxruntime",
        lambda: export.check_onnx(export.OnnxConfig(Path("best"), Path("x.onnx"))),
    ),
    **{
        f"package, {library}": ("bioimageio", library, lambda: export.check_bioimageio(PACKAGE))
        for library in ("bioimageio.core", "onnx", "onnxruntime")
    },
    "https": ("cloud", "aiohttp", lambda: ShardReader("https://host/shards/train")),
    "s3": ("cloud", "s3fs", lambda: ShardReader("s3://bucket/shards/train")),
    "gs": ("cloud", "gcsfs", lambda: ShardReader("gs://bucket/shards/train")),
    **{
        f"--track {name}": (name, name, partial(check_trackers, (name,)))
        for name in ("tensorboard", "wandb", "mlflow", "trackio")
    },
    "--write imagej": ("formats", "roifile", partial(check_formats, ("mask", "imagej"))),
    "--write ome-zarr": ("formats", "zarr", partial(check_formats, ("ome-zarr",))),
    "az": ("cloud", "adlfs", lambda: ShardReader("az://container/shards/train")),
}
"""Extra, the library of it that is missing, and what asks for it."""
SLOW = ("tensorboard", "mlflow", "trackio", "results")


@pytest.mark.parametrize("name", ASKING)
def test_the_message_names_the_library_and_the_command(name, monkeypatch):
    extra, library, ask = ASKING[name]
    monkeypatch.setitem(sys.modules, library, None)  # which Python takes for missing
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    monkeypatch.delitem(_registry, name, raising=False)  # known since another test
    with pytest.raises(InputError) as caught:
        ask()
    message = str(caught.value)
    assert library in message
    assert message.endswith(f"; run {extras.install_command(extra)}")
    assert "\n" not in message
    assert len(message) <= 500


def test_every_extra_is_the_projects_and_its_libraries_are_asked_for():
    assert extras.LIBRARIES.keys() <= REQUIREMENTS.keys()
    for extra, libraries in extras.LIBRARIES.items():
        listed = {re.match(r"[\w.-]+", each)[0].replace("-", "_") for each in REQUIREMENTS[extra]}
        assert set(libraries) <= listed
        assert {library for asked, library, _ in ASKING.values() if asked == extra} | {"fsspec"} >= set(libraries)


def test_no_other_command_is_told():
    told = {
        command
        for folder in ("glioma_dist", "examples", "benchmarks")
        for path in (REPOSITORY / folder).rglob("*.py")
        for command in re.findall(r"pip install '[^']*\[[^']*'", path.read_text())
    }
    allowed = {f"pip install 'glioma-dist[{extra}]'" for extra in REQUIREMENTS}
    assert {each for each in told if "{" not in each} <= allowed


def draw_wheel(folder: Path, name: str, version: str) -> None:
    """A wheel of nothing, for pip to find."""
    name = name.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        extra = "Provides-Extra: server\n" if name == "moto" else ""
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{extra}")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    """Wheels of all that pyproject.toml asks for, each of its lowest version; none of the project itself."""
    folder = tmp_path_factory.mktemp("wheels")
    for requirement in (*PROJECT["dependencies"], *(each for listed in REQUIREMENTS.values() for each in listed)):
        name, version = re.match(r"([\w.-]+?)(?:\[\w+\])?[>=]=([\w.]+)", requirement).groups()
        draw_wheel(folder, name, version)
    return folder


@pytest.mark.parametrize(
    "extra",
    # Of the trackers, which have an extra each, one stands for all.
    [pytest.param(each, marks=pytest.mark.slow if each in SLOW else ()) for each in extras.LIBRARIES],
)
@pytest.mark.parametrize("source", ["a wheel", "a clone"])
def test_pip_takes_the_command_where_no_index_has_the_project(source, extra, wheels, tmp_path):
    """What pip leaves of an installation: `dist-info`, and for a clone where it lies."""
    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    info = site / "glioma_dist-0.1.0.dist-info"
    info.mkdir()
    lines = [f"Requires-Dist: {each}" for each in PROJECT["dependencies"]]
    for name, listed in REQUIREMENTS.items():
        lines += [f"Provides-Extra: {name}", *(f'Requires-Dist: {each}; extra == "{name}"' for each in listed)]
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", "Name: glioma-dist", "Version: 0.1.0", *lines]))
    (info / "INSTALLER").write_text("pip")
    (info / "RECORD").write_text("")
    if source == "a clone":
        where = f'{{"url": "{REPOSITORY.as_uri()}", "dir_info": {{"editable": true}}}}'
        (info / "direct_url.json").write_text(where)
    command = extras.install_command(extra)
    target = re.fullmatch(r"pip install '(.*)'", command)[1]
    pip = [sys.executable, "-m", "pip", "--python", str(tmp_path / "env" / "bin" / "python"), "install"]
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHONPATH"))}
    ended = subprocess.run(
        [*pip, "--dry-run", "--no-index", "--find-links", str(wheels), target],
        env=ours | {"PIP_CONFIG_FILE": os.devnull},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    (would,) = [line for line in ended.stdout.splitlines() if line.startswith("Would install")]
    for library in extras.LIBRARIES[extra]:
        assert f" {library.replace('_', '-')}-" in would.replace("_", "-")
    assert "glioma" not in would


def test_a_clone_that_is_not_installed_is_named_by_its_folder(monkeypatch):
    monkeypatch.setattr(extras, "PROJECT", "a-project-that-nobody-has-installed")
    folder, extra = re.fullmatch(r"pip install '(.*)\[(\w+)\]'", extras.install_command("export")).groups()
    assert extra == "export"
    assert (Path(folder) / "pyproject.toml").samefile(REPOSITORY / "pyproject.toml")


VERSIONS = dict(
    line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)
"""Those that CI installs."""


@pytest.mark.parametrize("extra", ["", *REQUIREMENTS])
def test_the_versions_of_ci_are_those_that_an_extra_allows(extra):
    """One that bounds a version below CI's cannot be installed with it."""
    named = {canonicalize_name(name): version for name, version in VERSIONS.items()}
    for each in map(Requirement, REQUIREMENTS[extra] if extra else PROJECT["dependencies"]):
        name = canonicalize_name(each.name)
        assert name not in named or each.specifier.contains(named[name]), each
