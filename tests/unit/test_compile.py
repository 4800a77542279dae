"""torch.compile: each kind of layer gets exactly one graph, and no number changes."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from encoder_helpers import narrow_everything, slow_if_deeper
from helpers import TINY_CHANNELS
from torch import Tensor, nn
from torch._dynamo.utils import counters

from glioma_dist.benchmark.encoder_table import NEED_TWO_IMAGES
from glioma_dist.config import ModelConfig
from glioma_dist.model.encoders.timm_models import TIMM_MODELS
from glioma_dist.model.unet import UNet, build_model
from glioma_dist.registry import encoders
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.scale_model import compilable, compile_blocks

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
"""PyTorch's compiler looks at it, and warns itself."""
UNLIKE_STAGES = {"growth_rate": 4, "block_config": (2, 3, 2, 2)}
"""Of densenet, narrow: stages that differ in their layers or channels, as densenet169's do."""
ANY_TIMM = ("timm/convnext_atto", "timm/resnet18")
LEVELS = ("none", "selective", "full")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """No graphs of other tests, and PyTorch's own limits before and after."""
    limits = (torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit = limits


def images(count: int, side: int = 64) -> Tensor:
    return torch.linspace(-2, 2, count * 3 * side * side, dtype=torch.float64).reshape(count, 3, side, side)


def kinds_of(model: UNet, blocks: list[nn.Module], batch: Tensor) -> tuple[int, int]:
    """How many differ in what they are made of; and how many in that or in the shape of what they are given."""
    seen: dict[nn.Module, tuple] = {}

    def note(block: nn.Module, given: tuple[Tensor]) -> None:
        seen[block] = given[0].shape

    hooks = [block.register_forward_pre_hook(note) for block in blocks]
    with torch.no_grad():
        copy_of_state = copy.deepcopy(model.state_dict())
        model(batch, torch.arange(len(batch)))
        model.load_state_dict(copy_of_state)
    for hook in hooks:
        hook.remove()
    return len({repr(block) for block in blocks}), len({(repr(block), seen[block]) for block in blocks})


def take_step(model: UNet, batch: Tensor) -> list[Tensor]:
    model.zero_grad()
    logits = model(batch, torch.arange(len(batch)))
    logits.sum().backward()
    return [logits.detach(), *(each.grad for each in model.parameters())]


def check_graphs(name: str, level: str, batch_size: int) -> None:
    batch = images(batch_size)
    config = ModelConfig(encoder=name, decoder_channels=TINY_CHANNELS)
    plain, ours = (build_model(config, 0)[0].double() for _ in range(2))
    checkpoint_activations(ours, level)
    blocks = compilable(ours)
    assert blocks or name == "vgg19"
    made_alike, kinds = kinds_of(ours, blocks, batch)
    assert made_alike == kinds  # else layers made alike would share a second graph, which takes any size
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    try:
        compile_blocks(blocks, backend="eager")
        for _ in range(2):
            found, expected = take_step(ours, batch), take_step(plain, batch)
        assert counters["stats"]["unique_graphs"] == kinds
        # PyTorch 2.7 counts pieces of code without a graph, too.
        assert counters["frames"]["ok"] == counters["frames"]["total"] >= kinds
        assert not counters["graph_break"]
        for ours_value, value in zip(found, expected, strict=True):
            assert (ours_value - value).abs().max() <= 1e-9 * value.abs().max().clamp(min=1)
        with torch.no_grad():  # other sizes, as validation has them: no more than the limit allows, and right
            torch.testing.assert_close(ours.eval()(images(2, 96)), plain.eval()(images(2, 96)), rtol=1e-9, atol=1e-9)
    finally:
        torch._dynamo.config.fail_on_recompile_limit_hit = False


FIRST_SIZES = {"mit_tiny": (1, 2, 1), "timm/resnet18": (2, 1, 2)}
"""Of a batch at each level; the other size is slow."""


@pytest.mark.parametrize(
    ("name", "level", "batch_size"),
    [
        pytest.param(name, level, size, marks=() if size == first else pytest.mark.slow)
        for name, sizes in FIRST_SIZES.items()
        for level, first in zip(LEVELS, sizes, strict=True)
        for size in (1, 2)
    ],
)
def test_each_kind_of_layer_has_one_graph_at_each_level(name, level, batch_size):
    check_graphs(name, level, batch_size)


EVERY_ENCODER = (*encoders.names(), *ANY_TIMM)
OF_SAME_LAYERS = {"efficientnet_lite0": "mobilenet_v2", "se_resnext50_32x4d": "se_resnet50", "mit_b0": "mit_tiny"}
"""Encoders of the same classes of layers as another that is compared: of mobilenet_v2's inverted residuals with ReLU6,
of se_resnet50's bottlenecks with as many groups as resnext50_32x4d's have, and of mit_tiny's layers, wider."""


def check_narrow(monkeypatch, name: str, level: str, batch_size: int) -> None:
    narrow_everything(monkeypatch)
    monkeypatch.setitem(TIMM_MODELS, "densenet169", replace(TIMM_MODELS["densenet169"], options=UNLIKE_STAGES))
    check_graphs(name, level, batch_size)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in OF_SAME_LAYERS else slow_if_deeper(name)
        for name in EVERY_ENCODER
    ],
)
def test_each_kind_of_layer_has_one_graph_in_every_encoder(monkeypatch, name):
    """With one image, whose stride along the batch means nothing, where the encoder can be trained with one."""
    check_narrow(monkeypatch, name, "none", 2 if name in NEED_TWO_IMAGES else 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "level", "batch_size"),
    [
        (name, level, batch_size)
        for name in EVERY_ENCODER
        for level, batch_size in (("none", 2), ("full", 1), ("full", 2))
        if batch_size == 2 or name not in NEED_TWO_IMAGES
    ],
)
def test_each_kind_of_layer_has_one_graph_at_other_levels_and_batches(monkeypatch, name, level, batch_size):
    check_narrow(monkeypatch, name, level, batch_size)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_layer_gets_tokens_in_the_same_order_in_memory_without_a_copy(batch_size, level, channels_last):
    """Each layer's input is a view of what the layer before it gave, and strides follow from the shape."""
    model = build_model(ModelConfig(encoder="mit_b0", decoder_channels=TINY_CHANNELS), 0)[0]
    checkpoint_activations(model, level)
    if channels_last:
        model.to(memory_format=torch.channels_last)
        model.encoder.memory_format = torch.channels_last
    given, returned = [], []
    for layer in model.encoder.blocks():
        layer.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
        layer.register_forward_hook(lambda _, arguments, output: returned.append(output))
    model(images(batch_size).float(), torch.arange(batch_size))
    assert len(given) == 8
    for tokens in given:
        _, number, channels = tokens.shape
        assert tokens.stride() == (number * channels, channels, 1)
    for number in range(1, 8, 2):  # the second layer of each stage
        assert given[number].data_ptr() == returned[number - 1].data_ptr()


def test_a_layer_that_drops_nothing_has_the_graph_of_one_that_does():
    """The first of all drops nothing: without its factor of 1 it would be another kind."""
    encoder = build_model(ModelConfig(encoder="mit_tiny", decoder_channels=TINY_CHANNELS), 0)[0].encoder
    drawn = encoder.stochastic_depth.draw(torch.arange(100), torch.device("cpu"))
    factors = encoder.stochastic_depth.of_layer(drawn, 0)
    assert factors is not None
    assert all((each == 1).all() for each in factors)
