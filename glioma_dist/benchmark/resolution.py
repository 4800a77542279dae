"""What a training step takes at which image size, measured: what `glioma-dist bench resolution` does.

Every cell (network, level, layout, precision, size) is measured in a process started for it alone: nothing that one
leaves behind stands in another's way, and a cell that runs out of memory is a result, not the end of the benchmark.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace

from glioma_dist.benchmark.cell import BASELINES, OURS, Cell
from glioma_dist.benchmark.devices import LIBRARIES, device_folder
from glioma_dist.benchmark.drawn_shards import NATIVE, drawn_or_given
from glioma_dist.benchmark.environment import describe_code, describe_device, find_device, find_version
from glioma_dist.benchmark.launching import end_with_this_process
from glioma_dist.benchmark.peak_speed import step_operations, utilisation
from glioma_dist.benchmark.rows import Rows, results_folder
from glioma_dist.config.benchmark import SIDE_STEP, ResolutionConfig
from glioma_dist.distributed.launched import without_launch
from glioma_dist.errors import OUT_OF_MEMORY, says_memory_is_full
from glioma_dist.size import Size

CELL_MODULE = "glioma_dist.benchmark.cell"
NUM_DRAWN = 8
PRECISION_OF_LARGEST = 0.05


def make_cells(config: ResolutionConfig, device: str, data: str | None) -> list[Cell]:
    """All cells, the sizes in the order given. device: cuda or cpu. data: folder of shards."""
    layouts = ("contiguous", "channels_last") if config.channels_last else ("contiguous",)
    networks = [
        *((OURS, level, layout) for layout in layouts for level in config.levels),
        *((BASELINES[baseline], "none", "contiguous") for baseline in config.baselines),
    ]
    precisions = config.precisions or ("bf16" if device == "cuda" else "fp32",)
    shared = {name: getattr(config, name) for name in ("encoder", "batch_size", "repeats", "warm_up", "workers")}
    return [
        Cell(network, level, layout, precision, str(size), **shared, device=device, data=data)
        for size, precision, (network, level, layout) in itertools.product(config.sizes, precisions, networks)
    ]


def run_child(command: list[str], timeout_s: float) -> dict:
    """What a process printed as its last line, as JSON; or how it ended instead."""
    environment = without_launch(os.environ)
    # Files, for a pipe would stay open as long as any data worker that a killed process leaves behind.
    with (
        tempfile.TemporaryFile("w+", errors="replace") as output,
        tempfile.TemporaryFile("w+", errors="replace") as log,
    ):
        try:
            code = subprocess.run(
                command,
                stdout=output,
                stderr=log,
                env=environment,
                timeout=timeout_s,
                preexec_fn=end_with_this_process,
            ).returncode
        except subprocess.TimeoutExpired:
            return {"status": "timed out", "error": f"not done after {timeout_s:g} s"}
        output.seek(0)
        log.seek(0)
        printed, said = output.read().splitlines(), log.read().strip()
    if code == 0:
        return json.loads(printed[-1])
    if code == -signal.SIGKILL or says_memory_is_full(said):
        return {"status": OUT_OF_MEMORY, "error": "the system ended the process"}
    return {"status": "failed", "error": f"exit code {code}: {said.splitlines()[-1] if said else 'no word'}"}


def measure_in_some_way(cell: Cell, metadata: dict, timeout_s: float) -> dict:
    """A row of the result; on a CPU whose memory did not suffice, measured again with gaps given back to the system."""
    row = measure_apart(cell, metadata, timeout_s)
    if cell.device == "cpu" and row["status"] == OUT_OF_MEMORY:
        return measure_apart(replace(cell, keeps_freed_memory=False), metadata, timeout_s)
    return row


def measure_apart(cell: Cell, metadata: dict, timeout_s: float, kind: str = "step") -> dict:
    """A row of the result: a cell, measured in its own process."""
    nothing = {"peak_gib": None, "peak_reserved_gib": None, "seconds": [], "median_seconds": None, "error": None}
    nothing |= {"numerics": None, "images_per_second": None, "images_per_second_with_data": None, "waiting_share": None}
    figures = run_child([sys.executable, "-m", CELL_MODULE, json.dumps(asdict(cell))], timeout_s)
    row = {
        "kind": kind,
        "status": None,
        **asdict(cell),
        "megapixels": cell.megapixels,
        **nothing,
        **figures,
        **metadata,
    }
    operations = step_operations(cell.encoder, Size.parse(cell.size), cell.batch_size)
    median, done = row["median_seconds"], row["status"] == "ok"
    row |= {
        "tflop": operations / 1e12,
        "mfu": utilisation(operations, median, row["device"], cell.precision) if done else None,
    }
    told = f"{row['peak_gib'] or 0:.2f} GiB, {median:.3f} s" if done else row["error"]
    place = f"{cell.size} x{cell.batch_size} {cell.precision} {cell.network} {cell.level} {cell.layout}"
    print(f"{place}: {row['status']}, {told}", flush=True)
    return row


def name_of(cell: Cell, kind: str = "step") -> dict:
    """The columns of a row that identify what it measures."""
    left_out = ("device", "data", "keeps_freed_memory")
    return {"kind": kind} | {name: value for name, value in asdict(cell).items() if name not in left_out}


def step_rows(config: ResolutionConfig, cells: list[Cell], metadata: dict, rows: Rows) -> None:
    """Measure each cell that has no row yet."""
    for cell in cells:
        name = name_of(cell) | {"data": metadata["data"]}
        rows.get(name, lambda cell=cell: measure_in_some_way(cell, metadata, config.timeout_s))


def largest_rows(config: ResolutionConfig, cells: list[Cell], metadata: dict, rows: Rows) -> None:
    """Two rows for each network, level, layout and precision: its largest size at batch 1, and its largest batch."""
    by_pixels = sorted(cells, key=lambda cell: cell.megapixels)
    smallest, largest = by_pixels[0].megapixels, by_pixels[-1]
    bound = {"max_megapixels": config.max_megapixels}
    for cell in (each for each in cells if each.size == largest.size):
        # Two steps: Adam's moments are there from the second on.
        trial = replace(cell, warm_up=1, repeats=1, data=None)

        def at_pixels(pixels: int, trial: Cell = trial) -> dict:
            sized = replace(trial, size=str(size_of(pixels)), batch_size=1)
            return measure_apart(sized, metadata, config.timeout_s, "largest")

        def at_batch(count: int, trial: Cell = trial) -> dict:
            return measure_apart(replace(trial, batch_size=count), metadata, config.timeout_s, "largest")

        name = name_of(trial, "largest") | bound
        of_size = {key: value for key, value in name.items() if key not in ("size", "batch_size")} | {"sought": "size"}
        of_batch = {key: value for key, value in name.items() if key != "batch_size"} | {"sought": "batch"}
        least, most = round(smallest * 1e6), round(config.max_megapixels * 1e6)
        known = rows.find(of_size)
        # Where not even the smallest size trained, there may be a smaller one now.
        has_smaller = known is not None and known["megapixels"] > smallest and known["size"] != str(size_of(least))
        if has_smaller and known["status"] != "ok":
            rows.rows.remove(known)
        rows.get(of_size, lambda at=at_pixels, few=least, many=most: search(at, few, many) | bound | {"sought": "size"})
        many = int(config.max_megapixels / largest.megapixels)
        rows.get(of_batch, lambda at=at_batch, many=many: search(at, 1, many) | bound | {"sought": "batch"})


def size_of(pixels: int) -> Size:
    """About so many pixels in the microscope's proportions, sides multiples of 32."""
    width = max(1, round(math.sqrt(pixels * NATIVE.width / NATIVE.height) / SIDE_STEP))
    return Size(width * SIDE_STEP, max(1, round(width * NATIVE.height / NATIVE.width)) * SIDE_STEP)


