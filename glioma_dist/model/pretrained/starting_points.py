"""Starting weights by the name of a repository of the Hugging Face hub: what it holds decides what is loaded.

A repository of a `PretrainedUNet` or of a U-Net of segmentation_models.pytorch gives the whole network; one of an
encoder, as timm, segmentation_models.pytorch (smp-hub/NAME.WEIGHTS) and NVIDIA publish them, gives the encoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from glioma_dist.errors import InputError, one_line
from glioma_dist.files import read_bytes, read_json
from glioma_dist.model.encoders.contract import Encoder
from glioma_dist.model.manifest import MANIFEST, MODEL, STATE, Manifest
from glioma_dist.model.pretrained.download import NotReachedError, cached, from_hub_if_there
from glioma_dist.model.pretrained.imagenet import HUB_FILES
from glioma_dist.model.pretrained.weight_files import read_weights

SETTINGS, CARD = "config.json", "README.md"
OF_A_NETWORK = ("decoder.", "segmentation_head.", "model.decoder.", "model.segmentation_head.")
"""How names of tensors begin that no encoder has."""
MAX_CARD_BYTES = 2**22
Get = Callable[[str, str, str | None], Path | None]
"""A file of a repository of the hub, of a commit or of the newest."""


class Repository(NamedTuple):
    """What is had of a repository. path: a checkpoint's folder, the folder of a U-Net of segmentation_models.pytorch,
    or a file of an encoder's weights. commit: of the hub; licence: as its card says it."""

    path: Path
    is_checkpoint: bool
    commit: str
    licence: str

    def describe(self, name: str) -> str:
        """Where weights of it come from, for the lineage."""
        return f"{name} of the Hugging Face hub, commit {self.commit[:12]}"


def fetch_repository(name: str) -> Repository:
    """The weights that a repository holds, from the local cache where they are there.

    Raises InputError, within 10 s where the hub does not answer, with what to do.
    """
    try:
        found = _weights(name, cached) or _weights(name, from_hub_if_there)
    except NotReachedError as error:
        raise InputError(
            f"--model.init {name}: is no file or folder here, is not in the local cache, and the hub does not give it "
            f"({error}); run `hf download {name}` where there is a network, and give the folder or file that it prints"
        ) from error
    if found is None:
        files = ", ".join((MANIFEST, *HUB_FILES))
        raise InputError(f"--model.init {name}: this repository of the hub has none of {files}; give another")
    path, is_checkpoint = found
    folder = path if path.is_dir() else path.parent
    return Repository(path, is_checkpoint, folder.name, _licence(name, folder.name))


def load_encoder_file(encoder: Encoder, name: str, file: Path, source: str, licence: str) -> list[dict[str, str]]:
    """Put a file of weights into the encoder `name`. source: where they come from. Returns their lineage. Raises
    InputError as `Encoder.load_imagenet`, which knows the names that others give an encoder's weights."""
    try:
        told = encoder.load_imagenet(name, file)
    except InputError as error:
        raise InputError(str(error).replace("--model.init imagenet", f"--model.init {source}", 1)) from error
    _, comma, unused = told["weights"].partition(", without ")
    return [{"weights": f"encoder weights, {source}{comma}{unused}", "licence": licence}]


def is_encoder_file(path: Path) -> bool:
    """Whether a file of weights holds an encoder alone. Raises InputError where it cannot be read."""
    return path.is_file() and not any(name.startswith(OF_A_NETWORK) for name in read_weights(path))


def _weights(name: str, get: Get) -> tuple[Path, bool] | None:
    """The path of a `Repository`, and whether it is a checkpoint's; None where `get` has not all of its files."""
    manifest = get(name, MANIFEST, None)
    commit = manifest and manifest.parent.name  # another may come meanwhile
    if manifest is not None and get(name, STATE, commit) is not None:
        is_whole = all(get(name, file, commit) for file in Manifest.read(manifest.parent).files_of_weights())
        return (manifest.parent, True) if is_whole or get is not cached else None
    if manifest is not None and get is cached:
        return None  # the rest may be on the hub; else the file is of something else
    weights = next(filter(None, (get(name, file, commit) for file in HUB_FILES)), None)
    if weights is None:
        return None
    settings = get(name, SETTINGS, weights.parent.name)
    content = read_json(settings) if settings is not None else None
    is_smp = weights.name == MODEL and isinstance(content, dict) and "encoder_name" in content
    return (weights.parent if is_smp else weights), False


def _licence(name: str, commit: str) -> str:
    """What the repository's card says, or what is known of it."""
    from glioma_dist.model.pretrained.mit_weights import HUB_NAMES, IMAGENET_LICENCE

    if name in HUB_NAMES.values():
        return IMAGENET_LICENCE
    try:
        card = cached(name, CARD, commit) or from_hub_if_there(name, CARD, commit)
        head = read_bytes(card, MAX_CARD_BYTES).decode("utf-8", "replace").split("---")[1] if card is not None else ""
    except (NotReachedError, InputError, IndexError):
        return "not stated"
    names = [re.search(rf"^{key}:[ \t]*(\S.*)$", head, re.MULTILINE) for key in ("license_name", "license")]
    told = next((found[1] for found in names if found is not None), "")
    return one_line(told.strip().strip("'\""), 100) or "not stated"
