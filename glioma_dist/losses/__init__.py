"""The loss of each image: `segmentation_loss`, and what it adds up."""

from glioma_dist.losses.segmentation import check_losses, segmentation_loss, training_loss

__all__ = ["check_losses", "segmentation_loss", "training_loss"]
