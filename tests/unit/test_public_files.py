"""The files of a public project: they say the same as the package, and every command in them exists."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import glioma_dist
from glioma_dist.data.convert.sources import GLIOMA_C6_LICENCE, LIVECELL_LICENCE
from glioma_dist.model.pretrained.mit_weights import IMAGENET_LICENCE

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))


def text(name: str) -> str:
    return (REPOSITORY / name).read_text()


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0]


def test_the_citation_is_of_this_version_and_names_the_article_and_the_data():
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["version"] == glioma_dist.__version__
    assert citation["license"] == PROJECT["license"]
    found = str(citation["references"])
    for identifier in ("CO-1609", "s41592-021-01249-6", "2511.07286", "zenodo.17352019"):
        assert identifier in found
    assert all(each["authors"] and each["title"] for each in citation["references"])


def test_the_licence_is_the_one_that_the_package_states():
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in text("LICENSE")
    assert "Version 2.0, January 2004" in text("LICENSE")
    assert set(PROJECT["license-files"]) == {"LICENSE"}


@pytest.mark.parametrize(
    "requirement",
    [
        *PROJECT["dependencies"],
        *(
            each
            for name in ("cloud", "export", "bench", "formats", "lite0")
            for each in PROJECT["optional-dependencies"][name]
        ),
    ],
    ids=name_of,
)
def test_the_licence_of_every_library_is_listed(requirement):
    assert re.search(rf"(?<![\w-]){re.escape(name_of(requirement))}(?![\w-])", text("docs/licences.md"))


def test_the_page_lists_the_lowest_version_of_every_library():
    table = text("docs/installation.md").partition("## Lowest versions")[2].partition("What was run")[0]
    listed = {}
    for row in re.findall(r"^\| ([^|]+) \| (\d[^|]*) \|", table, re.MULTILINE):
        names, versions = (re.sub("^`.*`: ", "", cell).split(", ") for cell in row)
        listed |= dict(zip(names, versions, strict=True))
    extras = PROJECT["optional-dependencies"]
    requirements = [*PROJECT["dependencies"], *extras["cloud"], *extras["export"], *extras["formats"]]
    requirements += extras["microscope"] + extras["bioimageio"]
    lowest = dict(each.partition(",")[0].split(">=") for each in requirements if ">=" in each)
    assert listed == lowest | {"Python": PROJECT["requires-python"].removeprefix(">=")}


@pytest.mark.parametrize("licence", [LIVECELL_LICENCE, GLIOMA_C6_LICENCE, IMAGENET_LICENCE])
def test_the_page_states_the_licences_that_the_program_records(licence):
    names = re.findall(r"CC BY-NC(?:-ND)? 4\.0|NVIDIA Source Code License for SegFormer", licence)
    assert names
    assert all(name in text("docs/licences.md") for name in names)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_every_target_of_a_workflow_is_in_the_makefile(workflow):
    content = yaml.safe_load(workflow.read_text())
    commands = [step["run"] for job in content["jobs"].values() for step in job["steps"] if "run" in step]
    targets = {name for command in commands for name in re.findall(r"\bmake ([\w-]+)", command)}
    assert targets
    assert targets <= set(re.findall(r"^([\w-]+):", text("Makefile"), re.MULTILINE))


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md"])
def test_every_target_that_a_page_names_is_in_the_makefile(page):
    targets = set(re.findall(r"[`^]make ([a-z][\w-]*)|^make ([a-z][\w-]*)", text(page), re.MULTILINE))
    named = {one or other for one, other in targets}
    assert named
    assert named <= set(re.findall(r"^([\w-]+):", text("Makefile"), re.MULTILINE))


def test_files_that_a_page_of_the_project_names_are_there():
    named = re.findall(r"`((?:glioma_dist|examples|tests|docs)/[\w/.-]+)`", text("CONTRIBUTING.md"))
    assert named
    assert [name for name in named if not (REPOSITORY / name).exists()] == []
