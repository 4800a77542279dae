"""The learning rate of each step: a function of the settings and the step's number alone, so a resumed run, on any
number of processes, has the rates of one that was not interrupted. Does not import torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from glioma_dist.config import TrainConfig
from glioma_dist.config.recipe import LrSchedule, schedule_steps

ONE_CYCLE_START = 1 / 25
ONE_CYCLE_WARMUP = 0.3
"""Where one-cycle begins, as a share of the highest rate, and the share of its steps in which it rises: those of
PyTorch's OneCycleLR and of fastai."""


@dataclass(frozen=True)
class LearningRate:
    """The rate of the decoder's parameters; an encoder's is a multiple of it (`--encoder-lr-factor`)."""

    highest: float
    schedule: LrSchedule = "constant"
    warmup_steps: int = 0
    num_steps: int | None = None
    """Of the whole schedule, warm-up included. Later steps have the rate of its end."""
    min_factor: float = 0.0
    """The rate at the end of the schedule, as a share of the highest."""
    poly_power: float = 0.9

    @classmethod
    def of(cls, config: TrainConfig, num_steps: int) -> LearningRate:
        """num_steps: of the run. Raises InputError if the schedule does not fit it."""
        steps, warmup = schedule_steps(config, num_steps), config.warmup_steps
        if warmup is None:
            warmup = round(ONE_CYCLE_WARMUP * steps) if config.lr_schedule == "one-cycle" and steps else 0
        return cls(config.lr, config.lr_schedule, warmup, steps, config.min_lr_factor, config.poly_power)

    @property
    def is_constant(self) -> bool:
        return self.schedule == "constant" and self.warmup_steps == 0

    def at(self, step: int) -> float:
        """The rate of the step after `step` steps.

        Sources: cosine: Loshchilov & Hutter 2017 (arXiv 1608.03983), section 3, one cycle. poly: Chen et al. 2018
        (arXiv 1606.00915), section 4.1. one-cycle: Smith & Topin 2018 (arXiv 1708.07120), with fastai's cosines.
        """
        if step < self.warmup_steps:
            return self.highest * self._rise(step)
        if self.schedule == "constant" or self.num_steps is None:
            return self.highest
        progress = min(1.0, (step - self.warmup_steps) / (self.num_steps - self.warmup_steps))
        share = (1 - progress) ** self.poly_power if self.schedule == "poly" else _half_cosine(progress)
        return self.highest * (self.min_factor + (1 - self.min_factor) * share)

    def _rise(self, step: int) -> float:
        """The share of the highest rate in the warm-up: a straight line whose first step is above 0, and whose end,
        the highest rate, is the step after it. one-cycle rises by a cosine."""
        if self.schedule != "one-cycle":
            return (step + 1) / (self.warmup_steps + 1)
        return 1 - (1 - ONE_CYCLE_START) * _half_cosine(step / self.warmup_steps)


def _half_cosine(progress: float) -> float:
    """Falls from 1 to 0 while `progress` grows from 0 to 1."""
    return (1 + math.cos(math.pi * progress)) / 2
