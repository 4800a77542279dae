"""Small drawn shards, small configs, and processes that start quickly.

`start` runs a function in fresh processes, forked from a server that has imported the libraries already: importing
torch and the other libraries takes some seconds a process otherwise. The processes are not forks of the tests' own.
"""

import importlib.util
import json
import multiprocessing
import os
import pickle
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from glioma_dist.config import DataConfig, ModelConfig, TrainConfig
from glioma_dist.data.sample import IGNORE, Sample
from glioma_dist.data.shards.reader import ShardReader, ShardWriter
from glioma_dist.size import Size

REPOSITORY = Path(__file__).resolve().parents[1]
OF_SPEED = ("images_per_second", "step_seconds", "data_wait_share")
PRELOADED = [
    "torch",
    "torch._dynamo",
    "torch.distributed",
    "accelerate",
    "glioma_dist.model.encoders.timm_models",
    "albumentations",
    "pytest",
    "helpers",
    "glioma_dist.training.loop",
    "glioma_dist.evaluation.protocol",
    "glioma_dist.inference.predict",
    "glioma_dist.report.curves",
]
TINY_CHANNELS = (16, 16, 8, 8, 8)
FIRST_PORT, MAX_WORKERS, PORTS_A_WORKER = 10240, 16, 1400
"""Ports below those that Linux gives to connections: from 32768."""
_PORTS = (number % PORTS_A_WORKER for number in count(os.getpid()))
"""Other tests that run on this machine begin elsewhere."""
FIRST_SCALE = 2.0**24
"""A loss scale so large that the first steps overflow fp16."""


def draw_sample(number: int, width: int = 96, height: int = 80, channels: int = 1, dtype: type = np.uint8) -> Sample:
    """Bright discs on a noisy ground; `number` decides where."""
    generator = np.random.default_rng(number)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(5):
        centre = (int(generator.integers(width)), int(generator.integers(height)))
        cv2.circle(mask, centre, int(generator.integers(6, 14)), 1, thickness=-1)
    shape = (height, width) if channels == 1 else (height, width, channels)
    ground = mask if channels == 1 else mask[..., None]
    image = 60 + 90.0 * ground + generator.normal(0, 25, shape)
    scale = np.iinfo(dtype).max // 255
    return Sample(f"cell-{number:03d}", (image.clip(0, 255) * scale).astype(dtype), mask, {"num_cells": 5})


def draw_shards(folder: Path, numbers: Any, samples_per_shard: int = 3, **how: Any) -> Path:
    """Shards of `draw_sample(number, **how)`."""
    return write_shards(folder, [draw_sample(number, **how) for number in numbers], samples_per_shard)


