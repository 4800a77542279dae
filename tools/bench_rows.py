"""One image on several processes, by its rows: memory, time, and what is sent: `python tools/bench_rows.py --help`.

Each number of bands is a launch of its own. On a machine without GPUs the processes share its cores, so that the time
of a step says what the exchange costs, not what several machines gain.
"""

import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from glioma_dist.benchmark.environment import describe_device, find_commit, find_device, find_version
from glioma_dist.benchmark.spatial_parallel import RowsCell, measure_rows
from glioma_dist.cli.arguments import read_arguments
from glioma_dist.config import ModelConfig, check_rows
from glioma_dist.distributed.context import Runtime
from glioma_dist.distributed.launcher import check_launch_file
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError
from glioma_dist.files import check_new_folder, make_folder, write_atomically, write_json_atomically
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import UNet
from glioma_dist.scale.planner import GIB, Recompute, Step, count, count_sent
from glioma_dist.scale.spatial_group import band_edges
from glioma_dist.size import Size, SizeFlag

REPOSITORY = Path(__file__).resolve().parents[1]
NATIVE = Size(2592, 1952)
LINKS_GB_S = {"NVLink, 450 GB/s": 450.0, "PCIe 5, 50 GB/s": 50.0, "Ethernet, 100 Gbit/s": 12.5, "10 Gbit/s": 1.25}
"""Bytes that one card can send in a second, at best."""
TIMES_FORWARD = 3
"""A backward pass takes two forward passes' work."""


@dataclass(frozen=True)
class BenchRowsConfig:
    """A JSON file and a Markdown table of memory, time and traffic against the number of bands."""

    sizes: tuple[SizeFlag, ...] = (Size(1472, 1120),)
    """Sizes of an image that are measured."""
    rows: tuple[int, ...] = (1, 2, 4)
    """Numbers of bands, and of processes."""
    recompute: tuple[Recompute, ...] = ("none", "all")
    encoder: str = "mit_b0"
    repeats: int = 2
    warm_up: int = 1
    launch_file: Path | None = None
    """File for accelerate launch; by default accelerate_configs/rows.yaml on GPUs, cpu_2_processes.yaml without."""
    foretold_encoder: str = "mit_b3"
    foretold_size: SizeFlag = NATIVE
    """Of what the traffic is counted, in bf16."""
    tflop_s: float = 100.0
    """What a card computes in a second, sustained, for the shares of time that are foretold."""
    out: Path = Path("docs/benchmarks/rows")
    """A new folder for rows.json and rows.md."""

    def validate(self) -> None:
        for name in (self.encoder, self.foretold_encoder):
            ModelConfig(encoder=name).validate()
            check_rows(max(self.rows, default=1), name)
        if not self.rows or min(self.rows) < 1 or not self.recompute:
            raise InputError("--rows, --recompute: give one or more, as 1 2 4")
        for size in (*self.sizes, self.foretold_size):
            band_edges(size.height, max(self.rows))
        if self.repeats < 1 or self.warm_up < 0 or not self.tflop_s > 0:
            raise InputError("--repeats and --tflop-s: give more than 0, --warm-up 0 or more")
        if self.launch_file is not None:
            check_launch_file("--launch-file", self.launch_file)
        check_new_folder("--out", self.out)
        if (self.out / "rows.json").exists():
            raise InputError(f"--out {self.out} holds a benchmark already; give another folder")


def measured(config: BenchRowsConfig) -> list[dict]:
    """A row for each size, recomputation and number of bands, measured by a launch."""
    default = "rows.yaml" if torch.cuda.is_available() else "cpu_2_processes.yaml"
    file = config.launch_file or REPOSITORY / "accelerate_configs" / default
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
    found = []
    for size, kind, rows in itertools.product(config.sizes, config.recompute, config.rows):
        cell = RowsCell(config.encoder, str(size), rows, kind, config.repeats, config.warm_up)
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "row.json"
            command = [*launch, "--num_processes", str(rows), __file__, "--cell", json.dumps(asdict(cell)), str(result)]
            threads = max(1, (os.cpu_count() or 1) // rows)
            ended = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, check=False)
            if ended.returncode:
                raise InputError(f"{shlex.join(command)} ended with {ended.returncode}; its own lines say why")
            found.append({**asdict(cell), **json.loads(result.read_text())})
        print(f"{size} {kind} rows {rows}: {found[-1]['median_seconds']:.2f} s", flush=True)
    return found


