"""docs/metrics.md and docs/checkpoint_format.md against the files that a real run writes; their blocks are run."""

import csv
import json
import re
from pathlib import Path

import cv2
import pytest
from helpers import REPOSITORY, draw_labelled, draw_sample, draw_shards, run, tiny_config, write_shards
from test_examples import run_blocks

import glioma_dist as gd

METRICS, CHECKPOINT = ((REPOSITORY / "docs" / name).read_text() for name in ("metrics.md", "checkpoint_format.md"))


def make(folder: Path) -> None:
    """runs/glioma, its scores and its masks, as the pages name them."""
    draw_shards(folder / "train", range(6))
    draw_shards(folder / "val", range(6, 8))
    (folder / "images").mkdir()
    cv2.imwrite(str(folder / "images" / "a.png"), draw_sample(9).image)
    (folder / "images" / "b.png").write_bytes(b"nothing")
    trained = gd.train(tiny_config(folder, folder / "runs" / "glioma"))
    make_other(folder)
    gd.evaluate(gd.EvaluateConfig(trained.best, str(folder / "val"), out=folder / "scores.json", workers=0))
    gd.predict(gd.PredictConfig(trained.best, str(folder / "images"), folder / "masks"))


def make_other(folder: Path) -> None:
    """runs/other and its scores: with several classes, a moving average, and a learning rate that is not constant."""
    shards = folder / "labelled"
    for split, numbers in (("train", range(6)), ("val", range(6, 8))):
        samples = [draw_labelled(number, num_classes=2, has_instances=True) for number in numbers]
        write_shards(shards / split, samples, classes=("live", "dead"))
    classes = {"classes": ("live", "dead"), "ema_decay": 0.9, "warmup_steps": 2}
    other = gd.train(tiny_config(shards, folder / "runs" / "other", max_steps=3, **classes))
    scored = gd.EvaluateConfig(other.best, str(shards / "val"), out=folder / "other.json", workers=0, instances=True)
    gd.evaluate(scored)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    run(make, folder)
    return folder


def section(page: str, title: str) -> str:
    return re.split(r"^## ", page.partition(f"## {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def first_cells(text: str) -> set[str]:
    """Names in code in the first column of a section's tables."""
    return {name for cell in re.findall(r"^\| (.*?) \|", text, re.MULTILINE) for name in re.findall(r"`(.+?)`", cell)}


def test_the_fields_of_metrics_are_those_of_a_run(work):
    rows, others = (
        [json.loads(line) for line in (work / f"runs/{name}/metrics.jsonl").read_text().splitlines()]
        for name in ("glioma", "other")
    )
    told = section(METRICS, "metrics.jsonl")
    assert first_cells(told) == {name for row in [*rows, *others] for name in row}
    shown = [json.loads(line) for line in re.findall(r"^\{.*\}$", told, re.MULTILINE)]
    assert [list(row) for row in shown] == [list(rows[0]), list(next(row for row in rows if "split" in row))]
    assert (rows[0]["step"], rows[0]["epoch"]) == (1, 0)
    assert {row.get("split", "val") for row in rows} == {"val"}


def test_the_fields_of_scores_are_those_of_an_evaluation(work):
    scores, others = (json.loads((work / name).read_text()) for name in ("scores.json", "other.json"))
    told = section(METRICS, "scores.json")
    assert first_cells(told) == {*scores, *others}
    for name in (*scores["data"], *scores["images"][0], *others["images"][0]):
        assert f"`{name}`" in told


def test_the_columns_of_the_tables_are_those_of_a_prediction(work):
    told = section(METRICS, "summary.csv and failed.csv")
    for name in ("summary.csv", "failed.csv"):
        with (work / "masks" / name).open(newline="") as file:
            columns = next(csv.reader(file))
        (row,) = re.findall(rf"^\| `{name}`.*\|(.*)\|$", told, re.MULTILINE)
        assert [each for each in re.findall(r"`(.+?)`", row) if each in columns] == columns
    assert first_cells(told) == {"summary.csv", "failed.csv"}


def test_the_files_and_fields_of_a_checkpoint_are_those_of_a_run(work):
    last, best = work / "runs/glioma/last", work / "runs/glioma/best"
    files = first_cells(CHECKPOINT.partition("## manifest.json")[0])
    assert files == {path.name for path in (work / "runs/other/last").iterdir()}
    assert files - {"ema.safetensors"} == {path.name for path in last.iterdir()}
    assert files - {"ema.safetensors", "optimizer.safetensors"} == {path.name for path in best.iterdir()}
    state = json.loads((last / "state.json").read_text())
    told = section(CHECKPOINT, "state.json")
    # Of fp16, of a disk that was full, of a learning rate that changes, of --reproducible.
    others = {"scaler", "unwritten_rows", "schedule_steps", "arithmetic", "gradient_exponents"}
    assert first_cells(told) == {*state} | others
    assert f"| `format_version` | {state['format_version']};" in told
    for name in state["position"]:
        assert f"`{name}`" in told
    manifest = json.loads((last / "manifest.json").read_text())
    shown = json.loads(re.findall(r"```json\n(.*?)```", CHECKPOINT, re.DOTALL)[0])
    assert shown.keys() == manifest.keys()
    assert shown["format_version"] == manifest["format_version"]
    for name, entry in shown["files"].items():
        assert entry.keys() == manifest["files"][name].keys()
        for tensor, what in entry.get("tensors", {}).items():
            assert manifest["files"][name]["tensors"][tensor].keys() == what.keys()
    tensors = manifest["files"]["optimizer.safetensors"]["tensors"]
    named = set(re.findall(r"`NAME/(\w+)`", CHECKPOINT))
    assert named == {name.rpartition("/")[2] for name in tensors}


@pytest.mark.parametrize("page", [METRICS, CHECKPOINT], ids=["metrics", "checkpoint_format"])
def test_the_blocks_of_a_page_run(page, work):
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    run(run_blocks, blocks, work)


def test_the_losses_of_the_page_are_those_of_the_package():
    from glioma_dist.registry import losses

    assert first_cells(section(METRICS, "Loss")) - {"--loss"} == {*losses.names(), "dice+bce", "dice+0.5*bce"}
