"""The resolution benchmark at a size of nothing: its rows, and that cells which fail are rows too."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from helpers import REPOSITORY, Ended, command
from torch.utils._python_dispatch import TorchDispatchMode

from glioma_dist.benchmark import cell, drawn_shards, environment, resolution
from glioma_dist.benchmark.rows import Rows
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.errors import InputError

TINY = ("--sizes", "64x64", "--encoder", "mit_tiny", "--repeats", 1, "--warm-up", 1)
IMPOSSIBLE = ("--batch-size", 2**20, "--sizes", "16384x16384")
"""The most that is taken. The images alone are more than a process can address, so that no allocator grants them."""


@pytest.fixture
def bench(quick_python) -> Callable[..., Ended]:
    """Run the benchmark, which measures in processes of its own; what is not an argument is of the environment."""

    def bench(*arguments: object, **environment: str) -> Ended:
        return command("bench resolution", *arguments, environment=environment, timeout=300, python=quick_python)

    return bench


def read(out: Path) -> list[dict]:
    return json.loads((out / "resolution.json").read_text())


def test_each_rung_is_a_row_with_figures_and_circumstances(bench, shards, tmp_path):
    out = tmp_path / "bench"
    launched = {"ACCELERATE_MIXED_PRECISION": "bf16", "RANK": "0", "WORLD_SIZE": "1"}  # as accelerate launch does
    done = bench(*TINY, "--levels", "none", "full", "--data", shards / "train", "--out", out, **launched)
    assert done.exit_code == 0, done.stderr
    rows = read(out)
    assert [(row["network"], row["level"], row["precision"], row["layout"]) for row in rows] == [
        ("glioma-dist", "none", "fp32", "contiguous"),
        ("glioma-dist", "full", "fp32", "contiguous"),
    ]
    for row in rows:
        assert (row["kind"], row["status"], row["size"], row["batch_size"]) == ("step", "ok", "64x64", 1)
        assert row["megapixels"] == pytest.approx(0.004096)
        assert 0.001 < row["peak_gib"] < 2
        assert row["seconds"] == [row["median_seconds"]]
        assert row["images_per_second"] == pytest.approx(1 / row["median_seconds"])
        assert row["images_per_second_with_data"] > 0
        assert 0 < row["waiting_share"] < 1
        assert row["tflop"] > 0
        assert row["mfu"] is None
        assert row["numerics"]["cudnn.allow_tf32"] is False
        assert row["versions"]["torch"] == metadata.version("torch")
        assert "1 thread" in row["device"]
        assert "--levels none full" in row["command"]
    page = (out / "resolution.md").read_text()
    assert f"| {rows[0]['peak_gib']:.2f} |" in page
    assert f"| {rows[1]['median_seconds'] / rows[0]['median_seconds']:.2f} |" in page
    assert list(out.glob("*.png")) == [], "one size is no plot"
    assert len((out / "resolution.csv").read_text().splitlines()) == 3

    again = bench(*TINY, "--levels", "none", "full", "--data", shards / "train", "--out", out, **launched)
    assert again.exit_code == 0, again.stderr
    assert "2 rows, 0 of them new" in again.stdout
    assert read(out) == rows
    changed = [{**row, "commit": "another"} for row in rows]
    (out / "resolution.json").write_text(json.dumps(changed))
    refused = bench(*TINY, "--out", out)
    assert refused.exit_code == 2
    assert "holds a benchmark already, measured with commit another" in refused.stderr
    assert read(out) == changed


def test_out_of_memory_is_a_row_and_the_benchmark_goes_on(bench, tmp_path):
    out = tmp_path / "bench"
    done = bench(*TINY[2:], *IMPOSSIBLE, "--levels", "none", "full", "--data", "none", "--out", out)
    assert done.exit_code == 0, done.stderr
    rows = read(out)
    assert [(row["level"], row["status"]) for row in rows] == [("none", "out of memory"), ("full", "out of memory")]
    assert all("can't allocate memory" in row["error"] and row["peak_gib"] is None for row in rows)
    assert (out / "resolution.md").read_text().count("out of memory") == 4


def test_the_peer_is_measured_beside_ours(bench, tmp_path):
    pytest.importorskip("segmentation_models_pytorch", reason="needs pip install 'glioma-dist[bench]'")
    out = tmp_path / "bench"
    flags = ("--encoder", "mit_b0", "--levels", "--baselines", "smp", "--data", "none", "--out", out)
    done = bench(*TINY, *flags)
    assert done.exit_code == 0, done.stderr
    (row,) = read(out)
    assert (row["network"], row["status"]) == ("segmentation_models.pytorch", "ok"), row["error"]
    assert row["peak_gib"] > 0


@pytest.mark.parametrize(
    ("flags", "environment", "words"),
    [
        (TINY, {"WORLD_SIZE": "2"}, "--num_processes 1"),
        ((*TINY, "--baselines", "smp"), {}, "--baselines smp"),
        ((*TINY, "--data", "/nowhere"), {}, "/nowhere"),
        ((*TINY, "--batch-size", 0), {}, "--batch-size 0"),
        (("--sizes", "64"), {}, "WIDTHxHEIGHT"),
    ],
)
def test_what_cannot_be_measured_is_said_before_it_begins(bench, tmp_path, flags, environment, words):
    done = bench(*flags, "--out", tmp_path / "bench", **environment)
    assert done.exit_code == 2
    assert words in done.stderr
    assert not (tmp_path / "bench").exists()


def test_a_process_that_is_killed_is_out_of_memory_and_one_that_hangs_is_timed_out():
    def child(script: str, timeout_s: float = 60) -> dict:
        return resolution.run_child([sys.executable, "-c", script], timeout_s)

    assert child("print('noise'); print('{\"status\": \"ok\"}')") == {"status": "ok"}
    assert child(f"import os; os.kill(os.getpid(), {signal.SIGKILL})")["status"] == "out of memory"
    failed = child("raise ValueError('odd')")
    assert failed == {"status": "failed", "error": "exit code 1: ValueError: odd"}
    start = time.monotonic()
    # What the killed process leaves behind holds on to its output, and is not waited for.
    orphan = "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    assert child(orphan, timeout_s=1)["status"] == "timed out"
    assert time.monotonic() - start < 40


def test_a_launchers_variables_stay_with_the_benchmark(monkeypatch):
    names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"]
    for name in names:
        monkeypatch.setenv(name, "1")
    script = f"import json, os; print(json.dumps([name for name in {names} + ['PATH'] if name in os.environ]))"
    assert resolution.run_child([sys.executable, "-c", script], 60) == ["PATH"]


def make_cell(**changes: object):
    fields = {
        "network": "glioma-dist",
        "level": "none",
        "layout": "contiguous",
        "precision": "fp32",
        "size": "64x64",
        "encoder": "mit_tiny",
        "batch_size": 1,
        "repeats": 1,
        "warm_up": 0,
        "device": "cpu",
        "data": None,
        "workers": 0,
    }
    return resolution.Cell(**{**fields, **changes})


class Operations(TorchDispatchMode):
    """The names of all operations that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.names = ""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names += f" {operation}"
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize(("network", "fused"), [("glioma-dist", True), ("transformers eager", False)])
def test_the_eager_peer_really_holds_the_attention_matrix(network, fused):
    model = cell.network_builder(make_cell(network=network))()
    with Operations() as operations, torch.no_grad():
        model(torch.zeros(1, 3, 64, 64), torch.arange(1))
    assert ("scaled_dot_product" in operations.names) == fused
    assert ("softmax" in operations.names) != fused


