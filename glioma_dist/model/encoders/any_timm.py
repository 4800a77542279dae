"""Any timm model that gives feature maps, as `timm/NAME`: computed by timm itself, and tried before it is used."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import DropPath, Format, PatchDropout
from torch import Tensor, nn

from glioma_dist.errors import InputError, RunError, one_line
from glioma_dist.model.encoders.contract import COARSEST_STRIDE, Encoder, compute
from glioma_dist.model.encoders.timm_models import keep_colours, recolour
from glioma_dist.model.pretrained.timm_weights import load_any_timm

PREFIX = "timm/"
PROBE_SIZES = ((64, 96), (96, 32))
"""Height and width of the images that a new model is tried with: of no model's own size, neither square nor alike."""
WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
DROPS = ("p", "drop_prob", "prob")
"""Attributes of layers that hold how often they drop."""


class AnyTimmEncoder(Encoder):
    """timm's feature network of a model (`features_only`), with its maps at strides up to 32.

    `body` has timm's names of weights. The blocks that the network is made of are its segments: each goes through
    `run_segment`. Nothing is dropped at random, as in the other timm encoders.
    """

    def __init__(self, name: str, segment_names: tuple[str, ...] | None = None) -> None:
        """segment_names: of the modules that are segments; by default the model is tried, once a process, and they are
        found then."""
        super().__init__()
        self.published = find_published(name)
        self.body, self.strides = create_body(name)
        _stop_drops(self.body)
        keep_colours(self, self.published)
        channels = dict(zip(self.body.feature_info.reduction(), self.body.feature_info.channels(), strict=True))
        self.channels = tuple(channels[stride] for stride in self.strides)
        self._segment_names = find_segments(name) if segment_names is None else segment_names
        for each in self._segment_names:
            _route(self, self.body.get_submodule(each))

    def forward(self, images: Tensor, seeds: Tensor | None = None) -> list[Tensor]:
        """As `Encoder.forward`; seeds are not needed, nothing is drawn."""
        images = recolour(self, images)
        outputs = list(self.body(images.contiguous(memory_format=self.memory_format)))
        if getattr(self.body, "output_fmt", None) == Format.NHWC:
            outputs = [each.permute(0, 3, 1, 2) for each in outputs]
        return outputs

    def draw(self, seeds: Tensor) -> None:
        """As `Encoder.draw`: nothing is drawn."""

    def blocks(self) -> list[nn.Module]:
        return [self.body.get_submodule(each) for each in self._segment_names]

    def rename_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """As `Encoder.rename_weights`, from a feature network of timm's, also as segmentation_models.pytorch has it."""
        return {f"body.{each.removeprefix('model.')}": tensor for each, tensor in tensors.items()}

    def load_imagenet(self, name: str, file: Path | None) -> dict[str, str]:
        return load_any_timm(self, name, file, partial(create_body, name))


def find_published(name: str) -> Any:
    """What timm says of a model and its weights. Raises InputError where it has no such model."""
    bare = name.removeprefix(PREFIX)
    architecture, _, tag = bare.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=1)
        advice = f"did you mean {near[0]}?" if near else "timm.list_models() lists its models"
        raise InputError(f"--model.encoder {name}: timm {timm.__version__} has no {architecture}; {advice}")
    published = timm.get_pretrained_cfg(bare, allow_unregistered=False) if _has_tag(architecture, tag) else None
    if published is None:
        tags = ", ".join(each.partition(".")[2] for each in _tags(architecture)) or "none"
        raise InputError(f"--model.encoder {name}: timm has no weights {tag} of {architecture}; it has {tags}")
    return published


def _tags(architecture: str) -> list[str]:
    return [each for each in timm.list_pretrained(f"{architecture}.*") if each.partition(".")[0] == architecture]


def _has_tag(architecture: str, tag: str) -> bool:
    return not tag or f"{architecture}.{tag}" in _tags(architecture)


