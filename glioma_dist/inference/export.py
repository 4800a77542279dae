"""The network as one ONNX graph, from an image as taken to logits, checked against PyTorch before it is written."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from glioma_dist.config import ModelConfig
from glioma_dist.data.images.value_range import HIGH_PERCENT, LOW_PERCENT
from glioma_dist.data.loader import image_tensor
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.errors import InputError
from glioma_dist.evaluation.maps import class_map, maps_of
from glioma_dist.evaluation.network import THRESHOLD
from glioma_dist.files import check_new_file, make_folder, write_atomically
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.unet import UNet, load_model, normalise

OPSET = 18
TOLERANCE = 1e-3
"""Greatest difference of a logit between onnxruntime and PyTorch."""
MASK_SHARE = 1e-5
"""Greatest share of an image's pixels whose logit may be on the other side of 0, by rounding."""
IMAGE, LOGITS = "image", "logits"
TRACED_SIZE = (96, 70)
CHECKED_SIZES = ((64, 96), (50, 33), (131, 160))
"""Height and width: those of the image that is traced, and of those that are drawn to check the graph."""
Contrast = Literal["percentile", "none"]


@dataclass(frozen=True)
class Parity:
    """How near the graph comes to PyTorch: the greatest difference of a logit; of the pixels of the images that were
    given, those whose class is another one."""

    largest: float
    num_other: int
    num_pixels: int


class ImageToLogits(nn.Module):
    """Contrast, normalising, padding, the U-Net, cropping.

    num_values: how many values a pixel of the input may have, 256 or 65536.
    """

    def __init__(self, model: UNet, contrast: Contrast, num_values: int) -> None:
        super().__init__()
        self.model, self.contrast, self.num_values = model, contrast, num_values

    def forward(self, image: Tensor) -> Tensor:
        """image: (1, 3, H, W) uint8 or, for 16 bits, int32, as taken; grey images are repeated over the channels.
        Returns logits (1, C, H, W): of one class, 0 or more is a cell; `_with_metadata` says what each channel is."""
        values = image.to(torch.int64)
        pixels = self._stretched(values) if self.contrast == "percentile" else values // (self.num_values // 256)
        return logits_of(self.model, pixels)

    def _stretched(self, values: Tensor) -> Tensor:
        """`data.augment.normalize_intensity`'s percentile stretch, number for number."""
        flat = values.flatten()
        counts = torch.zeros(self.num_values, dtype=torch.int64).scatter_add(0, flat, torch.ones_like(flat))
        # Vectors of one number each: with scalars the exporter falls back to fp32.
        low_share, high_share, white = (
            torch.tensor([number], dtype=torch.float64) for number in (LOW_PERCENT / 100, HIGH_PERCENT / 100, 255)
        )
        share = counts.cumsum(0).double() / flat.shape[0]
        low, high = ((share < limit).sum(0, keepdim=True) for limit in (low_share, high_share))
        stretched = (values - low).double() * (white / (high - low).clamp(min=1).double())
        return stretched.round().clamp(0, 255)


def logits_of(model: UNet, pixels: Tensor) -> Tensor:
    """Compute what `model` does, in operators that a graph can hold. pixels: (B, 3, H, W) from 0 to 255, of any height
    and width; they are normalised and padded. Returns logits (B, C, H, W)."""
    images = normalise(pixels)
    height, width = images.shape[-2:]
    stride = model.encoder.strides[-1]
    images = functional.pad(images, (0, -width % stride, 0, -height % stride))
    return model.decoder(model.encoder(images))[..., :height, :width]


def export(
    checkpoint: Path,
    out: Path,
    bits: Literal[8, 16] = 8,
    images: Sequence[np.ndarray] = (),
    raw_weights: bool = False,
) -> Parity:
    """Write the network of `checkpoint` to `out`, if its logits equal PyTorch's for random images of several sizes, and
    its masks equal PyTorch's for `images` (uint8 or uint16, (H, W) or (H, W, 3)). raw_weights: as of `load_model`.

    Raises InputError where the graph cannot be made or is not equal.
    """
    check_new_file("--out", out)
    model, read = load_model(checkpoint, raw_weights)
    if note := read.note_on_weights(raw_weights):
        print(note)
    contrast = read.config.data.intensity_normalization
    if contrast == "clahe":
        raise InputError(
            f"{checkpoint}: was trained with --data.intensity-normalization clahe, which no ONNX operator computes; "
            "use glioma-dist predict"
        )
    example = torch.zeros(1, 3, *TRACED_SIZE, dtype=torch.uint8 if bits == 8 else torch.int32)
    graph = to_onnx(ImageToLogits(model, contrast, 2**bits).eval(), example)
    graph = _with_metadata(graph, read)
    parity = check(graph, model, contrast, bits, images)
    make_folder(out.parent)
    write_atomically(out, graph)
    return parity


