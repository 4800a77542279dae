"""What a run warns of: images that training and validation share, masks and predictions of one value, and a loss that
does not move. Each warning is one line, told once, and kept in status.json and run.json."""

import json
import math
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from data_helpers import real_data
from faulty_server import files_of, serve
from helpers import draw_sample, draw_shards, rows, tiny_config, write_shards

from glioma_dist.data import shared_images
from glioma_dist.data.background import coverage, note_on_coverage
from glioma_dist.data.image_statistics import training_statistics
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shared_images import notes_on_shared_data
from glioma_dist.errors import MAX_LINE, InputError, one_line
from glioma_dist.training import loop
from glioma_dist.training.loss_watch import FEWEST_STEPS, LossWatch
from glioma_dist.training.run_warnings import RunWarnings, earlier_warnings
from glioma_dist.training.validation_watch import ValidationWatch, count_cells, uniform_kind


def named(number: int, key: str, **metadata) -> object:
    sample = draw_sample(number, 160, 120)
    return replace(sample, key=key, metadata={"dataset": "drawn", **metadata})


def look(tmp_path, train: list, val: list):
    folders = [write_shards(tmp_path / name, samples) for name, samples in (("train", train), ("val", val))]
    return notes_on_shared_data([ShardReader(folders[0])], ShardReader(folders[1]))


OWN = [named(number, f"own{number}") for number in range(5)]


def lighter(number: int, key: str) -> object:
    """The same picture, saved again with other values."""
    sample = named(number, key)
    return replace(sample, image=(0.8 * sample.image.astype(float) + 20).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("val", "images", "groups"),
    [
        ([named(7, "a"), named(8, "b")], None, None),
        (
            [named(7, "a"), named(2, "own2")],
            "1 of 2 validation images is also in the training data (for example own2)",
            0,
        ),
        ([named(7, "a"), named(2, "renamed")], "1 of 2 validation images is also in .* (for example renamed)", None),
        ([named(1, "x"), named(2, "y", group="g")], "2 of 2 validation images are also in", None),
        ([lighter(3, "own3"), named(7, "a")], "1 of 2 .* (for example own3)", None),
        ([named(7, "own3"), named(8, "own1")], None, None),
    ],
    ids=["none", "the same sample", "another name", "other metadata", "saved again", "one name, other images"],
)
def test_shared_images_are_found_by_name_and_by_content(tmp_path, val, images, groups):
    found = look(tmp_path, OWN, val)
    assert not found.groups
    if images is None:
        assert found.images is None
    else:
        assert len(found.images) <= MAX_LINE
        before, _, after = images.partition(".*")
        assert before in found.images
        assert after in found.images
        assert "--group-pattern" in found.images


def test_groups_of_both_sets_are_named_unless_they_are_of_another_data_set(tmp_path):
    train = [named(number, f"t{number}", group=f"well{number % 2}") for number in range(4)]
    val = [named(7, "a", group="well1"), named(8, "b", group="well5"), named(9, "c")]
    found = look(tmp_path, train, val)
    assert found.images is None
    assert "1 group is also in the training data (for example well1): other images of the same" in found.groups
    others = [replace(sample, metadata={**sample.metadata, "dataset": "other"}) for sample in val]
    assert look(tmp_path / "others", train, others) == (None, None)
    # A group that is only shared because an image is, is told with the image.
    assert look(tmp_path / "same", train, [replace(train[1], key="z")]).groups is None


def test_urls_are_read_with_few_requests(tmp_path, monkeypatch):
    pytest.importorskip("aiohttp", reason="needs the extra cloud")
    train = [named(number, f"t{number}", group="one") for number in range(12)]
    write_shards(tmp_path / "shards" / "train", train, 2)
    write_shards(tmp_path / "shards" / "val", [named(3, "renamed", group="one"), named(20, "v", group="one")], 2)
    with serve(files_of(tmp_path / "shards")) as server:
        readers = [ShardReader(f"{server.url}/{name}") for name in ("train", "val")]
        before = len(server.requests)
        found = notes_on_shared_data(readers[:1], readers[1])
        assert "1 of 2 validation images" in found.images
        assert found.groups is None, "the group is that of a shared image, too"
        assert len(server.requests) - before <= 2 * 6 + 3 + 14 + 2 * shared_images.MOST_COMPARED_REMOTE
        monkeypatch.setattr(shared_images, "MOST_TABLES", 2)
        monkeypatch.setattr(shared_images, "MOST_METADATA_REMOTE", 2)
        before = len(server.requests)
        notes_on_shared_data(readers[:1], readers[1])
        assert len(server.requests) - before <= 14


