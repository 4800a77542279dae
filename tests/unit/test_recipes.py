"""YAML files of settings, and the recipes that come with the package: read, refused, and each run at tiny size."""

import pytest
import yaml
from helpers import REPOSITORY, command, rows

from glioma_dist.cli.arguments import parse
from glioma_dist.config import DataConfig, TrainConfig
from glioma_dist.config.file import read_config, to_dict
from glioma_dist.config.launch_files import RECIPES, files, purposes
from glioma_dist.config.yaml_file import read_yaml
from glioma_dist.distributed.launcher import check_launch_file
from glioma_dist.errors import InputError

NAMES = sorted(path.name for path in RECIPES.glob("*.yaml"))


def test_a_clone_has_the_recipes_by_a_short_name():
    assert NAMES == ["article.yaml", "many_gpus.yaml", "own_data.yaml", "quick.yaml", "small_gpu.yaml"]
    assert (REPOSITORY / "recipes").resolve() == RECIPES.resolve()
    assert [name for name in purposes() if name.startswith("recipes/")] == [f"recipes/{name}" for name in NAMES]
    assert all(files()[f"recipes/{name}"].is_file() for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_read_as_pyyaml_reads_it(name):
    """But for numbers such as 1e-4, which are texts in YAML 1.1."""
    ours, theirs = read_yaml(RECIPES / name), yaml.safe_load((RECIPES / name).read_text())
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key] == (float(value) if key == "lr" else value)


def test_the_article_s_recipe_is_the_default():
    assert read_config(TrainConfig, RECIPES / "article.yaml") == TrainConfig()


def test_a_small_gpu_has_the_article_s_results():
    small = to_dict(read_config(TrainConfig, RECIPES / "small_gpu.yaml"))
    default = to_dict(TrainConfig())
    assert {name for name in default if default[name] != small[name]} == {"scale"}


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_trains_at_tiny_size(shards, tmp_path, name):
    ended = command(
        "train",
        *("--config", RECIPES / name, "--data.train", shards / "train", "--data.val", shards / "val"),
        *("--out", tmp_path / "run", "--model.encoder", "mit_tiny", "--model.init", "random"),
        *("--model.decoder-channels", 8, 8, 8, 8, 8, "--data.size", "64x64", "--data.workers", 0),
        *("--batch-size", 4, "--max-steps", 2),
    )
    assert ended.exit_code == 0, ended.stderr
    assert [row["step"] for row in rows(tmp_path / "run") if "split" not in row] == [1, 2]


def write(folder, text: str):
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_flags_override_a_recipe_and_what_it_lacks_is_default(tmp_path):
    path = write(tmp_path, "lr: 3e-4\ndata:\n  train: [a, b]\n  size: 96x64\nscale:\n  channels_last: off\n")
    config = parse(TrainConfig, ["--config", str(path), "--data.size", "32x32"])
    assert (config.lr, config.data.train, config.scale.channels_last) == (3e-4, ("a", "b"), "off")
    assert str(config.data.size) == "32x32"
    assert config.data.workers == DataConfig.workers
    assert config.epochs == TrainConfig.epochs


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1.5E3", 1500.0), (".5", 0.5), ("010", 10), ("-3", -3), ("0x1f", "0x1f"), ("1:30", "1:30"),
        ("off", "off"), ("yes", "yes"), ("true", True), ("null", None), ("~", None), ("", None), ("[]", []),
        ("2026-01-01", "2026-01-01"), ("'1e-4'", "1e-4"), ("704x512", "704x512"), ("1_000", "1_000"),
    ],
)  # fmt: skip
def test_plain_values_are_those_of_yaml_1_2(tmp_path, text, value):
    found = read_yaml(write(tmp_path, f"a: {text}"))["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch-size: 3", r"unknown setting 'batch-size'; did you mean batch_size\?"),
        ("data:\n  sise: 64x64", r"mine\.yaml: data: unknown setting 'sise'; did you mean size\?"),
        ("lr: [1, 2]", r"mine\.yaml: lr: cannot use \[1, 2\], expected float"),
        ("lr: 1e-4\nlr: 1e-3", r"mine\.yaml, line 2: .*lr is there twice"),
        ("a: &x [1]\nb: *x", r"mine\.yaml, line 2: .*aliases are not read"),
        ("lr: !!python/object/apply:os.system [true]", r"mine\.yaml, line 1: .*could not determine a constructor"),
        ("lr: {", r"mine\.yaml, line 1: is no YAML"),
        ("- lr", r"mine\.yaml: expected an object of settings, found list"),
        ("", r"mine\.yaml: has no settings"),
        ("a: " + "[" * 5000, "nested too deeply|is no YAML"),
        ("lr: \udc80".encode("utf-8", "surrogateescape").decode("latin-1") + "\x00", "is no YAML"),
        ("? [a, b]\n: 1", r"mine\.yaml, line 1: .*a name must be a text"),
        ("lr: 1e-4\n1: 2", r"mine\.yaml, line 2: .*a name must be a text"),
        ("~: 2", r"mine\.yaml, line 1: .*a name must be a text"),
        ("data:\n  true: 2", r"mine\.yaml, line 2: .*a name must be a text"),
        ("1e-4: 2", r"mine\.yaml, line 1: .*a name must be a text"),
        ("lr: !!bool maybe", r"mine\.yaml: .*'maybe' is neither true nor false"),
        ("lr: !!int [1]", r"mine\.yaml, line 1: is no YAML"),
        ("lr: !!timestamp x", r"mine\.yaml, line 1: .*could not determine a constructor"),
        ("lr: " + "1" * 5000, r"mine\.yaml: is no YAML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as error:
        read_config(TrainConfig, write(tmp_path, text))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 500


@pytest.mark.parametrize("value", ["!!bool maybe", "!!timestamp x", "2020-99-99", "0x_", "1" * 5000, "!!int _"])
def test_a_launch_file_that_pyyaml_ends_in_an_error_of_its_own_on_is_refused(tmp_path, value):
    with pytest.raises(InputError, match=r"--launch .*mine\.yaml: is no file of accelerate's settings"):
        check_launch_file("--launch", write(tmp_path, f"compute_environment: {value}"))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.yaml.*give the config\.json of a run"):
        read_config(TrainConfig, tmp_path / "nothing.yaml")
