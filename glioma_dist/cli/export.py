"""`glioma-dist export`: write a trained network as one ONNX file, from image to logits."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glioma_dist.cli.command import Command
from glioma_dist.cli.inputs import check_checkpoint, check_images
from glioma_dist.config.paths import InputPath, LocalPath, OutputPath, Url
from glioma_dist.errors import printable
from glioma_dist.extras import require

NUM_CHECKED = 3


@dataclass(frozen=True)
class ExportConfig:
    """Write a checkpoint's network as one ONNX file that takes images of any size. Contrast, normalisation and padding
    are in the graph. The file is written only if the logits of onnxruntime and PyTorch agree within 1e-3."""

    checkpoint: InputPath
    """A checkpoint folder or its URL, for example runs/x/best; or t98g-small, a network that comes with the package."""
    out: OutputPath
    """File to write, for example model.onnx: a path or a URL."""
    bits: Literal[8, 16] = 8
    """Bits per pixel value of the images. The graph takes uint8 for 8, and int32 for 16."""
    images: LocalPath | None = None
    """A folder, file or pattern of real images. On the first three the masks must agree, too, except for at most one
    pixel of 100,000."""


def check(config: ExportConfig) -> None:
    """Raises InputError for missing inputs and libraries."""
    require("export", "export")
    check_checkpoint("--checkpoint", config.checkpoint)
    check_images(config.images)


def run(config: ExportConfig) -> None:
    """Export, and print how much the results differ from PyTorch's."""
    from glioma_dist.data.remote_checkpoint import fetch_checkpoint
    from glioma_dist.data.sample import read_image
    from glioma_dist.data.shards.store import Store
    from glioma_dist.inference.export import export
    from glioma_dist.inference.images import find_images
    from glioma_dist.model.checkpoint import Checkpoint
    from glioma_dist.model.licences import warning_of_use

    found = find_images(config.images) if config.images else None
    checked = [read_image(path) for path in found.paths[:NUM_CHECKED]] if found else []
    if found and found.not_read:
        print(f"{printable(config.images)}: {found.describe()}")
    if found and len(found.paths) > NUM_CHECKED:
        print(f"{printable(config.images)}: the first {NUM_CHECKED} of {len(found.paths)} images are checked")
    checkpoint = fetch_checkpoint(config.checkpoint)
    if isinstance(config.out, Url):
        store = Store(config.out.parent)
        store.check()
        with tempfile.TemporaryDirectory(prefix="glioma-dist-") as folder:
            parity = export(checkpoint, Path(folder) / "model.onnx", config.bits, checked)
            store.put_file(config.out.name, Path(folder) / "model.onnx")
    else:
        parity = export(checkpoint, config.out, config.bits, checked)
    masks = f"; in {len(checked)} masks {parity.num_other} of {parity.num_pixels} pixels differ" if checked else ""
    print(f"{config.out}: logits differ from PyTorch's by at most {parity.largest:.1e}{masks}")
    if warning := warning_of_use(Checkpoint.read(checkpoint).lineage):
        print(f"note: {printable(config.out)} is {warning}")


EXPORT = Command(
    ExportConfig,
    run,
    (
        "glioma-dist export --checkpoint runs/glioma/best --out runs/glioma/model.onnx --images plate_7",
        "glioma-dist export --checkpoint runs/glioma/best --out runs/glioma/model_16_bit.onnx --bits 16",
    ),
    check,
)
