"""Which faults come, and when: drawn from a seed, so that the same seed gives the same faults."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

KINDS = {
    "rank": ("SIGKILL", "SIGTERM"),
    "worker": ("SIGKILL", "SIGTERM"),
    "launcher": ("SIGKILL", "SIGTERM"),
    "disk": ("full",),
    "checkpoint": ("cut", "flipped bit"),
    "store": ("resets", "stalls", "answers 503"),
}
"""Kind of fault -> its variants. Drawn so that six in a row are of six kinds."""
AGENT = "torchrun's agent"
"""In a forked process, with forked processes: quicker to start."""
LAUNCHERS = {"torchrun": 1, "accelerate launch": 1, AGENT: 2}
"""Launcher -> how often it is drawn."""
MOMENTS = ("start", "step", "file call")
SHARE_OF_STARTS, SHARE_OF_STEPS, SHARE_OF_LAUNCHES = 0.15, 0.45, 1 / 6
SHARE_WITHOUT_CHANGE = 0.6
"""The first faults, after which the number of processes stays the same."""
PROCESSES = (1, 2, 3)
MOST_STEPS, MOST_CALLS = 4, 120


@dataclass(frozen=True)
class PlannedFault:
    """One fault.

    number: from 1. kind, variant: of `KINDS`. moment: of `MOMENTS`. steps: batches that the start delivers before it
    (moment "step"). call: which of the first process's writes below the run's folder it comes before (moment "file
    call"). place, size, delay: from 0 to 1: which rank, worker, byte or outage; how far into the step or the start.
    launcher: what starts the processes, or None, where they are forked. processes: how many the next start has.
    """

    number: int
    kind: str
    variant: str
    moment: str
    steps: int
    call: int
    place: float
    size: float
    delay: float
    launcher: str | None
    processes: int

    @property
    def name(self) -> str:
        """For the table."""
        return {
            "rank": f"{self.variant} to a rank",
            "worker": f"{self.variant} to a worker",
            "launcher": f"{self.variant} to the launcher",
            "disk": "full disk",
            "checkpoint": f"checkpoint: {self.variant}",
            "store": f"store {self.variant}",
        }[self.kind]

    @property
    def when(self) -> str:
        """For the table."""
        if self.moment == "file call":
            return f"before write {self.call}"
        return "during the start" if self.moment == "start" else f"after batch {self.steps}"


def by_agent(fault: PlannedFault) -> PlannedFault:
    """The same fault with the agent as the launcher.

    A signal to it comes after a batch. While torchrun's agent starts its processes, it does not know them yet and ends
    without them (PyTorch 2.15: `LocalElasticAgent._pcontext`); a forked agent then waits for them, and they for it.
    """
    moment = "step" if (fault.kind, fault.moment) == ("launcher", "start") else fault.moment
    return replace(fault, launcher=AGENT, moment=moment)


def draw(seed: int, count: int) -> list[PlannedFault]:
    """`count` faults. Each six in a row are of six kinds; the last one changes the number of processes."""
    generator = random.Random(f"chaos {seed}")
    kinds: list[str] = []
    while len(kinds) < count:
        kinds += generator.sample(list(KINDS), len(KINDS))
    faults, processes = [], 2
    for number, kind in enumerate(kinds[:count], 1):
        is_launched = kind == "launcher" or generator.random() < SHARE_OF_LAUNCHES
        moments = MOMENTS[:2] if is_launched else MOMENTS  # nobody can hold the calls of processes that others start
        weights = (SHARE_OF_STARTS, SHARE_OF_STEPS, 1 - SHARE_OF_STARTS - SHARE_OF_STEPS)[: len(moments)]
        changes = number > math.ceil(SHARE_WITHOUT_CHANGE * count) and (number == count or generator.random() < 0.5)
        if changes:
            processes = generator.choice([each for each in PROCESSES if each != processes])
        fault = PlannedFault(
            number,
            kind,
            generator.choice(KINDS[kind]),
            generator.choices(moments, weights)[0],
            generator.randint(1, MOST_STEPS),
            generator.randint(5, MOST_CALLS),
            generator.random(),
            generator.random(),
            generator.random(),
            generator.choices(list(LAUNCHERS), LAUNCHERS.values())[0] if is_launched else None,
            processes,
        )
        faults.append(by_agent(fault) if fault.launcher == AGENT else fault)
    return faults
