"""Settings: read, checked, written, compared."""

import dataclasses
import json
import math
from dataclasses import fields
from pathlib import Path

import pytest

from glioma_dist.cli.arguments import parse
from glioma_dist.cli.configs import ConfigsConfig
from glioma_dist.cli.encoders import EncodersConfig
from glioma_dist.config import (
    COST_FIELDS,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    PredictConfig,
    ScaleConfig,
    TrainConfig,
)
from glioma_dist.config.benchmark import ResolutionConfig
from glioma_dist.config.file import checked, differences, from_dict, to_dict
from glioma_dist.config.gpu_benchmarks import ScalingConfig
from glioma_dist.config.plan import PlanConfig
from glioma_dist.config.reproduction import ReproduceConfig
from glioma_dist.errors import InputError
from glioma_dist.model.encoders.mit_names import MIT_SHAPES
from glioma_dist.model.encoders.timm_models import TIMM_MODELS
from glioma_dist.registry import encoders
from glioma_dist.size import Size

ARTICLES_NAMES = (
    *("DenseNet169", "DPN92", "EfficientNet-b5", "InceptionV4", "MiT-B3", "MobileNetV2", "ResNet50", "ResNeXt50 32x4d"),
    *("SE-ResNet50", "SE-ResNeXt50 32x4d", "GERNet-L", "RegNetX-064", "Res2Net50 26w 4s", "ResNeSt50d", "VGG19"),
    "Xception",
)
OUR_NAMES = (
    *("densenet169", "dpn92", "efficientnet_b5", "inceptionv4", "mit_b3", "mobilenet_v2", "resnet50"),
    *("resnext50_32x4d", "se_resnet50", "se_resnext50_32x4d", "gernet_l", "regnetx_064", "res2net50_26w_4s"),
    *("resnest50d", "vgg19", "xception"),
)
TRAIN = ["--data.train", "shards/x"]


def check_line(error: pytest.ExceptionInfo, *fragments: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 5), (5, 0), (-3, 4), (4, -3)])
def test_a_size_of_no_pixel_is_refused_in_python_too(width, height):
    with pytest.raises(InputError, match="give a width and a height of 1 pixel or more"):
        Size(width, height)


@pytest.mark.parametrize(("text", "size"), [("1472x1120", (1472, 1120)), (" 1x9 ", (1, 9)), ("100000x2", (100000, 2))])
def test_a_size_is_width_then_height(text, size):
    assert (Size.parse(text).width, Size.parse(text).height) == size
    assert Size.parse(str(Size.parse(text))) == Size.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "512",
        "x",
        "512x",
        "x512",
        "0x5",
        "5x0",
        "-5x5",
        "5X5",
        "5*5",
        "5x5x5",
        "5.0x5",
        "5 x 5",
        "1000000x1",
        "five",
        "5x5\n5",
    ],
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError) as error:
        Size.parse(text)
    check_line(error, "WIDTHxHEIGHT")


def test_the_command_line_reaches_every_kind_of_field():
    config = parse(
        TrainConfig,
        [
            *TRAIN,
            "--data.size",
            "1472x1120",
            "--data.transform",
            "random-crop",
            "--data.augment",
            "flips",
            "sharpen",
            "--data.crop-side",
            "0.5",
            "0.6",
            "--model.encoder",
            "mit_b0",
            "--lr",
            "1e-3",
            "--model.decoder-channels",
            "5",
            "4",
            "3",
            "2",
            "1",
            "--batch-size",
            "8",
            "--max-steps",
            "7",
            "--out",
            "runs/y",
            "--resume",
            "never",
            "--loss",
            "dice+bce",
        ],
    )
    assert config.data == DataConfig(
        train=Path("shards/x"),
        size=Size(1472, 1120),
        transform="random-crop",
        augment=("flips", "sharpen"),
        crop_side=(0.5, 0.6),
    )
    assert config.model == ModelConfig(encoder="mit_b0", decoder_channels=(5, 4, 3, 2, 1))
    assert (config.lr, config.batch_size, config.max_steps, config.out) == (1e-3, 8, 7, Path("runs/y"))
    assert (config.resume, config.loss, config.seed) == ("never", "dice+bce", 0)


