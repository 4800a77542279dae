"""The loaders that ours is measured beside, each written as its documentation has it and as an engineer in a hurry for
speed would: PNG bytes in the library's own files, decoded by OpenCV as grey, changed and put into batches of uint8 by
worker processes that are kept from epoch to epoch. The training process normalises, as with ours.

LitData and Mosaic Streaming are optional: `pip install litdata mosaicml-streaming`.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from glioma_dist.config import DataConfig
from glioma_dist.data.loader import image_tensor, prepare_training_sample, training_batches
from glioma_dist.data.sample import Sample, encode_image, encode_mask
from glioma_dist.data.sampler import DeterministicSampler
from glioma_dist.data.shards.reader import ShardReader, ShardWriter
from glioma_dist.data.transforms import percentile_table, resize_image

SAMPLES_PER_SHARD = 4
SHUFFLE_BUFFER = 16
BYTES_PER_FILE = 2**22
"""Of LitData's and Mosaic's files: some ten images like LIVECell's, one of native size."""
Batches = Iterator[tuple[Tensor, Tensor]]
"""Images (B, 1 or 3, H, W) and masks (B, H, W), both uint8."""


@dataclass(frozen=True)
class Pipeline:
    """A loader, and how its data are written."""

    write: Callable[[Path, list[Sample]], None]
    """Into a folder of its own kind within the one that is given."""
    batches: Callable[[Path, DataConfig, int], Batches]
    """From that folder: for ever, of so many images."""
    needs: str | None = None
    """A library that may be missing."""

    @property
    def is_there(self) -> bool:
        """Whether the library can be imported."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


def decode(image: bytes, mask: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Grey pixels and a mask of 0 and 1, both (H, W) uint8, by OpenCV."""
    pixels, cells = (cv2.imdecode(np.frombuffer(packed, np.uint8), cv2.IMREAD_GRAYSCALE) for packed in (image, mask))
    return pixels, (cells > 0).view(np.uint8)


def prepare(image: bytes, mask: bytes, config: DataConfig, seed: int) -> tuple[Tensor, Tensor]:
    """What the other loaders' workers make of a sample, uint8 (1, H, W) and (H, W): bit for bit what ours does, by
    OpenCV's functions."""
    pixels, cells = decode(image, mask)
    (height, width), size, generator = pixels.shape, config.size, np.random.default_rng(seed)
    table, window = percentile_table(pixels), (size.width, size.height)
    if config.transform == "random-resized-crop":
        side = generator.uniform(*config.crop_side)
        window = (round(side * width), round(side * height))
    left, top = (int(generator.integers(old - new + 1)) for old, new in zip((width, height), window, strict=True))
    rows, columns = slice(top, top + window[1]), slice(left, left + window[0])
    pixels, cells = resize_image(cv2.LUT(pixels[rows, columns], table), size), cells[rows, columns]
    if window != (size.width, size.height):
        scaled = cv2.resize(cells.astype(np.float32), (size.width, size.height), interpolation=cv2.INTER_LINEAR)
        cells = (scaled > 0).view(np.uint8)
    across, down = (random.Random(n).random() < 0.5 for n in np.random.SeedSequence(seed).generate_state(2).tolist())
    if config.augment == ("flips",) and (across or down):
        code = (-1 if down else 1) if across else 0
        pixels, cells = cv2.flip(pixels, code), cv2.flip(cells, code)
    return image_tensor(pixels), torch.from_numpy(np.ascontiguousarray(cells))


def prepare_as_ours(image: bytes, mask: bytes, config: DataConfig, seed: int) -> tuple[Tensor, Tensor]:
    """The same by our functions: what is left of the difference is reading, decoding and handing over."""
    pixels, cells = decode(image, mask)
    image, mask = prepare_training_sample(Sample("other", pixels, cells), config, seed, percentile_table(pixels))
    return image_tensor(image), torch.from_numpy(mask)


def write_shards(folder: Path, samples: list[Sample]) -> None:
    """For ours and for webdataset."""
    if (folder / "shards").exists():
        return
    with ShardWriter(folder / "shards", "bench", "train", "-", samples_per_shard=SAMPLES_PER_SHARD) as writer:
        for sample in samples:
            writer.write(sample)


def ours(folder: Path, config: DataConfig, batch_size: int) -> Batches:
    """Our loader."""
    reader = ShardReader(folder / "shards")
    order = DeterministicSampler(reader.shard_sizes, batch_size, seed=0)
    for batch in training_batches(reader, order, config):
        yield batch.images, batch.masks


def ours_cached(folder: Path, config: DataConfig, batch_size: int) -> Batches:
    """Our loader, decoded images kept in memory."""
    return ours(folder, replace(config, cache_in_memory=True), batch_size)


