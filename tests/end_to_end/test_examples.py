"""The examples, the blocks of docs/api.md and the example of `help(glioma_dist)`, on tiny drawn data."""

import re
import shlex
from pathlib import Path

import cv2
import pytest
from helpers import REPOSITORY, command, draw_sample, draw_shards, run

import glioma_dist

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
SMALLER = {
    "train_from_python.py": ["--steps", "1", "--size", "32x32"],
}
SMALLER_TEXTS = {
    "gd.Size(256, 256)": "gd.Size(32, 32)",
    "mit_b0": "mit_tiny",
    "max_steps=64": "max_steps=1",
    "eval_every=32": "eval_every=1",
    "plates/*.tif": "runs/demo/plate/*.png",
    'Path("masks")': 'Path("runs/masks")',
}


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with runs/demo as `make demo` leaves it, but tiny."""
    folder = tmp_path_factory.mktemp("examples")
    for number, split in enumerate(("train", "val", "test")):
        draw_shards(folder / "runs/demo/shards/glioma_c6" / split, range(4 * number, 4 * number + 4))
    (folder / "runs/demo/plate").mkdir()
    cv2.imwrite(str(folder / "runs/demo/plate/a.png"), draw_sample(20).image)
    return folder


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs_by_the_command_in_its_first_lines(example, work):
    (line,) = re.findall(rf"^ *python (examples/{example.name}.*)$", example.read_text(), re.MULTILINE)
    script, *arguments = shlex.split(line)
    arguments = [str(work / each) if each.startswith("runs/") else each for each in arguments]
    # Sizes become one small one, which need not be estimated twice.
    arguments = list(dict.fromkeys(re.sub(r"^\d+x\d+$", "64x32", each) for each in arguments))
    ended = command(script, *arguments, *SMALLER.get(example.name, ()), timeout=600)
    assert (ended.exit_code, ended.stderr) == (0, ""), ended.stderr
    assert len(ended.stdout.splitlines()) >= 2


def run_blocks(blocks: list[str], folder: Path) -> None:
    import os

    os.chdir(folder)
    names: dict = {"__name__": "notebook"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"block {number}", "exec"), names)


def smaller(text: str) -> str:
    for old, new in SMALLER_TEXTS.items():
        text = text.replace(old, new)
    return text


def test_the_blocks_of_the_page_run_one_after_another(work):
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "api.md").read_text(), re.DOTALL)
    assert len(blocks) == 7
    run(run_blocks, [smaller(block) for block in blocks], work, timeout=600)
    assert (work / "runs/api/masks/a.mask.png").is_file()
    assert (work / "runs/api/scores.json").is_file()


def test_the_example_of_the_packages_help_runs(work):
    (block,) = re.findall(r"\n\n((?:    .*\n|\n)+)train, evaluate", glioma_dist.__doc__)
    run(run_blocks, [smaller(re.sub(r"^    ", "", block, flags=re.MULTILINE))], work, timeout=600)
    assert (work / "runs/first/best").is_dir()


def test_every_public_name_is_on_the_page():
    page = (REPOSITORY / "docs" / "api.md").read_text()
    unnamed = {name for name in glioma_dist.__all__ if not re.search(rf"\b{name}\b", page)}
    # What these functions return needs no name where it is used.
    assert unnamed == {
        "Batch",
        "EvaluationResult",
        "GrowthResult",
        "InferenceScaleConfig",
        "ModuleStepMemory",
        "PredictionReport",
        "PredictionResult",
        "StepMemory",
        "TrainResult",
    }


def test_the_blocks_of_the_page_on_own_parts_run(tmp_path):
    """The parts and their package's declaration as the page has them."""
    text = (REPOSITORY / "docs" / "guides" / "own_parts.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    run(run_blocks, [*blocks, CALLS_OF_OWN_PARTS], tmp_path)


CALLS_OF_OWN_PARTS = """
import torch
from glioma_dist.losses import segmentation_loss

losses_of_images = segmentation_loss("squared_error", torch.zeros(2, 1, 4, 4), torch.ones(2, 4, 4))
assert losses_of_images.tolist() == [0.25, 0.25]
for shape in ((6, 8), (6, 8, 3)):
    image, mask = vignette(np.full(shape, 200, np.uint8), np.ones((6, 8), np.uint8), np.random.default_rng(0))
    assert image.shape == shape and image.dtype == np.uint8 and mask.all()
    assert image[0, 0].max() < image[3, 4].max() <= 200
assert encoders.find("plain_cnn").target == "my_parts:PlainCNN"

from pathlib import Path
import cv2
Path("labelled").mkdir()
cv2.imwrite("labelled/x.png", np.zeros((20, 30), np.uint8))
Path("labelled/x.points.txt").write_text("2 3 9 3 9 8 2 8\\n")
(split,) = find_points(Path("labelled")).splits
assert split.name

from glioma_dist.inference.result_folder import open_results
from glioma_dist.inference.segmented import SegmentedImage
from glioma_dist.registry import writers

writers.register("area.txt", write_area)
results = open_results(Path("."), ["mask", "area.txt"])
with results.opened():
    image = SegmentedImage(Path("a.png"), np.zeros((6, 8), np.uint8), np.ones((6, 8), np.float32), 0.5)
    done = results.write("a", image)
assert done.files["area.txt"].read_text() == "48\\n"
"""
