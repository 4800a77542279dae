"""The flags of the memory planner: `glioma-dist plan`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from glioma_dist.config.byte_size import parse_bytes
from glioma_dist.config.idle_flags import idle_flags
from glioma_dist.config.model import ModelConfig
from glioma_dist.config.recipe import OptimizerName, check_momentum
from glioma_dist.config.scale import UNIT_ROWS, check_gradient_accumulation
from glioma_dist.config.train import check_ema_decay
from glioma_dist.errors import InputError
from glioma_dist.extras import require
from glioma_dist.files import check_new_file
from glioma_dist.limits import check_batch_size
from glioma_dist.registry import encoders
from glioma_dist.size import Size, SizeFlag

MAX_GPU_GIB = 2**20


@dataclass(frozen=True)
class PlanConfig:
    """Estimate the peak memory of a training step, optimizer included, for each level of activation checkpointing, and
    what fits a GPU. Needs no GPU."""

    size: tuple[SizeFlag, ...]
    """Image sizes, for example 704x512 2592x1952."""
    model: ModelConfig = field(default_factory=ModelConfig)
    batch_size: int = 1
    """Images in a step, over all GPUs together."""
    optimizer: OptimizerName = "adam"
    """adam and adamw keep two numbers for each weight, sgd one, or none without momentum."""
    momentum: float = 0.9
    """Momentum of sgd."""
    freeze_encoder: bool = False
    """Train the decoder only: the encoder keeps no activations and has no gradients."""
    gpu_memory: str | None = None
    """Memory of one GPU, for example 24GiB; a GPU sold as 24 GB has 24GiB, and 24GB are powers of 1000, 22.4GiB. Then
    the output also says which levels fit, the largest batch and size, and the command to run."""
    memory_budget: str | None = None
    """Also print the row of this memory budget: for a step in bf16 that takes at most this memory of each GPU, for
    example 8GiB, what each part of the network keeps, and how much of the step is computed again (train:
    --scale.memory-budget)."""
    gpus: int = 1
    """Number of GPUs. They can share the batch (DDP), each image (--scale.spatial-parallel), and the weights
    (FSDP2)."""
    gradient_accumulation: int = 1
    """Micro-batches in which a GPU computes its images (train: --scale.gradient-accumulation). Needs
    --model.norm group and an encoder without batch norm, such as mit_b0."""
    ema_decay: float | None = None
    """Count the moving average of the weights, too, as --ema-decay of train keeps it."""
    link_bandwidth: float = 25.0
    """Speed of copies between a GPU and host memory in GB/s: about 12 with PCIe 3 x16, 25 with PCIe 4 x16, 50 with
    PCIe 5 x16. The column copies, the seconds that the level offload needs for its copies, follows from it."""
    smp: bool = False
    """Also estimate the same network of segmentation_models.pytorch in fp32 (pip install 'glioma-dist[bench]')."""
    json: Path | None = None
    """JSON file to write the result to: {"levels": [{"name", "size", "peak_gib", …}], "choice": …}."""

    def without_effect(self) -> list[str]:
        """Flags that have no effect here, each with the reason."""
        chosen = {"init": self.model.init != "random", "weights": self.model.weights is not None}
        chosen["init-sha256"] = bool(self.model.init_sha256)
        notes = [f"--model.{name}: no weights are read to count memory" for name, given in chosen.items() if given]
        return notes + idle_flags(self, [("momentum", self.optimizer == "sgd", f"with --optimizer {self.optimizer}")])

    def validate(self) -> None:
        self.model.validate()
        check_batch_size(self.batch_size)
        check_momentum(self.momentum)
        if not self.size:
            raise InputError("--size: give one or more, for example 704x512 1472x1120")
        if self.smp:
            require("bench", "--smp")
        if self.smp and encoders.find(self.model.encoder).smp_name is None:
            raise InputError(f"--smp: it has no {self.model.encoder}; give another --model.encoder, for example mit_b0")
        if self.smp and self.batch_size % max(1, self.gpus):
            raise InputError("--smp: it cannot split an image; give a --batch-size that is a multiple of --gpus")
        if self.batch_size < 1 or self.gpus < 1:
            raise InputError(f"--batch-size {self.batch_size}, --gpus {self.gpus}: give 1 or more")
        if self.ema_decay is not None:
            check_ema_decay(self.ema_decay)
        given = (self.gradient_accumulation, self.batch_size, self.model.norm)
        check_gradient_accumulation("--gradient-accumulation", *given)
        if not all(spatial_parallel_sizes(self, size) for size in self.size):
            parts = f", in {self.gradient_accumulation} micro-batches," if self.gradient_accumulation > 1 else ""
            raise InputError(
                f"--batch-size {self.batch_size}: {self.gpus} GPUs can share neither this batch{parts} nor its images' "
                f"rows; give a --batch-size that is a multiple of {self.gpus}, or another number of --gpus"
            )
        if not 0 < self.link_bandwidth < math.inf:
            raise InputError(f"--link-bandwidth {self.link_bandwidth}: give GB/s above 0, for example 25")
        if self.gpu_memory is not None:
            parse_memory(self.gpu_memory)
        if self.memory_budget is not None:
            parse_bytes("--memory-budget", self.memory_budget, "8GiB")
        if self.json is not None:
            check_new_file("--json", self.json)


def parse_memory(text: str) -> float:
    """Return the bytes of --gpu-memory, by the same rule as those of all flags. Raises InputError."""
    num_bytes = parse_bytes("--gpu-memory", text, "24GiB")
    if num_bytes >= MAX_GPU_GIB * 2**30:
        raise InputError(f"--gpu-memory {text}: no GPU has so much; give for example 24GiB")
    return float(num_bytes)


def spatial_parallel_sizes(plan: PlanConfig, size: Size) -> list[int]:
    """Return over how many GPUs each image may be split, so that the groups of GPUs can share the batch equally."""
    most = math.ceil(size.height / UNIT_ROWS)
    divisors = [number for number in range(1, min(plan.gpus, most) + 1) if plan.gpus % number == 0]
    # Images are shared by the groups, and cut into micro-batches of at least one image in each.
    least = plan.gpus * plan.gradient_accumulation
    shared = [number for number in divisors if plan.batch_size % (plan.gpus // number) == 0]
    return [number for number in shared if plan.batch_size * number >= least]