def search(trial: Callable[[int], dict], least: int, most: int) -> dict:
    """The row of the largest amount that trains, to 5 %: doubled until one does not train, then halved in.

    `limited_by` says what ended it. Where not even `least` trains, its row comes back.
    """
    best, limit, low, high, amount = None, "--max-megapixels", 0, math.inf, least
    while True:
        row = trial(amount)
        if row["status"] == "ok":
            best, low = row, amount
        else:
            best, limit, high = best or row, row["status"], amount
        if best["status"] != "ok" or high - low <= max(1, PRECISION_OF_LARGEST * low) or low >= most:
            return {**best, "limited_by": limit}
        amount = min(2 * low, most) if high == math.inf else (low + high) // 2


def bench(config: ResolutionConfig) -> list[dict]:
    """Measure the cells that have no row yet and write the results, the JSON after every row. Returns all rows.

    Raises InputError if `config.out` holds rows of another device, other versions or other code.
    """
    from glioma_dist.report.resolution import write_report

    device = find_device()
    conditions = {
        "device": describe_device(device),
        "versions": {library: find_version(library) for library in LIBRARIES},
        **describe_code(),
    }
    metadata = {**conditions, "command": shlex.join(["glioma-dist", *sys.argv[1:]]), "data": str(config.data)}
    out = config.out or device_folder(device)
    with results_folder(out):
        rows = Rows(out / "resolution.json", conditions)
        rows.report(write_report)
        images = max(NUM_DRAWN, config.batch_size)
        with contextlib.nullcontext() if str(config.data) == "none" else drawn_or_given(config.data, images) as data:
            cells = make_cells(config, device, data)
            before = len(rows.rows)
            try:
                step_rows(config, cells, metadata, rows)
                if config.find_largest:
                    largest_rows(config, cells, metadata, rows)
            finally:  # whoever interrupts it shall have a report of what is there
                rows.report(write_report)
        print(f"{len(rows.rows)} rows, {len(rows.rows) - before} of them new, a table and plots are in {out}")
        return rows.rows
