"""An encoder, a loss and an augmentation from outside the package: trained with, resumed, evaluated, predicted with.

Once registered by calls in a script, once by the entry points of an installed distribution.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import REPOSITORY, TINY_CHANNELS, command, draw_sample, draw_shards, rows, run, start, tiny_config

from glioma_dist.data.transforms import augment

PARTS = '''
import numpy as np
from torch import nn

from glioma_dist.model.encoders.contract import Encoder


class Two(Encoder):
    strides, channels = (8, 32), (6, 10)

    def __init__(self, name):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 8, stride=8), nn.BatchNorm2d(6), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(6, 10, 4, stride=4), nn.BatchNorm2d(10), nn.ReLU())
        self.shift = nn.Parameter(nn.init.normal_(nn.Linear(10, 1, bias=False).weight).reshape(10, 1, 1).detach())

    def forward(self, images, seeds=None):
        first = self.run_segment(self.first, images)
        return [first, self.run_segment(self.second, first) + self.shift]

    def blocks(self):
        return [self.first, self.second]


def squares(logits, masks):
    """Whole images only: it takes no `total`."""
    return (logits.sigmoid() - masks).square().mean((1, 2))


def noise(image, mask, generator):
    return np.clip(image + generator.normal(0, 9, image.shape), 0, 255).astype(np.uint8), mask


def wrong_shape(image, mask, generator):
    return image[:-1], mask


def wrong_loss(logits, masks):
    return logits.mean()
'''
POINTS = """[glioma_dist.encoders]
two_maps = own_parts_package:Two
no_encoder = own_parts_package:squares
[glioma_dist.losses]
squares = own_parts_package:squares
wrong_loss = own_parts_package:wrong_loss
gone = own_parts_package:gone
[glioma_dist.augmentations]
noise = own_parts_package:noise
wrong_shape = own_parts_package:wrong_shape
"""
OWN = {"encoder": "two_maps", "loss": "squares+dice", "augment": ("flips", "noise")}
FLAGS = ("--model.encoder", "two_maps", "--loss", "squares+dice", "--data.augment", "flips", "noise")


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A folder with an installed distribution, as pip leaves it."""
    folder = tmp_path_factory.mktemp("site-packages")
    (folder / "own_parts_package.py").write_text(PARTS)
    info = folder / "own_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    return folder


def use(package: Path, by_call: bool) -> None:
    """Have the package found in this process; by_call: as a script registers it, without its entry points."""
    sys.path.insert(0, str(package))
    if by_call:
        from glioma_dist import registry

        registry.distributions = lambda: []
        import own_parts_package

        registry.encoders.register("two_maps", "own_parts_package:Two")
        registry.losses.register("squares")(own_parts_package.squares)
        registry.augmentations.register("noise", own_parts_package.noise)


def life(package: Path, by_call: bool, shards: Path, folder: Path) -> dict:
    """Train two steps and resume to four; the same in one go; evaluate and predict. Returns what came of it."""
    use(package, by_call)
    from glioma_dist.config import EvaluateConfig, PredictConfig
    from glioma_dist.distributed.context import DistributedContext
    from glioma_dist.evaluation.protocol import evaluate
    from glioma_dist.inference.predict import predict
    from glioma_dist.training.loop import train

    context = DistributedContext.start()
    config = tiny_config(shards, folder / "resumed", max_steps=2, eval_every=2, **OWN)
    train(config, context)
    train(replace(config, max_steps=4, data=replace(config.data, workers=1)), context)
    train(replace(config, max_steps=4, out=folder / "whole"), context)
    images = folder / "images"
    images.mkdir()
    cv2.imwrite(str(images / "a.png"), draw_sample(7).image)
    scores = folder / "scores.json"
    evaluate(EvaluateConfig(folder / "resumed" / "best", str(shards / "val"), out=scores, workers=0), context)
    predict(PredictConfig(folder / "resumed" / "best", str(images), folder / "masks"), context)
    return {"resumed": rows(folder / "resumed"), "whole": rows(folder / "whole"), "scores": scores.read_text()}


