"""The benchmark of the loader and the simulation of the order: what they compare is the same work, and adds up."""

import sys
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from helpers import draw_shards, load_benchmark

from glioma_dist.config import DataConfig
from glioma_dist.errors import InputError
from glioma_dist.size import Size


@pytest.fixture(scope="module")
def bench():
    yield from load_benchmark("loader")


@pytest.fixture(scope="module")
def simulation():
    yield from load_benchmark("sampler_cost")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_every_pipeline_delivers_the_same_images(bench, tmp_path, workers):
    """Whole images, unchanged: those of two samples that come again and again, in any order, with their masks."""
    given = draw_shards(tmp_path / "given" / "train", range(2))
    bench.write_data(tmp_path / "data", given, Size(96, 80), 16)
    config = DataConfig(size=Size(96, 80), transform="random-crop", workers=workers)
    found = {}
    for name, pipeline in bench.PIPELINES.items():
        if not pipeline.is_there:
            continue
        batches = pipeline.batches(tmp_path / "data", config, 2)
        drawn = list(islice(batches, 4))
        batches.close()
        for images, masks in drawn:
            assert (images.dtype, tuple(images.shape)) == (torch.uint8, (2, 1, 80, 96))
            assert (masks.dtype, tuple(masks.shape)) == (torch.uint8, (2, 80, 96))
        pairs = zip(torch.cat([images for images, _ in drawn]), torch.cat([masks for _, masks in drawn]), strict=True)
        found[name] = {(image.numpy().tobytes(), mask.numpy().tobytes()) for image, mask in pairs}
    assert len(found["glioma-dist"]) == 2
    assert all(each == found["glioma-dist"] for each in found.values())
    assert {"webdataset", "PNG folder"} <= set(found)


@pytest.mark.parametrize("size", [(120, 90), (70, 50)])
def test_the_other_loaders_make_the_changes_that_ours_makes(bench, size):
    """Bit for bit: otherwise they would be measured at other work."""
    loaders = sys.modules["baselines.loaders"]
    sample = bench.draw_sample(0, Size(*size))
    packed = loaders.encode_image(sample.image), loaders.encode_mask(sample.mask)
    for case in bench.CASES.values():
        config = replace(case, size=Size(64, 48))
        for seed in range(20):
            found, expected = (make(*packed, config, seed) for make in (loaders.prepare, loaders.prepare_as_ours))
            assert all(map(torch.equal, found, expected))


def test_a_library_that_is_missing_is_left_out(bench):
    missing = replace(bench.PIPELINES["LitData"], needs="no_such_library")
    assert not missing.is_there


def test_the_table_compares_with_the_best_other(bench):
    metadata = {"device": "AMD EPYC", "cores": 2, "load": 0.5, "versions": "torch 1", "commit": "abc", "command": "x"}
    rates = ((0, "glioma-dist", 30.0), (0, "webdataset", 20.0), (0, "LitData", 25.0), (2, "webdataset", 5.0))
    rows = [
        {"case": "c", "pipeline": name, "workers": workers, "grown_mib": 0.4}
        | {"uint8": {"images_per_second": rate, "processor_ms": 12.34}}
        | {"normalised": {"images_per_second": rate / 2, "processor_ms": 20.0}}
        for workers, name, rate in rates
    ]
    lines = bench.table(rows, metadata).splitlines()
    assert lines[0].startswith("# ")
    assert "AMD EPYC, 2 cores, load 0.5" in lines[2]
    assert lines[-4] == "| c | glioma-dist | 0 | 30.0 | 1.20 | 12.3 | 15.0 | 20.0 | 0 |"
    assert lines[-1] == "| c | webdataset | 2 | 5.0 | 1.00 | 12.3 | 2.5 | 20.0 | 0 |"


@pytest.mark.parametrize("flags", [{"rounds": 0}, {"workers": ()}, {"workers": (-1,)}, {"batch_size": 0}])
def test_a_benchmark_that_cannot_be_is_refused(bench, flags):
    with pytest.raises(InputError, match="give"):
        bench.BenchConfig(**flags).validate()


def test_shards_touched_are_counted(simulation):
    # Two steps of a batch of four: one process sees five shards of eight; of two, one sees three, the other two.
    drawn = np.array([[0, 1, 2, 2], [0, 5, 7, 7]])
    assert simulation.describe(drawn, 1, 8)[:3] == (5.0, 5 / 8, 3.0)
    assert simulation.describe(drawn, 2, 8)[:2] == (2.5, 5 / 8)


def test_a_shuffle_of_everything_strays_by_one(simulation):
    drawn = np.random.default_rng(0).integers(1000, size=(2000, 64))
    assert abs(simulation.describe(drawn, 1, 1000)[3] - 1) < 0.05


def test_the_simulation_runs_and_deals_every_shard_once(simulation, capsys):
    config = simulation.SimulationConfig(
        huge_shards=50, huge_samples=10_000, shards=64, samples=10, batch_size=32, processes=(1, 4), buffer=20
    )
    simulation.COST_STEPS = 20
    simulation.simulate(config)
    printed = capsys.readouterr().out
    assert "5e+05 samples in 5e+01 shards" in printed
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith(("| 1 | ", "| 4 | "))]
    webdataset = [row for row in rows if row[1] == "webdataset"]
    assert [row[2:4] for row in webdataset] == [["64", "1.00"], ["16", "1.00"]]
    with pytest.raises(InputError, match="must divide"):
        simulation.SimulationConfig(batch_size=10, processes=(3,)).validate()


@pytest.mark.parametrize(("batch_size", "workers"), [(4, (0,)), (4, (0, 2)), (64, (0, 2)), (10, (8,))])
def test_every_worker_of_the_other_loaders_has_a_whole_batch(bench, batch_size, workers):
    """They leave out what is left of an epoch, and would look for a batch for ever where there is none."""
    count = bench.num_samples(bench.BenchConfig(batch_size=batch_size, workers=workers))
    shards = count // bench.SAMPLES_PER_SHARD
    for number in workers:
        assert shards // max(1, number) * bench.SAMPLES_PER_SHARD >= batch_size
