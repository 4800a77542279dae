"""Whole runs with images split by rows: training, going on, dying, evaluation, prediction; and wrong launches."""

import json
import os
import re
import signal
import socket
import time
from dataclasses import replace

import cv2
import pytest
from helpers import draw_sample, rows, run, start, tiny_config
from test_processes import FIRST_STEP_FP32, FP64, check_close, train_and_tell, train_in_double

from glioma_dist.config import EvaluateConfig, InferenceScaleConfig, PredictConfig, ScaleConfig
from glioma_dist.errors import ExitCode, InputError, RunError
from glioma_dist.evaluation.protocol import EvaluationResult, evaluate
from glioma_dist.inference.predict import predict
from glioma_dist.size import Size
from glioma_dist.training import loop

SECONDS_TO_STOP = 30
UNEVEN = Size(72, 78)
"""Three units high, the last not whole; the validation images are 80 high."""


def train_as_a_command(config) -> None:
    from glioma_dist.distributed.context import DistributedContext
    from glioma_dist.distributed.run_command import run_command

    run_command(lambda: loop.train(config, DistributedContext.start(config.scale.timeout_s)))


@pytest.mark.parametrize(("num_rows", "num_processes"), [(2, 2), (2, 4)])
def test_training_in_rows_equals_one_process(shards, tmp_path, num_rows, num_processes):
    """With augmentation, and three validation images of another height for two groups. Three steps in fp64, and one in
    fp32, because later Adam makes steps of a gradient's last digits."""
    for train_one, steps, tolerance in ((train_in_double, 3, FP64), (train_and_tell, 1, FIRST_STEP_FP32)):
        config = tiny_config(shards, tmp_path / f"one {steps}", max_steps=steps, transform="random-crop", size=UNEVEN)
        train_one(config)
        split = replace(config, out=tmp_path / f"split {steps}", scale=ScaleConfig(spatial_parallel=num_rows))
        run(train_one, split, num_processes=num_processes)
        ours, theirs = rows(split.out), rows(config.out)
        if steps == 1:
            ours, theirs = ours[:1], theirs[:1]
        check_close(ours, theirs, tolerance)


def test_a_run_resumes_with_another_number_of_rows(shards, tmp_path):
    config = tiny_config(shards, tmp_path / "whole", transform="random-crop", size=UNEVEN)
    train_in_double(config)
    moving = replace(config, out=tmp_path / "moving")
    run(train_in_double, replace(moving, max_steps=2, scale=ScaleConfig(spatial_parallel=3)), num_processes=3)
    train_in_double(replace(moving, max_steps=3))
    run(
        train_in_double,
        replace(moving, scale=ScaleConfig(spatial_parallel=2, activation_checkpointing="full")),
        num_processes=2,
    )
    check_close(rows(moving.out)[-2:], rows(config.out)[-2:], 1e-9)


def train_until_killed(config, rank_killed: int) -> None:
    """One rank ends as if its machine were gone, in the middle of its third step's backward pass."""
    step = loop.train_step

    def dying(training, batch, number):
        if number == 2 and training.context.rank == rank_killed:
            for parameter in training.model.parameters():
                parameter.register_hook(lambda _: os.kill(os.getpid(), signal.SIGKILL))
        return step(training, batch, number)

    loop.train_step = dying
    train_as_a_command(config)


@pytest.mark.parametrize("rank_killed", [0, 1])
def test_a_process_that_dies_stops_the_others_and_the_run_goes_on(shards, tmp_path, runtime, rank_killed):
    config = tiny_config(shards, tmp_path / "run", val=None, save_every=1, scale=ScaleConfig(spatial_parallel=2))
    started = time.monotonic()
    ended = start(train_until_killed, config, rank_killed, num_processes=2, timeout=300).wait()
    # Without being told of it, the survivor would wait for --scale.timeout-s, which is 600 s.
    assert time.monotonic() - started < 200 + SECONDS_TO_STOP
    assert ended[rank_killed].exit_code == -signal.SIGKILL
    survivor = ended[1 - rank_killed]
    assert survivor.exit_code == ExitCode.UNAVAILABLE, survivor.stderr
    lost = rf"rank {rank_killed} on \S+" if rank_killed else r"\S+ \(rank 0, the launch's store\)"
    assert re.search(rf"^error: {lost} ended.*run the same", survivor.stderr, re.MULTILINE), survivor.stderr
    assert [row["step"] for row in rows(config.out)] == [1, 2]
    run(train_as_a_command, config, num_processes=2)
    assert [row["step"] for row in rows(config.out)] == [1, 2, 3, 4, 5, 6]


