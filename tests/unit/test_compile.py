"""torch.compile: each kind of layer gets exactly one graph, and no number changes."""

import copy
from collections.abc import Iterator

import pytest
import torch
from encoder_helpers import narrow_everything
from helpers import TINY_CHANNELS
from torch import Tensor, nn
from torch._dynamo.utils import counters

from glioma_dist.config import ModelConfig
from glioma_dist.model.unet import UNet, build_model
from glioma_dist.registry import encoders
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.scale_model import compilable, compile_blocks

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
"""PyTorch's compiler looks at it, and warns itself."""
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


def images(side: int = 64) -> Tensor:
    return torch.linspace(-2, 2, 2 * 3 * side * side, dtype=torch.float64).reshape(2, 3, side, side)


def kinds_of(model: UNet, blocks: list[nn.Module]) -> tuple[int, int]:
    """How many differ in what they are made of; and how many in that or in the shape of what they are given."""
    seen: dict[nn.Module, tuple] = {}

    def note(block: nn.Module, given: tuple[Tensor]) -> None:
        seen[block] = given[0].shape

    hooks = [block.register_forward_pre_hook(note) for block in blocks]
    with torch.no_grad():
        copy_of_state = copy.deepcopy(model.state_dict())
        model(images(), torch.arange(2))
        model.load_state_dict(copy_of_state)
    for hook in hooks:
        hook.remove()
    return len({repr(block) for block in blocks}), len({(repr(block), seen[block]) for block in blocks})


def take_step(model: UNet) -> list[Tensor]:
    model.zero_grad()
    logits = model(images(), torch.arange(2))
    logits.sum().backward()
    return [logits.detach(), *(each.grad for each in model.parameters())]


def check_graphs(name: str, level: str) -> None:
    config = ModelConfig(encoder=name, decoder_channels=TINY_CHANNELS)
    plain, ours = (build_model(config, 0)[0].double() for _ in range(2))
    checkpoint_activations(ours, level)
    blocks = compilable(ours)
    assert blocks or name == "vgg19"
    made_alike, kinds = kinds_of(ours, blocks)
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    try:
        compile_blocks(blocks, backend="eager")
        for _ in range(2):
            found, expected = take_step(ours), take_step(plain)
        # Blocks that differ in the size of their maps alone may share a graph: from the second size on it takes any.
        graphs = counters["stats"]["unique_graphs"]
        assert made_alike <= graphs <= kinds
        assert counters["frames"]["ok"] == counters["frames"]["total"] == graphs
        assert not counters["graph_break"]
        for ours_value, value in zip(found, expected, strict=True):
            assert (ours_value - value).abs().max() <= 1e-9 * value.abs().max().clamp(min=1)
        with torch.no_grad():  # other sizes, as validation has them: no more than the limit allows, and right
            torch.testing.assert_close(ours.eval()(images(96)), plain.eval()(images(96)), rtol=1e-9, atol=1e-9)
    finally:
        torch._dynamo.config.fail_on_recompile_limit_hit = False


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["mit_tiny", "timm/resnet18"])
def test_each_kind_of_layer_has_one_graph_at_each_level(name, level):
    check_graphs(name, level)


@pytest.mark.parametrize("level", ["none", "full"])
@pytest.mark.parametrize("name", [*encoders.names(), *ANY_TIMM])
def test_each_kind_of_layer_has_one_graph_in_every_encoder(monkeypatch, name, level):
    narrow_everything(monkeypatch)
    check_graphs(name, level)


def test_a_layer_that_drops_nothing_has_the_graph_of_one_that_does():
    """The first of all drops nothing: without its factor of 1 it would be another kind."""
    encoder = build_model(ModelConfig(encoder="mit_tiny", decoder_channels=TINY_CHANNELS), 0)[0].encoder
    drawn = encoder.stochastic_depth.draw(torch.arange(100), torch.device("cpu"))
    factors = encoder.stochastic_depth.of_layer(drawn, 0)
    assert factors is not None
    assert all((each == 1).all() for each in factors)