def create_body(name: str, **options: Any) -> tuple[nn.Module, tuple[int, ...]]:
    """timm's feature network, and the strides of its maps. options: for timm, as `pretrained`.

    A model that is made for images of one size is asked to take any. Raises InputError where it gives no maps that the
    decoder can use.
    """
    bare = name.removeprefix(PREFIX)
    flexible = {"strict_img_size": False} if find_published(name).fixed_input_size else {}
    try:
        try:
            body = timm.create_model(bare, features_only=True, **flexible, **options)
        except TypeError:  # it knows no such option: whether it takes other sizes is seen when it is tried
            flexible = {}
            body = timm.create_model(bare, features_only=True, **options)
        reductions = body.feature_info.reduction()
        indices = [each for each, _ in _last_of_each(reductions)]
        if len(indices) < len(reductions):
            body = timm.create_model(bare, features_only=True, out_indices=indices, **flexible, **options)
    except (RunError, MemoryError):
        raise
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}", 200)
        raise InputError(
            f"--model.encoder {name}: timm cannot make a network of feature maps of it ({reason}); give another model"
        ) from error
    return body, tuple(stride for _, stride in _last_of_each(reductions))


def _last_of_each(reductions: list[int]) -> list[tuple[int, int]]:
    """Places and strides of the maps to take: the last of each stride from 2 to 32; stride 1 is the image's own."""
    places = {stride: place for place, stride in enumerate(reductions) if 1 < stride <= COARSEST_STRIDE}
    return sorted((place, stride) for stride, place in places.items())


def _stop_drops(body: nn.Module) -> None:
    """Set the rate of every layer that drops at random to 0."""
    for module in body.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd | DropPath | PatchDropout):
            for each in DROPS:
                if hasattr(module, each):
                    setattr(module, each, 0.0)


