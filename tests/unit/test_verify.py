"""`glioma-dist verify`: a run's stretches computed again, and what is named where something was changed."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hash_chain import hash_rows, write_chain
from helpers import damage_sample, rows, run, seal, tiny_config
from killing import kill_at
from safetensors.torch import load_file, save_file

from glioma_dist.config import TrainConfig
from glioma_dist.config.file import from_dict, to_dict
from glioma_dist.config.verify import VerifyConfig
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.errors import InputError
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.manifest import MODEL, STATE
from glioma_dist.size import Size
from glioma_dist.training import loop, verification
from glioma_dist.training.step_hashes import KEPT, read_noted
from glioma_dist.training.verification import verify

SMALL = {"decoder_channels": (2, 2, 2, 2, 2), "max_steps": 6, "eval_every": 3, "keep_every": 2}


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory, runtime) -> TrainConfig:
    """A run of six steps that keeps every second; its learning rate falls over all six."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(shards, folder / "shards")
    config = tiny_config(folder / "shards", folder / "run", lr_schedule="cosine", **SMALL)
    loop.train(config, runtime)
    return config


@pytest.fixture
def copied(whole, tmp_path) -> TrainConfig:
    """A copy of the run and of its data, to change. What it says of its data stays the place of the first."""
    shutil.copytree(whole.out.parent, tmp_path / "copied")
    return replace(whole, out=tmp_path / "copied" / "run")


def flags_for(config: TrainConfig, **changes) -> VerifyConfig:
    train = str(config.out.parent / "shards" / "train")
    return VerifyConfig(**({"run": str(config.out), "train": (train,), "stretches": 1, "seed": 1} | changes))


def refused(config: TrainConfig, runtime, **changes) -> str:
    with pytest.raises(InputError) as error:
        verify(flags_for(config, **changes), runtime)
    assert len(str(error.value)) <= 500
    return str(error.value)


def add_to_one(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name, each in tensors.items() if each.is_floating_point() and each.ndim > 1)
    tensors[name].view(-1)[0] += 1e-3


def change_weight(folder: Path, change: Callable[[dict[str, torch.Tensor]], None] = add_to_one) -> None:
    """Change one weight of a checkpoint, and its manifest with it."""
    tensors = load_file(folder / MODEL)
    change(tensors)
    (folder / MODEL).unlink()  # it may be the file of another checkpoint, too
    save_file(tensors, folder / MODEL)
    seal(folder)


def test_a_run_keeps_checkpoints_and_notes_each_step(whole):
    noted = read_noted(whole.out)
    assert sorted(noted.steps) == [1, 2, 3, 4, 5, 6]
    assert noted.stretches() == [(0, 2), (2, 4), (4, 6)]
    assert len({row["batch"] for row in noted.steps.values()}) == 6
    told = [row["loss"] for row in rows(whole.out) if "split" not in row]
    assert told == [noted.steps[step]["loss"] for step in range(1, 7)]
    for step, identity in noted.kept.items():
        checkpoint = Checkpoint.read(whole.out / "steps" / f"{step:06d}")
        checkpoint.check()
        assert (checkpoint.step, checkpoint.manifest.identity) == (step, identity)


def test_all_stretches_are_equal_bit_for_bit_and_the_run_stays_as_it_is(whole, runtime, capsys, monkeypatch):
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted(whole.out.rglob("*")) if path.is_file()}

    before = files()
    monkeypatch.setattr(verification, "is_held", lambda folder: folder == whole.out)
    result = verify(flags_for(whole, stretches=99, train=()), runtime)
    assert [tuple(each) for each in result.stretches] == [(0, 2), (2, 4), (4, 6)]
    said = capsys.readouterr().out
    assert said.count("batches, losses and weights equal, bit for bit") == 3
    assert result.chain in said
    assert "still going" in said
    assert files() == before


def flip_shard(config, runtime):
    damage_sample(config.out.parent / "shards" / "train", "cell-004")
    return "cell-004", {"stretches": 3}


def reindex(config, runtime):
    index = config.out.parent / "shards" / "train" / "index.json"
    content = json.loads(index.read_text())
    content["shards"][0]["sha256"] = "0" * 64
    index.write_text(json.dumps(content))
    return "data: ", {}


def flip_weight(config, runtime):
    path = config.out / "steps" / "000002" / MODEL
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.unlink()
    path.write_bytes(data)
    return f"weights: {path}", {"stretches": 3}


def reseal_weight(config, runtime):
    change_weight(config.out / "steps" / "000004")
    return "steps/000004 is another checkpoint", {}


def change_kept_and_its_hash(run, step, change=change_weight):
    """A kept checkpoint, by default its weights, with a chain of hashes that fits it."""
    folder = run / "steps" / f"{step:06}"
    change(folder)
    seal(folder)
    found = hash_rows(run)
    for row in found:
        if row["step"] == step and KEPT in row:
            row[KEPT] = Checkpoint.read(folder).manifest.identity
    write_chain(run, found)


