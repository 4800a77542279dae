"""The proof run's checks as tests. They need a CUDA device; `python -m pytest -m gpu`, or `make gpu` for its page."""

import pytest
import torch

from glioma_dist.benchmark.drawn_shards import draw_shards
from glioma_dist.benchmark.proof.checks import CHECKS
from glioma_dist.benchmark.proof.lines import Setting
from glioma_dist.benchmark.proof.prove import DRAWN, NUM_TRAIN, NUM_VAL
from glioma_dist.benchmark.proof.runner import run_check

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_no_line_of_a_check_fails(check, tmp_path, monkeypatch):
    """On the images and with the threads of `make gpu`, for which the limits are made."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    draw_shards(tmp_path / "train", NUM_TRAIN, DRAWN)
    draw_shards(tmp_path / "val", NUM_VAL, DRAWN, seed=1)
    setting = Setting("cuda", torch.cuda.device_count(), str(tmp_path), str(tmp_path))
    lines, _ = run_check(check, setting, tmp_path)
    failed = [f"{line.name}: {line.value}, {line.relation} {line.limit} {line.note}" for line in lines]
    assert [text for text, line in zip(failed, lines, strict=True) if line.status == "FAIL"] == []
    if all(line.status == "SKIPPED" for line in lines):
        pytest.skip(lines[0].note)
