"""The scaling benchmark: which launches there are, and its tables and plots from rows made up for it."""

import csv
import io
import json
import os
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import cv2
import pytest
from helpers import start

from glioma_dist.benchmark import prediction, resolution, scaling, spatial_parallel_report
from glioma_dist.benchmark.launching import start_ranks, wait_for
from glioma_dist.benchmark.proof import prove
from glioma_dist.benchmark.resolution import run_child
from glioma_dist.benchmark.rows import Rows, results_folder
from glioma_dist.config.benchmark import PredictionConfig, ResolutionConfig, SpatialParallelConfig
from glioma_dist.config.gpu_benchmarks import ProofConfig, ScalingConfig
from glioma_dist.errors import InputError, StopRequested
from glioma_dist.report.resolution import csv_text
from glioma_dist.report.scaling import draw, markdown_text, peak, write_report
from glioma_dist.size import Size

SHARED = {
    "encoder": "mit_b3",
    "level": "selective",
    "precision": "bf16",
    "workers": 4,
    "data": "drawn",
    "device": "Some GPU",
    "versions": {"torch": "2.15.0", "timm": None},
    "commit": "abc1234",
    "command": "glioma-dist bench scaling",
    "error": None,
}


def make_row(engine: str, number: int, rate: float, size: str = "704x512", **changes: object) -> dict:
    row = {"status": "ok", "engine": engine, "num_gpus": number, "size": size, "megapixels": 0.36, **SHARED}
    row |= {"images_per_second": rate, "step_seconds": 1 / rate, "waiting_share": 0.125}
    row |= {"peak_gib": [1.5, 1.25][:number], "peak_reserved_gib": [2.0] * number, "mfu": 0.25, "tflop": 1.0}
    return row | changes


def make_rows() -> list[dict]:
    nothing = dict.fromkeys(("images_per_second", "step_seconds", "waiting_share", "peak_gib", "mfu"))
    return [
        make_row("single", 1, 4.0),
        make_row("ddp", 2, 7.0),
        make_row("fsdp2", 2, 6.0, **nothing, status="out of memory", error="CUDA out of memory"),
        make_row("spatial", 2, 5.0, **nothing, status="skipped", error="needs 2 GPUs; there are 1"),
        make_row("single", 1, 1.0, "2592x1952", megapixels=5.06),
    ]


def test_the_table_compares_with_one_gpu_and_says_how_the_rest_ended():
    text = markdown_text(make_rows())
    assert "| one GPU | 1 | 4 | 1 | 12.5 | 1.50 | 25 |" in text
    assert "| DDP | 2 | 7 | 1.75 | 12.5 | 1.50, 1.25 | 25 |" in text
    assert "| FSDP2 | 2 | out of memory | | | | |" in text
    assert "| spatial parallel | 2 | skipped (needs 2 GPUs; there are 1) | | | | |" in text
    assert text.index("## 704x512") < text.index("## 2592x1952")
    assert "No model FLOPs utilisation" not in text
    assert "None" not in text
    assert "No model FLOPs utilisation" in markdown_text([{**row, "mfu": None} for row in make_rows()])


def test_plots_have_a_line_for_each_engine_and_begin_at_one_gpu():
    panels = draw(make_rows(), "Speed", lambda row: row["images_per_second"], ideal=True).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["704x512", "2592x1952"]
    lines = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in panels[0].lines}
    assert lines == {"DDP": [(1, 4.0), (2, 7.0)], "one GPU": [(1, 4.0)], "ideal": [(1, 4.0), (2, 8.0)]}


@pytest.mark.parametrize("keep", ["all", "nothing measured", "no memory"])
def test_a_report_can_be_made_of_whatever_there_is(tmp_path, keep):
    rows = make_rows()
    if keep == "nothing measured":
        rows = rows[2:4]
    if keep == "no memory":
        rows = [row | {"peak_gib": [None]} for row in rows[:1]]
        assert peak(rows[0]) is None
    write_report(make_rows(), tmp_path)
    write_report(rows, tmp_path)
    pictures = {path.name: cv2.imread(str(path)) for path in tmp_path.glob("*.png")}
    assert pictures.keys() == ({"scaling_speed.png", "scaling_memory.png"} if keep == "all" else set()), (
        "a plot of before"
    )
    assert all(picture.std() > 1 for picture in pictures.values())
    assert len(list(csv.DictReader(io.StringIO(csv_text(rows))))) == len(rows)


def test_launches_on_one_gpu_are_there_once_and_shares_of_a_batch_are_equal():
    config = ScalingConfig(sizes=(Size(704, 512),), batch_size=3)
    cells = list(scaling.make_cells(config, "cuda", 6))
    assert [(cell.engine, cell.num_gpus, cell.images) for cell in cells] == [
        ("single", 1, 3),
        *[("ddp", 2, 6), ("fsdp2", 2, 6), ("spatial", 2, 3)],
        *[("ddp", 4, 12), ("fsdp2", 4, 12), ("spatial", 4, 3)],
        *[("ddp", 6, 18), ("fsdp2", 6, 18), ("spatial", 6, 3)],
    ]
    assert cells[3].config("shards", "out").scale.spatial_parallel == 2
    assert cells[3].precision == "bf16"


