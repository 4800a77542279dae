"""Names of weights elsewhere, and ours: segmentation_models.pytorch's U-Net, and the encoders as their authors named
them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor

from glioma_dist.errors import InputError
from glioma_dist.model.encoders.contract import Encoder
from glioma_dist.model.encoders.mit import MitEncoder

DECODER_RULES = (
    (r"decoder\.center\.0\.0\.", "decoder.center.conv1."),
    (r"decoder\.center\.0\.1\.", "decoder.center.norm1."),
    (r"decoder\.center\.1\.0\.", "decoder.center.conv2."),
    (r"decoder\.center\.1\.1\.", "decoder.center.norm2."),
    (r"decoder\.blocks\.(\d+)\.conv([12])\.0\.", r"decoder.blocks.\1.conv\2."),
    (r"decoder\.blocks\.(\d+)\.conv([12])\.1\.", r"decoder.blocks.\1.norm\2."),
    (r"segmentation_head\.0\.", "decoder.head."),
)
MIT_RULES = (
    (r"norm1\.", "layernorm_before."),
    (r"norm2\.", "layernorm_after."),
    (r"attn\.q\.", "attention.q_proj."),
    (r"attn\.proj\.", "attention.o_proj."),
    (r"attn\.sr\.", "attention.sequence_reduction.sequence_reduction."),
    (r"attn\.norm\.", "attention.sequence_reduction.layer_norm."),
)
"""SegFormer's released code -> transformers, within a layer."""
EFFICIENTNET_RULES = (
    (r"_conv_stem\.", "conv_stem."),
    (r"_bn0\.", "bn1."),
    (r"_conv_head\.", "conv_head."),
    (r"_bn1\.", "bn2."),
    (r"_fc\.", "classifier."),
)
EFFICIENTNET_BLOCK_RULES = (
    (r"_expand_conv\.", "conv_pw."),
    (r"_bn0\.", "bn1."),
    (r"_depthwise_conv\.", "conv_dw."),
    (r"_bn1\.", "bn2."),
    (r"_se_reduce\.", "se.conv_reduce."),
    (r"_se_expand\.", "se.conv_expand."),
    (r"_project_conv\.", "conv_pwl."),
    (r"_bn2\.", "bn3."),
)
"""efficientnet_pytorch -> timm."""
MOBILENET_RULES = (
    (r"features\.0\.0\.", "conv_stem."),
    (r"features\.0\.1\.", "bn1."),
    (r"features\.18\.0\.", "conv_head."),
    (r"features\.18\.1\.", "bn2."),
)
MOBILENET_BLOCK_RULES = (
    (r"conv\.0\.0\.", "conv_pw."),
    (r"conv\.0\.1\.", "bn1."),
    (r"conv\.1\.0\.", "conv_dw."),
    (r"conv\.1\.1\.", "bn2."),
    (r"conv\.2\.", "conv_pwl."),
    (r"conv\.3\.", "bn3."),
)
"""torchvision -> timm."""
MOBILENET_FIRST_BLOCK_RULES = (
    (r"conv\.0\.0\.", "conv_dw."),
    (r"conv\.0\.1\.", "bn1."),
    (r"conv\.1\.", "conv_pw."),
    (r"conv\.2\.", "bn2."),
)
_NARROWER = {"conv_pwl.": "conv_pw.", "bn2.": "bn1.", "bn3.": "bn2."}
"""timm's names in a block that does not expand, which has one convolution and one norm less."""


def rename_network(tensors: dict[str, Tensor], encoder: Encoder) -> dict[str, Tensor]:
    """A U-Net of segmentation_models.pytorch by our names; names that no rule knows stay as they are."""
    own = {name.removeprefix("encoder."): each for name, each in tensors.items() if name.startswith("encoder.")}
    renamed = [(f"encoder.{name}", each) for name, each in rename_encoder(own, encoder).items()]
    rest = [(_rename(name, DECODER_RULES), each) for name, each in tensors.items() if not name.startswith("encoder.")]
    return _each_once([*renamed, *rest])


def rename_encoder(tensors: dict[str, Tensor], encoder: Encoder) -> dict[str, Tensor]:
    """An encoder's weights by our names, from those of timm, of segmentation_models.pytorch or of its authors."""
    if isinstance(encoder, MitEncoder):
        return _each_once([pair for name, tensor in tensors.items() for pair in _mit(name, tensor)])
    known = {_flat(name): name for name in encoder.body.state_dict()}
    blocks = list(dict.fromkeys(re.findall(r"^blocks\.\d+\.\d+", "\n".join(known.values()), re.MULTILINE)))
    return _each_once([(f"body.{_timm(name, known, blocks)}", tensor) for name, tensor in tensors.items()])


def _each_once(pairs: list[tuple[str, Tensor]]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in pairs:
        if name in found:
            raise InputError(f"two tensors of the file are both {name} here; give a file with one network")
        found[name] = tensor
    return found


def is_authors_mit(tensors: dict[str, Tensor]) -> bool:
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
        yield f"{place}blocks.{layer}.{_rename(rest, MIT_RULES)}", tensor


def _timm(name: str, known: dict[str, str], blocks: list[str]) -> str:
    """known: timm's names by their flat form. blocks: the names of a mobile network's blocks, in their order."""
    if name.startswith("model."):  # as segmentation_models.pytorch holds timm's models
        name = name.removeprefix("model.")
    if _flat(name) in known:
        return known[_flat(name)]
    inner = re.fullmatch(r"(_blocks|features)\.(\d+)\.(_.+|conv\..+)", name)
    if not inner or not blocks:
        return _rename(name, EFFICIENTNET_RULES + MOBILENET_RULES)
    mobilenet = inner[1] == "features"
    number = int(inner[2]) - mobilenet
    if not 0 <= number < len(blocks):
        return name
    expands = _flat(f"{blocks[number]}.conv_pwl.weight") in known
    if mobilenet:
        return (
            f"{blocks[number]}.{_rename(inner[3], MOBILENET_BLOCK_RULES if expands else MOBILENET_FIRST_BLOCK_RULES)}"
        )
    renamed = _rename(inner[3], EFFICIENTNET_BLOCK_RULES)
    if not expands:
        part = next((part for part in _NARROWER if renamed.startswith(part)), None)
        renamed = renamed if part is None else _NARROWER[part] + renamed.removeprefix(part)
    return f"{blocks[number]}.{renamed}"


def _flat(name: str) -> str:
    """timm's feature extraction writes `features_0` for `features.0`."""
    return name.replace("_", ".")


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    """By the first rule that fits the name's beginning."""
    for pattern, replacement in rules:
        renamed, times = re.subn(rf"^{pattern}", replacement, name)
        if times:
            return renamed
    return name
