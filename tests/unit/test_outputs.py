"""Networks with several classes and a second target: trained, resumed, started from other networks, refused."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers import TINY_CHANNELS, draw_labelled, rows, tiny_config, write_shards

from glioma_dist.config import ModelConfig
from glioma_dist.errors import InputError
from glioma_dist.evaluation.dice import class_counts, dice_from
from glioma_dist.evaluation.forward_only import forward_only
from glioma_dist.evaluation.maps import class_map, maps_of
from glioma_dist.loss_names import DEFAULT_LOSS
from glioma_dist.losses import segmentation_loss, training_loss
from glioma_dist.model.outputs import Outputs
from glioma_dist.model.unet import UNet, build_model, load_model
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.memory_estimator import estimate_unet_step
from glioma_dist.size import Size
from glioma_dist.training.loop import train

CLASSES = ("type A", "soma")
NAMES = ("one class", "classes", "boundary", "classes and distance")
MODELS = {
    "one class": {},
    "classes": {"classes": CLASSES},
    "boundary": {"targets": ("mask", "boundary")},
    "classes and distance": {"classes": CLASSES, "targets": ("mask", "distance")},
}


def tiny(**how) -> ModelConfig:
    return ModelConfig("mit_tiny", decoder_channels=TINY_CHANNELS, **how)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """train and val of two classes with ignored pixels and instances."""
    folder = tmp_path_factory.mktemp("labelled")
    how = {"num_classes": 2, "has_ignore": True, "has_instances": True}
    for name, numbers in (("train", range(6)), ("val", range(6, 9))):
        write_shards(folder / name, [draw_labelled(number, **how) for number in numbers], classes=CLASSES)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_split(name):
    config = tiny(**MODELS[name])
    config.validate()
    outputs, model = Outputs.of(config), UNet(config).eval()
    logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, config.num_outputs, 64, 64)
    parts = [outputs.mask_logits(logits)]
    parts += [] if outputs.target is None else [outputs.target_logits(logits)[:, None]]
    assert torch.equal(torch.cat(parts, dim=1), logits)
    predicted = outputs.predicted(logits)
    assert (predicted.dtype, predicted.shape) == (torch.uint8, (2, 64, 64))
    expected = torch.stack([class_map(outputs, maps, 0.5) for maps in maps_of(outputs, logits.double())])
    assert torch.equal(predicted, expected)


@pytest.mark.parametrize("level", ["none", "selective", "full"])
def test_every_level_and_the_forward_pass_alone_give_the_same_logits(level):
    config = tiny(**MODELS["classes and distance"])
    plain = build_model(config, 0)[0].double()
    plain(torch.randn(2, 3, 64, 64).double(), torch.zeros(2, dtype=torch.int64))
    plain.eval()
    images = torch.randn(1, 3, 96, 64).double()
    expected = plain(images)
    with torch.no_grad():
        torch.testing.assert_close(forward_only(plain)(images), expected, rtol=1e-9, atol=1e-9)
    other = build_model(config, 0)[0].double()
    other.load_state_dict(plain.state_dict())
    checkpoint_activations(other, level)
    found = other.eval()(images)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(other.decoder.head.weight.grad, plain.decoder.head.weight.grad, rtol=1e-9, atol=1e-9)


def test_the_memory_of_more_outputs_is_counted():
    peaks = []
    for name in ("one class", "classes and distance"):
        config = tiny(**MODELS[name])
        loss = partial(segmentation_loss, DEFAULT_LOSS, outputs=Outputs.of(config))
        peaks.append(estimate_unet_step(UNet(config), loss, Size(128, 96)).peak)
    assert peaks[1] > peaks[0] + 3 * 4 * 128 * 96


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"classes": ("a",)}, "--model.classes a: one class needs no name; omit the flag, or name two or more"),
        ({"classes": ("a", "a")}, "name each class once"),
        ({"classes": ("a", "Background")}, "without the background"),
        ({"classes": ("a", " ")}, "cannot use"),
        ({"classes": tuple(map(str, range(255)))}, "a mask has at most 254"),
        ({"targets": ()}, "give mask, mask boundary, or mask distance"),
        ({"targets": ("boundary", "mask")}, "give mask, mask boundary, or mask distance"),
        ({"targets": ("mask", "boundary", "distance")}, "give mask, mask boundary, or mask distance"),
    ],
)
def test_outputs_that_cannot_be_are_refused(how, said):
    with pytest.raises(InputError) as error:
        tiny(**how).validate()
    assert said in str(error.value)
    assert len(str(error.value)) <= 500


def test_dice_of_each_class_leaves_unlabelled_pixels_out():
    generator = np.random.default_rng(0)
    predicted, reference = (generator.integers(0, 4, (3, 9, 7)).astype(np.uint8) for _ in range(2))
    reference[0][reference[0] == 2] = 0
    predicted[0][predicted[0] == 2] = 0
    reference[1, :3] = 255
    found = dice_from(class_counts(torch.from_numpy(predicted), torch.from_numpy(reference), 4))
    for image, number in np.ndindex(3, 3):
        known = reference[image] != 255
        a, b = ((each[image][known] == number + 1) for each in (predicted, reference))
        expected = 2 * (a & b).sum() / (a.sum() + b.sum()) if (a | b).any() else 1.0
        assert found[image, number].item() == expected
    assert found[0, 1] == 1


@pytest.mark.parametrize("how", [{"loss": "dice+ce"}, {"loss": "ce", "targets": ("mask", "distance")}], ids=str)
def test_training_with_classes_resumes_to_the_same_bits(shards, tmp_path, how):
    how = {"classes": CLASSES, **how}
    train(tiny_config(shards, tmp_path / "whole", **how))
    train(tiny_config(shards, tmp_path / "parts", max_steps=3, **how))
    train(tiny_config(shards, tmp_path / "parts", **how))
    speed = ("images_per_second", "step_seconds", "data_wait_share")
    found, expected = (
        [{key: value for key, value in row.items() if key not in speed} for row in rows(tmp_path / name)]
        for name in ("parts", "whole")
    )
    assert found == expected
    val = [row for row in found if row.get("split") == "val"]
    assert [sorted(row["dice_by_class"]) for row in val] == [sorted(CLASSES)] * 2
    for row in val:
        assert row["dice"] == pytest.approx(sum(row["dice_by_class"].values()) / 2)
    one, other = (load_model(tmp_path / name / "last")[0].state_dict() for name in ("parts", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            {},
            "--data.train: its masks have the classes 'type A' soma, the network one class; give --model.classes "
            "'type A' soma",
        ),
        ({"classes": ("a", "b"), "loss": "ce"}, "the network a b; give --model.classes 'type A' soma"),
        (
            {"classes": CLASSES, "loss": "loss_helpers_own:squares"},
            "takes no `valid`, and the masks have pixels that nobody",
        ),
        ({"classes": CLASSES, "loss": "bce"}, "--loss bce: is not for masks of several classes"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_shards_are_refused(shards, tmp_path, how, said):
    with pytest.raises(InputError) as error:
        train(tiny_config(shards, tmp_path / "run", **how))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 500


def test_a_network_of_other_outputs_gives_all_but_its_head(shards, tmp_path):
    train(tiny_config(shards, tmp_path / "run", classes=CLASSES, max_steps=3))
    told = []
    config = replace(tiny(init=str(tmp_path / "run" / "last")), classes=CLASSES, targets=("mask", "boundary"))
    model = build_model(config, 5, told.append)[0].state_dict()
    assert told == [
        f"--model.init {tmp_path / 'run' / 'last'}: has other classes or targets; its head is not taken, all else is"
    ]
    theirs, drawn = (
        load_model(tmp_path / "run" / "last")[0].state_dict(),
        build_model(replace(config, init="random"), 5)[0],
    )
    for name, tensor in model.items():
        assert torch.equal(tensor, drawn.state_dict()[name] if name.startswith("decoder.head.") else theirs[name]), name
    told.clear()
    same = build_model(replace(config, targets=("mask",)), 5, told.append)[0].state_dict()
    assert told == []
    assert all(torch.equal(same[name], theirs[name]) for name in same)


def test_an_own_function_trains_and_must_be_repeated_to_resume(tmp_path, shards):
    folder = tmp_path / "plain"
    for name, numbers in (("train", range(6)), ("val", range(6, 9))):
        write_shards(folder / name, [draw_labelled(number) for number in numbers])
    own = {"loss": "dice+0.5*loss_helpers_own:squares"}
    train(tiny_config(folder, tmp_path / "run", max_steps=3, **own))
    with pytest.raises(
        InputError, match=r"belongs to another run \(loss dice\+0\.5\*loss_helpers_own:squares -> dice\)"
    ):
        train(tiny_config(folder, tmp_path / "run"))
    train(tiny_config(folder, tmp_path / "run", **own))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["loss"] == own["loss"]
    config = tiny_config(folder, tmp_path / "run", **own)
    assert training_loss(config)(torch.zeros(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8)).shape == (1,)
