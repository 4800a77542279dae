"""--reproducible: weights after any number of steps have the same bits on any number of processes.

Each image's gradient is computed alone, and all are added as integers (`scale/reproducible_sum.py`). Losses and scores
are added in the order of their slots in the batch.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from glioma_dist.config import TrainConfig
from glioma_dist.data.loader import own_slots
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.distributed.environment import device_name
from glioma_dist.distributed.launcher import alike_on_a_machine
from glioma_dist.errors import InputError, one_line
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.manifest import STATE
from glioma_dist.model.tensor_files import DamagedError
from glioma_dist.scale.checkpoint_plan import TIMES, CheckpointPlan
from glioma_dist.scale.micro_batches import batch_norms
from glioma_dist.scale.planner import LEVELS, Level
from glioma_dist.scale.reproducible_sum import ExactSum
from glioma_dist.scale.scale_model import resolve_layout
from glioma_dist.scale.tile_size import tile_size
from glioma_dist.training.resume import OtherRunError

EXPONENTS, ARITHMETIC = "gradient_exponents", "arithmetic"
"""In a checkpoint's metadata: the scale of each parameter's gradient, and what the bits depend on."""
MAX_EXPONENT = 1024
CPU_BRANCH = "MKL_CBWR"
"""With it, Intel's MKL chooses no algorithm by the alignment of its operands."""
BRANCHES = {1: "OFF", 2: "AUTO"}
"""Of mkl_types.h: MKL_CBWR_BRANCH_OFF, MKL_CBWR_AUTO."""
ALL_SETTINGS = -1
"""MKL_CBWR_ALL."""
TOO_MANY_UNITS = re.compile(rf"{TIMES}(?!\d{{1,4}}(?:[,;]|$))")
"""In the text of a plan: no network has so many, and to list them would fill the memory."""


@contextmanager
def fixed_cpu_arithmetic(is_reproducible: bool) -> Iterator[None]:
    """Context manager: one thread computes, because the number of threads decides how sums are divided, and launchers
    choose it by the number of processes. Processes do the same work in parallel without a change of bits."""
    if not is_reproducible:
        yield
        return
    num_threads, branch = torch.get_num_threads(), os.environ.get(CPU_BRANCH)
    torch.set_num_threads(1)
    os.environ.setdefault(CPU_BRANCH, "AUTO")
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        if branch is None:
            os.environ.pop(CPU_BRANCH, None)


def cpu_branch() -> str | int | None:
    """What MKL does, whatever the variable says: it reads it once, when it first computes. Where PyTorch has no
    MKL of its own, the variable. Asking counts as the first use."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        found = library.mkl_serv_cbwr_get(ALL_SETTINGS)
    except (OSError, AttributeError):
        return os.environ.get(CPU_BRANCH)
    return BRANCHES.get(found, found)


class ReproducibleSteps:
    """The gradients and the sums of scores of a training with --reproducible.

    model: as it is trained, unwrapped. rank, num_processes: this process's place among those that share a batch.
    exponents: of the checkpoint (`read_exponents`). All processes make it together: they get the first one's weights.
    """

    def __init__(
        self, model: nn.Module, context: DistributedContext, batch_size: int, exponents: dict[str, int] | None = None
    ) -> None:
        self._context, self._batch_size = context, batch_size
        trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
        if exponents is not None and exponents.keys() != trained.keys():
            raise InputError(
                f"the checkpoint's {EXPONENTS} are of {len(exponents)} parameters, and this model trains "
                f"{len(trained)} or others; give another --out"
            )
        if context.num_processes > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.data, 0)
        self._names = list(trained)
        known = None if exponents is None else [exponents[name] for name in trained]
        self._sum = ExactSum(list(trained.values()), batch_size, known)

    @property
    def held_bytes(self) -> int:
        return self._sum.held_bytes

    def metadata(self) -> dict[str, Any]:
        """What a checkpoint has to hold of it."""
        return {EXPONENTS: dict(zip(self._names, self._sum.exponents, strict=True))}

    def compute(self, gradients_of_images: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Give each parameter the mean gradient of the batch.

        gradients_of_images: the passes of this process's images, one at a time; returns their logits and losses.
        It is called again where the gradients do not fit the scales, as in the first step.
        """
        while True:
            self._sum.begin()
            found = gradients_of_images()
            if self._sum.measure(lambda greatest: self._reduced(greatest, dist.ReduceOp.MAX)):
                break
        self._sum.finish(lambda total: self._reduced(total, dist.ReduceOp.SUM))
        return found

    def accept(self) -> None:
        """The step's weights are there."""
        self._sum.accept()

    def sums(self, losses: Tensor, scores: Tensor) -> Tensor:
        """The sums over the whole batch, (2,) fp64. losses, scores: (B,) of this process's images."""
        slots = own_slots(self._batch_size, self._context.rank, self._context.num_processes)
        table = torch.zeros(2, self._batch_size, dtype=torch.float64, device=losses.device)
        table[:, slots.start : slots.stop] = torch.stack([losses.double(), scores.double()])
        return self._reduced(table, dist.ReduceOp.SUM).sum(dim=1)  # elsewhere are zeros, so no order matters

    def _reduced(self, values: Tensor, how: dist.ReduceOp) -> Tensor:
        if self._context.num_processes > 1:
            dist.all_reduce(values, how)
        return values


