"""Write a trained network as one ONNX file, from image to logits: `python tools/export_onnx.py --help`."""

from importlib import util
from pathlib import Path
from typing import Literal

import tyro

from glioma_dist.data.sample import read_image
from glioma_dist.errors import InputError
from glioma_dist.inference.export import export
from glioma_dist.inference.images import find_images
from glioma_dist.runtime import run_command

NUM_CHECKED = 3


def export_onnx(checkpoint: Path, out: Path, bits: Literal[8, 16] = 8, images: str | None = None) -> None:
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
    checked = [read_image(path) for path in find_images(images)[:NUM_CHECKED]] if images else []
    parity = export(checkpoint, out, bits, checked)
    masks = f"; in {len(checked)} masks {parity.num_other} of {parity.num_pixels} pixels differ" if checked else ""
    print(f"{out}: logits differ from PyTorch's by at most {parity.largest:.1e}{masks}")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(export_onnx))
