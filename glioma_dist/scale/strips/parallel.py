"""Splits any module over processes by the rows of its images."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode

from glioma_dist.errors import InputError
from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.scale.strips import convolution, exchange, norms
from glioma_dist.scale.strips.exchange import recut, shared
from glioma_dist.scale.strips.functions import StripFunctions
from glioma_dist.scale.strips.rows import Rows, map_tensors, mark, rows_of, tensors_in, unmark

KNOWN_FUNCTIONS = {
    ("glioma_dist.scale.batch_norm_layer", "_NormaliseOverProcesses"),
    ("glioma_dist.scale.batch_norm_layer", "_NormaliseOnGpus"),
    ("torch.nn.modules._functions", "SyncBatchNorm"),
    ("torch.distributed.fsdp._fully_shard._fsdp_param_group", "RegisterPostBackwardFunction"),
}
M = TypeVar("M", bound=nn.Module)
OWN_FUNCTIONS = exchange.OWN_FUNCTIONS + convolution.OWN_FUNCTIONS + norms.OWN_FUNCTIONS


def spatial_parallel(module: M, group: SpatialGroup) -> M:
    """Have `module` compute on this process's strip of each image, with the outputs that it has of whole images.

    Weights, buffers and their names stay; only the class changes, to one that derives from it.

    Args:
        module: any module, on any device.
        group: the processes that share each image, as `SpatialGroup.over()`. `group.cut(height)` gives the rows of this
            one.

    Call it with strips (B, C, rows, W) of the height that was cut last; tensors of other dimensions are taken for the
    same on all processes. Maps (B, C, h, W) come back as strips, cut in proportion to the images (`group.rows_of(h)`),
    for a loss of these rows. What has no rows, as the classes of an image, comes back whole, for a loss that all
    processes compute. The gradients of weights are one addend each of those of the whole image: sum them over the
    group. Batch norms take their statistics over the group.

    Returns `module`.

    Raises:
        InputError: at the first call that uses it, a function that is not known to be exact in strips, by name.
    """
    if not isinstance(group, SpatialGroup):
        raise InputError(f"spatial_parallel: group is a {type(group).__name__}; give a SpatialGroup")
    if group.size > 1:
        if "forward" in vars(module):
            raise InputError(
                f"spatial_parallel: the forward of this {type(module).__name__} was replaced on the object; split the "
                "module that contains it"
            )
        module.__class__ = _split_class(type(module))
        module.spatial_group, module.watched = group, set()
    return module


def image_rows(group: SpatialGroup) -> Rows:
    """The cut of the images that a group works on."""
    return Rows(group, 2, tuple(accumulate(group.heights, initial=0)))


class SplitModule(nn.Module):
    """What the class of a split module derives from, too."""

    spatial_group: SpatialGroup
    watched: set

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's own, on strips."""
        rows = image_rows(self.spatial_group)
        args, kwargs = (map_tensors(lambda each: _as_strip(each, rows), values) for values in (args, kwargs))
        found = compute_watched(self, super().forward, args, kwargs)
        return map_tensors(lambda each: _as_output(each, rows), _checked(found))


def compute_watched(
    module: Any, compute: Callable[..., Any], args: tuple, kwargs: dict, layers: tuple[int, ...] = ()
) -> Any:
    """Compute in strips; in the first computation of its kind, with a look at all that PyTorch does. layers: what tells
    parts of a module apart."""
    shapes = tuple(tuple(each.shape) for each in tensors_in((args, kwargs)))
    kind = (layers, module.training, torch.is_grad_enabled(), shapes)
    functions = StripFunctions(module)
    if kind in module.watched:
        with functions:
            return compute(*args, **kwargs)
    watch = _Watch(functions)
    try:
        with watch, functions:
            found = compute(*args, **kwargs)
    except RuntimeError:
        if watch.refusal is not None:  # scripted code turns any error into one without a word
            raise watch.refusal from None
        raise
    _check_graph(functions, found)
    module.watched.add(kind)
    return found


@lru_cache(None)
def _split_class(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Split{kind.__name__}", (SplitModule, kind), {})


def _as_strip(tensor: Tensor, rows: Rows) -> Tensor:
    if tensor.ndim != 4:
        return tensor
    if tensor.shape[2] != rows.stop - rows.start:
        raise InputError(
            f"spatial_parallel: process {rows.group.rank} got an input {tuple(tensor.shape)}, and its strip has "
            f"{rows.stop - rows.start} rows; call group.cut(height) and give the rows that it returns"
        )
    return mark(tensor.view_as(tensor), rows)  # the caller's tensor stays without a note


def _as_output(tensor: Tensor, rows: Rows) -> Tensor:
    here = rows_of(tensor)
    if here is None:
        return shared(tensor, rows.group)
    wanted = here.scaled(here.size) if here.dim != 2 or tensor.ndim != 4 else rows.scaled(here.size)
    return unmark(recut(tensor, wanted))


def _checked(found: Any) -> Any:
    """Refuse outputs in which strips cannot be found."""
    if isinstance(found, Tensor | int | float | str | None):
        return found
    if isinstance(found, dict | list | tuple):
        for each in found.values() if isinstance(found, dict) else found:
            _checked(each)
        return found
    raise InputError(
        f"spatial_parallel: the network returns a {type(found).__name__}; return tensors, or lists, tuples or dicts of "
        "tensors"
    )


class _Watch(TorchDispatchMode):
    """Refuses what reaches a strip and is no function of a table: scripted code, operators of other libraries."""

    def __init__(self, functions: StripFunctions) -> None:
        super().__init__()
        self.functions, self.refusal = functions, None

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.functions.is_within and any(rows_of(each) is not None for each in tensors_in((args, kwargs))):
            self.refusal = self.functions.refusal(str(function))
            raise self.refusal
        return function(*args, **kwargs)


def _check_graph(functions: StripFunctions, found: Any) -> None:
    """Refuse an output whose gradient passes through an autograd function of others, which sees strips alone."""
    waiting = [each.grad_fn for each in tensors_in(found) if each.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        kind = getattr(node, "_forward_cls", None)
        if isinstance(node, BackwardCFunction) and not _is_known(kind):
            raise functions.refusal(
                getattr(kind, "__name__", type(node).__name__),
                "is an autograd.Function, which would see only its own strip",
            )
        following = [each for each, _ in node.next_functions if each is not None and each not in seen]
        seen.update(following)
        waiting += following


def _is_known(kind: Any) -> bool:
    """Whether a gradient is right of which each process has the strip: ours, norms over all processes, FSDP2's."""
    return kind in OWN_FUNCTIONS or (getattr(kind, "__module__", ""), getattr(kind, "__name__", "")) in KNOWN_FUNCTIONS
