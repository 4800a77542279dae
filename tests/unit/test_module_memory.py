"""Counting a step of any module: inputs, losses, optimizers and values of all kinds, and other libraries' networks."""

import json
import random
import re
from functools import partial

import numpy as np
import pytest
import torch
from helpers import REPOSITORY, load_benchmark
from torch import Tensor, nn
from torch.nn import functional

from glioma_dist.errors import InputError
from glioma_dist.scale.module_memory import estimate_step_memory

FLOAT = 4
TABLE = REPOSITORY / "docs" / "benchmarks" / "module_memory_2_cores" / "module_memory.json"
"""Twenty networks; test_memory_ledger.py looks whether it has all."""
MIB = 2**20
TOLERANCE = 0.10
QUICK = ("U-Net resnet18", "PSPNet resnet18", "convnext_atto", "BERT", "GPT-2")
LINEAR = nn.Linear(8, 8)


@pytest.fixture(scope="module")
def benchmark():
    pytest.importorskip("segmentation_models_pytorch")
    yield from load_benchmark("module_memory")


@pytest.mark.parametrize("name", QUICK)
def test_what_is_counted_is_what_pytorch_allocates(benchmark, monkeypatch, name):
    """Images of a quarter of the size that the table has."""
    monkeypatch.setattr(benchmark.image, "__defaults__", (2, 128))
    found = benchmark.compare(name, torch.device("cpu"))
    assert abs(found.difference) <= TOLERANCE, found


@pytest.mark.slow
@pytest.mark.parametrize("name", [row["network"] for row in json.loads(TABLE.read_text())["rows"]])
def test_so_it_is_for_all_twenty(benchmark, name):
    found = benchmark.compare(name, torch.device("cpu"))
    assert abs(found.difference) <= TOLERANCE, found


class Named(nn.Module):
    """Takes one or two tensors, and returns outputs of several kinds."""

    def __init__(self, make: type = dict) -> None:
        super().__init__()
        self.make, self.layer = make, nn.Linear(8, 8)

    def forward(self, inputs: Tensor, more: Tensor | None = None) -> dict | list:
        output = self.layer(inputs if more is None else inputs + more)
        number = torch.ones(4, dtype=torch.long)
        return {"out": output, "number": number} if self.make is dict else [output, {"number": number}]


@pytest.mark.parametrize("make", [dict, list])
def test_inputs_and_outputs_of_all_kinds_count_the_same(make):
    module, example = Named(make), torch.zeros(4, 8)
    expected = estimate_step_memory(module, (4, 8), lambda out: (out["out"] if make is dict else out[0]).mean())
    one = ((4, 8), torch.Size((4, 8)), example, [example], (example,), {"inputs": example}, example.to("meta"))
    assert all(estimate_step_memory(module, inputs) == expected for inputs in one)
    two = ((example, example), {"inputs": example, "more": example})
    positional, named = (estimate_step_memory(module, inputs) for inputs in two)
    assert positional == named != expected


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, partial(torch.device, "meta")])
def test_a_step_is_that_of_a_training_wherever_it_is_asked_for(mode):
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 1))
    plain = estimate_step_memory(layers, (2, 3, 16, 16), precision="bf16")
    with mode():
        assert estimate_step_memory(layers, torch.zeros(2, 3, 16, 16), precision="bf16") == plain


def test_a_shape_may_have_numbers_of_numpy():
    layers = nn.Conv2d(3, 8, 3)
    shape = np.array([2, 3, 16, 16])
    assert estimate_step_memory(layers, tuple(shape)) == estimate_step_memory(layers, tuple(map(int, shape)))
    with pytest.raises(InputError, match="give a shape, whole numbers above 0"):
        estimate_step_memory(layers, (True, 3, 16, 16))


def test_the_loss_among_the_outputs_is_the_loss():
    class Trained(Named):
        def forward(self, inputs: Tensor) -> dict:
            output = self.layer(inputs)
            return {"loss": functional.mse_loss(output, torch.zeros_like(output)), "hidden": output}

    counted = estimate_step_memory(Trained(), (64, 8))
    assert counted == estimate_step_memory(Trained(), (64, 8), lambda outputs: outputs["loss"])
    assert counted != estimate_step_memory(Trained(), (64, 8), lambda outputs: outputs["hidden"].mean())


def test_it_says_which_layers_keep_most_and_when_the_peak_is():
    """By hand: of 64 rows, sigmoid keeps its 64x1000 results, the output has 64x10 numbers and the input 64x8."""
    layers = nn.Sequential(nn.Linear(8, 1000), nn.Sequential(nn.Sigmoid(), nn.Linear(1000, 10)))
    counted = estimate_step_memory(layers, (64, 8))
    kept = [(each.module, each.operation, each.num_bytes) for each in counted.largest_kept[:3]]
    assert kept == [
        ("1.0", "aten.sigmoid.default", 64 * 1000 * FLOAT),
        ("1.1", "aten.addmm.default", 64 * 10 * FLOAT),
        ("", "input", 64 * 8 * FLOAT),
    ]
    assert (counted.moment.phase, counted.moment.operation) == ("backward", "aten.sigmoid_backward.default")


