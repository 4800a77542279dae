"""The proof run from its first check to its page: what `glioma-dist bench gpu` does."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from glioma_dist.benchmark.devices import LIBRARIES, count_gpus, device_folder, gpu_memory, gpus_can_be_shared
from glioma_dist.benchmark.drawn_shards import draw_shards
from glioma_dist.benchmark.environment import describe_device, find_own_commit, find_version
from glioma_dist.benchmark.proof.checks import CHECKS
from glioma_dist.benchmark.proof.lines import Line, Setting
from glioma_dist.benchmark.proof.preflight import why_no_gpu
from glioma_dist.benchmark.proof.runner import Check, run_checks
from glioma_dist.benchmark.rows import results_folder
from glioma_dist.config.gpu_benchmarks import ProofConfig
from glioma_dist.distributed.cgroups import cpus_of_cgroups
from glioma_dist.errors import InputError, one_line
from glioma_dist.files import make_folder, write_atomically, write_json_atomically
from glioma_dist.report.proof_page import proof_page, summary
from glioma_dist.size import Size

CPU_PROCESSES = 2
DRAWN = Size(96, 80)
NUM_TRAIN, NUM_VAL = 12, 3
MOST_AT_ONCE, CORES_EACH, GIB_EACH = 4, 4, 4.0
"""Checks side by side, and what each takes at most of the machine."""


def prove(config: ProofConfig, known: Sequence[Check] = CHECKS) -> list[Line]:
    """Run the checks, writing proof.json and proof.md after each. Returns all lines.

    Raises InputError for a name of no check, and where there is no GPU.
    """
    checks = choose(config.checks, known)
    gpus, reason = count_gpus()
    if config.device == "cuda" and not gpus:
        raise InputError(why_no_gpu(reason))
    out = config.out or device_folder(config.device)
    metadata = {
        "kind": config.device,
        "device": describe_device(config.device),
        "num_devices": gpus if config.device == "cuda" else CPU_PROCESSES,
        "versions": {name: find_version(name) for name in LIBRARIES},
        "commit": find_own_commit(),
        "command": shlex.join(["glioma-dist", *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    lines: list[Line] = []
    done: list[dict] = []
    start = time.monotonic()

    def write() -> dict[str, Any]:
        content = {
            "metadata": metadata,
            "finished": len(done) == len(checks),
            "seconds": round(time.monotonic() - start, 1),
            "checks": done,
            "lines": [asdict(line) for line in lines],
        }
        write_json_atomically(out / "proof.json", content)
        write_atomically(out / "proof.md", proof_page(content))
        return content

    with ExitStack() as held:
        held.enter_context(results_folder(out))
        make_folder(out / "logs")
        content = write()  # an earlier run's page would stay until the first check has ended
        folder = held.enter_context(tempfile.TemporaryDirectory(prefix="glioma-dist-proof-"))
        draw_shards(Path(folder) / "train", NUM_TRAIN, DRAWN)
        draw_shards(Path(folder) / "val", NUM_VAL, DRAWN, seed=1)
        setting = Setting(config.device, metadata["num_devices"], folder, folder)
        results = run_checks(checks, setting, out / "logs", checks_at_once(config.device))
        for check, found, seconds in held.enter_context(closing(results)):
            lines += found
            done.append({"name": check.name, "seconds": round(seconds, 1), "bound": check.seconds})
            for line in found:
                tell(line)
            content = write()
    print(f"{summary(content['lines'])}: {out / 'proof.md'}", flush=True)
    return lines


def checks_at_once(device: str) -> int:
    """Number of checks that fit side by side on this machine. In a rehearsal one after the other."""
    if device == "cpu" or not gpus_can_be_shared():
        return 1
    cores = min([len(os.sched_getaffinity(0)), *cpus_of_cgroups()])
    return max(1, min(MOST_AT_ONCE, int(cores // CORES_EACH), int(gpu_memory() // GIB_EACH)))


def choose(names: Sequence[str], known: Sequence[Check]) -> list[Check]:
    """The checks of these names, in their own order; all where there are none."""
    wrong = sorted(set(names) - {check.name for check in known})
    if wrong:
        listed = ", ".join(check.name for check in known)
        raise InputError(f"--checks {one_line(' '.join(wrong), 100)}: no such check; there are {listed}")
    return [check for check in known if not names or check.name in names]


def tell(line: Line) -> None:
    figure = (
        "" if line.value is None else f"  {line.value} ({line.relation} {line.limit} {line.unit})".replace(" )", ")")
    )
    note = f"  {line.note}" if line.status != "PASS" and line.note else ""
    print(f"{line.status:<8}{line.check}: {line.name}{figure}{note}", flush=True)
