"""`glioma-dist verify` of runs whose weights or whose images are spread over two processes."""

from contextlib import nullcontext
from pathlib import Path

import pytest
from engines import fsdp2
from hash_chain import hash_rows, write_chain
from helpers import run, seal, tiny_config
from safetensors.torch import load_file, save_file

from glioma_dist.config import ScaleConfig, TrainConfig
from glioma_dist.config.verify import VerifyConfig
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.errors import InputError
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.manifest import MODEL, part_name
from glioma_dist.size import Size
from glioma_dist.training import loop
from glioma_dist.training.step_hashes import KEPT, kept_folder, read_noted
from glioma_dist.training.verification import verify

SMALL = {"decoder_channels": (2, 2, 2, 2, 2), "max_steps": 3, "eval_every": 9, "keep_every": 2, "val": None}


def forge_weight(out: Path, step: int) -> Path:
    """Change one weight in the last file of a kept checkpoint, its manifest, and all hashes with it."""
    folder = kept_folder(out, step)
    path = folder / Checkpoint.read(folder).manifest.parts(MODEL)[-1]
    tensors = load_file(path)
    name = next(name for name, each in tensors.items() if each.is_floating_point() and each.ndim > 1 and each.numel())
    tensors[name].view(-1)[0] += 1e-3
    path.unlink()  # it may be the file of another checkpoint, too
    save_file(tensors, path)
    seal(folder)
    found = hash_rows(out)
    for row in found:
        if row["step"] == step and KEPT in row:
            row[KEPT] = Checkpoint.read(folder).manifest.identity
    write_chain(out, found)
    return path


def train_verify_and_forge(config: TrainConfig, engine: str) -> tuple[list, str, str]:
    """Returns the stretches that were verified, and what verifying again says: of a weight in the middle of the run
    that was changed with all its hashes, then of a file of which a byte is missing."""
    here = DistributedContext.start()
    flags, refusals = VerifyConfig(str(config.out), stretches=9), []
    with fsdp2(here) if engine == "FSDP2" else nullcontext():
        loop.train(config, here)
        verified = [tuple(each) for each in verify(flags, here).stretches]
        for change in (forge, cut):
            if here.is_main:
                change(config.out)
            here.wait()
            with pytest.raises(InputError) as refused:
                verify(flags, here)
            refusals.append(str(refused.value))
    return verified, *refusals


def forge(out: Path) -> None:
    forge_weight(out, 2)


def cut(out: Path) -> None:
    folder = kept_folder(out, 3)
    path = folder / Checkpoint.read(folder).manifest.parts(MODEL)[-1]
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1])


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(name, marks=pytest.mark.equality(flag=flag, encoder="mit_tiny", processes=2, kind="bits"))
        for name, flag in {
            "FSDP2": "FSDP2, verified stretch",
            "spatial": "spatial parallel, verified stretch",
        }.items()
    ],
)
def test_two_processes_verify_bits_and_name_a_changed_weight(shards, tmp_path, runtime, engine):
    scale = ScaleConfig(spatial_parallel=2 if engine == "spatial" else 1)
    config = tiny_config(shards, tmp_path / "run", scale=scale, size=Size(64, 64), **SMALL)
    told = run(train_verify_and_forge, config, engine, num_processes=2)
    assert told[0] == told[1], "all processes end alike"
    stretches, forged, broken = told[0]
    assert stretches == [(0, 2), (2, 3)]
    changed = kept_folder(config.out, 2) / MODEL
    assert f"2 of 2 stretches are not as the run wrote them; the first: steps 1 to 2: weights: {changed}: 1 t" in forged
    number = 2 if engine == "FSDP2" else 1
    assert f"weights: {kept_folder(config.out, 3) / part_name(MODEL, number - 1, number)}" in broken
    assert sorted(read_noted(config.out).steps) == [1, 2, 3]
    assert max(map(len, (forged, broken))) <= 500


def test_another_launch_verifies_losses_or_is_refused_in_one_line(shards, tmp_path, runtime, capsys):
    """One process: it joins the weights of two, and it cannot split an image."""
    for engine, size in {"FSDP2": 1, "spatial": 2}.items():
        scale = ScaleConfig(spatial_parallel=size)
        config = tiny_config(shards, tmp_path / engine, scale=scale, size=Size(64, 64), **SMALL)
        run(train_under, config, engine, num_processes=2)
        flags = VerifyConfig(str(config.out), stretches=9)
        if engine == "FSDP2":
            assert len(verify(flags, runtime).stretches) == 2
            assert capsys.readouterr().out.count("engine FSDP2 -> one process") == 2
        else:
            with pytest.raises(
                InputError, match=r"steps 1 to 2 cannot be computed again: --scale\.spatial-parallel 2 "
            ):
                verify(flags, runtime)


def train_under(config: TrainConfig, engine: str) -> None:
    here = DistributedContext.start()
    with fsdp2(here) if engine == "FSDP2" else nullcontext():
        loop.train(config, here)
