"""What segmenting one image takes at which size, measured: what `glioma-dist bench predict` does.

Every cell (network, encoder, size) is measured in a process started for it alone.
"""

from __future__ import annotations

import itertools
import json
import shlex
import sys
from dataclasses import asdict

import torch

from glioma_dist.benchmark.cell import BASELINES, OURS
from glioma_dist.benchmark.devices import LIBRARIES, device_folder
from glioma_dist.benchmark.environment import describe_code, describe_device, find_device, find_version
from glioma_dist.benchmark.prediction_cell import PredictionCell
from glioma_dist.benchmark.resolution import run_child
from glioma_dist.benchmark.rows import Rows, results_folder
from glioma_dist.config.benchmark import PredictionConfig
from glioma_dist.size import Size

CELL_MODULE = "glioma_dist.benchmark.prediction_cell"
FIGURES = ("median_seconds", "cpu_seconds", "start_gib", "grown_gib", "peak_gib", "tensors_gib", "error")


def make_cells(config: PredictionConfig, device: str) -> list[PredictionCell]:
    """All cells, sizes and encoders in the order given, each encoder of ours before the baselines'."""
    networks = [OURS, *(BASELINES[each] for each in config.baselines)]
    return [
        PredictionCell(
            network, encoder, str(size), config.repeats, config.warm_up, device, threads=torch.get_num_threads()
        )
        for size, encoder, network in itertools.product(config.sizes, config.encoders, networks)
    ]


def measure_apart(cell: PredictionCell, metadata: dict, timeout_s: float) -> dict:
    """A row of the result: a cell, measured in its own process."""
    figures = run_child([sys.executable, "-m", CELL_MODULE, json.dumps(asdict(cell))], timeout_s)
    size = Size.parse(cell.size)
    nothing = {"seconds": [], **dict.fromkeys(FIGURES)}
    megapixels = size.width * size.height / 1e6
    row = {"status": None, **asdict(cell), "megapixels": megapixels, **nothing, **figures, **metadata}
    told = row["error"]
    if row["status"] == "ok":
        told = f"{row['median_seconds']:.2f} s, {row['cpu_seconds']:.2f} CPU s, {row['peak_gib'] or 0:.2f} GiB"
    print(f"{cell.size} {cell.network} {cell.encoder}: {row['status']}, {told}", flush=True)
    return row


def bench(config: PredictionConfig) -> list[dict]:
    """Measure the cells that have no row yet and write the results, the JSON after every row. Returns all rows.

    Raises InputError if `config.out` holds rows of another device, other versions or other code.
    """
    from glioma_dist.report.segmenting_time import write_report

    device = find_device()
    conditions = {
        "device": describe_device(device),
        "versions": {library: find_version(library) for library in LIBRARIES},
        **describe_code(),
    }
    metadata = {**conditions, "command": shlex.join(["glioma-dist", *sys.argv[1:]])}
    out = config.out or device_folder(device)
    with results_folder(out):
        rows = Rows(out / "prediction.json", conditions)
        rows.report(write_report)
        before = len(rows.rows)
        try:
            for cell in make_cells(config, device):
                name = {key: each for key, each in asdict(cell).items() if key != "device"}  # which a row has in words
                rows.get(name, lambda cell=cell: measure_apart(cell, metadata, config.timeout_s))
        finally:  # whoever interrupts it shall have a report of what is there
            rows.report(write_report)
        print(f"{len(rows.rows)} rows, {len(rows.rows) - before} of them new, a table and plots are in {out}")
        return rows.rows
