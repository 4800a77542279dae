"""What each unit of a network keeps, takes for a moment and computes in a step with each choice of activation
checkpointing, and the peak of the step that follows from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from glioma_dist.scale.checkpoint_plan import (
    NUM_DECODER_UNITS,
    PLAIN,
    CheckpointPlan,
    Cut,
    DecoderPlan,
    Keeps,
    of_unit,
)
from glioma_dist.scale.step_memory import StepMemory

DECODER_SIZES = (NUM_DECODER_UNITS - 1, NUM_DECODER_UNITS)
"""Units of a decoder, without and with its center."""


@dataclass(frozen=True)
class Option:
    """One choice for a unit, compared with the level none."""

    keeps: Keeps
    cut: Cut
    kept: int
    """Bytes more, or less, from its forward to its backward pass."""
    forward: int
    """Peak of its forward pass above what is in use at its begin."""
    backward: int
    """Peak of its backward pass, what it computes again included, above what is in use at its begin."""
    seconds: float
    """Computed more than at the level none."""
    flops: float


@dataclass(frozen=True)
class Unit:
    """A segment of the encoder, or the decoder's center or one of its blocks."""

    options: tuple[Option, ...]
    before: int
    """Bytes in use at the level none as its forward pass begins."""
    before_backward: int
    """The same as its backward pass begins."""
    layers: tuple[int, ...] = ()
    """Numbers of its tileable layers."""

    @classmethod
    def of_json(cls, values: dict) -> Unit:
        """Restore it from `dataclasses.asdict`. Raises TypeError or KeyError for other values."""
        options = tuple(Option(**each) for each in values["options"])
        return cls(**{**values, "options": options, "layers": tuple(values["layers"])})


@dataclass(frozen=True)
class StepUnits:
    """A step at the level none, unit by unit."""

    segments: tuple[Unit, ...]
    decoder: tuple[Unit, ...]
    before_loss: int
    """Bytes in use at the end of the last unit."""
    at_loss: int
    """Peak bytes from the end of the last unit to the begin of its backward pass."""
    rest: int
    """Peak bytes of all else: the optimizer's step."""
    kept: int
    """Bytes that all units keep."""
    parameters: int
    """Bytes of parameters and buffers."""
    optimizer: int
    """Bytes of Adam's two moments."""
    seconds: float
    """Of the whole step."""
    flops: float

    @property
    def units(self) -> tuple[Unit, ...]:
        return self.segments + self.decoder

    def peak(self, options: Sequence[Option]) -> int:
        """Peak bytes with one option for each unit."""
        return max(in_use + momentary for in_use, momentary in self._moments(options))

    def memory(self, options: Sequence[Option]) -> StepMemory:
        """The same by purpose; gradients that are there are among what is kept."""
        in_use, momentary = max(self._moments(options), key=sum)
        return StepMemory(self.parameters, self.optimizer, 0, in_use - self.parameters - self.optimizer, momentary)

    def _moments(self, options: Sequence[Option]) -> Iterator[tuple[int, int]]:
        """Bytes in use where a unit's pass begins, and what it takes besides."""
        kept = 0
        for unit, option in zip(self.units, options, strict=True):
            yield unit.before + kept, option.forward
            kept += option.kept
            yield unit.before_backward + kept, option.backward
        yield self.before_loss + kept, self.at_loss - self.before_loss
        yield self.parameters + self.optimizer, self.rest - self.parameters - self.optimizer

    def plan(self, options: Sequence[Option]) -> CheckpointPlan:
        """The plan that takes one option for each unit."""
        number, cuts = len(self.segments), {}
        for unit, option in zip(self.segments, options[:number], strict=True):
            cuts |= dict.fromkeys(unit.layers, option.cut)
        layers = tuple(cuts.get(each, "whole") for each in range(max(cuts, default=0) + 1))
        decoder = [DecoderPlan(option.keeps, option.cut) for option in options[number:]]
        if len(decoder) < NUM_DECODER_UNITS:  # no center
            decoder.insert(0, PLAIN)
        return CheckpointPlan(tuple(option.keeps for option in options[:number]), layers, tuple(decoder))

    def in_tiles(self) -> StepUnits:
        """The same with all tileable layers of the encoder in tiles."""
        segments = tuple(
            replace(unit, options=tuple(each for each in unit.options if each.cut == "tiles")) if unit.layers else unit
            for unit in self.segments
        )
        return replace(self, segments=segments)

    def options_of(self, plan: CheckpointPlan) -> tuple[Option, ...]:
        """Inverse of `plan`; where a unit has no such option, the one that does the same."""
        decoder = plan.decoder[len(plan.decoder) - len(self.decoder) :]
        found = []
        for number, unit in enumerate(self.segments):
            cut = of_unit(plan.layers, unit.layers[0]) if unit.layers else "whole"
            found.append(_option(unit, of_unit(plan.segments, number), cut))
        found += [_option(unit, each.keeps, each.cut) for unit, each in zip(self.decoder, decoder, strict=True)]
        return tuple(found)

    @classmethod
    def of_json(cls, values: dict) -> StepUnits:
        """Restore it from `dataclasses.asdict`. Raises ValueError, TypeError or KeyError for other values."""
        segments, decoder = (tuple(map(Unit.of_json, values[name])) for name in ("segments", "decoder"))
        if not all(unit.options for unit in segments + decoder) or len(decoder) not in DECODER_SIZES:
            raise ValueError("no units of a step")
        return cls(**{**values, "segments": segments, "decoder": decoder})


def _option(unit: Unit, keeps: Keeps, cut: Cut) -> Option:
    """The option of a unit. Where nothing attends, attention keeps the input; what has no tiles is whole, and what has
    nothing but tiles is in tiles."""
    known = {(option.keeps, option.cut): option for option in unit.options}
    for name in (keeps, "input", "all"):
        for how in (cut, "whole", "tiles"):
            if (name, how) in known:
                return known[name, how]
    raise KeyError(keeps)
