"""FSDP2 on two processes equals the plain model, alone and with strips of rows, and its checkpoints are everybody's."""

from dataclasses import replace

import pytest
import torch
from helpers import command, rows, run, tiny_config
from safetensors.torch import load_file
from test_processes import train_in_double as train_plain_in_double

from glioma_dist.config import ScaleConfig
from glioma_dist.errors import InputError
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.manifest import MANIFEST, MODEL, OPTIMIZER, part_name
from glioma_dist.training import loop, preparation


def train_here(config) -> list[str]:
    """Train under FSDP2; returns the names of the parameters that are spread. accelerate reads the settings of FSDP for
    GPUs only, so its state is told here."""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
    from torch.distributed.tensor import DTensor

    from glioma_dist.distributed.context import DistributedContext

    runtime = DistributedContext.start()
    AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    spread, prepare = [], loop.prepare

    def telling(*arguments):
        training, position = prepare(*arguments)
        spread.extend(name for name, each in training.model.named_parameters() if isinstance(each, DTensor))
        return training, position

    loop.prepare = telling
    loop.train(config, runtime)
    return spread


def check_losses(ours: list[dict], plain: list[dict], tolerance: float) -> None:
    assert [(row["step"], row.get("split")) for row in ours] == [(row["step"], row.get("split")) for row in plain]
    for one, other in zip(ours, plain, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance)


def train_in_double(config) -> list[str]:
    build_model = preparation.build_model
    preparation.build_model = lambda *given: (build_model(*given)[0].double(), [])
    try:
        return train_here(config)
    finally:
        preparation.build_model = build_model


@pytest.mark.parametrize(
    "scale",
    [
        pytest.param(ScaleConfig(), id="plain"),
        # The same units, gathered as often as at the level full, which comes next; test_every_encoder.py takes a step.
        pytest.param(ScaleConfig(activation_checkpointing="selective"), id="selective", marks=pytest.mark.slow),
        pytest.param(ScaleConfig(activation_checkpointing="full", spatial_parallel=2), id="full, 2 processes an image"),
    ],
)
def test_three_steps_equal_the_plain_model_s(shards, tmp_path, scale):
    """With clipped gradients, and three validation images for two processes. In fp32 Adam makes steps of a gradient's
    last digits; in fp64 three steps must give the same network, to 1e-9."""
    config = tiny_config(shards, tmp_path / "plain", max_steps=3, clip_norm=0.5)
    train_plain_in_double(config)
    spread = run(train_in_double, replace(config, out=tmp_path / "ours", scale=scale), num_processes=2)
    names = [name for name, _ in preparation.build_model(config.model, 0)[0].named_parameters()]
    assert spread == [names, names]
    check_losses(rows(tmp_path / "ours"), rows(tmp_path / "plain"), 1e-9)
    assert not (tmp_path / "ours" / "last" / MODEL).exists()
    assert (tmp_path / "ours" / "last" / part_name(MODEL, 1, 2)).is_file()
    ours, plain = (Checkpoint.read(tmp_path / name / "last") for name in ("ours", "plain"))
    for name in (MODEL, OPTIMIZER):
        found, expected = ours.tensors(name), plain.tensors(name)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            if not key.endswith("/exp_avg_sq"):  # of squares, and so of a smaller size
                torch.testing.assert_close(
                    found[key], tensor, rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f"{key} {text}"
                )


def test_a_run_moves_between_engines_bands_and_numbers_of_processes(shards, tmp_path):
    """From FSDP2 to DDP with strips of rows, back to FSDP2, and to one process, in fp64."""
    config = tiny_config(shards, tmp_path / "whole", max_steps=8, eval_every=8)
    train_plain_in_double(config)
    moving = replace(config, out=tmp_path / "moving")
    run(train_in_double, replace(moving, max_steps=2), num_processes=2)
    with_rows = replace(moving, max_steps=4, scale=ScaleConfig(spatial_parallel=2, activation_checkpointing="full"))
    run(train_plain_in_double, with_rows, num_processes=2)
    run(train_in_double, replace(moving, max_steps=6), num_processes=2)
    train_plain_in_double(moving)
    ours = [row for row in rows(moving.out) if "split" not in row]
    check_losses(ours, [row for row in rows(config.out) if "split" not in row], 1e-9)