def test_what_cannot_be_read_is_left_to_the_training(tmp_path):
    write_shards(tmp_path / "train", OWN)
    write_shards(tmp_path / "val", [named(7, "a")])
    readers = [ShardReader(tmp_path / name) for name in ("train", "val")]
    (tmp_path / "train" / "00001.members.json").write_text("[")
    assert notes_on_shared_data(readers[:1], readers[1]) == (None, None)


def test_published_splits_of_real_images_share_no_image(tmp_path):
    """LIVECell's own validation and test images; wells of both are told, and no image."""
    from glioma_dist.data.convert.conversion import convert
    from glioma_dist.data.convert.sources import find_livecell

    convert(find_livecell(real_data("livecell_1pct")), tmp_path, "livecell")
    val, test = (ShardReader(tmp_path / name) for name in ("val", "test"))
    assert notes_on_shared_data([test], val) == (None, None)
    assert "5 of 5 validation images are" in notes_on_shared_data([val], val).images


@pytest.mark.parametrize(
    ("share", "what"), [(0.0005, "hardly any pixel"), (0.05, None), (0.6, None), (0.995, "nearly every pixel")]
)
def test_masks_of_one_value_are_told_from_the_samples_that_are_read_anyway(tmp_path, share, what):
    samples = []
    for number in range(10):
        mask = (np.random.default_rng(number).random((200, 200)) < share).astype(np.uint8)
        samples.append(replace(draw_sample(number, 200, 200), mask=mask))
    reader = ShardReader(write_shards(tmp_path / "train", samples))
    shares: list[float] = []
    config = tiny_config(tmp_path, tmp_path / "run").data
    training_statistics(reader, config, lambda sample: shares.append(coverage(sample.mask)))
    assert np.isclose(np.mean(shares), np.mean([sample.mask.mean() for sample in samples]))
    note = note_on_coverage(shares, [reader])
    assert (note is None) == (what is None)
    if what:
        assert what in note
        assert one_line(note) == note
    assert (note_on_coverage([], [reader]) is None) == (what is None), "also where none was read before"


def test_pixels_that_nobody_labelled_are_no_background():
    mask = np.array([[1, 255, 255, 255], [0, 255, 255, 2]], np.uint8)
    assert coverage(mask) == pytest.approx(2 / 3)
    assert coverage(np.full((2, 2), 255, np.uint8)) == 0
    predicted = torch.tensor([[[1, 1, 0, 0], [0, 0, 1, 1]]]) > 0
    assert count_cells(predicted, torch.from_numpy(mask)[None]).tolist() == [2, 2, 3]


@pytest.mark.parametrize(
    ("predicted", "reference", "kind"),
    [
        *[(0, 300, "empty"), (14, 300, "empty"), (16, 300, None), (1000, 300, "full"), (964, 300, None)],
        *[(970, 300, "full"), (0, 0, None), (300, 0, None), (1000, 1000, None), (1000, 0, "full"), (0, 1000, "empty")],
    ],
)
def test_a_prediction_of_one_value(predicted, reference, kind):
    assert uniform_kind(predicted, reference, 1000) == kind


def test_it_is_told_when_it_lasts_or_when_the_run_is_over():
    watch = ValidationWatch()
    told = []
    for predicted, is_last in ((0, False), (300, False), (0, False), (1000, False), (1000, False), (0, True)):
        watch.counted((predicted, 250, 1000))
        told.append(watch.judge(is_last))
    assert [bool(each) for each in told] == [False, False, False, False, True, True]
    assert "nearly full: cells cover 100 % of them, and 25 % of the reference masks" in told[4]
    assert "nearly empty: cells cover 0 % of them" in told[5]


def test_few_pixels_are_told_without_a_power_of_ten(tmp_path):
    watch = ValidationWatch()
    watch.counted((1, 10**6, 2592 * 1952))
    assert "cells cover 0.00002 % of them, and 20 % of the reference masks" in watch.judge(True)
    reader = ShardReader(write_shards(tmp_path / "one", [draw_sample(0)]))
    assert "cell (0.00002 % in 1 sample), so" in note_on_coverage([2e-7], [reader])


def noise(seed: int, num: int, deviation: float) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, deviation, num)


def first_warning(losses, steps_per_epoch: int = 100, dice: float = 0.4, **how) -> int | None:
    watch = LossWatch(steps_per_epoch, **how)
    told = [step for step, loss in enumerate(losses, 1) if watch.add(step, float(loss), dice)]
    assert len(told) <= 1
    return told[0] if told else None


