"""What a launch asks for, checked before anything starts: each setting works, or is refused in one line.

accelerate reads its settings from the environment, where `accelerate launch`, `torchrun` or the user put them. It takes
many for which training here was not written, and some without a word: each of them is named below.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from glioma_dist.errors import InputError, one_line

TRUE, FALSE = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0", "")
"""accelerate's words."""
USE_CPU, PRECISION, DYNAMO = "ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"
ACCUMULATION, USE_FSDP = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_USE_FSDP"
OTHER_ENGINE = "start with one of accelerate_configs/ (multi_gpu.yaml, fsdp2.yaml)"
REFUSED_FLAGS = {
    "ACCELERATE_USE_DEEPSPEED": f"DeepSpeed is not supported: {OTHER_ENGINE}",
    "ACCELERATE_USE_MEGATRON_LM": f"Megatron-LM is not supported: {OTHER_ENGINE}",
    "ACCELERATE_USE_PARALLELISM_CONFIG": (
        "accelerate's parallelism_config (tensor, context or sequence parallelism) is not supported: remove it, and "
        "split each image with --scale.spatial-parallel"
    ),
    "ACCELERATE_USE_SAGEMAKER": f"SageMaker launches are not supported: {OTHER_ENGINE} on the machine itself",
    "ACCELERATE_DOWNCAST_BF16": "downcast_bf16 is for TPUs, which are not supported: set downcast_bf16: 'no'",
    "ACCELERATE_IN_TPU_POD": f"TPUs are not supported: {OTHER_ENGINE}",
}
"""Settings that must not be true, and what to say of each."""
REFUSED_VALUES = {
    "ACCELERATE_TORCH_DEVICE": (
        "a device cannot be chosen by it: unset it, and choose GPUs with CUDA_VISIBLE_DEVICES, or the CPU with "
        "use_cpu: true"
    ),
}
"""Settings that must not be there at all."""
REFUSED_FSDP_FLAGS = {
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "it loses batch norm's statistics: set fsdp_cpu_ram_efficient_loading: false",
    "FSDP_OFFLOAD_PARAMS": "weights on the CPU are not supported: set fsdp_offload_params: false",
    "FSDP_ACTIVATION_CHECKPOINTING": (
        "set fsdp_activation_checkpointing: false, and train with --scale.activation-checkpointing full"
    ),
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "set fsdp_activation_checkpointing_offload: false",
    "FSDP_FORWARD_PREFETCH": "FSDP2 has no forward prefetch: set fsdp_forward_prefetch: false",
}
REFUSED_FSDP_VALUES = {
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "training names the layers itself: remove fsdp_transformer_layer_cls_to_wrap",
    "FSDP_IGNORED_MODULES": "every weight is sharded: remove fsdp_ignored_modules",
}
STARTED_BY = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "MPI",
    "MV2_COMM_WORLD_SIZE": "MPI",
}
"""Numbers of processes that other launchers started, which would not know of each other."""
SLOW_BF16_CPU = (
    "bf16 on this CPU, which has no bf16 instructions, takes 20 to 40 times as long as fp32 (docs/log.md); set "
    "mixed_precision: 'no'"
)
SLOW_BF16_GPU = (
    "bf16 on a GPU of compute capability {0}.{1}, which has no bf16 units (8.0 and newer have), is no faster than "
    "fp32, an eighth of fp16's speed by the V100's data sheet (15.7 and 125 TFLOP/s); set mixed_precision: fp16"
)


@dataclass(frozen=True)
class Machine:
    """What this machine has, as far as a launch depends on it."""

    num_gpus: int = 0
    """GPUs that PyTorch can use."""
    capability: tuple[int, int] | None = None
    """CUDA's compute capability of this process's GPU."""
    reason: str = ""
    """Why PyTorch can use no GPU, in its own words."""
    nvidia: bool = False
    """Whether the system shows an NVIDIA device."""
    cpu_bf16: bool = True
    """Whether the CPU computes in bf16; true where that is not known."""

    @classmethod
    def look(cls, environment: Mapping[str, str]) -> Machine:
        """Of this process's machine. Starts CUDA where the launch may take a GPU."""
        nvidia = any(Path(path).exists() for path in ("/dev/nvidia0", "/proc/driver/nvidia/version"))
        cpu = cpu_has_bf16(Path("/proc/cpuinfo"))
        if flag(environment, USE_CPU):
            return cls(nvidia=nvidia, cpu_bf16=cpu)
        num_gpus, capability, reason = _look_for_gpu(int(environment.get("LOCAL_RANK", "0")))
        return cls(num_gpus, capability, reason, nvidia, cpu)


