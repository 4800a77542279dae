"""`glioma-dist export`: write a trained network for other programs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from glioma_dist.cli.command import Command
from glioma_dist.cli.inputs import check_checkpoint, check_images
from glioma_dist.config.paths import InputPath, LocalPath, OutputPath, Url
from glioma_dist.errors import printable
from glioma_dist.extras import require

if TYPE_CHECKING:
    import numpy as np

NUM_CHECKED = 3


@dataclass(frozen=True)
class OnnxConfig:
    """Write a checkpoint's network as one ONNX file that takes images of any size. Contrast, normalisation and padding
    are in the graph. The file is written only if the logits of onnxruntime and PyTorch agree within 1e-3."""

    checkpoint: InputPath
    """A checkpoint folder or its URL, for example runs/x/best; or t98g-small, a network that comes with the package."""
    out: OutputPath
    """File to write, for example model.onnx: a path or a URL."""
    bits: Literal[8, 16] = 8
    """Bits per pixel value of the images. The graph takes uint8 for 8, and int32 for 16."""
    raw_weights: bool = False
    """Use the weights as the optimizer left them, also where training has kept their moving average (--ema-decay). By
    default: the average, if the checkpoint has one."""
    images: LocalPath | None = None
    """A folder, file or pattern of real images. On the first three the masks must agree, too, except for at most one
    pixel of 100,000."""


@dataclass(frozen=True)
class BioimageioConfig:
    """Write a checkpoint's network as a model package of bioimage.io, for Fiji (deepImageJ), ilastik and other programs
    that read such packages. The file is written only if it passes bioimage.io's own test."""

    checkpoint: InputPath
    """A checkpoint folder or its URL, for example runs/x/best; or t98g-small, a network that comes with the package."""
    images: LocalPath
    """A folder, file or pattern. The middle of the first image becomes the package's test image. If this image is grey,
    the package is for grey images, else for RGB."""
    out: OutputPath
    """ZIP file to write, for example model.zip: a path or a URL."""
    raw_weights: bool = False
    """Use the weights as the optimizer left them, also where training has kept their moving average (--ema-decay). By
    default: the average, if the checkpoint has one."""
    name: str | None = None
    """Name of the model: letters, digits, spaces and _ + - ( ). By default it contains the encoder's name."""
    authors: tuple[str, ...] = ()
    """Names of the people who trained the network. bioimage.io publishes a model only with them."""
    licence: str | None = None
    """SPDX identifier of the licence, for example CC-BY-4.0. By default: the licence of the weights and data that the
    network was made from, if it is the same for all; else the package lists their licences."""


def check_onnx(config: OnnxConfig) -> None:
    """Raises InputError for missing inputs and libraries."""
    require("export", "export onnx")
    check_checkpoint("--checkpoint", config.checkpoint)
    check_images(config.images)


def check_bioimageio(config: BioimageioConfig) -> None:
    """Raises InputError for missing inputs and libraries."""
    check_checkpoint("--checkpoint", config.checkpoint)
    check_images(config.images)
    require("bioimageio", "export bioimageio")


def run_onnx(config: OnnxConfig) -> None:
    """Export, and print how much the results differ from PyTorch's."""
    from glioma_dist.data.remote_checkpoint import fetch_checkpoint
    from glioma_dist.inference.export import export

    checked = _read_first(config.images, NUM_CHECKED, "checked") if config.images else []
    checkpoint = fetch_checkpoint(config.checkpoint)
    with _local_file(config.out) as out:
        parity = export(checkpoint, out, config.bits, checked, config.raw_weights)
    masks = f"; in {len(checked)} masks {parity.num_other} of {parity.num_pixels} pixels differ" if checked else ""
    print(f"{config.out}: logits differ from PyTorch's by at most {parity.largest:.1e}{masks}")
    _warn_of_use(checkpoint, config.out)


def run_bioimageio(config: BioimageioConfig) -> None:
    """Export, and print what the package takes and how much its results differ from `predict`'s."""
    from glioma_dist.data.remote_checkpoint import fetch_checkpoint
    from glioma_dist.inference.bioimageio import export_package

    (image,) = _read_first(config.images, 1, "used")
    checkpoint = fetch_checkpoint(config.checkpoint)
    with _local_file(config.out) as out:
        made = export_package(checkpoint, out, image, config.name, config.authors, config.licence, config.raw_weights)
    kind = "grey" if made.num_channels == 1 else "RGB"
    num_pixels = made.size.width * made.size.height
    print(
        f"{config.out}: passes bioimage.io's test; takes {kind} images; {made.num_other} of {num_pixels} pixels of the "
        f"test image's mask differ from predict's; licence: {made.licence or 'several, in LICENCES.md'}"
    )
    _warn_of_use(checkpoint, config.out)


def _read_first(pattern: str, num: int, how: str) -> list[np.ndarray]:
    """The first picture of the first `num` images of a pattern; says what there is besides."""
    from glioma_dist.data.images.ome_zarr import is_zarr
    from glioma_dist.data.images.reader import ImageReader
    from glioma_dist.inference.images import find_images
    from glioma_dist.inference.pictures import find_first
    from glioma_dist.inference.reading import PictureReader

    found = find_images(pattern)
    if found.not_read:
        print(f"{printable(pattern)}: {found.describe()}")
    if len(found.paths) > num:
        first = f"the first {num} of {len(found.paths)} images are" if num > 1 else f"{printable(found.paths[0])} is"
        print(f"{printable(pattern)}: {first} {how}")
    images = []
    with ImageReader() as decoder, PictureReader(decoder) as reader:
        for path in found.paths[:num]:
            if is_zarr(path):
                require("formats", f"--images {printable(path)}: to read OME-Zarr", ("zarr",))
            picture, notes = find_first(path)
            images.append(reader.read(picture))
            reader.tell(picture, notes)
    return images


@contextmanager
def _local_file(out: Path | Url) -> Iterator[Path]:
    """A path to write to: `out`, or where that is a URL, a temporary file that is uploaded afterwards."""
    if not isinstance(out, Url):
        yield out
        return
    from glioma_dist.data.shards.store import Store

    store = Store(out.parent)
    store.check()
    with tempfile.TemporaryDirectory(prefix="glioma-dist-") as folder:
        file = Path(folder) / "model"
        yield file
        store.put_file(out.name, file)


def _warn_of_use(checkpoint: Path, out: Path | Url) -> None:
    """Say whether a licence in the lineage of a checkpoint forbids commercial use."""
    from glioma_dist.model.checkpoint import Checkpoint
    from glioma_dist.model.licences import warning_of_use

    if warning := warning_of_use(Checkpoint.read(checkpoint).lineage):
        print(f"note: {printable(out)} is {warning}")


ONNX = Command(
    OnnxConfig,
    run_onnx,
    (
        "glioma-dist export onnx --checkpoint runs/glioma/best --out runs/glioma/model.onnx --images plate_7",
        "glioma-dist export onnx --checkpoint runs/glioma/best --out runs/glioma/model_16_bit.onnx --bits 16",
    ),
    check_onnx,
)
BIOIMAGEIO = Command(
    BioimageioConfig,
    run_bioimageio,
    (
        "glioma-dist export bioimageio --checkpoint t98g-small --images field.tif --out model.zip",
        "glioma-dist export bioimageio --checkpoint runs/glioma/best --images plate_7 --out glioma.zip "
        "--name 'Glioma C6, MiT-B3' --authors 'Ada Lovelace' --licence CC-BY-NC-4.0",
    ),
    check_bioimageio,
)
