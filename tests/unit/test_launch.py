"""What a launch asks for works or is refused in one line; accelerate's variables are all known."""

import importlib.util
import json
import os
import re
from pathlib import Path

import pytest
import torch

from glioma_dist.benchmark import spatial_parallel_report
from glioma_dist.benchmark.environment import describe_device, find_device
from glioma_dist.cli.bench import PROOF, SPATIAL_PARALLEL
from glioma_dist.config.benchmark import SpatialParallelConfig
from glioma_dist.config.gpu_benchmarks import ProofConfig
from glioma_dist.distributed import launch
from glioma_dist.distributed.launch import Machine, check_launch, cpu_has_bf16
from glioma_dist.errors import InputError

CPU, GPUS = Machine(), Machine(num_gpus=2, capability=(9, 0), nvidia=True)
OLD_DRIVER = Machine(nvidia=True, reason="The NVIDIA driver on your system is too old (found version 12020).")
SIMPLE = {"ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "False"}
"""What accelerate's launcher of one process sets."""
SEVERAL = {
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_MIXED_PRECISION": "no",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
FSDP = SEVERAL | {
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "FSDP_VERSION": "2",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_MIN_NUM_PARAMS": "100000000",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_FORWARD_PREFETCH": "false",
    "FSDP_USE_ORIG_PARAMS": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_SYNC_MODULE_STATES": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "false",
}
"""What its launcher of several sets from accelerate_configs/fsdp2.yaml."""

WORKS = {
    "python train.py on a CPU": ({}, CPU),
    "python train.py on a GPU": ({}, GPUS),
    "bare accelerate launch on a CPU": (SIMPLE, CPU),
    "one GPU in bf16": (SIMPLE | {"ACCELERATE_MIXED_PRECISION": "bf16"}, GPUS),
    "one GPU in fp16": (SIMPLE | {"ACCELERATE_MIXED_PRECISION": "fp16"}, GPUS),
    "accelerate config default on a CPU": (SIMPLE | {"ACCELERATE_USE_CPU": "True"}, CPU),
    "two processes on a CPU": (SEVERAL, CPU),
    "two processes on GPUs": (SEVERAL, GPUS),
    "four processes on the CPU of a machine with GPUs": (
        SEVERAL | {"LOCAL_WORLD_SIZE": "4", "ACCELERATE_USE_CPU": "true"},
        GPUS,
    ),
    "FSDP2 on GPUs": (FSDP, GPUS),
    "the CPU, a driver that is too old": ({"ACCELERATE_USE_CPU": "true"}, OLD_DRIVER),
    "bf16 on the CPU, asked for": (SIMPLE | {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "bf16"}, CPU),
    "GPUs hidden": ({"CUDA_VISIBLE_DEVICES": ""}, OLD_DRIVER),
    "GPUs hidden by -1": ({"CUDA_VISIBLE_DEVICES": "-1"}, OLD_DRIVER),
    "torchrun on a CPU": ({key: SEVERAL[key] for key in SEVERAL if "ACCELERATE" not in key}, CPU),
    "torchrun under srun": (SEVERAL | {"SLURM_STEP_NUM_TASKS": "2"}, GPUS),
    "python under srun with one task": ({"SLURM_STEP_NUM_TASKS": "1", "PMI_SIZE": "1"}, GPUS),
    "one process with an address of its own": ({"MASTER_ADDR": "10.0.0.1"}, GPUS),
    "debug mode": ({"ACCELERATE_DEBUG_MODE": "true"}, CPU),
    "accumulation over one step": ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}, CPU),
    "settings that are false": (dict.fromkeys(launch.REFUSED_FLAGS, "false"), CPU),
}
FP16 = SIMPLE | {"ACCELERATE_MIXED_PRECISION": "fp16"}
BF16 = SIMPLE | {"ACCELERATE_MIXED_PRECISION": "bf16"}
REFUSED = {
    "accumulation": (
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
        CPU,
        "ACCUMULATION_STEPS=4: gradient accumulation",
    ),
    "accumulation of auto": ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto"}, CPU, "gradient accumulation"),
    "dynamo": (SIMPLE | {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, CPU, "train with --scale.compile"),
    "DeepSpeed": (SEVERAL | {"ACCELERATE_USE_DEEPSPEED": "true"}, GPUS, "DeepSpeed is not supported"),
    "DeepSpeed, another word": (SEVERAL | {"ACCELERATE_USE_DEEPSPEED": "1"}, GPUS, "DeepSpeed is not supported"),
    "Megatron": (SEVERAL | {"ACCELERATE_USE_MEGATRON_LM": "true"}, GPUS, "Megatron-LM is not supported"),
    "tensor parallelism": (
        FSDP | {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"},
        GPUS,
        "give --scale.spatial-parallel|with --scale",
    ),
    "SageMaker": ({"ACCELERATE_USE_SAGEMAKER": "true"}, GPUS, "SageMaker"),
    "downcast": ({"ACCELERATE_DOWNCAST_BF16": "yes"}, GPUS, "TPUs"),
    "a device by name": ({"ACCELERATE_TORCH_DEVICE": "cuda:1"}, GPUS, "CUDA_VISIBLE_DEVICES"),
    "fp8": (SIMPLE | {"ACCELERATE_MIXED_PRECISION": "fp8"}, GPUS, "MIXED_PRECISION=fp8: set mixed_precision to"),
    "a precision in capitals": (SIMPLE | {"ACCELERATE_MIXED_PRECISION": "BF16"}, GPUS, "'no', bf16 or fp16"),
    "no truth value": ({"ACCELERATE_USE_CPU": "maybe"}, CPU, "USE_CPU=maybe: give true or false"),
    "fp16 on a CPU": (FP16 | {"ACCELERATE_USE_CPU": "True"}, CPU, "fp16 needs a GPU"),
    "fp16 without a GPU": (FP16, CPU, "mixed_precision: fp16 asks for a GPU"),
    "bf16 without a GPU": (BF16, CPU, "mixed_precision: bf16 asks for a GPU, and PyTorch can use none: it sees none"),
    "bf16, a driver that is too old": (BF16, OLD_DRIVER, "driver on your system is too old"),
    "nothing asked, a driver that is too old": ({}, OLD_DRIVER, "this machine's NVIDIA device asks for a GPU"),
    "a GPU named": ({"CUDA_VISIBLE_DEVICES": "0"}, CPU, "CUDA_VISIBLE_DEVICES=0 asks for a GPU"),
    "more processes than GPUs": (SEVERAL | {"LOCAL_WORLD_SIZE": "3"}, GPUS, "give --num_processes 2"),
    "MULTI_CPU": (
        SIMPLE | {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "True"},
        CPU,
        "accelerate started one: take accelerate_configs/cpu_2_processes.yaml",
    ),
    "srun": ({"SLURM_STEP_NUM_TASKS": "4"}, GPUS, "srun started 4 processes"),
    "mpirun": ({"OMPI_COMM_WORLD_SIZE": "2"}, CPU, "mpirun started 2 processes"),
    "FSDP on a CPU": (FSDP | {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no"}, CPU, "asks for FSDP"),
    "FSDP1": (FSDP | {"FSDP_VERSION": "1"}, GPUS, "fsdp_version: 2"),
    "FSDP without a version": ({key: FSDP[key] for key in FSDP if key != "FSDP_VERSION"}, GPUS, "fsdp_version: 2"),
    "FSDP, another word": (FSDP | {"ACCELERATE_USE_FSDP": "1"}, GPUS, "write true"),
    "FSDP by size": (FSDP | {"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, GPUS, "TRANSFORMER_BASED_WRAP"),
    "FSDP's kind of file": (FSDP | {"FSDP_STATE_DICT_TYPE": "MINE"}, GPUS, "SHARDED_STATE_DICT"),
    **{name: (FSDP | {name: "true"}, GPUS, name.lower()[:20]) for name in launch.REFUSED_FSDP_FLAGS},
    **{name: (FSDP | {name: "Block"}, GPUS, f"{name}=Block: .*remove") for name in launch.REFUSED_FSDP_VALUES},
    "a value without end": ({"ACCELERATE_MIXED_PRECISION": "x" * 100_000}, CPU, "MIXED_PRECISION=xxx"),
}
REPOSITORY = Path(__file__).parents[2]
OWN_SETTINGS = sorted(
    path
    for pattern in ("accelerate_configs/*.yaml", "glioma_dist/**/accelerate_configs/*.yaml")
    for path in REPOSITORY.glob(pattern)
)
HARMLESS = {
    "ACCELERATE_ALLOW_CP_STANDALONE": "context parallelism's, which is refused",
    "ACCELERATE_BYPASS_DEVICE_MAP": "of models split by accelerate's device maps, which are not used",
    "ACCELERATE_CONFIG_DS_FIELDS": "DeepSpeed's",
    "ACCELERATE_CPU_AFFINITY": "it works: processes keep to the CPU cores beside their GPU",
    "ACCELERATE_DEBUG_MODE": "it works: shapes are compared before processes exchange tensors",
    "ACCELERATE_DEBUG_RDV_FILE": "of accelerate's own launcher of notebooks",
    "ACCELERATE_ENABLE_RICH": "tracebacks in colour",
    "ACCELERATE_GRADIENT_CLIPPING": "DeepSpeed's",
    "ACCELERATE_INIT_INCLUDE_BUFFERS": "of accelerate's empty models, which are not used",
    "ACCELERATE_LOG_LEVEL": "accelerate's own messages",
    "ACCELERATE_NUM_PROCESSES": "of accelerate's own tests",
    "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE": "SageMaker's",
    "ACCELERATE_USE_IPEX": "Intel's extension on CPUs, in accelerate 1.11",
    "FSDP_BACKWARD_PREFETCH": "FSDP1's",
    "FSDP_MIN_NUM_PARAMS": "of wrapping by size, which is refused",
    "FSDP_SHARDING_STRATEGY": "FSDP1's",
    "FSDP_SYNC_MODULE_STATES": "FSDP1's",
    "FSDP_USE_ORIG_PARAMS": "FSDP1's",
}
"""Variables that accelerate reads and that need no check."""
HARMLESS_PREFIXES = ("ACCELERATE_DEEPSPEED_", "ACCELERATE_FP8_", "ACCELERATE_DYNAMO_")
"""Of engines that are refused."""


@pytest.mark.parametrize("name", WORKS)
def test_what_works_is_let_through(name, capsys):
    check_launch(*WORKS[name])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_work_is_refused_in_one_line(name):
    environment, machine, expected = REFUSED[name]
    with pytest.raises(InputError) as raised:
        check_launch(environment, machine)
    message = str(raised.value)
    assert re.search(expected, message)
    assert len(message) <= 490
    assert "\n" not in message


def test_every_variable_that_accelerate_reads_is_known():
    """A new version's are found here first."""
    (folder,) = importlib.util.find_spec("accelerate").submodule_search_locations
    read = set()
    for path in Path(folder).rglob("*.py"):
        if not {"test_utils", "commands"} & set(path.parts):
            text = path.read_text()
            read |= set(re.findall(r"\bACCELERATE_[A-Z0-9_]*[A-Z0-9]\b", text))
            if path.name == "dataclasses.py":
                plugin = text[text.index("class FullyShardedDataParallelPlugin") :]
                plugin = plugin[: plugin.index("\nclass ")]
                read |= {f"FSDP_{name}" for name in re.findall(r'env_prefix \+ "([A-Z_]+)"', plugin)}
    assert {"ACCELERATE_USE_CPU", "FSDP_OFFLOAD_PARAMS"} <= read
    source = Path(launch.__file__).read_text()
    unknown = {name for name in read - set(HARMLESS) if f'"{name}"' not in source}
    assert {name for name in unknown if not name.startswith(HARMLESS_PREFIXES)} == set()


def environment_of(config: Path, *flags: str) -> dict[str, str]:
    """What accelerate's own launcher would give train.py, the variables of the shell left out."""
    from accelerate.commands import launch as launcher
    from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

    given = launcher.launch_command_parser().parse_args(["--config_file", str(config), *flags, "train.py"])
    given, _, _ = launcher._validate_launch_command(given)
    if given.multi_gpu or given.use_fsdp or given.use_megatron_lm:
        environment = SEVERAL | prepare_multi_gpu_env(given)
        environment["LOCAL_WORLD_SIZE"] = str(given.num_processes // given.num_machines)
    else:
        _, environment = prepare_simple_launcher_cmd_env(given)
    ours = ("ACCELERATE_", "FSDP_", "PARALLELISM_", "MEGATRON_", "MASTER_", "RANK", "LOCAL_", "WORLD_", "CUDA_")
    return {name: value for name, value in environment.items() if name.startswith(ours)}


@pytest.fixture
def shell(monkeypatch):
    """A shell without variables of a launch."""
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_", "MASTER_", "RANK", "LOCAL_", "WORLD_", "CUDA_")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("config", OWN_SETTINGS, ids=lambda config: config.name)
def test_the_repository_s_own_settings_are_all_taken(shell, config):
    machine = CPU if config.name.startswith("cpu") else Machine(num_gpus=8, capability=(9, 0))
    check_launch(environment_of(config), machine)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_what_accelerate_config_default_writes_is_taken(shell, tmp_path, monkeypatch, precision):
    """On a machine with one GPU, and with none."""
    import torch
    from accelerate.commands.config.default import write_basic_config

    if precision == "no":
        check_launch(environment_of(write_basic_config(precision, str(tmp_path / "cpu.yaml"))), CPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = write_basic_config(precision, str(tmp_path / "gpu.yaml"))
    check_launch(environment_of(config), Machine(num_gpus=1, capability=(9, 0)))


YAML_REFUSED = {
    "distributed_type: 'NO'\nnum_processes: 1\ndynamo_config:\n  dynamo_backend: INDUCTOR": "DYNAMO_BACKEND=INDUCTOR",
    "distributed_type: 'NO'\nnum_processes: 1\nmixed_precision: fp16\nuse_cpu: true": "fp16 needs a GPU",
    "distributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true": "accelerate started one",
    "distributed_type: MEGATRON_LM\nnum_processes: 2\nmain_process_port: 0\nmegatron_lm_config: {}": "Megatron-LM",
    "distributed_type: FSDP\nnum_processes: 2\nmain_process_port: 0\nfsdp_config:\n  fsdp_version: 1": "version: 2",
    # What the questions of `accelerate config` lead to.
    "distributed_type: FSDP\nnum_processes: 2\nmain_process_port: 0\nfsdp_config:\n  fsdp_version: 2\n"
    "  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n  fsdp_cpu_ram_efficient_loading: true\n"
    "  fsdp_reshard_after_forward: true": "fsdp_cpu_ram_efficient_loading: false",
}


@pytest.mark.parametrize("text", YAML_REFUSED)
def test_files_of_settings_that_do_not_work_are_refused(shell, tmp_path, text):
    config = tmp_path / "settings.yaml"
    config.write_text(f"compute_environment: LOCAL_MACHINE\nnum_machines: 1\n{text}\n")
    with pytest.raises(InputError, match=YAML_REFUSED[text]):
        check_launch(environment_of(config), GPUS)


def test_bf16_that_is_slow_is_said_once(capsys):
    on_cpu = SIMPLE | {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_CPU": "True"}
    check_launch(on_cpu, Machine(cpu_bf16=False))
    assert re.fullmatch(r"warning: bf16 on this CPU.* 20 to 40 times as long as fp32.*\n", capsys.readouterr().err)
    check_launch(BF16, Machine(num_gpus=1, capability=(7, 0)))
    assert re.fullmatch(r"warning: bf16 on a GPU of compute capability 7\.0.*eighth.*\n", capsys.readouterr().err)
    check_launch(BF16 | SEVERAL | {"RANK": "1", "ACCELERATE_MIXED_PRECISION": "bf16"}, Machine(2, (7, 5)))
    check_launch(BF16, Machine(num_gpus=1, capability=(8, 0)))
    check_launch(FP16, Machine(num_gpus=1, capability=(7, 0)))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512_bf16\n", True),
        ("flags : fpu amx_bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\nvmx flags : bf16\n", False),
        ("processor : 0\nFeatures : fp asimd bf16\n", True),
        ("processor : 0\nFeatures : fp asimd\n", False),
        ("a system that says nothing", True),
    ],
)
def test_a_cpu_s_bf16_is_read_from_the_system(tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_has_bf16(tmp_path / "cpuinfo") == expected
    assert cpu_has_bf16(tmp_path / "nowhere")


def test_a_driver_that_is_too_old_is_named_in_pytorch_s_words(monkeypatch):
    """PyTorch says it in a warning and takes the CPU."""
    import warnings

    import torch

    def no_driver() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver is too old (found version 12020).", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", no_driver)
    with pytest.raises(InputError, match=r"can use none: CUDA initialization: The NVIDIA driver is too old \(found"):
        check_launch(BF16, None)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(InputError, match="this PyTorch is built without CUDA"):
        check_launch(BF16, None)


def test_a_gpu_that_cannot_compute_is_refused(monkeypatch):
    """As one whose architecture the installed PyTorch has no code for; this PyTorch has no GPU at all."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"bf16 asks for a GPU, and PyTorch can use none: \w+"):
        check_launch(BF16, None)


@pytest.mark.parametrize("word", ["true", "1", "yes", "Y", "on", "t"])
def test_a_benchmark_takes_the_device_that_a_training_takes(monkeypatch, word):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", word)
    assert find_device() == "cpu"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "no")
    assert find_device() == "cuda"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "perhaps")
    with pytest.raises(InputError, match="ACCELERATE_USE_CPU=perhaps: give true or false"):
        find_device()


def test_a_gpu_that_does_not_work_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('CUDA error: uncorrectable ECC error')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(
        InputError, match=r"the GPU cannot be used \(RuntimeError: CUDA error: uncorrectable ECC error\)"
    ):
        describe_device("cuda")


def test_a_gpu_that_does_not_answer_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("glioma_dist.benchmark.environment.SECONDS_TO_ANSWER", 0.2)
    with pytest.raises(InputError, match=r"the GPU did not answer within 0.2 s; look at nvidia-smi"):
        describe_device("cuda")


@pytest.mark.parametrize("config", [ProofConfig(), SpatialParallelConfig()], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize(("world", "message"), [("2", "runs in one process"), ("", "WORLD_SIZE=: give a number")])
def test_a_benchmark_is_one_process(monkeypatch, config, world, message):
    command = {ProofConfig: PROOF, SpatialParallelConfig: SPATIAL_PARALLEL}[type(config)]
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(InputError, match=message):
        command.check(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spatial_parallel": (0,)}, "--spatial-parallel, --levels: give one or more"),
        (
            {"spatial_parallel": (1, 40)},
            "--spatial-parallel 40: an image of 1120 rows .* give fewer, or a larger --sizes",
        ),
        ({"tflop_s": float("inf")}, "--tflop-s: give more than 0"),
        ({"sizes": (), "spatial_parallel": (62,)}, "--spatial-parallel 62: .* or a larger --estimated-size"),
    ],
)
def test_a_benchmark_names_its_own_flags(changes, message):
    with pytest.raises(InputError, match=message) as refused:
        SpatialParallelConfig(**changes).validate()
    assert "--scale" not in str(refused.value)


def test_what_was_measured_stays_where_a_later_launch_fails(tmp_path, monkeypatch):
    def launch(command, environment):
        if json.loads(command[-2])["spatial_parallel"] == 2:
            return 1
        Path(command[-1]).write_text(json.dumps({"median_seconds": 0.5, "peak_gib": [1.0]}))
        return 0

    monkeypatch.setattr(spatial_parallel_report, "run_child", launch)
    monkeypatch.setattr(spatial_parallel_report, "estimated", lambda config: [])
    monkeypatch.setattr(spatial_parallel_report, "describe_device", lambda kind: "Some GPU")
    with pytest.raises(InputError, match="ended with 1; its own lines say why"):
        spatial_parallel_report.bench(SpatialParallelConfig(spatial_parallel=(1, 2), out=tmp_path / "out"))
    rows = json.loads((tmp_path / "out" / "spatial_parallel.json").read_text())["measured"]
    assert [(row["spatial_parallel"], row["median_seconds"]) for row in rows] == [(1, 0.5)]
    assert "| 1472x1120 | none | 1 | 0.50 |" in (tmp_path / "out" / "spatial_parallel.md").read_text()


def test_launches_of_a_benchmark_know_nothing_of_its_own(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("GLIOMA_DIST_EXIT_CODES", "/codes")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    seen = []
    monkeypatch.setattr(
        spatial_parallel_report, "run_child", lambda command, environment: seen.append(environment) or 3
    )
    with pytest.raises(InputError, match="ended with 3; its own lines say why"):
        list(spatial_parallel_report.measured(SpatialParallelConfig()))
    assert "OMP_NUM_THREADS" in seen[0]
    assert not {"TORCHELASTIC_RUN_ID", "GLIOMA_DIST_EXIT_CODES"} & set(seen[0])
    assert seen[0]["ACCELERATE_USE_CPU"] == "true"


def test_a_launch_that_fails_leaves_the_rows_of_those_before_it(monkeypatch, tmp_path):
    """Of a machine with a GPU that is told to use its CPU, whose system tells no peak; and nothing to compare with."""
    commands = []

    def run(command, environment):
        commands.append(command)
        Path(command[-1]).write_text(json.dumps({"median_seconds": 1.5, "peak_gib": [None, None]}))
        return 0 if len(commands) == 1 else 3

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(spatial_parallel_report, "run_child", run)
    monkeypatch.setattr(spatial_parallel_report, "estimated", lambda config: [])
    config = SpatialParallelConfig(spatial_parallel=(2, 4), levels=("none",), out=tmp_path / "out")
    with pytest.raises(InputError, match="ended with 3"):
        spatial_parallel_report.bench(config)
    assert "cpu_2_processes.yaml" in " ".join(commands[0])
    (row,) = json.loads((tmp_path / "out" / "spatial_parallel.json").read_text())["measured"]
    assert row["spatial_parallel"] == 2
    assert "| 1472x1120 | none | 2 | 1.50 | –, – | – |" in (tmp_path / "out" / "spatial_parallel.md").read_text()
