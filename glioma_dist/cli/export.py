"""Write a trained network as one ONNX file, from image to logits: `python tools/export_onnx.py --help`."""

from importlib import util
from pathlib import Path
from typing import Literal

from glioma_dist.cli.arguments import run_function
from glioma_dist.config.paths import LocalPath
from glioma_dist.data.sample import read_image
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError, printable
from glioma_dist.inference.export import export
from glioma_dist.inference.images import find_images

NUM_CHECKED = 3


def export_onnx(checkpoint: Path, out: Path, bits: Literal[8, 16] = 8, images: LocalPath | None = None) -> None:
    """Write a checkpoint's network as ONNX. Contrast, normalising and padding are in the graph, sizes are free; it is
    written only if onnxruntime gives PyTorch's logits to 1e-3.

    Args:
        checkpoint: A checkpoint folder, as runs/x/best.
        out: The file to write, as model.onnx.
        bits: Of the images that the graph is to take: uint8, or int32 holding 16 bits.
        images: A folder, file or pattern of real images; on the first three the masks must be the same,
            too, but for rounding in one pixel of 100,000.
    """
    if util.find_spec("onnx") is None or util.find_spec("onnxruntime") is None:
        raise InputError("tools/export_onnx.py needs onnx and onnxruntime: pip install -e '.[export]'")
    found = find_images(images) if images else None
    checked = [read_image(path) for path in found.paths[:NUM_CHECKED]] if found else []
    if found and found.not_read:
        print(f"{printable(images)}: {found.describe()}")
    if found and len(found.paths) > NUM_CHECKED:
        print(f"{printable(images)}: the first {NUM_CHECKED} of {len(found.paths)} images are checked")
    parity = export(checkpoint, out, bits, checked)
    masks = f"; in {len(checked)} masks {parity.num_other} of {parity.num_pixels} pixels differ" if checked else ""
    print(f"{out}: logits differ from PyTorch's by at most {parity.largest:.1e}{masks}")


if __name__ == "__main__":
    run_command(lambda: run_function(export_onnx))
