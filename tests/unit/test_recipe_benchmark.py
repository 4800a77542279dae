"""benchmarks/recipes.py at tiny size: screens, compares, resumes, and trains smp's U-Net on the same batches."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import cv2
import numpy as np
import psutil
import pytest
import torch
from helpers import REPOSITORY, TINY_CHANNELS, draw_sample, load_benchmark

from glioma_dist.benchmark.rows import results_folder
from glioma_dist.config import ModelConfig, TrainConfig
from glioma_dist.errors import InputError
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.manifest import MODEL
from glioma_dist.model.pretrained.state_dict_adapter import rename_network
from glioma_dist.model.unet import build_model
from glioma_dist.size import Size

CPU = torch.device("cpu")


@pytest.fixture
def benchmark():
    yield from load_benchmark("recipes")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """30 drawn fields in the layout of T98G."""
    root = tmp_path_factory.mktemp("t98g")
    (root / "images/default").mkdir(parents=True)
    (root / "annotations").mkdir()
    images, cells = [], []
    for number in range(30):
        sample = draw_sample(number)
        cv2.imwrite(str(root / f"images/default/{number:02}.png"), sample.image)
        height, width = sample.mask.shape
        images.append({"id": number, "file_name": f"default/{number:02}.png", "height": height, "width": width})
        for outline in cv2.findContours(sample.mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]:
            if len(outline) > 2:
                polygon = [float(value) for value in outline.ravel()]
                cell = {"id": len(cells) + 1, "image_id": number, "category_id": 1, "iscrowd": 0, "area": 9}
                cells.append(cell | {"segmentation": [polygon]})
    content = {"images": images, "annotations": cells, "categories": [{"id": 1, "name": "cell"}]}
    (root / "annotations/instances_default.json").write_text(json.dumps(content))
    return root


def flags_of(source, out, *more) -> list[str]:
    given = ["--source", source, "--out", out, "--steps", 2, "--size", "32x32", "--encoders", "mit_b0", "--threads", 1]
    given += ["--decoder-channels", *TINY_CHANNELS, "--splits", 0, 1, "--recipes", "dice+bce", "slow encoder", *more]
    return [str(each) for each in given]


def run(benchmark, monkeypatch, source, out, *more) -> None:
    monkeypatch.setattr("sys.argv", ["recipes.py", *flags_of(source, out, *more)])
    benchmark.main()


def test_recipes_are_screened_and_compared_and_nothing_is_computed_twice(benchmark, monkeypatch, source, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"no screening of mit_b0; run --screen first"):
        run(benchmark, monkeypatch, source, out, "--final")
    run(benchmark, monkeypatch, source, out, "--screen", "--final")
    screened = json.loads((out / "screening.json").read_text())
    assert [row["recipe"] for row in screened] == ["default", "dice+bce"], "the third is for pretrained encoders"
    final = json.loads((out / "final.json").read_text())
    winner = max(screened, key=lambda row: row["validation_dice"])["recipe"]
    assert [row["recipe"] for row in final] == list(dict.fromkeys(["default", winner, "smp"]))
    for row in final:
        assert [len(table) for table in row["scores"]] == [10, 10]
        assert row["dice_of_splits"] == pytest.approx([np.mean(list(table.values())) for table in row["scores"]])
        assert row["interval"][0] <= row["dice"] <= row["interval"][1]
    lines = (out / "final.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == [row["recipe"] for row in final]
    before = (out / "final.json").read_bytes()
    monkeypatch.setattr(benchmark, "evaluate", None)
    run(benchmark, monkeypatch, source, out, "--screen", "--final")
    assert (out / "final.json").read_bytes() == before


def test_a_killed_run_of_smp_resumes_with_the_same_bits(benchmark, monkeypatch, source, tmp_path):
    from baselines import smp_unet

    out = tmp_path / "out"
    given = benchmark.RecipesConfig(
        source, out, steps=4, size=Size(32, 32), decoder_channels=TINY_CHANNELS, encoders=("mit_b0",)
    )
    benchmark.convert(benchmark.find_glioma_c6(source), benchmark.shards_of(given, 0), "t98g", split_seed=0)
    config = benchmark.run_config(given, "mit_b0", "smp", 0)
    whole, killed = (replace(config, save_every=2, out=tmp_path / name) for name in ("whole", "killed"))
    smp_unet.train_smp(whole, CPU)
    with monkeypatch.context() as patch:
        patch.setattr(smp_unet, "islice", lambda batches, number: iter([next(batches) for _ in range(3)] + [None]))
        with pytest.raises(AttributeError, match="'NoneType' object has no attribute"):
            smp_unet.train_smp(killed, CPU)
    assert Checkpoint.read(killed.out / "smp").step == 2
    last = smp_unet.train_smp(killed, CPU)
    ours, theirs = (Checkpoint.read(each).tensors(MODEL) for each in (last, whole.out / "last"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("encoder", ["mit_b0", "efficientnet_lite0"])
def test_smps_network_is_shown_what_ours_is_and_its_trained_weights_give_the_same_logits(benchmark, encoder):
    """Also where the published weights expect another normalisation than ImageNet's."""
    from baselines import smp_unet

    model = ModelConfig(encoder=encoder, decoder_channels=TINY_CHANNELS)
    ours = build_model(model, 0)[0].eval()
    theirs = smp_unet.build_smp(TrainConfig(model=model), ours).eval()
    ours.load_state_dict(rename_network(theirs.state_dict(), ours.encoder), strict=False)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (theirs(images) - ours(images)).abs().max() < 1e-4