@pytest.mark.parametrize("spelling", [["--config", "{}"], ["--config={}"]])
def test_flags_override_the_config_file(tmp_path, spelling):
    file = tmp_path / "config.json"
    written = TrainConfig(data=DataConfig(train=Path("a"), size=Size(64, 32), augment=("flips",)), lr=0.5, max_steps=3)
    file.write_text(json.dumps(to_dict(written)))
    flags = [part.format(file) for part in spelling]
    assert parse(TrainConfig, flags) == written
    assert parse(TrainConfig, ["--lr", "0.25", *flags, "--data.train", "b"]) == dataclasses.replace(
        written, lr=0.25, data=dataclasses.replace(written.data, train=Path("b"))
    )


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        TrainConfig(
            data=DataConfig(
                train=Path("a/b"), val=Path("c"), size=Size(3, 4), crop_side=(0.1, 1.0), augment=("contrast", "flips")
            ),
            model=ModelConfig("mit_b5", decoder_channels=(1, 2, 3, 4, 5)),
            max_steps=9,
            eval_every=2,
            patience=1,
            save_every=5,
            lr=0.1,
            out=Path("o"),
        ),
        EvaluateConfig(Path("c"), "d", Size(1, 2), None, Path("o.json")),
        PredictConfig(Path("c"), "*.tif", Path("o"), Size(8, 9), 0.25),
    ],
    ids=lambda config: type(config).__name__,
)
def test_a_config_survives_json(config):
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_a_config_of_one_folder_as_it_was_written_before_is_still_read():
    values = to_dict(TrainConfig(data=DataConfig(train="a/b")))
    values["data"]["train"] = "a/b"
    for name in ("weights", "cache", "cache_size", "cache_in_memory"):
        del values["data"][name]
    assert from_dict(TrainConfig, values) == TrainConfig(data=DataConfig(train=("a/b",)))
    values["data"]["train"] = None
    assert from_dict(TrainConfig, values).data.train == ()


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"train": ("a", "")}, "empty name"),
        ({"train": ("a", "a")}, "name each once"),
        ({"train": ("a", "b"), "weights": (1.0,)}, "one for each of the 2 --data.train"),
        ({"weights": (1.0, 2.0)}, "one for each of the 1"),
        ({"train": ("a", "b"), "weights": (1.0, 0.0)}, "greater than 0"),
        ({"train": ("a", "b"), "weights": (1.0, math.nan)}, "greater than 0"),
        ({"cache_size": "50"}, "--data.cache-size 50: "),
        ({"cache_size": "0GB"}, "for example 50GB"),
        ({"cache_size": "-1GB"}, "for example 50GB"),
    ],
)
def test_sources_and_cache_are_checked(fields, fragment):
    with pytest.raises(InputError) as error:
        DataConfig(**{"train": ("a",), **fields}).validate()
    check_line(error, fragment)


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("50GB", 50 * 10**9), ("1.5 MB", 1_500_000), ("2GiB", 2**31), ("10kB", 10**4), ("7B", 7)]
)
def test_the_size_of_the_cache_is_a_number_of_bytes(text, num_bytes):
    assert DataConfig(cache_size=text).cache_bytes == num_bytes


def test_several_sources_and_urls_reach_the_config():
    flags = ["--data.train", "a", "s3://b/c", "--data.weights", "0.8", "0.2", "--data.val", "https://h/v//x"]
    data = parse(TrainConfig, [*flags, "--data.cache", "c", "--data.cache-size", "1GB", "--data.cache-in-memory"]).data
    assert (data.train, data.weights, data.val) == (("a", "s3://b/c"), (0.8, 0.2), "https://h/v//x")
    assert (data.cache, data.cache_bytes, data.cache_in_memory) == (Path("c"), 10**9, True)


def test_a_written_config_holds_texts_and_lists_only():
    values = to_dict(TrainConfig(data=DataConfig(train=Path("a"), augment=("flips",))))
    assert (values["data"]["size"], values["data"]["train"], values["data"]["augment"]) == ("704x512", ["a"], ["flips"])
    assert values["max_steps"] is None


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("mit_b9", "mit_b"),
        ("mitb3", "mit_b3"),
        ("b3", "mit_b3"),
        ("resnet34", "resnet50"),
    ],
)
def test_an_unknown_encoder_is_answered_with_the_nearest(typed, meant):
    with pytest.raises(InputError) as error:
        parse(TrainConfig, [*TRAIN, "--model.encoder", typed])
    check_line(error, f"--model.encoder {typed}", f"did you mean {meant}", *encoders.names())