def forge_weight(config, runtime):
    change_kept_and_its_hash(config.out, 6)
    shutil.rmtree(config.out / "last")
    return "steps 5 to 6: weights: ", {"stretches": 3}


def forge_start(config, runtime):
    change_kept_and_its_hash(config.out, 2)
    return "steps 1 to 2: weights: ", {"stretches": 3}


def forge_batch(config, runtime):
    found = hash_rows(config.out)
    next(row for row in found if row["step"] == 1)["batch"] = "0" * 64
    write_chain(config.out, found)
    return "data: the batch of step 1", {"stretches": 3}


def forge_row(config, runtime):
    found = hash_rows(config.out)
    del next(row for row in found if row["step"] == 3)["dice"]
    write_chain(config.out, found)
    return "(step 3) is no row that a run writes", {}


def forge_number(config, runtime):
    """Up to rounding, infinity would equal anything."""
    for path in (config.out / "hashes.jsonl", config.out / "metrics.jsonl"):
        found = [json.loads(line) for line in path.read_text().splitlines()]
        next(row for row in found if row["step"] == 3 and "loss" in row)["loss"] = math.inf
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
    write_chain(config.out, hash_rows(config.out))
    return "(step 3) is no row that a run writes", {}


def forge_record(config, runtime):
    change_record(config, versions=["numpy 0.1"])
    return "run.json: versions of the start from step 0 is no JSON object", {}


def change_record(config, **values):
    record = json.loads((config.out / "run.json").read_text())
    record["starts"][0] |= values
    (config.out / "run.json").write_text(json.dumps(record))


def forge_tensor(config, runtime):
    """Of a run on another machine, whose weights are compared up to rounding."""
    change_record(config, versions={"numpy": "0.1"})

    def rename(tensors):
        name = next(iter(tensors))
        tensors[f"{name}.other"] = tensors.pop(name)

    change_kept_and_its_hash(config.out, 6, lambda folder: change_weight(folder, rename))
    shutil.rmtree(config.out / "last")
    return "2 tensors are not of the network that was trained, the first is ", {"stretches": 3}


def without_data(config, runtime):
    """A checkpoint that says nothing of the data."""

    def forget(folder):
        state = json.loads((folder / STATE).read_text())
        del state["fingerprints"]
        (folder / STATE).unlink()
        (folder / STATE).write_text(json.dumps(state))

    change_kept_and_its_hash(config.out, 2, forget)
    return "says nothing of the data that the run was trained on", {"stretches": 3}


def change_config(config, runtime):
    path = config.out / "config.json"
    path.write_text(path.read_text().replace('"lr": 0.001', '"lr": 0.002'))
    return "lr 0.001 -> 0.002", {}


def change_hash(config, runtime):
    path = config.out / "hashes.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace('"batch": "', '"batch": "f')
    path.write_text("".join(lines))
    return "hashes.jsonl: line 2 (step 2)", {}


def change_row(config, runtime):
    path = config.out / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    found[4]["loss"] += 1e-9
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return f"metrics: {path}: loss of step {found[4]['step']}", {}


def without_hashes(config, runtime):
    (config.out / "hashes.jsonl").unlink()
    return "only a run that was trained with --keep-every", {}


def without_stretch(config, runtime):
    write_chain(config.out, hash_rows(config.out)[:1])
    return "no finished stretch", {}


def name_code(config, runtime):
    path = config.out / "config.json"
    path.write_text(path.read_text().replace('"loss": "dice"', '"loss": "stranger:loss"'))
    return "give the same --loss", {}


def without_config(config, runtime):
    (config.out / "config.json").unlink()
    return "has no config.json; give the --out of a training with --keep-every", {}


CHANGES = (flip_shard, reindex, flip_weight, reseal_weight, forge_weight, forge_start, forge_batch, change_config)
CHANGES += (change_hash, change_row, without_hashes, without_stretch, without_config, name_code)


@pytest.mark.parametrize("change", CHANGES, ids=lambda each: each.__name__)
def test_what_was_changed_is_named(copied, runtime, change):
    expected, flags = change(copied, runtime)
    assert expected in refused(copied, runtime, **flags)


@pytest.mark.parametrize(
    "change", [forge_row, forge_number, forge_record, forge_tensor, without_data], ids=lambda each: each.__name__
)
def test_what_no_run_writes_is_one_line(copied, runtime, change):
    expected, flags = change(copied, runtime)
    assert expected in refused(copied, runtime, **flags)


def test_changed_code_is_told_from_changed_data(copied, runtime, monkeypatch, capsys):
    record = json.loads((copied.out / "run.json").read_text())
    record["starts"][0]["commit"] = "0123abc"
    (copied.out / "run.json").write_text(json.dumps(record))
    step = loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda *given: (s := step(*given))._replace(loss=s.loss + 1e-12))
    assert "weights or code: the loss of step" in refused(copied, runtime)
    assert "commit 0123abc" in capsys.readouterr().out


