"""segmentation_models.pytorch's U-Net, trained as its users do, on the batches of one of this package's runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from glioma_dist.config import TrainConfig
from glioma_dist.data.loader import training_batches
from glioma_dist.data.mixture import open_training_data
from glioma_dist.files import make_folder
from glioma_dist.model.checkpoint import Checkpoint, find_checkpoint
from glioma_dist.model.checkpoint_writer import ALONE, run_stages
from glioma_dist.model.encoders.timm_models import recolour
from glioma_dist.model.manifest import MODEL
from glioma_dist.model.pretrained.state_dict_adapter import rename_network
from glioma_dist.model.unet import UNet, build_model
from glioma_dist.registry import encoders
from glioma_dist.scale.gradients import compute_gradients
from glioma_dist.training.snapshot import SnapshotMemory
from glioma_dist.training.state import TrainState, load_optimizer, state_stages

LR = 1e-4


def train_smp(config: TrainConfig, device: torch.device) -> Path:
    """Train with AdamW 1e-4, a cosine without warm-up, and the sum of the library's Dice and binary cross-entropy.

    config: data, batch size, steps and starting weights. Resumes from `config.out`/smp, which is written every
    `config.save_every` steps. Returns a checkpoint of this package's U-Net with the trained weights.
    """
    import segmentation_models_pytorch as smp

    done = config.out / "last"
    if find_checkpoint(done) is not None:
        return done
    make_folder(config.out)
    ours = build_model(config.model, config.seed)[0].to(device)
    model = build_smp(config, ours).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    first = _resume(config.out / "smp", model, optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * (first + step) / config.max_steps)) / 2
    )
    dice, cross_entropy = smp.losses.DiceLoss("binary"), smp.losses.SoftBCEWithLogitsLoss()

    def sum_of_losses(logits: Tensor, masks: Tensor) -> Tensor:
        masks = masks[:, None].float()
        return dice(logits, masks) + cross_entropy(logits, masks)

    train, sampler = open_training_data(config.data, config.batch_size, config.seed)
    with closing(training_batches(train, sampler, config.data, first)) as batches:
        for step, batch in enumerate(islice(batches, config.max_steps - first), first + 1):
            images, masks = batch.images.to(device), batch.masks.to(device)
            with _drawing_from((config.seed, step), device):  # the library's stochastic depth
                _, loss = compute_gradients(model, images, masks, sum_of_losses, nullcontext)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            print(f"smp, step {step}: loss {loss.item():.4f}", flush=True)
            if step % config.save_every == 0:
                _save(config.out / "smp", config, step, model, optimizer)
    ours.load_state_dict(rename_network(model.state_dict(), ours.encoder), strict=False)
    _save(done, config, config.max_steps, ours, None)
    return done


def build_smp(config: TrainConfig, ours: UNet) -> nn.Module:
    """The library's U-Net with bilinear upsampling, so that its weights fit this package's, whose outputs are then
    equal (tests/unit/test_smp.py). Its own random weights, or the pretrained encoder of `ours`. It takes images as
    `normalise` makes them, and converts them to the normalisation of the encoder's published weights, as `ours` does.
    """
    import segmentation_models_pytorch as smp

    name = encoders.find(config.model.encoder).smp_name
    channels = list(config.model.decoder_channels)
    with _drawing_from((config.seed, 0), torch.device("cpu")):
        model = smp.Unet(name, encoder_weights=None, decoder_interpolation="bilinear", decoder_channels=channels)
    if config.model.init != "random":
        known = ours.state_dict()
        for key, tensor in rename_network(model.state_dict(), ours.encoder).items():
            if key.startswith("encoder."):
                tensor.copy_(known[key])
    if getattr(ours.encoder, "colours", None) is not None:
        model.register_forward_pre_hook(lambda _, inputs: (recolour(ours.encoder, inputs[0]),))
    return model


@contextmanager
def _drawing_from(seeds: tuple[int, int], device: torch.device) -> Iterator[None]:
    """Within it, PyTorch's own generator of `device` begins at `seeds`: a resumed run draws what an uninterrupted one
    does."""
    on_cpu = device.type == "cpu"
    with torch.random.fork_rng(devices=[] if on_cpu else [device]):
        generator = torch.default_generator if on_cpu else torch.cuda.default_generators[device.index or 0]
        generator.manual_seed(seeds[0] * 2**32 + seeds[1])
        yield


def _resume(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put back what the last checkpoint has. Returns its step; 0 where there is none."""
    if find_checkpoint(folder) is None:
        return 0
    checkpoint = Checkpoint.read(folder)
    model.load_state_dict(checkpoint.tensors(MODEL))
    load_optimizer(checkpoint, model, optimizer)
    return checkpoint.step


def _save(
    folder: Path, config: TrainConfig, step: int, model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> None:
    given = (folder, config, TrainState(step), model, optimizer, {"lineage": []}, ALONE, 1, None)
    run_stages(state_stages(*given, memory=SnapshotMemory()), ALONE)
