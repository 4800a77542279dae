"""The trained networks that come with the package: complete, small, free to use, found by their names, and as good as
their model cards say."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from data_helpers import real_data
from helpers import REPOSITORY, command, draw_sample
from pycocotools.coco import COCO

import glioma_dist as gd
from glioma_dist.cli.arguments import parse
from glioma_dist.config.file import to_dict
from glioma_dist.config.networks import NETWORKS, network_folder, network_names
from glioma_dist.errors import InputError
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.licences import warning_of_use
from glioma_dist.model.manifest import MODEL

NAMES = network_names()
MAX_BYTES = 5_000_000


def card(name: str) -> str:
    return (NETWORKS / name / "README.md").read_text()


def plate(folder: Path, number: int = 0) -> Path:
    """A folder with one drawn image."""
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "a.png"), draw_sample(number).image)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_whole_small_and_free_to_use(name):
    folder = NETWORKS / name
    model, checkpoint = gd.load_model(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) < MAX_BYTES
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert checkpoint.lineage
    assert all(entry["licence"] for entry in checkpoint.lineage)
    assert warning_of_use(checkpoint.lineage) is None
    for entry in checkpoint.lineage:
        assert entry["licence"].split()[0] in card(name), "the card states each licence"
    state = (folder / "state.json").read_text()
    assert not re.search(r'"/|\.\./', state), "no path of the machine that it was trained on"


@pytest.mark.parametrize("name", NAMES)
def test_what_the_card_says_of_the_training_is_what_the_checkpoint_says(name):
    """Each flag of the card's last training command, and the number of parameters."""
    (train,) = [block for block in re.findall(r"```bash\n(.*?)```", card(name), re.DOTALL) if "train.py" in block]
    words = train.replace("\\\n", " ").split("train.py ")[-1].split("\n")[0]
    told, kept = to_dict(parse(gd.TrainConfig, words.split())), to_dict(Checkpoint.read(NETWORKS / name).config)
    for group in ("data", "model"):
        for field in ("train", "val", "init", "workers", "cache_in_memory"):  # names of folders, and cost
            told[group].pop(field, None)
            kept[group].pop(field, None)
    for field in ("max_steps", "out", "scale"):
        told.pop(field), kept.pop(field)
    assert kept == told
    (millions,) = re.findall(r"([\d.]+) million parameters", card(name))
    model, checkpoint = gd.load_model(name)
    assert float(millions) == round(sum(each.numel() for each in model.parameters()) / 1e6, 2)
    assert f"step {checkpoint.step:,}" in card(name)


