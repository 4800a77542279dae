"""Starting weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from glioma_dist.errors import InputError
from glioma_dist.files import read_json
from glioma_dist.model.encoders.mit import MitEncoder
from glioma_dist.model.pretrained.download import NotReachedError, from_hub, from_url
from glioma_dist.model.pretrained.state_dict_adapter import is_authors_mit, rename_encoder, rename_network
from glioma_dist.model.pretrained.weight_files import put, read_weights
from glioma_dist.registry import ENCODER_NAMES, known_encoder

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

HUB_NAMES = {f"mit_b{number}": f"nvidia/mit-b{number}" for number in range(6)}
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
IMAGENET_LICENCE = "NVIDIA Source Code License for SegFormer (non-commercial)"
CLASSIFIERS = ("classifier", "head", "fc", "last_linear", "decode_head")
"""Names of what stands behind an encoder."""
OWN_NAMES = ("encoder.segformer.", "encoder.body.")
"""How names of this toolkit's own checkpoints begin."""
MIT_FIRST = ("embeddings.0.proj.weight", "stages.0.patch_embeddings.proj.weight")
"""How transformers' names of MiT's first convolution end, older ones and newer."""
DAMAGED = (OSError, SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError)
"""What libraries raise for files that they cannot read."""
PEER_SETTINGS = {
    "classes": 1,
    "encoder_depth": 5,
    "decoder_interpolation": "nearest",
    "decoder_use_norm": "batchnorm",
    "decoder_attention_type": None,
}
"""Of segmentation_models.pytorch's U-Net, its own defaults."""
PEER_USABLE = {
    "classes": (1,),
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
    Head: Glorot and Bengio 2010, uniform. Biases 0, norms 1 and 0.
    """
    for name, module in model.named_modules():
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
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


def load_imagenet(model: nn.Module, encoder: str, file: Path | None) -> dict[str, str]:
    """Put ImageNet weights into `model.encoder`, in place: from `file`, or from the hub, or its local cache.

    Returns their lineage. Raises InputError where there are none for this encoder, where they cannot be had here, or
    where they do not fit.
    """
    published = getattr(model.encoder, "published", None)
    if published is not None:
        licence = str(published.license or "not stated")
        name = f"timm/{published.architecture}.{published.tag}"
        tensors = read_weights(file) if file else _from_timms_hub(published)
        unused = _put_into_encoder(model.encoder, tensors, str(file or name), encoder)
        return {"weights": f"ImageNet, {file.name if file else name}{_told(unused)}", "licence": licence}
    if encoder not in HUB_NAMES:
        raise InputError(
            f"--model.init imagenet: there are no ImageNet weights of {encoder}; take one of "
            f"{', '.join(HUB_NAMES)}, or --model.init random"
        )
    name = HUB_NAMES[encoder]
    tensors = read_weights(file) if file else _from_hub(name)
    where = str(file or name)
    if is_authors_mit(tensors):
        unused = _put_into_encoder(model.encoder, tensors, where, encoder)
    else:
        broken = [name for name, tensor in tensors.items() if not tensor.float().isfinite().all()]
        if broken:
            raise InputError(f"--model.init imagenet: {where}: {broken[0]} is not finite; give another file")
        shared = {name: _three_channels(name, tensor) for name, tensor in tensors.items()}
        from glioma_dist.model.pretrained.transformers_mit import read_segformer  # transformers: seconds to import

        weights, report = read_segformer(encoder, shared)
        unused = _check_report(report, where, encoder)
        model.encoder.segformer.load_state_dict(weights)
    return {"weights": f"ImageNet, {file.name if file else name}{_told(unused)}", "licence": IMAGENET_LICENCE}


def _told(unused: list[str]) -> str:
    """Tensors of a file that no part of the network takes: what stands behind an encoder."""
    return f", without {len(unused)} tensors that are not used ({unused[0].removeprefix('body.')} …)" if unused else ""


def load_smp(model: nn.Module, encoder: str, path: Path, norm: str) -> dict[str, str]:
    """Put a checkpoint of segmentation_models.pytorch's U-Net into `model`, in place: a file of weights, or the folder
    that its save_pretrained writes. Returns its lineage. Raises InputError where it is of another network."""
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
    unused = put(model, tensors, str(path), f"the U-Net with {encoder}", _of_classifier(model.encoder, "encoder.body."))
    text = f"segmentation_models.pytorch checkpoint {path.name}{_told(unused)}"
    return {"weights": text, "licence": "not stated"}


def is_smp(path: Path) -> bool:
    """Whether `path` is a file, or a folder as segmentation_models.pytorch writes it."""
    return path.is_file() or ((path / "config.json").is_file() and (path / "model.safetensors").is_file())


def _check_smp_config(file: Path, encoder: str) -> None:
    settings = read_json(file)
    try:
        found = {name: settings.get(name, usual) for name, usual in PEER_SETTINGS.items()}
        theirs = known_encoder(str(settings["encoder_name"]))
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{file}: cannot be read as a model's settings ({error!r})") from error
    if theirs not in ENCODER_NAMES:
        raise InputError(f"{file}: its encoder is {theirs}, which this toolkit does not have")
    if theirs != encoder:
        raise InputError(f"{file}: its encoder is {theirs}, asked for is {encoder}; give --model.encoder {theirs}")
    other = [f"{name} {found[name]!r}" for name, usable in PEER_USABLE.items() if found[name] not in usable]
    if other:
        raise InputError(
            f"{file}: has {', '.join(other)}; only U-Nets with one class, bilinear upsampling and plain "
            "batch norm are supported"
        )


def _put_into_encoder(encoder: nn.Module, tensors: dict[str, Tensor], where: str, name: str) -> list[str]:
    unused = _of_classifier(encoder, "body.")
    return put(encoder, rename_encoder(tensors, encoder), f"--model.init imagenet: {where}", name, unused)


def _of_classifier(encoder: nn.Module, prefix: str) -> Callable[[str], bool]:
    """Tells the names of what stands behind the last map."""
    left_out = CLASSIFIERS if isinstance(encoder, MitEncoder) else {*CLASSIFIERS, *encoder.left_out}
    return lambda name: name.removeprefix(prefix).split(".")[0] in left_out


def _from_timms_hub(published: PretrainedCfg) -> dict[str, Tensor]:
    """The file that timm itself would load."""
    if published.hf_hub_id is not None:
        return _from_hub(published.hf_hub_id)
    try:
        return from_url(published.url)
    except NotReachedError as error:
        raise _unreachable(published.url, f"fetch {published.url}", error) from error
    except DAMAGED as error:
        raise InputError(
            f"--model.init imagenet: {published.url}: what came cannot be read as weights ({type(error).__name__}); "
            "give a file with --model.weights FILE"
        ) from error


def _from_hub(name: str) -> dict[str, Tensor]:
    try:
        file = from_hub(name, HUB_FILES)
    except NotReachedError as error:
        raise _unreachable(name, f"run `hf download {name}`", error) from error
    try:
        return read_weights(file)
    except InputError as error:
        raise InputError(
            f"--model.init imagenet: {error}; remove that file, or give an undamaged one with --model.weights FILE"
        ) from error


def _unreachable(what: str, command: str, error: NotReachedError) -> InputError:
    return InputError(
        f"--model.init imagenet: {what} is not in the local cache and cannot be fetched ({error}); {command} where "
        "there is a network, and give its weights, model.safetensors or a .bin or .pth, with --model.weights FILE"
    )


def _three_channels(name: str, tensor: Tensor) -> Tensor:
    """A first convolution of one channel, shared by three."""
    if not name.endswith(MIT_FIRST) or tensor.ndim != 4 or tensor.shape[1] != 1:
        return tensor
    return tensor.expand(-1, 3, -1, -1) / 3


def _check_report(report: dict, where: str, encoder: str) -> list[str]:
    """Raise InputError where weights do not fit. Returns the names that are not used."""
    left = [name for name in sorted(report["unexpected_keys"]) if name.split(".")[0] not in CLASSIFIERS]
    if report["missing_keys"] or report["mismatched_keys"] or left:
        raise InputError(
            f"--model.init imagenet: {where} does not fit {encoder}: missing "
            f"{sorted(report['missing_keys'])[:3]}, of another shape {sorted(report['mismatched_keys'])[:3]}, "
            f"without a place {left[:3]}"
        )
    return sorted(report["unexpected_keys"])
