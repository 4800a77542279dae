"""Mix Transformers' published weights: where they are, and their names in SegFormer's released code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from glioma_dist.errors import InputError
from glioma_dist.model.encoders.contract import CLASSIFIERS, Encoder
from glioma_dist.model.pretrained.imagenet import lineage, put_into_encoder, weights_from_hub
from glioma_dist.model.pretrained.state_dict_adapter import each_once, rename
from glioma_dist.model.pretrained.weight_files import read_weights

HUB_NAMES = {f"mit_b{number}": f"nvidia/mit-b{number}" for number in range(6)}
IMAGENET_LICENCE = "NVIDIA Source Code License for SegFormer (non-commercial)"
MIT_FIRST = ("embeddings.0.proj.weight", "stages.0.patch_embeddings.proj.weight")
"""How transformers' names of MiT's first convolution end, older ones and newer."""
MIT_RULES = (
    (r"norm1\.", "layernorm_before."),
    (r"norm2\.", "layernorm_after."),
    (r"attn\.q\.", "attention.q_proj."),
    (r"attn\.proj\.", "attention.o_proj."),
    (r"attn\.sr\.", "attention.sequence_reduction.sequence_reduction."),
    (r"attn\.norm\.", "attention.sequence_reduction.layer_norm."),
)
"""SegFormer's released code -> transformers, within a layer."""


def load_mit(encoder: Encoder, name: str, file: Path | None) -> dict[str, str]:
    """Put ImageNet weights into a MitEncoder, as `Encoder.load_imagenet`."""
    if name not in HUB_NAMES:
        raise InputError(
            f"--model.init imagenet: there are no ImageNet weights of {name}; take one of "
            f"{', '.join(HUB_NAMES)}, or --model.init random"
        )
    tensors = read_weights(file) if file else weights_from_hub(HUB_NAMES[name])
    where = str(file or HUB_NAMES[name])
    if _is_authors(tensors):
        unused = put_into_encoder(encoder, rename_mit(tensors), where, name, CLASSIFIERS)
    else:
        broken = [each for each, tensor in tensors.items() if not tensor.float().isfinite().all()]
        if broken:
            raise InputError(f"--model.init imagenet: {where}: {broken[0]} is not finite; give another file")
        shared = {each: _three_channels(each, tensor) for each, tensor in tensors.items()}
        from glioma_dist.model.pretrained.transformers_mit import read_segformer  # transformers: seconds to import

        weights, report = read_segformer(name, shared)
        unused = _check_report(report, where, name)
        encoder.segformer.load_state_dict(weights)
    return lineage(file, HUB_NAMES[name], unused, IMAGENET_LICENCE)


def rename_mit(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Mix Transformer's weights by transformers' names, from those of SegFormer's released code."""
    return each_once([pair for name, tensor in tensors.items() for pair in _mit(name, tensor)])


def _is_authors(tensors: dict[str, Tensor]) -> bool:
    """Whether these are weights of a Mix Transformer under the names of SegFormer's released code."""
    return "patch_embed1.proj.weight" in tensors


def _mit(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    found = re.fullmatch(r"(patch_embed|norm|block)([1-4])\.(?:(\d+)\.)?(.+)", name)
    if not found:
        yield name, tensor
        return
    kind, stage, layer, rest = found.groups()
    place = f"segformer.stages.{int(stage) - 1}."
    if kind == "norm":
        yield f"{place}layer_norm.{rest}", tensor
    elif kind == "patch_embed":
        yield f"{place}patch_embeddings.{rest.replace('norm.', 'layer_norm.')}", tensor
    elif rest.startswith("attn.kv.") and tensor.ndim and len(tensor) % 2 == 0:  # keys and values in one
        ending = rest.removeprefix("attn.kv.")
        for part, half in zip(("k_proj", "v_proj"), tensor.chunk(2), strict=True):
            yield f"{place}blocks.{layer}.attention.{part}.{ending}", half
    else:
        yield f"{place}blocks.{layer}.{rename(rest, MIT_RULES)}", tensor


def _three_channels(name: str, tensor: Tensor) -> Tensor:
    """A first convolution of one channel, shared by three."""
    if not name.endswith(MIT_FIRST) or tensor.ndim != 4 or tensor.shape[1] != 1:
        return tensor
    return tensor.expand(-1, 3, -1, -1) / 3


def _check_report(report: dict[str, Any], where: str, encoder: str) -> list[str]:
    """Raise InputError where weights do not fit. Returns the names that are not used."""
    left = [name for name in sorted(report["unexpected_keys"]) if name.split(".")[0] not in CLASSIFIERS]
    if report["missing_keys"] or report["mismatched_keys"] or left:
        raise InputError(
            f"--model.init imagenet: {where} does not fit {encoder}: missing "
            f"{sorted(report['missing_keys'])[:3]}, of another shape {sorted(report['mismatched_keys'])[:3]}, "
            f"without a place {left[:3]}"
        )
    return sorted(report["unexpected_keys"])
