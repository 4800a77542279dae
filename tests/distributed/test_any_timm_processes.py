"""`timm/NAME` on two processes with unequal shares equals one plain process, in fp64, with DDP and FSDP2."""

import pytest
from helpers import run
from test_every_encoder import check, compare

NAMES = ("timm/test_resnet", "timm/convnext_atto")


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_with_unequal_shares_equal_one(name):
    """With the engines and levels of a narrow encoder."""
    check(run(compare, (name,), True, num_processes=2, timeout=500), name, narrow=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_so_they_do_with_every_engine_at_every_level(name):
    check(run(compare, (name,), False, num_processes=2, timeout=500), name)
