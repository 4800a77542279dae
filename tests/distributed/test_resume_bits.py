"""A run that was restarted ends with the bits of one that was not, on one, two, three and four processes."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from engines import fsdp2, keep_trained_models
from helpers import rows, run, tiny_config

from glioma_dist.model.checkpoint import MODEL, OPTIMIZER, Checkpoint
from glioma_dist.training import loop

SMALL_BUCKET_MB = 0.05
"""So that even the smallest network's gradients, 0.28 MB, fill several buckets, as a real one's fill those of 25 MB."""


def train_here(engine: str, *configs) -> int:
    """Train in small buckets, or under FSDP2, one run after the other. Returns the number of buckets that gradients
    were sent in at the end of the first."""
    from glioma_dist.distributed.context import DistributedContext

    kept = keep_trained_models()
    here = DistributedContext.start()
    with fsdp2(here) if engine == "FSDP2" else nullcontext():
        if engine == "DDP":
            here.accelerator.ddp_handler.bucket_cap_mb = SMALL_BUCKET_MB
        for config in configs:
            loop.train(config, here)
    if not hasattr(kept[0], "_get_ddp_logging_data"):
        return 0
    said = kept[0]._get_ddp_logging_data()  # PyTorch does not note every step's
    return len(said.get("rebuilt_bucket_sizes", said["bucket_sizes"]).split(","))


TWICE, ONCE = (1, 2, 4), (2, 4)
"""Steps at which a run ends. DDP arranges its buckets again after the first step, FSDP2 has none: to be restarted
once is enough, as each of its processes takes two seconds to find out how to shard what Adam computes."""


@pytest.mark.parametrize(
    ("engine", "num_processes", "kind", "ends"),
    [
        *(("DDP", number, kind, TWICE) for number in (1, 2, 3, 4) for kind in ("none", "full")),
        ("DDP", 3, "selective", TWICE),
        ("DDP", 2, "offload", ONCE),
        ("FSDP2", 2, "offload", ONCE),
        *(("FSDP2", number, "full", ONCE) for number in (2, 3)),
        *(pytest.param("FSDP2", number, "full", TWICE, marks=pytest.mark.slow) for number in (2, 3)),
    ],
)
def test_a_restarted_run_ends_with_the_same_bits(shards, tmp_path, engine, num_processes, kind, ends):
    """From three processes on, where a number lies in what is sent decides in which order its parts are added."""
    config = tiny_config(shards, tmp_path / "whole", max_steps=4, batch_size=2 * num_processes, val=None)
    config = replace(config, scale=replace(config.scale, activation_checkpointing=kind))
    restarted = replace(config, out=tmp_path / "restarted")
    begun, *continued = (replace(restarted, max_steps=steps) for steps in ends)
    buckets = run(train_here, engine, config, begun, num_processes=num_processes)
    if engine == "DDP" and num_processes > 1:
        assert min(buckets) > 3, buckets
    for each in continued:
        run(train_here, engine, each, num_processes=num_processes)
    assert rows(restarted.out) == rows(config.out)
    for name in (MODEL, OPTIMIZER):
        whole, other = (Checkpoint.read(each.out / "last").tensors(name) for each in (config, restarted))
        assert whole.keys() == other.keys()
        unequal = [key for key, tensor in whole.items() if not torch.equal(tensor, other[key])]
        assert not unequal, f"{name}: {len(unequal)} of {len(whole)} tensors differ"