def test_channels_last_reaches_weights_and_maps():
    model = cell.network_builder(make_cell(layout="channels_last", encoder="mit_tiny"))()
    maps = model.encoder(torch.zeros(1, 3, 64, 64), torch.arange(1))
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in maps)
    assert model.decoder.blocks[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_drawn_shards_have_the_microscopes_size(tmp_path):
    drawn_shards.draw_shards(tmp_path / "train", 1)
    sample = ShardReader(tmp_path / "train").read(0, 0)
    assert sample.image.shape == sample.mask.shape == (1952, 2592)
    assert 0 < sample.mask.mean() < 0.5


def test_a_stopped_benchmark_measures_only_what_is_missing(tmp_path, monkeypatch):
    """Each row is in the file when the next one begins; what failed is tried again."""
    config = resolution.ResolutionConfig(
        sizes=(resolution.Size(64, 64),), encoder="mit_tiny", find_largest=True, data="none", out=tmp_path
    )
    tried, ends = [], iter(["ok", "failed", "stop"])

    def measure(made, metadata, timeout_s, kind="step"):
        tried.append((kind, made.level, made.size, made.batch_size))
        ending = next(ends, "ok")
        if ending == "stop":
            raise KeyboardInterrupt
        figures = {"peak_gib": 1.0, "seconds": [1.0], "median_seconds": 1.0, "images_per_second": 1.0}
        figures |= {"images_per_second_with_data": None, "error": None, "megapixels": made.megapixels}
        row = {"kind": kind, "status": ending, **resolution.asdict(made), **figures, **metadata}
        return row if ending == "ok" else row | dict.fromkeys(("peak_gib", "images_per_second", "median_seconds"))

    monkeypatch.setattr(resolution, "measure_apart", measure)
    with pytest.raises(KeyboardInterrupt):
        resolution.bench(config)
    assert [row["status"] for row in read(tmp_path)] == ["ok", "failed"]
    del tried[:]
    rows = resolution.bench(config)
    steps = [(level, "64x64", 1) for level in ("selective", "full")]
    assert [each[1:] for each in tried if each[0] == "step"] == steps
    assert [(row["kind"], row.get("sought")) for row in rows] == [
        *[("step", None)] * 3,
        *[("largest", "size"), ("largest", "batch")] * 3,
    ]
    del tried[:]
    assert resolution.bench(config) == rows == read(tmp_path)
    assert tried == []


def test_a_search_of_which_nothing_trained_begins_again_where_there_is_a_smaller_size(tmp_path, monkeypatch):
    tried = []

    def run_child(command, timeout_s):
        size = json.loads(command[-1])["size"]
        tried.append(size)
        if resolution.Size.parse(size).width > 100:
            return {"status": "out of memory", "error": "full"}
        return {"status": "ok", "peak_gib": 1.0, "median_seconds": 1.0, "images_per_second": 1.0, "seconds": [1.0]}

    def bench(side: int) -> list[dict]:
        del tried[:]
        size = resolution.Size(side, side)
        flags = {"encoder": "mit_tiny", "levels": ("none",), "find_largest": True, "max_megapixels": 1.0}
        rows = resolution.bench(resolution.ResolutionConfig(sizes=(size,), data="none", out=tmp_path, **flags))
        return [row for row in rows if row.get("sought") == "size"]

    monkeypatch.setattr(resolution, "run_child", run_child)
    (row,) = bench(256)
    assert row["status"] == "out of memory"
    assert bench(320) == [row], "a larger one does not train either"
    (found,) = bench(64)
    assert (found["status"], found["limited_by"]) == ("ok", "out of memory")
    assert bench(64) == bench(256) == [found]
    assert tried == []


def test_data_that_cannot_be_read_fail_and_are_measured_again(tmp_path):
    """Only what the device's kernels cannot take stays a row."""
    (tmp_path / "train").mkdir()
    row = cell.measure_or_say_why_not(make_cell(data=str(tmp_path / "train"), encoder="mit_tiny"))
    assert row["status"] == "failed"
    assert str(tmp_path / "train") in row["error"]


@pytest.mark.parametrize("content", ["{}", "[1]", '[{"kind": "step"}]', "[", '{"rows": []}'])
def test_a_file_that_holds_no_rows_is_refused_and_kept(tmp_path, content):
    file = tmp_path / "resolution.json"
    file.write_text(content)
    with pytest.raises(InputError):
        Rows(file, {})
    assert file.read_text() == content


@pytest.mark.parametrize(
    ("before", "told"), [("1.0.19", "timm 1.0.19, but now it is 1.0.20;"), (None, "timm None, but now it is 1.0.20;")]
)
def test_the_library_whose_version_differs_is_named(tmp_path, before, told):
    """A line has no room for all versions."""
    now = dict.fromkeys(("torch", "accelerate", "timm", "transformers", "segmentation-models-pytorch"), "1.0.20")
    versions = {name: each for name, each in (now | {"timm": before}).items() if each}
    (tmp_path / "resolution.json").write_text(json.dumps([{"status": "ok", "versions": versions}]))
    with pytest.raises(InputError, match=f"measured with {told} give another --out"):
        Rows(tmp_path / "resolution.json", {"versions": now})


@pytest.mark.parametrize("largest", [0, 1, 7, 100, 1000, 5_060_000])
def test_the_search_finds_the_largest_that_trains(largest):
    tried = []

    def trial(amount: int) -> dict:
        tried.append(amount)
        return {"status": "ok" if amount <= largest else "out of memory", "amount": amount}

    found = resolution.search(trial, 1, 10**7)
    assert found["limited_by"] == "out of memory"
    assert found["status"] == ("ok" if largest else "out of memory")
    assert largest - max(1, 0.05 * largest) <= found["amount"] <= max(largest, 1)
    assert len(tried) <= 30
    assert len(set(tried)) == len(tried)


def test_the_search_stops_at_its_bound():
    def always(amount: int) -> dict:
        return {"status": "ok", "amount": amount}

    assert resolution.search(always, 1, 100) == {"status": "ok", "amount": 100, "limited_by": "--max-megapixels"}


def test_sizes_of_the_search_keep_the_microscopes_proportions():
    assert str(resolution.size_of(2592 * 1952)) == "2592x1952"
    for pixels in (64 * 64, 300_000, 20_000_000):
        size = resolution.size_of(pixels)
        assert size.width % 32 == size.height % 32 == 0
        assert 0.7 < size.width * size.height / pixels < 1.4


def test_the_commit_is_what_git_says():
    try:
        head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, text=True, stderr=subprocess.PIPE)
    except (OSError, subprocess.CalledProcessError):
        assert environment.find_commit(REPOSITORY) is None
    else:
        assert head.startswith(environment.find_commit(REPOSITORY).removesuffix("-dirty"))