def check_launch(environment: Mapping[str, str], machine: Machine | None = None) -> None:
    """Check everything that a launch can ask for; warn on stderr, once a launch, of what works but slowly.

    Args:
        environment: the process's variables.
        machine: by default this one.

    Raises:
        InputError: a setting is not supported, or the machine has not what was asked for.
    """
    check_settings(environment)
    check_processes(environment)
    lines = check_device(environment, machine or Machine.look(environment))
    if flag(environment, USE_FSDP):
        check_fsdp(environment)
    if environment.get("RANK", "0") == "0":
        for line in lines:
            sys.stderr.write(f"warning: {line}\n")


def check_settings(environment: Mapping[str, str]) -> None:
    """Raises InputError where one of accelerate's own settings is not supported."""
    for name in (USE_CPU, USE_FSDP, "ACCELERATE_DEBUG_MODE", "ACCELERATE_CPU_AFFINITY"):
        flag(environment, name)
    for name, advice in REFUSED_FLAGS.items():
        if flag(environment, name):
            raise InputError(f"{_said(environment, name)}: {advice}")
    for name, advice in REFUSED_VALUES.items():
        if environment.get(name):
            raise InputError(f"{_said(environment, name)}: {advice}")
    steps = environment.get(ACCUMULATION, "1")
    if steps.strip() != "1":
        raise InputError(
            f"{_said(environment, ACCUMULATION)}: gradient accumulation is not supported by this setting: "
            "unset it, and give --scale.gradient-accumulation to train"
        )
    if environment.get(DYNAMO, "no").lower() != "no":
        raise InputError(
            f"{_said(environment, DYNAMO)}: accelerate would compile the whole network: set dynamo_backend: 'NO', and "
            "train with --scale.compile"
        )
    precision = environment.get(PRECISION, "no")
    if precision not in ("no", "bf16", "fp16"):
        raise InputError(f"{_said(environment, PRECISION)}: set mixed_precision to 'no', bf16 or fp16")


def check_processes(environment: Mapping[str, str]) -> None:
    """Raises InputError where several processes were asked for and would each train a network of its own."""
    if "WORLD_SIZE" in environment:
        return
    for name, launcher in STARTED_BY.items():
        if re.fullmatch(r"\d{1,9}", environment.get(name, "")) and int(environment[name]) > 1:
            raise InputError(
                f"{launcher} started {environment[name]} processes, which cannot find each other: let it start one "
                "`accelerate launch --quiet --config_file accelerate_configs/multi_gpu.yaml`, or torchrun, on each "
                "machine"
            )
    if DYNAMO in environment and "MASTER_ADDR" in environment:
        # accelerate sets the address for several processes only, and its launcher for one process started one.
        raise InputError(
            "the launch asks for several processes, but accelerate started one: take "
            "accelerate_configs/cpu_2_processes.yaml or multi_gpu.yaml (distributed_type: MULTI_GPU, use_cpu: false); "
            "for one process give --num_processes 1 and unset MASTER_ADDR"
        )


def check_fsdp(environment: Mapping[str, str]) -> None:
    """Raises InputError where FSDP's settings are not those of accelerate_configs/fsdp2.yaml, or equal to them."""
    if environment[USE_FSDP].lower() != "true":  # accelerate knows no other word here, and would do without FSDP
        raise InputError(f"{_said(environment, USE_FSDP)}: write true")
    if environment.get("FSDP_VERSION", "1") != "2":
        raise InputError(
            "this launch asks for FSDP's first version, which is not supported: set fsdp_version: 2, as "
            "accelerate_configs/fsdp2.yaml has it"
        )
    policy = environment.get("FSDP_AUTO_WRAP_POLICY", "NO_WRAP")
    if policy.upper() != "TRANSFORMER_BASED_WRAP":
        raise InputError(
            f"FSDP_AUTO_WRAP_POLICY={one_line(policy, 80)}: set fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP, as "
            "accelerate_configs/fsdp2.yaml has it"
        )
    kind = environment.get("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT")
    if kind.upper() not in ("SHARDED_STATE_DICT", "FULL_STATE_DICT"):
        raise InputError(f"{_said(environment, 'FSDP_STATE_DICT_TYPE')}: set fsdp_state_dict_type: SHARDED_STATE_DICT")
    for name, advice in REFUSED_FSDP_FLAGS.items():
        if flag(environment, name):
            raise InputError(f"{_said(environment, name)}: {advice}")
    for name, advice in REFUSED_FSDP_VALUES.items():
        if environment.get(name, "None") not in ("", "None"):
            raise InputError(f"{_said(environment, name)}: {advice}")
    flag(environment, "FSDP_RESHARD_AFTER_FORWARD")


