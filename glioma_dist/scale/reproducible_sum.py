"""A sum of gradients that does not depend on their order, for --reproducible.

Floating-point sums depend on the order of their terms; sums of integers do not. So each image's gradient is rounded to
multiples of a power of two, one for each tensor, and added as a 64-bit integer. Demmel and Nguyen (2013, "Fast
reproducible floating-point summation", doi 10.1109/ARITH.2013.9; 2015, doi 10.1109/TC.2014.2345391) bin numbers of any
range; here one bin is enough, because the greatest gradient of the last step tells where it must lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from glioma_dist.errors import InputError

SUM_BITS = 62
"""Bits of the sum of a batch, without its sign, that are used of 63."""
HEADROOM_BITS = 12
"""A gradient may be so many powers of two larger than the greatest of the step before, or the step is repeated."""
FOOTROOM_BITS = 14
"""It may be so many powers of two smaller, or the step is repeated. It bounds the error of a sum (`unit_bits`)."""
LEAST_EXPONENT = -148
"""Of the smallest fp32 number."""
NO_GRADIENT = -1.0
"""In place of the greatest gradient of a tensor that has none."""

Reduce = Callable[[Tensor], Tensor]


class ExactSum:
    """The sum of the gradients of all images of a batch: the same bits for any order and any split over processes.

    Use: `begin()`; for each image a backward pass, during which hooks take each gradient and free it;
    `measure(reduce)`, which says whether the gradients fit their scales, and otherwise the passes are to be repeated;
    `finish(reduce)`, after which `grad` of each parameter is the mean over the batch; `accept()`, once the weights have
    moved.

    Args:
        parameters: that are trained, on one device.
        batch_size: images of the whole batch, over all processes.
        exponents: of the step before, as `exponents` had them; None before the first step, which takes two passes.

    Takes 8 bytes for each number of the parameters. Raises ValueError for exponents of other parameters.
    """

    def __init__(self, parameters: Sequence[Tensor], batch_size: int, exponents: Sequence[int] | None = None) -> None:
        if exponents is not None and len(exponents) != len(parameters):
            raise ValueError(f"{len(exponents)} exponents for {len(parameters)} parameters")
        self.exponents = [LEAST_EXPONENT] * len(parameters) if exponents is None else list(exponents)
        """Of each parameter: the power of two above the greatest gradient of an image in the step before."""
        self._parameters, self._batch_size = list(parameters), batch_size
        self._image_bits = SUM_BITS - math.ceil(math.log2(batch_size))
        """Of one image's gradient, so that the sum of the batch has SUM_BITS."""
        self.unit_bits = self._image_bits - HEADROOM_BITS
        """The rounding unit is 2^(exponent - unit_bits). An image's gradient is rounded by half a unit at most."""
        self._current, self._is_repeated = list(self.exponents), False
        device = self._parameters[0].device
        self._total = torch.zeros(sum(each.numel() for each in self._parameters), dtype=torch.int64, device=device)
        self._parts = self._total.split([each.numel() for each in self._parameters])
        self._greatest = torch.full((len(self._parameters),), NO_GRADIENT, dtype=torch.float64, device=device)
        self._scales = self._scales_of(self._current)
        self._found = [NO_GRADIENT] * len(self._parameters)
        self._hooks = [
            each.register_post_accumulate_grad_hook(lambda parameter, number=number: self._take(number, parameter))
            for number, each in enumerate(self._parameters)
        ]

    @property
    def held_bytes(self) -> int:
        """Memory of the sum, which is also what each process sends in a step."""
        return self._total.numel() * self._total.element_size()

    def close(self) -> None:
        """Let the parameters keep their gradients again."""
        for hook in self._hooks:
            hook.remove()

    def begin(self) -> None:
        """Before the first image of a step, and before those of its repetition."""
        self._total.zero_()
        self._greatest.fill_(NO_GRADIENT)

    @torch.no_grad()
    def _take(self, number: int, parameter: Tensor) -> None:
        """Add the gradient of one image, and free it. Nothing is read from the device.

        What is not finite or too large is found by `measure`; until then it is replaced, because its conversion to an
        integer is not defined.
        """
        gradient, parameter.grad = parameter.grad, None
        values = gradient.double()
        self._greatest[number] = torch.maximum(
            self._greatest[number], values.abs().amax().nan_to_num(math.inf, posinf=math.inf)
        )
        limit = 2.0**self._image_bits
        values = (values * self._scales[number]).round_().clamp_(-limit, limit).nan_to_num_(nan=0.0)
        # By index of the parameter's shape, so that strides, as of channels_last, do not matter.
        self._parts[number].add_(values.reshape(-1).to(torch.int64))

    def measure(self, greatest_of_all: Reduce) -> bool:
        """Whether the gradients of all processes fit their scales, or are not finite; else the step is to be repeated,
        with the scales that fit. The same on all processes.

        greatest_of_all: takes a tensor, and returns its greatest values over all processes.
        """
        self._found = greatest_of_all(self._greatest).tolist()
        if not self.is_finite:
            return True
        needed = [_exponent(value, current) for value, current in zip(self._found, self._current, strict=True)]
        fits = all(
            -FOOTROOM_BITS <= exponent - current <= HEADROOM_BITS
            for exponent, current in zip(needed, self._current, strict=True)
        )
        if not fits:
            if self._is_repeated:
                error = InputError(
                    "--reproducible: the gradients of a repeated step differ from those of its first pass, so a kernel "
                    "of this network is not deterministic on this device; give another --model.encoder"
                )
                error.is_shared = True
                raise error
            self._is_repeated, self._current, self._scales = True, needed, self._scales_of(needed)
        return fits

    @property
    def is_finite(self) -> bool:
        return all(math.isfinite(value) for value in self._found)

    @torch.no_grad()
    def finish(self, sum_of_all: Reduce) -> None:
        """Give each parameter the mean gradient of the batch; NaN if any image's is not finite. A parameter without a
        gradient on any process keeps None. sum_of_all: takes an int64 tensor, and returns its sum over all processes.
        """
        self._is_repeated = False
        total = sum_of_all(self._total) if self.is_finite else self._total
        parts = total.split([each.numel() for each in self._parameters])
        for parameter, part, current, greatest in zip(self._parameters, parts, self._current, self._found, strict=True):
            if greatest == NO_GRADIENT:
                continue
            unit = math.ldexp(1.0, current - self.unit_bits) if self.is_finite else math.nan
            mean = part.double().mul_(unit).div_(self._batch_size)
            # With the parameter's strides, as fused optimizers need.
            parameter.grad = torch.empty_like(parameter).copy_(mean.view(parameter.shape))

    def accept(self) -> None:
        """The step is taken: the next one has its scales by the gradients of this one."""
        self.exponents = [_exponent(value, now) for value, now in zip(self._found, self._current, strict=True)]
        if self.exponents != self._current:
            self._current = list(self.exponents)
            self._scales = self._scales_of(self._current)

    def _scales_of(self, exponents: list[int]) -> Tensor:
        """What numbers are multiplied by to become multiples of the unit: powers of two, (parameters,) fp64."""
        scales = [math.ldexp(1.0, self.unit_bits - exponent) for exponent in exponents]
        return torch.tensor(scales, dtype=torch.float64, device=self._total.device)


def _exponent(greatest: float, otherwise: int) -> int:
    """The least e with greatest < 2^e; `otherwise` where all gradients are zero, or there are none."""
    return max(math.frexp(greatest)[1], LEAST_EXPONENT) if greatest > 0 else otherwise
