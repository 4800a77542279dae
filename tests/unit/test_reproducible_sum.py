"""The sum of gradients of --reproducible: against math.fsum, in any order and split, with values of any size."""

import math
import random

import pytest
import torch
from torch import nn

from glioma_dist.errors import InputError
from glioma_dist.scale.reproducible_sum import FOOTROOM_BITS, ExactSum

SHAPES = ((3, 4), (5,), (2, 3, 3, 3))


def alone(values: torch.Tensor) -> torch.Tensor:
    return values


def parameters(dtype=torch.float32) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]
    made[-1].data = made[-1].data.to(memory_format=torch.channels_last)
    return made


def take(weights, images) -> None:
    """A backward pass of each image, whose gradient is what is given."""
    for gradients in images:
        sum((weight * each).sum() for weight, each in zip(weights, gradients, strict=True)).backward()
        assert all(weight.grad is None for weight in weights)


def step(weights, exact: ExactSum, images) -> int:
    """Take a step as one process does. Returns its number of passes."""
    num_passes, fits = 0, False
    while not fits:
        exact.begin()
        take(weights, images)
        fits = exact.measure(alone)
        num_passes += 1
    exact.finish(alone)
    exact.accept()
    return num_passes


def drawn(num_images: int, size: float = 1.0, seed: int = 0) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    spread = [torch.randn(shape, generator=generator) for _ in range(num_images) for shape in SHAPES]
    spread = [each * 10.0 ** (4 * torch.rand(each.shape, generator=generator) - 4) * size for each in spread]
    return [spread[start : start + len(SHAPES)] for start in range(0, len(spread), len(SHAPES))]


def means(weights) -> list[torch.Tensor]:
    found = [weight.grad.clone() for weight in weights]
    for weight in weights:
        weight.grad = None
    return found


@pytest.mark.parametrize("size", [1.0, 1e30, 1e-30, 1e-42], ids=["one", "large", "small", "denormal"])
def test_the_mean_is_that_of_fsum_whatever_the_order(size):
    images = drawn(13, size)
    found = []
    for seed in range(3):
        weights = parameters()
        exact = ExactSum(weights, len(images))
        shuffled = images.copy()
        random.Random(seed).shuffle(shuffled)
        assert step(weights, exact, shuffled) == (1 if size == 1e-42 else 2)
        found.append(means(weights))
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))
    for number, mean in enumerate(found[0]):
        columns = torch.stack([image[number].flatten() for image in images]).double()
        expected = [math.fsum(column) / len(images) for column in columns.T.tolist()]
        # Half a unit an image, and the rounding of the result to fp32.
        bound = 2.0 ** (math.frexp(columns.abs().max().item())[1] - exact.unit_bits - 1) + 1e-7 * columns.abs().max()
        error = (mean.flatten().double() - torch.tensor(expected, dtype=torch.float64)).abs().max()
        assert error <= max(bound, 2.0**-149)


def test_the_error_is_that_of_the_rounding_unit():
    """fp64 parameters: nothing is rounded afterwards. Of gradients that fell as far as one pass allows."""
    images = [[each.double() for each in image] for image in drawn(7)]
    weights = parameters(torch.float64)
    exact = ExactSum(weights, len(images))
    step(weights, exact, images)
    means(weights)
    fallen = [[each * 2.0**-FOOTROOM_BITS for each in image] for image in images]
    assert step(weights, exact, fallen) == 1
    for number, mean in enumerate(means(weights)):
        columns = torch.stack([image[number].flatten() for image in fallen])
        expected = [math.fsum(column) / len(images) for column in columns.T.tolist()]
        error = (mean.flatten() - torch.tensor(expected, dtype=torch.float64)).abs().max()
        assert 0 < error <= columns.abs().max() * 2.0 ** (FOOTROOM_BITS - exact.unit_bits)


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4, 6])
def test_any_split_over_processes_gives_the_same_bits(num_processes):
    images, expected = drawn(12), None
    for shares in ([images], [images[rank::num_processes] for rank in range(num_processes)]):
        processes = [(weights := parameters(), ExactSum(weights, len(images))) for _ in shares]
        for _ in range(2):
            for (weights, exact), share in zip(processes, shares, strict=True):
                exact.begin()
                take(weights, share)
            greatest = torch.stack([exact._greatest for _, exact in processes]).amax(0)
            fit = [exact.measure(lambda _, greatest=greatest: greatest) for _, exact in processes]
        assert all(fit)
        total = sum(exact._total for _, exact in processes)
        for weights, exact in processes:
            exact.finish(lambda _, total=total: total)
            exact.accept()
            found = means(weights)
            expected = expected or found
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert len({tuple(exact.exponents) for _, exact in processes}) == 1


@pytest.mark.parametrize("factor", [1.0, 2.0**11, 2.0**30, 2.0**-13, 2.0**-30])
def test_a_step_is_repeated_only_where_its_gradients_do_not_fit(factor):
    """One that is repeated equals one of a sum that knew the size."""
    images = drawn(4)
    grown = [[each * factor for each in image] for image in images]
    weights = parameters()
    exact = ExactSum(weights, 4)
    step(weights, exact, images)
    means(weights)
    kept = exact.exponents
    assert step(weights, exact, grown) == (1 if 2.0**-14 <= factor < 2.0**12 else 2)
    found = means(weights)
    assert all(torch.isfinite(each).all() for each in found)
    other_weights = parameters()
    resumed = ExactSum(other_weights, 4, kept)
    step(other_weights, resumed, grown)
    assert all(torch.equal(one, other) for one, other in zip(found, means(other_weights), strict=True))
    assert resumed.exponents == exact.exponents


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_makes_the_whole_gradient_nan(value):
    images = drawn(3)
    weights = parameters()
    exact = ExactSum(weights, 3)
    images[1][2][0, 1, 2, 0] = value
    assert step(weights, exact, images) == 1
    assert all(mean.isnan().all() for mean in means(weights))


def test_zeros_keep_their_scale_and_what_has_no_gradient_has_none():
    used, zero, unused = (nn.Parameter(torch.ones(3)) for _ in range(3))
    exact = ExactSum([used, zero, unused], 2, [0, 5, 7])
    exact.begin()
    for _ in range(2):
        (used * 0.25 + zero * 0).sum().backward()
    assert exact.measure(alone)
    exact.finish(alone)
    exact.accept()
    assert used.grad.tolist() == [0.25] * 3
    assert zero.grad.tolist() == [0.0] * 3
    assert unused.grad is None
    assert exact.exponents == [-1, 5, 7]


def test_gradients_that_differ_when_repeated_are_refused():
    weights = parameters()
    exact = ExactSum(weights, 2)
    take(weights, drawn(2))
    assert not exact.measure(alone)
    exact.begin()
    take(weights, drawn(2, 1e20))
    with pytest.raises(InputError, match="is not deterministic"):
        exact.measure(alone)


def test_memory_and_the_end_of_its_hooks():
    weights = parameters()
    exact = ExactSum(weights, 4)
    assert exact.held_bytes == 8 * sum(weight.numel() for weight in weights)
    exact.close()
    weights[0].sum().backward()
    assert weights[0].grad is not None
    with pytest.raises(ValueError, match="2 exponents for 3 parameters"):
        ExactSum(weights, 4, [0, 0])
