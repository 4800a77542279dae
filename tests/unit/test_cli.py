"""The program `glioma-dist`, over every command that it registers: names, helps, examples, mistakes, completion."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from helpers import REPOSITORY
from test_paths import required_arguments, words

import glioma_dist
from glioma_dist.cli import program
from glioma_dist.cli.arguments import parse
from glioma_dist.cli.program import COMMANDS
from glioma_dist.config.file import to_dict
from glioma_dist.config.launch_files import FOLDER, RECIPES, launch_file, purposes
from glioma_dist.data.sample import encode_image
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.errors import InputError, one_line
from glioma_dist.registry import sources

PYTHON_WORDS = re.compile(
    r"\b(None|STR|INT|FLOAT|BOOL|True|False|typing|dataclass|tuple|NoneType|Literal|Path)\b|\{None"
)
"""Of Python, not of biology, where a help shows flags, values and defaults."""


def said(function, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of what ends by SystemExit or not at all."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            function(*arguments)
        except SystemExit as end:
            code = end.code or 0
    return code, out.getvalue(), err.getvalue()


def help_of(name: str, monkeypatch, width: int = 110) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = said(program.run, [*name.split(), "--help"])
    assert (code, err) == (0, "")
    return out


def flags_of(kind: type, prefix: str = "--") -> list[str]:
    """All flags of a dataclass, those of dataclasses inside it, too; positional values by their names."""
    found = []
    for field in fields(kind):
        hint = get_type_hints(kind)[field.name]
        dashed = field.name.replace("_", "-")
        if is_dataclass(hint) and hint.__name__.endswith("Config"):
            found += flags_of(hint, f"{prefix}{dashed}.")
        else:
            found.append(prefix + dashed)
    return found


def described_flags(text: str) -> dict[str, str]:
    """Flag of a help -> its text."""
    # Without a terminal there may be no box around them.
    inner = [line.strip("│| ") for line in text.splitlines()]
    found, last = {}, ""
    for line in inner:
        if match := re.match(r"(-h, --help|--[a-z0-9.-]+)", line):
            last = match[1]
            rest = re.split(r"  +", line, maxsplit=1)
            found[last] = rest[1] if len(rest) > 1 else ""
        elif last:
            found[last] += f" {line}"
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_has_a_text_and_config_is_one_of_them(name, monkeypatch):
    text = help_of(name, monkeypatch)
    described = described_flags(text)
    assert described["--config"].strip().startswith("JSON file")
    of_one = {"configs": ["name"], "run-status": ["run"], "verify": ["run"]}
    positional = {"study", "shards", "predictions", *of_one.get(name, [])}
    for flag in flags_of(COMMANDS[name].load().config):
        if flag[2:] in positional:
            assert re.search(rf"^[│| ]+\[?{flag[2:].upper()}\b", text, re.MULTILINE)
            continue
        bare = re.sub(r"\(default: [^)]*\)|\(required\)", "", described[flag]).strip()
        assert len(bare) > 8, f"{name} {flag}: {described[flag]!r}"


@pytest.mark.parametrize("name", COMMANDS)
def test_no_help_shows_a_type_of_python(name, monkeypatch):
    text = help_of(name, monkeypatch)
    assert text.splitlines()[0].startswith(f"usage: glioma-dist {name} ")
    assert PYTHON_WORDS.findall(text) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_says_what_the_command_does_and_ends_with_examples(name, monkeypatch):
    lines = help_of(name, monkeypatch).splitlines()
    assert re.match(r"[A-Z].*\.$", lines[2])
    examples = COMMANDS[name].load().examples
    assert lines[-len(examples) - 1] in ("examples:", "example:")
    assert [line.strip() for line in lines[-len(examples) :]] == list(examples)
    assert 1 <= len(examples) <= 3
    if fields(COMMANDS[name].load().config):
        assert len(examples) >= 2 or name == "merge"


@pytest.mark.parametrize(("name", "example"), [(n, each) for n, c in COMMANDS.items() for each in c.load().examples])
def test_every_example_line_can_be_parsed(name, example, tmp_path, monkeypatch):
    """By what its first words name: the console script, or a launcher with the program. It can be typed wherever the
    package is installed."""
    assert not re.search(r"accelerate_configs/|\w\.py\b", example), "only a clone has these files"
    line = re.sub(r"\$\(glioma-dist configs ([\w.]+)\)", rf"{FOLDER}/\1", example)
    typed = shlex.split(line)
    if typed[0] == "accelerate":
        assert typed[2] == "--quiet", "or accelerate adds a traceback of its own to each line that begins with error:"
        launch = Path(typed[typed.index("--config_file") + 1])
        assert (REPOSITORY / launch).is_file()
        begin = next(number for number, word in enumerate(typed) if word in ("glioma_dist",) or word.endswith(".py"))
        typed = [typed[begin].removesuffix(".py"), *typed[begin + 1 :]]
        typed = typed[1:] if typed[0] == "glioma_dist" else typed
    else:
        assert typed[0] == "glioma-dist"
        typed = typed[1:]
    name = "train" if name == "configs" and typed[0] == "train" else name
    assert " ".join(typed[: len(name.split())]) == name
    rest = typed[len(name.split()) :]
    monkeypatch.chdir(tmp_path)
    if "--config" in rest:
        file = Path(rest[rest.index("--config") + 1])
        file.parent.mkdir(parents=True)
        base = parse(COMMANDS[name].load().config, ["--data.train", "shards/glioma_c6/train"])
        file.write_text(json.dumps(to_dict(base)))
    kind = COMMANDS[name].load().config
    assert isinstance(parse(kind, rest), kind)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_config_file_gives_the_flags_of_every_command(name, tmp_path):
    """What a config says is what its flags say; a flag beside it comes first."""
    kind = COMMANDS[name].load().config
    given = [word for flag, value in required_arguments(kind).items() for word in words(flag, value)]
    given += ["--data.train", "x"] if name == "train" else []
    config = parse(kind, given)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_dict(config)))
    assert parse(kind, ["--config", str(file)]) == config
    changed = [
        (each, getattr(config, each.name))
        for each in fields(kind)
        if each.type == "int" and each.name not in ("seed", "task")
    ]
    for field, value in changed[:1]:
        flag = f"--{field.name.replace('_', '-')}"
        assert getattr(parse(kind, ["--config", str(file), flag, str(value + 1)]), field.name) == value + 1


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistyped_flag_is_one_line_that_names_the_right_one(name):
    kind = COMMANDS[name].load().config
    given = [word for flag, value in required_arguments(kind).items() for word in words(flag, value)]
    for flag in [
        each for each in flags_of(kind) if len(each) > 6 and each[2:] not in ("study", "shards", "predictions")
    ]:
        mistyped = flag[:-2] + flag[-1] + flag[-2] if flag[-1] != flag[-2] else flag + "x"
        with pytest.raises(InputError) as error:
            parse(kind, [*given, mistyped, "1"])
        line = one_line(error.value)
        assert f"unknown flag {mistyped}; did you mean {flag}?" in line, line
        assert len(line) < 200


def test_the_name_of_a_command_that_is_mistyped_is_found():
    for name in COMMANDS:
        *group, last = name.split()
        for mistyped in (last[:-1], last + "x", last[1] + last[0] + last[2:]):
            with pytest.raises(InputError) as error:
                program.run([*group, mistyped, "--out", "x"])
            line = one_line(error.value)
            assert line.startswith(f"unknown command {' '.join([*group, mistyped])}; did you mean {name}?"), line
        if group and last not in COMMANDS:
            with pytest.raises(InputError, match=f"did you mean (.* or )?{name}"):
                program.run([last])
    for typed, meant in (("--versoin", "--version"), ("convert_livecell", "convert livecell"), ("TRAIN", "train")):
        with pytest.raises(InputError, match=f"did you mean {meant}"):
            program.run([typed])
    for typed in ("xyzzy", "check"):
        with pytest.raises(InputError, match=rf"^unknown command {typed} \("):
            program.run([typed])


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("plan --size 64x64 --encoder mit_b3", "unknown flag --encoder; did you mean --model.encoder? (--help"),
        ("plan --size 64x64 --encoder=mit_b3", "unknown flag --encoder; did you mean --model.encoder? (--help"),
        ("train --data.train x --data.encoder mit_b3", "--data.encoder; did you mean --model.encoder?"),
        ("train --data.train x --size 64x64", "--size; did you mean --data.size?"),
        ("train --data.train x --weights 1", "--weights; did you mean --data.weights or --model.weights?"),
        ("train --data.train x --freeze", "--freeze; did you mean --freeze-encoder?"),
        ("train --data.train x --confg x", "--confg; did you mean --config?"),
        ("train --data.train x --rows 3", "unknown flag --rows (--help"),
        (
            "predict --checkpoint x --out y --image z",
            "missing: --images PATH|URL; unknown flag --image; did you mean --i",
        ),
    ],
)
def test_an_unknown_flag_is_answered_by_its_last_part_or_by_what_is_near(typed, words):
    with pytest.raises(InputError) as refused:
        program.run(typed.split())
    assert words in str(refused.value)


@pytest.mark.parametrize("group", ["", "convert", "shards", "bench"])
def test_without_a_command_the_overview_names_all(group):
    typed = [group] if group else []
    code, out, err = said(program.run, typed)
    assert (code, out) == (2, "")
    assert said(program.run, [*typed, "--help"]) == (0, err, "")
    for name, entry in COMMANDS.items():
        assert (f"  {name} " in err) == name.startswith(group), name
        assert (entry.summary in err) == name.startswith(group)
    assert err.rstrip().splitlines()[-1].startswith("  glioma-dist ")


def test_the_version_is_that_of_the_package():
    assert said(program.run, ["--version"]) == (0, f"glioma-dist {glioma_dist.__version__}\n", "")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"glioma-dist": "glioma_dist.cli.program:main"}


def test_no_command_is_lost():
    shards = ["inspect", "index", "verify", "report"]
    groups = {"convert": [*sources.names(), "coco", "folder"], "shards": shards}
    groups |= {"download": ["livecell", "glioma-c6"], "export": ["onnx", "bioimageio"]}
    groups |= {"bench": ["resolution", "predict", "gpu", "scaling", "spatial-parallel"]}
    single = ["train", "evaluate", "predict", "encoders", "plan", "app", "merge", "demo", "reproduce", "configs"]
    single += ["run-status", "growth", "report", "verify"]
    assert set(COMMANDS) == {*single, *(f"{group} {each}" for group, names in groups.items() for each in names)}


OWN_SOURCE = """
from pathlib import Path

