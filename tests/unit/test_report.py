"""The resolution benchmark's table and plots, from rows made up for it."""

import csv
import io
from pathlib import Path

import cv2
import pytest

from glioma_dist.report.resolution import csv_text, draw_memory, draw_speed, markdown_text, write_report

SIZES = {"704x512": 0.360448, "1472x1120": 1.64864, "2592x1952": 5.059584}
SMP = "segmentation_models.pytorch"
ENDED = {"peak_gib": None, "seconds": [], "median_seconds": None, "images_per_second": None}


def make_row(network: str, level: str, size: str, gib: float, seconds: float, **changes: object) -> dict:
    return {
        "kind": "step",
        "status": "ok",
        "network": network,
        "encoder": "mit_b3",
        "level": level,
        "layout": "contiguous",
        "precision": "bf16",
        "size": size,
        "megapixels": SIZES[size],
        "batch_size": 1,
        "workers": 2,
        "data": "drawn",
        "peak_gib": gib,
        "seconds": [seconds, seconds],
        "median_seconds": seconds,
        "images_per_second": 1 / seconds,
        "images_per_second_with_data": None,
        "device": "Some GPU",
        "versions": {"torch": "2.15.0", "segmentation-models-pytorch": None},
        "commit": "abc1234",
        "command": "glioma-dist bench resolution --sizes 704x512",
        **changes,
    }


def make_rows() -> list[dict]:
    """Two levels and a baseline, which does not fit at the largest size."""
    rows = []
    for number, size in enumerate(SIZES):
        rows.append(make_row("glioma-dist", "none", size, 1.5 * 3**number, 0.25 * 4**number))
        rows.append(make_row("glioma-dist", "full", size, 1.0 * 2**number, 0.3 * 4**number))
        rows.append(make_row(SMP, "none", size, 2.0 * 5**number, 0.4 * 4**number))
    rows[-1].update(status="out of memory", error="CUDA out of memory", **ENDED)
    return rows


def table(text: str, title: str) -> dict[tuple[str, str], list[str]]:
    """(variant, precision) -> its cells, of one of the page's tables."""
    (section,) = [part for part in text.split("## ") if part.startswith(title + "\n")]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    return {(cells[0], cells[1]): cells[2:] for cells in lines}


def test_the_page_says_what_was_measured_where():
    text = markdown_text(make_rows())
    for fact in (
        "mit_b3",
        "Batch 1",
        "Some GPU",
        "torch 2.15.0",
        "commit abc1234",
        "glioma-dist bench resolution --sizes",
    ):
        assert fact in text
    assert "None" not in text


def test_the_tables_hold_each_cell_in_its_place():
    text = markdown_text(make_rows())
    memory, speed = table(text, "Peak memory, GiB"), table(text, "Images per second")
    assert memory["", ""] == list(SIZES)
    assert memory["glioma-dist, checkpointing none", "bf16"] == ["1.50", "4.50", "13.50"]
    assert memory["glioma-dist, checkpointing full", "bf16"] == ["1.00", "2.00", "4.00"]
    assert memory[SMP, "bf16"] == ["2.00", "10.00", "out of memory"]
    assert speed["glioma-dist, checkpointing none", "bf16"] == ["4", "1", "0.25"]
    assert speed[SMP, "bf16"] == ["2.5", "0.625", "out of memory"]


def test_the_cost_in_time_is_relative_to_the_level_none():
    rows = make_rows()
    costs = "Time of a step, relative to the level none"
    assert table(markdown_text(rows), costs) == {
        ("", ""): list(SIZES),
        ("---", "---"): ["---:"] * 3,
        ("glioma-dist, checkpointing full", "bf16"): ["1.20"] * 3,
    }
    for row in rows:  # where the plain step does not fit, there is nothing to compare with
        if row["level"] == "none" and row["size"] == "2592x1952":
            row.update(status="out of memory", **ENDED)
    assert table(markdown_text(rows), costs)["glioma-dist, checkpointing full", "bf16"] == ["1.20"] * 2
    assert costs not in markdown_text([row for row in rows if row["level"] == "full"])


def test_data_loading_and_the_largest_have_tables_where_they_were_measured():
    rows = make_rows()
    assert "data loading" not in markdown_text(rows)
    assert "largest" not in markdown_text(rows)
    rows[0]["images_per_second_with_data"] = 3.0
    for row in rows[1:]:
        row["images_per_second_with_data"] = 0.5 if row["status"] == "ok" else None
    rows.append({**rows[0], "kind": "largest", "sought": "size", "limited_by": "out of memory", "batch_size": 7})
    rows.append({**rows[-1], "sought": "batch", "status": "timed out", "limited_by": "timed out"})
    text = markdown_text(rows)
    loading = table(text, "Images per second with data loading (drawn, 2 workers)")
    assert loading["glioma-dist, checkpointing none", "bf16"] == ["3", "0.5", "0.5"]
    assert "| glioma-dist, checkpointing none | bf16 | size | 704x512, batch 7 | out of memory |" in text
    assert "| glioma-dist, checkpointing none | bf16 | batch | none | timed out |" in text