@pytest.mark.long
def test_recipes_trained_side_by_side_score_what_they_score_alone(benchmark, monkeypatch, source, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run(benchmark, monkeypatch, source, one, "--screen", "--final")
    script = [sys.executable, REPOSITORY / "benchmarks/recipes.py"]
    subprocess.run([*script, *flags_of(source, two, "--screen", "--final", "--processes", 2)], check=True)
    for name in ("screening.json", "final.json"):
        assert (one / name).read_text() == (two / name).read_text()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_trainings_side_by_side_end_with_the_command(source, tmp_path, number):
    flags = flags_of(source, tmp_path / "out", "--screen", "--processes", 2, "--steps", 100_000)
    with open(tmp_path / "output", "w+") as output:
        command = [sys.executable, REPOSITORY / "benchmarks/recipes.py", *flags]
        process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + 240
            while (tmp_path / "output").read_text().count("\nstep") < 2:
                assert process.poll() is None, (tmp_path / "output").read_text()
                assert time.monotonic() < until
                time.sleep(0.2)
            children = process.children(recursive=True)
            assert len(children) > 2
            process.send_signal(number)
            assert process.wait(30) != 0
            assert psutil.wait_procs(children, 30)[1] == []
        finally:
            for each in (process, *process.children(recursive=True)) if process.is_running() else ():
                each.kill()
    if number == signal.SIGTERM:
        assert "stopped: received SIGTERM" in (tmp_path / "output").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "give --screen, --final"),
        (("--screen", "--recipes", "sgdd"), "sgdd: unknown"),
        (("--screen", "--processes", 0), "--processes 0: give 1 or more"),
        (("--screen", "--threads", 0), "--threads 0: give 1 or more"),
        (("--screen", "--splits"), "--splits: give one or more, each once"),
        (("--screen", "--splits", 0, 1, 0), "--splits 0 1 0: give one or more, each once"),
        (("--screen", "--encoders"), "--encoders: give one or more, each once"),
        (("--screen", "--encoders", "mit_b9"), "mit_b9: unknown"),
    ],
)
def test_wrong_flags_are_refused(benchmark, monkeypatch, source, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        run(benchmark, monkeypatch, source, tmp_path / "out", *flags)


def test_a_folder_of_other_settings_is_refused_and_kept(benchmark, monkeypatch, tmp_path):
    """Scores and runs that are there are not computed again, so that they would be those of other settings."""
    given = benchmark.RecipesConfig(tmp_path, tmp_path / "out", final=True, size=Size(32, 32))
    given.out.mkdir()
    (given.out / "settings.json").write_text(json.dumps(benchmark.check_settings(given, benchmark.SETTINGS)))
    benchmark.check_settings(replace(given, splits=(0,), encoders=("mit_b0",), threads=1), benchmark.SETTINGS)
    before = (tmp_path / "out" / "settings.json").read_bytes()
    for changes, words in (
        ({"steps": 400}, "--steps 400: .*out holds runs with 200; give another --out, or the same"),
        ({"decoder_channels": TINY_CHANNELS}, "--decoder-channels"),
    ):
        with pytest.raises(InputError, match=words):
            benchmark.check_settings(replace(given, **changes), benchmark.SETTINGS)
    assert (tmp_path / "out" / "settings.json").read_bytes() == before
    monkeypatch.setattr(benchmark, "parse", lambda kind: replace(given, steps=400))
    with pytest.raises(InputError, match="--steps 400"):
        benchmark.main()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dice+bce", None),  # in place of the recipe of that name
        ("mine, too", None),
        ("../mine", "'../mine' cannot be the name of a recipe"),
        ("..", "'..' cannot be the name of a recipe"),
        ("smp", "'smp' cannot be the name of a recipe"),
        ("adamw_cosine", "'adamw_cosine' would have the folder of 'adamw, cosine'"),
    ],
)
def test_each_recipe_has_a_folder_of_its_own(benchmark, source, tmp_path, name, message):
    more = tmp_path / "more.yaml"
    more.write_text(f"{name!r}: {{lr: 0.001}}\n")
    config = benchmark.RecipesConfig(source, tmp_path / "out", screen=True, more=more)
    if message is None:
        config.validate()
    else:
        with pytest.raises(InputError, match=re.escape(message)):
            config.validate()


