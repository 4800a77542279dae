"""How much of the article's protocol is run: sizes, encoders, repetitions, and how long each training is."""

from __future__ import annotations

from dataclasses import dataclass

from glioma_dist.size import Size


@dataclass(frozen=True)
class Schedule:
    """Length of a training. Batches are the same on every device, because they decide results."""

    epochs: int
    batch_size: int
    patience: int | None = None
    max_steps: int | None = None
    eval_every: int | None = None
    """Steps between validations; None: an epoch."""


@dataclass(frozen=True)
class Preset:
    """sizes: what the article's names of resolutions stand for. target_size: what the target's images are brought to
    before all else, so that its crops and full size are those of `sizes`; None: as taken. encoders: what stands for an
    encoder of the article. lr: Adam's learning rate."""

    name: str
    sizes: dict[str, Size]
    target_size: Size | None
    encoders: dict[str, str]
    num_repetitions: int
    pretraining: Schedule
    fine_tuning: Schedule
    lr: float = 1e-4


REAL_SIZES = {"704p": Size(704, 512), "1472p": Size(1472, 1120), "2592p": Size(2592, 1952)}
PRESETS = {
    # A quarter of the sides; EfficientNet-Lite0 for VGG19, which would take minutes a step on two cores.
    "small": Preset(
        "small",
        {"704p": Size(176, 128), "1472p": Size(368, 280), "2592p": Size(648, 488)},
        target_size=Size(648, 488),
        encoders={"mit_b3": "mit_b0", "vgg19": "efficientnet_lite0"},
        num_repetitions=2,
        pretraining=Schedule(epochs=1000, batch_size=4, max_steps=40, eval_every=20),
        fine_tuning=Schedule(epochs=12, batch_size=5),
        lr=1e-3,
    ),
    # The article's sizes and networks, a fifth of its epochs, three repetitions; smaller images are scaled up.
    "medium": Preset(
        "medium",
        REAL_SIZES,
        target_size=Size(2592, 1952),
        encoders={},
        num_repetitions=3,
        pretraining=Schedule(epochs=6, batch_size=4),
        fine_tuning=Schedule(epochs=60, batch_size=5, patience=15),
    ),
    "full": Preset(
        "full",
        REAL_SIZES,
        target_size=None,
        encoders={},
        num_repetitions=10,
        pretraining=Schedule(epochs=60, batch_size=4, patience=10),
        fine_tuning=Schedule(epochs=300, batch_size=5, patience=30),
    ),
}
