"""Flags that other flags leave without an effect: named on the screen, because a user meant something by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from glioma_dist.registry import augmentations


def idle_flags(config: object, metadata: Sequence[tuple[str, bool, str]], prefix: str = "--") -> list[str]:
    """Of metadata (a field, whether it has an effect, why it has none), those of fields that were given, as texts."""
    defaults = {each.name: each.default for each in fields(config)}
    return [
        f"{prefix}{name.replace('_', '-')} {reason}"
        for name, has_effect, reason in metadata
        if not has_effect and getattr(config, name) != defaults[name]
    ]


def idle_flags_of_training(config: Any) -> list[str]:
    """Those of a TrainConfig, which imports this module."""
    data = config.data
    chains = {name for name in data.augment if augmentations.find(name).kind == "chain"}
    has_url = any("://" in each for each in (*data.train, data.val or ""))
    metadata = (
        ("crop_side", data.transform == "random-resized-crop", f"with --data.transform {data.transform}"),
        ("num_ops", bool(chains), "without a chain in --data.augment"),
        ("magnitude", "rand-augment" in chains, "without rand-augment in --data.augment"),
        ("cache_size", data.cache is not None, "without --data.cache"),
        ("cache", has_url, "without a URL to read from"),
        ("weights", len(data.train) > 1, "with one --data.train"),
    )
    own = [("eval_every", data.val is not None, "without --data.val")]
    return idle_flags(data, metadata, "--data.") + idle_flags(config, own)
