"""Starting weights."""

from __future__ import annotations

import math

import torch
from huggingface_hub import snapshot_download
from torch import nn

from glioma_dist.errors import InputError

HUB_NAMES = {f"mit_b{number}": f"nvidia/mit-b{number}" for number in range(6)}
IMAGENET_LICENCE = "NVIDIA Source Code License for SegFormer (non-commercial)"


@torch.no_grad()
def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights anew, in the order of the modules, from `generator` (a CPU one).

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


def load_imagenet(model: nn.Module, encoder: str) -> None:
    """Put ImageNet weights from the hub into `model.encoder`, in place.

    Raises InputError where the hub has none for this encoder, or cannot be reached and the local cache has none.
    """
    if encoder not in HUB_NAMES:
        raise InputError(
            f"--model.init imagenet: there are no ImageNet weights of {encoder}; take one of "
            f"{', '.join(HUB_NAMES)}, or --model.init random"
        )
    name = HUB_NAMES[encoder]
    target = model.encoder.segformer
    try:
        name_or_folder = snapshot_download(name, local_files_only=True)  # or else a dead network is tried for minutes
    except (OSError, ValueError):
        name_or_folder = name
    try:
        pretrained, report = type(target).from_pretrained(
            name_or_folder, config=target.config, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except OSError as error:
        raise InputError(
            f"--model.init imagenet: {name} is not in the local cache and the hub cannot be reached; run "
            f"`hf download {name}` where there is a network and copy the cache folder (HF_HOME) here"
        ) from error
    if report["missing_keys"] or report["mismatched_keys"]:
        raise InputError(
            f"--model.init imagenet: {name} does not fit {encoder}: missing "
            f"{sorted(report['missing_keys'])[:3]}, of another shape {sorted(report['mismatched_keys'])[:3]}"
        )
    target.load_state_dict(pretrained.state_dict())
