"""Paths of every command: found in the commands' own flags, and refused where no path of this machine is meant."""

import ast
import dataclasses
import functools
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from helpers import REPOSITORY

from glioma_dist.cli import arguments as command_line
from glioma_dist.cli.program import COMMANDS
from glioma_dist.config import EvaluateConfig, PredictConfig, TrainConfig
from glioma_dist.config.file import read_config, to_dict
from glioma_dist.config.paths import URL_SCHEMES, WRITABLE_SCHEMES, Url, check_path, path_flags, path_or_url
from glioma_dist.data.shards.urls import SCHEMES
from glioma_dist.errors import InputError, one_line

NO_PATHS = {
    "--recipes": "names of recipes",
    "--memory-budget": "a number of bytes",
    "--scale.memory-budget": "a number of bytes",
    "--url": "an http(s) URL, checked by download.addresses",
    "--model.encoder": "a name",
    "--network": "a name",
    "--contributor": "a name",
    "--model.init-sha256": "a checksum",
    "--encoder": "a name",
    "--checks": "names",
    "--track": "names",
    "--classes": "names",
    "--model.classes": "names",
    "--ignore": "names",
    "--instances": "yes or no; of `shards index`, an ending of names in a tar",
    "--estimated-encoder": "a name",
    "--encoders": "names",
    "--data.cache-size": "a number with a unit",
    "--gpu-memory": "a number with a unit",
    "--group-by": "a regular expression, or a word",
    "--imagenet": "NAME=FILE; looked for when the study is planned",
    "--image": "an ending of names in a tar",
    "--mask": "an ending of names in a tar",
    "--authors": "names of people",
    "--dataset": "a name",
    "--loss": "a name",
    "--data.augment": "a name",
    "--split": "a name",
    "--source-splits": "names",
    "--licence": "words of a licence, which can be a URL",
    "--group-pattern": "a regular expression",
    "--pattern": "a regular expression",
    "--suffix": "an ending of names",
    "--categories": "names",
    "--name": "a name of a file of the package, or of a model",
    "--channel": "a number or a name",
    "--memory": "a number of bytes",
    "--write": "names of formats",
    "--time": "numbers",
    "--page": "numbers",
}
"""Flags that take text which is no path. A new flag of text is either here or is marked as a path."""
REFUSED = (
    "s3://b/k",
    "gs://b/k",
    "file:///tmp/x",
    "http://h/x",
    "S3://b/k",
    "s3:/b/k",
    "pipe:cat x",
    "a::s3://b/k",
    "~/x",
)
EMPTY = ("", "  ")


def benchmark_configs() -> dict[str, str]:
    """Script of benchmarks/ -> the name of the dataclass of its flags, which it reads by `parse`, once."""
    found = {}
    for script in sorted((REPOSITORY / "benchmarks").glob("*.py")):
        calls = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call)]
        assert not [call for call in calls if ast.unparse(call.func) in ("tyro.cli", "argparse.ArgumentParser")]
        names = [call.args[0].id for call in calls if getattr(call.func, "id", None) == "parse"]
        assert len(names) <= 1, script
        found |= {f"benchmarks/{script.name}": name for name in names}
    return found


BENCHMARKS = benchmark_configs()
NAMES = (*COMMANDS, *BENCHMARKS)


@functools.cache
def target_of(name: str) -> type:
    """The dataclass of the flags of a command of the program, or of a script of benchmarks/."""
    if name in COMMANDS:
        return COMMANDS[name].load().config
    spec = importlib.util.spec_from_file_location(f"command_{Path(name).stem}", REPOSITORY / name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, BENCHMARKS[name])


def text_flags(kind: Any, prefix: str = "--") -> set[str]:
    """Every flag that takes any text."""
    found = set()
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            found |= text_flags(hint, f"{prefix}{name.replace('_', '-')}.")
        elif hint is str or "str" in [getattr(each, "__name__", "") for each in getattr(hint, "__args__", ())]:
            found.add(prefix + name.replace("_", "-"))
    return found


