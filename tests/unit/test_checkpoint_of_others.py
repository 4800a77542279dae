"""A checkpoint from elsewhere: the module of its loss is not imported, and what its config says is checked."""

import json
import os

import pytest
from helpers import command, draw_labelled, save_state, seal, tiny_config, write_shards

from glioma_dist.config import EvaluateConfig, PredictConfig
from glioma_dist.data.sample import encode_image
from glioma_dist.errors import InputError
from glioma_dist.evaluation.protocol import evaluate
from glioma_dist.inference.export import export
from glioma_dist.inference.predict import predict
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.manifest import STATE
from glioma_dist.model.unet import build_model, load_model
from glioma_dist.training.state import TrainState


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Shards, an image, and a checkpoint whose loss is a module that leaves a file when it is imported."""
    folder = tmp_path_factory.mktemp("others")
    samples = [draw_labelled(number, 64, 64) for number in range(4)]
    for name in ("train", "val"):
        write_shards(folder / "shards" / name, samples)
    (folder / "image.png").write_bytes(encode_image(samples[0].image))
    (folder / "leaves_a_file.py").write_text(
        f"import pathlib\npathlib.Path({str(folder / 'imported')!r}).touch()\n"
        "def loss(logits, masks):\n    return (logits.sigmoid() - masks).square().mean((1, 2))\n"
    )
    config = tiny_config(folder / "shards", folder / "run", loss="dice+leaves_a_file:loss", max_steps=1)
    model, _ = build_model(config.model, 0)
    (folder / "run").mkdir()
    for name in ("best", "last"):
        save_state(folder / "run" / name, config, TrainState(step=1), model, None, {"lineage": []})
    return folder


COMMANDS = {
    "evaluate": ("--checkpoint", "run/best", "--data", "shards/val", "--workers", "0"),
    "predict": ("--checkpoint", "run/best", "--images", "image.png", "--out", "OUT"),
    "merge": ("run/best", "OUT"),
    "shards inspect": ("shards/val",),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_that_reads_a_checkpoint_imports_its_loss(name, material, tmp_path):
    arguments = [str(tmp_path / "out") if each == "OUT" else each for each in COMMANDS[name]]
    ended = command(name, *arguments, folder=material, environment={"PYTHONPATH": str(material)})
    assert "leaves_a_file" not in ended.stderr
    assert ended.exit_code == 0 or name == "merge", ended.stderr
    assert not (material / "imported").exists()


def test_export_imports_no_loss(material, tmp_path, monkeypatch, runtime):
    monkeypatch.syspath_prepend(str(material))
    pytest.importorskip("onnx", reason="needs the extra export")
    export(material / "run" / "best", tmp_path / "model.onnx")
    load_model(material / "run" / "best")
    assert not (material / "imported").exists()


HOSTILE = {
    "unknown loss": {"loss": "no_such_loss"},
    "a loss that is no name": {"loss": "os:system('x')"},
    "a loss without end": {"loss": "x" * 10**6},
    "very many classes": {"model": {"classes": [str(number) for number in range(10**5)]}},
    "a class without end": {"model": {"classes": ["a", "b" * 10**6]}},
    "a class with control characters": {"model": {"classes": ["a", "\x1b[2J\n"]}},
    "unknown targets": {"model": {"targets": ["mask", "weather"]}},
    "both targets": {"model": {"targets": ["mask", "boundary", "distance"]}},
    "no mask": {"model": {"targets": ["distance"]}},
    "an encoder without end": {"model": {"encoder": "x" * 10**6}},
    "channels without end": {"model": {"decoder_channels": [2**62] * 5}},
    "a rate that is no number": {"lr": float("nan")},
    "a rate without end": {"lr": float("inf")},
    "a weight that is no number": {"target_weight": float("nan")},
    "a setting without end": {"y" * 10**6: 1},
}
NOT_OF_THE_NETWORK = ("loss", "lr", "target_weight")
"""Settings of training: evaluate and predict do not use them, and may take the checkpoint or refuse it."""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_config_that_cannot_be_is_one_line(name, material, tmp_path, runtime):
    changes = HOSTILE[name]
    folder = tmp_path / "run" / "best"
    folder.parent.mkdir()
    config = tiny_config(material / "shards", tmp_path / "run")
    model, _ = build_model(config.model, 0)
    save_state(folder, config, TrainState(step=1), model, None, {"lineage": []})
    state = json.loads((folder / STATE).read_text())
    for key, value in changes.items():
        settings = state["config"]
        if isinstance(value, dict):
            settings[key] |= value
        else:
            settings[key] = value
    (folder / STATE).write_text(json.dumps(state))
    seal(folder)
    calls = (
        lambda: evaluate(EvaluateConfig(folder, str(material / "shards" / "val"), workers=0), runtime),
        lambda: predict(PredictConfig(folder, str(material / "image.png"), tmp_path / "out"), runtime),
        lambda: load_model(folder),
    )
    for call in calls:
        refused = None
        try:
            call()
        except InputError as error:
            refused = str(error)
        assert refused is not None or set(changes) <= set(NOT_OF_THE_NETWORK)
        assert len(refused or "") <= 500 + len(os.fspath(folder))
        assert (refused or "").isprintable()


@pytest.mark.parametrize(
    "value", ["0.9", [1], {}, True, None, float("nan"), float("inf"), 10**400], ids=lambda value: str(value)[:9]
)
@pytest.mark.parametrize("name", ["best_dice", "validated_step", "another"])
def test_a_position_that_is_no_number_is_refused_by_whatever_prints_it(tmp_path, name, value):
    config = tiny_config(tmp_path, tmp_path)
    model, _ = build_model(config.model, 0)
    save_state(tmp_path / "best", config, TrainState(step=1), model, None, {"lineage": []})
    state = json.loads((tmp_path / "best" / STATE).read_text())
    state["position"][name] = value
    (tmp_path / "best" / STATE).write_text(json.dumps(state))
    seal(tmp_path / "best")
    with pytest.raises(InputError, match=f"{STATE}: its position's {name} is ") as caught:
        Checkpoint.read(tmp_path / "best")
    assert "\n" not in str(caught.value)
