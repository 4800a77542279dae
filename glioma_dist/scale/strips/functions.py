"""What each function of PyTorch does with maps that are cut by rows: `StripFunctions` puts it in the function's place.

A module computes as it always does, and sees shapes of whole maps. A function that is in no table here ends the
computation with its name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from glioma_dist.errors import InputError, one_line
from glioma_dist.scale.strips import convolution, norms, pointwise, shapes, sums, windows
from glioma_dist.scale.strips.exchange import whole
from glioma_dist.scale.strips.names import (
    ALONG,
    COPIES,
    DIMENSIONS,
    DRAWN,
    DROPOUTS,
    GATHERED,
    LOOKED_AT,
    MOVED,
    POINTWISE,
)
from glioma_dist.scale.strips.rows import is_exact, map_tensors, rows_of, shape_of, tensors_in

RULES: dict[str, Callable[..., Any]] = {
    "conv2d": convolution.conv2d,
    "conv_transpose2d": convolution.conv_transpose2d,
    "max_pool2d": windows.max_pool2d,
    "avg_pool2d": windows.avg_pool2d,
    "adaptive_avg_pool2d": windows.adaptive_avg_pool2d,
    "pad": windows.pad,
    "interpolate": windows.interpolate,
    "pixel_shuffle": windows.pixel_shuffle,
    "batch_norm": norms.batch_norm,
    "instance_norm": norms.instance_norm,
    "group_norm": norms.group_norm,
    "layer_norm": norms.layer_norm,
    "sum": sums.sum_over,
    "mean": sums.mean,
    "var": sums.var,
    "std": sums.std,
    "var_mean": sums.var_mean,
    "norm": sums.norm,
    "linalg_norm": sums.linalg_norm,
    "linalg_vector_norm": sums.vector_norm,
    "matmul": sums.matmul,
    "__matmul__": sums.matmul,
    "bmm": sums.matmul,
    "linear": sums.linear,
    "einsum": sums.einsum,
    "scaled_dot_product_attention": sums.scaled_dot_product_attention,
    "reshape": shapes.reshape,
    "view": shapes.view,
    "view_as": shapes.view_as,
    "flatten": shapes.flatten,
    "unflatten": shapes.unflatten,
    "expand": shapes.expand,
    "repeat": shapes.repeat,
    "cat": shapes.concatenate,
    "concat": shapes.concatenate,
    "__getitem__": shapes.getitem,
    "__iter__": lambda input: iter(shapes.moved(torch.unbind, (input,), {})),
    "prelu": pointwise.prelu,
    "get shape": lambda input: torch.Size(shape_of(input)),
    "size": lambda input, dim=None: torch.Size(shape_of(input)) if dim is None else shape_of(input)[dim],
    "__len__": lambda input: shape_of(input)[0],
    "numel": lambda input: torch.Size(shape_of(input)).numel(),
    "nelement": lambda input: torch.Size(shape_of(input)).numel(),
}
"""By a function's name, or "get " and an attribute's: what takes its place, with the same arguments."""
OTHER_NAMES = {"axis": "dim", "keepdims": "keepdim"}
"""NumPy's names of arguments, which PyTorch takes as well, and its own."""
UNKNOWN = "is not known to be exact in strips: replace it, or give another network (docs/spatial_parallelism.md)"
"""Why a function is refused, in most cases, and what to do."""


_signature = lru_cache(None)(signature)


def name_of(function: Any) -> str:
    """A function's name; of the getter of an attribute, "get " and the attribute's."""
    name = getattr(function, "__name__", str(function))
    owner = getattr(getattr(function, "__self__", None), "__name__", "")
    return {"__get__": f"get {owner}", "__set__": f"set {owner}"}.get(name, name)


class StripFunctions(TorchFunctionMode):
    """Within it, functions compute on strips where they are given one. root: the module that computes, for messages."""

    def __init__(self, root: nn.Module | None = None) -> None:
        super().__init__()
        self.root = root
        self.is_within = False
        """Whether a function of a table computes now: the only time when others may touch strips."""
        self.hooks = _saving_hooks()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = name_of(function)
        is_cut = any(rows_of(each) is not None for each in tensors_in((args, kwargs)))
        if name in DRAWN:
            raise self.refusal(name, "draws random numbers, which would differ between processes: pass them in")
        if not is_exact(function) and not is_cut and name not in DROPOUTS:
            return function(*args, **kwargs)
        if self.hooks != _saving_hooks() and name not in LOOKED_AT and is_cut:
            raise self.refusal(name, "is within torch.utils.checkpoint or hooks of saved tensors: split what is inside")
        before, self.is_within = self.is_within, True
        try:
            return self._call(name, function, args, kwargs)
        finally:
            self.is_within = before

    def _call(self, name: str, function: Any, args: tuple, kwargs: dict) -> Any:
        if isinstance(function, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
            raise self.refusal(str(function))
        if is_exact(function) or name in LOOKED_AT:
            return function(*args, **kwargs)
        if name in DROPOUTS:
            return self._dropout(name, *args, **kwargs)
        if name in ("max", "min") and len(args) > 1 and isinstance(args[1], Tensor):
            return pointwise.pointwise(name, function, args, kwargs)
        if name in COPIES or name == "get data" or (name == "view" and _is_type(args)):
            return pointwise.copied(function, args, kwargs)
        if name in POINTWISE:
            return pointwise.pointwise(name, function, args, kwargs)
        if name in RULES:
            return self._by_rule(name, args, kwargs)
        if name in MOVED:
            return shapes.moved(function, args, kwargs)
        if name in ALONG:
            return _along(name, function, args, kwargs)
        if name in GATHERED:
            return function(*map_tensors(whole, args), **map_tensors(whole, kwargs))
        raise self.refusal(name)

    def _by_rule(self, name: str, args: tuple, kwargs: dict) -> Any:
        named = {OTHER_NAMES.get(key, key): each for key, each in kwargs.items() if key != "out" or each is not None}
        try:
            _signature(RULES[name]).bind(*args, **named)
        except TypeError as error:
            raise self.refusal(name, f"is not known to be exact in strips with its arguments ({error})") from None
        return RULES[name](*args, **named)

    def _dropout(
        self, name: str, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if training and p > 0:
            raise self.refusal(name, "draws at random: give a rate of 0, or use evaluation mode")
        return input

    def refusal(self, name: str, reason: str = UNKNOWN) -> InputError:
        """The error that names a function and the module that called it."""
        return InputError(f"spatial_parallel: {one_line(name, 80)}, called by {self._caller()}, {reason}")

    def _caller(self) -> str:
        frame = sys._getframe(1)
        names = {} if self.root is None else {id(each): name for name, each in self.root.named_modules()}
        while frame is not None:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module):
                return one_line(f"{names.get(id(module), '')} ({type(module).__name__})".strip(), 160)
            frame = frame.f_back
        return "a function"


def _saving_hooks() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def _is_type(args: tuple) -> bool:
    return len(args) == 2 and isinstance(args[1], torch.dtype)


def _along(name: str, function: Any, args: tuple, kwargs: dict) -> Any:
    place = ALONG[name]
    dim = kwargs.get("dim", args[place] if len(args) > place else DIMENSIONS.get(name))
    input, rest = (args[0], args[1:]) if args else (kwargs["input"], ())
    kwargs = {key: each for key, each in kwargs.items() if key != "input"}
    if name == "rms_norm":
        dim = list(range(-len(dim), 0)) if not isinstance(dim, int) else dim
    return sums.along(input, dim, lambda values: function(values, *rest, **kwargs))