def test_on_another_machine_losses_are_compared_up_to_rounding(copied, runtime, capsys):
    record = json.loads((copied.out / "run.json").read_text())
    record["starts"][0]["versions"]["numpy"] = "0.1"
    (copied.out / "run.json").write_text(json.dumps(record))
    verify(flags_for(copied, stretches=3), runtime)
    assert capsys.readouterr().out.count("not bits: numpy 0.1 ->") == 3


def test_a_resumed_run_is_noted_as_one_that_was_not(whole, copied, tmp_path, runtime):
    resumed = replace(copied, out=tmp_path / "resumed", schedule_steps=6)
    loop.train(replace(resumed, max_steps=3, data=replace(resumed.data, val=None)), runtime)
    with pytest.raises(InputError, match="was trained on other data than"):
        loop.train(resumed, runtime)
    loop.train(replace(resumed, data=replace(resumed.data, val=None)), runtime)
    assert read_noted(resumed.out).steps == read_noted(whole.out).steps
    assert read_noted(resumed.out).stretches() == [(0, 2), (2, 3), (3, 4), (4, 6)]


def test_killed_before_it_noted_a_kept_checkpoint_a_run_notes_it_when_it_resumes(copied, tmp_path, runtime):
    config = replace(copied, out=tmp_path / "killed", schedule_steps=6, data=replace(copied.data, val=None))
    loop.train(replace(config, max_steps=4), runtime)
    *before, last = hash_rows(config.out)
    assert (last["step"], KEPT in last) == (4, True)
    write_chain(config.out, before)
    loop.train(config, runtime)
    assert hash_rows(config.out)[: len(before) + 1] == [*before, last]
    assert read_noted(config.out).stretches() == [(0, 2), (2, 4), (4, 6)]


def test_killed_between_kept_checkpoints_with_workers_and_an_average_a_run_is_verified(shards, tmp_path, runtime):
    fields = {**SMALL, "max_steps": 5, "eval_every": 9, "size": Size(32, 32), "ema_decay": 0.5, "val": None}
    config = tiny_config(shards, tmp_path / "run", workers=1, **fields)
    kill_at(3, config)
    assert {row["step"] for row in hash_rows(config.out)} <= {1, 2}
    loop.train(config, runtime)
    whole = tiny_config(shards, tmp_path / "whole", **fields)
    loop.train(whole, runtime)
    noted = read_noted(config.out)
    assert noted.steps == read_noted(whole.out).steps
    assert noted.stretches() == [(0, 2), (2, 4), (4, 5)]
    result = verify(VerifyConfig(str(config.out), stretches=9), runtime)
    assert len(result.stretches) == 3


def test_a_row_that_a_kill_has_cut_is_named_or_left_out(copied, runtime):
    """The last row may be cut by a kill, as in metrics.jsonl; any other is named."""
    path = copied.out / "hashes.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert read_noted(copied.out).stretches() == [(0, 2), (2, 4)]
    verify(flags_for(copied), runtime)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], lines[2][:40] + "\n", *lines[3:]]))
    assert "line 3" in refused(copied, runtime)


def test_without_the_flag_a_resumed_run_forgets_what_it_computes_again(copied, runtime):
    out = copied.out
    for name in ("last", "last.1"):
        shutil.rmtree(out / name)
    shutil.copytree(out / "steps" / "000004", out / "last")
    loop.train(replace(copied, keep_every=None, max_steps=5, schedule_steps=6), runtime)
    assert sorted(read_noted(out).steps) == [1, 2, 3, 4]


def train_and_verify(config: TrainConfig) -> list[tuple[int, int]]:
    here = DistributedContext.start()
    loop.train(config, here)
    return [tuple(each) for each in verify(VerifyConfig(str(config.out), stretches=9), here).stretches]


@pytest.mark.equality(flag="DDP, verified stretch", encoder="mit_tiny", processes=2, kind="bits")
def test_two_processes_verify_bits_and_one_verifies_their_losses(shards, tmp_path, runtime, capsys):
    config = tiny_config(shards, tmp_path / "run", **SMALL | {"max_steps": 4})
    assert run(train_and_verify, config, num_processes=2) == [[(0, 2), (2, 4)]] * 2
    noted = read_noted(config.out)
    verify(VerifyConfig(str(config.out), stretches=9), runtime)
    said = capsys.readouterr().out
    assert said.count("not bits: processes 2 x") == 2
    assert "another" not in said, "the hash of a batch does not depend on the number of processes"
    assert sorted(noted.steps) == [1, 2, 3, 4]


def test_the_flag_is_checked_and_is_no_setting_of_science(shards, tmp_path):
    with pytest.raises(InputError, match="--keep-every 0"):
        tiny_config(shards, tmp_path / "run", keep_every=0).validate()
    with pytest.raises(InputError, match="--keep-every 2: keeps checkpoints in a local folder"):
        from_dict(TrainConfig, to_dict(tiny_config(shards, "s3://b/run", keep_every=2))).validate()
