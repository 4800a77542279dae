"""Faults: checkpoints that are not what was written. The one before is used, and that is said."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from signal import SIGTERM

import numpy as np
from contract import FINISHED, USER_ERROR, Fault
from forks import Ended
from inflict import SECONDS_TO_END
from safetensors.numpy import load_file, save_file
from stage import SECONDS_A_RUN, Stage, at_step

MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
DEEP = 10**5
Damage = Callable[[Stage, Path], None]


def flip_bit(stage: Stage, last: Path, name: str) -> None:
    path = last / name
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 0x10
    path.write_bytes(data)


def zero_block(stage: Stage, last: Path) -> None:
    with open(last / MODEL, "r+b") as file:
        file.seek(-40_000, os.SEEK_END)
        file.write(bytes(40_000))


def truncate(stage: Stage, last: Path, name: str) -> None:
    os.truncate(last / name, (last / name).stat().st_size // 2)


def swap_optimizer(stage: Stage, last: Path) -> None:
    """Of another run, at the same step, of the same model."""
    shutil.copyfile(stage.shared.other / "last" / OPTIMIZER, last / OPTIMIZER)


def swap_state(stage: Stage, last: Path) -> None:
    shutil.copyfile(stage.shared.other / "last" / STATE, last / STATE)


def remove(stage: Stage, last: Path, name: str) -> None:
    (last / name).unlink()


def change_tensors(stage: Stage, last: Path, change: Callable[[dict], None], name: str = MODEL) -> None:
    """Tensors changed by hand, in a file that is good as such."""
    tensors = load_file(last / name)
    change(tensors)
    save_file(tensors, last / name)


def drop_one(tensors: dict) -> None:
    tensors.pop(sorted(tensors)[3])


def spoil_one(tensors: dict) -> None:
    name = next(name for name in sorted(tensors) if tensors[name].dtype.kind == "f")
    tensors[name] = np.full_like(tensors[name], np.nan)


def reshape_one(tensors: dict) -> None:
    name = next(name for name in sorted(tensors) if tensors[name].ndim == 4)
    tensors[name] = np.ascontiguousarray(tensors[name].reshape(-1))


def nest_deeply(stage: Stage, last: Path, name: str) -> None:
    (last / name).write_text("[" * DEEP + "]" * DEEP)


def add_position_key(stage: Stage, last: Path) -> None:
    state = json.loads((last / STATE).read_text())
    state["position"]["velocity"] = 1
    (last / STATE).write_text(json.dumps(state))


def pipe_in_place(stage: Stage, last: Path, name: str) -> None:
    (last / name).unlink()
    os.mkfifo(last / name)


DAMAGES: dict[str, Damage] = {
    "flipped bit in the weights": partial(flip_bit, name=MODEL),
    "flipped bit in the optimizer": partial(flip_bit, name=OPTIMIZER),
    "flipped bit in the state": partial(flip_bit, name=STATE),
    "flipped bit in the manifest": partial(flip_bit, name=MANIFEST),
    "40 kB of zeros in the weights": zero_block,
    "weights cut short": partial(truncate, name=MODEL),
    "state cut short": partial(truncate, name=STATE),
    "optimizer of another run": swap_optimizer,
    "state of another run": swap_state,
    "weights missing": partial(remove, name=MODEL),
    "optimizer missing": partial(remove, name=OPTIMIZER),
    "state missing": partial(remove, name=STATE),
    "a tensor missing": partial(change_tensors, change=drop_one),
    "NaN in a tensor": partial(change_tensors, change=spoil_one),
    "a tensor of another shape": partial(change_tensors, change=reshape_one),
    "a moment of another shape": partial(change_tensors, change=reshape_one, name=OPTIMIZER),
    "state nested deeply": partial(nest_deeply, name=STATE),
    "manifest nested deeply": partial(nest_deeply, name=MANIFEST),
    "unknown key in the position": add_position_key,
    "pipe in place of the weights": partial(pipe_in_place, name=MODEL),
    "pipe in place of the state": partial(pipe_in_place, name=STATE),
}


def damaged_newest(damage: Damage) -> Callable[[Stage], Sequence[Ended]]:
    """Stopped, damaged, and started again."""

    def inflict(stage: Stage) -> Sequence[Ended]:
        flags = {"save-every": 2}
        stage.train([at_step(4, SIGTERM)], **flags).wait(SECONDS_A_RUN)
        damage(stage, stage.out / "last")
        return stage.train(**flags).wait(SECONDS_TO_END)

    return inflict


def all_damaged(stage: Stage) -> Sequence[Ended]:
    flags = {"save-every": 2}
    stage.train([at_step(4, SIGTERM)], **flags).wait(SECONDS_A_RUN)
    for folder in stage.out.glob("last*"):
        flip_bit(stage, folder, MODEL)
    return stage.train(**flags).wait(SECONDS_TO_END)


def make_whole(stage: Stage) -> None:
    """The bits are flipped back."""
    for folder in stage.out.glob("last*"):
        flip_bit(stage, folder, MODEL)


FAULTS = [
    *(
        Fault(name, "Checkpoint", damaged_newest(damage), (FINISHED,), aloud=r"last.*last\.1|last\.1.*last")
        for name, damage in DAMAGES.items()
    ),
    Fault(
        "every checkpoint damaged",
        "Checkpoint",
        all_damaged,
        (USER_ERROR,),
        "last",
        saved=False,
        telling=False,
        repair=make_whole,
    ),
]
