"""Gradient accumulation: which networks allow it, and the memory of a step that computes its batch in micro-batches.

A batch norm in training takes its statistics over the images that it sees at once. So micro-batches would change its
results. All other layers of the package treat each image alone.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

from torch import nn

from glioma_dist.config import ModelConfig
from glioma_dist.errors import InputError
from glioma_dist.model.modules import depends_on_batch
from glioma_dist.scale.step import Step
from glioma_dist.scale.step_count import build_without_weights
from glioma_dist.scale.step_memory import StepMemory


def bytes_of_a_pixel(config: ModelConfig) -> int:
    """Of each image of the other micro-batches: its grey value and its masks in uint8, its logits in fp32."""
    return 1 + len(config.targets) + 4 * config.num_outputs


def images_at_once(num_images: int, num_micro_batches: int) -> int:
    """Images of the largest micro-batch of `num_images`."""
    return math.ceil(num_images / num_micro_batches)


def check_micro_batches(model: nn.Module, config: ModelConfig, num_micro_batches: int, num_images: int) -> None:
    """Raises InputError where a batch of a process, `num_images`, cannot be computed in so many micro-batches without a
    change of results. model: in the mode in which it is trained."""
    if num_micro_batches == 1:
        return
    told = f"--scale.gradient-accumulation {num_micro_batches}"
    if num_micro_batches > num_images:
        raise InputError(
            f"{told}: a process has {num_images} image{'s' if num_images > 1 else ''} of a batch; give "
            f"--scale.gradient-accumulation {num_images} or less"
        )
    found = batch_norms(model)
    if not found:
        return
    in_encoder = [name for name in found if name.startswith("encoder.")]
    advice = "give --model.norm group"
    if in_encoder:
        advice = (
            f"give --model.norm group, and --model.encoder-norm frozen with starting weights, or an encoder without "
            f"batch norm, such as mit_b0; --model.encoder {config.encoder} has {len(in_encoder)}"
        )
    raise InputError(
        f"{told}: batch norm takes its statistics over the whole batch ({found[0]}), so micro-batches would change the "
        f"result; {advice}; or save memory with --scale.activation-checkpointing full"
    )


def batch_norms(model: nn.Module) -> list[str]:
    """Names of the layers that take statistics over the images of a batch, as `model` is now."""
    return [name for name, module in model.named_modules() if module.training and depends_on_batch(module)]


@lru_cache
def allows_micro_batches(config: ModelConfig) -> bool:
    """Whether a network has no layer that `check_micro_batches` refuses."""
    return not batch_norms(build_without_weights(config).train())


def with_accumulation(memory: StepMemory, step: Step) -> StepMemory:
    """The memory of a step, from that of one of its micro-batches: the gradients of all parameters are there from the
    first to the last, and so are images, masks and logits of the others."""
    if step.num_micro_batches == 1:
        return memory
    rows = math.ceil(step.size.height / step.spatial_parallel)
    others = (step.num_micro_batches - 1) * step.batch_size * rows * step.size.width
    more = others * bytes_of_a_pixel(step.model)
    memory = memory.with_gradients(memory.optimizer // 2)
    return replace(memory, kept=memory.kept + more, besides_gradients=memory.besides_gradients + more)


def with_exact_sum(memory: StepMemory) -> StepMemory:
    """The memory of a step that adds gradients as 64-bit integers: 8 bytes a number, as both moments of Adam, and at
    its end, when no activations are left, the 4 bytes of the mean, too."""
    passes = memory.with_gradients(memory.optimizer)
    end = replace(memory, gradients=memory.optimizer * 3 // 2, kept=0, momentary=0)
    return max(passes, end, key=lambda each: each.peak)
