"""Libraries that only some commands need: which are missing, and the command that installs them."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from importlib import util
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from glioma_dist.errors import InputError

PROJECT = "glioma-dist"
LIBRARIES = {
    "bench": ("segmentation_models_pytorch",),
    "cloud": ("fsspec", "aiohttp", "s3fs", "gcsfs", "adlfs"),
    "export": ("onnx", "onnxruntime"),
    "bioimageio": ("bioimageio.core", "onnx", "onnxruntime"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
    "formats": ("roifile", "zarr"),
    "microscope": ("nd2", "pylibCZIrw", "liffile"),
}
"""By extra of pyproject.toml: the modules that its libraries are imported as."""


def install_command(extra: str) -> str:
    """The command that installs an extra of the installed package.

    pip keeps the package that is there, whether it came from a wheel or is a clone, so no index needs to have it.
    Where the package only lies on Python's path, the command names its folder.
    """
    try:
        distribution(PROJECT)
    except PackageNotFoundError:
        return f"pip install '{Path(__file__).resolve().parents[1]}[{extra}]'"
    return f"pip install '{PROJECT}[{extra}]'"


@contextmanager
def without_log(library: str) -> Generator[None]:
    """Context manager: a library that logs under its own name logs nothing. Python would print its warnings between the
    lines of a command, without the file that they are about."""
    logger = logging.getLogger(library)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def require(extra: str, needed_by: str, libraries: tuple[str, ...] | None = None) -> None:
    """Check that the libraries of an extra can be imported, without importing them.

    Args:
        needed_by: begins the message, for example `--smp`.
        libraries: those of the extra that are needed; by default all.

    Raises InputError, with the missing libraries and the command that installs them.
    """
    _require(libraries or LIBRARIES[extra], install_command(extra), needed_by)


def require_library(library: str, package: str, needed_by: str) -> None:
    """The same for a library of no extra, which pip knows as `package`."""
    _require((library,), f"pip install '{package}'", needed_by)


def _require(libraries: tuple[str, ...], command: str, needed_by: str) -> None:
    missing = [name for name in libraries if _is_missing(name)]
    if missing:
        raise InputError(f"{needed_by}: {', '.join(missing)} not installed; run {command}")


def _is_missing(library: str) -> bool:
    try:
        spec = util.find_spec(library)
    except ModuleNotFoundError:  # the package that it is part of
        return True
    # A folder of this name on Python's path, such as the `wandb` that wandb writes its runs to, is no library.
    return spec is None or (spec.origin is None and spec.submodule_search_locations is not None)
