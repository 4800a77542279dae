"""Faults: stores that fail, lie or answer without end; and the cache of shards."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from signal import SIGSTOP, SIGTERM

from contract import FINISHED, UNAVAILABLE, USER_ERROR, Fault
from faulty_server import FaultyServer, always, first, outage
from forks import Ended, wait_until
from inflict import SECONDS_TO_END, hurt_from_url, mount_small, start_server
from stage import SECONDS_A_RUN, Stage, at_step

GOOD_REQUESTS = 24
"""Before an outage: the index, the tables, and the samples of the first steps."""
ROOM_FOR_ONE = "48kB"
"""For the cache: a shard has some 40 kB."""
BOMB_MIB = 1000
"""Bound on memory where a store sends without end: 230 MiB beyond the libraries."""


def from_then_on(fault: str):
    """`fault` in every answer after the first good ones."""
    served = [0]

    def faults(path: str, number: int) -> str | None:
        served[0] += 1
        return fault if served[0] > GOOD_REQUESTS else None

    return faults


def outages(make, **flags: object):
    """The state of an outage is made when the run starts."""
    return lambda stage: hurt_from_url(make(), **flags)(stage)


def set_retry_after(server: FaultyServer) -> None:
    server.retry_after = "1"


def without_ranges_but_cached(stage: Stage) -> Sequence[Ended]:
    """Each shard is fetched as a whole, once."""
    flags = {"data__cache": stage.make("cache"), "data__cache_size": "1MB"}
    return hurt_from_url(always("no-range", ".tar"), **flags)(stage)


def shared_cache(stage: Stage) -> Sequence[Ended]:
    """Three trainings at once, and room for one of the shards."""
    server, cache = start_server(stage), stage.make("cache")
    flags = {"data.cache": cache, "data.cache-size": ROOM_FOR_ONE}
    launches, outs = [], []
    for number in range(3):
        stage.out = stage.make(f"run{number}")
        outs.append(stage.out)
        launches.append(stage.train(data=server.url, **flags))
    ended = [launch.wait(SECONDS_TO_END)[0] for launch in launches]
    for out in outs[1:]:
        shutil.rmtree(out)
    stage.out = outs[0]
    return ended


def poisoned_cache(stage: Stage) -> Sequence[Ended]:
    """A bit of each cached shard flips between two starts; the shards are fetched again."""
    server, cache = start_server(stage), stage.make("cache")
    flags = {"data.cache": cache, "data.cache-size": "1MB"}
    stage.train([at_step(4, SIGTERM)], data=server.url, **flags).wait(SECONDS_A_RUN)
    shards = sorted(cache.glob("*.tar"))
    assert shards
    for path in shards:
        data = bytearray(path.read_bytes())
        for place in range(600, len(data), 512):
            data[place] ^= 1
        path.write_bytes(data)
    return stage.train(data=server.url, **flags).wait(SECONDS_TO_END)


def stopped_holder(stage: Stage) -> Sequence[Ended]:
    """Another training is stopped, not killed, while it fetches a shard into the shared cache."""
    server, cache = start_server(stage), stage.make("cache")
    flags = {"data.cache": cache, "data.cache-size": "1MB"}
    server.faults, server.stall_seconds = always("stall", ".tar"), 1000
    stage.out = stage.make("other")
    holder = stage.train(data=server.url, **flags)
    wait_until(lambda: any(path.endswith(".tar") for path, _ in server.requests), SECONDS_A_RUN)
    holder.first.signal(SIGSTOP)
    server.faults = lambda path, number: None
    stage.out = stage.folder / "run"
    ended = stage.train(data=server.url, **flags).wait(SECONDS_TO_END)
    holder.first.kill_session()
    return ended


def full_cache_disk(stage: Stage) -> Sequence[Ended]:
    """The disk of the cache has no room for a shard."""
    server, cache = start_server(stage), stage.make("cache")
    mount_small(stage, cache, 2**14)
    return stage.train(data=server.url, **{"data.cache": cache, "data.cache-size": "1MB"}).wait(SECONDS_TO_END)


def _names(stage: Stage) -> None:
    """No temporary name is left in the cache."""
    cache: Path = stage.folder / "cache"
    assert not list(cache.glob("*.partial"))


def _streams() -> list[Fault]:
    lost = {"codes": (UNAVAILABLE,), "says": "train/0000", "seconds": 150, "mebibytes": BOMB_MIB}
    wrong = {**lost, "codes": (USER_ERROR,)}  # the same command would get the same answer
    fine = {"seconds": 150}
    return [
        Fault("store out for 2 s", "Streaming", outages(partial(outage, 2.0, after=GOOD_REQUESTS)), **fine),
        Fault("store out for 5 s", "Streaming", outages(partial(outage, 5.0, after=GOOD_REQUESTS)), **fine),
        Fault("store out for longer", "Streaming", outages(partial(from_then_on, "unavailable")), **lost),
        Fault("store gone", "Streaming", outages(partial(from_then_on, "refuse")), **lost),
        Fault(
            "429 with Retry-After",
            "Streaming",
            hurt_from_url(first("too-many", ".tar"), set_retry_after),
            **fine,
        ),
        Fault("body without end", "Streaming", hurt_from_url(always("endless", ".tar")), **wrong),
        Fault("chunks without end", "Streaming", hurt_from_url(always("endless-chunked", ".tar")), **wrong),
        Fault("headers without end", "Streaming", hurt_from_url(always("endless-headers", ".tar")), **lost),
        Fault("gzip bomb", "Streaming", hurt_from_url(always("gzip-bomb", ".tar")), **wrong),
        Fault(
            "index.json without end",
            "Streaming",
            hurt_from_url(always("endless", "index.json")),
            **{**wrong, "says": "index.json"},
            telling=False,
        ),
        Fault("no range support", "Streaming", hurt_from_url(always("no-range", ".tar")), **wrong),
        Fault("no range support, with a cache", "Streaming", without_ranges_but_cached, (FINISHED,), **fine),
        Fault("half a body once", "Streaming", hurt_from_url(first("short", ".tar")), **fine),
        Fault("dropped connection once", "Streaming", hurt_from_url(first("drop", ".tar")), **fine),
        Fault("content that changed", "Streaming", hurt_from_url(always("changed", ".tar")), **wrong),
        Fault("redirect in a circle", "Streaming", hurt_from_url(always("redirect-loop", ".tar")), **wrong),
        Fault(
            "forbidden in mid-run",
            "Streaming",
            outages(partial(from_then_on, "forbidden")),
            (USER_ERROR,),
            "train/0000",
        ),
    ]


def _caches() -> list[Fault]:
    return [
        Fault("three trainings, room for one shard", "Cache", shared_cache, (FINISHED,) * 3, seconds=150, check=_names),
        Fault("poisoned cache", "Cache", poisoned_cache, (FINISHED,), check=_names),
        Fault("stopped holder of the cache", "Cache", stopped_holder, (FINISHED,), seconds=150),
        Fault(
            "disk of the cache full",
            "Cache",
            full_cache_disk,
            ((FINISHED, USER_ERROR),),
            telling=False,
            needs_root=True,
            resumes=False,
        ),
    ]


FAULTS = [*_streams(), *_caches()]