@pytest.mark.parametrize("typed", ["unet", "x", "vit", "x" * 1000])
def test_an_encoder_that_is_like_none_is_answered_with_where_all_are(typed):
    with pytest.raises(InputError) as error:
        parse(TrainConfig, [*TRAIN, "--model.encoder", typed])
    check_line(error, "unknown; known: mit_tiny", *encoders.names(), "timm/NAME; `glioma-dist encoders` lists them")
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *zip(ARTICLES_NAMES, OUR_NAMES, strict=True),
        ("efficientnet-b5", "efficientnet_b5"),
        ("ResNet-50", "resnet50"),
        ("ResNeXt-50 32x4d", "resnext50_32x4d"),
        ("tu-tf_efficientnet_lite0", "efficientnet_lite0"),
        ("timm-gernet_l", "gernet_l"),
        ("timm-regnetx_064", "regnetx_064"),
        ("timm-res2net50_26w_4s", "res2net50_26w_4s"),
        ("timm-resnest50d", "resnest50d"),
        ("tu-resnest50d", "resnest50d"),
        ("inception_v4", "inceptionv4"),
        ("MIT_TINY", "mit_tiny"),
    ],
)
def test_encoders_are_known_by_the_names_of_others(written, meant):
    config = parse(TrainConfig, [*TRAIN, "--model.encoder", written])
    assert config.model.encoder == meant
    assert to_dict(config)["model"]["encoder"] == meant


def test_a_name_of_another_network_is_no_alias():
    """timm's own seresnet50 strides elsewhere, its efficientnet_b5 pads otherwise."""
    for name in ("seresnet50", "timm-efficientnet-b5", "tu-efficientnet_b5", "tu-vgg19"):
        with pytest.raises(InputError, match="unknown"):
            ModelConfig(encoder=name).validate()


def test_weights_are_for_imagenet_only(tmp_path):
    ModelConfig(init="imagenet", weights=tmp_path / "x.pth").validate()
    with pytest.raises(InputError, match=r"--model\.weights .*x\.pth: is for --model\.init imagenet, not for random"):
        ModelConfig(weights=tmp_path / "x.pth").validate()


def test_every_known_encoder_can_be_built():
    assert set(encoders.names()) == {*MIT_SHAPES, *TIMM_MODELS}


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--data.size", "512"], "'512' is not a size"),
        (["--data.crop-side", "0", "0.5"], "--data.crop-side"),
        (["--data.crop-side", "0.6", "0.5"], "--data.crop-side"),
        (["--data.crop-side", "0.6", "1.1"], "--data.crop-side"),
        (["--data.crop-side", "nan", "0.5"], "--data.crop-side"),
        (["--data.workers", "-1"], "--data.workers -1"),
        (["--data.augment", "flips", "flips"], "--data.augment"),
        (["--model.decoder-channels", "1", "2", "3", "4", "0"], "--model.decoder-channels"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--epochs", "0"], "--epochs 0"),
        (["--max-steps", "0"], "--max-steps 0"),
        (["--eval-every", "-3"], "--eval-every -3"),
        (["--patience", "0"], "--patience 0"),
        (["--save-every", "0"], "--save-every 0"),
        (["--keep-last", "0"], "--keep-last 0"),
        (["--lr", "0"], "--lr 0"),
        (["--lr", "-1"], "--lr -1"),
        (["--lr", "nan"], "--lr nan"),
        (["--lr", "inf"], "--lr inf"),
        (["--seed", "-1"], "--seed -1"),
        (["--seed", str(2**63)], "--seed"),
        (["--config", "no/such.json"], "no/such.json"),
        (["--config"], "--config"),
    ],
)
def test_a_value_that_cannot_be_used_is_one_line_that_names_it(flags, fragment):
    with pytest.raises(InputError) as error:
        parse(TrainConfig, [*TRAIN, *flags])
    check_line(error, fragment)


def test_training_data_must_be_named():
    with pytest.raises(InputError, match=r"--data\.train"):
        parse(TrainConfig, [])


@pytest.mark.parametrize("threshold", ["0", "1", "-0.5", "nan"])
def test_a_threshold_is_a_probability(threshold):
    with pytest.raises(InputError, match="--threshold"):
        parse(PredictConfig, ["--checkpoint", "c", "--images", "i", "--out", "o", "--threshold", threshold])


def test_evaluation_refuses_negative_workers():
    with pytest.raises(InputError, match="--workers -2"):
        parse(EvaluateConfig, ["--checkpoint", "c", "--data", "d", "--workers", "-2"])


@pytest.mark.parametrize("value", ["auto", "65536", "4194304"])
def test_a_field_of_two_types_takes_both_from_flags_files_and_python(value):
    config = parse(TrainConfig, [*TRAIN, "--scale.tile-elements", value])
    assert str(config.scale.tile_elements) == value
    assert checked(TrainConfig, config) == config == from_dict(TrainConfig, json.loads(json.dumps(to_dict(config))))


