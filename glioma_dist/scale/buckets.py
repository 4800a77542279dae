"""The order in which DDP sends gradients, fixed before the first step.

DDP packs gradients into buckets twice: before its first step by the order in which parameters are registered, and once
again after it, by the order in which the first gradients came. From three processes on, a number's place in what is
sent decides in which order its parts are added, and so its last bits: the first step after a restart would differ from
the same step of a run that was not restarted.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def fix_buckets(model: nn.Module) -> None:
    """Fix DDP's buckets: by the order of registration, last first, which is nearly that of a backward pass.

    A model that DDP has not wrapped is not changed. Costs one exchange of zeros; all processes call it.
    """
    if not isinstance(model, DistributedDataParallel):
        return
    # DDP notes the order in which gradients come in its first backward pass, and packs by it in the next forward pass.
    inner = model.module
    parameters = [parameter for parameter in inner.parameters() if parameter.requires_grad]
    own = inner.__dict__.get("forward")  # accelerate's, where it computes in mixed precision
    inner.forward = lambda: _zero_in_order(parameters)
    try:
        model().backward()
    finally:
        if own is None:
            del inner.forward
        else:
            inner.forward = own
    model.zero_grad(set_to_none=True)


def _zero_in_order(parameters: list[Tensor]) -> Tensor:
    """Zero (), whose backward pass gives each parameter a gradient of zeros, the last parameter's first."""
    total = parameters[0].new_zeros(())
    for parameter in parameters:
        total = total + 0 * parameter.flatten()[0]
    return total
