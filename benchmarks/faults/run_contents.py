"""What lies in a run's folder, and whether two runs are equal."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from glioma_dist.training.telemetry import OF_SPEED

KEPT_ASIDE = ("last.damaged", "best.damaged")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows(out: Path) -> list[dict]:
    """The whole rows of metrics.jsonl without the speed, the one thing that no two runs share."""
    found = []
    path = out / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            found.append({name: value for name, value in json.loads(line).items() if name not in OF_SPEED})
    return found


def last_step(out: Path) -> int:
    """The last step that metrics.jsonl tells of."""
    return max((row["step"] for row in rows(out)), default=0)


def saved_step(out: Path) -> int:
    """The step of the newest checkpoint that the run left; 0 where there is none."""
    path = out / "last" / "state.json"
    return json.loads(path.read_text())["position"]["step"] if path.is_file() else 0


def tensors(out: Path) -> dict[str, bytes]:
    """The bits of all tensors of a run's checkpoints `last` and `best`, and their types and shapes."""
    found = {}
    for folder in ("last", "best"):
        for path in sorted((out / folder).glob("*.safetensors")):
            for name, tensor in load_file(path).items():
                found[f"{folder}/{path.name}: {name} {tensor.dtype} {tensor.shape}"] = np.ascontiguousarray(
                    tensor
                ).tobytes()
    return found


def status(out: Path) -> dict | None:
    """What status.json says; None where it is missing."""
    path = out / "status.json"
    return json.loads(path.read_text()) if path.is_file() else None


def names(out: Path) -> list[str]:
    """Names in a run's folder. Checkpoints beside the newest are numbered; a damaged one is kept aside."""
    return sorted({re.sub(r"\d+", "N", path.name) for path in out.iterdir() if path.name not in KEPT_ASIDE})


def check_same(one: Path, other: Path) -> None:
    """Two runs are equal: rows, and every bit of weights and optimizer; and no other names lie in their folders."""
    assert rows(one) == rows(other)
    found, expected = tensors(one), tensors(other)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
    assert names(one) == names(other)