import numpy as np

from glioma_dist.data.convert.labelled import by_name


def find(folder, images=None):
    return by_name(folder, images, "list of points", names_of, read_cells)


def names_of(name):
    return [name.removesuffix(".points.txt")] if name.endswith(".points.txt") else []


def read_cells(path, height, width):
    return [[np.array(line.split(), float)] for line in Path(path).read_text().splitlines()]


def nothing(folder, images=None):
    return None
"""


def test_a_source_of_another_distribution_is_a_command(tmp_path):
    """Found by its entry point: run, listed, and one line where it is no source."""
    info = tmp_path / "package" / "own_source-1.0.dist-info"
    info.mkdir(parents=True)
    (info.parent / "own_source.py").write_text(OWN_SOURCE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-source\nVersion: 1.0\n")
    points = "[glioma_dist.sources]\npoints = own_source:find\nnothing = own_source:nothing\n"
    (info / "entry_points.txt").write_text(points)
    (tmp_path / "a.png").write_bytes(encode_image(np.zeros((20, 30), np.uint8)))
    (tmp_path / "a.points.txt").write_text("2 3 9 3 9 8 2 8\n12 3 19 3 19 8 12 8\n")

    def convert(*words) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": f"{info.parent}:{REPOSITORY}"}
        command = [sys.executable, "-m", "glioma_dist", "convert", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    ended = convert("points", "--source", tmp_path, "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    sample = ShardReader(tmp_path / "out" / "all").read(0, 0)
    wanted = np.zeros((20, 30), np.uint8)
    wanted[3:8, 2:9] = wanted[3:8, 12:19] = 1
    np.testing.assert_array_equal(sample.mask, wanted)
    assert sample.metadata["num_cells"] == 2
    ended = convert("nothing", "--source", tmp_path, "--out", tmp_path / "out2")
    assert "returned a NoneType, not a Source" in ended.stderr
    listed = convert("--help").stdout
    assert "convert points" in listed
    assert "Of own-source 1.0." in listed


def test_a_source_is_found_by_its_other_names():
    code, out, _ = said(program.run, ["convert", "fiji", "--help"])
    assert code == 0
    assert "ROIs of Fiji or ImageJ" in out


# Completion, as the shell asks for it.

ASK = """
source {script}
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
COMP_LINE="${{COMP_WORDS[*]}}"; COMP_POINT=${{#COMP_LINE}}
function_name=$(complete -p glioma-dist | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function_name glioma-dist "${{COMP_WORDS[$COMP_CWORD]}}" "${{COMP_WORDS[$((COMP_CWORD - 1))]}}"
printf '%s\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    code, out, err = said(program.run, ["--print-completion", "bash"])
    assert (code, err) == (0, "")
    path = tmp_path_factory.mktemp("completion") / "glioma-dist.bash"
    path.write_text(out)
    return path


@pytest.mark.parametrize(
    ("typed", "among", "not_among"),
    [
        ("glioma-dist ''", {"train", "convert", "shards", "configs"}, {"livecell", "--lr"}),
        ("glioma-dist tr", {"train"}, {"plan"}),
        ("glioma-dist convert ''", {*sources.names(), "coco"}, {"train"}),
        ("glioma-dist train --data.tra", {"--data.train", "--data.transform"}, {"--lr"}),
        ("glioma-dist train --data.transform ''", {"resize", "random-crop"}, set()),
        ("glioma-dist shards inspect --", {"--sheet", "--num-images", "--config"}, {"--licence"}),
        ("glioma-dist bench spatial-parallel --tf", {"--tflop-s"}, set()),
    ],
)
def test_bash_completes_commands_flags_and_values(script, typed, among, not_among):
    asked = ASK.format(script=shlex.quote(str(script)), words=typed)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    ended = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, env={"PATH": path}, check=False)
    offered = {line.strip() for line in ended.stdout.splitlines()}
    assert among <= offered, (offered, ended.stderr)
    assert not not_among & offered


def test_other_shells_are_refused_by_name():
    with pytest.raises(InputError, match="bash, zsh, fish"):
        program.run(["--print-completion", "powershell"])


# The files for accelerate launch.


def test_configs_lists_every_file_with_its_purpose_and_prints_a_path():
    code, out, _ = said(program.run, ["configs"])
    first, *lines = out.splitlines()
    assert code == 0
    assert Path(first) == FOLDER
    files = [path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()]
    files += [f"recipes/{path.name}" for path in RECIPES.iterdir()]
    assert [line.split()[0] for line in lines] == sorted(files, key=lambda name: ("/" in name, name))
    assert said(program.run, ["configs", "recipes/quick"]) == (0, f"{RECIPES / 'quick.yaml'}\n", "")
    assert all(re.match(r"[A-Z][^`]{15,200}\.$", purpose) for purpose in purposes().values()), purposes()
    for name in ("gpu.yaml", "gpu"):
        assert said(program.run, ["configs", name]) == (0, f"{FOLDER / 'gpu.yaml'}\n", "")
    name = "jobs/slurm.sbatch"
    assert said(program.run, ["configs", name]) == (0, f"{FOLDER / name}\n", "")
    with pytest.raises(InputError, match=r"NAME gpus: no such file; there are cpu\.yaml"):
        program.run(["configs", "gpus"])


def test_a_clone_has_them_by_a_short_name_too(monkeypatch, tmp_path):
    short = REPOSITORY / "accelerate_configs"
    assert short.resolve() == FOLDER.resolve()
    monkeypatch.chdir(REPOSITORY)
    assert launch_file("cpu.yaml") == Path("accelerate_configs/cpu.yaml")
    monkeypatch.chdir(tmp_path)
    assert launch_file("cpu.yaml") == FOLDER / "cpu.yaml"


def test_every_default_of_a_command_is_valid():
    """A command with its required flags only is never refused for its own defaults."""
    for name, entry in COMMANDS.items():
        kind = entry.load().config
        given = [word for flag, value in required_arguments(kind).items() for word in words(flag, value)]
        given += ["--data.train", "x"] if name == "train" else []
        assert parse(kind, given) is not None


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_output_that_is_closed_from_the_start_changes_no_exit_code(closed):
    for arguments, code in (("--version", 0), ("no-such-command", 2)):
        line = f"{shlex.quote(sys.executable)} -m glioma_dist {arguments} {closed}"
        ended = subprocess.run(["bash", "-c", line], cwd=REPOSITORY, capture_output=True, text=True)
        assert ended.returncode == code
        assert "Traceback" not in ended.stderr
