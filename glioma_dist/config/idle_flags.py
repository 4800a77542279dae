"""Find flags that have no effect because of other flags. They are printed, because the user expects an effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from glioma_dist.registry import augmentations


def idle_flags(config: object, metadata: Sequence[tuple[str, bool, str]], prefix: str = "--") -> list[str]:
    """Return a text for each field of `metadata` that was given and has no effect.

    metadata: name of a field, whether it has an effect, and the reason if it has none.
    """
    defaults = {each.name: each.default for each in fields(config)}
    return [
        f"{prefix}{name.replace('_', '-')} {reason}"
        for name, has_effect, reason in metadata
        if not has_effect and getattr(config, name) != defaults[name]
    ]


def idle_flags_of_training(config: Any) -> list[str]:
    """Return the same texts for a TrainConfig. Its type is Any because its module imports this one."""
    data = config.data
    chains = {name for name in data.augment if augmentations.find(name).kind == "chain"}
    has_url = any("://" in each for each in (*data.train, data.val or ""))
    metadata = (
        ("crop_side", data.transform == "random-resized-crop", f"with --data.transform {data.transform}"),
        ("num_ops", bool(chains), "without rand-augment or trivial-augment in --data.augment"),
        ("magnitude", "rand-augment" in chains, "without rand-augment in --data.augment"),
        ("cache_size", data.cache is not None, "without --data.cache"),
        ("cache", has_url, "without a URL to read from"),
        ("weights", len(data.train) > 1, "with one --data.train"),
    )
    own = [
        ("eval_every", data.val is not None, "without --data.val"),
        ("target_weight", len(config.model.targets) > 1, "without a second target in --model.targets"),
        ("stage", "://" in str(config.out), "without a URL as --out"),
    ]
    scale = [("gradient_accumulation", not config.reproducible, "with --reproducible")]
    model = [("encoder_norm", not config.freeze_encoder, "with --freeze-encoder")]
    return (
        idle_flags(data, metadata, "--data.")
        + idle_flags(config.model, model, "--model.")
        + idle_flags(config.scale, scale, "--scale.")
        + idle_flags(config, own)
    )
