"""Measures steps of training from outside."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from glioma_dist.data.loader import Batch
from glioma_dist.training import loop
from glioma_dist.training.trainer import Trainer


@contextmanager
def watched_steps(watch: Callable[[Callable[[], Any], Trainer, int], Any]) -> Generator[None]:
    """Context manager in which `watch` is called in place of each training step of this process. `watch` gets a
    function that takes the step, the trainer and the number of the step, and returns what that function returns."""
    original = loop.train_step

    def watched(trainer: Trainer, batch: Batch, step: int) -> Any:
        return watch(lambda: original(trainer, batch, step), trainer, step)

    loop.train_step = watched
    try:
        yield
    finally:
        loop.train_step = original
