"""A process that waits for another without end: the one that is awaited is named, with the place and what it does."""

import os
import re
import signal
import socket
import time
from dataclasses import replace

from helpers import rows, start, tiny_config, train_here

from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import ExitCode

TIMEOUT = 6
STEPS_BEFORE = 2


def train_without_data(config) -> None:
    """Train; the second process's storage never answers at its third step."""
    read, count = ShardReader.read, 0

    def reading(self, *given, **named):
        nonlocal count
        count += 1
        if os.environ["RANK"] == "1" and count > STEPS_BEFORE * config.batch_size // 2:
            time.sleep(3600)
        return read(self, *given, **named)

    ShardReader.read = reading
    run_command(lambda: train_here(config))


def test_a_process_that_waits_for_its_data_is_named_with_the_step(shards, tmp_path):
    config = tiny_config(shards, tmp_path / "run", val=None)
    config = replace(config, scale=replace(config.scale, timeout_s=TIMEOUT))
    started = start(train_without_data, config, num_processes=2)
    try:
        started.processes[0].join(200)
        assert started.processes[0].exitcode == ExitCode.UNAVAILABLE
    finally:
        os.kill(started.processes[1].pid, signal.SIGKILL)
    said = started.wait()[0].stderr
    step = len(rows(config.out)) + 1
    lost = f"rank 1 on {socket.gethostname()} did not reach the agreement before step {step} within {TIMEOUT} s"
    found = re.search(rf"^error: {re.escape(lost)} \(waiting for the data of step {step}, for (\d+) s\); ", said, re.M)
    assert found, said
    assert int(found[1]) >= TIMEOUT
    assert said.endswith(f"(checkpoint saved at step {step - 1})\n")
