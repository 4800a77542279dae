"""A study of the article on drawn images, from shards to the page: few steps of the smallest network, two repetitions.

The runs are the entry points' own, started from a server that has the libraries already; one is started by `accelerate
launch`, as a study does.
"""

import base64
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import Browser
from helpers import REPOSITORY, command, draw_shards

from glioma_dist.config.reproduction import ReproduceConfig
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.splits import read_splits
from glioma_dist.errors import InputError
from glioma_dist.report.study_page import write_study_report
from glioma_dist.reproduction import run as reproduction
from glioma_dist.reproduction.execute import execute, is_finished, launcher
from glioma_dist.reproduction.material import prepare, read_groups
from glioma_dist.reproduction.plan import Settings, make_plan
from glioma_dist.reproduction.presets import PRESETS, Preset, Schedule
from glioma_dist.reproduction.protocol import AT_704, LIVECELL_704, RESIZE_704, Claim, Comparison, Row, Study
from glioma_dist.reproduction.results import collect
from glioma_dist.size import Size

TINY = Preset(
    "tiny",
    {"704p": Size(48, 32), "1472p": Size(64, 48), "2592p": Size(96, 64)},
    target_size=Size(96, 64),
    encoders={"mit_b3": "mit_tiny"},
    num_repetitions=2,
    pretraining=Schedule(epochs=9, batch_size=2, max_steps=6),
    fine_tuning=Schedule(epochs=2, batch_size=3),
    lr=1e-3,
)
ZERO_SHOT = Comparison("704p", "704p", "target")
STUDY = Study(
    "figure6",
    "A tiny study",
    (
        Row("mit_b3", "random", RESIZE_704, AT_704, (0.868,)),
        Row("mit_b3", "imagenet", RESIZE_704, AT_704, (0.930,)),
        Row("mit_b3", LIVECELL_704, RESIZE_704, AT_704, (0.940,), "<a remark>"),
        Row("mit_b3", LIVECELL_704, None, ZERO_SHOT),
    ),
    (Claim("cells are better than nothing", 2, 0), Claim("ImageNet is better than nothing", 1, 0)),
    "pictures",
)


def by_server(script: str, config: Path, log: Path) -> int:
    """Runs an entry point in a process forked from one that has the libraries."""
    ended = command(script, "--config", config)
    with log.open("a") as file:
        file.write(ended.stdout + ended.stderr)
    return ended.exit_code


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    draw_shards(folder / "source" / "train", range(4))
    draw_shards(folder / "source" / "val", range(10, 12))
    draw_shards(folder / "target", range(20, 32))
    return folder


def settings_in(folder: Path, out: str) -> Settings:
    counts = (6, 2, 4)
    return Settings(
        TINY,
        folder / "source",
        folder / out,
        seed=3,
        counts=counts,
        imagenet=("none",),
        activation_checkpointing="none",
        workers=0,
    )


def make(folder: Path, out: str, study: Study = STUDY, launch=by_server) -> tuple[dict, list]:
    """The whole way that `glioma-dist reproduce` goes."""
    settings = settings_in(folder, out)
    prepare(settings, [folder / "target"], "group", [study])
    plan = make_plan(study, settings, (4, 2))
    failed = execute(plan.jobs, launch, {"device": "a drawn machine", "commit": "0000000"}, lambda _: None)
    metadata = {"device": "a drawn machine", "commit": "0000000", "command": "reproduce <this>"}
    results = collect(plan, settings, Path("cpu.yaml"), read_groups(settings), metadata)
    write_study_report(results, settings.out)
    return results, failed


@pytest.fixture(scope="module")
def study(folder) -> dict:
    results, failed = make(folder, "out")
    assert failed == [], [job.log.read_text()[-2000:] for job in failed]
    return results


def test_every_row_has_its_score_from_every_repetition(study, folder):
    random, imagenet, cells, zero_shot = study["rows"]
    assert [row["status"] for row in (random, cells, zero_shot)] == ["ok"] * 3
    assert "no ImageNet weights of mit_tiny" in imagenet["status"]
    assert [len(row["repetitions"]) for row in study["rows"]] == [2, 0, 2, 1]
    for row, name in ((random, "mit_tiny-random-resize_704p"), (cells, "mit_tiny-livecell_resize_704p-resize_704p")):
        scores = [
            json.loads((folder / "out" / "runs" / name / number / "scores_test_704p_704p.json").read_text())
            for number in ("00", "01")
        ]
        assert row["repetitions"] == pytest.approx([each["dice_mean"] for each in scores])
        assert row["mean"] == pytest.approx(sum(row["repetitions"]) / 2)
        assert row["interval"][0] <= row["mean"] <= row["interval"][1]
        for number, each in enumerate(scores):
            tested = read_splits(folder / "out" / "splits.json")[number]["test"]
            assert [image["key"] for image in each["images"]] == tested
    assert sorted(row["best"] for row in (random, cells)) == [False, True]
    assert [claim["verdict"] for claim in study["claims"]][1] == "not run"
    assert study["claims"][0]["difference"] == pytest.approx(cells["mean"] - random["mean"])
    assert any("random weights" in note for note in study["notes"])


