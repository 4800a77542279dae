"""The context of a call from Python: joined when the call begins, and let go of when it ends.

A command's process belongs to the command. A process that imports the package belongs to its user, who may be in a
notebook: a call leaves no handler, no filter of warnings, no state of accelerate and no setting of the C library.
"""

from __future__ import annotations

import ctypes
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

from accelerate.state import AcceleratorState, GradientState, PartialState

from glioma_dist.distributed.context import SECONDS_TO_ANSWER, DistributedContext
from glioma_dist.distributed.freed_memory import MALLOPT_MMAP_MAX, MALLOPT_TRIM_THRESHOLD
from glioma_dist.distributed.lost_processes import find_loss

DEFAULT_MMAP_MAX, DEFAULT_TRIM_THRESHOLD = 65_536, 128 * 1024
"""Of glibc's malloc (mallopt(3))."""

_one_at_a_time = threading.RLock()
_of_the_launch: DistributedContext | None = None


@contextmanager
def given_or_own(
    context: DistributedContext | None, seconds_to_answer: float = SECONDS_TO_ANSWER
) -> Generator[DistributedContext]:
    """Within it, the process is what `context` says, or, where that is None, has joined the launch that it is part of.

    Calls from several threads wait for each other. The processes of a launch of several stay connected from one call
    to the next: to disconnect and connect again, each would have to wait until all others have done the first.

    Raises InputError as `DistributedContext.start` does.
    """
    if context is not None:
        with _naming_lost_processes(context), _without_what_was_prepared(context):
            yield context
        return
    with _one_at_a_time:
        if _of_the_launch is not None:
            launched = replace(_of_the_launch, seconds_to_answer=seconds_to_answer)
            with _naming_lost_processes(launched), _without_what_was_prepared(launched):
                yield launched
            return
        belongs_to_user = PartialState._shared_state != {}
        with warnings.catch_warnings():
            own = _start(seconds_to_answer)
            keeps_freed_memory, is_alone = own.device.type == "cpu", own.num_processes == 1
            try:
                with _naming_lost_processes(own):
                    yield own
            finally:
                if is_alone and not belongs_to_user:
                    _let_go()
                if keeps_freed_memory:
                    _give_back_freed_memory()


@contextmanager
def _naming_lost_processes(context: DistributedContext) -> Generator[None]:
    """Within it, an error of the communication becomes one that names the process that ended or does not answer.
    Afterwards nobody waits for this process, and it gives no more signs of life."""
    context.whereabouts.is_paused = False
    try:
        yield
    except RuntimeError as error:
        ending = context.explain(error) if find_loss(str(error)) is not None else None
        if ending is None:
            raise
        raise ending from error
    finally:
        context.whereabouts.is_paused = True


@contextmanager
def _without_what_was_prepared(context: DistributedContext) -> Generator[None]:
    """Afterwards the accelerator holds the models and optimizers that it held before: it would keep those of each call
    in memory, and in fp16 treat the optimizers of earlier calls as of this one."""
    held = {name: list(getattr(context.accelerator, name)) for name in ("_models", "_optimizers")}
    try:
        yield
    finally:
        for name, before in held.items():
            getattr(context.accelerator, name)[:] = before


def _start(seconds_to_answer: float) -> DistributedContext:
    global _of_the_launch
    own = DistributedContext.start(seconds_to_answer)
    if own.num_processes > 1:
        _of_the_launch = own
    return own


def _let_go() -> None:
    """Have accelerate forget its settings, which it reads once a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _give_back_freed_memory() -> None:
    """Undo `keep_freed_memory`, and give back to the system what was kept (glibc)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):
        libc.mallopt(MALLOPT_MMAP_MAX, DEFAULT_MMAP_MAX)
        libc.mallopt(MALLOPT_TRIM_THRESHOLD, DEFAULT_TRIM_THRESHOLD)
        libc.malloc_trim(0)
