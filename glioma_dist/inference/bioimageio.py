"""A trained network as a package of bioimage.io (model description 0.5), tested by bioimage.io's own test before it is
written."""

from __future__ import annotations

import io
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glioma_dist.data.images.value_range import HIGH_PERCENT, LOW_PERCENT
from glioma_dist.data.sample import encode_image, one_channel
from glioma_dist.data.transforms import normalize_intensity, resize_image
from glioma_dist.errors import InputError, one_line
from glioma_dist.evaluation.maps import class_map, maps_of
from glioma_dist.evaluation.network import THRESHOLD, Contrast, Network, pixel_maps
from glioma_dist.files import check_new_file, make_folder, read_bytes, write_atomically
from glioma_dist.inference.bioimageio_description import EPSILON, IMAGE, MIN_SIDE, describe, preprocessing
from glioma_dist.inference.export import CHECKED_SIZES, TOLERANCE, TRACED_SIZE, logits_of, to_onnx
from glioma_dist.inference.package_card import licences_page, package_card, spdx_licence
from glioma_dist.inference.writers.overlay import overlay
from glioma_dist.model.unet import UNet, load_model
from glioma_dist.size import Size

MAX_SIDE, COVER_SIDE = 512, 256
"""Of the package's test image, and of the parts of it on the cover, in pixels."""
MAX_BYTES = 2**32
FLAGS = {
    "license": "--licence: give an identifier of spdx.org/licenses, for example CC-BY-4.0",
    "name": "--name: give 5 to 128 letters of English, digits, spaces and _ + - ( )",
    "authors": "--authors: give names without a slash",
}
"""Field of the description -> what the flag that it comes from takes."""


@dataclass(frozen=True)
class PackageResult:
    """What a package holds, and how near it comes to `predict`."""

    size: Size
    """Of its test image."""
    num_channels: int
    """Of the images that it takes: 1 (grey) or 3 (RGB)."""
    largest: float
    """Greatest difference of a logit between a graph and PyTorch."""
    num_other: int
    """Pixels of the test image whose mask is another than that of `predict`, by the way contrast is stretched."""
    licence: str | None
    """SPDX identifier; None where the licences of its lineage are in a file."""