@pytest.mark.parametrize(
    ("config", "flag"),
    [
        (config, flag)
        for config, flags in {
            TrainConfig: ("--data.workers", "--batch-size", "--scale.timeout-s"),
            EvaluateConfig: ("--workers",),
            PlanConfig: ("--batch-size",),
            ResolutionConfig: ("--workers", "--batch-size"),
            ScalingConfig: ("--workers", "--batch-size"),
            ReproduceConfig: ("--workers",),
        }.items()
        for flag in flags
    ],
)
@pytest.mark.parametrize("value", ["100000000", "1" + 15 * "0"])
def test_numbers_that_no_machine_has_are_refused_at_once(config, flag, value):
    required = {
        TrainConfig: TRAIN,
        EvaluateConfig: ["--checkpoint", "c", "--data", "d"],
        PlanConfig: ["--size", "64x64"],
        ResolutionConfig: ["--sizes", "64x64"],
        ReproduceConfig: ["table1"],
    }
    with pytest.raises(InputError) as error:
        parse(config, [*required.get(config, []), flag, value])
    check_line(error, f"{flag} {value}", "at most")


def test_flags_that_are_required_are_named_and_nothing_else():
    with pytest.raises(InputError) as error:
        parse(EvaluateConfig, ["--workers", "0"])
    assert str(error.value) == "missing: --checkpoint PATH|URL, --data PATH|URL (--help lists the flags)"


@pytest.mark.parametrize("mistyped", [["--checkpont", "x"], ["--checkpont=x"]], ids=len)
def test_a_mistyped_flag_is_not_called_a_missing_one(mistyped):
    with pytest.raises(InputError) as error:
        parse(EvaluateConfig, [*mistyped, "--data", "d"])
    meant = "unknown flag --checkpont; did you mean --checkpoint?"
    assert str(error.value) == f"missing: --checkpoint PATH|URL; {meant} (--help lists the flags)"


@pytest.mark.parametrize("flag", ["--input-size", "--metric-size"])
@pytest.mark.parametrize("size", ["0x0", "64", "99999x99999"])
def test_a_size_that_cannot_be_used_is_told_with_its_flag(flag, size):
    for words in ([flag, size], [f"{flag}={size}"]):
        with pytest.raises(InputError, match=f"^{flag}: '{size}' is "):
            parse(EvaluateConfig, ["--checkpoint", "c", "--data", "d", *words])


@pytest.mark.parametrize(("kind", "known"), [(EncodersConfig, "none"), (ConfigsConfig, "name")])
def test_a_config_file_of_another_command_is_refused(kind, known):
    with pytest.raises(InputError, match=f"x.json: unknown setting 'data'; known: {known}$"):
        from_dict(kind, {"data": {}}, "x.json")


@pytest.mark.parametrize("flags", [["--no-such-flag", "1"], ["--data.transform", "stretch"], ["--lr", "fast"]])
def test_what_the_parser_says_is_one_line(flags, capsys):
    with pytest.raises(InputError) as error:
        parse(TrainConfig, [*TRAIN, *flags])
    line = str(error.value)
    assert flags[0] in line
    assert "\n" not in line
    assert "---" not in line
    assert len(line) < 250
    assert error.value.exit_code == 2
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("values", "fragment"),
    [
        ({"learning_rate": 1}, "unknown setting 'learning_rate'"),
        ({"data": {"sise": "1x1"}}, "unknown setting 'sise'; did you mean size?"),
        ({"x" * 100_000: 1}, "unknown setting"),
        ({"lr": 10**400}, "lr: cannot use 1000"),
        ({"seed": 10**30}, "seed: cannot use 1000"),
        ({"seed": 10**5000}, "seed: cannot use a number of thousands of digits"),
        ({"out": "a\0b"}, "out: cannot use"),
        ({"out": "\ud800"}, "out: cannot use"),
        ({"data": {"train": ["x" * 1000, None]}}, "train: cannot use None"),
        ({"data": ["a"]}, "expected an object"),
        ({"lr": "fast"}, "lr"),
        ({"lr": None}, "lr"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"batch_size": None}, "batch_size"),
        ({"data": {"size": "12"}}, "'12' is not a size"),
        ({"data": {"size": 12}}, "size"),
        ({"data": {"transform": "stretch"}}, "transform"),
        ({"data": {"augment": "flips"}}, "augment"),
        ({"data": {"augment": [1]}}, "augment"),
        ({"data": {"crop_side": [0.1]}}, "crop_side"),
        ({"data": {"crop_side": [0.1, 0.2, 0.3]}}, "crop_side"),
        ({"model": {"decoder_channels": [1, 2, 3, 4, "5"]}}, "decoder_channels"),
        ({"out": 5}, "out"),
        ([], "expected an object"),
    ],
)
def test_a_config_file_with_a_wrong_value_is_refused_by_name(values, fragment):
    with pytest.raises(InputError) as error:
        from_dict(TrainConfig, values, "runs/x/config.json")
    check_line(error, "runs/x/config.json", fragment)