def test_the_peak_can_be_in_the_forward_pass_or_in_the_optimizer():
    repeats = nn.Sequential(Calls(lambda x: x + x.detach().repeat(1000, 1).sum()))
    moment = estimate_step_memory(repeats, (8, 8)).moment
    assert (moment.phase, moment.operation, moment.module) == ("forward", "aten.sum.default", "0")
    moment = estimate_step_memory(nn.Linear(500, 500), (1, 500)).moment
    assert (moment.phase, moment.module) == ("optimizer", "")


def test_parameters_without_gradients_have_no_states():
    module = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    used = Calls(nn.Identity())
    used.layer, used.idle = module[0], module[1]
    counted = estimate_step_memory(used, (4, 64), torch.sum)
    assert counted.parameters == 2 * 64 * 64 * FLOAT
    assert counted.optimizer == 2 * 64 * 64 * FLOAT + FLOAT


OPTIMIZERS = {
    "SGD": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    **{
        name: getattr(torch.optim, name)
        for name in ("Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "NAdam", "RAdam", "Adamax", "ASGD", "Rprop")
    },
    "amsgrad": partial(torch.optim.Adam, amsgrad=True),
    "foreach": partial(torch.optim.Adam, foreach=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_states_of_an_optimizer_are_those_that_it_really_has(name):
    def two() -> nn.Sequential:
        return nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64))

    module = two()
    optimizer = OPTIMIZERS[name](module.parameters())
    module(torch.zeros(4, 64)).sum().backward()
    optimizer.step()
    states = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
        for state in optimizer.state.values()
        for each in state.values()
        if isinstance(each, Tensor)
    }
    counted = estimate_step_memory(two(), (4, 64), torch.sum, optimizer=OPTIMIZERS[name])
    assert counted.optimizer == sum(states.values())


