"""What a training step copies between CPU and GPU, and how often the CPU waits: counted on fake CUDA tensors.

`set_sync_debug_mode` sees the same on a real GPU (tests/gpu/test_step.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from encoder_helpers import narrow, narrow_everything, slow_if_deeper
from fake_cuda import ATEN, CUDA, Watch, cuda_without_a_driver, put_on_cuda
from helpers import TINY_CHANNELS, tiny_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.torch_version import TorchVersion

from glioma_dist.config import ModelConfig
from glioma_dist.data.loader import Batch
from glioma_dist.distributed.context import DistributedContext
from glioma_dist.evaluation.dice import dice
from glioma_dist.losses import segmentation_loss, training_loss
from glioma_dist.model.encoders.mit import DEEP_STAGE
from glioma_dist.model.encoders.mit_names import MIT_SHAPES
from glioma_dist.model.outputs import Outputs
from glioma_dist.model.unet import UNet, build_model, normalise
from glioma_dist.registry import encoders
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.batch_norm import synchronise_batch_norm
from glioma_dist.scale.gradients import compute_gradients
from glioma_dist.scale.optimizer import make_optimizer
from glioma_dist.scale.spatial_group import ImaginarySpatialGroup, SpatialGroup
from glioma_dist.scale.spatial_layers import split_spatially
from glioma_dist.training import validation
from glioma_dist.training.learning_rate import LearningRate
from glioma_dist.training.loop import train_step
from glioma_dist.training.trainer import StepGuard
from glioma_dist.training.validation_watch import ValidationWatch

LEVELS = ("none", "selective", "full")
SEEDS = torch.tensor([3, 4])
PLACES = torch.tensor([0, 2])
SIDE = 64
NAMES = (*encoders.names(), "timm/convnext_atto")
"""Some of timm's other models make constants on the CPU in each forward pass, as edgenext its positions."""


def put_on(model: UNet) -> FakeTensorMode:
    """Have `model` on a fake GPU; all that works with it goes into the mode that is returned."""
    # Seeds are real: a loader's, read before the step.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    put_on_cuda(model, mode)
    return mode


@pytest.fixture
def on_gpu(runtime, monkeypatch) -> Iterator[DistributedContext]:
    """A process that accelerate takes for one with a GPU."""
    for state in (AcceleratorState, PartialState):
        monkeypatch.setitem(state._shared_state, "device", CUDA)
    with cuda_without_a_driver():
        assert runtime.device == CUDA
        yield runtime


@pytest.fixture
def in_precision(on_gpu, monkeypatch, request) -> DistributedContext:
    """The same in fp32, bf16 or fp16."""
    accelerator = on_gpu.accelerator
    # accelerate goes through all optimizers that it was ever given, also those of other tests.
    monkeypatch.setattr(accelerator, "_optimizers", [])
    monkeypatch.setitem(accelerator.state._shared_state, "_mixed_precision", request.param)
    monkeypatch.setattr(accelerator, "native_amp", request.param != "no")
    if request.param == "fp16":
        monkeypatch.setattr(accelerator, "scaler", torch.amp.GradScaler("cuda"))
    return on_gpu


def watch_step(
    context: DistributedContext, model: UNet, level: str, tmp_path, group: SpatialGroup | None = None, **changes
) -> Watch:
    """The first step of a training; what Adam makes in it is made on the GPU, too."""
    group = group or SpatialGroup()
    checkpoint_activations(model, level)
    split_spatially(model, group)
    config = tiny_config(tmp_path, tmp_path, batch_size=len(SEEDS), **changes)
    with put_on(model):
        has_loss_scale = context.accelerator.scaler is not None
        optimizer = context.accelerator.prepare(make_optimizer(model, config, has_loss_scale))
        trainer = SimpleNamespace(
            config=config,
            context=context,
            model=model.train(),
            optimizer=optimizer,
            learning_rate=LearningRate(config.lr),
            guard=StepGuard(model),
            saver=SimpleNamespace(let_tensors_change=lambda: None),
            spatial_group=group,
            outputs=Outputs(),
            loss=training_loss(config),
            average=None,
            reproducible=None,
            in_backward=None,
        )
        images = torch.zeros(len(SEEDS), 1, SIDE, SIDE, dtype=torch.uint8, device=CUDA)
        batch = Batch(images, images[:, 0], SEEDS, ("one", "other"))
        with Watch() as watch:
            trainer.guard.begin()
            train_step(trainer, batch, 0)
    return watch


def check(watch: Watch, num_drawn: int) -> None:
    """One read; and one copy at most, of what stochastic depth has drawn, for which the CPU does not wait."""
    assert watch.to_host == ["copy"]
    assert watch.to_device == ([("copy", num_drawn, True)] if num_drawn else [])


def num_drawn(model: UNet) -> int:
    drawn = model.train().encoder.draw(SEEDS)
    return 0 if drawn is None else drawn.numel()


