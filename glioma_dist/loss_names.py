"""The losses of losses.py by name. No torch here."""

from glioma_dist.registry import LossEntry

DEFAULT_LOSS = "dice"
DECLARED = (LossEntry("dice", "glioma_dist.losses:soft_dice"), LossEntry("bce", "glioma_dist.losses:cross_entropy"))