def test_pretraining_is_trained_once_and_its_lineage_is_kept(study, folder):
    pretraining = [run for run in study["runs"] if "/source/" in str(run["config"].get("data"))]
    assert len(pretraining) == 1
    assert len([run for run in study["runs"] if run["name"] == "train"]) == 5
    best = folder / "out/runs/mit_tiny-livecell_resize_704p-resize_704p/01/run/best/state.json"
    lineage = json.loads(best.read_text())["lineage"]
    assert [each.get("data") for each in lineage] == ["drawn", "drawn"]


def test_the_target_is_brought_to_its_size_and_its_splits_never_meet(study, folder):
    out = folder / "out" / "target"
    for number in range(2):
        keys = [set(ShardReader(out / f"{number:02d}" / name).keys()) for name in ("train", "val", "test")]
        assert [len(each) for each in keys] == [6, 2, 4]
        assert len(set.union(*keys)) == 12
    assert ShardReader(out / "all").read(0, 0).image.shape == (64, 96)


def test_the_same_study_again_runs_nothing_and_a_new_one_gives_the_same_numbers(study, folder):
    def refuse(script: str, config: Path, log: Path) -> int:
        raise AssertionError(f"{script} {config} is finished")

    assert make(folder, "out", launch=refuse)[0] == study
    part = replace(STUDY, rows=STUDY.rows[2:3], claims=(), shows="table")
    again, failed = make(folder, "again", part)
    assert failed == []
    for name in ("mean", "repetitions", "interval", "standard_deviation"):
        assert again["rows"][0][name] == study["rows"][2][name]


def test_a_run_that_fails_stops_only_those_that_need_it_and_is_tried_again(study, folder):
    def without_source(script: str, config: Path, log: Path) -> int:
        if "livecell" in str(config):
            log.write_text("error: the disk is full\nthe launcher's own report\n")
            return 1
        shutil.copytree(
            folder / "out" / config.parent.relative_to(folder / "broken"), config.parent, dirs_exist_ok=True
        )
        return 0

    part = replace(STUDY, rows=(STUDY.rows[0], STUDY.rows[2]), claims=(STUDY.claims[0],), shows="table")
    part = replace(part, claims=(Claim("cells", 1, 0),))
    results, failed = make(folder, "broken", part, without_source)
    assert len(failed) == 5  # pretraining, and for each repetition training and scoring
    assert [row["status"] == "ok" for row in results["rows"]] == [True, False]
    assert "did not end well" in results["rows"][1]["status"]
    assert any(run["status"] == "the disk is full" for run in results["runs"])
    assert results["claims"][0]["verdict"] == "not run"
    tried = []

    def record(script: str, config: Path, log: Path) -> int:
        tried.append(script)
        return 1

    make(folder, "broken", part, record)
    assert tried == ["train"]


def test_two_tasks_make_a_study_and_the_last_call_has_all_of_it(study, folder, monkeypatch, capsys):
    """Their runs are those of the whole study, copied."""
    part, out = replace(STUDY, rows=STUDY.rows[:1], claims=(), shows="table"), folder / "tasks"

    def copy(command: str, config: Path, log: Path) -> int:
        source = folder / "out" / config.parent.relative_to(out)
        if command == "train":
            shutil.copytree(source / "run", config.parent / "run")
        else:
            shutil.copy(source / "scores_test_704p_704p.json", config.parent)
        return 0

    monkeypatch.setitem(PRESETS, "small", TINY)
    monkeypatch.setattr(reproduction, "find_studies", lambda *_: [part])
    monkeypatch.setattr(reproduction, "launcher", lambda _: copy)
    flags = {"source": folder / "source", "target": (folder / "target",), "out": out, "preset": "small", "seed": 3}
    flags |= {"counts": (6, 2, 4), "imagenet": ("none",), "activation_checkpointing": "none", "workers": 0}
    config = ReproduceConfig("figure6", **flags)
    said = []
    for changes in ({"task": 1, "num_tasks": 2}, {"report_only": True}, {"task": 0, "num_tasks": 2}):
        assert reproduction.reproduce(replace(config, **changes))
        said.append(re.findall(r"(\d) of 4 runs are not finished", capsys.readouterr().out))
    assert said == [["2"], ["2"], []]
    (row,) = json.loads((out / "figure6.json").read_text())["rows"]
    assert row["status"] == "ok"
    assert row["repetitions"] == study["rows"][0]["repetitions"]


