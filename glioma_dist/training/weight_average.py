"""The exponential moving average of the weights (--ema-decay), which validation and later commands use in their place.

Polyak & Juditsky 1992 average the iterates of stochastic approximation. After step k, counted from 1, each number a of
the average becomes d a + (1 - d) w, where w is the trained weight and d = min(decay, (1 + k) / (10 + k)). The second
bound is TensorFlow's (`tf.train.ExponentialMovingAverage`, num_updates): without it, a run that is shorter than
1 / (1 - decay) steps would evaluate mostly its starting weights. Running statistics of norms are averaged, too; other
buffers, which count, are copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from glioma_dist.config import TrainConfig
from glioma_dist.errors import InputError, one_line
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.manifest import EMA


class WeightAverage:
    """The average of all weights and buffers of `model` that a checkpoint holds, on their devices.

    model: unwrapped, as it is trained: full, or sharded (FSDP2), where each process averages its own part. It begins as
    the model is now.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
        self._trained = {name: named[name] for name in model.state_dict()}
        with torch.no_grad():
            self.tensors = {name: tensor.detach().clone() for name, tensor in self._trained.items()}
            """By the names of the model's state_dict, of the same types and layouts; DTensors where it has those."""
            self._averaged = [name for name, tensor in self.tensors.items() if tensor.is_floating_point()]
            # Allocated once, so that a swap cannot run out of memory half-way.
            sizes: dict[tuple[torch.dtype, torch.device], int] = {}
            for tensor in map(_local, self.tensors.values()):
                kind = (tensor.dtype, tensor.device)
                sizes[kind] = max(sizes.get(kind, 0), tensor.numel())
            self._scratch = {kind: torch.empty(size, dtype=kind[0], device=kind[1]) for kind, size in sizes.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights as they are after `step` steps."""
        weight = 1 - decay_of_step(self._decay, step)
        averages, weights = (
            [_local(tensors[name]) for name in self._averaged] for tensors in (self.tensors, self._trained)
        )
        torch._foreach_lerp_(averages, weights, weight)
        for name in self.tensors.keys() - set(self._averaged):
            self.tensors[name].copy_(self._trained[name])

    @contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """Within it, the model has the average, and the average's tensors hold the trained weights.

        Whatever ends it, all weights are back afterwards: nothing is allocated to bring them back.
        """
        swapped: list[str] = []
        try:
            self._swap(self.tensors, swapped)
            yield
        finally:
            self._swap(reversed(swapped), [])

    @torch.no_grad()
    def _swap(self, names: Iterable[str], done: list[str]) -> None:
        """Exchange the contents of the named tensors, noting in `done` which have been exchanged."""
        _forget_gathered(self._model)
        for name in list(names):
            average, trained = _local(self.tensors[name]), _local(self._trained[name])
            kept = self._scratch[average.dtype, average.device][: average.numel()].view(average.shape)
            kept.copy_(average)
            done.append(name)
            average.copy_(trained)
            trained.copy_(kept)

    def load(self, checkpoint: Checkpoint) -> None:
        """Take the average that a checkpoint of the same run holds, in place.

        Raises InputError where it is damaged, or is of another network.
        """
        loaded = checkpoint.tensors(EMA)
        wrong = [
            name
            for name in sorted({*loaded, *self.tensors})
            if name not in loaded
            or name not in self.tensors
            or loaded[name].shape != self.tensors[name].shape
            or loaded[name].is_floating_point() != self.tensors[name].is_floating_point()
        ]
        if wrong:
            raise InputError(
                f"{checkpoint.folder / EMA}: {len(wrong)} tensors do not fit this model, the first is "
                f"{one_line(wrong[0], 100)}; give another --out"
            )
        with torch.no_grad():
            for name, average in self.tensors.items():
                average.copy_(_spread_like(average, loaded[name]))


def make_average(config: TrainConfig, model: nn.Module, checkpoint: Checkpoint | None) -> WeightAverage | None:
    """The average that a run keeps, as it begins or as its checkpoint has it; None without --ema-decay.

    model: unwrapped, as it is trained. Raises InputError where the checkpoint's cannot be used.
    """
    if config.ema_decay is None:
        return None
    average = WeightAverage(model, config.ema_decay)
    if checkpoint is not None:
        average.load(checkpoint)
    return average


def decay_of_step(decay: float, step: int) -> float:
    """The decay with which the average moves after step number `step`, counted from 1."""
    return min(decay, (1 + step) / (10 + step))


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, which shares its memory."""
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def _spread_like(average: Tensor, tensor: Tensor) -> Tensor:
    if not isinstance(average, DTensor):
        return tensor
    tensor = tensor.to(average.device, average.dtype)
    return distribute_tensor(tensor, average.device_mesh, average.placements, src_data_rank=None)


def _forget_gathered(model: nn.Module) -> None:
    """Have FSDP2 gather weights again before it computes: what it has gathered may still be there."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