def check_device(environment: Mapping[str, str], machine: Machine) -> list[str]:
    """Lines to warn with. Raises InputError where the launch asks for a device that `machine` cannot give."""
    precision, on_cpu = environment.get(PRECISION, "no"), flag(environment, USE_CPU)
    if not on_cpu and machine.num_gpus == 0:
        asked = _asked_for_gpu(environment, machine)
        if asked:
            raise InputError(
                f"{asked} asks for a GPU, and PyTorch can use none: {machine.reason or 'it sees none'}. Update the "
                "NVIDIA driver, or train on the CPU: accelerate_configs/cpu.yaml, or with torchrun and without a "
                f"launcher {USE_CPU}=true"
            )
        on_cpu = True
    if flag(environment, USE_FSDP) and on_cpu:
        raise InputError(
            "this launch asks for FSDP, which accelerate would leave out on a CPU: on GPUs take "
            "accelerate_configs/fsdp2.yaml, on a CPU cpu_2_processes.yaml"
        )
    if on_cpu and precision == "fp16":
        raise InputError(
            f"{PRECISION}=fp16 needs a GPU, and on a CPU accelerate would compute in fp32: set mixed_precision: 'no'"
        )
    local = environment.get("LOCAL_WORLD_SIZE", "1")
    if not on_cpu and int(local) > machine.num_gpus:
        raise InputError(
            f"the launcher started {local} processes on this machine, and PyTorch can use {machine.num_gpus} of its "
            f"GPUs: give --num_processes {machine.num_gpus} for each machine, or look at CUDA_VISIBLE_DEVICES"
        )
    if precision != "bf16":
        return []
    if on_cpu:
        return [] if machine.cpu_bf16 else [SLOW_BF16_CPU]
    slow = machine.capability is not None and machine.capability < (8, 0)
    return [SLOW_BF16_GPU.format(*machine.capability)] if slow else []


def flag(environment: Mapping[str, str], name: str) -> bool:
    """A setting that is true or false. Raises InputError where it is neither."""
    value = environment.get(name, "").strip().lower()
    if value not in (*TRUE, *FALSE):
        raise InputError(f"{_said(environment, name)}: give true or false")
    return value in TRUE


def cpu_has_bf16(cpuinfo: Path) -> bool:
    """Whether Linux says that the CPU has bf16 instructions (x86, ARM); true where it says nothing."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return True
    said = [line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))]
    return not said or bool({"avx512_bf16", "amx_bf16", "bf16", "svebf16"} & set(said[0]))


def _asked_for_gpu(environment: Mapping[str, str], machine: Machine) -> str | None:
    """What in the launch asks for a GPU, or None."""
    precision, visible = environment.get(PRECISION, "no"), environment.get("CUDA_VISIBLE_DEVICES")
    if precision != "no":
        return f"mixed_precision: {precision}"
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES={one_line(visible, 80)}" if visible not in ("", "-1", "NoDevFiles") else None
    return "this machine's NVIDIA device" if machine.nvidia else None


def _look_for_gpu(local_rank: int) -> tuple[int, tuple[int, int] | None, str]:
    """Number of usable GPUs, the capability of this process's, and why there is none."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = torch.cuda.is_available()
    if not found:
        built = "" if torch.version.cuda else "this PyTorch is built without CUDA"
        return 0, None, built or one_line(" ".join(str(each.message) for each in said), 200)
    number = local_rank % torch.cuda.device_count()
    try:
        # What only a computation shows: a driver, an architecture or a device that does not work.
        torch.zeros(1, device=f"cuda:{number}").add_(1).cpu()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        return 0, None, one_line(error, 200)
    return torch.cuda.device_count(), torch.cuda.get_device_capability(number), ""


def _said(environment: Mapping[str, str], name: str) -> str:
    return f"{name}={one_line(environment.get(name, ''), 80)}"
