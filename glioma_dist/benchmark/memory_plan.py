"""Prints the memory of a training step and what fits on a GPU, without using one: `glioma-dist plan`.

A cached answer is printed without importing torch, because the import takes longer than everything else.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from importlib.metadata import version
from itertools import chain

from glioma_dist.config import ModelConfig
from glioma_dist.config.launch_files import launch_command
from glioma_dist.config.plan import PlanConfig, parse_memory
from glioma_dist.config.recipe import num_moments
from glioma_dist.files import make_folder, write_json_atomically
from glioma_dist.fingerprint import code_fingerprint
from glioma_dist.scale import answers
from glioma_dist.size import Size

NAME_WIDTH = 36
COLUMNS = ("params", "grads", "optim", "kept", "rest", "peak", "host", "copies", "fits", "batch", "largest size")
"""Those of StepMemory's parts, seconds of copies to the host and back, what fits, the largest batch and size."""


def print_plan(plan: PlanConfig) -> None:
    """Print the levels at each size, and the command for the quickest that fits."""
    memory = None if plan.gpu_memory is None else parse_memory(plan.gpu_memory)
    gpus = f"{plan.gpus} GPU{'s' if plan.gpus > 1 else ''}"
    head = (
        f"U-Net {plan.model.encoder}, batch {plan.batch_size} on {gpus}: estimated peak memory of a step on each, GiB"
    )
    levels: list[dict] = []
    for size in plan.size:
        found = rows(plan, size, memory)
        first = next(found)  # settings that are refused are refused before anything is printed
        if not levels:
            print(head)
        columns = COLUMNS[: 8 if memory is None else None]
        print(f"\n{size!s:<{NAME_WIDTH}}" + "".join(f"{name:>{max(8, len(name) + 2)}}" for name in columns))
        for level in chain([first], found):
            print(line(level), flush=True)
            levels.append(level)
    asks = memory is not None or plan.memory_budget is not None
    choices = {str(size): choice(plan, size, levels) for size in plan.size} if asks else {}
    for size, chosen in choices.items():
        of_size = [level for level in levels if level["size"] == str(size)]
        print(f"\n{size}: {chosen['command'] if chosen else nothing_fits(of_size)}")
    if plan.json:
        chosen = choices.get(str(plan.size[0])) if len(plan.size) == 1 else choices
        make_folder(plan.json.parent)
        write_json_atomically(plan.json, {"levels": levels, "choice": chosen})


def rows(plan: PlanConfig, size: Size, memory: float | None) -> Iterator[dict]:
    """The levels at one size, from the cache or as `plan_levels.levels_of` estimates them.

    Raises InputError if the encoder cannot be made, or a step is not possible.
    """
    key = _key(plan, size)
    known = (answers.read(key) or {}).get("levels")
    if known:
        yield from known
        return
    from glioma_dist.benchmark.plan_levels import levels_of

    found = []
    for level in levels_of(plan, size, memory):
        found.append(level)
        yield level
    answers.write(key, {"levels": found})


def _key(plan: PlanConfig, size: Size) -> str | None:
    """Everything that the rows depend on; None if that is known only after the network is made."""
    if plan.smp or not answers.is_own_encoder(plan.model.encoder):
        return None
    network = (plan.model.encoder, plan.model.norm, plan.model.encoder_norm, plan.model.decoder_channels)
    outputs = (plan.model.num_mask_channels, plan.model.targets)
    libraries = [f"{name} {version(name)}" for name in ("torch", "timm")]
    recipe = (num_moments(plan.optimizer, plan.momentum), plan.freeze_encoder, plan.ema_decay is not None)
    asked = (size, plan.batch_size, plan.gpu_memory, plan.memory_budget, plan.gpus, plan.gradient_accumulation, *recipe)
    return " ".join(
        map(str, ("plan", *network, *outputs, *asked, plan.link_bandwidth, *libraries, code_fingerprint([])))
    )


def line(level: dict) -> str:
    text = f"{level['name']:<{NAME_WIDTH}}" + "".join(
        f"{value:8.2f}" for name, value in level.items() if name.endswith("_gib")
    )
    text += f"{level.get('copies_s', 0.0):8.2f}"
    if "fits" in level:
        text += f"{'yes' if level['fits'] else 'no':>8}{level['largest_batch']:8}{level['largest_size']:>14}"
    if "keeps" in level:
        text += (
            f"\n  keeps: {level['keeps']}\n  computed again: {level['recomputed_flops']:.1%} of the step's FLOPs, "
            f"estimated {level['recomputed_time']:.1%} of its time"
        )
    return text


def nothing_fits(levels: list[dict]) -> str:
    """What the last two columns of the levels at a size say where none fits."""
    notes = {
        "batch 0: not one image of this size": any(level.get("largest_batch") == 0 for level in levels),
        "largest size none: not even a small image": any(level.get("largest_size") == "none" for level in levels),
    }
    told = "; ".join(note for note, is_there in notes.items() if is_there)
    return f"no level fits; the last two columns say what would{f' ({told})' if told else ''}"


def choice(plan: PlanConfig, size: Size, levels: list[dict]) -> dict | None:
    """The quickest level in bf16 that fits, or the plan for the memory budget, and the command for it."""
    fit = "memory_budget" if plan.memory_budget is not None else "fits"
    level = next((each for each in levels if each["size"] == str(size) and each.get(fit) and each.get("bf16")), None)
    if level is None:
        return None
    several = "fsdp2.yaml" if level["fsdp2"] else "multi_gpu.yaml"
    file, launch_flags = ("gpu.yaml", "") if plan.gpus == 1 else (several, f"--num_processes {plan.gpus}")
    channels = " ".join(map(str, plan.model.decoder_channels))
    flags = f"--data.size {size} --model.encoder {plan.model.encoder} --batch-size {plan.batch_size}"
    if plan.model.norm != ModelConfig.norm:
        flags += f" --model.norm {plan.model.norm}"
    if plan.model.encoder_norm != ModelConfig.encoder_norm:
        flags += f" --model.encoder-norm {plan.model.encoder_norm}"
    if plan.model.decoder_channels != ModelConfig.decoder_channels:
        flags += f" --model.decoder-channels {channels}"
    if plan.model.classes:
        flags += f" --model.classes {shlex.join(plan.model.classes)}"
    if plan.model.targets != ModelConfig.targets:
        flags += f" --model.targets {' '.join(plan.model.targets)}"
    if plan.optimizer != PlanConfig.optimizer:
        flags += f" --optimizer {plan.optimizer}"
    if plan.optimizer == "sgd" and plan.momentum != PlanConfig.momentum:
        flags += f" --momentum {plan.momentum}"
    if plan.freeze_encoder:
        flags += " --freeze-encoder"
    if plan.freeze_encoder or plan.model.encoder_norm == "frozen":
        flags += " --model.init imagenet"
    if level["spatial_parallel"] > 1:
        flags += f" --scale.spatial-parallel {level['spatial_parallel']}"
    if plan.gradient_accumulation > 1:
        flags += f" --scale.gradient-accumulation {plan.gradient_accumulation}"
    if plan.ema_decay is not None:
        flags += f" --ema-decay {plan.ema_decay}"
    if plan.memory_budget is not None:
        flags += f" --scale.memory-budget {shlex.quote(plan.memory_budget)}"
    else:
        flags += f" --scale.activation-checkpointing {level['activation_checkpointing']}"
    if level.get("optimizer_in_backward"):
        flags += " --scale.optimizer-in-backward"
    command = launch_command(file, "train", launch_flags)
    return {"name": level["name"], "command": f"{command} {flags} --data.train … --out …"}
