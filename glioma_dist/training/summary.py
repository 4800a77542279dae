"""What a run took: time, images, waiting for data, memory and cost, of one start and of all."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from glioma_dist.training.telemetry import DataWait, duration

GIB = 2**30
PAGE = resource.getpagesize()


def memory_in_use(device: torch.device | None) -> dict[str, float]:
    """Memory of this process in GiB, as it is now, without waiting for a GPU.

    On a GPU: allocated and reserved by PyTorch, and the most that was allocated. Else: resident, and the most so far.
    """
    if device is not None and device.type == "cuda":
        stats = torch.cuda.memory_stats(device)
        names = {"peak": "allocated_bytes.all.peak", "allocated": "allocated_bytes.all.current"}
        names |= {"reserved": "reserved_bytes.all.current"}
        return {f"{name}_gib": stats.get(key, 0) / GIB for name, key in names.items()}
    found = {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    with suppress(OSError):  # no /proc, or no file can be opened any more
        found["resident_gib"] = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / GIB
        found["peak_gib"] = max(found.values())  # Linux brings the peak up to date only now and then
    return found


class Summary:
    """Adds up one start of a run on its first process.

    step: from which the start resumes. batch_size: images in a step. price: of an hour of the run.
    """

    def __init__(
        self,
        step: int,
        batch_size: int,
        device: torch.device | None = None,
        data_wait: DataWait | None = None,
        price: float | None = None,
    ) -> None:
        self._first, self._batch_size, self._device, self._price = step, batch_size, device, price
        self._wait = data_wait or DataWait()
        self._begun = time.monotonic()

    def at(self, step: int) -> dict[str, Any]:
        """The figures after `step`, as JSON values, for run.json."""
        seconds, images = time.monotonic() - self._begun, (step - self._first) * self._batch_size
        on_gpu = self._device is not None and self._device.type == "cuda"
        figures = {
            "seconds": round(seconds, 3),
            "steps": step - self._first,
            "images": images,
            "images_per_second": images / max(seconds, 1e-9),
            "data_wait_share": min(1.0, self._wait.total / max(seconds, 1e-9)),
            "longest_data_wait_s": round(self._wait.longest, 3),
            "peak_gib": memory_in_use(self._device)["peak_gib"],
            "peak_of": "allocated" if on_gpu else "resident",
        }
        if self._price is not None:
            figures |= {"price_per_hour": self._price, "cost": self._price * seconds / 3600}
        return figures


def summary_line(this: Mapping[str, Any], earlier: Sequence[object] = ()) -> str:
    """The last line of a run for people. earlier: the summaries of its other starts, as run.json has them."""
    waiting = f"{100 * this['data_wait_share']:.1f} % of the time waiting for data"
    line = f"{_totals([this])}, {waiting}, peak memory {this['peak_gib']:.2f} GiB {this['peak_of']}{_cost([this])}"
    if not earlier:
        return line
    known = [each for each in earlier if _is_summary(each)]
    lost = len(earlier) - len(known)
    untold = f", {lost} of which ended without figures" if lost else ""
    return (
        f"this start: {line}; all {len(earlier) + 1} starts{untold}: {_totals([*known, this])}{_cost([*known, this])}"
    )


def _totals(summaries: Sequence[Mapping[str, Any]]) -> str:
    seconds, images = (sum(each[name] for each in summaries) for name in ("seconds", "images"))
    return f"time {duration(seconds)}, {images} images, {images / max(seconds, 1e-9):.2f} images/s"


def _cost(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Of the starts that had a price; nothing where this one, the last, has none."""
    if "cost" not in summaries[-1]:
        return ""
    return f", cost {sum(each.get('cost', 0) for each in summaries):.2f}"


def _is_summary(value: object) -> bool:
    """Whether a value of run.json, which people may have changed, is what `Summary.at` gives."""
    return (
        isinstance(value, dict)
        and all(_is_amount(value.get(name)) for name in ("seconds", "images"))
        and _is_amount(value.get("cost", 0))
    )


def _is_amount(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e15 and math.isfinite(value)
