"""A run that was restarted ends with the bits of one that was not, on one, two, three and four processes."""

from dataclasses import replace

import pytest
import torch
from helpers import rows, run, tiny_config

from glioma_dist.model.checkpoint import MODEL, OPTIMIZER, load_file
from glioma_dist.training import loop

SMALL_BUCKET_MB = 0.05
"""So that even the smallest network's gradients, 0.28 MB, fill several buckets, as a real one's fill those of 25 MB."""


def train_in_small_buckets(config) -> int:
    """Returns the number of buckets that gradients are sent in at the end."""
    from glioma_dist.runtime import Runtime

    kept, prepare = [], loop.prepare

    def keeping(*arguments):
        result = prepare(*arguments)
        kept.append(result[0].model)
        return result

    loop.prepare = keeping
    here = Runtime.start()
    here.accelerator.ddp_handler.bucket_cap_mb = SMALL_BUCKET_MB
    loop.train(config, here)
    data = kept[0]._get_ddp_logging_data() if here.num_processes > 1 else {}
    return len(data.get("rebuilt_bucket_sizes", data.get("bucket_sizes", "")).split(",")) if data else 0


@pytest.mark.parametrize("kind", ["none", "all"])
@pytest.mark.parametrize("num_processes", [1, 2, 3, 4])
def test_a_restarted_run_ends_with_the_same_bits(shards, tmp_path, num_processes, kind):
    """From three processes on, where a number lies in what is sent decides in which order its parts are added."""
    config = tiny_config(shards, tmp_path / "whole", max_steps=4, batch_size=2 * num_processes, val=None)
    config = replace(config, scale=replace(config.scale, recompute=kind))
    buckets = run(train_in_small_buckets, config, num_processes=num_processes)
    assert num_processes == 1 or min(buckets) > 3, buckets
    restarted = replace(config, out=tmp_path / "restarted")
    for steps in (1, 2, 4):
        run(train_in_small_buckets, replace(restarted, max_steps=steps), num_processes=num_processes)
    assert rows(restarted.out) == rows(config.out)
    for name in (MODEL, OPTIMIZER):
        whole, other = (load_file(each.out / "last" / name) for each in (config, restarted))
        assert whole.keys() == other.keys()
        unequal = [key for key, tensor in whole.items() if not torch.equal(tensor, other[key])]
        assert not unequal, f"{name}: {len(unequal)} of {len(whole)} tensors differ"
