"""benchmarks/starting_weights.py: what its folder has already is of the same study. Nothing is trained."""

from dataclasses import replace
from pathlib import Path

import pytest
from helpers import load_benchmark

from glioma_dist.benchmark.rows import results_folder
from glioma_dist.errors import InputError
from glioma_dist.size import Size


@pytest.fixture
def benchmark():
    yield from load_benchmark("starting_weights")


@pytest.fixture
def study(benchmark, monkeypatch, tmp_path):
    """Runs the study with changed settings; what it converts and trains is noted in its `done`."""

    def run(**changes) -> None:
        config = replace(benchmark.StudyConfig(tmp_path, tmp_path / "out", weights=tmp_path / "w.pth"), **changes)
        config.validate()
        monkeypatch.setattr(benchmark, "parse", lambda _: config)
        benchmark.main()

    def convert(source: object, shards: Path, *_: object, **__: object) -> None:
        run.done.append(shards.name)
        shards.mkdir(parents=True)
        (shards / "audit.json").write_text("{}")

    def one_run(study, _, __, split: int, seed: int, init: str, ___) -> dict:
        run.done.append((split, seed, init))
        return dict(zip(benchmark.COLUMNS, (split, seed, init, study.steps, 0.5, 0.5), strict=True))

    run.done = []
    monkeypatch.setattr(benchmark, "find_glioma_c6", lambda source: source)
    monkeypatch.setattr(benchmark, "convert", convert)
    monkeypatch.setattr(benchmark, "one_run", one_run)
    return run


def test_a_study_is_continued_with_more_splits_and_seeds(study):
    study(splits=(0,), seeds=(0,))
    study(splits=(0, 1), seeds=(0, 1))
    assert [each for each in study.done if isinstance(each, str)] == ["shards_0", "shards_1"]
    assert len(study.done) == 2 + 2 + 8


@pytest.mark.parametrize(
    "changes", [{"source": Path("/other")}, {"steps": 40}, {"encoder": "mit_b0"}, {"size": Size(64, 64)}, {"lr": 0.1}]
)
def test_a_folder_of_another_study_is_refused(study, changes):
    """Its shards and runs would be told as those of these settings."""
    study()
    done = len(study.done)
    with pytest.raises(InputError, match=f"--{next(iter(changes))} .*out holds runs with .*; give another --out"):
        study(**changes)
    assert len(study.done) == done


def test_a_second_study_in_the_same_folder_is_refused(study, tmp_path):
    with results_folder(tmp_path / "out"), pytest.raises(InputError, match="another benchmark is writing there"):
        study()
    assert study.done == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": ()}, "--splits: give one or more, each once"),
        ({"seeds": ()}, "--seeds: give one or more, each once"),
        ({"seeds": (1, 1)}, "--seeds 1 1: give one or more, each once"),
        ({"threads": 0}, "--threads 0: give 1 or more"),
    ],
)
def test_wrong_flags_are_refused(study, changes, message):
    with pytest.raises(InputError, match=message):
        study(**changes)
