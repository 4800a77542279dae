"""Outputs of attention, kept while what is around them is computed again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from glioma_dist.scale.versions import Version

_ATEN = torch.ops.aten
ATTENTION_KERNELS = (
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
)
"""What scaled_dot_product_attention comes down to on GPUs and on CPUs."""


class AttentionMemory:
    """What a model's attention layers share: whether the segment that is being computed keeps what they return, or
    takes it from what was kept."""

    def __init__(self) -> None:
        self.mode: TorchDispatchMode | None = None

    @contextmanager
    def use(self, mode: TorchDispatchMode) -> Iterator[None]:
        """Within it, attention is computed in `mode`."""
        before, self.mode = self.mode, mode
        try:
            yield
        finally:
            self.mode = before


class RememberedAttention:
    """An attention layer's `attend`, computed in the memory's mode.

    The mode stands around attention alone. Around a whole segment, where PyTorch's own selective checkpointing puts
    it, each operation would go through Python: on an H100 a step of MiT-B3 at 2592x1952 took 517 ms in that way, in
    222 of which the GPU worked.
    """

    def __init__(self, attend: Callable[..., Tensor], memory: AttentionMemory) -> None:
        self.attend, self.memory = attend, memory

    def __call__(self, *given: Any) -> Tensor:
        # Within a compiled layer torch.compile decides. It is asked first, for it writes a guard for whatever it reads.
        if torch.compiler.is_compiling() or self.memory.mode is None:
            return self.attend(*given)
        with self.memory.mode:
            return self.attend(*given)


class AttentionKeeper(TorchDispatchMode):
    """The forward pass: keeps what attention returns."""

    def __init__(self, kept: deque[Any]) -> None:
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in ATTENTION_KERNELS:
            kept = tree_map(lambda each: _detached(each) if isinstance(each, Tensor) else each, output)
            self.kept.append((kept, [Version.of(each) for each in tree_leaves(kept) if isinstance(each, Tensor)]))
        return output


def _detached(tensor: Tensor) -> Tensor:
    """Autograd attaches the graph to the tensors that are returned. The one that is kept is counted with them: without
    the guard it would not be, because a mode is below autograd."""
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        return tensor.detach()


class AttentionReplayer(TorchDispatchMode):
    """The backward pass: returns what was kept, in the same order. In a second backward pass nothing is kept any more,
    so attention is computed again."""

    def __init__(self, kept: deque[Any]) -> None:
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.kept or func not in ATTENTION_KERNELS:
            return func(*args, **(kwargs or {}))
        output, versions = self.kept.popleft()
        for version in versions:
            version.check()
        return output
