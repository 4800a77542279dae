"""Run a campaign of random faults, or the rest of one, and write its tables."""

from __future__ import annotations

import contextlib
import shutil
from typing import Any

from chaos_campaign import Campaign, Config
from chaos_plan import by_agent, draw
from chaos_starts import IMAGES, Place
from chaos_table import summary, write_tables
from faulty_server import files_of, serve
from forks import REPOSITORY, Forks
from small_disk import Disk

from glioma_dist.benchmark.drawn_shards import draw_shards
from glioma_dist.distributed.environment import find_commit
from glioma_dist.errors import InputError
from glioma_dist.files import read_json
from glioma_dist.size import Size
from glioma_dist.training.folder_lock import LOCK

PRELOADED = (
    *("accelerate", "albumentations", "aiohttp", "fsspec.asyn", "torch._dynamo", "torch.distributed.launcher.api"),
    *("glioma_dist.cli.train", "glioma_dist.training.loop", "chaos_recording", "chaos_agent"),
)
"""What a training imports."""
DISK_BYTES = 2**25
DRAWN = Size(96, 80)


def run_campaign(config: Config) -> list[int]:
    """Inflict the faults, and write chaos.json and chaos.md. Returns the numbers of those that failed."""
    plan = draw(config.seed, config.faults)
    if config.forked_launchers:
        plan = [by_agent(fault) if fault.launcher else fault for fault in plan]
    plan = plan if config.only is None else [plan[config.only - 1]]
    done = _read_done(config) if config.only is None else None
    if done is not None:
        plan = plan[len(done["faults"]) :]
    kept = config.out / "before" / str(plan[0].number if plan else 0)
    data = config.out / "data"
    if not data.exists():
        draw_shards(data / "train", IMAGES, DRAWN, seed=1, samples_per_shard=3)
        draw_shards(data / "val", 3, DRAWN, seed=2)
    (config.out / "output").mkdir(exist_ok=True)
    tables = config.out if config.only is None else config.out / f"only-{config.only}"
    tables.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        # The server is forked before this process has threads of its own.
        forks = stack.enter_context(Forks(config.out / "output", (), PRELOADED))
        server = stack.enter_context(serve(files_of(data)))
        disk = stack.enter_context(Disk(config.out / "disk", DISK_BYTES))
        campaign = Campaign(config, Place(forks, server.url, config.out), server, disk)
        if kept.is_dir():
            campaign.return_to(kept, done)
        try:
            for fault in plan:
                campaign.inflict(fault)
                write_tables(tables, campaign.content())
            if campaign.of_run:
                campaign.finish_run()
            campaign.note_strangers()
        finally:
            write_tables(tables, campaign.content())
    print(summary(campaign.content()), flush=True)
    failed = sorted({result["number"] for result in campaign.results if result["wrong"]} | campaign.of_failed_runs())
    if not failed and config.only is None:
        for name in ("before", "runs", "records", "references"):
            shutil.rmtree(config.out / name, ignore_errors=True)
    return failed


def _read_done(config: Config) -> dict[str, Any] | None:
    """The results of a campaign that was cut off; None for a new one. Raises InputError where it had other flags."""
    if all(each.name == LOCK for each in config.out.iterdir()):
        return None
    done = read_json(config.out / "chaos.json") if (config.out / "chaos.json").exists() else {}
    flags = (config.seed, config.faults, config.forked_launchers)
    known = tuple(done.get(name) for name in ("seed", "count", "forked_launchers"))
    if known != flags or len(done["faults"]) == config.faults:
        raise InputError(
            f"--out {config.out}: is not empty and holds no campaign of these --seed, --faults and --forked-launchers "
            "to continue; give another folder, or repeat one fault with --only"
        )
    before, now = done.get("commit"), find_commit(REPOSITORY)
    if before != now:
        raise InputError(
            f"--out {config.out}: its faults are of commit {before}, and now it is {now}; give another folder, or "
            "check that commit out"
        )
    return done
