"""--ema-decay: the moving average of the weights, beside timm's and a plain loop's; what has it, and what uses it."""

import shutil
from dataclasses import replace

import pytest
import torch
from fp64 import train_in_fp64
from helpers import rows, run, seal, start_fp16, tiny_config
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from glioma_dist.config import EvaluateConfig, PredictConfig
from glioma_dist.errors import InputError
from glioma_dist.evaluation.protocol import evaluate
from glioma_dist.inference.predict import predict
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.manifest import EMA, MODEL, OPTIMIZER
from glioma_dist.model.unet import build_model, load_model
from glioma_dist.size import Size
from glioma_dist.training import loop, validation
from glioma_dist.training.weight_average import WeightAverage, decay_of_step

DECAY = 0.6
FILES = (MODEL, EMA, OPTIMIZER)


def weights(folder, file: str = MODEL) -> dict[str, Tensor]:
    return load_file(folder / file)


def unequal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    assert ours.keys() == theirs.keys()
    return [name for name, tensor in theirs.items() if not torch.equal(ours[name], tensor)]


@pytest.mark.parametrize("decay", [0.15, 0.5, 0.9999])
def test_the_average_is_timms_with_its_buffers(decay):
    """timm's warm-up of gamma 9 and power 1 is (1 + k) / (10 + k) where it is told that step k is its step k + 2."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).double()
    ours = WeightAverage(model, decay)
    theirs = ModelEmaV3(model, decay=decay, use_warmup=True, warmup_gamma=9, warmup_power=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for step in range(1, 30):
        model(torch.randn(2, 3, 8, 8, dtype=torch.float64) + step).square().mean().backward()
        optimizer.step()
        ours.update(step)
        theirs.update(model, step + 2)
    expected = theirs.module.state_dict()
    assert ours.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(ours.tensors[name], tensor, rtol=1e-12, atol=1e-12)
    assert not torch.equal(ours.tensors["1.running_mean"], model[1].running_mean)
    assert int(ours.tensors["1.num_batches_tracked"]) == 29


def test_the_decay_of_a_step():
    assert [decay_of_step(0.5, step) for step in (1, 2, 7, 8, 9, 1000)] == [2 / 11, 3 / 12, 8 / 17, 0.5, 0.5, 0.5]


def replayed(folders: list, begin: dict[str, Tensor]) -> dict[str, Tensor]:
    """The average by its definition, in fp64 from the weights of each step."""
    average = {name: tensor.double() for name, tensor in begin.items()}
    for step, folder in enumerate(folders, start=1):
        d = min(DECAY, (1 + step) / (10 + step))
        for name, tensor in weights(folder).items():
            average[name] = d * average[name] + (1 - d) * tensor if tensor.is_floating_point() else tensor
    return average


def steps_of(config) -> list:
    """The checkpoints of a run that has kept that of each step, the first step's first."""
    count = config.max_steps
    return [config.out / ("last" if step == count else f"last.{count - step}") for step in range(1, count + 1)]


def test_a_run_keeps_the_average_of_its_definition_and_validates_with_it(shards, tmp_path, runtime, monkeypatch):
    train_in_fp64(monkeypatch)
    config = tiny_config(
        shards, tmp_path / "run", ema_decay=DECAY, save_every=1, keep_last=9, max_steps=4, eval_every=2
    )
    score, seen = validation._score, []

    def noting(trainer, image, overlays):
        seen.append({name: each.clone() for name, each in trainer.model.state_dict().items()})
        return score(trainer, image, overlays)

    monkeypatch.setattr(validation, "_score", noting)
    loop.train(config, runtime)
    begin = build_model(config.model, config.seed)[0].double().state_dict()
    folders = steps_of(config)
    for count, folder in enumerate(folders, start=1):
        found, expected = weights(folder, EMA), replayed(folders[:count], begin)
        for name, tensor in found.items():
            torch.testing.assert_close(tensor.double(), expected[name].double(), rtol=1e-9, atol=1e-9)
    assert unequal(seen[0], weights(folders[1], EMA)) == []
    assert unequal(seen[-1], weights(folders[3], EMA)) == []
    assert unequal(weights(folders[3]), weights(folders[3], EMA)) != []
    best = weights(config.out / "best", EMA)
    step = Checkpoint.read(config.out / "best").step
    assert unequal(best, weights(folders[step - 1], EMA)) == []


