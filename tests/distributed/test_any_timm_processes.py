"""`timm/NAME` on two processes with unequal shares equals one plain process, in fp64, DDP and FSDP2 at every level."""

import pytest
from helpers import run
from test_every_encoder import check, compare


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/convnext_atto"])
def test_two_processes_with_unequal_shares_equal_one(name):
    check(run(compare, (name,), False, num_processes=2, timeout=500), name)