@pytest.mark.parametrize("by_call", [True, False], ids=["registered by calls", "entry points"])
def test_own_parts_train_resume_evaluate_and_predict(package, shards, tmp_path, by_call):
    (found,) = run(life, package, by_call, shards, tmp_path, timeout=300)
    assert [row["step"] for row in found["whole"]] == [1, 2, 2, 3, 4, 4]
    assert found["resumed"] == found["whole"]
    assert 0 <= json.loads(found["scores"])["dice_mean"] <= 1
    mask = cv2.imread(str(tmp_path / "masks" / "a.mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == draw_sample(7).mask.shape
    assert set(np.unique(mask)) <= {0, 255}


def in_two(package: Path, shards: Path, out: Path, changes: dict) -> None:
    use(package, False)
    from glioma_dist.distributed.context import DistributedContext
    from glioma_dist.training.loop import train

    train(tiny_config(shards, out, max_steps=2, eval_every=2, **OWN, **changes), DistributedContext.start())


def test_two_processes_train_as_one_with_own_parts(package, shards, tmp_path):
    run(in_two, package, shards, tmp_path / "one", {}, timeout=300)
    run(in_two, package, shards, tmp_path / "two", {}, num_processes=2, timeout=300)
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


def script_with(package: Path, script: str, arguments: list) -> None:
    from helpers import _run_script

    sys.path.insert(0, str(package))
    _run_script(script, [str(each) for each in arguments])


REFUSED = {
    "not installed": (False, FLAGS[:2], "--model.encoder two_maps: unknown; known: "),
    "no encoder": (True, ("--model.encoder", "no_encoder"), "own-parts 1.0"),
    "a loss that is not there": (
        True,
        ("--loss", "dice+gone"),
        "--loss gone (own_parts_package:gone, an entry point of",
    ),
    "a loss of another shape": (True, ("--loss", "wrong_loss"), "return one number an image"),
    "an image of another shape": (True, ("--data.augment", "wrong_shape"), "return an image and a mask of the same"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_used_is_one_line(package, shards, tmp_path, kind):
    installed, flags, said = REFUSED[kind]
    base = {"--model.encoder": "mit_tiny", "--data.size": "64x64", "--batch-size": 2, "--data.workers": 0}
    given = [word for name, value in base.items() if name not in flags for word in (name, value)]
    arguments = ["--data.train", shards / "train", "--max-steps", 1, "--out", tmp_path / "out", *given, *flags]
    if installed:
        (ended,) = start(script_with, package, "train.py", arguments, timeout=200).wait()
    else:
        ended = command("train.py", *arguments, timeout=200)
    assert ended.exit_code == 2, ended.stderr[-3000:]
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert said in line
    assert len(line) <= 507


def split(package: Path) -> str:
    use(package, False)
    from glioma_dist.losses import check_losses

    check_losses("squares+dice", 1)
    check_losses("dice+bce", 2)
    try:
        check_losses("squares+dice", 2)
    except Exception as error:
        return str(error)
    return ""


def test_a_loss_that_needs_whole_images_is_refused_where_they_are_split(package):
    (told,) = run(split, package)
    assert told.startswith("--scale.spatial-parallel 2: the loss squares (own_parts_package:squares")
    assert "`total`" in told


def without_them(package: Path, shards: Path, folder: Path) -> tuple[list, list[str]]:
    """Train with all three, then use the checkpoint where only the encoder is known, and where none is."""
    use(package, False)
    from glioma_dist import registry
    from glioma_dist.distributed.context import DistributedContext
    from glioma_dist.model.unet import load_model
    from glioma_dist.training.loop import train

    train(tiny_config(shards, folder / "run", max_steps=1, eval_every=1, **OWN), DistributedContext.start())
    known = registry.encoders.find("two_maps")
    told = []
    for registered in (True, False):
        for each in (registry.encoders, registry.losses, registry.augmentations):
            each.__dict__["_installed"] = {}
        if registered:
            registry.encoders.__dict__["_installed"] = {"two_maps": [known]}
        try:
            told.append(str(load_model(folder / "run" / "best")[1].config.loss))
        except Exception as error:
            told.append(f"{type(error).__name__}: {error}")
    return told


def test_a_checkpoint_needs_its_encoder_only_and_says_so(package, shards, tmp_path):
    (told,) = run(without_them, package, shards, tmp_path)
    assert told[0] == "squares+dice"
    assert told[1].startswith("UnknownNameError: ")
    assert "two_maps: unknown" in told[1]
    assert "install" in told[1]
    assert "copy" not in told[1], "the file is whole"


def raised_by_parts() -> list[list[str]]:
    """The notes of the errors of a loss and an augmentation that fail, and of those that take no arguments."""
    import torch

    from glioma_dist.losses import segmentation_loss
    from glioma_dist.registry import augmentations, losses

    def fails(*_):
        raise ZeroDivisionError("mine")

    logits, masks = torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4)
    found = []
    for number, own in enumerate((fails, lambda: None)):
        losses.register(f"own_{number}", own)
        augmentations.register(f"own_{number}", own)
        for call in (
            lambda name=f"own_{number}": segmentation_loss(f"dice+{name}", logits, masks),
            lambda name=f"own_{number}": augment(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8), (name,), 0),
        ):
            with pytest.raises((ZeroDivisionError, TypeError)) as error:
                call()
            found.append(error.value.__notes__)
    return found


def test_the_error_of_an_own_part_names_it():
    ((first, second, third, fourth),) = run(raised_by_parts)
    assert first[0].startswith("in the loss own_0 (")
    assert second[0].startswith("in the augmentation own_0 (")
    assert third[0].startswith("in the loss own_1 (")
    assert fourth[0].startswith("in the augmentation own_1 (")


def test_an_augmentation_draws_by_its_name_and_the_seed_alone(monkeypatch):
    from glioma_dist.registry import augmentations

    seen = []

    def look(image, mask, generator):
        seen.append(generator.random())
        image[:] = 0  # a copy: what is cached must not change
        return image, mask

    sample = draw_sample(1)
    monkeypatch.setattr(augmentations, "_added", {})
    augmentations.register("look", look)
    augmentations.register("other", lambda image, mask, generator: (image, mask) if generator.random() < 2 else None)
    kept = sample.image.copy()
    for names in (("look",), ("other", "look"), ("look", "flips"), ("rand-augment", "look", "other")):
        augment(sample.image, sample.mask, names, seed=5)
    augment(sample.image, sample.mask, ("look",), seed=6)
    assert len(set(seen[:4])) == 1
    assert seen[4] != seen[0]
    assert np.array_equal(sample.image, kept)


@pytest.mark.parametrize("name", ["own_encoder", "own_loss"])
def test_the_example_runs_as_a_script(name, tmp_path):
    for split_name, numbers in (("train", range(6)), ("val", range(10, 12)), ("test", range(20, 22))):
        draw_shards(tmp_path / "shards" / split_name, numbers)
    ended = command(f"examples/{name}.py", tmp_path / "shards", tmp_path / "out", timeout=300)
    assert ended.exit_code == 0, ended.stderr[-3000:]
    assert rows(tmp_path / "out")[-1]["step"] == 8
    assert (tmp_path / "out" / "scores.json").exists() == (name == "own_encoder")


def test_a_real_launch_finds_entry_points(package, shards, tmp_path):
    """A new interpreter, as `accelerate launch` starts them: nothing but the environment leads to the package."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(package)]),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    flags = ["--data.train", shards / "train", "--data.size", "64x64", "--data.workers", "0", "--batch-size", "2"]
    channels = ["--model.decoder-channels", *map(str, TINY_CHANNELS)]
    words = [sys.executable, "train.py", *flags, *channels, "--max-steps", "1", "--out", tmp_path / "out", *FLAGS]
    ended = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert rows(tmp_path / "out")[-1]["step"] == 1
