"""Give each attempt of a launch its own store, for torchrun and `accelerate launch` with restarts.

The launcher's agent keeps one TCPStore for all attempts (`TORCHELASTIC_USE_AGENT_STORE`). The processes of the second
attempt would find the addresses of the first attempt's processes, which have ended, and fail to connect
(https://github.com/pytorch/pytorch/issues/135712). The restart count does not identify an attempt, because each machine
counts its own restarts. So rank 0 draws a name for the attempt and sends it to each living process.
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
"""For `init_process_group`, after a call of `register`."""
SECONDS_BETWEEN_LOOKS = 0.02


def register() -> None:
    """Register `INIT_METHOD` with PyTorch. May be called more than once."""
    try:
        register_rendezvous_handler(SCHEME, _meet)
    except RuntimeError:  # already registered; PyTorch has no function to ask
        return


def _meet(url: str, timeout: timedelta, **options: object) -> Iterator[tuple[Store, int, int]]:
    """A rendezvous handler for PyTorch: as `env://`, but each attempt of an elastic launch gets its own store."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        yield from rendezvous("env://", timeout=timeout, **options)
        return
    rank, num_processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    launch_store = TCPStore(address, port, num_processes, is_master=False, timeout=timeout)
    attempt = agree_on_attempt(launch_store, rank, num_processes, timeout)
    yield PrefixStore(f"glioma-dist/{attempt}", launch_store), rank, num_processes


def agree_on_attempt(store: Store, rank: int, num_processes: int, timeout: timedelta) -> str:
    """Return a name that only the living processes of this attempt share.

    Each rank except 0 sends a request under a random key of its own, so no other process can take the answer. Requests
    of processes that have ended are answered, too; nobody reads these answers.

    Raises torch.distributed.DistStoreError if the others do not answer within `timeout`.
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
            raise DistStoreError(f"no answer from the ranks {', '.join(missing)} within {timeout}")
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return mine