def test_other_settings_in_the_same_folder_are_refused(study, folder):
    settings = replace(settings_in(folder, "out"), preset=replace(TINY, lr=1e-2))
    plan = make_plan(STUDY, settings, (4, 2))
    plan.jobs[0].marker.rename(plan.jobs[0].marker.with_suffix(".aside"))
    try:
        with pytest.raises(InputError, match="other settings"):
            execute(plan.jobs[:1], by_server, {}, lambda _: None)
    finally:
        plan.jobs[0].marker.with_suffix(".aside").rename(plan.jobs[0].marker)


def test_a_training_that_was_begun_goes_on_with_other_settings_of_cost(folder):
    told = []

    def stop(script: str, config: Path, log: Path) -> int:
        told.append(json.loads(config.read_text())["data"]["workers"])
        log.write_text("error: stopped\n")
        return 1

    for workers in (0, 1):
        plan = make_plan(STUDY, replace(settings_in(folder, "begun"), workers=workers), (4, 2))
        assert execute(plan.jobs[:1], stop, {}, lambda _: None)
    assert told == [0, 1]


def test_a_run_by_accelerate_launch_as_it_can_be_repeated_by_hand(study, folder, monkeypatch):
    """One scoring run again, by its own config, gives the same file."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    settings = settings_in(folder, "out")
    (job, *_) = [job for job in make_plan(STUDY, settings, (4, 2)).jobs if job.command == "evaluate"]
    out = Path(job.config["out"])
    before = out.read_text()
    out.unlink()
    launch = launcher(REPOSITORY / "accelerate_configs" / "cpu.yaml")
    log = folder / "launch.log"
    assert launch(job.command, job.config_file, log) == 0, log.read_text()
    assert out.read_text() == before
    assert is_finished(job)


class Page(HTMLParser):
    """The cells of its tables, its pictures, and whatever it fetches."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.rows, self.sources, self.links = [], [], [], []

    def handle_starttag(self, tag, attributes):
        metadata = dict(attributes)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if "src" in metadata:
            self.sources.append(metadata["src"])
        if "href" in metadata:
            self.links.append(metadata["href"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_the_page_is_whole_stands_alone_and_has_every_figure(study, folder):
    text = (folder / "out" / "figure6.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.links == []
    assert "<script" not in text
    assert page.rows[0][:6] == ["model", "starting weights", "fine-tuning", "compared at", "article", "ours"]
    for line, row in zip(page.rows[1:5], study["rows"], strict=True):
        assert line[:2] == ["mit_tiny (for MiT-B3)", row["start"]]
        assert line[5] == (f"{row['mean']:.3f}" if row["mean"] is not None else row["status"])
    assert [line[4] for line in page.rows[1:4]] == ["0.868", "0.930", "0.940"]
    assert "&lt;a remark&gt;" in text
    assert "reproduce &lt;this&gt;" in text
    assert text.count("<details>") == len(study["runs"])
    assert all(run["seconds"] > 0 and run["command"] in text for run in study["runs"])
    (source,) = page.sources
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(source.partition("base64,")[2]), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[1] > 800
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 200  # image, overlays, letters


def test_markdown_says_the_same_and_names_no_other_place(study, folder):
    text = (folder / "out" / "figure6.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| mit_tiny")]
    assert len(lines) == 4
    assert f"{study['rows'][0]['mean']:.3f}" in lines[0]
    assert "figure6.png" in text
    assert (folder / "out" / "figure6.png").is_file()
    assert "cells are better than nothing: " in text
    assert f"{len(study['runs'])} of {len(study['runs'])} runs are finished" in text


@pytest.mark.parametrize("width", [1300, 420])
def test_a_real_browser_shows_the_page(study, folder, width):
    shot = folder / f"page-{width}.png"
    with Browser() as browser:
        browser.look(width, 2000)
        browser.open(folder / "out" / "figure6.html")
        browser.screenshot(shot)
        assert browser.evaluate("document.querySelectorAll('tr').length") >= 9
        assert browser.errors == []
    picture = cv2.imread(str(shot))
    assert picture.shape[1] == width
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100, "the picture panel is not shown"
    dark = (picture < 100).all(axis=2)
    assert dark[: len(dark) // 4].any(), "no heading is shown"