def test_what_cannot_be_is_skipped_with_its_reason():
    config = ScalingConfig(sizes=(Size(64, 64),), num_gpus=(4,))
    ddp, fsdp2, spatial = scaling.make_cells(config, "cuda", 4)
    assert scaling.reason_to_skip(ddp, "cuda", 4) is None
    assert scaling.reason_to_skip(ddp, "cuda", 2) == "needs 4 GPUs; there are 2"
    assert scaling.reason_to_skip(fsdp2, "cuda", 4) is None
    assert "GPUs only" in scaling.reason_to_skip(fsdp2, "cpu", 4)
    assert "64 rows" in scaling.reason_to_skip(spatial, "cuda", 4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"batch_size": 0}, "--batch-size 0"),
        ({"num_gpus": (0,)}, "--num-gpus 0"),
        (
            {"num_gpus": (1, 40)},
            "--num-gpus 40: an image of 512 rows .*; give fewer GPUs, larger --sizes, or --engin",
        ),
        ({"sizes": ()}, "--sizes"),
        ({"encoder": "unet++"}, "unet"),
        ({"workers": -1}, "--workers -1"),
        ({"timeout_s": 0.0}, "--timeout-s"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, words):
    with pytest.raises(InputError, match=words):
        ScalingConfig(**fields).validate()


@pytest.mark.parametrize(
    "damage", [{"peak_gib": 7}, {"images_per_second": None}, {"engine": "none"}, {"megapixels": "wide"}]
)
def test_a_row_that_no_benchmark_wrote_is_one_line_before_anything_is_measured(tmp_path, damage):
    file = tmp_path / "scaling.json"
    file.write_text(json.dumps([make_row("single", 1, 4.0), make_row("ddp", 2, 7.0) | damage]))
    with pytest.raises(InputError, match=r"scaling.json: holds a row that no benchmark wrote .*; restore it") as error:
        Rows(file, {"commit": "abc1234"}).report(write_report)
    assert len(str(error.value)) <= 500


@pytest.mark.parametrize(
    ("bench", "config", "measures"),
    [
        (resolution.bench, partial(ResolutionConfig, (Size(64, 64),)), (resolution, "make_cells")),
        (prediction.bench, PredictionConfig, (prediction, "make_cells")),
        (scaling.bench, ScalingConfig, (scaling, "make_cells")),
        (spatial_parallel_report.bench, SpatialParallelConfig, (spatial_parallel_report, "measured")),
        (prove.prove, partial(ProofConfig, device="cpu"), (prove, "draw_shards")),
    ],
    ids=["resolution", "prediction", "scaling", "spatial-parallel", "gpu"],
)
def test_a_second_benchmark_with_the_same_out_is_refused(tmp_path, monkeypatch, bench, config, measures):
    monkeypatch.setattr(*measures, lambda *_, **__: pytest.fail("it measures beside another"))
    monkeypatch.setattr(spatial_parallel_report, "estimated", lambda _: [])
    with (
        results_folder(tmp_path),
        pytest.raises(InputError, match=f"^--out {tmp_path}: another benchmark is writing there; wait until"),
    ):
        bench(config(out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_report_of_rows_measured_now_hides_no_fault(tmp_path):
    rows = Rows(tmp_path / "scaling.json", {})
    rows.report(write_report)  # nothing yet
    rows.get({}, lambda: {"status": "ok"})
    with pytest.raises(KeyError):
        rows.report(write_report)


def test_a_launch_that_is_interrupted_leaves_no_process():
    def interrupt(*_: object) -> None:
        raise StopRequested("received SIGALRM")

    ranks = start_ranks([sys.executable, "-c", "import time; time.sleep(1000)"], os.environ, 2)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(StopRequested):
            wait_for(ranks, 60)
        assert [rank.poll() for rank in ranks] == [-signal.SIGKILL] * 2
    finally:
        signal.signal(signal.SIGALRM, before)
        for rank in ranks:
            rank.kill()


@pytest.mark.parametrize(
    ("codes", "status"), [([None, 3], "out of memory"), ([None, 1], "failed"), ([None, 0], "timed out")]
)
def test_a_process_without_memory_is_the_reason_why_the_others_wait(monkeypatch, codes, status):
    (cell,) = scaling.make_cells(ScalingConfig(sizes=(Size(64, 64),), num_gpus=(2,), engines=("ddp",)), "cuda", 2)
    monkeypatch.setattr(scaling, "start_ranks", lambda *_: [])
    monkeypatch.setattr(scaling, "wait_for", lambda *_: codes)
    assert scaling.launch(cell, "shards", "cuda", 1.0)["status"] == status


def measure_until_killed(folder: Path) -> None:
    code = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(1000)"
    run_child([sys.executable, "-c", code, str(folder / "pid")], 1000)


def test_a_measurement_ends_with_the_benchmark_that_was_killed(tmp_path):
    running = start(measure_until_killed, tmp_path)
    pid = tmp_path / "pid"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (pid.exists() and pid.read_text()):
        time.sleep(0.05)
    running.processes[0].kill()
    running.wait()
    until = time.monotonic() + 60
    place = Path("/proc") / pid.read_text() / "exe"
    try:
        while time.monotonic() < until and os.path.exists(place):
            time.sleep(0.05)
        assert not os.path.exists(place)
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(pid.read_text()), signal.SIGKILL)
