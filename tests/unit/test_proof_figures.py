"""What the proof run makes of a profile: how long a GPU is busy, peaks of memory, differences of runs."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from glioma_dist.benchmark.peak_memory import GIB, peak_of_profile
from glioma_dist.benchmark.proof.lines import Findings, judge, read_findings
from glioma_dist.benchmark.proof.ranks import largest_difference as tensors_differ
from glioma_dist.benchmark.proof.step_costs import busy_seconds, kernel_spans, look_into
from glioma_dist.benchmark.proof.tile_sizes import compare_default
from glioma_dist.benchmark.proof.trainings import largest_difference, read_rows


@pytest.mark.parametrize(
    ("spans", "busy"),
    [
        ([], 0),
        ([(0, 10)], 10),
        ([(0, 10), (20, 25)], 15),
        ([(20, 25), (0, 10)], 15),
        ([(0, 10), (5, 15)], 15),
        ([(0, 100), (10, 20), (30, 40)], 100),
        ([(0, 10), (10, 20), (10, 20)], 20),
    ],
)
def test_a_gpu_is_busy_while_at_least_one_kernel_runs(spans, busy):
    assert busy_seconds(spans) == pytest.approx(busy / 1e9)


@dataclass
class Event:
    """As the profiler gives them."""

    device: torch.autograd.DeviceType
    start: int
    duration: int
    annotation: bool = False

    def device_type(self):
        return self.device

    def start_ns(self):
        return self.start

    def duration_ns(self):
        return self.duration

    def is_user_annotation(self):
        return self.annotation


def test_only_work_of_the_gpu_counts_and_no_annotation_of_it():
    gpu, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = [Event(gpu, 5, 10), Event(cpu, 0, 100), Event(gpu, 0, 100, annotation=True)]
    assert kernel_spans(events) == [(5, 15)]


def test_a_profile_that_shows_nothing_of_a_gpu_passes_no_limit(tmp_path):
    """As on a machine that lets nobody profile its GPU: 0 launches and 0 waits would be within every limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler says that there is no GPU
        result, costs = look_into(lambda: "scores", 0.5, torch.device("cuda"))
    assert (result, costs.seconds) == ("scores", 0.5)
    findings = Findings(tmp_path / "findings")
    for name in ("launches", "synchronisations"):
        findings.at_most(name, getattr(costs, name), 6000)
    findings.at_least("busy", costs.busy, 0.0)
    assert {judge("steps", row).status for row in read_findings(tmp_path / "findings").values()} == {"FAIL"}


@pytest.fixture(scope="module")
def profiled():
    """A profile in which 4 MiB are taken, then 8 more, then 4 are given back."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        first = torch.empty(2**20)
        second = torch.empty(2**21)
        del first
        third = torch.empty(2**18)
        del second, third
    return profiler


def test_a_real_profile_has_the_events_as_they_are_read(profiled):
    assert kernel_spans(profiled.profiler.kineto_results.events()) == []


def test_the_peak_of_a_profile_is_what_was_held_at_once(profiled):
    assert peak_of_profile(profiled, held_before=2**20) * GIB == pytest.approx(13 * 2**20, rel=0.01)


def test_runs_differ_by_their_farthest_loss_and_wholly_where_rows_are_missing():
    rows = [{"step": 1, "epoch": 0, "loss": 0.5}, {"step": 2, "epoch": 0, "loss": 0.25}]
    assert largest_difference(rows, rows) == 0
    assert largest_difference([rows[0], {**rows[1], "loss": 0.26}], rows) == pytest.approx(0.04)
    for other in (rows[:1], [*rows, rows[1]], [rows[0], {**rows[1], "step": 3}], []):
        assert largest_difference(other, rows) == float("inf")
    assert largest_difference([], []) == float("inf")
    for place in (0, 1):  # Python's max passes over what is no number, unless it comes first
        broken = [{**row, "loss": float("nan")} if number == place else row for number, row in enumerate(rows)]
        assert largest_difference(broken, rows) == float("inf")


def test_tensors_differ_wholly_where_one_is_missing():
    plain = {"logits": torch.ones(2, 1), "gradient of a": torch.tensor([1.0, 2.0])}
    found = {"logits": torch.ones(1, 1), "gradient of a": torch.tensor([1.0, 2.5])}
    assert tensors_differ(found, plain, slice(1, 2)) == pytest.approx(0.25)
    found["gradient of a"] = torch.tensor([1.0, float("nan")])
    assert tensors_differ(found, plain, slice(1, 2)) == float("inf")
    assert tensors_differ({"logits": torch.ones(1, 1)}, plain, slice(1, 2)) == float("inf")


@pytest.mark.parametrize(
    ("default", "quickest", "status"), [(1.0, 1.0, "PASS"), (1.09, 1.0, "PASS"), (1.2, 1.0, "FAIL")]
)
def test_a_default_tile_that_is_slower_than_another_fails(tmp_path, default, quickest, status):
    """Larger tiles than a default may have are quicker, and count for nothing."""
    seconds = {2**22: 2.0, 2**23: default, 2**24: quickest, 2**26: 0.5}
    compare_default(seconds, 2**23, Findings(tmp_path / "findings"))
    (row,) = read_findings(tmp_path / "findings").values()
    assert judge("tiles", row).status == status
    assert row["value"] == pytest.approx(default)


def test_a_row_that_a_run_is_writing_is_no_row_yet(tmp_path):
    assert read_rows(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert read_rows(tmp_path) == [{"step": 1, "loss": 0.5}]
