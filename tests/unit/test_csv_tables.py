"""CSV files hold no formula for a spreadsheet, and this package's readers get every text back."""

import csv
import io
from pathlib import Path

import pytest

from glioma_dist.csv_tables import csv_table, plain_text
from glioma_dist.growth_curves.table import parse_table
from glioma_dist.inference.result_files import listed_in
from glioma_dist.inference.results import COLUMNS, Failure, PredictedImage, write_failed, write_summary
from glioma_dist.report.prediction_results import read_table

TEXTS = [f"{quotes}{start}1+1" for start in "=+-@\t\r" for quotes in ("", "'", "''")]
PLAIN = ["", "'", "'quoted'", "a=1", "a.tif", "2026-01-02", " =1", "ä@b", '"=1"']


def test_no_cell_is_a_formula_and_every_text_comes_back():
    rows = [{"text": text, "number": -1.5, "count": -3} for text in TEXTS + PLAIN]
    table = csv_table(("text", "number", "count", "lacking"), rows)
    found = list(csv.DictReader(io.StringIO(table, newline="")))
    assert not any(row["text"].startswith(tuple("=+-@\t\r")) for row in found)
    assert [plain_text(row["text"]) for row in found] == TEXTS + PLAIN
    assert [row["text"] for row in found][len(TEXTS) :] == PLAIN, "other texts are written as they are"
    assert {(row["number"], row["count"], row["lacking"]) for row in found} == {("-1.5", "-3", "")}


def test_a_prediction_of_files_with_such_names_is_read_by_every_reader(tmp_path):
    names = ["=cmd.tif", "+1.tif", "-1.tif", "@sum.tif", "'=a.tif", "a.tif"]
    images = [PredictedImage(Path(name), 8, 8, 0.5, 1, {"own": Path(f"{name}.txt")}) for name in names]
    write_summary(tmp_path / "summary.csv", images, ("own",))
    write_failed(tmp_path / "failed.csv", [Failure(name, "read", "-1 pixels") for name in names])
    data = (tmp_path / "summary.csv").read_bytes()
    with open(tmp_path / "summary.csv", newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [*(f"'{name}" for name in names[:-1]), "a.tif"]
    assert data.decode().startswith(",".join(COLUMNS))
    assert [row["image"] for row in read_table(data, "summary.csv")[1]] == names
    assert [row["image"] for row in parse_table(data, "summary.csv").rows] == names
    assert listed_in(data.decode()) == {f"{name}.txt" for name in names}
    failed = read_table((tmp_path / "failed.csv").read_bytes(), "failed.csv")[1]
    assert [(row["image"], row["reason"]) for row in failed] == [(name, "-1 pixels") for name in names]


@pytest.mark.parametrize("head", ["a,b", ",".join((*COLUMNS, "own"))], ids=["of somebody", "of predict, damaged"])
def test_a_table_with_a_cell_of_any_length_names_no_file(head):
    assert listed_in(f'{head}\r\n"{"a" * 200_000}') == frozenset()


def test_a_line_of_blanks_is_no_row_for_any_reader():
    data = b"image,confluence\n \na.tif,0.5\n \t, \n"
    assert parse_table(data, "table.csv").rows == [{"image": "a.tif", "confluence": "0.5"}]
    assert read_table(data, "table.csv")[1] == [{"image": "a.tif", "confluence": "0.5"}]
