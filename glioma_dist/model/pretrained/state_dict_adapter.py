"""Names of weights elsewhere, and ours: segmentation_models.pytorch's U-Net. Those of an encoder it knows itself."""

from __future__ import annotations

import re

from torch import Tensor

from glioma_dist.errors import InputError
from glioma_dist.model.encoders.contract import Encoder

DECODER_RULES = (
    (r"decoder\.center\.0\.0\.", "decoder.center.conv1."),
    (r"decoder\.center\.0\.1\.", "decoder.center.norm1."),
    (r"decoder\.center\.1\.0\.", "decoder.center.conv2."),
    (r"decoder\.center\.1\.1\.", "decoder.center.norm2."),
    (r"decoder\.blocks\.(\d+)\.conv([12])\.0\.", r"decoder.blocks.\1.conv\2."),
    (r"decoder\.blocks\.(\d+)\.conv([12])\.1\.", r"decoder.blocks.\1.norm\2."),
    (r"segmentation_head\.0\.", "decoder.head."),
)


def rename_network(tensors: dict[str, Tensor], encoder: Encoder) -> dict[str, Tensor]:
    """A U-Net of segmentation_models.pytorch by our names; names that no rule knows stay as they are."""
    own = {name.removeprefix("encoder."): each for name, each in tensors.items() if name.startswith("encoder.")}
    renamed = [(f"encoder.{name}", each) for name, each in encoder.rename_weights(own).items()]
    rest = [(rename(name, DECODER_RULES), each) for name, each in tensors.items() if not name.startswith("encoder.")]
    return each_once([*renamed, *rest])


def each_once(pairs: list[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """As a dict. Raises InputError where two tensors have one name."""
    found: dict[str, Tensor] = {}
    for name, tensor in pairs:
        if name in found:
            raise InputError(f"two tensors of the file are both {name} here; give a file with one network")
        found[name] = tensor
    return found


def rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    """By the first rule that fits the name's beginning."""
    for pattern, replacement in rules:
        renamed, times = re.subn(rf"^{pattern}", replacement, name)
        if times:
            return renamed
    return name
