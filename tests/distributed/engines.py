"""Has accelerate take FSDP2 on CPUs, which it reads the settings of for GPUs only."""

from collections.abc import Iterator
from contextlib import contextmanager

from glioma_dist.runtime import Runtime


@contextmanager
def fsdp2(runtime: Runtime) -> Iterator[None]:
    """Within it, the launch that `runtime` is part of is one of FSDP2."""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    states = [AcceleratorState._shared_state, PartialState._shared_state]
    before = [state["distributed_type"] for state in states]
    for state in states:
        state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    try:
        yield
    finally:
        for state, kind in zip(states, before, strict=True):
            state["distributed_type"] = kind