def test_scores_of_a_recipe_that_was_changed_are_not_taken(benchmark, source, tmp_path):
    """They would be told as those of the settings that it has now."""
    more = tmp_path / "more.yaml"
    config = benchmark.RecipesConfig(source, tmp_path / "out", screen=True, more=more)
    scores = iter([{"a": 0.5}])
    for rate in (0.01, 0.001):  # changed before anything was trained
        more.write_text(f"mine: {{lr: {rate}}}\n")
        benchmark.note_recipe(config, "mit_b0", "mine", 0)
    (config.out / "mit_b0" / "mine" / "0").mkdir()
    benchmark.note_recipe(config, "mit_b0", "mine", 0)
    more.write_text("mine: {lr: 0.5}\n")
    with pytest.raises(InputError, match=r"recipe mine: .*mine holds a training of .*0\.001.*; give another name"):
        list(benchmark.results(lambda *_: next(scores), config, [("mit_b0", "mine", 0)]))
    assert next(scores) == {"a": 0.5}, "nothing was trained"


def test_a_winner_that_more_does_not_have_is_refused(benchmark, tmp_path):
    """It would be trained as a recipe without settings."""
    config = benchmark.RecipesConfig(tmp_path, tmp_path, final=True)
    row = {"encoder": "mit_b0", "recipe": "mine", "validation_dice": 0.9}
    (tmp_path / "screening.json").write_text(json.dumps([row]))
    with pytest.raises(
        InputError, match=r"screening\.json names the winner mine of mit_b0; give the --more that has it"
    ):
        benchmark.winner_of(config, "mit_b0")
    (tmp_path / "more.yaml").write_text("mine: {lr: 0.1}\n")
    assert benchmark.winner_of(replace(config, more=tmp_path / "more.yaml"), "mit_b0") == "mine"


def test_a_second_command_in_the_same_folder_is_refused(benchmark, monkeypatch, source, tmp_path):
    """It would replace the table of the first with its own."""
    with results_folder(tmp_path / "out"), pytest.raises(InputError, match="another benchmark is writing there"):
        run(benchmark, monkeypatch, source, tmp_path / "out", "--screen")
    assert [each.name for each in (tmp_path / "out").iterdir()] == [".lock"]


def test_every_recipe_is_a_training(benchmark, source, tmp_path):
    for encoder in ("mit_b0", "efficientnet_lite0"):
        weights = tmp_path / "weights.pth"
        config = benchmark.RecipesConfig(source, tmp_path, screen=True, weights=weights)
        for name, settings in benchmark.RECIPES.items():
            if benchmark.is_for(encoder, settings):
                assert benchmark.run_config(config, encoder, name, 0).max_steps == 200
