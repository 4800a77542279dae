"""Whether the machines of a launch share the folder of a run: found out before the first step."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path

from glioma_dist.errors import InputError
from glioma_dist.files import cannot_write, remove_quietly

SECONDS_TO_APPEAR = 5.0
"""A network file system shows what another machine wrote a little later."""
SECONDS_BETWEEN_LOOKS = 0.2


def find_blind_hosts(
    folder: Path, is_main: bool, gather: Callable[[list], list], is_private: bool = False
) -> list[str]:
    """The machines that do not see what the first process writes into `folder`. All processes call it together.

    gather: joins the lists of all processes (`DistributedContext.gather_objects`). is_private: of the first process;
    nothing is looked for. Raises InputError, on all processes, if the first cannot write.
    """
    # A name that is removed at the next start, should a kill leave it there.
    sign, failure = folder / f".{secrets.token_hex(8)}.partial", None
    if is_main and not is_private:
        try:
            sign.touch()
        except OSError as error:
            failure = cannot_write(folder, error)
    (name, failure, is_private), *_ = gather([(sign.name, failure, is_private)])
    if is_private:
        return []
    try:
        if failure is not None:
            failure.is_shared = True
            raise failure
        is_seen = _appears(folder / name)
        told = gather([(socket.gethostname(), is_seen)])
    finally:
        if is_main:
            remove_quietly(sign)
    return list(dict.fromkeys(host for host, is_seen in told if not is_seen))


def describe_blind_hosts(folder: Path, hosts: list[str], is_needed: bool) -> str:
    """A line about machines that do not share a run's folder. is_needed: whether each process writes there.

    Raises InputError, the same on all processes, if it is needed.
    """
    where = (
        f"--out {folder}: {', '.join(hosts[:3])} {'does' if len(hosts) == 1 else 'do'} not see what the first machine"
    )
    if is_needed:
        error = InputError(
            f"{where} writes there, and with FSDP2 each machine writes a part of a checkpoint; give a folder that all "
            "machines share"
        )
        error.is_shared = True
        raise error
    return (
        f"{where}, {socket.gethostname()}, writes there; to resume, each machine needs a copy of last/ from there; or "
        "give a folder that all machines share"
    )


def _appears(path: Path) -> bool:
    until = time.monotonic() + SECONDS_TO_APPEAR
    while not path.exists():
        if time.monotonic() > until:
            return False
        # A network file system asks its server again for a folder that is listed.
        if path.parent.is_dir():
            os.listdir(path.parent)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return True
