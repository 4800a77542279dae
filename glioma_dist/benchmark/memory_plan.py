"""What a training step needs, and what fits on a GPU, without one: what `glioma-dist plan` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from glioma_dist.config import ModelConfig
from glioma_dist.config.plan import PlanConfig, parse_memory, spatial_parallel_sizes
from glioma_dist.files import make_folder, write_json_atomically
from glioma_dist.loss_names import DEFAULT_LOSS
from glioma_dist.losses import segmentation_loss
from glioma_dist.registry import encoders
from glioma_dist.scale.memory_estimator import StepMemory, estimate_unet_step
from glioma_dist.scale.planner import GIB, Level, Step, count, fits, largest_batch, largest_size, usable
from glioma_dist.scale.tile_size import largest_gpu_tile
from glioma_dist.size import Size

COMPARED: tuple[tuple[str, bool, Level], ...] = (
    ("fp32", False, "none"),
    ("bf16", True, "none"),
    ("bf16, selective", True, "selective"),
    ("bf16, full", True, "full"),
)
"""Name, bf16, level of activation checkpointing."""
NAME_WIDTH = 36
COLUMNS = ("params", "grads", "optim", "kept", "rest", "peak", "fits", "batch", "largest size")
"""Those of StepMemory's parts, then what fits, the largest batch, the largest size."""


def print_plan(plan: PlanConfig) -> None:
    """Print the levels at each size, and the command for the quickest that fits."""
    memory = None if plan.gpu_memory is None else parse_memory(plan.gpu_memory)
    gpus = f"{plan.gpus} GPU{'s' if plan.gpus > 1 else ''}"
    print(
        f"U-Net {plan.model.encoder}, batch {plan.batch_size} on {gpus}: estimated peak memory of a step on each, GiB"
    )
    levels: list[dict] = []
    for size in plan.size:
        print(
            f"\n{size!s:<{NAME_WIDTH}}"
            + "".join(f"{name:>{max(8, len(name) + 2)}}" for name in COLUMNS[: 6 if memory is None else None])
        )
        for level in levels_of(plan, size, memory):
            print(line(level), flush=True)
            levels.append(level)
    choices = {str(size): choice(plan, size, levels) for size in plan.size} if memory is not None else {}
    for size, chosen in choices.items():
        nothing = "no level fits; the last two columns say what would (0: not even one small image)"
        print(f"\n{size}: {chosen['command'] if chosen else nothing}")
    if plan.json:
        chosen = choices.get(str(plan.size[0])) if len(plan.size) == 1 else choices
        make_folder(plan.json.parent)
        write_json_atomically(plan.json, {"levels": levels, "choice": chosen})


def levels_of(plan: PlanConfig, size: Size, memory: float | None) -> Iterator[dict]:
    """The levels at one size, one after the other as they are estimated; with several GPUs all levels for each number
    of GPUs an image, and FSDP2 with the last level."""
    loss = partial(segmentation_loss, DEFAULT_LOSS)
    for number in spatial_parallel_sizes(plan, size):
        compared = [(*each, False) for each in COMPARED]
        if plan.gpus > 1:
            compared.append((f"{COMPARED[-1][0]}, FSDP2", *COMPARED[-1][1:], True))
        for name, bf16, level, shards in compared:
            images = plan.batch_size * number // plan.gpus
            tile = largest_gpu_tile()
            step = Step(plan.model, size, images, bf16, plan.gpus, number, shards, tile_size=tile, loss=loss)
            row = described(f"{name}, {number} GPUs an image" if number > 1 else name, size, count(step, level))
            row |= {
                "bf16": bf16,
                "activation_checkpointing": level,
                "spatial_parallel": number,
                "fsdp2": shards,
            }
            if memory is not None:
                free = usable(memory)
                row["fits"] = fits(step, level, free)
                row["largest_batch"] = largest_batch(replace(step, batch_size=1), level, free) * plan.gpus // number
                row["largest_size"] = str(largest_size(step, level, free))
            yield row
    for name, bf16 in (("smp, fp32", False), ("smp, bf16", True)) if plan.smp else ():
        model = build_smp(plan.model.encoder)
        yield described(name, size, estimate_unet_step(model(), loss, size, plan.batch_size // plan.gpus, bf16))


def build_smp(encoder: str) -> Callable:
    import segmentation_models_pytorch

    name = encoders.find(encoder).smp_name
    return lambda: segmentation_models_pytorch.Unet(name, encoder_weights=None, decoder_interpolation="bilinear")


def described(name: str, size: Size, memory: StepMemory) -> dict:
    parts = {
        "parameters_gib": memory.parameters,
        "gradients_gib": memory.gradients,
        "optimizer_gib": memory.optimizer,
        "kept_gib": memory.kept,
        "momentary_gib": memory.momentary,
        "peak_gib": memory.peak,
    }
    return {"name": name, "size": str(size)} | {part: value / GIB for part, value in parts.items()}


def line(level: dict) -> str:
    text = f"{level['name']:<{NAME_WIDTH}}" + "".join(
        f"{value:8.2f}" for name, value in level.items() if name.endswith("_gib")
    )
    if "fits" in level:
        text += f"{'yes' if level['fits'] else 'no':>8}{level['largest_batch']:8}{level['largest_size']:>14}"
    return text


def choice(plan: PlanConfig, size: Size, levels: list[dict]) -> dict | None:
    """The quickest level in bf16 that fits, and the command for it."""
    level = next((each for each in levels if each["size"] == str(size) and each.get("fits") and each.get("bf16")), None)
    if level is None:
        return None
    launch = "accelerate launch --config_file accelerate_configs/"
    several = "fsdp2.yaml" if level["fsdp2"] else "multi_gpu.yaml"
    launch += "gpu.yaml" if plan.gpus == 1 else f"{several} --num_processes {plan.gpus}"
    channels = " ".join(map(str, plan.model.decoder_channels))
    flags = f"--data.size {size} --model.encoder {plan.model.encoder} --batch-size {plan.batch_size}"
    if plan.model.norm != ModelConfig.norm:
        flags += f" --model.norm {plan.model.norm}"
    if plan.model.decoder_channels != ModelConfig.decoder_channels:
        flags += f" --model.decoder-channels {channels}"
    if level["spatial_parallel"] > 1:
        flags += f" --scale.spatial-parallel {level['spatial_parallel']}"
    flags += f" --scale.activation-checkpointing {level['activation_checkpointing']}"
    command = f"{launch} train.py {flags} --data.train … --out …"
    return {"name": level["name"], "command": command}