def test_the_average_changes_no_step_and_is_absent_without_the_flag(shards, tmp_path, runtime):
    plain = tiny_config(shards, tmp_path / "plain")
    averaged = replace(plain, out=tmp_path / "averaged", ema_decay=DECAY)
    for config in (plain, averaged):
        loop.train(config, runtime)
    steps, others = ([row for row in rows(each.out) if "split" not in row] for each in (plain, averaged))
    assert steps == others
    for file in (MODEL, OPTIMIZER):
        assert (plain.out / "last" / file).read_bytes() == (averaged.out / "last" / file).read_bytes()
    assert not list(plain.out.rglob(EMA))
    assert {path.parent.name for path in averaged.out.rglob(EMA)} == {"best", "last", "last.1"}


def test_a_resumed_run_ends_with_the_same_bits(shards, tmp_path, runtime):
    config = tiny_config(shards, tmp_path / "whole", ema_decay=DECAY)
    loop.train(config, runtime)
    resumed = replace(config, out=tmp_path / "resumed")
    for steps in (1, 4, 6):
        loop.train(replace(resumed, max_steps=steps), runtime)
    for file in FILES:
        assert unequal(weights(resumed.out / "last", file), weights(config.out / "last", file)) == []
    assert [row for row in rows(resumed.out) if row["step"] == 6] == [
        row for row in rows(config.out) if row["step"] == 6
    ]


def test_a_validation_that_fails_leaves_the_trained_weights(shards, tmp_path, runtime, monkeypatch):
    """The run is saved as it was, and goes on to the bits of one that did not fail."""
    config = tiny_config(shards, tmp_path / "whole", ema_decay=DECAY)
    loop.train(config, runtime)
    failing = replace(config, out=tmp_path / "failing")
    score, calls = validation._score, []

    def breaking(*given):
        calls.append(1)
        if len(calls) == 2:
            raise InputError("an image that cannot be scored")
        return score(*given)

    with monkeypatch.context() as patch:
        patch.setattr(validation, "_score", breaking)
        with pytest.raises(InputError, match="cannot be scored"):
            loop.train(failing, runtime)
    assert Checkpoint.read(failing.out / "last").step == 3
    loop.train(failing, runtime)
    for file in FILES:
        assert unequal(weights(failing.out / "last", file), weights(config.out / "last", file)) == []


class FailingScratch(dict):
    """Fails at the third tensor that is exchanged."""

    count = 0

    def __getitem__(self, key):
        self.count += 1
        if self.count == 3:
            raise MemoryError
        return super().__getitem__(key)


def test_an_exchange_that_fails_half_way_is_undone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    average = WeightAverage(model, DECAY)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(1)
    before, averages = (
        {name: each.clone() for name, each in of.items()} for of in (model.state_dict(), average.tensors)
    )
    with average.in_place_of_weights():
        assert unequal(dict(model.state_dict()), averages) == []
        assert unequal(average.tensors, before) == []
    average._scratch = FailingScratch(average._scratch)
    with pytest.raises(MemoryError), average.in_place_of_weights():
        pass
    assert unequal(dict(model.state_dict()), before) == []
    assert unequal(average.tensors, averages) == []
    assert average.tensors["0.weight"].stride() == model[0].weight.stride()


def train_in_fp16(config) -> list[int]:
    """Train in real fp16. Returns the number of each step that was tried."""
    here, tried, step = start_fp16(), [], loop.train_step

    def noting(training, batch, number):
        tried.append(number)
        return step(training, batch, number)

    loop.train_step = noting
    loop.train(config, here)
    return tried


