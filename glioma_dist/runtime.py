"""Who this process is among the processes of a run, and the few things that processes tell each other."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, gather_object

from glioma_dist.errors import InputError
from glioma_dist.launch import check_launch

MALLOPT_TRIM_THRESHOLD, MALLOPT_MMAP_MAX = -1, -4
"""Numbers of mallopt's parameters, from glibc's malloc.h."""
SIGN_OF_A_LOST_WORKER = "DataLoader worker (pid"
"""In PyTorch's error when a process that reads data was killed."""
SIGNS_OF_A_LOST_PROCESS = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting")
"""In what gloo says."""
TIME_TO_ANSWER = timedelta(minutes=15)
"""After which a process that says nothing is taken for lost."""
PRCTL_PARENT_DEATH_SIGNAL = 1
"""From Linux's sys/prctl.h."""
SECONDS_FOR_FIRST_PROCESS_TO_SPEAK = 5


@dataclass(frozen=True)
class Runtime:
    """One process of a run. Made once, by `Runtime.start`, and handed to whatever needs it."""

    accelerator: Accelerator

    @classmethod
    def start(cls) -> Runtime:
        """Join the other processes of the launch. Precision and engine are accelerate's own settings.

        Raises InputError where the launcher started another number of processes than accelerate believes: each
        would then train a model of its own, as happens with FSDP or MULTI_GPU and `use_cpu: true`.
        """
        check_launch(os.environ)
        # Batch norm takes its statistics over all processes, so buffers are equal without being sent around; and
        # validation, where processes may have unequal numbers of images, must not wait for one another.
        engine = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        patience = InitProcessGroupKwargs(timeout=TIME_TO_ANSWER)
        # PyTorch renamed it; accelerate has only the old name.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        # Said of depth-wise convolutions, whose stride along an axis of length 1 has no meaning.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[engine, patience])
        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            if not accelerator.is_fsdp2:
                raise InputError(
                    "this launch asks for FSDP, which accelerate would leave away here: it takes GPUs, and "
                    "`fsdp_version: 2` (accelerate_configs/fsdp2.yaml); on a CPU launch cpu_2_processes.yaml"
                )
            # Weights stay in fp32 and autocast narrows what is computed, as with DDP, so that both give the same.
            accelerator.state.fsdp_plugin.mixed_precision_policy = None
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        if "ACCELERATE_MIXED_PRECISION" in os.environ:
            stop_with_launcher()
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched != accelerator.num_processes:
            raise InputError(
                f"the launcher started {launched} processes but accelerate sees "
                f"{accelerator.num_processes}: take a file of accelerate_configs/, or launch without "
                "`use_cpu: true` and without MULTI_CPU"
            )
        return cls(accelerator)

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def num_processes(self) -> int:
        return self.accelerator.num_processes

    @property
    def num_local_processes(self) -> int:
        """Of this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of `values` (any shape, float) over all processes, in fp64, on the CPU."""
        total = self.accelerator.reduce(values.detach().double(), reduction="sum")
        return total.cpu()

    def gather_objects(self, items: list[Any]) -> list[Any]:
        """The lists of all processes, joined in the order of their ranks."""
        return gather_object(items) if self.num_processes > 1 else items

    def wait(self) -> None:
        """Until every process is here."""
        self.accelerator.wait_for_everyone()


def keep_freed_memory() -> None:
    """Have the C library keep large blocks that tensors free, where it can be told so (glibc, mallopt(3)).

    By default it gives each back to the system and asks for it anew, page by page: a quarter of a step's time on a
    CPU (docs/log.md).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(MALLOPT_MMAP_MAX, 0)
        libc.mallopt(MALLOPT_TRIM_THRESHOLD, -1)


def stop_with_launcher() -> None:
    """Have the system send SIGTERM when the launcher that started this process ends, where it can (Linux, prctl(2)).

    `accelerate launch` of one process ends on SIGTERM without handing it on, and the training would go on unseen.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(PRCTL_PARENT_DEATH_SIGNAL, signal.SIGTERM)


class StopSignal:
    """Notices SIGTERM, which clouds and schedulers send before they take a machine away, and Ctrl-C, so that the run
    can be saved.

    Use as a context; `asked` turns true when the signal has come.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.signal(number, self._notice) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _notice(self, number: int, _frame: object) -> None:
        self.asked = True
        signal.signal(number, self._before[number])  # who asks twice does not want to wait


def run_command(function: Callable[[], None]) -> None:
    """Run an entry point: an InputError becomes one line on stderr and exit code 2, an interrupt exit code 130.

    Most of these errors are seen by every process of a launch at once. The first then speaks for all, and the
    others give it time to, for the launcher ends them as soon as one has ended. An error that only one of the others
    sees (a sample of its own that cannot be read) is spoken by that one, after the same few seconds.
    """
    try:
        function()
    except InputError as error:
        if int(os.environ.get("RANK", "0")) > 0:
            time.sleep(SECONDS_FOR_FIRST_PROCESS_TO_SPEAK)
        sys.stderr.write(f"error: {error}\n")
        sys.stderr.flush()
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        sys.stderr.write(f"error: {error.filename}: {error.strerror}; check the path, its permissions, and the space\n")
        sys.exit(2)
    except torch.OutOfMemoryError as error:
        sys.stderr.write(f"error: out of memory ({error}); give a smaller --batch-size or --data.size\n")
        sys.exit(2)
    except RuntimeError as error:
        if SIGN_OF_A_LOST_WORKER in str(error):  # raised wherever this process was at that moment
            what = " ".join(str(error).split())
            sys.stderr.write(f"error: {what} Is memory full? Give fewer --data.workers; the same command goes on\n")
            sys.exit(2)
        if not any(sign in str(error) for sign in SIGNS_OF_A_LOST_PROCESS):
            raise
        sys.stderr.write("error: another process of this run ended; its own line says why; the same command goes on\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        sys.exit(130)