def test_a_single_number_before_the_largest_weight_changes_no_states():
    """Its moments have the shape of the number of steps."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias, self.scale = nn.Parameter(torch.zeros(4, 1)), nn.Parameter(torch.zeros(()))
            self.weight = nn.Parameter(torch.zeros(64))

        def forward(self, images: Tensor) -> Tensor:
            return (images * self.weight + self.bias) * self.scale

    memory = estimate_step_memory(Scaled(), (4, 64))
    assert memory.optimizer == 2 * 4 * (4 + 1 + 64) + 3 * 4  # two moments of each number, a number of steps of each


def test_an_optimizer_for_all_parameters_at_once_takes_more_at_its_peak():
    layers = nn.Sequential(*(nn.Linear(128, 128) for _ in range(8)))
    plain, foreach = (
        estimate_step_memory(layers, (1, 128), optimizer=partial(torch.optim.Adam, foreach=foreach))
        for foreach in (False, True)
    )
    assert foreach.optimizer == plain.optimizer
    assert foreach.peak > plain.peak + 6 * 128 * 128 * FLOAT


def test_half_precision_keeps_half():
    layers = nn.Sequential(*(nn.Linear(64, 64) for _ in range(6)))
    fp32, bf16, fp16 = (
        estimate_step_memory(layers, (4096, 64), precision=precision).kept for precision in ("fp32", "bf16", "fp16")
    )
    assert bf16 == fp16 < 0.7 * fp32


class Squares(torch.autograd.Function):
    """Keeps a tensor that no operation outside it sees."""

    @staticmethod
    def forward(context, inputs: Tensor) -> Tensor:
        doubled = 2 * inputs
        context.save_for_backward(doubled)
        return inputs**2

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        (doubled,) = context.saved_tensors
        return gradient * doubled


class Decides(nn.Module):
    """Looks at values. decide: takes the module, the features and the mask."""

    def __init__(self, decide) -> None:
        super().__init__()
        self.decide, self.layer = decide, nn.Linear(8, 8)
        self.register_buffer("limit", torch.tensor(3))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        return self.decide(self, self.layer(features), mask)


MASK = torch.arange(64) % 4 == 0
DECISIONS = {
    "custom function": (lambda _, x, mask: Squares.apply(x), None),
    "input": (lambda _, x, mask: torch.cat([x, x]) if mask.any() else x, lambda _, x, mask: torch.cat([x, x])),
    "computed from inputs": (
        lambda _, x, mask: torch.cat([x, x]) if int((mask.long().cumsum(0) * 2).max()) == 32 else x,
        lambda _, x, mask: torch.cat([x, x]),
    ),
    "constant": (
        lambda self, x, mask: x.repeat(int(self.limit + torch.full((1,), 2)), 1),
        lambda _, x, mask: x.repeat(5, 1),
    ),
    "random draw": (lambda _, x, mask: x if torch.rand(()) < 1 else torch.cat([x, x]), lambda _, x, mask: x * 1),
    "draw of a layer's shape": (
        lambda _, x, mask: x if x.new_empty((64, 1)).bernoulli_(1.0).all() else torch.cat([x, x]),
        lambda _, x, mask: x * 1,
    ),
    "written in place": (
        lambda _, x, mask: torch.cat([x, x]) if mask.clone().logical_not_().sum() == 48 else x,
        lambda _, x, mask: torch.cat([x, x]),
    ),
    "positions": (lambda _, x, mask: x[mask.nonzero().squeeze(1)] * 1, lambda _, x, mask: x[torch.arange(16)] * 1),
    "masked": (lambda _, x, mask: x[mask] * 1, lambda _, x, mask: x[torch.arange(16)] * 1),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_what_no_weight_decides_is_decided_as_it_will_be(name):
    """The activations are those of a module that has no decision."""
    decide, plain = DECISIONS[name]
    inputs = (torch.zeros(64, 8), MASK)
    counted = estimate_step_memory(Decides(decide), inputs, lambda output: (output**2).sum())
    if plain is None:
        assert {each.operation: each.num_bytes for each in counted.largest_kept}["aten.mul.Tensor"] == 64 * 8 * FLOAT
        return
    expected = estimate_step_memory(Decides(plain), inputs, lambda output: (output**2).sum())
    few = 2048  # the mask, what is computed from it, and whether the layer's output is kept twice
    assert abs(counted.kept - expected.kept) <= few < 64 * 8 * FLOAT * 2
    assert counted.gradients == expected.gradients


UNKNOWN = {
    "weights": (lambda _, x, mask: x if x.sum() > 0 else 2 * x, "aten._local_scalar_dense.default"),
    "mask of weights": (lambda _, x, mask: x[x > 0], "aten"),
    "known before": (lambda _, x, mask: x if mask.clone().copy_(x[:, 0] > 0).any() else 2 * x, "aten"),
    "known before, by a view": (
        lambda _, x, mask: (lambda copied: (copied[:8].copy_(x[:8, 0] > 0), x if copied.any() else 2 * x)[1])(
            mask.clone()
        ),
        "aten",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_weights_decide_is_refused_with_its_operation(name):
    decide, operation = UNKNOWN[name]
    with pytest.raises(InputError, match=rf"Decides, .* looks at values of a tensor \({operation}"):
        estimate_step_memory(Decides(decide), (torch.zeros(64, 8), MASK))


@torch.library.custom_op("glioma_dist_tests::unknown", mutates_args=())
def unknown_operation(inputs: Tensor) -> Tensor:
    return inputs.clone()


class Calls(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.layer, self.function = nn.Sequential(nn.Linear(8, 8)), function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(self.layer(inputs))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"module": Calls(lambda x: unknown_operation(x))}, "Calls: .*glioma_dist_tests.unknown.*register_fake"),
        ({"module": Calls(lambda x: torch.from_numpy(x.detach().numpy()))}, "Calls: a step .* fails after aten"),
        ({"module": Calls(lambda x: "text")}, "Calls returns str without floating tensors to train: give a loss"),
        ({"inputs": (2, 9)}, r"Linear: a step on tensors without values fails.*RuntimeError"),
        ({"precision": "fp8"}, "precision 'fp8': give fp32, bf16 or fp16"),
        ({"optimizer": "adam"}, "optimizer 'adam': give a class or a function"),
        ({"optimizer": torch.optim.LBFGS}, "Linear: a step .* fails.*closure"),
        ({"optimizer": torch.optim.Adafactor}, "Linear, its loss or its optimizer looks at values of a tensor"),
    ],
    ids=["operation", "numpy", "outputs", "shape", "precision", "optimizer", "closure", "values"],
)
def test_what_cannot_be_counted_is_one_line(given, expected):
    with pytest.raises(InputError, match=expected) as error:
        estimate_step_memory(**({"module": LINEAR, "inputs": (2, 8)} | given))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 500


def test_random_numbers_are_drawn_as_if_nothing_had_been_estimated():
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), random.random(), float(np.random.rand())

    module = Calls(lambda x: x * sum(draw()))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    expected = draw()
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])
    estimate_step_memory(module, (2, 8))
    assert draw() == expected


def test_a_network_far_larger_than_this_machine_is_counted_and_nothing_is_left_in_it():
    module = nn.Sequential(nn.Linear(10**6, 10**5, device="meta"))
    assert estimate_step_memory(module, (1, 10**6)).peak > 4 * 10**11 * FLOAT
    assert not module[0]._forward_hooks
    assert module[0].weight.device.type == "meta"


def test_the_block_of_the_page_runs(capsys):
    page = (REPOSITORY / "docs" / "memory.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for large, small in (
        ("(2, 3, 512, 704)", "(2, 3, 64, 64)"),
        ('"lraspp_mobilenet_v3_large", weights=None, weights_backbone=None', '"squeezenet1_1", weights=None'),
    ):
        assert large in block
        block = block.replace(large, small)
    exec(block, {})
    peak, *parts = map(int, capsys.readouterr().out.splitlines()[0].split())
    assert peak >= sum(parts) > 0
