"""What a run says of its time, its waiting, its memory and its cost; and its curves."""

import io
import json
import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from helpers import draw_shards, rows, tiny_config

from glioma_dist.config import ModelConfig, TrainConfig
from glioma_dist.errors import InputError
from glioma_dist.report.curves import MAX_POINTS, Curve, draw_curves
from glioma_dist.scale import counted_steps, planner
from glioma_dist.size import Size
from glioma_dist.training import curves, telemetry
from glioma_dist.training.curves import CURVES, CurvesFile
from glioma_dist.training.loop import train
from glioma_dist.training.memory import estimate_memory, step_of
from glioma_dist.training.metrics_file import MetricsFile
from glioma_dist.training.run_record import RUN
from glioma_dist.training.summary import Summary, memory_in_use, summary_line
from glioma_dist.training.telemetry import DataWait, TrainingProgress, duration, estimate

THIS = {
    "seconds": 7800.0,
    "steps": 6000,
    "images": 24000,
    "images_per_second": 24000 / 7800,
    "data_wait_share": 0.042,
    "longest_data_wait_s": 3.0,
    "peak_gib": 12.345,
    "peak_of": "allocated",
}
NO_SUMMARIES = [None, 3, "x", [], {}, {"seconds": "1", "images": 2}, {"seconds": -1, "images": 2}, {"images": 3}]
NO_SUMMARIES += [
    {"seconds": float("nan"), "images": 1},
    {"seconds": 1, "images": 10**400},
    {"seconds": True, "images": 1},
]


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("summed")
    draw_shards(folder / "train", range(6))
    draw_shards(folder / "val", range(6, 8))
    return folder


def test_waits_are_added_up(monkeypatch):
    now = 5.0
    monkeypatch.setattr(telemetry, "time", SimpleNamespace(perf_counter=lambda: now))
    wait = DataWait()
    assert (wait.share, wait.longest, wait.last) == (0, 0, 0)
    for seconds in (2, 6, 1):
        with wait:
            now += seconds
        now += 3
    assert (wait.total, wait.longest, wait.last) == (9, 6, 1)
    assert wait.share == 9 / 18


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (60, "1 min 0 s"), (320, "5 min 20 s")),
        *((3599.6, "1 h 0 min"), (7800, "2 h 10 min"), (86399, "1 d 0 h"), (270000, "3 d 3 h")),
    ],
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


def test_the_estimate_says_how_long_and_until_when():
    now = datetime(2026, 11, 28, 12, 10, tzinfo=timezone(timedelta(hours=1), "CET"))
    told = estimate(7800, now, "without validations")
    assert told == "estimated time 2 h 10 min (without validations), done about 14:20 CET"
    assert "done about 2026-11-29 00:10 CET" in estimate(12 * 3600, now, "x")
    assert estimate(60, now.astimezone(UTC), "x").endswith("done about 11:11 UTC")


def test_the_estimate_comes_after_a_few_steps_and_after_the_first_validation(monkeypatch, capsys):
    """By a clock that this test moves: 60 s for the first step, 2 s for each other, 20 s for a validation."""
    clock = [0.0]
    monkeypatch.setattr(telemetry.time, "perf_counter", lambda: clock[0])
    progress = TrainingProgress(100, 1100, 4)
    for step in range(101, 112):
        clock[0] += 60 if step == 101 else 2
        progress.step(step, 0.5, 0.5, 0.5)
        if step % 5 == 0:
            clock[0] += 20
            progress.validated(step)
    said = [line for line in capsys.readouterr().out.splitlines() if "estimated" in line]
    assert len(said) == 2
    assert said[0].startswith(f"estimated time {duration(995 * 2)} (without validations), done about ")
    assert said[1].startswith(f"estimated time {duration(995 * (68 + 20) / 5)} (with validations), done about ")
    assert progress.figures["step_seconds"] == 2 + 20, "with the validation before it"
    assert progress.figures["data_wait_share"] == pytest.approx(11 * 0.5 / (60 + 10 * 2 + 2 * 20))


def test_a_short_run_has_no_estimate(capsys):
    progress = TrainingProgress(0, 8, 4)
    for step in range(1, 9):
        progress.step(step, 0.5, 0.5)
    progress.validated(8)
    assert "estimated" not in capsys.readouterr().out


@pytest.mark.parametrize("line", ["in runs/a[lr]/:x: " + "b" * 200, "in runs/x[/y]"])
def test_a_line_on_a_terminal_is_the_line(line):
    progress = TrainingProgress(0, 8, 4)
    progress.bar.console.file = said = io.StringIO()
    progress.bar.console._force_terminal = True
    assert progress.bar.console.is_terminal
    progress.say(line)
    assert said.getvalue() == f"{line}\n"


