"""Which processes share an image, and over which communicators they send."""

from types import SimpleNamespace

import pytest
import torch.distributed as dist

from glioma_dist.scale.spatial_group import SpatialGroup


@pytest.mark.parametrize(
    ("size", "expected"), [(1, []), (2, [[0, 1], [2, 3]]), (4, [])], ids=["whole images", "two groups", "one group"]
)
def test_no_second_communicator_over_the_same_processes(size, expected, monkeypatch):
    """NCCL: operations of two communicators over the same GPUs, on two streams, may wait for each other for ever. DDP
    and FSDP2 have the launch's, and send while strips are exchanged."""
    made = []
    monkeypatch.setattr(dist, "new_group", lambda ranks, timeout: made.append(list(ranks)) or made[-1])
    group = SpatialGroup.join(SimpleNamespace(rank=2, num_processes=4, seconds_to_answer=9.0), size)
    assert made == expected
    assert group.group == (expected[group.dp_rank] if expected else None)