def draw_labelled(
    number: int,
    width: int = 96,
    height: int = 80,
    channels: int = 1,
    num_classes: int = 1,
    has_ignore: bool = False,
    has_instances: bool = False,
) -> Sample:
    """Bright discs that touch, of `num_classes` greys, each with a number; where `has_ignore`, a block is ignored."""
    generator = np.random.default_rng([7, number])
    instances = np.zeros((height, width), np.uint16)
    for cell in range(1, 10):
        centre = (int(generator.integers(width)), int(generator.integers(height)))
        cv2.circle(instances, centre, int(generator.integers(6, 16)), cell, thickness=-1)
    mask = np.where(instances > 0, 1 + instances % num_classes, 0).astype(np.uint8)
    image = 60 + 90.0 * mask + generator.normal(0, 25, mask.shape)
    if has_ignore:
        mask[10:25, 20:70] = IGNORE
        instances[mask == IGNORE] = 0
    image = image.clip(0, 255).astype(np.uint8)
    image = image if channels == 1 else np.stack([image, image // 2, image], axis=-1)
    return Sample(f"cell-{number:03d}", image, mask, {"num_cells": 9}, instances if has_instances else None)


def write_shards(
    folder: Path, samples: list[Sample], samples_per_shard: int = 3, classes: tuple[str, ...] = ()
) -> Path:
    labels = {"classes": classes, "has_instances": any(sample.instances is not None for sample in samples)}
    with ShardWriter(folder, "drawn", folder.name, "CC0", samples_per_shard=samples_per_shard, **labels) as writer:
        for sample in samples:
            writer.write(sample)
    return folder


def damage_sample(folder: Path, key: str) -> None:
    """Change one byte in the middle of a sample's image, within its shard."""
    for shard in ShardReader(folder).index["shards"]:
        table = json.loads((folder / shard["name"].replace(".tar", ".members.json")).read_text())
        for member in table:
            if member["key"] == key:
                offset, size = member["png"]
                with open(folder / shard["name"], "r+b") as file:
                    file.seek(offset + size // 2)
                    byte = file.read(1)[0]
                    file.seek(offset + size // 2)
                    file.write(bytes([byte ^ 0xFF]))
                return
    raise KeyError(key)


def seal(folder: Path) -> None:
    """Rewrite a checkpoint's manifest from the files that are there, as if they had been written so."""
    from safetensors.torch import load_file

    from glioma_dist.model.checkpoint_writer import file_entry
    from glioma_dist.model.manifest import FORMAT_VERSION, MANIFEST, STATE
    from glioma_dist.model.tensor_files import describe

    files = {STATE: file_entry(folder / STATE)}
    for path in folder.glob("*.safetensors"):
        tensors = {name: describe(tensor) for name, tensor in load_file(path).items()}
        files[path.name] = file_entry(path) | {"tensors": tensors}
    (folder / MANIFEST).write_text(json.dumps({"format_version": FORMAT_VERSION, "files": files}))


def tiny_config(shards: Path, out: Path, **changes: Any) -> TrainConfig:
    """Six steps of the smallest U-Net with all that is random switched on; `changes` are TrainConfig's fields, and
    those of its data and model."""
    data = DataConfig(
        train=shards / "train",
        val=shards / "val",
        size=Size(64, 64),
        transform="random-resized-crop",
        augment=("flips", "sharpen", "contrast"),
        workers=0,
    )
    model = ModelConfig(encoder="mit_tiny", decoder_channels=TINY_CHANNELS)
    for name in list(changes):
        if hasattr(data, name):
            data = replace(data, **{name: changes.pop(name)})
        elif hasattr(model, name):
            model = replace(model, **{name: changes.pop(name)})
    fields = {"batch_size": 4, "lr": 1e-3, "max_steps": 6, "eval_every": 3, "out": out, **changes}
    return TrainConfig(data=data, model=model, **fields)


def save_state(
    folder: Path,
    config: TrainConfig,
    state: Any,
    model: Any,
    optimizer: Any,
    metadata: dict,
    writer: Any = None,
    keep: int = 1,
    scaler: dict | None = None,
) -> None:
    """Write a checkpoint of a run, all stages at once."""
    from glioma_dist.model.checkpoint_writer import ALONE, run_stages
    from glioma_dist.training.snapshot import SnapshotMemory
    from glioma_dist.training.state import state_stages

    writer, memory = writer or ALONE, SnapshotMemory()
    stages = state_stages(folder, config, state, model, optimizer, metadata, writer, keep, scaler, memory=memory)
    run_stages(stages, writer)


def rows(out: Path) -> list[dict]:
    """metrics.jsonl without the speed, the one thing that no two runs share; of a run that has not ended, without a
    line of which a part is there."""
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    lines = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: value for name, value in line.items() if name not in OF_SPEED} for line in lines]


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: the signal), what its function returned, what it wrote."""

    exit_code: int
    value: Any
    stdout: str
    stderr: str


class Started:
    """Processes that are running."""

    def __init__(self, processes: list, folder: Path, timeout: float) -> None:
        self.processes, self.folder, self.deadline = processes, folder, time.monotonic() + timeout

    def wait(self) -> list[Ended]:
        """How each ended, in the order of their ranks; those that are still there after the timeout are killed."""
        for process in self.processes:
            process.join(max(0.1, self.deadline - time.monotonic()))
        late = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        for rank in late:
            self.processes[rank].kill()
            self.processes[rank].join()
        ended = []
        for rank, process in enumerate(self.processes):
            value = self.folder / f"{rank}.value"
            texts = [
                (self.folder / f"{rank}.{name}").read_text() if (self.folder / f"{rank}.{name}").exists() else ""
                for name in ("stdout", "stderr")
            ]
            ended.append(Ended(process.exitcode, pickle.loads(value.read_bytes()) if value.exists() else None, *texts))
        shutil.rmtree(self.folder)
        assert not late, f"ranks {late} did not end in time:\n" + "\n".join(end.stderr[-3000:] for end in ended)
        return ended


def free_port() -> int:
    """A port that nobody listens at, and that no other worker of these tests will ask for.

    A port that the system chooses is soon given to the next who asks, as one's own end of any connection too.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % MAX_WORKERS
    for port in islice(_PORTS, PORTS_A_WORKER):
        port += FIRST_PORT + worker * PORTS_A_WORKER
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


def wait_for_listener(port: int, seconds: float = 240) -> None:
    """Until somebody listens at a port of this machine, looked for without a connection of our own."""
    until = time.monotonic() + seconds
    while not any(fields[1].endswith(f":{port:04X}") and fields[3] == "0A" for fields in _sockets()):
        assert time.monotonic() < until, f"nobody listens at {port}"
        time.sleep(0.05)


def _sockets() -> list[list[str]]:
    """Rows of the system's tables: number, local address, remote address, state (0A: listens), …"""
    return [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]


def start(
    function: Callable,
    *arguments: Any,
    num_processes: int = 1,
    environment: dict[str, str] | None = None,
    timeout: float = 240,
    python: Path | None = None,
) -> Started:
    """Start `function(*arguments)` in fresh processes, on the CPU; several form a launch of local ranks over gloo.

    python: the interpreter that they find in `sys.executable`, and start programs with (the fixture `quick_python`).
    """
    # The server is started by the first call, and these reach it through its environment.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    folder = Path(tempfile.mkdtemp(prefix="glioma-dist-processes-"))
    port = free_port()
    processes = []
    for rank in range(num_processes):
        launch = (
            {}
            if num_processes == 1
            else {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(num_processes),
                "MASTER_PORT": str(port),
                "LOCAL_WORLD_SIZE": str(num_processes),
                "MASTER_ADDR": "127.0.0.1",
            }
        )
        variables = {"ACCELERATE_USE_CPU": "true", **launch, **(environment or {})}
        given = (rank, folder, variables, function, arguments, python)
        processes.append(context.Process(target=_enter, args=given))
        processes[-1].start()
    return Started(processes, folder, timeout)


def run(function: Callable, *arguments: Any, **how: Any) -> list[Any]:
    """What `function(*arguments)` returned in each process of a launch; all of them must end well."""
    ended = start(function, *arguments, **how).wait()
    assert [end.exit_code for end in ended] == [0] * len(ended), "\n".join(end.stderr[-3000:] for end in ended)
    return [end.value for end in ended]


def command(script: str, *arguments: object, folder: Path | None = None, **how: Any) -> Ended:
    """Run a script of the repository (train.py), or a command of the program (shards inspect), as one process, in
    `folder`."""
    (ended,) = start(_run_script, script, [str(argument) for argument in arguments], folder, **how).wait()
    return ended


def type_in(block: str, folder: Path, real_launcher: bool = False) -> list[Ended]:
    """Run the lines of a page's block of commands in `folder`, each of which must end well.

    No line needs a new interpreter: `glioma-dist` runs in a forked process with its libraries imported, and so does
    what `accelerate launch` starts as one process. real_launcher: the first launch is accelerate's own.
    """
    ended = []
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        launched = re.fullmatch(r"accelerate launch (?:--quiet )?--config_file (\S+) (.+)", shlex.join(words))
        if launched and real_launcher:
            real_launcher = False
            each = _in_a_shell(line, folder)
        elif launched:
            assert (folder / launched[1]).samefile(REPOSITORY / "accelerate_configs" / "cpu.yaml"), line
            script, *arguments = shlex.split(launched[2])
            each = command(script, *arguments, folder=folder)
        else:
            assert words[0] == "glioma-dist", line
            # A command of two words, such as `shards inspect`.
            each = command(words[1], *words[2:], folder=folder)
        assert each.exit_code == 0, f"{line}\n{each.stdout}\n{each.stderr}"
        ended.append(each)
    return ended


def _in_a_shell(line: str, folder: Path) -> Ended:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    return Ended(done.returncode, None, done.stdout, done.stderr)


def train_here(config: TrainConfig) -> tuple[int, int]:
    """Train in this process of a launch. Returns its rank and the number of processes."""
    from glioma_dist.distributed.context import DistributedContext
    from glioma_dist.training.loop import train

    here = DistributedContext.start(config.scale.timeout_s)
    train(config, here)
    return here.rank, here.num_processes


def start_fp16() -> Any:
    """A runtime that computes in fp16 with a loss scale that grows every second step."""
    import torch

    from glioma_dist.distributed.context import DistributedContext

    here = DistributedContext.start()
    here.accelerator.state._mixed_precision = "fp16"
    here.accelerator.native_amp = True
    here.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=FIRST_SCALE, growth_interval=2)
    return here


