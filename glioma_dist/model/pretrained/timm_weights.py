"""Published weights of timm's models, and their names at timm, in segmentation_models.pytorch and at their authors."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from torch import Tensor, nn

from glioma_dist.errors import InputError, one_line
from glioma_dist.model.encoders.contract import Encoder
from glioma_dist.model.pretrained.download import NotReachedError, from_url
from glioma_dist.model.pretrained.imagenet import lineage, put_into_encoder, unreachable, weights_from_hub
from glioma_dist.model.pretrained.state_dict_adapter import each_once, rename
from glioma_dist.model.pretrained.weight_files import read_weights

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

DAMAGED = (OSError, SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError)
"""What libraries raise for files that they cannot read."""
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


def load_timm(encoder: Encoder, name: str, file: Path | None) -> dict[str, str]:
    """Put ImageNet weights into a TimmEncoder, as `Encoder.load_imagenet`."""
    published = encoder.published
    source = published_name(published)
    tensors = read_weights(file) if file else weights_of(published)
    renamed = encoder.rename_weights(tensors)
    unused = put_into_encoder(encoder, renamed, str(file or source), name, encoder.classifiers)
    return lineage(file, source, unused, str(published.license or "not stated"))


def published_name(published: PretrainedCfg) -> str:
    """Of a model's weights on timm's hub."""
    return f"timm/{published.architecture}.{published.tag}"


def rename_timm(tensors: dict[str, Tensor], body: nn.Module) -> dict[str, Tensor]:
    """An encoder's weights by timm's names, which are those of `body`, from others'."""
    known = {_flat(name): name for name in body.state_dict()}
    blocks = list(dict.fromkeys(re.findall(r"^blocks\.\d+\.\d+", "\n".join(known.values()), re.MULTILINE)))
    return each_once([(f"body.{_timm(name, known, blocks)}", tensor) for name, tensor in tensors.items()])


def weights_of(published: PretrainedCfg) -> dict[str, Tensor]:
    """The file that timm itself would load."""
    if published.hf_hub_id is not None:
        return weights_from_hub(published.hf_hub_id)
    try:
        return from_url(published.url)
    except NotReachedError as error:
        raise unreachable(published.url, f"fetch {published.url}", error) from error
    except DAMAGED as error:
        raise InputError(
            f"--model.init imagenet: {published.url}: what came cannot be read as weights ({type(error).__name__}); "
            "give a file with --model.weights FILE"
        ) from error


def _timm(name: str, known: dict[str, str], blocks: list[str]) -> str:
    """known: timm's names by their flat form. blocks: the names of a mobile network's blocks, in their order."""
    if name.startswith("model."):  # as segmentation_models.pytorch holds timm's models
        name = name.removeprefix("model.")
    if _flat(name) in known:
        return known[_flat(name)]
    inner = re.fullmatch(r"(_blocks|features)\.(\d+)\.(_.+|conv\..+)", name)
    if not inner or not blocks:
        return rename(name, EFFICIENTNET_RULES + MOBILENET_RULES)
    mobilenet = inner[1] == "features"
    number = int(inner[2]) - mobilenet
    if not 0 <= number < len(blocks):
        return name
    expands = _flat(f"{blocks[number]}.conv_pwl.weight") in known
    if mobilenet:
        return f"{blocks[number]}.{rename(inner[3], MOBILENET_BLOCK_RULES if expands else MOBILENET_FIRST_BLOCK_RULES)}"
    renamed = rename(inner[3], EFFICIENTNET_BLOCK_RULES)
    if not expands:
        part = next((part for part in _NARROWER if renamed.startswith(part)), None)
        renamed = renamed if part is None else _NARROWER[part] + renamed.removeprefix(part)
    return f"{blocks[number]}.{renamed}"


def _flat(name: str) -> str:
    """timm's feature extraction writes `features_0` for `features.0`."""
    return name.replace("_", ".")


def load_any_timm(
    encoder: Encoder, name: str, file: Path | None, create: Callable[..., tuple[nn.Module, tuple[int, ...]]]
) -> dict[str, str]:
    """Put ImageNet weights into an AnyTimmEncoder, as `Encoder.load_imagenet`. create: makes its feature network again,
    with options of `timm.create_model`, whose own way of loading knows each model's older names."""
    published = encoder.published
    if not file and not (published.hf_hub_id or published.url):
        raise InputError(
            f"--model.init imagenet: timm publishes no weights of {name}; give a file with --model.weights FILE, or "
            "--model.init random"
        )
    source = published_name(published)
    where = f"--model.init imagenet: {file or source}"
    tensors = read_weights(file) if file else weights_of(published)
    broken = [each for each, tensor in tensors.items() if not tensor.float().isfinite().all()]
    if broken:
        raise InputError(f"{where}: {one_line(broken[0], 100)} is not finite; give another file")
    try:
        with _missing_tensors() as missing:
            body = create(pretrained=True, pretrained_cfg_overlay={"state_dict": tensors})[0]
        own = {_flat(each.removeprefix("model.")) for each in body.state_dict()}  # and no classifier's
        missing = [each for each in missing if _flat(each) in own]
        if missing:
            raise InputError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    except InputError as error:
        raise InputError(f"{where} does not fit {name} ({one_line(error.__cause__ or error, 250)})") from error
    encoder.body.load_state_dict(body.state_dict())
    return lineage(file, source, [], str(published.license or "not stated"))


@contextmanager
def _missing_tensors() -> Iterator[list[str]]:
    """Names of weights that a network of timm's misses in the file that it loads. For some families timm only tells its
    logger of them, and they would stay as they were drawn."""
    missing: list[str] = []
    logger = logging.getLogger("timm.models._builder")
    handler = logging.Handler()
    handler.emit = lambda record: missing.extend(_names_told(record.getMessage()))
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield missing
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates


def _names_told(text: str) -> list[str]:
    found = re.match(r"Missing keys \((.*?)\) discovered", text)
    # Older versions of PyTorch did not write this counter, and nothing is computed from it.
    return [each for each in (found[1].split(", ") if found else []) if not each.endswith("num_batches_tracked")]
