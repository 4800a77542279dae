"""Modules that take the place of others and keep their weights, their names and their settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

M = TypeVar("M", bound=nn.Module)


def rebuild(module: nn.Module, kind: type[M], **settings: Any) -> M:
    """A module of class `kind` with all that `module` has: parameters, buffers, children, hooks, attributes.

    Both share the parameters and children themselves; `module` stays as it is. settings: attributes that the new one
    has in addition, or with other values. Nothing is drawn, no tensor is copied, and `kind` needs no constructor of its
    own: PyTorch makes the replicas of DataParallel in this way.
    """
    rebuilt = kind.__new__(kind)
    rebuilt.__dict__ = {
        name: each.copy() if isinstance(each, dict | set) else each for name, each in vars(module).items()
    }
    for name, value in settings.items():
        setattr(rebuilt, name, value)
    return rebuilt


def replace_modules(model: nn.Module, new_of: Callable[[str, nn.Module], nn.Module | None]) -> None:
    """Put `new_of(name, module)` in the place of each module inside `model`, wherever it is not None.

    Order and names of parameters stay. A module that is registered in several places gets one replacement in all of
    them. Each module is asked for once, before any has changed.
    """
    asked = {module: new_of(name, module) for name, module in model.named_modules() if name}
    replacements = {module: new for module, new in asked.items() if new is not None}
    for parent in list(model.modules()):
        holder = replacements.get(parent, parent)
        for name, child in list(holder._modules.items()):
            if child in replacements:
                holder.add_module(name, replacements[child])


def depends_on_batch(module: nn.Module) -> bool:
    """Whether a layer, its children aside, takes or keeps statistics over the images of a batch."""
    buffers = dict(module.named_buffers(recurse=False))
    return isinstance(module, _BatchNorm) or any(name.startswith("running_") for name in buffers)


def remove_hooks(module: nn.Module, owner: type) -> None:
    """Remove the forward hooks of `module` that are methods of an `owner`; of a module that was copied, too, which has
    no handles of its own."""
    hooks = (module._forward_pre_hooks, module._forward_hooks)
    of_kinds = (module._forward_pre_hooks_with_kwargs, module._forward_hooks_always_called)
    numbers = [number for each in hooks for number, hook in each.items() if _is_of(hook, owner)]
    for each in (*hooks, *of_kinds):
        for number in numbers:
            each.pop(number, None)


def _is_of(hook: Callable[..., Any], owner: type) -> bool:
    return isinstance(getattr(hook, "__self__", None), owner)