def test_the_line_of_one_start_and_of_several():
    line = "time 2 h 10 min, 24000 images, 3.08 images/s, 4.2 % of the time waiting for data, peak memory 12.35 GiB "
    assert summary_line(THIS) == f"{line}allocated"
    priced = THIS | {"cost": 5.4167, "price_per_hour": 2.5}
    assert summary_line(priced) == f"{line}allocated, cost 5.42"
    whole = "; all 3 starts, 1 of which ended without figures: time 4 h 20 min, 48000 images, 3.08 images/s, cost 10.83"
    assert summary_line(priced, [priced, None]) == f"this start: {line}allocated, cost 5.42{whole}"


@pytest.mark.parametrize("other", NO_SUMMARIES, ids=repr)
def test_whatever_run_json_has_of_earlier_starts_is_no_fault(other):
    assert "all 2 starts, 1 of which ended without figures: time 2 h 10 min" in summary_line(THIS, [other])


def test_a_summary_counts_this_start_only():
    summary = Summary(10, 4, price=3600.0)
    time.sleep(0.05)
    figures = summary.at(13)
    assert (figures["steps"], figures["images"], figures["peak_of"]) == (3, 12, "resident")
    assert 0.05 <= figures["seconds"] < 60
    assert figures["cost"] == pytest.approx(figures["seconds"], rel=0.1)
    assert figures["images_per_second"] == pytest.approx(12 / figures["seconds"], rel=0.1)
    assert json.loads(json.dumps(figures)) == figures
    assert "cost" not in Summary(0, 4).at(0)


def test_memory_of_a_gpu_is_what_pytorch_counts_and_waits_for_nothing(monkeypatch):
    stats = {"allocated_bytes.all.peak": 3 * 2**30, "allocated_bytes.all.current": 2**30}
    stats |= {"reserved_bytes.all.current": 2**31}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: stats)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("it waits for the GPU"))
    device = torch.device("cuda", 0)
    assert memory_in_use(device) == {"peak_gib": 3, "allocated_gib": 1, "reserved_gib": 2}
    assert Summary(0, 1, device).at(1)["peak_of"] == "allocated"
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {})  # before the first tensor
    assert set(memory_in_use(device).values()) == {0}


def test_the_memory_of_a_step_is_told_where_the_package_knows_it(runtime):
    if not counted_steps._steps():  # test_step_formulas.py says whether it should be of these versions
        pytest.skip("the table of counted steps is of other versions")
    config = TrainConfig(model=ModelConfig("mit_b0"), batch_size=2)
    peak = estimate_memory(config, runtime, "none")
    assert peak == planner.count(step_of(config, runtime), "none").peak > 2**29
    other = replace(config, model=ModelConfig("mit_b0", decoder_channels=(8, 8, 8, 8, 8)))
    assert estimate_memory(other, runtime, "none") is None, "it would have to be traced"


def test_each_start_has_its_figures_and_the_last_line_adds_them_up(material, tmp_path, capsys):
    config = tiny_config(material, tmp_path / "run", batch_size=2, max_steps=2, eval_every=2, price_per_hour=36.0)
    train(config)
    said = capsys.readouterr().out.splitlines()
    assert re.match(r"6 images, batch 2 on 1 process \(cpu\), .*, from step 0 to 2.*, in ", said[0])
    pattern = r"time [\d.]+ s, 4 images, [\d.]+ images/s, [\d.]+ % of the time waiting for data, peak memory [\d.]+ GiB"
    assert re.fullmatch(rf"{pattern} resident, cost \d\.\d\d", said[-1])
    train(replace(config, max_steps=4, price_per_hour=None))
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"this start: {pattern} resident; all 2 starts: time .*, 8 images, [\d.]+ images/s", said[-1])
    first, second = (each["summary"] for each in json.loads((config.out / RUN).read_text())["starts"])
    assert (first["images"], second["images"], second["steps"]) == (4, 4, 2)
    assert first["cost"] == pytest.approx(first["seconds"] / 100, rel=0.01)
    assert "cost" not in second
    assert 0 < first["data_wait_share"] < 1
    metrics = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    speeds = [row for row in metrics if "split" not in row]
    assert all(row["step_seconds"] > 0 and 0 <= row["data_wait_share"] <= 1 for row in speeds)
    # The first row of a start begins when the run opens its folder.
    assert sum(row["step_seconds"] for row in speeds[:2]) <= first["seconds"]


def test_a_killed_start_has_the_figures_of_its_last_checkpoint(material, tmp_path, monkeypatch):
    from glioma_dist.training.run_record import RunRecord

    monkeypatch.setattr(RunRecord, "ended", lambda *_: None)  # as if it had been killed
    config = tiny_config(material, tmp_path / "run", batch_size=2, max_steps=2, save_every=1, val=None)
    train(replace(config, eval_every=None))
    (start,) = json.loads((config.out / RUN).read_text())["starts"]
    assert start["ended"] is None
    assert start["summary"]["steps"] == 2


def curve(steps: int) -> Curve:
    values = np.random.default_rng(0).uniform(size=steps)
    return Curve(np.arange(1, steps + 1), values, 1 - values)