def fall_silent(config) -> None:
    """One process stops answering, as when its machine loses its network."""
    step = loop.train_step

    def sleeping(training, batch, number):
        if number == 1 and training.context.rank == 1:
            time.sleep(3600)
        return step(training, batch, number)

    loop.train_step = sleeping
    train_as_a_command(config)


def test_a_process_that_falls_silent_is_taken_for_lost(shards, tmp_path):
    config = tiny_config(shards, tmp_path / "run", val=None, scale=ScaleConfig(timeout_s=4))
    started = start(fall_silent, config, num_processes=2, timeout=300)
    started.processes[0].join(250)
    assert started.processes[0].exitcode == ExitCode.UNAVAILABLE
    started.processes[1].kill()
    said = started.wait()[0].stderr
    lost = f"rank 1 on {socket.gethostname()}"
    assert f"error: {lost} did not come to where the others wait within 4 s (computing step 2, for" in said, said
    assert json.loads((config.out / "status.json").read_text())["code"] == ExitCode.UNAVAILABLE
    assert json.loads((config.out / "last" / "state.json").read_text())["position"]["step"] == 1


def refusal(config) -> str:
    from glioma_dist.distributed.context import DistributedContext

    try:
        loop.train(config, DistributedContext.start())
    except InputError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("num_processes", "changes", "message"),
    [
        (
            3,
            {"scale": ScaleConfig(spatial_parallel=2)},
            "--scale.spatial-parallel 2 does not divide the 3 processes of this launch",
        ),
        (
            1,
            {"scale": ScaleConfig(spatial_parallel=2)},
            "--scale.spatial-parallel 2 does not divide the 1 process of this launch",
        ),
        (
            4,
            {"scale": ScaleConfig(spatial_parallel=2), "batch_size": 3},
            "--batch-size 3 cannot be shared by 2 groups of processes",
        ),
        (
            3,
            {"scale": ScaleConfig(spatial_parallel=3)},
            "64 rows makes at most 2 strips of 32, and --scale.spatial-parallel 3 asks for more",
        ),
    ],
)
def test_a_wrong_launch_is_refused_before_any_data_is_read(tmp_path, num_processes, changes, message):
    """The data is not even there."""
    config = tiny_config(tmp_path / "nowhere", tmp_path / "run", **changes)
    messages = run(refusal, config, num_processes=num_processes)
    assert all(message in each for each in messages), messages
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory, runtime):
    out = tmp_path_factory.mktemp("trained") / "run"
    loop.train(tiny_config(shards, out, max_steps=3, transform="random-crop"), runtime)
    return out / "best"


def predict_here(config) -> str:
    from glioma_dist.distributed.context import DistributedContext

    try:
        result = predict(config, DistributedContext.start())
        result.raise_for_failures()
        return str(len(result.images))
    except RunError as error:
        return str(error)


def test_prediction_in_rows_equals_one_process_to_the_pixel(trained, tmp_path, runtime):
    """Three images on two groups of two processes, of different sizes, one of them too low for two strips."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number, size in enumerate(((70, 50), (64, 161), (100, 96), (64, 32))):
        cv2.imwrite(str(folder / f"{number}.png"), draw_sample(number, *size).image)
    predict(PredictConfig(trained, str(folder), tmp_path / "one"), runtime)
    config = PredictConfig(trained, str(folder), tmp_path / "rows", scale=InferenceScaleConfig(spatial_parallel=2))
    messages = run(predict_here, config, num_processes=4)
    assert all("1 of 4 images failed" in message and "3.png: an image of 32 rows" in message for message in messages)
    masks = sorted(path.name for path in (tmp_path / "rows").glob("*.mask.png"))
    assert masks == [f"{number}.mask.png" for number in range(3)]
    for name in masks:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "rows" / name).read_bytes(), name


def evaluate_here(config) -> EvaluationResult:
    from glioma_dist.distributed.context import DistributedContext

    return evaluate(config, DistributedContext.start())


def test_evaluation_in_rows_equals_one_process(trained, shards, runtime):
    config = EvaluateConfig(trained, str(shards / "train"), workers=0)
    expected = evaluate(config, runtime)
    found = run(evaluate_here, replace(config, scale=InferenceScaleConfig(spatial_parallel=2)), num_processes=4)
    assert found == [expected] * 4