def test_an_fp16_step_that_is_skipped_moves_no_average(shards, tmp_path):
    changes = {"ema_decay": DECAY, "save_every": 1, "keep_last": 9, "max_steps": 2, "val": None}
    config = tiny_config(shards, tmp_path / "run", size=Size(32, 32), **changes)  # CPUs are slow in fp16
    (tried,) = run(train_in_fp16, config)
    assert tried.count(0) > 1, "the first loss scale overflows"
    begin = build_model(config.model, config.seed)[0].state_dict()
    expected = replayed(steps_of(config), begin)
    for name, tensor in weights(config.out / "last", EMA).items():
        torch.testing.assert_close(tensor.double(), expected[name].double(), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def best(shards, tmp_path_factory, runtime):
    config = tiny_config(shards, tmp_path_factory.mktemp("averaged") / "run", ema_decay=DECAY, max_steps=3)
    loop.train(config, runtime)
    return config.out / "best"


def test_a_checkpoint_is_loaded_with_its_average_or_raw(best):
    for raw, file in ((False, EMA), (True, MODEL)):
        model, _ = load_model(best, raw)
        assert unequal(model.state_dict(), weights(best, file)) == []
    config = Checkpoint.read(best).config
    begun, _ = build_model(replace(config.model, init=str(best)), 0)
    assert unequal(begun.state_dict(), weights(best, EMA)) == []


def test_evaluate_and_predict_say_which_weights_they_use(best, shards, tmp_path, runtime, capsys):
    found = {}
    for raw in (False, True):
        config = EvaluateConfig(best, shards / "val", workers=0, raw_weights=raw)
        found[raw] = evaluate(config, runtime).mean_dice
        said = capsys.readouterr().out
        assert said.count("using the moving average of the weights") == (not raw)
        assert said.count("using the weights as the optimizer left them") == raw
    plain = tmp_path / "plain"  # the raw weights alone
    shutil.copytree(best, plain)
    (plain / EMA).unlink()
    seal(plain)
    assert evaluate(EvaluateConfig(plain, shards / "val", workers=0), runtime).mean_dice == found[True] != found[False]
    assert "average" not in capsys.readouterr().out
    evaluate(EvaluateConfig(plain, shards / "val", workers=0, raw_weights=True), runtime)
    assert "--raw-weights has no effect" in capsys.readouterr().out


def test_a_second_prediction_with_the_other_weights_is_made(best, tmp_path, runtime, capsys):
    import cv2
    from helpers import draw_sample

    cv2.imwrite(str(tmp_path / "image.png"), draw_sample(3).image)
    probabilities = []
    for raw in (False, True):
        config = PredictConfig(
            best, str(tmp_path / "image.png"), tmp_path / "out", write=("probability",), raw_weights=raw, redo=False
        )
        predict(config, runtime)
        (file,) = (tmp_path / "out").rglob("*.tif")
        probabilities.append(file.read_bytes())
    assert probabilities[0] != probabilities[1]


def test_parts_of_a_checkpoint_are_joined_with_the_average(best, tmp_path):
    from glioma_dist.cli.merge import MergeConfig
    from glioma_dist.cli.merge import run as merge

    merge(MergeConfig(best, tmp_path / "merged"))
    assert unequal(weights(tmp_path / "merged", EMA), weights(best, EMA)) == []


def test_a_checkpoint_without_its_average_is_damaged(shards, tmp_path, runtime):
    config = tiny_config(shards, tmp_path / "run", ema_decay=DECAY, max_steps=3)
    loop.train(config, runtime)
    (config.out / "last" / EMA).unlink()
    seal(config.out / "last")
    with pytest.raises(InputError, match=r"ema\.safetensors: is not in this checkpoint"):
        loop.train(replace(config, max_steps=4), runtime)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, float("nan")])
def test_a_decay_that_is_none_is_refused(shards, tmp_path, decay):
    with pytest.raises(InputError, match=r"--ema-decay .*: give a number between 0 and 1"):
        tiny_config(shards, tmp_path, ema_decay=decay).validate()


def test_another_decay_is_another_run(best, shards, runtime):
    config = tiny_config(shards, best.parent, ema_decay=0.5, max_steps=3)
    with pytest.raises(InputError, match=r"ema_decay 0\.6 -> 0\.5"):
        loop.train(config, runtime)
