"""A batch of inputs, in a process of its own: each is made, read, and judged."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from targets import TARGETS

MAX_MESSAGE = 2000
"""Characters of an error's text; what is beyond 500 is cut out when it is printed."""


def run_batch(target: str, seed: int, first: int, end: int, folder: str, seconds: int) -> None:
    """Read inputs number `first` up to `end` of a target; results go to <folder>/results.jsonl, a line an input.

    The number of the input that is being read is in <folder>/current, and the input itself in <folder>/input: where
    the process crashes, or is ended after `seconds` by SIGALRM, the one who started it finds there which it was.
    """
    from glioma_dist.errors import RunError

    place = Path(folder)
    good, bad = place / "good", place / "input"
    if not good.exists():
        good.mkdir()
        TARGETS[target].prepare(good)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    with open(place / "results.jsonl", "a") as results:
        for number in range(first, end):
            rng = random.Random(f"{seed} {target} {number}")
            shutil.rmtree(bad, ignore_errors=True)
            (place / "current").write_text(str(number))
            TARGETS[target].change(rng, good, bad)
            before = _reset_peak()
            signal.alarm(seconds)
            start = time.monotonic()
            found = {"number": number, "ended": "read"}
            try:
                TARGETS[target].read(bad)
            except RunError as error:
                found["ended"] = "refused"
                text = str(error)
                if len(text) > MAX_MESSAGE or "\n" in text:
                    found |= {"ended": "long line", "detail": text[:2000]}
            except BaseException:
                found |= {"ended": "traceback", "detail": traceback.format_exc()[-3000:]}
            signal.alarm(0)
            found |= {"seconds": round(time.monotonic() - start, 3), "mib": max(0, _peak_mib() - before)}
            if found["ended"] in ("traceback", "long line"):
                shutil.copytree(bad, place / f"kept-{number}", symlinks=True)
            results.write(json.dumps(found) + "\n")
            results.flush()


def _reset_peak() -> int:
    """Have the kernel count this process's peak memory from now on. Returns what it holds, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_mib()


def _peak_mib() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024
