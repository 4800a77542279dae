"""Files of weights from elsewhere: read without running what is in them, and put into a network without losing any."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from glioma_dist.errors import InputError, one_line
from glioma_dist.files import cannot_read, check_plain, open_plain

NUM_LISTED = 12
NO_WEIGHTS = {b"<!doctype": "a web page", b"<html": "a web page", b"version https://git-lfs": "a pointer of Git LFS"}
"""What is found under the name of a file of weights that was not really downloaded, by how it begins."""
WRAPPINGS = ("state_dict", "model_state_dict", "model")
"""Under which training frameworks keep the weights among other things."""
PREFIXES = ("module.", "model.", "_orig_mod.")
"""What wrappers put before all names."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a state dict that torch.save wrote, by name.

    A pickle may hold programs: it is read with `weights_only=True`, which builds tensors and plain containers and
    refuses all else. Raises InputError where the file cannot be read so.
    """
    _check_beginning(path)
    try:
        content = load_file(path) if path.suffix.lower() == ".safetensors" else _read_pickle(path)
    except UnpicklingError as error:
        raise InputError(
            f"{path}: holds more than weights, and what a pickle holds may be a program; nothing of it was run. If you "
            "trust the file, load it in your own program and save model.state_dict() with safetensors.torch.save_file"
        ) from error
    except (LookupError, TypeError, ArithmeticError, AssertionError) as error:  # bytes that by chance begin a pickle
        raise InputError(f"{path}: cannot be read as weights (it is another file, or damaged); give another") from error
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read as weights ({_first_line(error)}); give another file") from error
    for name in WRAPPINGS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content or not all(map(_is_weight, content.items())):
        raise InputError(
            f"{path}: is no state dict (names and dense tensors of real numbers); save model.state_dict() alone"
        )
    return _without_wrappers(content)


def check_digest(path: Path, sha256: str) -> None:
    """Raises InputError where a file of weights is not the one of this SHA-256, or cannot be read."""
    try:
        with open_plain(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise cannot_read(path, error) from error
    if found != sha256:
        raise InputError(f"{path}: its SHA-256 is {found}, not that of --model.init-sha256; fetch it again")


def put(
    target: nn.Module, tensors: dict[str, Tensor], where: str, wanted_by: str, unused: Callable[[str], bool]
) -> list[str]:
    """Put `tensors` into `target`, all that it has, in place. Returns the names that `unused` says are of no use.

    The first convolution's may be of one channel; the three of `target` then share it, for grey images. Raises
    InputError, naming `where` they are from and what they are `wanted_by`, with lists of what does not fit.
    """
    own = target.state_dict()
    first = next((f"{name}.weight" for name, each in target.named_modules() if isinstance(each, nn.Conv2d)), None)
    if first in tensors and tensors[first].ndim == 4 and tensors[first].shape[1] == 1:
        tensors = {**tensors, first: tensors[first].expand(-1, own[first].shape[1], -1, -1) / own[first].shape[1]}
    # Older versions of PyTorch did not write this counter, and nothing is computed from it.
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    left = [name for name in tensors if name not in own and not unused(name)]
    other = [name for name in own if name in tensors and tensors[name].shape != own[name].shape]
    broken = [
        name
        for name in own
        if name in tensors and name not in other and not tensors[name].to(own[name].dtype).isfinite().all()
    ]
    faults = [
        f"{len(names)} {what}: {_listed(names)}"
        for what, names in (
            ("without a place in it", left),
            ("missing", missing),
            ("of another shape", other),
            ("not finite", broken),
        )
        if names
    ]
    if faults:
        raise InputError(f"{where}: does not fit {wanted_by}; its tensors: {'; '.join(faults)}")
    target.load_state_dict({name: tensors.get(name, tensor) for name, tensor in own.items()})
    return [name for name in tensors if name not in own]


def is_unused(names: tuple[str, ...], prefix: str) -> Callable[[str], bool]:
    """Tells the names of tensors of no use: those that begin, behind `prefix`, with one of `names`."""
    return lambda name: name.removeprefix(prefix).split(".")[0] in names


def _check_beginning(path: Path) -> None:
    try:
        # Not blocking: a pipe that nobody writes to would not even open.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            check_plain(path, os.fstat(file.fileno()))
            start = file.read(100).lstrip().lower()
    except OSError as error:
        raise cannot_read(path, error) from error
    if not start:
        raise InputError(f"{path}: is empty; give another file")
    for beginning, kind in NO_WEIGHTS.items():
        if start.startswith(beginning):
            raise InputError(f"{path}: is {kind} and no weights; download the file itself")


def _read_pickle(path: Path) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said of other programs' ways of pickling; what cannot be read raises
        return torch.load(path, map_location="cpu", weights_only=True)


def _is_weight(item: tuple[object, object]) -> bool:
    """Whether it is a name and a tensor of plain real numbers."""
    name, tensor = item
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        return False
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return plain and not tensor.is_complex()


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        # A training framework's module may hold a few tensors of its own beside the network.
        if 2 * sum(name.startswith(prefix) for name in tensors) > len(tensors) == len(bare):
            return _without_wrappers(bare)
    return tensors


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NUM_LISTED} more" if len(names) > NUM_LISTED else ""
    return ", ".join(names[:NUM_LISTED]) + more


def _first_line(error: Exception) -> str:
    return one_line((str(error).splitlines() or [type(error).__name__])[0], 200)