def narrow_and_shallow(monkeypatch) -> None:
    narrow_everything(monkeypatch)
    for each, shape in MIT_SHAPES.items():  # what is counted is the same in every further layer
        monkeypatch.setitem(MIT_SHAPES, each, {**shape, "depths": tuple(min(DEEP_STAGE, n) for n in shape["depths"])})


def watch_encoder(name: str, levels: tuple[str, ...], context: DistributedContext, tmp_path, monkeypatch) -> None:
    narrow_and_shallow(monkeypatch)
    for level in levels:
        model = UNet(ModelConfig(encoder=name, decoder_channels=TINY_CHANNELS))
        if level == "selective" and not list(model.encoder.attention_layers()):
            continue  # it keeps of the encoder what full keeps, and of the decoder what none keeps
        watch = watch_step(context, model, level, tmp_path)
        check(watch, num_drawn(model))
        assert watch.operations[ATEN._fused_adam_.default] == 1


AT_EVERY_LEVEL = ("mit_tiny", "resnet50", "mobilenet_v2")


@pytest.mark.parametrize("in_precision", ["no"], indirect=True)
@pytest.mark.parametrize("name", [slow_if_deeper(name) for name in NAMES])
def test_a_step_reads_once_and_copies_nothing_but_what_was_drawn(name, in_precision, tmp_path, monkeypatch):
    """At the level full every operation of an encoder's forward pass runs twice, and every one of its backward pass
    once: it runs whatever the other levels run."""
    levels = LEVELS if name in AT_EVERY_LEVEL else ("full",)
    watch_encoder(name, levels, in_precision, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("in_precision", ["no"], indirect=True)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in AT_EVERY_LEVEL])
def test_so_it_does_at_the_other_levels(name, in_precision, tmp_path, monkeypatch):
    watch_encoder(name, ("none", "selective"), in_precision, tmp_path, monkeypatch)


@pytest.mark.parametrize("in_precision", ["bf16", "fp16"], indirect=True)
@pytest.mark.parametrize("changes", [{}, {"norm": "group", "loss": "dice+bce", "clip_norm": 1.0}], ids=str)
@pytest.mark.parametrize("levels", [("selective",), pytest.param(("none", "full"), marks=pytest.mark.slow)], ids=str)
def test_so_it_does_in_each_precision_with_each_norm_and_loss(in_precision, levels, changes, tmp_path):
    """At the level that keeps some layers and computes others twice; in fp32 each level is watched above."""
    for level in levels:
        model = UNet(ModelConfig("mit_tiny", norm=changes.get("norm", "batch"), decoder_channels=TINY_CHANNELS))
        check(watch_step(in_precision, model, level, tmp_path, **changes), num_drawn(model))


@pytest.mark.parametrize(
    ("in_precision", "optimizer", "kernel"),
    [
        ("no", "adamw", ATEN._fused_adamw_),
        ("fp16", "adam", ATEN._fused_adam_),
        ("fp16", "adamw", ATEN._fused_adamw_),
        ("fp16", "sgd", None),
    ],
    indirect=["in_precision"],
)
def test_so_it_does_with_each_optimizer(in_precision, optimizer, kernel, tmp_path):
    """And with several groups. SGD with momentum is not fused in fp16 (`make_optimizer`), and waits once more. Fake
    tensors know no fused SGD; tests/gpu/test_step.py has it."""
    model = UNet(ModelConfig("mit_tiny", decoder_channels=TINY_CHANNELS))
    changes = {"optimizer": optimizer, "weight_decay": 0.01, "encoder_lr_factor": 0.1}
    watch = watch_step(in_precision, model, "none", tmp_path, **changes)
    if kernel is None:
        assert watch.operations[ATEN._fused_sgd_.default] == 0
        assert len(watch.to_host) == 2
    else:
        assert watch.operations[kernel.default] == 4
        check(watch, num_drawn(model))


SHARED = [each.name for each in encoders.entries() if each.has_spatial_layers]
QUICK_OF_SHARED = {
    "mit_tiny": [(level, norm) for level in LEVELS for norm in ("batch", "group")],
    "mit_b0": [("selective", "group"), ("full", "batch")],
    "resnet50": [("none", "batch"), ("full", "group")],
    "vgg19": [("none", "group"), ("full", "batch")],
}
"""Levels and norms of which a test is not slow: all of one encoder, for the others each level and norm that they have
layers for once."""


@pytest.mark.parametrize("in_precision", ["bf16"], indirect=True)
@pytest.mark.parametrize(
    ("name", "level", "norm"),
    [
        pytest.param(name, *how, marks=() if how in QUICK_OF_SHARED.get(name, ()) else pytest.mark.slow)
        for name in SHARED
        for how in QUICK_OF_SHARED["mit_tiny"]
    ],
)
def test_so_it_does_where_processes_share_an_image(name, level, norm, in_precision, tmp_path, monkeypatch):
    narrow_and_shallow(monkeypatch)
    model = UNet(ModelConfig(name, norm=norm, decoder_channels=TINY_CHANNELS))
    group = ImaginarySpatialGroup(3, 3 * SIDE)
    group.cut(3 * SIDE)
    check(watch_step(in_precision, model, level, tmp_path, group), num_drawn(model))


