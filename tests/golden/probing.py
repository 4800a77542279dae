"""What the probes of all vocabularies share: what is shown to the package, and how results become JSON.

Words here are those of `probes_new.py`; `probes_old.py` translates them into older flags. Nothing here imports the
package.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Results = dict[str, Any]
"""What a probe found: name -> number, text or hash, or another such dict. Equal commits give equal results."""
NUM_EPOCHS = 3
NUM_STEPS = 20
TRAINED = {"mit_tiny": (), "mobilenet_v2": ("--loss", "dice+bce", "--clip-norm", 1.0)}
"""Encoders that are trained, each with the settings that are its own."""
TRANSFORMS = ("resize", "random-crop", "random-resized-crop")
AUGMENTATIONS = (
    (),
    ("flips",),
    ("sharpen",),
    ("contrast",),
    ("flips", "sharpen", "contrast"),
    ("rand-augment",),
    ("trivial-augment",),
    ("flips", "sharpen", "contrast", "rand-augment", "trivial-augment"),
)


class CannotRunError(Exception):
    """A probe lacks something that is no part of the commit: a library, real images."""


@dataclass(frozen=True)
class Work:
    """folder: the probes' own, one a commit. data: real images, maybe absent."""

    folder: Path
    data: Path


@dataclass(frozen=True)
class Shown:
    """How batches are made. sources: folders of drawn shards (see `drawn_sets`)."""

    transform: str = "random-crop"
    augment: tuple[str, ...] = ("flips", "sharpen")
    intensity_normalization: str = "percentile"
    num_ops: int = 2
    magnitude: float = 0.3
    cache_in_memory: bool = False
    workers: int = 0
    sources: tuple[str, ...] = ("grey",)
    weights: tuple[float, ...] = ()
    rank: int = 0
    num_processes: int = 1

    @property
    def name(self) -> str:
        """All that differs from the defaults."""
        changed = {name: value for name, value in vars(self).items() if value != getattr(Shown, name)}
        return ", ".join(f"{name} {_plain(value)}" for name, value in changed.items()) or "defaults"


SHOWN = (
    *(Shown(fit, names, workers=workers) for workers in (0, 2) for fit in TRANSFORMS for names in AUGMENTATIONS),
    *(Shown(intensity_normalization=how, sources=(kind,)) for how in ("clahe", "none") for kind in ("grey", "colour")),
    Shown(sources=("colour",)),
    Shown(augment=("rand-augment",), num_ops=4, magnitude=0.8),
    *(Shown(cache_in_memory=True, workers=workers) for workers in (0, 2)),
    Shown(sources=("grey", "other"), workers=2),
    Shown(sources=("grey", "other"), weights=(0.75, 0.25)),
    *(Shown(rank=rank, num_processes=2) for rank in (0, 1)),
)


def draw(number: int, width: int = 96, height: int = 80, kind: str = "grey") -> tuple[np.ndarray, np.ndarray]:
    """Bright discs on a noisy ground; `number` decides where. Returns an image, uint8 (H, W), or uint16 (H, W, 3) where
    `kind` is colour, and its mask, uint8 (H, W) of 0 and 1."""
    generator = np.random.default_rng(number)
    row, column = np.indices((height, width))
    mask = np.zeros((height, width), np.uint8)
    for _ in range(5):
        left, top, radius = (int(generator.integers(least, most)) for least, most in ((0, width), (0, height), (6, 14)))
        mask[(column - left) ** 2 + (row - top) ** 2 <= radius**2] = 1
    shape = mask.shape if kind == "grey" else (*mask.shape, 3)
    ground = mask if kind == "grey" else mask[..., None]
    image = (60 + 90 * ground.astype(np.int64) + generator.integers(-40, 41, shape)).clip(0, 255)
    return (image.astype(np.uint8) if kind == "grey" else (image * 250).astype(np.uint16)), mask


def drawn_sets() -> dict[str, list[tuple[str, np.ndarray, np.ndarray]]]:
    """Folder of shards -> its samples: key, image, mask."""
    sizes = {
        "grey": (range(10), "grey", 96),
        "other": (range(50, 57), "grey", 128),
        "val": (range(100, 103), "grey", 96),
    }
    sizes |= {"val": (range(100, 103), "grey", 96), "colour": (range(20, 26), "colour", 96)}
    return {
        name: [(f"cell-{number:03d}", *draw(number, width, kind=kind)) for number in numbers]
        for name, (numbers, kind, width) in sizes.items()
    }


def write_images(folder: Path) -> Path:
    """Three PNG files, of 8 and 16 bits, grey and RGB, of sides that no stride divides."""
    import cv2

    folder.mkdir(exist_ok=True)
    for number, kind in ((200, "grey"), (201, "grey"), (202, "colour")):
        cv2.imwrite(str(folder / f"field-{number}.png"), draw(number, 110 + number % 7, 75, kind)[0])
    return folder


def command(work: Work, name: str, arguments: Iterable[object]) -> str:
    """Run a command in the commit's own folder; its output goes to a log, too. Raises RuntimeError where it fails."""
    words = [str(word) for word in arguments]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    (work.folder / f"{name}.log").write_text(" ".join(words) + "\n" + done.stdout)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)[-200:]} ended with {done.returncode}: {done.stdout[-500:]}")
    return done.stdout


def hash_array(array: np.ndarray) -> str:
    """Of dtype, shape and bytes."""
    digest = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def hash_tensors(tensors: Iterable[Any]) -> str:
    """Of PyTorch's tensors, in their order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(hash_array(tensor.detach().cpu().numpy()).encode())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hash_shards(folder: Path) -> Results:
    """Of each tar file, at least one, and its table of members; and what the index says."""
    found = {path.name: hash_file(path) for path in sorted([*folder.glob("*.tar"), *folder.glob("*.members.json")])}
    if not found:
        raise RuntimeError(f"no shards in {folder}")
    return found | {"index": json.loads((folder / "index.json").read_text())}


def hash_tensor_file(path: Path) -> str:
    """Of a safetensors file's tensors, whatever their names: of their own hashes, sorted."""
    from safetensors.numpy import load_file

    return hashlib.sha256(" ".join(sorted(map(hash_array, load_file(path).values()))).encode()).hexdigest()


def read_metrics(run: Path) -> Results:
    """Step and split -> loss and Dice, of a run's metrics.jsonl."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        f"step {row['step']} {row.get('split', 'train')}": {name: row[name] for name in ("epoch", "loss", "dice")}
        for row in rows
    }


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one of dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def main(*functions: Callable[[Work], Results]) -> None:
    """`probes_X.py NAME --work FOLDER --data FOLDER`, run in the folder of a commit: writes FOLDER/NAME.json."""
    probes = {function.__name__.replace("_", "-"): function for function in functions}
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=probes)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    import glioma_dist

    if not Path(glioma_dist.__file__).resolve().is_relative_to(Path.cwd().resolve()):
        sys.exit(f"the package comes from {glioma_dist.__file__}, not from the commit in {Path.cwd()}")
    try:
        results = {"results": probes[arguments.name](Work(arguments.work, arguments.data))}
    except CannotRunError as error:
        results = {"cannot run": str(error)}
    path = arguments.work / f"{arguments.name}.json"
    path.write_text(json.dumps(results, indent=1))


def _plain(value: object) -> str:
    return "+".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def environment(folder: Path) -> dict[str, str]:
    """For the processes of a commit whose files are in `folder`: its own package, one thread, no GPU, no network."""
    return {
        **os.environ,
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
