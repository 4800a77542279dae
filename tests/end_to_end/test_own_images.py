"""The commands of docs/own_images.md, run as they stand but for sizes and the length of the training."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from helpers import REPOSITORY, draw_sample, type_in

PAGE = (REPOSITORY / "docs" / "own_images.md").read_text()
SMALLER = {
    "gpu.yaml": "cpu.yaml",
    "accelerate_configs/": f"{REPOSITORY}/accelerate_configs/",
    " train.py": f" {REPOSITORY}/train.py",
    " evaluate.py": f" {REPOSITORY}/evaluate.py",
    "--model.init imagenet": "--model.init random",
    "mit_b0": "mit_tiny",
    "256x256": "64x64",
    "512x512": "64x64",
    "--max-steps 64 --eval-every 32": "--max-steps 2",
    "--epochs 300": "--max-steps 2",
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """The folders that the page shows: eight wells of two fields, one of which nobody labelled."""
    root = tmp_path_factory.mktemp("lab")
    for plate in ("plate_7", "plate_8"):
        (root / "data" / plate / "images").mkdir(parents=True)
    (root / "data/plate_7/masks").mkdir()
    names = [f"{row}{column}_f{field}" for row in "ABCD" for column in (1, 2) for field in (1, 2)]
    for number, name in enumerate(names):
        sample = draw_sample(number)
        tifffile.imwrite(root / f"data/plate_7/images/{name}.tif", sample.image)
        if name != "D2_f2":
            labels = cv2.connectedComponents(sample.mask)[1].astype(np.uint16)
            cv2.imwrite(str(root / f"data/plate_7/masks/{name}_cp_masks.png"), labels)
    cv2.imwrite(str(root / "data/plate_8/new.png"), draw_sample(20).image)
    return root


def smaller(script: str) -> str:
    for old, new in SMALLER.items():
        script = script.replace(old, new)
    return script


def test_the_page_leads_from_a_folder_to_masks(lab):
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 6
    assert all(old.strip() in "".join(blocks) for old in SMALLER), "bring SMALLER up to date"
    screens = ["".join(each.stderr for each in type_in(smaller(block), lab)) for block in blocks]
    (told,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    without_speed = [re.sub(r"\d+/s", "N/s", text) for text in (told, screens[1])]
    assert without_speed[0] == without_speed[1]
    assert (lab / "preds/t98g_small/new.mask.png").is_file()
    assert (lab / "preds/plate_7.png").is_file()
    assert (lab / "preds/plate_7.html").is_file()
    assert (lab / "preds/first_try/new.mask.png").is_file()
    assert (lab / "runs/plate_7/scores.json").is_file()
    assert (lab / "preds/plate_8/new.mask.png").is_file()


def test_every_message_that_the_page_explains_is_one_of_the_package():
    sources = "".join(path.read_text() for path in (REPOSITORY / "glioma_dist" / "data").rglob("*.py"))
    plain = re.sub(r'"\s*\n\s*f?"', "", sources)
    table = PAGE.partition("| Message, or what you see")[2]
    words = [word for row in re.findall(r"^\| (.*?) \|", table, re.MULTILINE) for word in re.findall(r"`(.+?)`", row)]
    assert len(words) > 10
    parts = [part for word in words for part in re.split(r" … |\d+", word) if part.strip()]
    assert {part for part in parts if part.strip() not in plain} == set()


def test_a_first_mask_takes_six_commands_as_the_page_says():
    """Clone, setup, activate, convert, train, predict: each block's commands but the look at the sheet."""
    start = re.search(r"```\n(git clone.*?)```", PAGE, re.DOTALL)[1].replace(" && cd glioma-dist", "")
    _, convert, _, first_try, *_ = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    commands = [line for block in (start, convert, first_try) for line in block.replace("\\\n", "").splitlines()]
    assert len(commands) == 6
    assert "you type six commands" in PAGE
    assert (
        commands[1].split()[1] in (REPOSITORY / "Makefile").read_text().partition(".PHONY:")[2].splitlines()[0].split()
    )