@pytest.mark.parametrize(
    ("values", "fragments"),
    [
        (
            {"data": {"train": ["x"], "augment": ["flops"]}},
            ("--data.augment flops", "did you mean flips?", "rand-augment"),
        ),
        ({"data": {"train": ["x"]}, "loss": "dise"}, ("--loss dise", "did you mean dice?", "bce")),
        ({"data": {"train": ["x"]}, "loss": "bce+bce"}, ("--loss bce+bce", "once")),
        ({"data": {"train": ["x"]}, "model": {"encoder": "mit_b9"}}, ("--model.encoder mit_b9", "did you mean mit_b")),
    ],
)
def test_a_name_that_nothing_is_registered_under_is_answered_with_the_nearest(tmp_path, values, fragments):
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError) as error:
        parse(TrainConfig, ["--config", str(tmp_path / "config.json")])
    check_line(error, *fragments)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.yaml", "", "a.yaml: has no settings"),
        ("a.yaml", "# lr: 0.1\n", "a.yaml: has no settings"),
        ("a.json", "null", "a.json: has no settings"),
        ("a.yaml", "data:\n", "a.yaml: data: has no settings"),
        ("a.json", '{"loss": "dice", "loss": "bce"}', "a.json: 'loss' is there twice"),
        ("a.json", '{"data": {"size": "64x64", "size": "32x32"}}', "a.json: 'size' is there twice"),
        ("a.yaml", "loss: dice\nloss: bce\n", "loss is there twice"),
    ],
)
def test_a_config_file_without_settings_or_with_one_twice_is_refused(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as error:
        parse(TrainConfig, ["--config", str(tmp_path / name)])
    check_line(error, said)
    assert "NoneType" not in str(error.value)


def test_a_config_file_without_what_is_needed_is_refused():
    with pytest.raises(InputError, match="checkpoint"):
        from_dict(EvaluateConfig, {"data": "x"}, "file")


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "\x00"])
def test_a_config_file_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError) as error:
        parse(TrainConfig, ["--config", str(tmp_path / "config.json")])
    check_line(error, "config.json")


def leaves(values: dict, prefix: str = "") -> list[str]:
    return [
        leaf
        for name, value in values.items()
        for leaf in (leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name])
    ]


@pytest.mark.parametrize("dotted", leaves(to_dict(TrainConfig())))
def test_only_fields_of_cost_may_differ_on_resume(dotted):
    old, new = to_dict(TrainConfig()), to_dict(TrainConfig())
    where = new
    for name in dotted.split(".")[:-1]:
        where = where[name]
    where[dotted.split(".")[-1]] = "something else"
    found = differences(old, new)
    if dotted in COST_FIELDS:
        assert found == []
    else:
        assert [line.split(" ")[0] for line in found] == [dotted]
        assert "something else" in found[0]


def test_fields_of_cost_exist():
    assert set(COST_FIELDS) <= set(leaves(to_dict(TrainConfig())))


def test_equal_configs_do_not_differ():
    assert differences(to_dict(TrainConfig()), to_dict(TrainConfig())) == []


def test_a_field_that_one_side_lacks_differs():
    new = to_dict(TrainConfig())
    old = {name: value for name, value in new.items() if name != "loss"}
    assert [line.split(" ")[0] for line in differences(old, new)] == ["loss"]


def test_patience_without_validation_is_refused():
    with pytest.raises(InputError, match="--patience needs validation"):
        TrainConfig(data=DataConfig(train=Path("x")), patience=3).validate()


def test_a_size_beyond_all_bounds_is_refused():
    with pytest.raises(InputError, match="too large"):
        Size.parse("100000x100000")


def test_every_setting_of_scale_may_change_when_a_run_is_resumed():
    assert {f"scale.{field.name}" for field in fields(ScaleConfig)} <= set(COST_FIELDS)