def change_loss(patch: Any, in_training: bool, function: Callable) -> None:
    """Have the loss of training steps, or of validations, be `function(own, *its arguments)`."""
    import torch

    from glioma_dist.losses import segmentation

    own = segmentation.segmentation_loss

    def changed(*arguments: Any, **named: Any) -> Any:
        if torch.is_grad_enabled() != in_training:
            return own(*arguments, **named)
        return function(partial(own, **named), *arguments)

    patch.setattr(segmentation, "segmentation_loss", changed)


def load_benchmark(name: str) -> Iterator[ModuleType]:
    """A script of benchmarks/ as a module, for as long as the generator stands: the body of a fixture."""
    path = REPOSITORY / "benchmarks" / f"{name}.py"
    name = f"benchmarks_{name}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


def _run_script(script: str, arguments: list[str], folder: Path | None = None) -> None:
    if folder is not None:
        os.chdir(folder)
    if not script.endswith(".py"):
        from glioma_dist.cli.program import main

        sys.argv = ["glioma-dist", *script.split(), *arguments]
        main()
        return
    sys.argv = [script, *arguments]
    runpy.run_path(str(REPOSITORY / script), run_name="__main__")


def _enter(
    rank: int,
    folder: Path,
    variables: dict[str, str],
    function: Callable,
    arguments: tuple,
    python: Path | None,
) -> None:
    import torch

    if python is not None:
        sys.executable = str(python)

    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT), number)
    # A launch of its own: a signal to the group reaches it and its workers, and not the tests.
    os.setsid()
    os.environ.update(variables)
    try:
        value = function(*arguments)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        sys.exit(1)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    (folder / f"{rank}.value").write_bytes(pickle.dumps(value))
