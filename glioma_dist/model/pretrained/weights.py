"""Starting weights of a U-Net: drawn, or another library's."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from glioma_dist.errors import InputError
from glioma_dist.files import read_json
from glioma_dist.model.checkpoint import HEAD
from glioma_dist.model.pretrained.imagenet import told
from glioma_dist.model.pretrained.state_dict_adapter import rename_network
from glioma_dist.model.pretrained.weight_files import is_unused, put, read_weights
from glioma_dist.registry import UnknownNameError, encoders

OWN_NAMES = ("encoder.segformer.", "encoder.body.")
"""How names of this toolkit's own checkpoints begin."""
SMP_SETTINGS = {
    "encoder_depth": 5,
    "decoder_interpolation": "nearest",
    "decoder_use_norm": "batchnorm",
    "decoder_attention_type": None,
}
"""Of segmentation_models.pytorch's U-Net, its own defaults."""
SMP_USABLE = {
    "encoder_depth": (5,),
    "decoder_interpolation": ("bilinear",),
    "decoder_use_norm": ("batchnorm", True),
    "decoder_attention_type": (None,),
}


@torch.no_grad()
def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights, in the order of the modules, from `generator` (a CPU one).

    Encoder as its authors do (SegFormer's released code): linear layers from a normal of deviation 0.02 cut at two
    units, convolutions from N(0, 2 / fan_out). Decoder: He et al. 2015 (arXiv 1502.01852), uniform, by fan_in.
    Head: Glorot and Bengio 2010, uniform. Biases 0, norms 1 and 0. An encoder that `draws_own_weights` keeps them.
    """
    for name, module in model.named_modules():
        if name.startswith("encoder.") and model.encoder.draws_own_weights:
            continue
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
        elif isinstance(module, nn.Conv2d) and name.startswith("encoder."):
            fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out), generator=generator)
        elif isinstance(module, nn.Conv2d) and name == "decoder.head":
            nn.init.xavier_uniform_(module.weight, generator=generator)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        if isinstance(getattr(module, "bias", None), Tensor):
            nn.init.zeros_(module.bias)


def load_smp(
    model: nn.Module, encoder: str, path: Path, norm: str, note: Callable[[str], None] = lambda line: None
) -> dict[str, str]:
    """Put a checkpoint of segmentation_models.pytorch's U-Net into `model`, in place: a file of weights, or the folder
    that its save_pretrained writes. A head of another number of classes is not taken, which is told to `note`.
    Returns its lineage. Raises InputError where it is of another network."""
    if path.is_dir():
        _check_smp_config(path / "config.json", encoder)
        path = path / "model.safetensors"
    if norm != "batch":
        raise InputError(f"--model.init {path}: that library's decoder has batch norm; give --model.norm batch")
    found = read_weights(path)
    if any(name.startswith(OWN_NAMES) for name in found):
        raise InputError(
            f"--model.init {path}: weights of this toolkit, but without their lineage; give the checkpoint's "
            "folder, as runs/x/best"
        )
    tensors = rename_network(found, model.encoder)
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(HEAD)}
    if any(name in tensors and tensors[name].shape != own[name].shape for name in own):
        note(f"--model.init {path}: has another number of classes; its head is not taken, all else is")
        tensors |= own
    unused = put(
        model, tensors, str(path), f"the U-Net with {encoder}", is_unused(model.encoder.classifiers, "encoder.body.")
    )
    text = f"segmentation_models.pytorch checkpoint {path.name}{told(unused)}"
    return {"weights": text, "licence": "not stated"}


def is_smp(path: Path) -> bool:
    """Whether `path` is a file, or a folder as segmentation_models.pytorch writes it."""
    return path.is_file() or ((path / "config.json").is_file() and (path / "model.safetensors").is_file())


def _check_smp_config(file: Path, encoder: str) -> None:
    settings = read_json(file)
    try:
        found = {name: settings.get(name, usual) for name, usual in SMP_SETTINGS.items()}
        theirs = encoders.canonical(str(settings["encoder_name"]))
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{file}: cannot be read as a model's settings ({error!r})") from error
    try:
        encoders.find(theirs)
    except UnknownNameError:
        raise InputError(f"{file}: its encoder is {theirs}, which this toolkit does not have") from None
    if theirs != encoder:
        raise InputError(f"{file}: its encoder is {theirs}, asked for is {encoder}; give --model.encoder {theirs}")
    other = [f"{name} {found[name]!r}" for name, usable in SMP_USABLE.items() if found[name] not in usable]
    if other:
        raise InputError(
            f"{file}: has {', '.join(other)}; only U-Nets with bilinear upsampling and plain batch norm are supported"
        )
