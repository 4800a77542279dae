"""Scores of classes and of single cells are the same on any number of processes, and where they share each image."""

from dataclasses import replace

import pytest
from helpers import draw_labelled, run, save_state, tiny_config, write_shards

from glioma_dist.config import EvaluateConfig, InferenceScaleConfig
from glioma_dist.evaluation.protocol import EvaluationResult, evaluate
from glioma_dist.model.unet import build_model
from glioma_dist.training.state import TrainState

CLASSES = ("round", "spread")


def evaluate_here(config) -> EvaluationResult:
    from glioma_dist.distributed.context import DistributedContext

    return evaluate(config, DistributedContext.start())


@pytest.mark.parametrize("spatial_parallel", [1, 2])
def test_several_processes_score_cells_as_one_does(spatial_parallel, tmp_path, runtime):
    pytest.importorskip("skimage", reason="pip install scikit-image")
    samples = [draw_labelled(number, num_classes=2, has_ignore=True, has_instances=True) for number in range(5)]
    write_shards(tmp_path / "shards", samples, classes=CLASSES)
    (tmp_path / "run").mkdir()
    config = tiny_config(tmp_path, tmp_path / "run")
    config = replace(config, model=replace(config.model, classes=CLASSES, targets=("mask", "boundary")))
    model, _ = build_model(config.model, 0)
    save_state(tmp_path / "run" / "best", config, TrainState(step=1), model, None, {"lineage": []})
    asked = EvaluateConfig(tmp_path / "run" / "best", str(tmp_path / "shards"), workers=0, instances=True)
    expected = evaluate(asked, runtime)
    assert expected.instances.num_found > 0
    scale = InferenceScaleConfig(spatial_parallel=spatial_parallel)
    found = run(evaluate_here, replace(asked, scale=scale), num_processes=2 * spatial_parallel)
    assert [each.to_dict() for each in found] == [expected.to_dict()] * len(found)
