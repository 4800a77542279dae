"""What a package of bioimage.io says of its network: the page for people, and the licences of its lineage."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from glioma_dist.evaluation.network import THRESHOLD
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.hub import model_card
from glioma_dist.model.licences import non_commercial_licences
from glioma_dist.size import Size

CARD = "README.md"
SPDX = (
    (r"cc[ -]?by[ -]nc[ -]nd[ -]4\.0", "CC-BY-NC-ND-4.0"),
    (r"cc[ -]?by[ -]nc[ -]sa[ -]4\.0", "CC-BY-NC-SA-4.0"),
    (r"cc[ -]?by[ -]nc[ -]4\.0", "CC-BY-NC-4.0"),
    (r"cc[ -]?by[ -]sa[ -]4\.0", "CC-BY-SA-4.0"),
    (r"cc[ -]?by[ -]nd[ -]4\.0", "CC-BY-ND-4.0"),
    (r"cc[ -]?by[ -]4\.0", "CC-BY-4.0"),
    (r"cc0([ -]1\.0)?", "CC0-1.0"),
    (r"mit( licen[cs]e)?", "MIT"),
    (r"apache([ -]licen[cs]e)?,?[ -](version )?2\.0", "Apache-2.0"),
    (r"bsd[ -]3[ -]clause", "BSD-3-Clause"),
    (r"bsd[ -]2[ -]clause", "BSD-2-Clause"),
)
"""Words that a licence's text consists of, before a remark in brackets -> its SPDX identifier."""


def spdx_licence(lineage: Sequence[Mapping[str, str]]) -> str | None:
    """Return the SPDX identifier of the licence that all weights and data of a network have. None if they have several,
    or if one is not known."""
    found = {_spdx(entry.get("licence", "")) for entry in lineage}
    return found.pop() if len(found) == 1 else None


def _spdx(licence: str) -> str | None:
    words = licence.partition("(")[0].strip()
    return next((name for pattern, name in SPDX if re.fullmatch(pattern, words, re.IGNORECASE)), None)


def licences_page(lineage: Sequence[Mapping[str, str]]) -> str:
    """List the licences of a lineage that has no single SPDX identifier, in Markdown."""
    rows = [f"- {each.get('weights') or each.get('data')}: {each.get('licence', 'not stated')}" for each in lineage]
    bound = non_commercial_licences(lineage)
    return "\n".join(
        [
            "# Licences",
            "",
            "The network was made from the weights and data below. All these licences apply.",
            "",
            *(rows or ["- not recorded: ask whoever trained the network"]),
            "",
            *(["**Not for commercial use.**", ""] if bound else []),
        ]
    )


def package_card(folder: Path, checkpoint: Checkpoint, size: Size | None, num_channels: int, num_bits: int) -> str:
    """Write the page of a package, in Markdown.

    It begins with README.md of the checkpoint's folder where there is one, and with the model card otherwise.

    Args:
        size: to which images are to be scaled first; None: they are taken as they are.
        num_channels, num_bits: of the images that the package takes, and of their values.
    """
    own = folder / CARD
    card = own.read_text("utf-8", "replace") if own.is_file() else model_card(checkpoint.config, checkpoint.metadata)
    card = re.sub(r"\A---\n.*?\n---\n+", "", card, flags=re.DOTALL)
    card = re.sub(r"(?<!!)\[([^]]+)\]\((?![a-z]+:|#)[^)]*\)", r"\1", card)  # links to files that the package lacks
    colours = "one channel (grey)" if num_channels == 1 else "three channels (red, green, blue)"
    scaled = (
        f"The network saw images scaled to {size} pixels: scale yours to this size first."
        if size
        else "Take images at the magnification that the network was trained with; they are not scaled."
    )
    is_stretched = checkpoint.config.data.intensity_normalization == "percentile"
    bits = "8 or 16" if is_stretched else num_bits
    reason = "contrast is stretched by its own percentiles, and tiles" if is_stretched else "tiles"
    notes = [
        f"- Input: an image of {colours}, {bits} bits, contrast as taken. {scaled}",
        f"- Give the whole image where the memory allows it: {reason} meet at seams.",
        _output(checkpoint),
        "- Made and tested by `glioma-dist export bioimageio`.",
    ]
    lines = [
        card.rstrip(),
        "## In this package",
        "\n".join(notes),
        "## Validation",
        _validation(checkpoint),
        "Before you use the network on your own images, outline the cells of some of them by hand, and compare: "
        "Dice = 2 x shared pixels / (pixels of both masks).",
    ]
    return "\n\n".join(lines) + "\n"


def _output(checkpoint: Checkpoint) -> str:
    """What the channels of the output are."""
    config = checkpoint.config.model
    target = next((each for each in config.targets if each != "mask"), None)
    touching = f"The last channel is {target}, by which cells that touch can be separated, as predict does."
    touching = touching if target else "Cells that touch are not separated."
    if not config.classes:
        what = f"for each pixel the probability that it belongs to a cell. At least {THRESHOLD} means cell"
        return f"- Output: {what}. {touching}"
    what = f"for each pixel the probabilities of background and {', '.join(config.classes)}"
    return f"- Output: {what}, in this order. {touching}"


def _validation(checkpoint: Checkpoint) -> str:
    position = checkpoint.metadata.get("position", {})
    dice, step = position.get("best_dice"), position.get("validated_step")
    if not dice:
        return "No score was recorded with the weights."
    return f"The best mean Dice on the validation data of its training, up to step {step}, is {dice:.3f}."