def test_parts_are_merged_into_a_plain_checkpoint(shards, tmp_path):
    config = tiny_config(shards, tmp_path / "run", max_steps=1, val=None)
    run(train_here, config, num_processes=2)
    folder, merged = tmp_path / "run" / "last", tmp_path / "merged"
    ended = command("merge", "--checkpoint", folder, "--out", merged)
    assert ended.exit_code == 0, ended.stderr
    assert sorted(path.name for path in merged.iterdir()) == [MANIFEST, MODEL, OPTIMIZER, "state.json"]
    assert (merged / "state.json").read_text() == (folder / "state.json").read_text()
    for name in (MODEL, OPTIMIZER):
        plain = load_file(merged / name)
        assert {key: tensor.tolist() for key, tensor in plain.items()} == {
            key: tensor.tolist() for key, tensor in Checkpoint.read(folder).tensors(name).items()
        }
    ended = command("merge", "--checkpoint", folder, "--out", merged)
    assert ended.exit_code == 2
    assert "exists; give a new folder" in ended.stderr


def test_a_missing_part_is_named(shards, tmp_path):
    config = tiny_config(shards, tmp_path / "run", max_steps=1, val=None)
    run(train_here, config, num_processes=2)
    (tmp_path / "run" / "last" / part_name(OPTIMIZER, 1, 2)).unlink()
    fault = r"optimizer-00002-of-00002\.safetensors: is missing"
    with pytest.raises(InputError, match=fault):
        Checkpoint.read(tmp_path / "run" / "last").tensors(OPTIMIZER)
    with pytest.raises(InputError, match=fault):
        train_plain_in_double(replace(config, max_steps=2))
    merging = command("merge", "--checkpoint", tmp_path / "run" / "last", "--out", tmp_path / "x")
    assert merging.exit_code == 2, "the moments must not be left out"
    assert not (tmp_path / "x").exists()
    (tmp_path / "run" / "last" / part_name(MODEL, 0, 2)).unlink()
    with pytest.raises(InputError, match=r"model-00001-of-00002\.safetensors: is missing"):
        train_plain_in_double(replace(config, max_steps=2))  # and not begin again over the rest


def test_parts_of_two_checkpoints_are_not_taken_for_one(shards, tmp_path):
    config = tiny_config(shards, tmp_path / "run", max_steps=2, val=None, save_every=1)
    run(train_here, replace(config, max_steps=1), num_processes=2)
    folder = tmp_path / "run" / "last"
    second = (folder / part_name(MODEL, 1, 2)).read_bytes()
    (folder / "model-00001-of-00002 (1).safetensors").write_bytes(second)  # a copy by hand is nothing
    assert Checkpoint.read(folder).tensors(MODEL)
    run(train_here, config, num_processes=2)
    (folder / part_name(MODEL, 1, 2)).write_bytes(second)
    with pytest.raises(InputError, match=r"model-00002-of-00002\.safetensors: is damaged"):
        Checkpoint.read(folder).tensors(MODEL)


def test_fsdp_without_a_gpu_is_refused(shards, tmp_path):
    """Where accelerate would silently train with DDP."""
    messages = run(
        refusal, tiny_config(shards, tmp_path / "run"), num_processes=2, environment={"ACCELERATE_USE_FSDP": "true"}
    )
    assert all("asks for FSDP" in message for message in messages), messages
    assert not (tmp_path / "run").exists()


def refusal(config) -> str:
    try:
        train_plain_in_double(config)
    except InputError as error:
        return str(error)
    return "no error"
