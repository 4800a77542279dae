"""Trainings under random faults that end as if nothing had happened: `python benchmarks/chaos.py --help`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from glioma_dist.benchmark.rows import results_folder
from glioma_dist.cli.arguments import parse
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError, PartialError
from glioma_dist.files import check_new_folder

sys.path.append(str(Path(__file__).resolve().parent / "faults"))


@dataclass(frozen=True)
class ChaosConfig:
    """Trains a tiny network on two processes under random faults, restarts it after each, and compares the result with
    runs that nothing disturbed."""

    out: Path
    """Folder for runs, what they printed, chaos.json and chaos.md. A campaign that was cut off is continued."""
    faults: int = 50
    """Number of faults."""
    seed: int = 0
    """Draws the faults and their moments."""
    only: int | None = None
    """Repeat this fault alone, by its number, from where the run was before it if --out has kept that."""
    forked_launchers: bool = False
    """Replace torchrun and accelerate launch by torchrun's agent in a forked process, which starts more quickly."""
    seconds_to_end: float = 90.0
    """Time in which a start has to end after a fault."""
    seconds_to_restart: float = 90.0
    """Time in which a start has to come to its first batch."""

    def validate(self) -> None:
        if self.faults < 1:
            raise InputError(f"--faults {self.faults}: give 1 or more")
        if self.only is not None and not 1 <= self.only <= self.faults:
            raise InputError(f"--only {self.only}: give a number from 1 to --faults, {self.faults}")
        for name, value in (("end", self.seconds_to_end), ("restart", self.seconds_to_restart)):
            if not value > 0:
                raise InputError(f"--seconds-to-{name} {value:g}: give a number of seconds above 0")


def main() -> None:
    config = parse(ChaosConfig)
    check_new_folder("--out", config.out)
    with results_folder(config.out):  # another one would end the processes of this one's runs
        config = replace(config, out=config.out.resolve())  # the runs work in another folder
        from chaos_command import run_campaign

        failed = run_campaign(config)
    if failed:
        flags = f"--faults {config.faults} --seed {config.seed}{' --forked-launchers' * config.forked_launchers}"
        again = f"python benchmarks/chaos.py {flags} --out {shlex.quote(str(config.out))} --only"
        raise PartialError(
            f"{len(failed)} faults or trainings failed ({config.out}/chaos.md); repeat one with {again} {failed[0]}"
        )


if __name__ == "__main__":
    run_command(main)