@pytest.mark.parametrize("seed", range(20))
def test_a_loss_that_stands_still_is_told_and_one_that_moves_is_not(seed):
    """Noise of 5 % of the loss in each step, as crops of real fields have."""
    num = 1600
    still = 0.6 + noise(seed, num, 0.03)
    assert first_warning(still) in (100, 200, 400, 800, 1600)
    steps = np.arange(num)
    for falling in (0.3 * np.exp(-steps / 60), 0.2 * np.exp(-steps / 300), 0.0005 * -steps):
        assert first_warning(0.6 + falling + noise(seed, num, 0.03)) is None
    assert first_warning(0.6 + 0.0005 * steps + noise(seed, num, 0.03)) is None, "one that rises moves"
    assert first_warning(np.full(num, 0.6), 10) == FEWEST_STEPS
    assert first_warning(np.full(num, 0.6), 10**6) == 1024


def test_two_validations_tell_a_standstill_that_noise_hides():
    def first(values: list[float], trend: float = 0.0, every: int = 40, **how) -> int | None:
        watch = LossWatch(100, **how)
        for step, loss in enumerate(0.6 + noise(1, 400, 0.2), 1):
            assert watch.add(step, float(loss) + trend * step, 0.4) is None
            if step % every == 0 and watch.add_validation(step, values[step // every - 1], 0.8):
                return step
        return None

    assert first([0.6] * 10) == 120, "two of at least 64 steps apart"
    assert first([0.6, 0.6, 0.6005] * 4) == 120
    assert first([0.6 - 0.002 * number for number in range(10)]) is None
    assert first([0.6] * 10, trend=-0.005) is None, "the losses of the steps move"
    assert first([0.6] * 10, is_trained=True) is None
    assert first([0.6] * 10, first_step=200) == 320


def test_a_good_start_from_trained_weights_need_not_move():
    assert first_warning(np.full(200, 0.2), dice=0.8, is_trained=True) is None
    assert first_warning(np.full(200, 0.2), dice=0.5, is_trained=True) == 100
    assert first_warning(np.full(200, 0.2), dice=0.8) == 100
    warming = np.concatenate([np.full(100, 0.6), 0.6 - 0.003 * np.arange(100)])
    assert first_warning(warming) == 100
    assert first_warning(warming, first_step=100) is None


def test_a_resumed_run_looks_at_the_same_losses():
    losses = 0.6 + noise(3, 400, 0.02)
    whole = first_warning(losses)
    for split in (1, 50, 99, 150, 399):
        told = [{"step": step, "loss": float(loss), "dice": 0.4} for step, loss in enumerate(losses[:split], 1)]
        told.insert(split // 2, {"step": split // 2, "split": "val", "loss": 9.0, "dice": 0.1})
        watch = LossWatch(100, told)
        found = [step for step, loss in enumerate(losses[split:], split + 1) if watch.add(step, float(loss), 0.4)]
        assert found == ([whole] if whole > split else [])


@pytest.mark.parametrize(
    "value", [10**400, -(10**400), 1e308, math.inf, math.nan, None, "1"], ids=lambda each: str(each)[:5]
)
def test_rows_that_no_run_writes_do_not_count(value):
    rows = [{"step": step, "loss": value if step % 2 else 0.5, "dice": 0.1} for step in range(1, 4 * FEWEST_STEPS)]
    rows += [{"step": step, "split": "val", "loss": value, "dice": 0.1} for step in (200, 300)]
    watch = LossWatch(FEWEST_STEPS, rows)
    found = [watch.add(step, 0.5, 0.1) for step in range(4 * FEWEST_STEPS, 5 * FEWEST_STEPS)]
    assert sum(text is not None for text in found) <= 1


def test_warnings_are_told_once_also_over_starts(tmp_path):
    said = []
    warnings = RunWarnings(said.append)
    for _ in range(2):
        warnings.tell("a", "first\nline", 3)
    assert said == ["first\nline"]
    assert warnings.entries == [{"kind": "a", "step": 3, "text": "first line"}]
    (tmp_path / "status.json").write_text(json.dumps({"warnings": [*warnings.entries, 3, {"kind": 1}, {"kind": "b"}]}))
    again = RunWarnings(said.append)
    again.tell("b", "second")
    again.resume(tmp_path)
    again.tell("a", "first line", 9)
    assert said == ["first\nline", "second"]
    assert [entry["kind"] for entry in again.entries] == ["a", "b"]
    for text in ("", "[", "[]", '{"warnings": 3}', "null"):
        (tmp_path / "status.json").write_text(text)
        assert earlier_warnings(tmp_path) == []


def told_of(out) -> list[str]:
    status, record = (json.loads((out / name).read_text()) for name in ("status.json", "run.json"))
    assert record["starts"][-1]["warnings"] == status["warnings"]
    return [entry["kind"] for entry in status["warnings"]]


def test_a_run_tells_its_warnings_and_trains_the_same(shards, tmp_path, runtime, capfd, monkeypatch):
    """Without a change of a number; and a resumed run does not repeat them."""
    plain = tiny_config(shards, tmp_path / "plain")
    loop.train(plain, runtime)
    assert told_of(plain.out) == []
    assert "warning" not in capfd.readouterr().err
    shutil.copytree(shards / "train", tmp_path / "both" / "train")
    shutil.copytree(shards / "val", tmp_path / "both" / "val")
    config = tiny_config(tmp_path / "both", tmp_path / "run", val=tmp_path / "both" / "train", max_steps=3)
    loop.train(config, runtime)
    printed = capfd.readouterr()
    assert printed.err.count("warning: ") == 1
    assert "10 of 10 validation images are also in the training data" in printed.err
    assert "warnings of this run: shared-images; " in printed.out
    assert told_of(config.out) == ["shared-images"]
    status = json.loads((config.out / "status.json").read_text())
    (config.out / "status.json").write_text(json.dumps(status | {"state": "running"}))  # killed before it said so
    loop.train(config, runtime)
    assert [json.loads((config.out / "status.json").read_text())[name] for name in ("state", "warnings")] == [
        "finished",
        status["warnings"],
    ]
    (config.out / "config.json").unlink()
    (config.out / "config.json").mkdir()
    with pytest.raises(InputError, match=r"config\.json"):
        loop.train(replace(config, max_steps=6), runtime)
    assert told_of(config.out) == ["shared-images"], "a start that could not write must not forget them"
    (config.out / "config.json").rmdir()
    loop.train(replace(config, max_steps=6), runtime)
    assert "also in the training data" not in capfd.readouterr().err
    assert told_of(config.out) == ["shared-images"]
    assert [row for row in rows(config.out) if "split" not in row] == [
        row for row in rows(plain.out) if "split" not in row
    ]


def test_a_run_whose_weights_cannot_move_says_so(tmp_path, runtime, capfd):
    draw_shards(tmp_path / "train", range(4), width=64, height=64)
    config = tiny_config(
        tmp_path, tmp_path / "run", val=None, lr=1e-12, max_steps=70, eval_every=70, transform="resize", augment=()
    )
    loop.train(replace(config, epochs=100), runtime)
    err = capfd.readouterr().err
    assert err.count("warning: ") == 1
    assert "the loss has not moved in 64 steps" in err
    assert told_of(config.out) == ["loss-not-moving"]


def test_a_validation_with_a_network_that_predicts_nothing_says_so(shards, tmp_path, runtime, capfd, monkeypatch):
    from glioma_dist.training import validation

    real = validation.count_cells
    monkeypatch.setattr(validation, "count_cells", lambda predicted, reference: real(predicted & False, reference))
    config = tiny_config(shards, tmp_path / "run", max_steps=4, eval_every=1)
    loop.train(config, runtime)
    err = capfd.readouterr().err
    assert err.count("warning: ") == 1
    assert "predicted masks of the validation images are nearly empty" in err
    (entry,) = json.loads((config.out / "status.json").read_text())["warnings"]
    assert (entry["kind"], entry["step"]) == ("uniform-prediction", 2)


def test_the_counts_are_those_of_the_masks(shards, tmp_path, runtime):
    """Summed over all validation images, as the reference masks at the size of validation have them."""
    found = []
    config = tiny_config(shards, tmp_path / "run", max_steps=1, eval_every=1, transform="random-crop")
    counted = ValidationWatch.counted
    try:
        ValidationWatch.counted = lambda self, counts: (found.append(counts), counted(self, counts))[1]
        loop.train(config, runtime)
    finally:
        ValidationWatch.counted = counted
    reader = ShardReader(shards / "val")
    masks = [reader.read(0, place).mask for place in range(len(reader))]
    assert found[0][1:] == [sum(int(mask.sum()) for mask in masks), sum(mask.size for mask in masks)]
    assert cv2.countNonZero(masks[0]) > 0
