"""The proof run's checks as tests. They need a CUDA device; `python -m pytest -m gpu`, or `make gpu` for its page."""

import pytest
import torch
from helpers import draw_shards

from glioma_dist.benchmark.proof.checks import CHECKS
from glioma_dist.benchmark.proof.lines import Setting
from glioma_dist.benchmark.proof.runner import run_check

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_no_line_of_a_check_fails(check, tmp_path):
    draw_shards(tmp_path / "train", range(12))
    draw_shards(tmp_path / "val", range(100, 103))
    setting = Setting("cuda", torch.cuda.device_count(), str(tmp_path), str(tmp_path))
    lines, _ = run_check(check, setting, tmp_path)
    failed = [f"{line.name}: {line.value}, {line.relation} {line.limit} {line.note}" for line in lines]
    assert [text for text, line in zip(failed, lines, strict=True) if line.status == "FAIL"] == []
    if all(line.status == "SKIPPED" for line in lines):
        pytest.skip(lines[0].note)
