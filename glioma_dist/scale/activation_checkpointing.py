"""Activation checkpointing: what a step keeps for its backward pass, and what it computes a second time instead.

Outputs, gradients and buffers are those of the plain model: nothing in the model draws from a global generator
(stochastic depth is drawn from the images' seeds), and running statistics are moved by the first computation only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glioma_dist.errors import InputError, one_line
from glioma_dist.model.decoder import BilinearDecoder, CenterBlock
from glioma_dist.model.encoders.contract import compute
from glioma_dist.model.modules import depends_on_batch, rebuild, remove_hooks, replace_modules
from glioma_dist.model.unet import UNet
from glioma_dist.scale.attention_memory import AttentionKeeper, AttentionMemory, AttentionReplayer, RememberedAttention
from glioma_dist.scale.checkpoint_plan import LEVEL_PLANS, CheckpointPlan, DecoderPlan, Keeps, of_unit
from glioma_dist.scale.large_images import LargeImages
from glioma_dist.scale.offload import offload_activations, stop_offloading
from glioma_dist.scale.step import Level
from glioma_dist.scale.strips.encoder import StripSegment
from glioma_dist.scale.tile_size import TileSize
from glioma_dist.scale.tiled_block import TiledBlock
from glioma_dist.scale.tiles import checkpoint_in_tiles
from glioma_dist.scale.versions import WeightVersions

NUM_SPARING_BLOCKS = 3
"""Decoder blocks that keep only their inputs of large images: the last ones, which have the largest maps. The others'
strips may have fewer rows than these need of their neighbours."""


def checkpoint_activations(model: UNet, level: Level | CheckpointPlan, tile_size: TileSize | None = None) -> None:
    """Make `model` compute activations again in its backward pass instead of keeping them.

    Its weights, their names and its results do not change.

    selective: keeps the input of each segment of the encoder (one layer, or two in a deep stage), and the output of
    attention.
    full: computes attention again too, runs the encoder's tileable layers in tiles, keeps only the input of each
    decoder block, and runs the last block and the head in tiles. For an encoder without attention both levels keep the
    inputs of its segments.
    offload: full, and what it keeps waits in host memory (`offload.py`). Of large images (`large_images.py`) the
    decoder's last blocks keep their inputs only, and some of the encoder's layers are computed in tiles as a whole.
    A `CheckpointPlan` says the same of each part; the levels are four of them.
    At each level, also none, a decoder block on a GPU is computed in tiles if its maps are too large for a kernel.
    A second call takes back what the first has changed.

    tile_size: by default the size for the device that computes.

    Raises InputError for another level, and for a model that is no U-Net of this package.
    """
    plan = LEVEL_PLANS.get(level) if isinstance(level, str) else level
    if not isinstance(plan, CheckpointPlan):
        raise InputError(f"level {one_line(repr(level), 80)}: give none, selective, full or offload")
    if not isinstance(model, UNet):
        raise InputError(f"{type(model).__name__}: is no U-Net of this package; give the one that build_model returns")
    _undo(model)
    large = LargeImages() if plan.offloads else None
    settings = {
        id(block): {
            "always": unit.cut == "tiles",
            "tile_size": tile_size,
            "reuses_gradient": plan.offloads,
            "large_images": large if unit.cut == "tiles" and distance < NUM_SPARING_BLOCKS else None,
            "stride": 2**distance,
        }
        for distance, (block, unit) in enumerate(
            zip(reversed(model.decoder.blocks), reversed(plan.decoder[1:]), strict=True)
        )
    }
    replace_modules(
        model, lambda _, module: rebuild(module, TiledBlock, **settings[id(module)]) if id(module) in settings else None
    )
    model.decoder = rebuild(model.decoder, PlannedDecoder, plan=plan.decoder, lets_go=plan.offloads)
    attention = model.encoder.attention_layers() if "attention" in plan.segments else ()
    memory = AttentionMemory() if attention else None
    for layer in attention:
        layer.attend = RememberedAttention(layer.attend, memory)
    keeps_all = set(plan.segments) == {"all"}
    model.encoder.run_segment = compute if keeps_all else PlannedSegments(model.encoder, plan.segments, memory)
    for number, layer in enumerate(model.encoder.tileable_layers()):
        in_tiles = of_unit(plan.layers, number) == "tiles"
        layer.run_tiles = partial(checkpoint_in_tiles, size=tile_size) if in_tiles else None
    if plan.offloads:
        offload_activations(model)
        model.encoder.large_images = large
        for layer in model.encoder.sparing_layers():
            layer.run_tiles = partial(checkpoint_in_tiles, size=tile_size)


def _undo(model: UNet) -> None:
    """Take back what an earlier level has added, and no other level replaces."""
    stop_offloading(model)
    model.encoder.large_images = None
    for layer in model.encoder.sparing_layers():
        layer.run_tiles = None
    remove_hooks(model.encoder, PlannedSegments)
    for layer in model.encoder.attention_layers():
        if isinstance(layer.attend, RememberedAttention):
            layer.attend = layer.attend.attend


def compute_again(
    part: Callable[..., Tensor],
    *inputs: Tensor | nn.Module | None,
    norms: nn.Module | None = None,
    weights: Iterable[Tensor] = (),
) -> Tensor:
    """`part(*inputs)`, of which only the inputs are kept. norms: the module whose batch norms `part` runs. weights:
    those that it uses, which must not change before the backward pass."""
    return _checkpoint(part, *inputs, context_fn=partial(_first_and_again, norms, weights))


def compute_again_but_attention(
    memory: AttentionMemory,
    part: Callable[..., Tensor],
    features: Tensor,
    norms: nn.Module | None = None,
    weights: Iterable[Tensor] = (),
) -> Tensor:
    """`part(features)`, of which the input and the outputs of attention are kept. norms, weights: as in
    `compute_again`."""
    return _checkpoint(part, features, context_fn=partial(_attention_contexts, memory, norms, weights))


# Nothing draws from a global generator, so none has its state copied from the GPU and put back.
_checkpoint = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


class PlannedSegments:
    """An encoder's `run_segment`: keeps of each segment what the plan says, by its number in the forward pass."""

    def __init__(self, encoder: nn.Module, plan: Sequence[Keeps], memory: AttentionMemory | None) -> None:
        self.plan, self.memory, self.number = plan, memory, 0
        self.encoder = encoder
        self.norms = encoder if any(map(depends_on_batch, encoder.modules())) else None
        """Of a segment that is a function, whose norms are not known: all of them."""
        encoder.register_forward_pre_hook(self.begin)

    def begin(self, *_: object) -> None:
        """A forward pass begins."""
        self.number = 0

    def __call__(self, part: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
        keeps = of_unit(self.plan, self.number)
        self.number += 1
        if keeps == "all":
            return part(features)
        segment = part.segment if isinstance(part, StripSegment) else part
        norms = segment if isinstance(segment, nn.Module) else self.norms
        weights = getattr(segment, "parameters", self.encoder.parameters)()
        if keeps == "attention" and self.memory is not None:
            return compute_again_but_attention(self.memory, part, features, norms, weights)
        return compute_again(part, features, norms=norms, weights=weights)


def _attention_contexts(
    memory: AttentionMemory, norms: nn.Module | None, weights: Iterable[Tensor]
) -> tuple[AbstractContextManager, AbstractContextManager]:
    kept: deque[Any] = deque()
    return memory.use(AttentionKeeper(kept)), EachTime(partial(_replayed, memory, kept, norms, WeightVersions(weights)))


@contextmanager
def _replayed(
    memory: AttentionMemory, kept: deque[Any], norms: nn.Module | None, weights: WeightVersions
) -> Iterator[None]:
    with memory.use(AttentionReplayer(kept)), _again(norms, weights):
        try:
            yield
        finally:
            kept.clear()


class EachTime:
    """A context that can be entered again: it is made again each time. With `retain_graph` a segment is computed again
    in each backward pass."""

    def __init__(self, make: Callable[[], AbstractContextManager]) -> None:
        self._make = make

    def __enter__(self) -> None:
        self._now = self._make()
        self._now.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        return self._now.__exit__(*error)


class PlannedDecoder(BilinearDecoder):
    """Keeps of its center and its blocks what the plan says. The last block computes the head, too, so that both can
    work on the same tiles."""

    plan: tuple[DecoderPlan, ...]

    lets_go = False
    """Whether it empties the list of the encoder's maps, so that each may leave the device after its last use."""

    def forward(self, encoder_features: list[Tensor]) -> Tensor:
        """encoder_features: the encoder's, finest first. Returns logits (B, num_outputs, H, W) at full size."""
        features, skips = encoder_features[-1], self.skips(encoder_features)
        if self.lets_go:
            encoder_features.clear()
        if isinstance(self.center, CenterBlock):
            features = self._compute(self.center, self.plan[0], features)
        for block, unit in zip(self.blocks[:-1], self.plan[1:-1], strict=True):
            features = self._compute(block, unit, features, skips.pop(0))
        return self._compute(self.blocks[-1], self.plan[-1], features, *skips, self.head)

    @staticmethod
    def _compute(block: nn.Module, unit: DecoderPlan, *inputs: Any) -> Tensor:
        if unit.keeps == "all" or (isinstance(block, TiledBlock) and block.keeps_inputs_only(inputs[0])):
            return block(*inputs)
        used = (each for each in (block, *inputs) if isinstance(each, nn.Module))
        weights = (weight for each in used for weight in each.parameters())
        return compute_again(block, *inputs, norms=block, weights=weights)


def _first_and_again(
    norms: nn.Module | None, weights: Iterable[Tensor]
) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), EachTime(partial(_again, norms, WeightVersions(weights)))


@contextmanager
def _again(norms: nn.Module | None, weights: WeightVersions) -> Iterator[None]:
    weights.check()
    with nullcontext() if norms is None else _buffers_left_alone(norms):
        yield


@contextmanager
def _buffers_left_alone(module: nn.Module) -> Iterator[None]:
    """Within it, changes to the module's buffers go to copies, which are then thrown away."""
    kept = [(part, dict(part._buffers)) for part in module.modules() if part._buffers]
    for part, buffers in kept:
        for name, buffer in buffers.items():
            part._buffers[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for part, buffers in kept:
            part._buffers.update(buffers)
