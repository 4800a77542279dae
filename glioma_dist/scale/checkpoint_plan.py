"""What each part of a network keeps for its backward pass: a plan of activation checkpointing. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, TypeVar, get_args

from glioma_dist.errors import InputError, one_line

Keeps = Literal["all", "attention", "input"]
"""all: every activation. attention: the input and the outputs of attention. input: the input only. What is not kept is
computed again in the backward pass."""
Cut = Literal["whole", "tiles"]
"""Whether a layer is computed as a whole, or in tiles of rows, each of which is computed again in the backward pass."""
NUM_DECODER_UNITS = 6
"""Of a decoder: its center, which most encoders leave out, and five blocks."""
MOST_UNITS = 9999
"""Of each kind, that a text may name: no network has as many, and a text could name more than the memory holds."""
TIMES = " x"
OFFLOAD = "; offload"
Unit = TypeVar("Unit")


@dataclass(frozen=True)
class DecoderPlan:
    """What the decoder's center or one of its blocks does."""

    keeps: Keeps = "all"
    cut: Cut = "whole"

    def __str__(self) -> str:
        return f"{self.keeps} {self.cut}"

    @classmethod
    def parse(cls, text: str) -> DecoderPlan:
        """Inverse of str. Raises ValueError."""
        keeps, cut = text.split(" ")
        return cls(_one_of(keeps, Keeps), _one_of(cut, Cut))


@dataclass(frozen=True)
class CheckpointPlan:
    """The units of a network, in the order of the forward pass."""

    segments: tuple[Keeps, ...]
    """Of the encoder; the last one holds for all segments that follow."""
    layers: tuple[Cut, ...]
    """Of the encoder's tileable layers; the last one holds for all that follow."""
    decoder: tuple[DecoderPlan, ...]
    """The center and the blocks. The center is not computed in tiles."""
    offloads: bool = False
    """Whether what is kept waits in host memory (`offload.py`)."""

    def __post_init__(self) -> None:
        if not self.segments or not self.layers or len(self.decoder) != NUM_DECODER_UNITS:
            raise InputError(
                f"a plan of activation checkpointing for {len(self.segments)} segments, {len(self.layers)} layers and "
                f"{len(self.decoder)} units of the decoder: give at least one segment, at least one layer, and "
                f"{NUM_DECODER_UNITS} units of the decoder"
            )

    def __str__(self) -> str:
        text = f"encoder {_runs(self.segments)}; layers {_runs(self.layers)}; decoder {_runs(self.decoder)}"
        return text + OFFLOAD * self.offloads

    @classmethod
    def parse(cls, text: str) -> CheckpointPlan:
        """Inverse of str. Raises InputError."""
        try:
            encoder, layers, decoder = text.removesuffix(OFFLOAD).split("; ")
            return cls(
                tuple(_one_of(each, Keeps) for each in _units(encoder, "encoder ")),
                tuple(_one_of(each, Cut) for each in _units(layers, "layers ")),
                tuple(DecoderPlan.parse(each) for each in _units(decoder, "decoder ")),
                text.endswith(OFFLOAD),
            )
        except ValueError as error:
            raise InputError(
                f"{one_line(text, 120)}: is not a plan of activation checkpointing as run.json records it"
            ) from error


def of_unit(units: Sequence[Unit], number: int) -> Unit:
    """What a plan says of a unit; the last one that it names holds for all that follow."""
    return units[min(number, len(units) - 1)]


def _runs(units: Sequence[object]) -> str:
    """Units as a text in which equal neighbours are counted."""
    runs = ((str(unit), len(list(run))) for unit, run in groupby(units))
    return ", ".join(text if number == 1 else f"{text}{TIMES}{number}" for text, number in runs)


def _units(text: str, prefix: str) -> list[str]:
    if not text.startswith(prefix):
        raise ValueError(text)
    parts = (run.partition(TIMES) for run in text.removeprefix(prefix).split(", "))
    runs = [(unit, int(number or 1)) for unit, _, number in parts]
    if any(number < 1 for _, number in runs) or sum(number for _, number in runs) > MOST_UNITS:
        raise ValueError(text)
    return [unit for unit, number in runs for _ in range(number)]


def _one_of(text: str, kind: object) -> object:
    if text not in get_args(kind):
        raise ValueError(text)
    return text


PLAIN = DecoderPlan()
LEVEL_PLANS: dict[str, CheckpointPlan] = {
    "none": CheckpointPlan(("all",), ("whole",), (PLAIN,) * NUM_DECODER_UNITS),
    "selective": CheckpointPlan(("attention",), ("whole",), (PLAIN,) * NUM_DECODER_UNITS),
    "full": CheckpointPlan(
        ("input",),
        ("tiles",),
        (
            DecoderPlan("input"),
            *[DecoderPlan("input", "tiles")] * (NUM_DECODER_UNITS - 2),
            DecoderPlan("all", "tiles"),
        ),
    ),
}
LEVEL_PLANS["offload"] = replace(LEVEL_PLANS["full"], offloads=True)
"""The levels of --scale.activation-checkpointing. The last block begins the backward pass, when nothing is freed yet,
so it is never computed again as a whole."""


def layers_in_tiles(level: str | CheckpointPlan) -> bool:
    """Whether all tileable layers of the encoder are computed in tiles."""
    plan = level if isinstance(level, CheckpointPlan) else LEVEL_PLANS[level]
    return set(plan.layers) == {"tiles"}
