"""Knobs of scale on a whole run: none changes a number, a run may go on with others, a full memory is explained."""

from dataclasses import replace

import pytest
import torch
from helpers import change_loss, rows, tiny_config

from glioma_dist.config import ScaleConfig
from glioma_dist.errors import MemoryFullError
from glioma_dist.scale import tiles
from glioma_dist.scale.planner import count
from glioma_dist.size import Size
from glioma_dist.training import loop, memory, preparation

SCALES = {
    "selective": ScaleConfig(activation_checkpointing="selective"),
    "full": ScaleConfig(activation_checkpointing="full"),
    "channels_last": ScaleConfig(channels_last="on"),
    "all, channels_last": ScaleConfig(activation_checkpointing="full", channels_last="on"),
}


@pytest.fixture
def plain(shards, tmp_path, runtime, monkeypatch):
    """A run in fp64, as all others of the test then are: in fp32 Adam makes steps of a sum's last bits."""
    build_model = preparation.build_model
    monkeypatch.setattr(preparation, "build_model", lambda *given: (build_model(*given)[0].double(), []))
    config = tiny_config(shards, tmp_path / "plain")
    loop.train(config, runtime)
    return config


def check_close(ours: list[dict], theirs: list[dict]) -> None:
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=1e-9)


@pytest.mark.parametrize("name", SCALES)
def test_a_run_gives_the_losses_of_the_plain_one(plain, tmp_path, runtime, monkeypatch, name):
    monkeypatch.setattr(tiles, "TILE_NUMBERS", 20_000)
    config = replace(plain, out=tmp_path / "scaled", scale=SCALES[name])
    loop.train(config, runtime)
    check_close(rows(config.out), rows(plain.out))


def test_a_run_resumes_with_other_cost_settings(plain, tmp_path, runtime):
    config = replace(plain, out=tmp_path / "moving")
    loop.train(replace(config, max_steps=3, scale=SCALES["all, channels_last"]), runtime)
    loop.train(replace(config, scale=SCALES["selective"]), runtime)
    check_close(rows(config.out), rows(plain.out))


def test_auto_takes_what_fits_and_says_so(shards, tmp_path, runtime, monkeypatch, capsys):
    config = tiny_config(shards, tmp_path / "run", max_steps=1, scale=ScaleConfig(activation_checkpointing="auto"))
    step = memory.step_of(config, runtime)
    monkeypatch.setattr(memory, "free_memory", lambda *_: count(step, "none").peak - 1)
    loop.train(config, runtime)
    assert "activation checkpointing selective" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")],
)
def test_a_full_memory_is_explained(shards, tmp_path, runtime, monkeypatch, error):
    errors = [error]  # of the run's step; the steps that the advice counts go well

    def failing(own, *given):
        if errors:
            raise errors.pop()
        return own(*given)

    change_loss(monkeypatch, True, failing)
    monkeypatch.setattr(memory, "SECONDS_FOR_ADVICE", 600)  # other tests may hold this machine's cores
    config = tiny_config(shards, tmp_path / "run", size=Size(96, 64))
    with pytest.raises(MemoryFullError) as caught:
        loop.train(config, runtime)
    message = str(caught.value)
    assert "out of memory: 4 images of 96x64 on this device: " in message
    assert "with --scale.activation-checkpointing none" in message
    assert message.endswith("give --scale.activation-checkpointing selective")
    assert "\n" not in message


def test_another_error_stays_itself(shards, tmp_path, runtime, monkeypatch):
    def failing(*_given):
        raise RuntimeError("something else")

    change_loss(monkeypatch, True, failing)
    with pytest.raises(RuntimeError, match="something else"):
        loop.train(tiny_config(shards, tmp_path / "run"), runtime)
