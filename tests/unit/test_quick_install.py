"""`make setup` installs with uv from where pip is told to look, and with pip where uv cannot."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import REPOSITORY

NAME, VERSION = "drawn_cells_of_the_tests", "1.5"
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    """A package index in a folder: one page, and one wheel of one module beside it."""
    page = tmp_path_factory.mktemp("index") / "simple" / NAME.replace("_", "-")
    page.mkdir(parents=True)
    wheel = page / f"{NAME}-{VERSION}-py3-none-any.whl"
    info = f"{NAME}-{VERSION}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{NAME}.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{NAME}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    (page / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    return page.parent


def install(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Into a folder, with none of the user's settings."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    ours |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "UV_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, ".ci/install.py", *arguments, "--target", str(tmp_path / "site"), "--no-deps", NAME]
    return subprocess.run(
        command, cwd=REPOSITORY, env=ours | environment, capture_output=True, text=True, timeout=300, check=False
    )


def is_installed(tmp_path: Path) -> bool:
    return (tmp_path / "site" / f"{NAME}.py").is_file()


SETTINGS = {
    "pip.conf": ("[global]\nindex-url = {url}\n", {}),
    "pip.conf, one more index": ("[global]\nindex-url = file:///nowhere\nextra-index-url =\n    {url}\n", {}),
    "pip.conf, of install alone": ("[install]\nindex-url = {url}\n", {}),
    "pip.conf, a folder": ("[global]\nno-index = true\nfind-links = {page}\n", {}),
    "PIP_INDEX_URL": ("[global]\nindex-url = file:///nowhere\n", {"PIP_INDEX_URL": "{url}"}),
    "PIP_FIND_LINKS": ("", {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "{page}"}),
    "uv's own": ("", {"UV_DEFAULT_INDEX": "{url}"}),
    "uv's own before pip's": ("[global]\nindex-url = file:///nowhere\n", {"UV_INDEX_URL": "{url}"}),
}


@pytest.mark.skipif(UV is None, reason="uv could not be installed here: make setup has taken pip")
@pytest.mark.parametrize("settings", SETTINGS)
def test_uv_looks_where_pip_or_uv_is_told_to(tmp_path, index, settings):
    conf, variables = SETTINGS[settings]
    places = {"url": index.as_uri(), "page": str(index / NAME.replace("_", "-"))}
    (tmp_path / "pip.conf").write_text(conf.format(**places))
    variables = {name: value.format(**places) for name, value in variables.items()}
    ended = install(tmp_path, PIP_CONFIG_FILE=str(tmp_path / "pip.conf"), **variables)
    assert ended.returncode == 0, ended.stderr
    assert is_installed(tmp_path)
    assert "pip does it" not in ended.stderr


def test_pip_takes_over_where_uv_cannot(tmp_path, index):
    ended = install(tmp_path, PIP_INDEX_URL=index.as_uri(), UV_INDEX_STRATEGY="none-such")
    assert ended.returncode == 0, ended.stderr
    assert is_installed(tmp_path)
    assert "pip does it" in ended.stderr


@pytest.mark.parametrize(("wanted", "taken"), [(VERSION, True), ("9", False)])
def test_versions_are_those_of_the_constraints(tmp_path, index, wanted, taken):
    (tmp_path / "constraints.txt").write_text(f"{NAME}=={wanted}\n")
    ended = install(tmp_path, "--constraint", str(tmp_path / "constraints.txt"), PIP_INDEX_URL=index.as_uri())
    assert (ended.returncode == 0) == taken, ended.stderr
    assert is_installed(tmp_path) == taken