@contextmanager
def imaginary_processes(size: int) -> Iterator[None]:
    """Within it this is a process of several, of which there are no others: collectives return at once."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("name", "level"),
    [
        *(("mit_tiny", level) for level in LEVELS),
        *((name, "full") for name in ("resnet50", "mobilenet_v2", "densenet169")),
        *(
            pytest.param(name, level, marks=pytest.mark.slow)
            for name in ("resnet50", "mobilenet_v2", "densenet169")
            for level in ("none", "selective")
        ),
    ],
)
def test_norms_over_processes_do_not_read_from_the_gpu(name, level, monkeypatch):
    """PyTorch's SyncBatchNorm does, three times a layer."""
    narrow(monkeypatch, *({name} - {"mit_tiny"}))
    model = UNet(ModelConfig(name, decoder_channels=TINY_CHANNELS)).train()
    model = synchronise_batch_norm(model, CUDA)
    checkpoint_activations(model, level)
    with imaginary_processes(2), cuda_without_a_driver(), put_on(model):
        images = torch.zeros(len(SEEDS), 1, SIDE, SIDE, dtype=torch.uint8, device=CUDA)
        with Watch() as watch:
            compute_gradients(model, images, images[:, 0], partial(segmentation_loss, "dice"), nullcontext, seeds=SEEDS)
    assert watch.to_host == []
    assert len(watch.to_device) == (name == "mit_tiny")
    assert watch.operations[ATEN.batch_norm_gather_stats_with_counts.default] > 0


def test_validation_reads_once(on_gpu, tmp_path):
    config = tiny_config(tmp_path, tmp_path)
    model = UNet(config.model)
    trainer = SimpleNamespace(
        config=config,
        context=on_gpu,
        model=model,
        spatial_group=SpatialGroup(),
        outputs=Outputs(),
        loss=training_loss(config),
        level="none",
        val=[None] * 5,
        stop=SimpleNamespace(immediate=nullcontext),
        saver=SimpleNamespace(agree=on_gpu.agree),
        validation_watch=ValidationWatch(),
        evaluated_weights=nullcontext,
        reproducible=None,
    )
    with put_on(model), Watch(value=1) as watch:
        # Images are copied ahead, as training's batches are.
        image = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8, device=CUDA)
        trainer.validation_images = (each for each in [Batch(image, image[:, 0], SEEDS[:1], ("a",), SIDE)] * 5)
        validation.validation_scores(trainer)
    assert watch.to_host == ["copy"]
    assert watch.to_device == []


def test_what_is_public_copies_no_constants():
    with FakeTensorMode(), Watch() as watch:
        images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8, device=CUDA)
        assert normalise(images).shape == (1, 3, 8, 8)
        dice(images > 0, images > 1)
    assert (watch.to_host, watch.to_device) == ([], [])


@pytest.mark.skipif(
    TorchVersion(torch.__version__) < "2.9", reason="PyTorch 2.8 asks the driver where a fake tensor goes to the GPU"
)
def test_the_watch_sees_what_it_is_there_for():
    with FakeTensorMode(allow_non_fake_inputs=True), Watch() as watch:
        there, here = torch.zeros(3, device=CUDA), torch.zeros(3)
        there.sum().item()
        there.tolist()
        there.cpu()
        bool(there.any())
        here.copy_(there)
        assert len(watch.to_host) == 1 + 3 + 1 + 1 + 1
        torch.tensor([1.0, 2.0], device=CUDA)
        there.new_tensor([1.0, 2.0])
        here.to(CUDA)
        here.to(CUDA, non_blocking=True)
        there.copy_(here)
        there[[0, 2]]
        there[PLACES]
        here.pin_memory().to(CUDA, non_blocking=True)
        assert [waits_not for *_, waits_not in watch.to_device] == [False] * 7 + [True]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["mit_tiny", "resnet50"])
def test_the_watched_backward_pass_is_pytorchs(name, level, monkeypatch):
    """The same gradients, bit for bit, from real tensors."""
    narrow(monkeypatch, *({name} - {"mit_tiny"}))
    found = []
    for engine in (nullcontext(), cuda_without_a_driver()):
        model, _ = build_model(ModelConfig(name, decoder_channels=TINY_CHANNELS), 0)
        checkpoint_activations(model, level)
        images = torch.randint(
            0, 256, (2, 1, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        autocast = partial(torch.autocast, "cpu", torch.bfloat16)
        with engine:
            loss = partial(segmentation_loss, "dice")
            compute_gradients(model, images, (images[:, 0] > 99).to(torch.uint8), loss, autocast, seeds=SEEDS)
        found.append({name: each.grad for name, each in model.named_parameters()})
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name