WITHOUT_PATHS = (
    "benchmarks/convert.py",
    "benchmarks/count_steps.py",
    "benchmarks/memory_budget.py",
    "benchmarks/overlap.py",
    "benchmarks/reproducible.py",
    "benchmarks/sampler_cost.py",
    "benchmarks/saving.py",
    "encoders",
    "configs",
)


def test_only_the_program_and_the_benchmarks_read_command_lines():
    """What else calls tyro or argparse would not refuse what `parse` refuses."""
    scripts = [
        *REPOSITORY.glob("*.py"),
        *(REPOSITORY / "tools").glob("*.py"),
        *(REPOSITORY / "glioma_dist").rglob("*.py"),
    ]
    for script in scripts:
        if script.parent == REPOSITORY / "glioma_dist" / "cli":
            continue
        nodes = [node.func for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call)]
        names = {ast.unparse(node).rpartition(".")[2] for node in nodes}
        assert not {"cli", "ArgumentParser", "parse_args"} & names, script


@pytest.mark.parametrize("name", NAMES)
def test_every_path_of_every_command_refuses_what_is_no_path(name, capsys):
    """Values as a shell hands them over. Each command stops before it has done anything at all."""
    target = target_of(name)
    flags = path_flags(target)
    required = required_arguments(target)
    assert flags or name in WITHOUT_PATHS
    for flag, takes_urls in flags.items():
        for value in (*REFUSED, *EMPTY):
            if takes_urls and value.partition("://")[0] in URL_SCHEMES:
                continue
            others = [part for other, text in required.items() if other != flag for part in words(other, text)]
            given = [f"{flag}={value}"] if flag.startswith("--") else [value]
            with pytest.raises(InputError) as error:
                command_line.parse(target, [*others, *given])
            line = one_line(error.value)
            assert flag in line or value in EMPTY, (flag, value, line)
            assert len(line) <= 500
    assert capsys.readouterr() == ("", "")


def words(flag: str, value: str) -> list[str]:
    return [flag, value] if flag.startswith("--") else [value]


