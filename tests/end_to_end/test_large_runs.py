"""Memory and exactness of large images at their real sizes: minutes to hours each."""

import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run

from glioma_dist.config import ModelConfig
from glioma_dist.evaluation.network import Network
from glioma_dist.inference.large import memory
from glioma_dist.inference.segmenting import segment
from glioma_dist.model.unet import build_model
from glioma_dist.scale.activation_checkpointing import checkpoint_activations

pytestmark = pytest.mark.timeout(3 * 3600)

GIB = 2**30


class Drawn:
    """A picture that is drawn as its rows are read."""

    dtype = np.dtype(np.uint8)

    def __init__(self, side: int) -> None:
        self.shape = (side, side)

    def rows(self, start: int, stop: int) -> np.ndarray:
        rows, columns = np.arange(start, stop)[:, None], np.arange(self.shape[1], dtype=np.float32)[None]
        return ((np.sin(columns * 0.05) * np.cos(rows * 0.031 + columns * 0.01) + 1.2) * 100).astype(np.uint8)


def segment_drawn(side: int, limit: float | None, folder: str, threads: int = 1) -> dict:
    """Segment a drawn picture with mit_b0 within `limit` GiB of resident memory; None: as a whole. The probabilities
    go to a file."""
    torch.set_num_threads(threads)
    model, _ = build_model(ModelConfig(encoder="mit_b0"), 0)
    checkpoint_activations(model.eval(), "none")
    network = Network(model, torch.device("cpu"), encoder="mit_b0")
    memory.hand_back_freed_memory()
    began, cpu = time.monotonic(), time.process_time()
    allowed = None if limit is None else int(limit * GIB)
    picture = Drawn(side).rows(0, side) if limit is None else Drawn(side)
    found = segment(picture, network, None, allowed, Path(folder))
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu
    saved = np.lib.format.open_memmap(Path(folder) / f"{found.way}.npy", "w+", np.float32, (side, side))
    for start in range(0, side, 256):
        saved[start : start + 256] = found.maps[start : start + 256]
    return {"way": found.way, "peak": peak, "seconds": seconds, "cpu": cpu_seconds}


def look_at(folder: Path, way: str) -> np.ndarray:
    return np.load(folder / f"{way}.npy", mmap_mode="r")


@pytest.mark.slow
def test_6000x6000_in_two_and_a_half_gib(tmp_path):
    (found,) = run(segment_drawn, 6000, 2.5, str(tmp_path), timeout=7200)
    print(found)
    assert found["way"] == "tiles"
    assert found["peak"] < 2.5 * GIB
    values = look_at(tmp_path, "tiles")
    assert np.isfinite(values).all()
    assert values.std() > 1e-3


@pytest.mark.slow
def test_4096x4096_in_strips_is_the_whole_image(tmp_path):
    """The whole takes 8 GiB."""
    (whole,) = run(segment_drawn, 4096, None, str(tmp_path), timeout=7200)
    (strips,) = run(segment_drawn, 4096, 1.5, str(tmp_path), timeout=7200)
    print(whole, strips)
    assert whole["way"] == "whole"
    assert strips["peak"] < 1.5 * GIB
    assert np.abs(look_at(tmp_path, "whole") - look_at(tmp_path, strips["way"])).max() < 1e-5


@pytest.mark.slow
def test_20000x20000_in_four_gib_and_two_hours_on_two_cores(tmp_path):
    (found,) = run(segment_drawn, 20_000, 4.0, str(tmp_path), 2, timeout=3 * 3600)
    print(found)
    assert found["way"] == "tiles"
    assert found["peak"] < 4 * GIB
    assert found["seconds"] < 2 * 3600
    assert np.isfinite(look_at(tmp_path, "tiles")).all()
