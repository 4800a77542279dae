"""How often a training step makes the CPU wait for a real GPU. Needs a CUDA device; `python -m pytest -m gpu`."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from helpers import tiny_config

from glioma_dist.data.loader import Batch
from glioma_dist.losses import training_loss
from glioma_dist.model.outputs import Outputs
from glioma_dist.model.unet import build_model
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.optimizer import make_optimizer
from glioma_dist.scale.spatial_group import SpatialGroup
from glioma_dist.training.learning_rate import LearningRate
from glioma_dist.training.loop import train_step
from glioma_dist.training.trainer import StepGuard

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    # Said once a process by `set_sync_debug_mode`, which as an error would leave the mode on for all tests after it.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature"),
]


@pytest.mark.parametrize("level", ["none", "selective", "full"])
@pytest.mark.parametrize(
    ("encoder", "optimizer"),
    [("mit_b0", "adam"), ("mit_b0", "adamw"), ("mit_b0", "sgd"), ("resnet50", "adam"), ("efficientnet_lite0", "adam")],
)
def test_a_step_waits_for_the_gpu_once(runtime, tmp_path, encoder, optimizer, level):
    config = tiny_config(tmp_path, tmp_path, batch_size=2, encoder=encoder, optimizer=optimizer, weight_decay=0.01)
    model = build_model(config.model, 0)[0].to(runtime.device).train()
    checkpoint_activations(model, level)
    model, optimizer = runtime.accelerator.prepare(model, make_optimizer(model, config))
    trainer = SimpleNamespace(
        config=config,
        context=runtime,
        model=model,
        optimizer=optimizer,
        learning_rate=LearningRate(config.lr),
        guard=StepGuard(model),
        saver=SimpleNamespace(let_tensors_change=lambda: None),
        spatial_group=SpatialGroup(),
        outputs=Outputs(),
        loss=training_loss(config),
        average=None,
        reproducible=None,
        in_backward=None,
    )
    images = torch.randint(0, 256, (2, 1, 128, 128), dtype=torch.uint8, device=runtime.device)
    batch = Batch(images, (images[:, 0] > 180).to(torch.uint8), torch.tensor([3, 4]), ("one", "other"))
    for _ in range(3):  # libraries choose their kernels, and Adam makes its moments
        train_step(trainer, batch, 0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            trainer.guard.begin()
            train_step(trainer, batch, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(each.message) for each in said if "synchronizing CUDA operation" in str(each.message)]
    assert len(waits) == 1, waits