def webdatasets(folder: Path, config: DataConfig, batch_size: int, prepare: Callable = prepare) -> Batches:
    """webdataset: shuffled shards and samples, batched in the workers."""
    import webdataset

    def change(sample: dict) -> tuple[Tensor, Tensor]:
        return prepare(sample["png"], sample["mask.png"], config, int(sample["__key__"]))

    urls = sorted(str(path) for path in (folder / "shards").glob("*.tar"))
    dataset = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(SHUFFLE_BUFFER).map(change)
    loader = webdataset.WebLoader(
        dataset.batched(batch_size, partial=False).repeat(), batch_size=None, num_workers=config.workers
    )
    yield from ((images, masks) for images, masks in loader)


def write_pngs(folder: Path, samples: list[Sample]) -> None:
    (folder / "pngs").mkdir(parents=True)
    for sample in samples:
        (folder / "pngs" / f"{sample.key}.png").write_bytes(encode_image(sample.image))
        (folder / "pngs" / f"{sample.key}.mask.png").write_bytes(encode_mask(sample.mask))


class PngFolder(Dataset):
    """A plain folder of PNGs, as most training scripts read it."""

    def __init__(self, folder: Path, config: DataConfig) -> None:
        self.config = config
        self.paths = sorted(path for path in folder.glob("*.png") if not path.name.endswith(".mask.png"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        path = self.paths[number]
        return prepare(path.read_bytes(), path.with_suffix(".mask.png").read_bytes(), self.config, number)


def png_folders(folder: Path, config: DataConfig, batch_size: int) -> Batches:
    """PyTorch's loader over a folder of PNGs."""
    yield from endless(DataLoader, PngFolder(folder / "pngs", config), config, batch_size, shuffle=True)


def endless(loader: Callable, dataset: Dataset, config: DataConfig, batch_size: int, **how: object) -> Batches:
    """A loader of PyTorch's kind, epoch after epoch, its workers kept."""
    workers = {"num_workers": config.workers, "persistent_workers": config.workers > 0}
    batches = loader(dataset, batch_size=batch_size, drop_last=True, **workers, **how)
    while True:
        yield from ((images, masks) for images, masks in batches)


def write_litdata(folder: Path, samples: list[Sample]) -> None:
    from litdata.streaming.writer import BinaryWriter

    (folder / "litdata").mkdir(parents=True)
    writer = BinaryWriter(str(folder / "litdata"), chunk_bytes=BYTES_PER_FILE)
    for number, sample in enumerate(samples):
        item = {"image": encode_image(sample.image), "mask": encode_mask(sample.mask), "seed": int(sample.key)}
        writer.add_item(number, item)
    writer.done()
    writer.merge()


def litdatas(folder: Path, config: DataConfig, batch_size: int) -> Batches:
    """LitData's dataset and loader."""
    import litdata

    class Images(litdata.StreamingDataset):
        def __getitem__(self, index: object) -> tuple[Tensor, Tensor]:
            item = super().__getitem__(index)
            return prepare(item["image"], item["mask"], config, item["seed"])

    dataset = Images(str(folder / "litdata"), shuffle=True, drop_last=True)
    yield from endless(litdata.StreamingDataLoader, dataset, config, batch_size)


def write_mosaic(folder: Path, samples: list[Sample]) -> None:
    from streaming import MDSWriter

    columns = {"image": "bytes", "mask": "bytes", "seed": "int"}
    with MDSWriter(out=str(folder / "mosaic"), columns=columns, size_limit=BYTES_PER_FILE) as writer:
        for sample in samples:
            writer.write(
                {"image": encode_image(sample.image), "mask": encode_mask(sample.mask), "seed": int(sample.key)}
            )


def mosaics(folder: Path, config: DataConfig, batch_size: int) -> Batches:
    """Mosaic Streaming's dataset, and PyTorch's loader, as its documentation has it."""
    import streaming
    from streaming.base.util import clean_stale_shared_memory

    class Images(streaming.StreamingDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            item = super().__getitem__(index)
            return prepare(item["image"], item["mask"], config, item["seed"])

    clean_stale_shared_memory()
    dataset = Images(local=str(folder / "mosaic"), shuffle=True, batch_size=batch_size)
    yield from endless(DataLoader, dataset, config, batch_size)


PIPELINES = {
    "glioma-dist": Pipeline(write_shards, ours),
    "glioma-dist, cached in memory": Pipeline(write_shards, ours_cached),
    "webdataset": Pipeline(write_shards, webdatasets),
    "webdataset, glioma-dist's changes": Pipeline(write_shards, partial(webdatasets, prepare=prepare_as_ours)),
    "LitData": Pipeline(write_litdata, litdatas, "litdata"),
    "Mosaic Streaming": Pipeline(write_mosaic, mosaics, "streaming"),
    "PNG folder": Pipeline(write_pngs, png_folders),
}
