"""A store of their own for the processes of one attempt, where torchrun or `accelerate launch` starts a run again.

The launcher's agent keeps one TCPStore for all attempts (`TORCHELASTIC_USE_AGENT_STORE`), so that the processes of the
second attempt find the addresses that those of the first left there, and connect to nobody
(https://github.com/pytorch/pytorch/issues/135712). The number of the attempt tells no attempts apart: each machine
counts its own. So the first process draws a name for the attempt and tells it to each process that is alive.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from datetime import timedelta

from torch.distributed import DistStoreError, PrefixStore, Store, TCPStore, register_rendezvous_handler, rendezvous

SCHEME = "glioma-dist"
INIT_METHOD = f"{SCHEME}://"
"""For `init_process_group`; `register` comes first."""
SECONDS_BETWEEN_LOOKS = 0.02


def register() -> None:
    """Make PyTorch know `INIT_METHOD`. May be called again."""
    try:
        register_rendezvous_handler(SCHEME, _meet)
    except RuntimeError:  # registered before: PyTorch has no way to ask
        return


def _meet(url: str, timeout: timedelta, **options: object) -> Iterator[tuple[Store, int, int]]:
    """A rendezvous handler of PyTorch: its `env://`, with a store of its own for each attempt of an elastic launch."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        yield from rendezvous("env://", timeout=timeout, **options)
        return
    rank, num_processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    launch_store = TCPStore(address, port, num_processes, is_master=False, timeout=timeout)
    attempt = agree_on_attempt(launch_store, rank, num_processes, timeout)
    yield PrefixStore(f"glioma-dist/{attempt}", launch_store), rank, num_processes


def agree_on_attempt(store: Store, rank: int, num_processes: int, timeout: timedelta) -> str:
    """A name that the living processes of a launch share, and no process that ended before.

    Each process but the first asks under a name that it has just drawn, so that the answer can only be for itself.
    What an ended process asked is answered, too, and read by nobody.

    Raises torch.distributed.DistStoreError where the others do not come within `timeout`.
    """
    mine = secrets.token_hex(8)
    if rank:
        store.set(f"attempt/asked_by/{rank}", mine)
        attempt = store.get(f"attempt/answer_to/{mine}").decode()
        store.add(f"attempt/{attempt}/informed", 1)
        return attempt
    until = time.monotonic() + timeout.total_seconds()
    answered: dict[int, str] = {}
    while store.add(f"attempt/{mine}/informed", 0) < num_processes - 1:
        for other in range(1, num_processes):
            key = f"attempt/asked_by/{other}"
            if store.check([key]) and answered.get(other) != (asked := store.get(key).decode()):
                store.set(f"attempt/answer_to/{asked}", mine)
                answered[other] = asked
        if time.monotonic() > until:
            missing = [str(other) for other in range(1, num_processes) if other not in answered]
            raise DistStoreError(f"no word from the processes {', '.join(missing)} within {timeout}")
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return mine