class ScaledToLogits(nn.Module):
    """Rounding to 8 bits, normalising, padding, the U-Net, cropping."""

    def __init__(self, model: UNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 1 or 3, H, W) fp32, its contrast stretched to 0 to 1. Returns logits (B, 1, H, W); of a network
        with several outputs its maps (B, C, H, W), because bioimage.io knows no softmax over some of the channels."""
        pixels = (image * 255).round().clamp(0, 255)
        logits = logits_of(self.model, pixels)
        return logits if self.model.outputs.num_outputs == 1 else maps_of(self.model.outputs, logits)


def export_package(
    checkpoint: Path,
    out: Path,
    image: np.ndarray,
    name: str | None = None,
    authors: tuple[str, ...] = (),
    licence: str | None = None,
    raw_weights: bool = False,
) -> PackageResult:
    """Write a package with `checkpoint`'s network as TorchScript and ONNX.

    Args:
        image: a real one, uint8 or uint16, (H, W) or (H, W, 3); its centre becomes the test image. Where it is grey,
            the package takes images of one channel.
        name, authors: of the package. licence: its SPDX identifier; by default that of the network's lineage.
        raw_weights: as of `load_model`.

    Raises InputError where the network or the image cannot be used, or the package fails its test.
    """
    check_new_file("--out", out)
    model, read = load_model(checkpoint, raw_weights)
    if note := read.note_on_weights(raw_weights):
        print(note)
    contrast = read.config.data.intensity_normalization
    if contrast == "clahe":
        raise InputError(
            f"{checkpoint}: was trained with --data.intensity-normalization clahe, which bioimage.io does not know; "
            "use glioma-dist predict"
        )
    size = read.config.data.size if read.config.data.transform == "resize" else None
    if size and min(size.width, size.height) < MIN_SIDE:
        raise InputError(
            f"{checkpoint}: was trained on images scaled to {size}, and a package takes images of at least "
            f"{MIN_SIDE}x{MIN_SIDE}; use glioma-dist predict"
        )
    tested = _centre(one_channel(resize_image(image, size) if size else image))
    num_channels = 1 if tested.ndim == 2 else 3
    network = ScaledToLogits(model).eval()
    example = torch.zeros(1, num_channels, *TRACED_SIZE)
    weights = {"weights.pt": _to_torchscript(network, example), "weights.onnx": to_onnx(network, example)}
    largest = _compare(network, weights, num_channels)
    steps = preprocessing(contrast, tested.dtype)
    probability = _probability(network, tested, steps)
    expected = _as_predicted(model, tested, contrast)
    files = {
        **weights,
        "test_input.npy": _npy(_as_tensor(tested)),
        "test_output.npy": _npy(probability),
        "sample_input.png": encode_image(tested),
        "sample_output.png": encode_image(expected * np.uint8(255 // max(1, expected.max()))),
        "cover.png": _cover(normalize_intensity(tested, contrast), expected, max(1, len(read.config.model.classes))),
        "README.md": package_card(read.folder, read, size, num_channels, 8 * tested.itemsize).encode(),
    }
    licence = licence or spdx_licence(read.lineage)
    if licence is None:
        files["LICENCES.md"] = licences_page(read.lineage).encode()
    described = describe(read, model, num_channels, steps, name, authors, licence)
    packed = _pack(files, described)
    make_folder(out.parent)
    write_atomically(out, packed)
    num_other = int((class_map(model.outputs, probability[0], THRESHOLD) != expected).sum())
    return PackageResult(Size(tested.shape[1], tested.shape[0]), num_channels, largest, num_other, licence)


def _centre(image: np.ndarray) -> np.ndarray:
    """The middle of an image, with sides of at most `MAX_SIDE`."""
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise InputError(f"the test image has {width}x{height} pixels: give one of at least {MIN_SIDE}x{MIN_SIDE}")
    top, left = (max(0, (side - MAX_SIDE) // 2) for side in (height, width))
    return np.ascontiguousarray(image[top : top + MAX_SIDE, left : left + MAX_SIDE])


def _as_tensor(image: np.ndarray) -> np.ndarray:
    """An image as the package takes it: float32 (1, 1 or 3, H, W), its values as taken."""
    planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    return np.ascontiguousarray(planes[None], np.float32)


def _to_torchscript(network: nn.Module, example: Tensor) -> bytes:
    """The network as TorchScript, for images of any height and width, without names of files of this machine."""
    traced, clean = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # PyTorch would rather have torch.export, which bioimage.io has no place for.
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network, (example,), check_trace=False), traced)
    with zipfile.ZipFile(traced) as archive, zipfile.ZipFile(clean, "w") as kept:
        for member in archive.infolist():
            if not member.filename.endswith(".debug_pkl"):  # where each line of the code came from
                kept.writestr(member.filename, archive.read(member))
    return clean.getvalue()


def _compare(network: nn.Module, weights: Mapping[str, bytes], num_channels: int) -> float:
    """The greatest difference of a logit between PyTorch and what is in the package, over drawn images of several
    sizes. Raises InputError where one is too large."""
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.load(io.BytesIO(weights["weights.pt"]))
    session = onnxruntime.InferenceSession(weights["weights.onnx"], providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for size in CHECKED_SIZES:
        image = torch.rand(1, num_channels, *size, generator=generator)
        with torch.no_grad():
            expected, scripted = network(image), script(image)
        (found,) = session.run(None, {IMAGE: image.numpy()})
        largest = max(largest, *(float((torch.as_tensor(each) - expected).abs().max()) for each in (found, scripted)))
    if not largest <= TOLERANCE:
        raise InputError(
            f"the graphs give other logits than PyTorch (they differ by {largest:.1e}, {TOLERANCE:.0e} is allowed): "
            "nothing was written"
        )
    return largest


@torch.no_grad()
def _probability(network: nn.Module, image: np.ndarray, steps: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """What the package gives for its test image: float32 (1, C, H, W)."""
    values = _as_tensor(image)
    (step,) = steps
    if step["id"] == "scale_range":
        low, high = np.percentile(values, (LOW_PERCENT, HIGH_PERCENT))
        values = (values - low) / (high - low + EPSILON)
    else:
        values = values * step["kwargs"]["gain"] + step["kwargs"]["offset"]
    found = network(torch.from_numpy(values.astype(np.float32)))
    return (found.sigmoid() if network.model.outputs.num_outputs == 1 else found).numpy()


def _as_predicted(model: UNet, image: np.ndarray, contrast: Contrast) -> np.ndarray:
    """The mask that `predict` makes of the test image: uint8 (H, W), numbers of classes."""
    size = Size(image.shape[1], image.shape[0])
    network = Network(model, torch.device("cpu"), outputs=model.outputs)
    (maps,) = pixel_maps(network, normalize_intensity(image, contrast), None, size)
    return class_map(model.outputs, maps.numpy(), THRESHOLD)


def _cover(image: np.ndarray, mask: np.ndarray, num_classes: int) -> bytes:
    """A PNG twice as wide as high: the middle of the test image, and beside it the same with its cells outlined."""
    side = min(COVER_SIDE, *mask.shape)
    top, left = ((length - side) // 2 for length in mask.shape)
    part, cells = (np.ascontiguousarray(each[top : top + side, left : left + side]) for each in (image, mask))
    plain = overlay(part, np.zeros((side, side), np.uint8))
    return encode_image(np.concatenate([plain, overlay(part, cells, num_classes)], axis=1))


def _npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def _pack(files: Mapping[str, bytes], described: dict[str, Any]) -> bytes:
    """The package as a zip that has passed bioimage.io's test. Raises InputError where it fails."""
    from bioimageio.core import test_description
    from bioimageio.spec import InvalidDescr, ValidationContext, build_description, save_bioimageio_package

    with tempfile.TemporaryDirectory(prefix="glioma-dist-") as made, _quiet():
        folder = Path(made)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        checked = build_description(described, context=ValidationContext(root=folder))
        if isinstance(checked, InvalidDescr):
            raise _refused(checked.validation_summary)
        package = save_bioimageio_package(checked, output_path=folder / "package.zip")
        summary = test_description(package, devices=["cpu"])
        if summary.status != "passed":
            raise _refused(summary)
        return read_bytes(package, MAX_BYTES)


def _refused(summary: Any) -> InputError:
    """The error of a package that bioimage.io's check or test refuses: which flag to change, or its first reasons."""
    errors = [(each.name, error) for each in summary.details for error in each.errors]
    for _, error in errors:
        if error.loc and error.loc[0] in FLAGS:
            return InputError(f"{FLAGS[error.loc[0]]}; nothing was written")
    reasons = "; ".join(f"{'.'.join(map(str, error.loc)) or name}: {error.msg}" for name, error in errors[:3])
    return InputError(f"bioimage.io's test refuses the package: {one_line(reasons, 300)}: nothing was written")


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it, bioimage.io's libraries log nothing; what is wrong is in their summaries."""
    from loguru import logger

    names = ("bioimageio.core", "bioimageio.spec")
    for name in names:
        logger.disable(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in names:
            logger.enable(name)
