"""The losses of losses/ by name. No torch here."""

from glioma_dist.registry import LossEntry

DEFAULT_LOSS = "dice"
DECLARED = (
    LossEntry("dice", "glioma_dist.losses.overlap:soft_dice"),
    LossEntry("bce", "glioma_dist.losses.pixels:binary_cross_entropy", classes="one"),
    LossEntry("ce", "glioma_dist.losses.pixels:cross_entropy", classes="several"),
    LossEntry("focal", "glioma_dist.losses.pixels:focal"),
    LossEntry("tversky", "glioma_dist.losses.overlap:tversky"),
    LossEntry("lovasz", "glioma_dist.losses.lovasz:lovasz"),
    LossEntry("boundary-bce", "glioma_dist.losses.pixels:boundary_cross_entropy", classes="one"),
    LossEntry("boundary-ce", "glioma_dist.losses.pixels:boundary_cross_entropy", classes="several"),
)