@pytest.mark.parametrize("name", NAMES)
def test_predict_takes_the_name_before_anything_is_trained(name, tmp_path):
    images = plate(tmp_path / "my_images")
    ended = command("predict", "--checkpoint", name, "--images", images, "--out", tmp_path / "preds")
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert "commercial" not in ended.stdout
    mask = cv2.imread(str(tmp_path / "preds/a.mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == draw_sample(0).mask.shape
    assert set(mask.ravel().tolist()) <= {0, 255}


def test_the_line_of_readme_is_that_command():
    (line,) = re.findall(r"^glioma-dist predict (.*)$", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    assert line == "--checkpoint t98g-small --images my_images --out preds"
    assert "t98g-small" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_function_that_takes_a_checkpoint_takes_the_name(name, tmp_path):
    from glioma_dist.model.hub import PretrainedUNet

    model, checkpoint = gd.load_model(name)
    wanted = model.state_dict()
    config = gd.ModelConfig(
        checkpoint.config.model.encoder, init=name, decoder_channels=checkpoint.config.model.decoder_channels
    )
    built, lineage = gd.build_model(config, seed=0)
    shared = PretrainedUNet.from_pretrained(name)
    shared.save_pretrained(tmp_path / "saved")
    again, _ = gd.load_model(tmp_path / "saved")
    for other in (built, shared.model, again):
        assert all(torch.equal(wanted[key], tensor) for key, tensor in other.state_dict().items())
    assert lineage == checkpoint.lineage == shared.metadata["lineage"]


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("evaluate", ("--checkpoint", "NAME", "--data", "DATA/val")),
        ("merge", ("--checkpoint", "NAME", "--out", "OUT/merged")),
        ("train", ("--data.train", "DATA/train", "--model.init", "NAME", "--max-steps", "1", "--out", "OUT/run")),
    ],
)
def test_every_command_that_takes_a_checkpoint_takes_the_name(script, flags, shards, tmp_path):
    name = NAMES[0]
    model = Checkpoint.read(NETWORKS / name).config.model
    replaced = {"NAME": name, "DATA": str(shards), "OUT": str(tmp_path)}
    words = [re.sub("NAME|DATA|OUT", lambda found: replaced[found[0]], word) for word in flags]
    if script == "train":
        words += ["--model.encoder", model.encoder, "--data.size", "64x64", "--data.workers", "0", "--batch-size", "2"]
        words += ["--model.decoder-channels", *map(str, model.decoder_channels)]
    else:
        words += ["--workers", "0"] if script == "evaluate" else []
    ended = command(script, *words)
    assert (ended.exit_code, ended.stderr) == (0, "")
    if script == "train":
        state = json.loads((tmp_path / "run/last/state.json").read_text())
        assert (
            state["lineage"][: len(Checkpoint.read(NETWORKS / name).lineage)]
            == Checkpoint.read(NETWORKS / name).lineage
        )


def test_a_checkpoint_of_that_name_in_the_current_folder_comes_first(tmp_path, monkeypatch):
    name = NAMES[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()  # as `--out` of the last prediction may be: no checkpoint
    assert Checkpoint.read(Path(name)).folder == NETWORKS / name
    shutil.copytree(NETWORKS / name, tmp_path / name, dirs_exist_ok=True)
    assert Checkpoint.read(Path(name)).folder == Path(name)
    (tmp_path / name / MODEL).write_bytes(b"damaged")
    with pytest.raises(InputError, match=re.escape(f"{name}/{MODEL}")):
        gd.load_model(name)


@pytest.mark.parametrize("wrong", ["t98g_small", "T98G-small", "../networks/t98g-small", ".", ""])
def test_another_word_is_no_name_and_the_error_lists_the_names(wrong, tmp_path):
    assert network_folder(wrong) is None
    ended = command("predict", "--checkpoint", wrong or "none", "--images", plate(tmp_path / "a"), "--out", tmp_path)
    assert ended.exit_code == 2
    if wrong != ".":
        assert "t98g-small" in ended.stderr


def test_the_package_has_every_file_of_the_networks():
    """What a wheel holds: each file matches one of the patterns of pyproject.toml."""
    content = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    patterns = content["tool"]["setuptools"]["package-data"]["glioma_dist"]
    files = [path.relative_to(NETWORKS.parent).as_posix() for path in NETWORKS.rglob("*") if path.is_file()]
    assert len(files) >= 4 * len(NAMES)
    assert [file for file in files if not any(fnmatch(file, pattern) for pattern in patterns)] == []
    listed = subprocess.run(["git", "ls-files", NETWORKS], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        assert len(listed.stdout.split()) == len(files)


def told_scores() -> dict[str, float]:
    """Held-out field -> its Dice, as the card of t98g-small has them; `mean` with them."""
    rows = re.findall(r"^\| \**(\w+)\** \| [\d.]+ \| \**([\d.]+)\** \|$", card("t98g-small"), re.MULTILINE)
    return {field: float(dice) for field, dice in rows}


def test_predicted_masks_of_held_out_fields_score_what_the_card_says(tmp_path):
    """Against pycocotools' masks, by NumPy, where the real images are here: the fields of the highest, a middle and the
    lowest confluence."""
    source, told = real_data("t98g"), told_scores()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(source / "annotations/instances_default.json"))
    numbers = {Path(image["file_name"]).stem: number for number, image in coco.imgs.items()}
    fields = [field for field in told if field != "mean"]
    assert len(fields) == 10
    (tmp_path / "images").mkdir()
    for field in (fields[0], fields[5], fields[-1]):
        shutil.copyfile(source / f"images/default/{field}.png", tmp_path / f"images/{field}.png")
    flags = ("--checkpoint", "t98g-small", "--images", tmp_path / "images", "--out", tmp_path / "preds")
    ended = command("predict", *flags, timeout=300)
    assert (ended.exit_code, ended.stderr) == (0, "")
    for path in (tmp_path / "images").iterdir():
        found = cv2.imread(str(tmp_path / f"preds/{path.stem}.mask.png"), cv2.IMREAD_UNCHANGED) > 0
        cells = coco.loadAnns(coco.getAnnIds(numbers[path.stem]))
        wanted = np.any([coco.annToMask(cell) > 0 for cell in cells], axis=0)
        dice = 2 * np.sum(found & wanted) / (np.sum(found) + np.sum(wanted))
        assert dice == pytest.approx(told[path.stem], abs=0.002), path.stem


@pytest.mark.slow
def test_all_held_out_fields_score_what_the_card_says(tmp_path):
    source, told = real_data("t98g"), told_scores()
    flags = ("--source", source, "--split-seed", "2", "--out", tmp_path / "shards")
    assert command("convert glioma-c6", *flags, timeout=300).exit_code == 0
    scores = tmp_path / "scores.json"
    flags = ("--checkpoint", "t98g-small", "--data", tmp_path / "shards/test", "--out", scores, "--workers", "0")
    ended = command("evaluate", *flags, timeout=300)
    assert ended.exit_code == 0, ended.stderr
    content = json.loads(scores.read_text())
    found = {image["key"]: image["dice"] for image in content["images"]} | {"mean": content["dice_mean"]}
    assert found == pytest.approx(told, abs=0.002)
