"""Several processes equal one: training, stopping, going on, evaluation, prediction; and the real launcher."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from engines import keep_trained_models
from helpers import REPOSITORY, change_loss, damage_sample, draw_sample, rows, run, start, tiny_config, train_here
from safetensors.torch import load_file

from glioma_dist.config import EvaluateConfig, PredictConfig, ScaleConfig
from glioma_dist.errors import ExitCode, InputError, NonFiniteError, RunError
from glioma_dist.evaluation.protocol import evaluate
from glioma_dist.inference.predict import predict
from glioma_dist.training import loop, preparation

FIRST_STEP_FP32, FP64 = 1e-6, 1e-9
"""What several processes promise of one's losses: in fp32 the first step, before Adam has made steps of rounding; in
fp64 every step of a short run."""


def train_and_tell(config) -> tuple[int, list[tuple[str, ...]]]:
    """Train; returns the number of processes, and the keys of each batch's share here."""
    from glioma_dist.distributed.context import DistributedContext

    seen, train_step = [], loop.train_step

    def telling(training, batch, *more):
        seen.append(batch.keys)
        return train_step(training, batch, *more)

    loop.train_step = telling
    try:
        here = DistributedContext.start()
        loop.train(config, here)
    finally:
        loop.train_step = train_step
    return here.num_processes, seen


def train_in_double(config) -> tuple[int, list[tuple[str, ...]]]:
    """Train with the model, its input and its loss in fp64; returns what `train_and_tell` does."""
    build_model = preparation.build_model
    preparation.build_model = lambda *given: (build_model(*given)[0].double(), [])
    try:
        return train_and_tell(config)
    finally:
        preparation.build_model = build_model


def check_close(ours: list[dict], theirs: list[dict], tolerance: float) -> None:
    assert [(row["step"], row["epoch"], row.get("split")) for row in ours] == [
        (row["step"], row["epoch"], row.get("split")) for row in theirs
    ]
    assert len(ours) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance)
        assert one["dice"] == pytest.approx(other["dice"], abs=2e-3)  # a pixel at nought may fall to either side


@pytest.mark.parametrize(
    ("num_processes", "changes"),
    [(2, {}), (2, {"norm": "group", "loss": "dice+bce"}), (4, {})],
    ids=["2, batch norm", "2, group norm", "4, batch norm"],
)
def test_training_on_several_processes_equals_one(shards, tmp_path, num_processes, changes):
    """With augmentation, stochastic depth and statistics over the whole batch: one sample a process even, where a batch
    norm of each process's own would be another network. Three steps in fp64, and one in fp32."""
    for train_one, steps, tolerance in ((train_in_double, 3, FP64), (train_and_tell, 1, FIRST_STEP_FP32)):
        config = tiny_config(shards, tmp_path / f"one {steps}", max_steps=steps, eval_every=steps, **changes)
        _, expected_keys = train_one(config)
        out = tmp_path / f"several {steps}"
        several = run(train_one, replace(config, out=out), num_processes=num_processes)
        assert [number for number, _ in several] == [num_processes] * num_processes
        assert [sum((keys[step] for _, keys in several), ()) for step in range(steps)] == expected_keys
        ours, theirs = ([row for row in rows(each) if "split" not in row] for each in (out, config.out))
        check_close(ours, theirs, tolerance)


@pytest.mark.equality(flag="DDP, activation checkpointing {kind}", encoder="mit_tiny", processes=2, kind="1e-9")
@pytest.mark.parametrize("kind", ["none", "selective", "full", "offload"])
def test_in_double_precision_every_weight_and_buffer_of_two_processes_equals_one(shards, tmp_path, kind):
    """Whatever the two compute again. In fp32 the last bits of a sum decide on which side of a ReLU a pixel falls, and
    Adam makes steps of them; in fp64 nothing of that is left, and three steps must give the same network."""
    config = tiny_config(shards, tmp_path / "one", max_steps=3)
    train_in_double(config)
    two = replace(config, out=tmp_path / "two", scale=ScaleConfig(activation_checkpointing=kind))
    run(train_in_double, two, num_processes=2)
    one, other = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == other.keys()
    assert one["decoder.head.weight"].dtype == torch.float64
    for name, tensor in one.items():
        torch.testing.assert_close(
            other[name], tensor, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name} {text}"
        )


def test_without_statistics_over_processes_the_test_above_would_fail(shards, tmp_path):
    """Its counter-check: with PyTorch's own batch norm on each process the first loss moves far more than allowed."""
    config = tiny_config(shards, tmp_path / "one", max_steps=1, val=None)
    train_and_tell(config)
    run(train_with_local_batch_norm, replace(config, out=tmp_path / "two"), num_processes=2)
    one, two = (rows(tmp_path / name)[0]["loss"] for name in ("one", "two"))
    assert abs(one - two) > 100 * FIRST_STEP_FP32