def sums_in_order(rows: Tensor) -> list[float]:
    """The sum of each column, added in the order of the rows: (N, columns) fp64, the same on any device."""
    return [float(sum(column)) for column in zip(*rows.tolist(), strict=True)]


@alike_on_a_machine()
def check_reproducible(config: TrainConfig, context: DistributedContext, model: nn.Module) -> None:
    """Raises InputError where the launch or the network cannot be had with --reproducible. model: as it is trained."""
    if context.accelerator.is_fsdp2:
        raise InputError("--reproducible cannot be combined with FSDP2; launch with DDP (multi_gpu.yaml), or omit it")
    if context.accelerator.scaler is not None:
        raise InputError("--reproducible cannot be combined with fp16, whose loss scale changes; launch with bf16")
    found = batch_norms(model)
    if found:
        raise InputError(
            f"--reproducible: batch norm takes its statistics over the whole batch ({found[0]}), and each image is "
            f"computed alone; give --model.encoder-norm frozen and --model.init imagenet, or an encoder without batch "
            f"norm, such as mit_b0, instead of {config.model.encoder}"
        )


def pinned_level(config: TrainConfig, checkpoint: Checkpoint | None) -> Level | CheckpointPlan | None:
    """What `auto` or a memory budget was resolved to when the run began; None where it is to be resolved."""
    is_chosen = config.scale.activation_checkpointing == "auto" or config.scale.memory_budget is not None
    if not config.reproducible or checkpoint is None or not is_chosen:
        return None
    level = checkpoint.metadata.get(ARITHMETIC, {}).get("activation_checkpointing")
    if level in LEVELS:
        return level
    if not TOO_MANY_UNITS.search(str(level)):
        with suppress(InputError):
            return CheckpointPlan.parse(str(level))
    return None


def describe_arithmetic(
    config: TrainConfig, context: DistributedContext, level: Level | CheckpointPlan
) -> dict[str, Any]:
    """What the bits of a run depend on besides its settings of science. All processes call it together.

    Raises InputError where processes differ.
    """
    device = context.device
    here = {
        "activation_checkpointing": str(level),
        "tile_elements": tile_size(config.scale.tile_elements, device).elements,
        "channels_last": resolve_layout(config, context).channels_last,
        "tf32": config.scale.tf32,
        "mixed_precision": context.accelerator.mixed_precision,
        "device": device_name(device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        CPU_BRANCH: cpu_branch(),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
    }
    first, *others = context.gather_objects([here])
    for rank, other in enumerate(others, start=1):
        if other != first:
            raise InputError(
                f"--reproducible: processes 0 and {rank} compute differently ({_told(first, other)}); "
                "launch on equal machines, or omit the flag"
            )
    return here


def check_same_arithmetic(config: TrainConfig, checkpoint: Checkpoint, now: dict[str, Any]) -> None:
    """Raises OtherRunError where a run was computed in another way: its bits would change."""
    before = checkpoint.metadata.get(ARITHMETIC)
    if before != now:
        told = _told(before, now) if isinstance(before, dict) else "its checkpoint does not tell"
        raise OtherRunError(
            f"--out {config.out}: --reproducible, and the run was computed in another way ({told}); resume it in the "
            "same way, or give another --out"
        )


def read_exponents(checkpoint: Checkpoint) -> dict[str, int]:
    """The scales of the gradients. Raises DamagedError where there are none that can be used."""
    found = checkpoint.metadata.get(EXPONENTS)
    if not isinstance(found, dict) or not all(
        type(value) is int and abs(value) <= MAX_EXPONENT for value in found.values()
    ):
        raise DamagedError(checkpoint.folder / STATE, f"has no usable {EXPONENTS}, which --reproducible needs")
    return found


def _told(before: dict[str, Any], now: dict[str, Any]) -> str:
    return one_line("; ".join(changes(before, now)), 250)


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a text for each name whose value differs."""
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return [f"{name} {one_line(before.get(name), 60)} -> {one_line(now.get(name), 60)}" for name in names]