def test_results_in_docs_do_not_make_a_commit_dirty_and_changes_of_code_do(tmp_path):
    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git("init")
    assert environment.find_commit(tmp_path) is None, "there is no commit yet"
    for name in ("docs/benchmarks/rows.json", "package/code.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("1")
    git("add", "-A")
    git("commit", "-m", "first")
    clean = environment.find_commit(tmp_path)
    (tmp_path / "docs/benchmarks/rows.json").write_text("2")
    (tmp_path / "new.txt").touch()
    assert environment.find_commit(tmp_path) == clean
    (tmp_path / "package/code.py").write_text("2")
    assert environment.find_commit(tmp_path) == f"{clean}-dirty"


def test_rows_of_two_states_of_the_code_with_one_commit_are_not_mixed(tmp_path, monkeypatch):
    """Both have changes that are in no commit. The commit is the package's own, not that of a repository around it."""
    config = resolution.ResolutionConfig(
        sizes=(resolution.Size(64, 64),), encoder="mit_tiny", levels=("none",), data="none", out=tmp_path
    )
    figures = {"status": "ok", "peak_gib": 1.0, "median_seconds": 1.0, "images_per_second": 1.0, "seconds": [1.0]}
    monkeypatch.setattr(resolution, "run_child", lambda command, timeout_s: figures)
    monkeypatch.setattr(environment, "find_own_commit", lambda: "abcdef0-dirty")
    monkeypatch.setattr(environment, "code_fingerprint", lambda kinds: "before")
    rows = resolution.bench(config)
    assert resolution.bench(config) == rows
    assert rows[0]["commit"] == "abcdef0-dirty"
    monkeypatch.setattr(environment, "code_fingerprint", lambda kinds: "after")
    with pytest.raises(InputError, match=r"measured with code before, but now it is after; give another --out"):
        resolution.bench(config)
    assert read(tmp_path) == rows
