"""Who this process is among the processes of a run, and the few things that processes tell each other."""

from __future__ import annotations

import os
import signal
import socket
import warnings
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, gather_object

from glioma_dist.distributed import rendezvous
from glioma_dist.distributed.freed_memory import keep_freed_memory
from glioma_dist.distributed.joining import SECONDS_OF_GRACE, bounded, check_place, joining
from glioma_dist.distributed.launch import check_launch
from glioma_dist.distributed.leaving import call_at_terminate, leave_at_exit, shorten_watchdog_wait
from glioma_dist.distributed.lost_processes import Loss, find_loss
from glioma_dist.distributed.network import choose_interface
from glioma_dist.distributed.run_command import as_run_error, end_at_once
from glioma_dist.distributed.signals import get_signal_at_parents_death
from glioma_dist.distributed.whereabouts import Whereabouts
from glioma_dist.errors import InputError, RunError, StopRequested, UnavailableError, as_error, one_line

SECONDS_TO_ANSWER = 600.0
"""Seconds after which a process or a worker that does not answer counts as lost."""
WORD_OF_AN_END = "glioma_dist/ended"
"""Key in the launch's store under which a process records why it ends."""
ADVICE_ON_LOST = (
    "its own lines, if there are any, say why; if there are none, check that machine and the network to it; then run "
    "the same command again"
)
WATCHDOG = "NCCL's watchdog ended this process"
WATCHDOG_ENDED = (
    f"{WATCHDOG}: another process of this run ended or did not answer, or a GPU failed; the "
    "lines above say which. Run the same command again"
)