def to_onnx(network: nn.Module, example: Tensor) -> bytes:
    """Return the graph, for images of any height and width. example: image that it is traced with."""
    file = io.BytesIO()
    sides = {2: "height", 3: "width"}
    with warnings.catch_warnings(), torch.no_grad():
        # It says that it will be replaced by torch.export, and which shapes it takes for constant. torch.export takes
        # minutes for a network whose sides are free (docs/log.md); that no size was taken for constant is checked.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=[IMAGE],
            output_names=[LOGITS],
            dynamic_axes={IMAGE: sides, LOGITS: sides},
        )
    return file.getvalue()


def check(graph: bytes, model: UNet, contrast: Contrast, bits: int, images: Sequence[np.ndarray]) -> Parity:
    """Compare with PyTorch. Raises InputError where a logit or, of `images`, a mask differs by more than is allowed."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    kind = np.uint8 if bits == 8 else np.uint16
    generator = np.random.default_rng(0)
    drawn = [generator.integers(0, 2**bits, (*size, 3)).astype(kind) for size in CHECKED_SIZES]
    largest, num_other = 0.0, 0
    for number, image in enumerate([*drawn, *images]):
        if image.dtype != kind:
            raise InputError(
                f"an image to check with has {8 * image.itemsize} bits, the graph is made for {bits}: give others, or "
                f"--bits {8 * image.itemsize}"
            )
        with torch.no_grad():
            expected = model(normalise(image_tensor(normalize_intensity(image, contrast))[None])).numpy()
        found = session.run([LOGITS], {IMAGE: as_input(image)})[0]
        largest = max(largest, float(np.abs(found - expected).max()))
        other = int((_mask(model, found) != _mask(model, expected)).sum()) if number >= len(drawn) else 0
        num_other += other
        if not largest <= TOLERANCE or other > MASK_SHARE * expected[0, 0].size:
            raise InputError(
                f"the graph gives other {'masks' if other else 'logits'} than PyTorch (logits differ by {largest:.1e}, "
                f"{TOLERANCE:.0e} is allowed; {other} pixels of a mask differ): nothing was written"
            )
    return Parity(largest, num_other, sum(image.shape[0] * image.shape[1] for image in images))


def _mask(model: UNet, logits: np.ndarray) -> np.ndarray:
    """The mask that predict makes of logits (1, C, H, W): uint8 (H, W), numbers of classes."""
    return class_map(model.outputs, maps_of(model.outputs, torch.from_numpy(logits))[0], THRESHOLD).numpy()


def channels_of(config: ModelConfig) -> list[str]:
    """Return the names of the channels of a network's logits."""
    mask = ["background", *config.classes] if config.classes else ["cell"]
    return [*mask, *(target for target in config.targets if target != "mask")]


def as_input(image: np.ndarray) -> np.ndarray:
    """Convert an image, (H, W) or (H, W, 3), uint8 or uint16, to the input of the graph: (1, 3, H, W), uint8 or
    int32."""
    planes = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    kind = np.uint8 if image.dtype == np.uint8 else np.int32
    return np.ascontiguousarray(planes.transpose(2, 0, 1)[None]).astype(kind)


def _with_metadata(graph: bytes, checkpoint: Checkpoint) -> bytes:
    """With what a user of the graph must know as its metadata, checked by onnx."""
    import onnx

    model = onnx.load_from_string(graph)
    data, settings = checkpoint.config.data, checkpoint.config.model
    metadata = {
        "encoder": settings.encoder,
        "training_size": str(data.size),
        "training_transform": data.transform,
        "intensity_normalization": data.intensity_normalization,
        "lineage": json.dumps(checkpoint.lineage),
        "channels": json.dumps(channels_of(settings)),
        "activation": "softmax of the classes, sigmoid of a second target" if settings.classes else "sigmoid",
    }
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()
