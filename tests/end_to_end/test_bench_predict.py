"""The prediction benchmark at a size of nothing: its rows, its page, and what it refuses."""

import json

import pytest
from helpers import Ended, command

from glioma_dist.report.segmenting_time import draw, write_report

TINY = ("--sizes", "64x64", "--repeats", 1)


def bench(*arguments: object, **environment: str) -> Ended:
    return command("bench predict", *arguments, environment=environment, timeout=300)


def test_each_cell_is_a_row_that_is_kept(tmp_path):
    out = tmp_path / "bench"
    done = bench(*TINY, "--encoders", "mit_tiny", "--out", out)
    assert done.exit_code == 0, done.stderr
    (row,) = json.loads((out / "prediction.json").read_text())
    assert (row["status"], row["network"], row["encoder"], row["size"]) == ("ok", "glioma-dist", "mit_tiny", "64x64")
    assert (row["threads"], row["device"].endswith(", 1 thread")) == (1, True)
    assert row["seconds"] == [row["median_seconds"]]
    assert 0 < row["cpu_seconds"] < 60
    assert row["peak_gib"] == pytest.approx(row["start_gib"] + row["grown_gib"])
    assert 0.1 < row["start_gib"] < 2
    pixels, weights = 64 * 64, 4 * 100_000
    assert weights + 4 * pixels < row["tensors_gib"] * 2**30 < 2**26
    page = (out / "prediction.md").read_text()
    assert "| 64x64 | mit_tiny | glioma-dist |" in page
    assert list(out.glob("*.png")) == [], "one size is no plot"
    again = bench(*TINY, "--encoders", "mit_tiny", "--out", out)
    assert "1 rows, 0 of them new" in again.stdout


def test_the_baseline_is_measured_beside_ours(tmp_path):
    pytest.importorskip("segmentation_models_pytorch", reason="pip install -e '.[bench]'")
    out = tmp_path / "bench"
    done = bench(*TINY, "--encoders", "mit_b0", "--baselines", "smp", "--out", out)
    assert done.exit_code == 0, done.stderr
    rows = json.loads((out / "prediction.json").read_text())
    assert [row["network"] for row in rows] == ["glioma-dist", "segmentation_models.pytorch"]
    assert all(row["status"] == "ok" for row in rows)
    ratio = rows[0]["tensors_gib"] / rows[1]["tensors_gib"]
    assert f"({ratio:.2f}) |" in (out / "prediction.md").read_text()


def test_the_page_and_the_plot_show_every_row(tmp_path):
    """Of ours and of the baseline, at two sizes, one of which the baseline cannot take."""
    shared = {"device": "a processor", "versions": {"torch": "2"}, "commit": "abc", "command": "bench", "repeats": 3}
    rows = [
        {
            **shared,
            **{"warm_up": 1, "encoder": "mit_b0", "network": network, "size": f"{side}x{side}", "status": "ok"},
            **{"megapixels": side**2 / 1e6, "median_seconds": value, "cpu_seconds": 2 * value, "start_gib": 0.5},
            **{"grown_gib": value - 0.5, "peak_gib": value, "tensors_gib": value / 2, "error": None},
        }
        for network, side, value in (
            ("glioma-dist", 64, 1.0),
            ("segmentation_models.pytorch", 64, 4.0),
            ("glioma-dist", 128, 2.0),
            ("segmentation_models.pytorch", 128, 8.0),
        )
    ]
    rows.append(rows[3] | {"size": "256x256", "megapixels": 0.065, "status": "out of memory", "peak_gib": None})
    write_report(rows, tmp_path)
    page = (tmp_path / "prediction.md").read_text()
    assert "| 64x64 | mit_b0 | glioma-dist | 1 (0.25) | 2 (0.25) | 1 (0.25) | 0.5 | 0.5 (0.14) | 0.5 (0.25) |" in page
    assert "| 128x128 | mit_b0 | segmentation_models.pytorch | 8 | 16 | 8 | 0.5 | 7.5 | 4 |" in page
    assert "| 256x256 | mit_b0 | segmentation_models.pytorch | out of memory | – |" in page
    lines = [line.get_xydata().tolist() for axes in draw(rows, "mit_b0").axes for line in axes.get_lines()]
    assert [[0.004096, 1.0], [0.016384, 2.0]] in lines
    assert (tmp_path / "prediction_mit_b0.png").read_bytes().startswith(b"\x89PNG")
    assert draw(rows[:2], "mit_b0") is None


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            ("--encoders", "mit_tiny", "--baselines", "smp"),
            "--baselines smp: it has no mit_tiny; give another --encoders",
        ),
        (("--sizes", "65x64", "--encoders", "mit_b0", "--baselines", "smp"), "--baselines smp takes multiples of 32"),
        (("--encoders", "mit_b00"), "did you mean mit_b0"),
        (("--repeats", 0), "--repeats: give 1 or more"),
        (("--timeout-s", 0), "--timeout-s 0.0: give more than 0"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(tmp_path, flags, told):
    refused = bench(*flags, "--out", tmp_path / "bench")
    assert refused.exit_code == 2
    assert told in refused.stderr
    assert not (tmp_path / "bench").exists()