def foretold(config: BenchRowsConfig) -> list[dict]:
    """A row for each number of bands and recomputation: memory, work and bytes sent by one card in a bf16 step."""
    model = ModelConfig(encoder=config.foretold_encoder)
    flop = count_flop(model, config.foretold_size)
    found = []
    for kind, rows in itertools.product(config.recompute, config.rows):
        step = Step(model, config.foretold_size, 1, True, rows, rows, loss=partial(segmentation_loss, "dice"))
        halos, gathered = count_sent(step, kind) if rows > 1 else (0, 0)
        again = TIMES_FORWARD + (kind != "none")  # upper bound: the decoder's part is computed again in "all" only
        row = {"recompute": kind, "rows": rows, "peak_gib": count(step, kind).peak / GIB}
        row |= {"tflop": again * flop / rows / 1e12, "halo_mib": halos / 2**20, "gathered_mib": gathered / 2**20}
        found.append(row)
    return found


def count_flop(model: ModelConfig, size: Size) -> float:
    """Floating-point operations of a forward pass on one image."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        network = UNet(model)
        network(torch.zeros(1, 3, size.height, size.width))
    return counter.get_total_flops()


def markdown_text(facts: dict, steps: list[dict], traffic: list[dict], config: BenchRowsConfig) -> str:
    lines = ["# One image over several processes\n", f"{facts['device']}; torch {facts['torch']}; {facts['commit']}.\n"]
    lines += [f"```\n{facts['command']}\n```\n", f"## Measured: U-Net {config.encoder}\n"]
    lines += [
        "| size | recompute | rows | s a step | peak GiB of each process | of one |",
        "|---|---|---:|---:|---|---:|",
    ]
    whole = {(row["size"], row["recompute"]): max(row["peak_gib"]) for row in steps if row["rows"] == 1}
    for row in steps:
        share = max(row["peak_gib"]) / whole.get((row["size"], row["recompute"]), float("nan"))
        peaks = ", ".join(f"{peak:.2f}" for peak in row["peak_gib"])
        place = f"| {row['size']} | {row['recompute']} | {row['rows']}"
        lines.append(f"{place} | {row['median_seconds']:.2f} | {peaks} | {share:.2f} |")
    lines += [
        f"\n## Counted: U-Net {config.foretold_encoder}, {config.foretold_size}, bf16, a card's share of a step\n"
    ]
    lines += [f"Time to send, in shares of the time to compute at {config.tflop_s:g} TFLOP/s, nothing overlapping.\n"]
    lines += [f"| recompute | rows | peak GiB | TFLOP | halos MiB | keys and values MiB | {' | '.join(LINKS_GB_S)} |"]
    lines += ["|---|---:|---:|---:|---:|---:|" + "---:|" * len(LINKS_GB_S)]
    for row in traffic:
        compute = row["tflop"] / config.tflop_s
        sent = (row["halo_mib"] + row["gathered_mib"]) * 2**20
        shares = " | ".join(f"{100 * sent / (speed * 1e9) / compute:.1f} %" for speed in LINKS_GB_S.values())
        figures = f"{row['peak_gib']:.2f} | {row['tflop']:.2f} | {row['halo_mib']:.0f} | {row['gathered_mib']:.0f}"
        lines.append(f"| {row['recompute']} | {row['rows']} | {figures} | {shares} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    if sys.argv[1:2] == ["--cell"]:
        runtime = Runtime.start()
        row = measure_rows(RowsCell(**json.loads(sys.argv[2])), runtime)
        if runtime.is_main:
            write_json_atomically(Path(sys.argv[3]), row)
        return
    config = read_arguments(BenchRowsConfig)
    facts = {
        "device": describe_device(find_device()),
        "torch": find_version("torch"),
        "commit": find_commit(REPOSITORY),
        "command": shlex.join(sys.argv),
    }
    steps, traffic = measured(config), foretold(config)
    make_folder(config.out)
    content = {"facts": facts, "measured": steps, "counted": traffic}
    write_json_atomically(config.out / "rows.json", content)
    write_atomically(config.out / "rows.md", markdown_text(facts, steps, traffic, config))
    print(f"{config.out / 'rows.md'}")


if __name__ == "__main__":
    run_command(main)
