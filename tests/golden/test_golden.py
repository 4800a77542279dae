"""Results of small trainings, and every encoder's first weights, against recorded ones: to 1e-9 in fp64 on every
machine, bit for bit where all that decides the last bit is as it was.

golden.json has them; write.py writes it, and says when one may. A renaming is followed in adapter.py.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
from compare_commits import Outcome, compare
from helpers import run
from runs import GOLDEN, RUNS, differences, fingerprint, measure_initial, measure_runs, summary

RECORDED = json.loads(GOLDEN.read_text())
FIRST_LOSS = 1e-4
"""Of fp32 only the first loss is promised on another machine, and there OpenCV may round some greys otherwise."""
QUICK = ("mit_tiny", "mit_b0", "mobilenet_v2", "efficientnet_lite0")
"""Encoders whose weights are drawn within a second; those of all others are marked slow."""
ENCODERS = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECORDED["initial_weights"]
]


def measure(folder: Path) -> tuple[dict, dict]:
    return measure_runs(folder), fingerprint()


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[dict, dict]:
    """Results of the runs, and the fingerprint, in a process of its own."""
    ((results, machine),) = run(measure, tmp_path_factory.mktemp("golden"))
    return results, machine


def skip_elsewhere(machine: dict) -> None:
    """Skip where a last bit may differ, and say why."""
    others = [name for name in RECORDED["fingerprint"] if RECORDED["fingerprint"][name] != machine.get(name)]
    if others:
        pytest.skip(f"recorded on another machine, the same bits are not promised: other {', '.join(others)}")


@pytest.mark.parametrize("name", [each.name for each in RUNS if each.double])
def test_a_training_in_fp64_gives_the_recorded_numbers(measured, name):
    results, _ = measured
    assert results[name]["weights"]["dtypes"] == ["float64"]  # or 1e-9 would promise nothing
    assert differences(RECORDED["runs"][name], results[name]) == []


@pytest.mark.parametrize("name", [each.name for each in RUNS if not each.double])
def test_the_first_loss_in_fp32_is_the_recorded_one(measured, name):
    recorded, found = (results[name]["metrics"][0] for results in (RECORDED["runs"], measured[0]))
    assert found["loss"] == pytest.approx(recorded["loss"], rel=FIRST_LOSS)


@pytest.mark.parametrize("name", [each.name for each in RUNS])
def test_a_training_gives_the_recorded_bits(measured, name):
    results, machine = measured
    skip_elsewhere(machine)
    assert results[name] == RECORDED["runs"][name]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_encoder_begins_with_the_recorded_weights(encoder):
    recorded, found = RECORDED["initial_weights"][encoder], measure_initial(encoder)
    assert differences(recorded, found) == []
    skip_elsewhere(fingerprint())
    assert found == recorded


def test_every_encoder_and_every_run_is_recorded():
    from adapter import encoder_names

    assert list(RECORDED["initial_weights"]) == list(encoder_names())
    assert list(RECORDED["runs"]) == [each.name for each in RUNS]


def test_the_comparison_finds_a_change_of_one_number():
    changed = deepcopy(RECORDED["runs"])
    changed[RUNS[0].name]["metrics"][3]["loss"] *= 1 + 1e-8
    changed[RUNS[1].name]["weights"]["entries"][4] *= 1 + 1e-8
    changed[RUNS[2].name]["weights"]["numbers"] += 1
    del changed[RUNS[3].name]["logits"]
    places = [line.split(":")[0] for line in differences(RECORDED["runs"], changed)]
    assert places == [
        f".{RUNS[0].name}.metrics[3].loss",
        f".{RUNS[1].name}.weights.entries[4]",
        f".{RUNS[2].name}.weights.numbers",
        f".{RUNS[3].name}.logits",
    ]
    assert differences(RECORDED["runs"], deepcopy(RECORDED["runs"])) == []


def test_the_summary_of_other_tensors_is_another():
    import torch

    tensors = [torch.arange(6.0).reshape(2, 3), torch.ones(4), torch.tensor(3)]
    last_bit = [torch.nextafter(tensors[0], torch.tensor(9.0)), *tensors[1:]]
    swapped = [tensors[1], tensors[0], tensors[2]]
    hashes = {summary(each)["sha256"] for each in (tensors, last_bit, swapped)}
    assert len(hashes) == 3
    assert summary(tensors)["sum"] == 22
    assert summary(tensors)["sum_of_squares"] == 68
    assert summary(tensors)["entries"] == [0, 3, 5, 1, 1, 1, 3, 3, 3]


@pytest.mark.parametrize(
    ("before", "after", "word", "is_bad", "told"),
    [
        (Outcome({"a": {"b": "1"}, "c": 0.1}), Outcome({"a": {"b": "1"}, "c": 0.1}), "equal", False, "2 values"),
        (Outcome({"a": {"b": "1"}}), Outcome({"a": {"b": "2"}}), "differs", True, "a.b: before 1 and after 2"),
        (Outcome({"a": 0.1}), Outcome({"a": 0.1 + 2e-17}), "differs", True, "a: before 0.1"),
        (Outcome({"a": 1}), Outcome({"a": 1.0}), "differs", True, "a: before 1 and after 1.0"),
        (Outcome({"a": 1, "b": 2}), Outcome({"a": 1}), "differs", True, "b: before 2 and after has none"),
        (Outcome({"a": "x" * 90 + "y"}), Outcome({"a": "x" * 90 + "z"}), "differs", True, "xy and after …xxxxxxz"),
        (Outcome({}), Outcome({}), "not run", True, "no results"),
        (Outcome(None, "no images"), Outcome(None, "no images"), "not run", False, "before: no images"),
        (Outcome({"a": 1}), Outcome(None, "no images"), "not run", True, "after: no images"),
        (Outcome(None, "it fell", True), Outcome(None, "it fell", True), "not run", True, "it fell"),
    ],
)
def test_a_comparison_of_commits_calls_equal_only_what_is(before, after, word, is_bad, told):
    verdict = compare(before, after)
    assert (verdict.word, verdict.is_bad) == (word, is_bad)
    assert told in verdict.detail