@dataclass(frozen=True)
class DistributedContext:
    """One process of a run. Made once, by `DistributedContext.start`, and handed to whatever needs it."""

    accelerator: Accelerator
    seconds_to_answer: float = SECONDS_TO_ANSWER
    """How long processes and workers wait for one another."""
    host_group: dist.ProcessGroup | None = None
    """All processes, over gloo: what the processes tell each other beside tensors of the device."""
    whereabouts: Whereabouts = field(default_factory=Whereabouts)
    """What this process is doing, told to the others."""

    @classmethod
    def start(cls, seconds_to_answer: float = SECONDS_TO_ANSWER) -> DistributedContext:
        """Join the other processes of the launch. Precision and engine are accelerate's own settings.

        Raises InputError where the launcher started another number of processes than accelerate believes: each
        would then train a model of its own, as happens with FSDP or MULTI_GPU and `use_cpu: true`.
        """
        check_place(os.environ)
        check_launch(os.environ)
        choose_interface(os.environ)
        # Batch norm takes its statistics over all processes, so buffers are equal without being sent around; and
        # validation, where processes may have unequal numbers of images, must not wait for one another.
        engine = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        rendezvous.register()
        patience = InitProcessGroupKwargs(
            init_method=rendezvous.INIT_METHOD, timeout=timedelta(seconds=seconds_to_answer)
        )
        # PyTorch renamed it; accelerate has only the old name.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        # Said of depth-wise convolutions, whose stride along an axis of length 1 has no meaning.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        if os.environ.get("WORLD_SIZE", "1") != "1":
            shorten_watchdog_wait(os.environ)
        with joining(os.environ, seconds_to_answer):
            accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[engine, patience])
        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            if not accelerator.is_fsdp2:
                raise InputError(
                    "this launch asks for FSDP, which accelerate would leave out here: it takes GPUs, and "
                    "`fsdp_version: 2` (accelerate_configs/fsdp2.yaml); on a CPU launch cpu_2_processes.yaml"
                )
            # Weights stay in fp32 and autocast narrows what is computed, as with DDP, so that both give the same.
            accelerator.state.fsdp_plugin.mixed_precision_policy = None
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        if "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
            # `accelerate launch` of one process ends on SIGTERM without handing it on, and no launcher that is killed
            # ends its processes: they would train on beside those of the next start.
            get_signal_at_parents_death(signal.SIGTERM)
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched != accelerator.num_processes:
            raise InputError(
                f"the launcher started {launched} processes but accelerate sees "
                f"{accelerator.num_processes}: take a file of accelerate_configs/, or launch without "
                "`use_cpu: true` and without MULTI_CPU"
            )
        group, whereabouts = None, Whereabouts()
        if accelerator.num_processes > 1:
            with joining(os.environ, seconds_to_answer):
                group = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds_to_answer))
                # It ends with a barrier: a connected process could fail and end while two others still connect.
                whereabouts = _join_whereabouts(accelerator, group)
            leave_at_exit()
        here = cls(accelerator, seconds_to_answer, group, whereabouts)
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            call_at_terminate(here.end_as_watchdog)
        return here

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

    def agree(self, problem: RunError | None, *marks: bool) -> list[bool]:
        """Return where no process has a problem; else raise the same error on all of them.

        All processes call it together, each with what it met. A failure goes before a request to stop. Returns for each
        of `marks` whether any process has set it.
        """
        if self.num_processes == 1:
            if problem is not None:
                raise problem
            return list(marks)
        self.whereabouts.meet()
        codes = torch.tensor([0 if problem is None else int(problem.exit_code), *marks])
        dist.all_reduce(codes, dist.ReduceOp.MAX, self.host_group)
        code, *marked = codes.tolist()
        if not code:
            self.whereabouts.compute()
            return list(map(bool, marked))
        found: list = [None] * self.num_processes
        told = problem and (int(problem.exit_code), one_line(problem), isinstance(problem, StopRequested))
        dist.all_gather_object(found, told, self.host_group)
        exit_code, message, _ = min(filter(None, found), key=lambda each: each[2])
        shared = as_error(exit_code, message)
        shared.is_shared = True
        raise shared from problem

    def explain(self, error: BaseException) -> RunError | None:
        """What ends this process because of `error`; None where that is a fault of the program.

        Where another process ended first, its reason is taken; where this one ends first, it records its own.
        """
        ending = UnavailableError(str(error)) if isinstance(error, _WatchdogError) else None
        ending = ending or as_run_error(error, self.seconds_to_answer)
        if self.num_processes == 1 or ending is None or ending.is_shared:
            return ending
        is_watchdog = isinstance(error, _WatchdogError)
        loss = find_loss(str(error)) if isinstance(ending, UnavailableError) and ending is not error else None
        loss = None if is_watchdog else loss  # its words say nothing
        # The launch's store outlives a process that ends, unless it was the first.
        without_store = ending if loss is None else self._lost(self.whereabouts.first_host(), loss)
        try:
            store = dist.distributed_c10d._get_default_store()
            # Of a first process that was stopped, it never answers.
            with bounded(SECONDS_OF_GRACE, without_store):
                missing = None
                if is_watchdog or loss is not None:
                    missing = self.whereabouts.find_missing(
                        loss, self.seconds_to_answer, lambda: store.check([WORD_OF_AN_END])
                    )
                if ending is not error and store.check([WORD_OF_AN_END]):
                    exit_code, _, message = store.get(WORD_OF_AN_END).decode().partition(" ")
                    return as_error(int(exit_code), message)
                if missing is not None:
                    who = f"{WATCHDOG}: {missing}" if is_watchdog else missing
                    ending = UnavailableError(f"{who}; {ADVICE_ON_LOST}")
                store.set(WORD_OF_AN_END, f"{int(ending.exit_code)} {one_line(ending)}")
        except RuntimeError:
            return without_store
        except ValueError:  # the connections are closed
            return ending
        return ending

    def _lost(self, who: str, loss: Loss) -> UnavailableError:
        """The error for processes that are lost."""
        how = "ended" if loss is Loss.ENDED else f"did not answer for {self.seconds_to_answer:g} s"
        return UnavailableError(f"{who} {how}; {ADVICE_ON_LOST}")

    def end_as_watchdog(self) -> None:
        """End this process in place of NCCL's watchdog thread, which has printed the reason. If another process
        recorded the reason of its own end, this process ends with that."""
        end_at_once(self.explain(_WatchdogError(WATCHDOG_ENDED)) or UnavailableError(WATCHDOG_ENDED))


def _join_whereabouts(accelerator: Accelerator, group: dist.ProcessGroup) -> Whereabouts:
    """Tell the others the name of this machine, and begin to give signs of life."""
    hosts: list[str] = [""] * accelerator.num_processes
    dist.all_gather_object(hosts, socket.gethostname(), group)
    whereabouts = Whereabouts(accelerator.process_index, hosts, dist.distributed_c10d._get_default_store())
    whereabouts.tell()
    dist.barrier(group)
    whereabouts.start()
    return whereabouts


class _WatchdogError(RuntimeError):
    """Stands for the error of the watchdog, which Python does not see."""