@lru_cache
@torch.inference_mode(False)  # a model may be built where nothing is trained
@torch.enable_grad()
def find_segments(name: str) -> tuple[str, ...]:
    """Names of the modules of a model that can be segments, found by computing maps of small images.

    Raises InputError where the decoder cannot use the maps, where they are drawn at random, and where a weight has no
    part in them (of several processes each would wait for its gradient).
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        encoder = AnyTimmEncoder(name, ()).float().train()
        _check_strides(name, encoder)
        watch = _SegmentWatch(encoder.body)
        try:
            size = PROBE_SIZES[0]
            with watch:
                for size in PROBE_SIZES:
                    outputs = encoder(_probe(size))
                    _check_shapes(name, encoder, size, outputs)
                    watch.look_at_inputs()
            torch.stack([each.double().sum() for each in outputs]).sum().backward()
            constant = _repeats(encoder, size)
        except (RunError, MemoryError):
            raise
        except Exception as error:
            reason = one_line(f"{type(error).__name__}: {error}", 200)
            raise InputError(
                f"--model.encoder {name}: cannot compute an image of {size[1]}x{size[0]}, so it does not take "
                f"images of every size ({reason}); give another model"
            ) from error
    if not constant:
        raise InputError(
            f"--model.encoder {name}: it draws at random while it computes, and not from --seed; give another model"
        )
    idle = [each for each, parameter in encoder.body.named_parameters() if parameter.grad is None]
    if idle:
        raise InputError(
            f"--model.encoder {name}: {len(idle)} of its weights have no part in its maps, the first is {idle[0]}; "
            "give another model"
        )
    return watch.segments()


def _probe(size: tuple[int, int]) -> Tensor:
    return torch.linspace(-2, 2, 2 * 3 * size[0] * size[1], dtype=torch.float32).reshape(2, 3, *size)


@torch.no_grad()
def _repeats(encoder: Encoder, size: tuple[int, int]) -> bool:
    """Whether two computations from the same weights and buffers give the same in training mode."""
    state, found = copy.deepcopy(encoder.state_dict()), []
    for seed in (1, 2):
        encoder.load_state_dict(state)
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed those of all GPUs, too
        found.append(encoder(_probe(size)))
    return all(torch.equal(*pair) for pair in zip(*found, strict=True))


def _check_strides(name: str, encoder: AnyTimmEncoder) -> None:
    strides = encoder.strides
    if not strides or strides[-1] != COARSEST_STRIDE or any(each & (each - 1) for each in strides):
        raise InputError(
            f"--model.encoder {name}: its maps are at strides {encoder.body.feature_info.reduction()}; the decoder "
            f"needs powers of two with {COARSEST_STRIDE} among them; give another model"
        )


def _check_shapes(name: str, encoder: AnyTimmEncoder, size: tuple[int, int], outputs: list[Tensor]) -> None:
    found = [tuple(each.shape[1:]) for each in outputs]
    wanted = [
        (channels, size[0] // stride, size[1] // stride)
        for channels, stride in zip(encoder.channels, encoder.strides, strict=True)
    ]
    if found != wanted:
        raise InputError(
            f"--model.encoder {name}: its maps of an image of {size[1]}x{size[0]} have shapes {one_line(found, 120)} "
            f"and not {one_line(wanted, 120)}; give another model"
        )


class _SegmentWatch:
    """Which modules of a network can be segments: they are called once with one map and return one, and nobody changes
    that input in place, because it is what activation checkpointing keeps."""

    def __init__(self, body: nn.Module) -> None:
        self.body = body
        self._candidates = [each for each, module in body.named_modules() if each and _is_block(body, each, module)]
        self._inputs: dict[str, list[tuple[Tensor, int]]] = {each: [] for each in self._candidates}
        self._refused: set[str] = set()
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        for each in self._candidates:
            module = self.body.get_submodule(each)
            before = module.register_forward_pre_hook(partial(self._before, each), with_kwargs=True)
            self._handles += [before, module.register_forward_hook(partial(self._after, each))]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, name: str, _: nn.Module, inputs: tuple, named: dict) -> None:
        if len(inputs) == 1 and isinstance(inputs[0], Tensor) and not named:
            self._inputs[name].append((inputs[0], inputs[0]._version))
        else:
            self._refused.add(name)

    def _after(self, name: str, _: nn.Module, __: tuple, output: object) -> None:
        if not isinstance(output, Tensor):
            self._refused.add(name)

    def look_at_inputs(self) -> None:
        """After a forward pass: refuse what was called more or less than once, or whose input has changed."""
        for name, seen in self._inputs.items():
            if len(seen) != 1 or any(tensor._version != version for tensor, version in seen):
                self._refused.add(name)
            seen.clear()

    def segments(self) -> tuple[str, ...]:
        """The innermost ones."""
        fit = [each for each in self._candidates if each not in self._refused]
        return tuple(each for each in fit if not any(other.startswith(each + ".") for other in fit))


def _is_block(body: nn.Module, name: str, module: nn.Module) -> bool:
    """Whether it has two layers with weights or more, and is one of several in a container, or of several alike."""
    if sum(isinstance(each, WEIGHTED) for each in module.modules()) < 2:
        return False
    parent = body.get_submodule(name.rpartition(".")[0])
    alike = sum(type(each) is type(module) for each in parent.children())
    return isinstance(parent, nn.Sequential | nn.ModuleList | nn.ModuleDict) or alike > 1


class _Plain(nn.Module):
    """A block as the segment that it is: its own computation, and its norms, which activation checkpointing guards."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, features: Tensor) -> Tensor:
        # `compute`: the class's forward as compiled by torch.compile.
        return getattr(self.block, "compute", type(self.block).forward)(self.block, features)


def _route(encoder: AnyTimmEncoder, block: nn.Module) -> None:
    """Have a block that timm calls computed through `encoder.run_segment`. Its class and its names stay as they are."""
    # In a tuple, so that the encoder does not become a module of its own block.
    block.forward = partial(_run, (encoder,), (block,))


def _run(encoder: tuple[AnyTimmEncoder], block: tuple[nn.Module], features: Tensor) -> Tensor:
    segment: Callable[[Tensor], Tensor] = _Plain(block[0])
    return segment(features) if encoder[0].run_segment is compute else encoder[0].run_segment(segment, features)