def train_with_local_batch_norm(config) -> None:
    preparation.synchronise_batch_norm = lambda model, _device: model
    train_here(config)


def test_a_run_resumes_with_another_number_of_processes(shards, tmp_path):
    """2, then 3, then 1: each step takes the samples of an undisturbed run in the same order, and has its loss."""
    config = tiny_config(shards, tmp_path / "whole", batch_size=6, epochs=10)
    _, expected = train_in_double(config)
    moving = replace(config, out=tmp_path / "moving")
    seen = []
    for num_processes, steps in ((2, 2), (3, 4), (1, 6)):
        told = run(train_in_double, replace(moving, max_steps=steps), num_processes=num_processes)
        assert [number for number, _ in told] == [num_processes] * num_processes
        seen += [sum(parts, ()) for parts in zip(*(keys for _, keys in told), strict=True)]
    assert len(seen) == 6
    assert seen == expected
    whole = [row for row in rows(config.out) if "split" not in row]
    check_close([row for row in rows(moving.out) if "split" not in row], whole, FP64)


def train_until_asked(config, rank_asked: int) -> None:
    """Train; one rank alone gets SIGTERM before its second step."""
    from glioma_dist.distributed.run_command import run_command

    train_step = loop.train_step

    def asking(training, batch, step):
        if step == 1 and training.context.rank == rank_asked:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(training, batch, step)

    loop.train_step = asking
    run_command(lambda: train_here(config))


@pytest.mark.parametrize("rank_asked", [0, 1])
def test_all_processes_stop_together_whichever_is_asked(shards, tmp_path, runtime, rank_asked):
    config = tiny_config(shards, tmp_path / "run", val=None)
    ended = start(train_until_asked, config, rank_asked, num_processes=2).wait()
    assert [end.exit_code for end in ended] == [ExitCode.STOPPED] * 2, ended[0].stderr
    assert ended[1].stderr == "", "the first process speaks for all"
    step = int(re.fullmatch(r"stopped: received SIGTERM, checkpoint saved at step (\d)\..*\n", ended[0].stderr)[1])
    assert json.loads((config.out / "last" / "state.json").read_text())["position"]["step"] == step
    assert [row["step"] for row in rows(config.out)] == list(range(1, step + 1))
    loop.train(config, runtime)
    assert [row["step"] for row in rows(config.out)] == [1, 2, 3, 4, 5, 6]


def train_into_nan(config) -> str:
    """Train with a loss that is not finite for the second image of rank 1, in the second step; returns the error."""
    calls = []

    def breaking(losses, *arguments):
        calls.append(1)
        values = losses(*arguments)
        return values * torch.tensor([1, math.nan]) if len(calls) == 2 and os.environ["RANK"] == "1" else values

    change_loss(pytest.MonkeyPatch(), True, breaking)
    before = []
    train_step = loop.train_step

    def remembering(training, *more):
        before[:] = [parameter.detach().clone() for parameter in training.model.parameters()]
        try:
            return train_step(training, *more)
        except NonFiniteError:
            assert all(map(torch.equal, before, training.model.parameters())), "a weight moved"
            raise

    loop.train_step = remembering
    try:
        train_here(config)
    except NonFiniteError as error:
        return str(error)
    return "no error"


def test_a_loss_that_is_no_number_stops_all_before_a_weight_moves(shards, tmp_path):
    config = tiny_config(shards, tmp_path / "run", val=None)
    _, keys = train_and_tell(replace(config, out=tmp_path / "other", max_steps=2))
    messages = run(train_into_nan, config, num_processes=2)
    assert messages[0] == messages[1]
    assert "step 2: the loss is nan" in messages[0]
    assert f"(samples {keys[1][3]})" in messages[0]
    assert [row["step"] for row in rows(config.out)] == [1]


def refuse(config) -> str:
    try:
        train_here(config)
    except InputError as error:
        return str(error)
    return "no error"


@pytest.mark.equality(flag="batch of 4", encoder="mit_tiny", processes=3, kind="refused")
def test_processes_that_do_not_divide_the_batch_are_refused_on_all(shards, tmp_path):
    messages = run(refuse, tiny_config(shards, tmp_path / "run"), num_processes=3)
    assert all("--batch-size 4 cannot be shared by 3 processes" in message for message in messages), messages


def train_as_a_command(config) -> None:
    from glioma_dist.distributed.run_command import run_command

    run_command(lambda: train_here(config))