def test_utilisation_is_a_table_where_the_peak_is_known_and_else_said_to_be_missing():
    rows = make_rows()
    assert "utilisation" not in markdown_text(rows)  # rows of before there was any
    for row in rows:
        row.update(tflop=1.0, mfu=None, waiting_share=None)
    assert "Not given: the peak speed of this device" in markdown_text(rows)
    for row in rows:
        row.update(mfu=0.25 if row["status"] == "ok" else None, waiting_share=0.125 if row["status"] == "ok" else None)
    text = markdown_text(rows)
    assert table(text, "Model FLOPs utilisation, %")["glioma-dist, checkpointing none", "bf16"] == ["25"] * 3
    assert table(text, "Time spent waiting for data, %")[SMP, "bf16"] == ["12.5", "12.5", "out of memory"]


def test_csv_has_every_row_and_column():
    rows = make_rows()
    found = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert len(found) == len(rows)
    assert set(found[0]) == {name for row in rows for name in row}
    assert float(found[0]["peak_gib"]) == 1.5
    assert [float(value) for value in found[0]["seconds"].split()] == [0.25, 0.25]
    assert (found[-1]["status"], found[-1]["peak_gib"], found[-1]["seconds"]) == ("out of memory", "", "")


def test_plots_dash_the_peer_name_the_sizes_and_show_gpus_in_range():
    figure = draw_memory(make_rows())
    (axes,) = figure.axes
    (lines, gpus) = ([line for line in axes.lines if dotted == (line.get_linestyle() == ":")] for dotted in (0, 1))
    assert [line.get_linestyle() for line in lines] == ["-", "-", "--"]
    assert [list(line.get_ydata()) for line in lines] == [[1.5, 4.5, 13.5], [1.0, 2.0, 4.0], [2.0, 10.0]]
    assert [line.get_ydata()[0] for line in gpus] == [8, 16]
    assert [axes.xaxis.get_major_formatter()(value) for value in axes.get_xticks()] == [
        "704x512\n0.36 MP",
        "1472x1120\n1.65 MP",
        "2592x1952\n5.06 MP",
    ]
    assert {text.get_text() for text in axes.texts} == {"8 GB GPU", "16 GB GPU"}
    speed = draw_speed(make_rows()).axes[0]
    assert len(speed.lines) == 3
    assert [list(line.get_ydata()) for line in speed.lines][2] == pytest.approx([2.5, 0.625])


def names(figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_what_did_not_fit_is_a_cross_at_its_size_and_a_line_of_the_legend():
    """It is no label beside the axes, where it would seem to have a height."""
    for draw, edge in ((draw_memory, 0.97), (draw_speed, 0.03)):
        figure = draw(make_rows())
        (cross,) = figure.axes[0].collections
        assert cross.get_offsets().tolist() == [[SIZES["2592x1952"], edge]]
        assert names(figure)[-1] == "out of memory at this size, no value"
    assert names(draw_memory(make_rows()))[:3] == [
        SMP,
        "glioma-dist, checkpointing none",
        "glioma-dist, checkpointing full",
    ], "from the largest value at the smallest size"


def test_two_crosses_at_one_size_stand_side_by_side():
    rows = make_rows()
    for row in rows:
        if row["size"] == "2592x1952" and row["level"] == "none":
            row.update(status="out of memory", **ENDED)
    figure = draw_memory(rows)
    figure.draw_without_rendering()
    places = [cross.get_offset_transform().transform(cross.get_offsets())[0] for cross in figure.axes[0].collections]
    assert len(places) == 2
    assert abs(places[0][0] - places[1][0]) > 8


@pytest.mark.parametrize("column", ["peak_gib", "images_per_second"])
def test_values_at_one_size_give_no_plot(column):
    draw = {"peak_gib": draw_memory, "images_per_second": draw_speed}[column]
    rows = make_rows()
    assert draw([row for row in rows if row["size"] == "704x512"]) is None
    for row in rows:  # three sizes, but values at one of them only
        if row["size"] != "704x512":
            row.update(status="out of memory", **ENDED)
    assert draw(rows) is None
    assert draw(make_rows()[:6]) is not None


def test_a_plot_of_an_earlier_report_is_removed(tmp_path):
    write_report(make_rows(), tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 2
    write_report(make_rows()[:3], tmp_path)
    assert list(tmp_path.glob("*.png")) == []
    assert len(list(tmp_path.iterdir())) == 2


def only(keep: str) -> list[dict]:
    rows = make_rows()
    if keep == "nothing fits":
        return [{**row, "status": "out of memory", **ENDED} for row in rows]
    if keep == "no baseline":
        return [row for row in rows if row["network"] != SMP]
    if keep == "one cell":
        return rows[:1]
    return rows + [{**row, "precision": "fp32"} for row in rows]


@pytest.mark.parametrize("keep", ["nothing fits", "no baseline", "one cell", "two precisions"])
def test_a_report_can_be_made_of_whatever_there_is(keep: str, tmp_path: Path):
    write_report(only(keep), tmp_path)
    plots = {"memory.png", "speed.png"} if keep in ("no baseline", "two precisions") else set()
    assert {path.name for path in tmp_path.iterdir()} == {"resolution.csv", "resolution.md", *plots}
    for name in plots:
        picture = cv2.imread(str(tmp_path / name))
        assert min(picture.shape[:2]) > 400
        assert picture.std() > 1, "the picture is empty"
