"""What a report says of the network and the settings: from predict.json, and from the checkpoint if it is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glioma_dist.config.file import to_dict
from glioma_dist.config.paths import Url, path_or_url
from glioma_dist.errors import InputError, printable
from glioma_dist.model.checkpoint import STATISTICS, Checkpoint
from glioma_dist.model.licences import warning_of_use


def describe_model(record: Mapping[str, Any], given: Path | None) -> dict[str, Any]:
    """Return the values of the page's last section.

    Args:
        record: content of predict.json; empty where there is none.
        given: the checkpoint that the user names; None: the one that the record names.

    Raises InputError where the user names one that is none. One that the record names may be gone.
    """
    checkpoints, settings = (_objects(record.get(name)) for name in ("checkpoints", "settings"))
    identity, told = next(reversed(checkpoints.items()), ("", {}))
    notes = []
    if len(settings) > 1:
        notes.append("The folder also holds results with other settings or checkpoints; they are not shown here.")
    checkpoint = _find(given, told, notes)
    if checkpoint is not None and identity and checkpoint.manifest.identity != identity:
        notes.append(
            "The checkpoint that lies there now is not the one that made the results. What follows is from "
            "predict.json."
        )
        checkpoint = None
    if checkpoint is None and not told:
        notes.append("The results do not name their checkpoint. Give it with --checkpoint.")
    lineage = checkpoint.lineage if checkpoint else told.get("lineage", [])
    lineage = [entry for entry in lineage if _is_origin(entry)] if isinstance(lineage, list) else []
    if warning := warning_of_use(lineage):
        notes.append(f"The network is {warning}.")
    rows = _rows(checkpoint, told, given)
    return {
        "model_note": " ".join(notes),
        "model": [(name, printable(value)) for name, value in rows if value not in (None, "")],
        "lineage": [
            (printable(each.get("weights") or each.get("data") or "?"), printable(each.get("licence", "not stated")))
            for each in lineage
        ],
        "record": json.dumps(list(settings.values())[-1:], indent=1) if settings else "",
        "config": json.dumps(to_dict(checkpoint.config), indent=1) if checkpoint else "",
    }


def _find(given: Path | None, told: Mapping[str, Any], notes: list[str]) -> Checkpoint | None:
    if given is not None:
        return Checkpoint.read(given)
    path = told.get("path")
    if not isinstance(path, str) or not path or isinstance(path_or_url(path), Url):
        return None
    try:
        return Checkpoint.read(Path(path))
    except (InputError, OSError):
        notes.append("The checkpoint is not where it was. What follows is from predict.json.")
        return None


def _rows(checkpoint: Checkpoint | None, told: Mapping[str, Any], given: Path | None) -> list[tuple[str, Any]]:
    if checkpoint is None:
        names = {"path": "Checkpoint", "encoder": "Encoder", "step": "Trained for (steps)"}
        return [(name, told.get(key)) for key, name in names.items()]
    config = checkpoint.config
    statistics = checkpoint.metadata.get(STATISTICS)
    known = "kept in the checkpoint" if statistics else "not in the checkpoint: no picture is called unlike-training"
    return [
        ("Checkpoint", given or told.get("path")),
        ("Identity (SHA-256 of its manifest)", checkpoint.manifest.identity),
        ("Encoder", config.model.encoder),
        ("Trained for (steps)", checkpoint.step),
        ("Images of a step", config.batch_size),
        ("Size in training", f"{config.data.size}, {config.data.transform}"),
        ("Contrast", config.data.intensity_normalization),
        ("Loss", config.loss),
        ("Statistics of the training images", known),
    ]


def _is_origin(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(text, str) for text in entry.values())


def _objects(value: Any) -> dict[str, dict[str, Any]]:
    """An object of objects, as predict.json has them; nothing for anything else."""
    return {key: each for key, each in value.items() if isinstance(each, dict)} if isinstance(value, dict) else {}