def test_a_damaged_sample_of_one_process_is_named_once_and_all_work_is_saved(shards, tmp_path):
    """Without a launcher, which would end the other at once; that one must end too, and not wait for ever."""
    shutil.copytree(shards, tmp_path / "data")
    config = tiny_config(tmp_path / "data", tmp_path / "run", val=None)
    _, keys = train_and_tell(replace(config, out=tmp_path / "other", max_steps=2))
    damage_sample(tmp_path / "data" / "train", keys[1][3])
    ended = start(train_as_a_command, config, num_processes=2).wait()
    assert [end.exit_code for end in ended] == [2, 2]
    assert f"{keys[1][3]}.png" in ended[0].stderr
    assert ended[0].stderr.endswith("(checkpoint saved at step 1)\n")
    assert ended[1].stderr == "", "the first process speaks for all"
    assert [row["step"] for row in rows(config.out)] == [1]
    assert json.loads((config.out / "last" / "state.json").read_text())["position"]["step"] == 1


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory, runtime):
    out = tmp_path_factory.mktemp("trained") / "run"
    loop.train(tiny_config(shards, out, max_steps=3, transform="random-crop"), runtime)
    return out / "best"


def evaluate_here(config) -> dict:
    from glioma_dist.distributed.context import DistributedContext

    return evaluate(config, DistributedContext.start()).to_dict()


@pytest.mark.parametrize("num_processes", [2, 3])
def test_evaluation_on_several_processes_equals_one(trained, shards, tmp_path, runtime, num_processes):
    """Ten images on two and three processes, each once; bit for bit, for each image goes through the network alone."""
    config = EvaluateConfig(trained, str(shards / "train"), out=tmp_path / "scores.json", workers=0)
    expected = evaluate(replace(config, out=None), runtime).to_dict()
    found = run(evaluate_here, config, num_processes=num_processes)
    assert len(expected["images"]) == 10
    assert found == [expected] * num_processes
    assert json.loads(config.out.read_text()) == expected


def predict_here(config) -> str:
    from glioma_dist.distributed.context import DistributedContext

    try:
        result = predict(config, DistributedContext.start())
        result.raise_for_failures()
        return str(len(result.images))
    except RunError as error:
        return str(error)


def test_prediction_on_several_processes_equals_one(trained, tmp_path, runtime):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(5):
        cv2.imwrite(str(folder / f"{number}.png"), draw_sample(number, 70 + number, 50).image)
    predict(PredictConfig(trained, str(folder), tmp_path / "one"), runtime)
    assert run(predict_here, PredictConfig(trained, str(folder), tmp_path / "two"), num_processes=2) == ["5", "5"]
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 12
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in set(files) - {"predict.json"}:  # which holds times
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_prediction_on_several_processes_names_every_damaged_file(trained, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        cv2.imwrite(str(folder / f"{number}.png"), draw_sample(number).image)
    for number in (1, 2):
        (folder / f"{number}.png").write_bytes(b"nothing")
    messages = run(predict_here, PredictConfig(trained, str(folder), tmp_path / "out"), num_processes=2)
    for message in messages:
        assert all(part in message for part in ("2 of 4 images", "1.png", "2.png"))
    assert len((tmp_path / "out" / "summary.csv").read_text().splitlines()) == 3


def test_the_real_launcher_trains_one_model_on_two_processes(shards, quick_python, tmp_path, runtime):
    """`accelerate launch` with the repository's own file, from the command line to the checkpoint."""
    config = tiny_config(shards, tmp_path / "one", max_steps=2, eval_every=None)
    loop.train(config, runtime)
    file = REPOSITORY / "accelerate_configs" / "cpu_2_processes.yaml"
    launcher = [str(quick_python), "-m", "accelerate.commands.launch", "--config_file", str(file)]
    script = ["train.py", "--config", str(tmp_path / "one" / "config.json"), "--out", str(tmp_path / "two")]
    command = [*launcher, "--main_process_port", "0", *script]
    ended = subprocess.run(
        command,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "10 images, batch 4 on 2 processes (cpu), activation checkpointing none, from step 0 to 2" in ended.stdout
    assert "Warning" not in ended.stderr
    check_close(rows(tmp_path / "two")[:1], rows(tmp_path / "one")[:1], FIRST_STEP_FP32)
    assert (tmp_path / "two" / "best" / "model.safetensors").is_file()


def test_the_processes_buffers_are_equal(shards, tmp_path):
    """They are not sent around: each must have come to the same by itself."""
    ranks = run(train_for_buffers, tiny_config(shards, tmp_path / "run", max_steps=3, val=None), num_processes=2)
    assert ranks[0].keys() == ranks[1].keys()
    assert any("running_var" in name for name in ranks[0])
    for name, values in ranks[0].items():
        np.testing.assert_array_equal(values, ranks[1][name], err_msg=name)


def train_for_buffers(config) -> dict[str, np.ndarray]:
    kept = keep_trained_models()
    train_here(config)
    return {name: tensor.numpy() for name, tensor in kept[0].state_dict().items()}


def test_copies_of_the_shards_elsewhere_are_the_same_data(shards, tmp_path, runtime):
    """Each machine of a launch may have its own copy."""
    config = tiny_config(shards, tmp_path / "run", max_steps=1, val=None)
    loop.train(config, runtime)
    shutil.copytree(shards, tmp_path / "copy")
    loop.train(tiny_config(tmp_path / "copy", tmp_path / "run", max_steps=2, val=None), runtime)
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2]
