"""Has accelerate take FSDP2 on CPUs, which it reads the settings of for GPUs only; and the model of a training."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from glioma_dist.distributed.context import DistributedContext
from glioma_dist.training import loop


@contextmanager
def fsdp2(runtime: DistributedContext) -> Iterator[None]:
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


def keep_trained_models() -> list[nn.Module]:
    """The list to which trainings of this process add their models, wrapped as they train. Not undone: call it in a
    process of a test's own."""
    kept, prepare = [], loop.prepare

    def keeping(*arguments):
        result = prepare(*arguments)
        kept.append(result[0].model)
        return result

    loop.prepare = keeping
    return kept
