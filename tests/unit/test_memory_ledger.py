"""The pages of estimated and measured memory: the ledger of GPUs, and networks of other libraries on a CPU."""

import json
import re
from dataclasses import replace
from datetime import date

import pytest
from helpers import REPOSITORY, load_benchmark

from glioma_dist.benchmark.memory_ledger import LedgerRow, read_ledger, rows_of_proof
from glioma_dist.scale.step import LEVELS

FOLDER = REPOSITORY / "docs" / "benchmarks"
ROWS = read_ledger((FOLDER / "memory_ledger.md").read_text())
PROOFS = sorted(FOLDER.glob("*/proof.json"))
ROW = LedgerRow("A GPU", "2.15.0", "U-Net", "1x1x8x8", "bf16", "none", 1.5, 1.625, None, "abcdef0", "2026-01-31", "me")


def test_every_row_of_the_ledger_is_well_formed():
    assert ROWS
    for row in ROWS:
        assert re.fullmatch(r"\d+\.\d+\.\d+", row.torch), row
        assert re.fullmatch(r"\d+(x\d+)*(, \d+(x\d+)*)*", row.inputs), row
        assert row.precision in ("fp32", "bf16", "fp16"), row
        assert row.checkpointing in LEVELS, row
        assert row.counted_gib > 0, row
        assert 0 < row.allocated_gib <= (row.reserved_gib or row.allocated_gib), row
        assert re.fullmatch(r"[0-9a-f]{7,40}", row.commit), row
        assert date.fromisoformat(row.date) > date(2026, 1, 1), row
    assert len(set(ROWS)) == len(ROWS)


@pytest.mark.parametrize("proof", PROOFS, ids=lambda path: path.parent.name)
def test_the_ledger_has_the_rows_of_each_gpu_check(proof):
    missing = [row for row in rows_of_proof(proof) if row not in ROWS]
    assert missing == [], "python benchmarks/memory_ledger.py adds them"


def test_a_row_is_read_as_it_was_written():
    for row in (ROW, replace(ROW, reserved_gib=2.25)):
        assert LedgerRow.of_line(row.line()) == row


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("| me |", "|"),
        ("| 1.500 |", "| much |"),
        ("| 1.625 |", "|  |"),
        ("| 2.15.0 |", "|  |"),
        ("| me |", "| a | b |"),
    ],
    ids=["too few", "no number", "no measurement", "empty", "too many"],
)
def test_a_row_that_is_none_is_refused(old, new):
    assert old in ROW.line()
    with pytest.raises(ValueError, match=r"columns|convert|empty"):
        LedgerRow.of_line(ROW.line().replace(old, new))


@pytest.mark.parametrize(
    "reserved", ["counted 1.0 GiB, reserved 2.0 GiB", "3 GiB; without a limit PyTorch reserved 2.0 GiB"]
)
def test_both_forms_of_a_gpu_check_become_rows(tmp_path, reserved):
    lines = [
        {"check": "steps", "name": "small, none: allocated", "note": "mit_b3 9x9: counted 9 GiB, allocated 9 GiB"},
        {
            "check": "memory",
            "name": "small, full: allocated",
            "note": "mit_b3 704x512: counted 1.0 GiB, allocated 1.5 GiB",
        },
        {"check": "memory", "name": "small, full: fits", "note": reserved},
        {"check": "memory", "name": "native, none: allocated", "note": "out of memory"},
    ]
    metadata = {
        "kind": "cuda",
        "device": "A GPU",
        "versions": {"torch": "2.15.0+cu130"},
        "commit": "abcdef0",
        "started": "2026-02-01T00",
    }
    file = tmp_path / "proof.json"
    file.write_text(json.dumps({"metadata": metadata, "lines": lines}))
    (row,) = rows_of_proof(file)
    assert row.torch == "2.15.0"
    assert (row.inputs, row.checkpointing, row.counted_gib, row.allocated_gib, row.reserved_gib) == (
        *("1x1x512x704", "full"),
        *(1.0, 1.5, 2.0),
    )
    file.write_text(json.dumps({"metadata": metadata | {"kind": "cpu"}, "lines": lines}))
    assert rows_of_proof(file) == []
    file.write_text(json.dumps({"metadata": metadata, "lines": lines[:1]}))
    assert rows_of_proof(file) == [], "the check of memory was not asked for"
    file.write_text(json.dumps({"metadata": metadata | {"commit": None}, "lines": lines}))
    (row,) = rows_of_proof(file)
    assert LedgerRow.of_line(row.line()) == replace(row, commit="unknown"), "pip installed it"


def test_the_table_of_other_networks_is_that_of_its_figures_and_within_ten_per_cent():
    pytest.importorskip("segmentation_models_pytorch")
    file = FOLDER / "module_memory_2_cores" / "module_memory.json"
    content = json.loads(file.read_text())
    for script in load_benchmark("module_memory"):
        assert file.with_suffix(".md").read_text() == script.page(content)
        rows = [script.Comparison(**row) for row in content["rows"]]
        assert [row.network for row in rows] == list(script.NETWORKS)
    assert len(rows) == 20
    assert max(abs(row.difference) for row in rows) <= 0.10