@pytest.mark.parametrize("steps", [2, MAX_POINTS, MAX_POINTS + 1, 10 * MAX_POINTS + 7])
def test_curves_show_all_steps(steps):
    drawn = curve(steps)
    val = Curve(np.array([steps]), np.array([0.5]), np.array([0.25]))
    figure = draw_curves(drawn, val, "a $run$ of é")
    for axes, ours, theirs in zip(figure.axes, (drawn.loss, drawn.dice), ([0.5], [0.25]), strict=True):
        line, validation = axes.lines
        each = -(-steps // MAX_POINTS)
        expected = [ours[first : first + each].mean() for first in range(0, steps, each)]
        assert line.get_ydata() == pytest.approx(expected)
        assert line.get_xdata()[0] == pytest.approx(drawn.steps[:each].mean())
        assert len(expected) <= MAX_POINTS
        assert list(validation.get_ydata()) == theirs
        assert len(axes.collections) == (steps > MAX_POINTS)
    figure.draw_without_rendering()


def test_a_run_has_its_curves_and_a_resumed_one_all_of_them(material, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "SECONDS_BETWEEN", 0.0)
    original = CurvesFile._draw
    monkeypatch.setattr(CurvesFile, "_draw", lambda self: (drawn.append(self._newest), original(self)))
    config = tiny_config(material, tmp_path / "run", batch_size=2, max_steps=4, eval_every=2)
    train(replace(config, max_steps=2))
    assert cv2.imread(str(config.out / CURVES)).std() > 1
    before = (config.out / CURVES).read_bytes()
    train(config)
    assert (config.out / CURVES).read_bytes() != before
    (steps, losses, dices), (val_steps, val_losses, _) = drawn[-1]
    metrics = rows(config.out)
    trained = [row for row in metrics if "split" not in row]
    assert [*zip(steps, losses, dices, strict=True)] == [(row["step"], row["loss"], row["dice"]) for row in trained]
    validated = [(row["step"], row["loss"]) for row in metrics if "split" in row]
    assert [*zip(val_steps, val_losses, strict=True)] == validated
    assert len(drawn) == 2, "at each validation, and not once more at the end"


def told_of(tmp_path: Path, monkeypatch, **changes) -> list[str]:
    said = []
    file = CurvesFile(tmp_path, [], changes.pop("check", lambda: None), said.append)
    for name, value in changes.items():
        monkeypatch.setattr(file, name, value)
    for step in (1, 2, 3):
        file.step(step, 0.5, 0.5)
    file.validated(3, 0.5, 0.5)
    file.close(has_finished=True)
    return said


def test_curves_that_cannot_be_drawn_are_one_warning(tmp_path, monkeypatch):
    def gone() -> None:
        raise InputError("the folder is gone")

    assert told_of(tmp_path, monkeypatch) == []
    assert (tmp_path / CURVES).stat().st_size > 1000
    (line,) = told_of(tmp_path, monkeypatch, check=gone)
    assert line.startswith(f"{tmp_path / CURVES}: InputError: the folder is gone; no curves are drawn any more")
    (line,) = told_of(tmp_path / "missing", monkeypatch)
    assert "its folder is gone" in line
    (tmp_path / CURVES).unlink()
    (tmp_path / CURVES).mkdir()
    (line,) = told_of(tmp_path, monkeypatch)
    assert str(tmp_path / CURVES) in line
    monkeypatch.setattr(curves, "SECONDS_AT_END", 0.2)
    (line,) = told_of(tmp_path, monkeypatch, _draw=lambda: time.sleep(30))
    assert "not done within 0.2 s" in line


@pytest.mark.parametrize(
    "row", [{}, {"loss": 10**400, "dice": 1}, {"loss": "x", "dice": 1}, {"loss": [], "dice": None}]
)
def test_rows_of_others_are_no_fault(row, tmp_path):
    CurvesFile(tmp_path, [{"step": 1, **row}], lambda: None, print)


def test_rows_of_earlier_starts_are_kept_for_the_curves(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 0.5, "dice": 0.5}) + "\n" for step in range(1, 5)))
    with MetricsFile(path, 2) as metrics:
        assert [row["step"] for row in metrics.kept] == [1, 2]


def test_the_clock_of_the_loop_covers_the_wait_and_nothing_else():
    """`_next_batch` waits for the batch inside `data_wait`, where a signal may interrupt it."""
    from contextlib import nullcontext

    from glioma_dist.training.loop import TrainingLoop

    def batches():
        time.sleep(0.05)
        yield "a batch"

    trainer = SimpleNamespace(
        stop=SimpleNamespace(immediate=nullcontext),
        data_wait=DataWait(),
        spatial_group=SimpleNamespace(cut=lambda height: None),
        config=SimpleNamespace(data=SimpleNamespace(size=Size(8, 8))),
    )
    loop = object.__new__(TrainingLoop)
    loop.trainer, loop._batches, loop.reporter = trainer, batches(), None
    assert loop._next_batch() == ("a batch", None)
    assert trainer.data_wait.last >= 0.05
