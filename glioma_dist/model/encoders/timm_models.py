"""The article's convolutional encoders: timm's models, cut into segments, with maps at strides 2, 4, 8, 16 and 32.

The contract is `contract.py`'s; the table of the models, timm_names.py. None of them drops anything at random.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from timm.layers.split_attn import RadixSoftmax, SplitAttn
from timm.models import PretrainedCfg
from timm.models.regnet import RegStage
from torch import Tensor, nn
from torch.nn import functional

from glioma_dist.model.encoders.contract import CLASSIFIERS, IMAGENET_MEAN, IMAGENET_STD, Encoder
from glioma_dist.model.encoders.timm_names import TIMM_MODELS
from glioma_dist.model.modules import rebuild, replace_modules
from glioma_dist.model.pretrained.timm_weights import load_timm, rename_timm


class TimmEncoder(Encoder):
    """A timm model without its classifier: five maps at strides 2 to 32.

    `body` holds the model's modules under timm's own names. A segment is an `nn.Sequential` of neighbouring ones, made
    again for each forward pass, so that modules may be replaced.
    `published` is what timm says of its weights.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        source = TIMM_MODELS[name]
        model = timm.create_model(source.name, pretrained=False, **source.options)
        out_modules = source.out_modules or tuple(
            info["module"] for info in model.feature_info if info["reduction"] > 1
        )
        if source.pad:
            _pad(model)
        for each in source.centred:
            _centre(model, each)
        for each in map(model.get_submodule, source.linear):
            each.act = nn.Identity()
        replace_modules(model, _narrow)
        self._rectified = source.rectified
        self.has_spatial_layers = source.has_spatial_layers
        last = out_modules[-1].split(".")[0]
        names = [child for child, _ in model.named_children()]
        left_out = tuple(names[names.index(last) + 1 :])
        self.classifiers = (*CLASSIFIERS, *left_out)
        self.decoder_center = source.center
        self.published: PretrainedCfg = timm.get_pretrained_cfg(source.name)
        self.body = nn.ModuleDict({child: getattr(model, child) for child in names if child not in left_out})
        steps = [step for child, module in self.body.items() for step in _steps(child, module)]
        self._out_modules = frozenset(
            next(step for step in reversed(steps) if _within(step, name)) for name in out_modules
        )
        self._segments = _cut(self.body, steps, self._out_modules)
        keep_colours(self, self.published)
        self.strides, self.channels = self._measure()

    def forward(self, images: Tensor, seeds: Tensor | None = None) -> list[Tensor]:
        """images: (B, 3, H, W) float, H and W multiples of 32. seeds: not needed, nothing is drawn.

        Returns feature maps (B, channels[i], H / strides[i], W / strides[i]).
        """
        images = recolour(self, images)
        features, outputs = images.contiguous(memory_format=self.memory_format), []
        for names in self._segments:
            segment = nn.Sequential(*(self.body.get_submodule(name) for name in names))
            features = self.run_segment(segment, features)
            if names[-1] in self._out_modules:
                outputs.append(functional.relu(features) if self._rectified else features)
        return outputs

    def draw(self, seeds: Tensor) -> None:
        """As `Encoder.draw`: nothing is drawn."""

    def blocks(self) -> list[nn.Module]:
        """The modules of more than one layer that the network is a chain of."""
        modules = (self.body.get_submodule(name) for names in self._segments for name in names)
        return [module for module in modules if _is_block(module)]

    def rename_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """As `Encoder.rename_weights`, from the names of timm, of segmentation_models.pytorch, or of the authors."""
        return rename_timm(tensors, self.body)

    def load_imagenet(self, name: str, file: Path | None) -> dict[str, str]:
        """As `Encoder.load_imagenet`, from timm's hub."""
        return load_timm(self, name, file)

    @torch.no_grad()
    def _measure(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Strides and channels, from the maps of a small image."""
        side = 32
        outputs = self.eval()(next(self.parameters()).new_zeros(1, 3, side, side))
        self.train()
        return tuple(side // each.shape[-1] for each in outputs), tuple(each.shape[1] for each in outputs)


class StreamRadixSoftmax(RadixSoftmax):
    """Softmax of ResNeSt's split attention that returns the type of its input. CUDA autocast returns fp32 from softmax,
    so the feature maps that it weights would become fp32, too. CPU autocast keeps bf16."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, channels, 1, 1). Returns (B, channels)."""
        return super().forward(x).to(x.dtype)


class StreamSplitAttn(SplitAttn):
    """ResNeSt's split attention that returns the type of its input: CUDA autocast returns fp32 from its sum, too."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, channels, H, W). Returns a map of the same type."""
        return super().forward(x).to(x.dtype)


def _narrow(_name: str, module: nn.Module) -> nn.Module | None:
    kinds: dict[type[nn.Module], type[nn.Module]]
    kinds = {RadixSoftmax: StreamRadixSoftmax, SplitAttn: StreamSplitAttn}
    return rebuild(module, kinds[type(module)]) if type(module) in kinds else None


def _centre(model: nn.Module, name: str) -> None:
    """Put a plain convolution, padded alike on all sides, in the place of one with TensorFlow's padding."""
    found = model.get_submodule(name)
    plain = rebuild(found, nn.Conv2d, padding=tuple(side // 2 for side in found.kernel_size))
    model.set_submodule(name, plain)


def _steps(name: str, module: nn.Module) -> Iterator[str]:
    """Names of the modules that `module` runs one after the other."""
    if type(module).forward is nn.Sequential.forward or isinstance(module, RegStage):
        for child, inner in module.named_children():
            yield from _steps(f"{name}.{child}", inner)
    else:
        yield name


def _cut(body: nn.ModuleDict, steps: list[str], tapped: frozenset[str]) -> list[list[str]]:
    """Segments: a block, or layers of the first map's kind (convolution, norm, activation) up to a pooling.

    None begins with a layer that changes its input in place, because activation checkpointing keeps that input.
    """
    segments: list[list[str]] = [[]]
    for step in steps:
        module = body.get_submodule(step)
        before = [body.get_submodule(name) for name in segments[-1]]
        pooling = isinstance(module, nn.MaxPool2d | nn.AvgPool2d)
        full = _is_block(module) and any(_convolves(each) for each in before)
        after_block = _convolves(module) and any(_is_block(each) for each in before)
        if before and (segments[-1][-1] in tapped or pooling or full or after_block):
            segments.append([])
        segments[-1].append(step)
    return segments


def _convolves(module: nn.Module) -> bool:
    return any(isinstance(each, nn.Conv2d) for each in module.modules())


def _is_block(module: nn.Module) -> bool:
    return _convolves(module) and not isinstance(module, nn.Conv2d)


def _within(step: str, module: str) -> bool:
    return step == module or step.startswith(module + ".")


def _pad(model: nn.Module) -> None:
    """Pad 3x3 windows by one on each side; without it a map of 704 pixels' stride 2 has 351 and not 352."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.padding = (1, 1)
        elif isinstance(module, nn.MaxPool2d) and module.kernel_size == 3:
            module.padding = 1


def keep_colours(encoder: Encoder, published: PretrainedCfg) -> None:
    """Give `encoder` what `recolour` needs, `colours` and, on its device and in no checkpoint, their tensors."""
    encoder.colours = colours_of(published)
    for name, values in zip(("colour_scale", "colour_shift"), encoder.colours or (), strict=False):
        # fp64, of which every narrower type is rounded once
        encoder.register_buffer(name, torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1), persistent=False)


def recolour(encoder: Encoder, images: Tensor) -> Tensor:
    """Convert images (B, 3, H, W) from ImageNet's normalisation to the normalisation of `encoder`'s weights."""
    if encoder.colours is None:
        return images
    return images * encoder.colour_scale.to(images.dtype) + encoder.colour_shift.to(images.dtype)


def colours_of(published: PretrainedCfg) -> tuple[list[float], list[float]] | None:
    """Scale and shift a channel, from ImageNet's mean 0 and deviation 1 to what timm's weights were trained with; None
    where these are the same."""
    mean, std = published.mean, published.std
    if (mean, std) == (IMAGENET_MEAN, IMAGENET_STD):
        return None
    scale = [ours / theirs for ours, theirs in zip(IMAGENET_STD, std, strict=True)]
    shift = [(ours - theirs) / s for ours, theirs, s in zip(IMAGENET_MEAN, mean, std, strict=True)]
    return scale, shift