def required_arguments(target: Any) -> dict[str, str]:
    """A value for each flag that has no default."""
    known = {"out": "x.html", "sizes": "64x64", "study": "table1", "shards": "x", "size": "64x64"}
    missing = [
        field.name
        for field in dataclasses.fields(target)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    positional = {"study", "shards", "run", "predictions"}
    flags = {name: name.upper() if name in positional else f"--{name.replace('_', '-')}" for name in missing}
    return {flag: known.get(name, "x") for name, flag in flags.items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_that_takes_text_is_known_for_a_path_or_for_none(name):
    target = target_of(name)
    paths = {flag if flag.startswith("--") else f"--{flag.lower()}" for flag in path_flags(target)}
    assert text_flags(target) - paths - NO_PATHS.keys() == set()


@pytest.mark.parametrize("kind", [TrainConfig, EvaluateConfig, PredictConfig])
def test_a_config_file_is_checked_like_flags(kind, tmp_path):
    """Zero bytes can come from a file only."""
    required = {"checkpoint": "c", "data": "d", "images": "i", "out": "o"}
    for value in (*REFUSED, "a\0b", ""):
        for field, hint in get_type_hints(kind).items():
            if hint is not Path and "Path" not in str(hint):
                continue
            takes_urls = path_flags(kind).get(f"--{field.replace('_', '-')}", False)
            if takes_urls and value.partition("://")[0] in (WRITABLE_SCHEMES if field == "out" else URL_SCHEMES):
                continue
            fields = {each.name for each in dataclasses.fields(kind)}
            values = {name: text for name, text in required.items() if name in fields}
            values["data"] = {"train": ["d"]} if kind is TrainConfig else values.get("data")
            values = {name: each for name, each in (values | {field: value}).items() if each is not None}
            file = tmp_path / "config.json"
            file.write_text(json.dumps(values))
            with pytest.raises(InputError, match=field):
                command_line.parse(kind, ["--config", str(file)])


def test_the_name_of_a_config_file_is_a_path_too():
    with pytest.raises(InputError, match=r"--config s3:/b/c\.json: s3: is not supported"):
        command_line.parse(TrainConfig, ["--config", "s3://b/c.json"])


@pytest.mark.parametrize(
    "path",
    [
        "a:b/c",
        "plate 1/a:1.tif",
        "./s3:/x",
        "x~",
        "./~/x",
        "k\udcf6ln",
        "a\nb",
        "-x",
        "C:x",
        "plates/**/*.tif",
        "a::b",
    ],
)
def test_odd_paths_that_are_paths_are_taken(path):
    check_path("--out", path)


@pytest.mark.parametrize("path", ["x" * 256, "x/" * 2048 + "x", "é" * 128])
def test_paths_that_no_file_system_has_are_refused(path):
    with pytest.raises(InputError, match="is too long") as error:
        check_path("--out", path)
    assert len(one_line(error.value)) <= 500


def test_no_secret_of_a_url_is_shown():
    for url in ("s3://user:word@bucket/x", "https://bucket/x?signature=word"):
        with pytest.raises(InputError) as error:
            check_path("--out", url)
        assert "word" not in str(error.value)


WITH_SECRETS = ("s3://user:word@bucket/x", "s3://word@bucket/x", "s3://bucket/x?signature=word", "gs://bucket/x#word")


@pytest.mark.parametrize("name", NAMES)
def test_no_flag_of_any_command_takes_a_url_with_a_secret(name):
    """Where it takes URLs, too: they are written to config.json."""
    target = target_of(name)
    required = required_arguments(target)
    for flag in path_flags(target):
        for value in WITH_SECRETS:
            others = [part for other, text in required.items() if other != flag for part in words(other, text)]
            given = [f"{flag}={value}"] if flag.startswith("--") else [value]
            with pytest.raises(InputError) as error:
                command_line.parse(target, [*others, *given])
            assert "word" not in str(error.value), (flag, value)


@pytest.mark.parametrize(
    ("kind", "required"),
    [
        (TrainConfig, {"--data.train": "x"}),
        (EvaluateConfig, {"--checkpoint": "s3://b/run/best", "--data": "s3://b/val"}),
        (PredictConfig, {"--checkpoint": "s3://b/run/best", "--images": "s3://b/plates/*.tif"}),
    ],
)
def test_a_url_stays_a_url_through_flags_and_files(kind, required, tmp_path):
    """As a path it would lose a slash, and become a folder called s3:."""
    given = [part for each in required.items() for part in each]
    config = command_line.parse(kind, [*given, "--out", "s3://b/run"])
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    again = command_line.parse(kind, ["--config", str(tmp_path / "config.json")])
    assert again == config
    for name in ("out", "checkpoint"):
        if hasattr(again, name):
            assert isinstance(getattr(again, name), Url)
            assert getattr(again, name).startswith("s3://b/run")


@pytest.mark.parametrize("url", ["s3://", "s3:///run", "gs://b\n/x", "s3://a::gs://b"])
def test_a_url_without_a_bucket_is_refused(url):
    with pytest.raises(InputError, match="--out"):
        command_line.parse(TrainConfig, ["--out", url])


@pytest.mark.parametrize("url", ["http://host/run", "https://host/run", "file:///tmp/run", "ftp://host/run"])
@pytest.mark.parametrize("kind", [TrainConfig, EvaluateConfig, PredictConfig])
def test_what_cannot_be_written_to_is_refused_in_one_line(kind, url):
    required = {TrainConfig: [], EvaluateConfig: ["--checkpoint=c", "--data=d"]}.get(
        kind, ["--checkpoint=c", "--images=i"]
    )
    with pytest.raises(InputError, match=r"^--out .*: cannot write to this kind of URL; .*s3://, gs://, az://, hf://$"):
        command_line.parse(kind, [*required, "--out", url])


TAKE_URLS = {
    "run-status": {"RUN": "read"},
    "verify": {"--train": "read"},
    "train": {"--data.train": "read", "--data.val": "read", "--model.init": "read", "--out": "written"},
    "evaluate": {"--checkpoint": "read", "--data": "read", "--out": "written"},
    "growth": {"PREDICTIONS": "read", "--out": "written"},
    "predict": {"--checkpoint": "read", "--images": "read", "--out": "written"},
    "app": {"--checkpoint": "read"},
    "export onnx": {"--checkpoint": "read", "--out": "written"},
    "export bioimageio": {"--checkpoint": "read", "--out": "written"},
    "report": {"PREDICTIONS": "read", "--out": "written"},
    "shards inspect": {"SHARDS": "read"},
    "shards verify": {"SHARDS": "read"},
    "shards report": {"SHARDS": "read"},
    "plan": {"--model.init": "not looked at"},
}
"""All flags that take URLs. test_remote_run.py, test_remote_files.py and test_object_store.py give URLs to those that
are read and written, and look whether a folder called s3: comes to be."""


def test_every_flag_that_takes_urls_is_known():
    found = {name: {flag for flag, takes_urls in path_flags(target_of(name)).items() if takes_urls} for name in NAMES}
    assert {name: flags for name, flags in found.items() if flags} == {
        name: set(flags) for name, flags in TAKE_URLS.items()
    }


def test_a_url_has_the_parts_of_a_path():
    url = path_or_url("s3://bucket/plates/a.b.tif")
    assert isinstance(url, Url)
    assert (url.name, url.stem, url.suffix, url.parent.name) == ("a.b.tif", "a.b", ".tif", "plates")
    assert url.parent / "c" == "s3://bucket/plates/c"
    assert path_or_url("./s3://x") == Path("s3:/x")
    assert path_or_url("a/b://c") == Path("a/b:/c")


def test_the_schemes_are_those_that_shards_are_read_from():
    assert URL_SCHEMES == SCHEMES


def test_flags_without_an_effect_are_named(capsys):
    given = ["--data.train", "x", "--data.crop-side", "0.2", "0.4", "--data.num-ops", "3", "--eval-every", "5"]
    command_line.parse(TrainConfig, given)
    said = capsys.readouterr().out
    for flag in ("--data.crop-side", "--data.num-ops", "--eval-every"):
        assert f"no effect: {flag}" in said
    command_line.parse(TrainConfig, [*given, "--data.transform", "random-resized-crop", "--data.val", "y"])
    said = capsys.readouterr().out
    assert "crop-side" not in said
    assert "eval-every" not in said
    command_line.parse(TrainConfig, ["--data.train", "x"])
    assert capsys.readouterr().out == ""


def test_a_config_without_paths_still_reads_back(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(to_dict(TrainConfig())))
    assert read_config(TrainConfig, tmp_path / "c.json") == TrainConfig()


@pytest.mark.parametrize(
    ("name", "given", "named"),
    [
        ("shards inspect", "x --num-images 3", {"--num-images"}),
        ("shards inspect", "x --num-images 3 --sheet s.png", set()),
        ("bench resolution", "--sizes 64x64 --max-megapixels 3 --out nowhere", {"--max-megapixels"}),
        ("plan", "--size 64x64 --model.init imagenet", {"--model.init"}),
        ("plan", "--size 64x64", set()),
    ],
)
def test_flags_without_an_effect_are_named_by_commands_too(name, given, named, capsys):
    command_line.parse(target_of(name), given.split())
    said = [line.split()[2].rstrip(":") for line in capsys.readouterr().out.splitlines()]
    assert set(said) == named
