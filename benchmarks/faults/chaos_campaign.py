"""A campaign: one training after another, each started again after every fault until it is finished, then checked."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from chaos_checks import (
    FINISHED,
    USER_ERROR,
    faults_of_end,
    faults_of_going_on,
    faults_of_order,
    faults_of_run,
    segments,
)
from chaos_inflict import Inflicted, damage
from chaos_plan import PlannedFault
from chaos_recording import read_records
from chaos_starts import STEPS, Ended, Forked, Place, Start
from faulty_server import FaultyServer
from forks import REPOSITORY
from small_disk import Disk

from glioma_dist.distributed.environment import find_commit
from glioma_dist.files import read_json, write_json_atomically

SECONDS_FOR_A_MOMENT, SECONDS_TO_FINISH, MOST_TRIES = 600.0, 600.0, 4


class Config(Protocol):
    """The flags that a campaign needs."""

    out: Path
    faults: int
    seed: int
    only: int | None
    forked_launchers: bool
    seconds_to_end: float
    seconds_to_restart: float


class Campaign:
    """The training that is going on, and what was found so far."""

    def __init__(self, config: Config, place: Place, server: FaultyServer, disk: Disk) -> None:
        self._config, self._place, self._server, self._disk = config, place, server, disk
        self._out = disk.folder / "run"
        self._began, self._commit = time.monotonic(), find_commit(REPOSITORY)
        self._start, self._first, self._processes = 0, 1, 2
        """Number of the last start, of the run's first one, and how many processes the next one has."""
        self._damages: list[tuple[dict, Callable[[], None]]] = []
        """Damages to a checkpoint that no start has met yet: their results, and what takes them back."""
        self.of_run: list[int] = []
        """Numbers of the faults that the run has met."""
        self._references: dict[tuple, Path] = {}
        self.results: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []

    def content(self) -> dict[str, Any]:
        """What chaos.json holds."""
        return {
            "seed": self._config.seed,
            "count": self._config.faults,
            "forked_launchers": self._config.forked_launchers,
            "folder": str(self._config.out),
            "commit": self._commit,
            "hardware": f"{os.cpu_count()} CPU cores",
            "minutes": round((time.monotonic() - self._began) / 60, 1),
            "disk": "tmpfs" if self._disk.is_mounted else "RLIMIT_FSIZE",
            "faults": self.results,
            "runs": self.runs,
        }

    def of_failed_runs(self) -> set[int]:
        """The last fault of each run that is not equal to its reference."""
        return {run["faults"][-1] if run["faults"] else 0 for run in self.runs if run["wrong"]}

    def note_strangers(self) -> None:
        """Note files that runs left where they may write nothing."""
        if found := self._place.strangers():
            self.runs[-1]["wrong"].append(f"files outside of --out: {found[:5]}")

    def return_to(self, kept: Path, done: dict[str, Any] | None = None) -> None:
        """Have the run as it was before a fault. done: what was found before it."""
        state = read_json(kept / "state.json")
        if done is not None:
            self.results, self.runs, self.of_run = done["faults"], done["runs"], state["faults"]
            self._began -= done["minutes"] * 60
        self._start, self._first, self._processes = state["start"], state["first"], state["processes"]
        shutil.rmtree(self._out, ignore_errors=True)  # left by a campaign that was killed, where no disk is mounted
        if (kept / "run").is_dir():
            shutil.copytree(kept / "run", self._out)
        for path in self._place.records.glob("*.jsonl"):
            if int(path.stem.split(".")[0]) > self._start:
                path.unlink()

    def _keep(self, fault: PlannedFault) -> None:
        kept = self._config.out / "before" / str(fault.number)
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        if self._out.is_dir():
            shutil.copytree(self._out, kept / "run")
        state = {"start": self._start, "first": self._first, "processes": self._processes, "faults": self.of_run}
        write_json_atomically(kept / "state.json", state)

    def inflict(self, fault: PlannedFault) -> None:
        """Start the training, hurt it, and note how it ended. A run that is over before the fault comes is checked, and
        the next one gets the fault."""
        for _ in range(MOST_TRIES):
            if self._config.only is None:
                self._keep(fault)
            self._start += 1
            inflicted = Inflicted(self._place, fault, self._server, self._disk, self._start, self._out, self._processes)
            wrong: list[str] = []
            happened = self._follow(inflicted, wrong)
            ended, seconds = inflicted.start.ended(), time.monotonic() - inflicted.at
            self._note_restart(inflicted.start, ended)
            is_finished = (ended.state or {}).get("state") == "finished"
            if happened:
                self._note(inflicted, ended, seconds, wrong)
            elif self._is_refused(ended):
                continue
            elif not is_finished:
                self._note(inflicted, ended, seconds, ["the start ended before the fault came", *wrong])
                happened = True
            if is_finished:
                self.finish_run()
            if happened:
                return
        raise RuntimeError(f"fault {fault.number} never came in {MOST_TRIES} starts: {fault}")

    def _follow(self, inflicted: Inflicted, wrong: list[str]) -> bool:
        """Wait until a start has ended. Returns whether the fault came."""
        try:
            happened = inflicted.wait_for_moment(SECONDS_FOR_A_MOMENT)
            if happened and inflicted.survives:
                inflicted.stop_in_order(SECONDS_FOR_A_MOMENT)
        except TimeoutError as error:
            happened = True
            wrong.append(str(error))
        bound = self._config.seconds_to_end if happened else SECONDS_TO_FINISH
        if not inflicted.start.wait(bound, inflicted.persist):
            wrong.append(f"did not end within {bound:g} s")
        self._server.faults = lambda path, number: None
        self._disk.free()
        return happened or inflicted.happened.is_set()

    def _note(self, inflicted: Inflicted, ended: Ended, seconds: float, wrong: list[str]) -> None:
        """Keep what the table tells of a fault, and hurt the checkpoint where that is the fault."""
        fault = inflicted.fault
        records = [each for each in read_records(self._place.records) if each.start == self._start]
        wrong += faults_of_going_on(inflicted, records)
        result = {
            "number": fault.number,
            "name": fault.name,
            "when": fault.when,
            "whom": inflicted.whom,
            "launcher": fault.launcher,
            "run": len(self.runs) + 1,
            "start": self._start,
            "processes": self._processes,
            "step": max((each.step for each in records), default=0),
            "codes": list(ended.codes),
            "state": {name: (ended.state or {}).get(name) for name in ("state", "code", "checkpoint_step")},
            "line": ended.lines[0] if ended.lines else "",
            "seconds_to_end": round(seconds, 1),
            "seconds_to_restart": None,
            "wrong": [*wrong, *(faults_of_end(inflicted, ended) if inflicted.happened.is_set() else [])],
        }
        if fault.kind == "checkpoint" and result["state"]["state"] != "finished" and (done := damage(self._out, fault)):
            result["whom"] += f"; {done[0]}"
            self._damages.append((result, done[1]))
        self.results.append(result)
        self.of_run.append(fault.number)
        self._processes = fault.processes
        if result["wrong"]:
            result["output"] = ended.output
            print(f"FAILED: seed {self._config.seed}, fault {fault.number}: {'; '.join(result['wrong'])}", flush=True)
        told = f"{fault.name} {fault.when} ({result['whom'] or fault.launcher}): {list(ended.codes)}"
        print(f"fault {fault.number}: {told} after {seconds:.1f} s, step {result['step']}", flush=True)

    def _note_restart(self, start: Start, ended: Ended) -> None:
        """Keep how long a start took to its first batch, and what it said of a damaged checkpoint."""
        mine = [each for each in read_records(self._place.records) if each.start == self._start]
        if not mine:
            return
        self._damages, met = [], self._damages
        for result, _ in met:
            result["line"] = next((line for line in ended.warnings if "resuming from" in line), result["line"])
        if self.results and self.of_run and self.results[-1]["seconds_to_restart"] is None:
            last, seconds = self.results[-1], min(each.at for each in mine) - start.began_at
            last["seconds_to_restart"] = round(seconds, 1)
            if seconds > self._config.seconds_to_restart:
                last["wrong"].append(f"the next start came to its first batch after {seconds:.0f} s")

    def _is_refused(self, ended: Ended) -> bool:
        """Whether a start rightly refused, because the only checkpoint is damaged; the damage is then taken back."""
        refused = bool(self._damages) and any("checkpoint" in line for line in ended.lines)
        if refused and (set(ended.codes) == {USER_ERROR} or len(ended.codes) == 1):
            for result, take_back in reversed(self._damages):
                result["line"] = ended.lines[0]
                take_back()
            self._damages = []
            return True
        return False

    def finish_run(self) -> None:
        """Start the training until it is finished, check it, and make room for the next one."""
        wrong: list[str] = []
        for _ in range(MOST_TRIES):
            self._start += 1
            start = Forked(self._place, self._start, self._out, self._processes)
            in_time = start.wait(SECONDS_TO_FINISH)
            ended = start.ended()
            self._note_restart(start, ended)
            if not self._is_refused(ended):
                break
        if not in_time or set(ended.codes) != {FINISHED}:
            wrong.append(f"the last start ended with {ended.codes}: {ended.lines or ended.output[-500:]}")
        records = [each for each in read_records(self._place.records) if each.start >= self._first]
        used = segments(records)
        try:
            wrong += [] if wrong else faults_of_run(self._out, self._reference(used), len(used) > 1)
            # Of each reference so far: the order is the same for any number of processes.
            for each in self._references.values():
                wrong += faults_of_order(records, read_records(each.parent / "records"))
        except RuntimeError as error:  # of the reference
            wrong.append(str(error))
        run = {"faults": self.of_run, "segments": used, "starts": self._start - self._first + 1, "wrong": wrong}
        self.runs.append(run)
        failed = f"FAILED: seed {self._config.seed}, faults {self.of_run}: {'; '.join(wrong)}"
        told = failed if wrong else "equal, bit for bit"
        print(f"run {len(self.runs)}: (processes, last step) {used}, {told}", flush=True)
        kept = self._config.out / "runs" / str(len(self.runs))
        shutil.rmtree(kept, ignore_errors=True)
        if self._out.is_dir():
            shutil.copytree(self._out, kept)
            shutil.rmtree(self._out)
        self._first, self._processes, self.of_run, self._damages = self._start + 1, 2, [], []

    def _reference(self, used: tuple[tuple[int, int], ...]) -> Path:
        """A run with no fault, whose number of processes changes at the same steps: it is asked to stop there."""
        if used not in self._references:
            folder = self._config.out / "references" / str(len(self._references))
            shutil.rmtree(folder, ignore_errors=True)  # of a campaign that is continued
            place = Place(self._place.forks, self._place.url, folder)
            for number, (processes, last_step) in enumerate(used, 1):
                stop_after = last_step if last_step < STEPS else 0
                start = Forked(place, number, folder / "run", processes, stop_after=stop_after)
                in_time, ended = start.wait(SECONDS_TO_FINISH), start.ended()
                saved = (ended.state or {}).get("checkpoint_step")
                if not in_time or saved != last_step or (stop_after == 0 and set(ended.codes) != {FINISHED}):
                    raise RuntimeError(f"the reference {used} ended with {ended} at step {saved}")
            self._references[used] = folder / "run"
        return self._references[used]
