"""ImageNet weights for an encoder: from a file, or from the hub or its local cache; what all families share."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from glioma_dist.errors import InputError
from glioma_dist.model.pretrained.download import NotReachedError, from_hub
from glioma_dist.model.pretrained.weight_files import is_unused, put, read_weights

HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def put_into_encoder(
    encoder: nn.Module, tensors: dict[str, Tensor], where: str, name: str, unused: tuple[str, ...]
) -> list[str]:
    """Put `tensors`, by the encoder's own names, into it. unused: first parts of names that are of no use; returns the
    names that begin so. where, name: for messages. Raises InputError."""
    return put(encoder, tensors, f"--model.init imagenet: {where}", name, is_unused(unused, "body."))


def lineage(file: Path | None, source: str, unused: list[str], licence: str) -> dict[str, str]:
    """What a checkpoint says of these weights."""
    return {"weights": f"ImageNet, {file.name if file else source}{told(unused)}", "licence": licence}


def told(unused: list[str]) -> str:
    """Tensors of a file that no part of the network takes: what stands behind an encoder."""
    return f", without {len(unused)} tensors that are not used ({unused[0].removeprefix('body.')} …)" if unused else ""


def weights_from_hub(name: str) -> dict[str, Tensor]:
    """The weights of a repository of the Hugging Face hub. Raises InputError where they cannot be had or read."""
    try:
        file = from_hub(name, HUB_FILES)
    except NotReachedError as error:
        raise unreachable(name, f"run `hf download {name}`", error) from error
    try:
        return read_weights(file)
    except InputError as error:
        raise InputError(
            f"--model.init imagenet: {error}; remove that file, or give an undamaged one with --model.weights FILE"
        ) from error


def unreachable(what: str, command: str, error: NotReachedError) -> InputError:
    return InputError(
        f"--model.init imagenet: {what} is not in the local cache and cannot be fetched ({error}); {command} where "
        "there is a network, and give its weights, model.safetensors or a .bin or .pth, with --model.weights FILE"
    )
