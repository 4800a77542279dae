"""Training steps on fake CUDA tensors, on a machine without a GPU: which operations they are, and on which devices.

PyTorch's own engine asks the CUDA driver before its first backward operation. Here is one in Python that calls the same
backward functions in the same order, so that all of a step can be watched.
"""

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from unittest import mock

import torch
from fake_helpers import skip_unless_fakes_need_no_driver
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda:0")
ATEN = torch.ops.aten
NUMBERS = count(1)
"""Of backward passes: checkpointing computes a part again once in each."""


def put_on_cuda(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replace parameters and buffers of `model` by fake ones on a GPU that is not there."""
    skip_unless_fakes_need_no_driver()
    known: dict[int, Tensor] = {}

    def moved(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            with mode:
                fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)
            known[id(tensor)] = nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake
        return known[id(tensor)]

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, moved(parameter))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, moved(buffer))


@contextmanager
def cuda_without_a_driver() -> Iterator[None]:
    """Within it, backward passes are computed by `gradients_of`, and PyTorch takes autocast on a GPU for possible."""
    numbers: list[int] = []

    def backward(outputs, grad_outputs=None, *_, inputs=None, **__) -> None:
        assert not inputs
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        given = [grad_outputs] if isinstance(grad_outputs, Tensor) else grad_outputs or [None] * len(outputs)
        with _numbered(numbers):
            gradients_of(outputs, given, None)

    def grad(outputs, inputs, grad_outputs=None, *_, materialize_grads=False, **__) -> tuple[Tensor | None, ...]:
        outputs, inputs = ([each] if isinstance(each, Tensor) else list(each) for each in (outputs, inputs))
        given = [grad_outputs] if isinstance(grad_outputs, Tensor) else grad_outputs or [None] * len(outputs)
        with _numbered(numbers):
            found = gradients_of(outputs, given, inputs)
        if materialize_grads:
            found = [torch.zeros_like(i) if each is None else each for i, each in zip(inputs, found, strict=True)]
        return tuple(found)

    with ExitStack() as stack:
        for target, name, new in (
            (torch.autograd, "backward", backward),
            (torch.autograd, "grad", grad),
            (torch._C, "_current_graph_task_id", lambda: numbers[-1] if numbers else -1),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
        ):
            stack.enter_context(mock.patch.object(target, name, new))
        yield


@contextmanager
def _numbered(numbers: list[int]) -> Iterator[None]:
    numbers.append(next(NUMBERS))
    try:
        yield
    finally:
        numbers.pop()


@torch.no_grad()
def gradients_of(
    outputs: Sequence[Tensor], given: Sequence[Tensor | None], inputs: Sequence[Tensor] | None
) -> list[Tensor | None]:
    """Backward pass from `outputs`, whose gradients are `given`, or ones. Returns the gradients of `inputs`; without
    `inputs` it adds to the `grad` of all leaves, as `Tensor.backward` does.

    Functions are called as PyTorch's engine calls them: latest first, once all their gradients are there, each of the
    type of what it is the gradient of.
    """
    wanted = {_edge(each): number for number, each in enumerate(inputs or ())}
    found: list[Tensor | None] = [None] * len(wanted)
    roots = [_edge(each) for each in outputs]
    missing = _users([node for node, _ in roots])
    pending: dict = {}
    for (node, place), output, gradient in zip(roots, outputs, given, strict=True):
        gradient = torch.ones_like(output) if gradient is None else gradient
        pending.setdefault(node, {})[place] = gradient
    order = count()
    ready = [(-_sequence(node), next(order), node) for node in dict.fromkeys(node for node, _ in roots)]
    ready = [each for each in ready if not missing[each[2]]]
    heapq.heapify(ready)
    while ready:
        _, _, node = heapq.heappop(ready)
        gradients = pending.pop(node, {})
        for place, gradient in gradients.items():
            if (node, place) in wanted:
                found[wanted[node, place]] = gradient
        is_leaf = hasattr(node, "variable")
        results: Sequence[Tensor | None] = ()
        if gradients and not (is_leaf and inputs is not None):
            arguments = [gradients.get(place) for place in range(max(len(node._input_metadata), 1))]
            results = _call(node, arguments)
        for number, (following, place) in enumerate(node.next_functions):
            if following is None:
                continue
            result = results[number] if number < len(results) else None
            if result is not None:
                _add(pending.setdefault(following, {}), place, _fitting(result, following, place))
            missing[following] -= 1
            if not missing[following]:
                heapq.heappush(ready, (-_sequence(following), next(order), following))
    return found


def _call(node, gradients: list[Tensor | None]) -> Sequence[Tensor | None]:
    """What a backward function returns, for each of its `next_functions`."""
    if callable(node):
        returned = node(*gradients)
        return returned if isinstance(returned, tuple) else (returned,)
    returned = node.apply(*gradients)  # an autograd.Function's, which returns something for each argument
    returned = returned if isinstance(returned, tuple) else (returned,)
    needed = iter([each for each, needs in zip(returned, node.needs_input_grad, strict=True) if needs])
    return [None if following is None else next(needed) for following, _ in node.next_functions]


def _edge(tensor: Tensor) -> tuple:
    """The function that a tensor comes from, or that takes its gradient, and which of its outputs it is."""
    if tensor.grad_fn is not None:
        return tensor.grad_fn, tensor.output_nr
    with torch.enable_grad():
        return tensor.view_as(tensor).grad_fn.next_functions[0][0], 0


def _users(roots: list) -> Counter:
    """How many edges lead to each function from those that are before it."""
    users, seen, left = Counter(), set(), list(roots)
    while left:
        node = left.pop()
        if node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            if following is not None:
                users[following] += 1
                left.append(following)
    return users


def _sequence(node) -> int:
    """Leaves first, as PyTorch's engine has it, so that gradients are let go of early."""
    return 2**62 if hasattr(node, "variable") else node._sequence_nr()


def _fitting(gradient: Tensor, node, place: int) -> Tensor:
    metadata = node._input_metadata[place]
    if tuple(gradient.shape) != tuple(metadata.shape):
        gradient = gradient.sum_to_size(tuple(metadata.shape))
    return gradient if gradient.dtype == metadata.dtype else gradient.to(metadata.dtype)


def _add(gradients: dict[int, Tensor], place: int, gradient: Tensor) -> None:
    gradients[place] = gradients[place] + gradient if place in gradients else gradient


def _stats(features, eps):
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    return mean, (variance + eps).rsqrt()


def _gather_stats(features, means, scales, running_mean, running_var, momentum, eps, counts):
    shares = (counts / counts.sum())[:, None]
    mean = (shares * means).sum(0)
    variance = (shares * (scales**-2 - eps + (means - mean) ** 2)).sum(0)
    running_mean.lerp_(mean.to(running_mean), momentum)
    running_var.lerp_((variance * (counts.sum() / (counts.sum() - 1))).to(running_var), momentum)
    return mean, (variance + eps).rsqrt()


def _elementwise(features, weight, bias, mean, scale, _eps):
    mean, scale = (each.view(1, -1, 1, 1) for each in (mean, scale))
    output = (features - mean) * scale
    output = output if weight is None else output * weight.view(1, -1, 1, 1)
    return (output if bias is None else output + bias.view(1, -1, 1, 1)).to(features.dtype)


def _reduce_backward(gradient, features, mean, scale, _weight, *_):
    gradient = gradient.to(mean.dtype)
    sum_gradient = gradient.sum((0, 2, 3))
    sum_product = (gradient * (features - mean.view(1, -1, 1, 1))).sum((0, 2, 3))
    return sum_gradient, sum_product, sum_product * scale, sum_gradient


def _elementwise_backward(gradient, features, mean, scale, weight, sum_gradient, sum_product, counts):
    sums = sum_gradient / counts.sum(), sum_product / counts.sum()
    mean, scale, of_gradient, of_product = (each.view(1, -1, 1, 1) for each in (mean, scale, *sums))
    slope = scale if weight is None else scale * weight.view(1, -1, 1, 1)
    return ((gradient - of_gradient - (features - mean) * scale**2 * of_product) * slope).to(features.dtype)


GPU_ONLY = {
    ATEN.batch_norm_stats.default: _stats,
    ATEN.batch_norm_gather_stats_with_counts.default: _gather_stats,
    ATEN.batch_norm_elemt.default: _elementwise,
    ATEN.batch_norm_backward_reduce.default: _reduce_backward,
    ATEN.batch_norm_backward_elemt.default: _elementwise_backward,
}
"""Kernels that PyTorch has for GPUs only, written out (aten/src/ATen/native/cuda/Normalization.cuh)."""


class GpuKernels(TorchDispatchMode):
    """Within it, `GPU_ONLY` work anywhere."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return GPU_ONLY.get(func, func)(*args, **(kwargs or {}))


MOVERS = (
    ATEN.index.Tensor,
    ATEN.index_put.default,
    ATEN.index_put_.default,
    ATEN._index_put_impl_.default,
)
"""Operations whose kernels for GPUs copy places that they are given on the CPU."""


class Watch(TorchDispatchMode):
    """Counts what makes the CPU wait for a GPU, or copies between them. Enter it within a `FakeTensorMode`.

    What the host reads of a fake GPU is `value`: a step that looks at its loss can be watched to its end.
    """

    def __init__(self, value: float = 0) -> None:
        super().__init__()
        self.value = value
        self.to_host: list[str] = []
        """What was copied from the GPU or read there: each makes the CPU wait, where it does not ask to go ahead."""
        self.going_ahead = 0
        """Copies from the GPU that the CPU does not wait for, if the memory is page-locked."""
        self.to_device: list[tuple[str, int, bool]] = []
        """What was copied to the GPU: by which operation, how many numbers, and whether the CPU may go ahead."""
        self.operations: Counter = Counter()
        self._pinned: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.operations[func] += 1
        devices = {each.device.type for each in tree_leaves(args) if isinstance(each, Tensor)}
        if func is ATEN._local_scalar_dense.default and "cuda" in devices:
            self.to_host.append("item")
            return self.value
        if func in (ATEN.nonzero.default, ATEN.masked_select.default, ATEN.equal.default) and "cuda" in devices:
            self.to_host.append(str(func))
        if func is ATEN._pin_memory.default:
            self._pinned.append(args[0].clone())
            return self._pinned[-1]
        if func is ATEN._to_copy.default:
            target = torch.device(kwargs.get("device") or args[0].device)
            if args[0].device.type == "cuda" and target.type == "cpu":
                self.to_host.append("copy")
                with _disable_current_modes():
                    return torch.full(args[0].shape, self.value, dtype=kwargs.get("dtype") or args[0].dtype)
            if args[0].device.type == "cpu" and target.type == "cuda":
                self._note("copy", args[0], kwargs.get("non_blocking", False))
        if func is ATEN.copy_.default and args[0].device.type != args[1].device.type:
            if args[0].device.type == "cpu":
                self.to_host.append("copy_")
                self.going_ahead += bool(args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            else:
                self._note("copy_", args[1], args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        if func in MOVERS and devices == {"cpu", "cuda"}:
            moved = next(each for each in tree_leaves(args) if isinstance(each, Tensor) and each.device.type == "cpu")
            self._note(str(func), moved, False)
        result = GPU_ONLY.get(func, func)(*args, **kwargs)
        if func is ATEN.lift_fresh.default and any(
            isinstance(each, FakeTensor) and each.device.type == "cuda" for each in tree_leaves(result)
        ):
            self._note("constant", result, False)
        return result

    def _note(self, what: str, tensor: Tensor, non_blocking: bool) -> None:
        pinned = any(tensor is each for each in self._pinned)
        self.to_device.append((what, tensor.numel(), bool(non_blocking) and pinned))
