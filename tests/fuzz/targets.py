"""What is fuzzed: for each target, valid files to start from, and how the program reads them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from mutations import change_bytes, change_json, dump

LABELS = ("cvat", "imagej", "cellpose", "ctc")
"""Sources of labels; test_labelled_sources.py writes their formats."""
CASES = "FUZZ_CASES"
"""Environment variable: a folder whose TIFF and PNG files are further starting points."""


@dataclass(frozen=True)
class Target:
    """prepare: write valid files into a folder, once a batch. change: from these to a changed copy in another folder.
    read: have the program read the copy; what it raises is judged."""

    prepare: Callable[[Path], None]
    change: Callable[[random.Random, Path, Path], None]
    read: Callable[[Path], None]


def _picture(number: int, shape: tuple[int, ...] = (24, 32), dtype: type = np.uint8) -> np.ndarray:
    top = np.iinfo(dtype).max
    return (np.random.default_rng(number).random(shape) * top).astype(dtype)


def _cases(endings: tuple[str, ...]) -> list[Path]:
    folder = os.environ.get(CASES)
    return [path for path in sorted(Path(folder).rglob("*")) if path.suffix in endings] if folder else []


# Shards


def draw_shards(folder: Path) -> None:
    from helpers import draw_shards

    draw_shards(folder / "shards", range(4), 2, width=40, height=32)


def change_tar(rng: random.Random, good: Path, bad: Path) -> None:
    """A tar of somebody else's: its headers, their checksums made right half of the time, or any of its bytes."""
    data = bytearray((good / "shards" / "00000.tar").read_bytes())
    if rng.random() < 0.5:
        data = bytearray(change_bytes(rng, bytes(data)))
    else:
        for _ in range(rng.randint(1, 3)):
            header = 512 * rng.randrange(max(1, len(data) // 512))
            start, size = rng.choice(((0, 100), (100, 8), (124, 12), (148, 8), (156, 1), (257, 8), (345, 155)))
            data[header + start : header + start + size] = rng.choice(
                (rng.randbytes(size), b"\xff" * size, b"7" * size)
            )
            data[header + 148 : header + 156] = b" " * 8
            data[header + 148 : header + 156] = f"{sum(data[header : header + 512]):06o}\0 ".encode()
    bad.mkdir()
    (bad / "s.tar").write_bytes(data)


def read_tar(folder: Path) -> None:
    from glioma_dist.data.shards.inspection import index_folder

    index_folder(folder, "d", "s", "l")
    _read_samples(folder)


def change_index(rng: random.Random, good: Path, bad: Path) -> None:
    shutil.copytree(good / "shards", bad)
    path = bad / "index.json"
    _change_file(rng, path)


def change_members(rng: random.Random, good: Path, bad: Path) -> None:
    """A table of members; the index has no checksum of it, or the right one."""
    shutil.copytree(good / "shards", bad)
    path = bad / "00000.members.json"
    _change_file(rng, path)
    index = json.loads((bad / "index.json").read_text())
    for shard in index["shards"]:
        del shard["members_sha256"]
    if rng.random() < 0.5:
        index["shards"][0]["members_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (bad / "index.json").write_text(json.dumps(index))


def change_sample(rng: random.Random, good: Path, bad: Path) -> None:
    """The bytes of a sample within a shard, of the same length; the table has no checksum."""
    shutil.copytree(good / "shards", bad)
    table = json.loads((bad / "00000.members.json").read_text())
    member = rng.choice(table)
    offset, size = member[rng.choice(("png", "mask.png", "json"))]
    with open(bad / "00000.tar", "r+b") as file:
        data = os.pread(file.fileno(), size, offset)
        changed = (change_png if data.startswith(b"\x89PNG") else change_bytes)(rng, data)
        os.pwrite(file.fileno(), changed[:size].ljust(size, b"\0"), offset)
    for entry in table:
        entry.pop("sha256", None)
    (bad / "00000.members.json").write_text(json.dumps(table))
    index = json.loads((bad / "index.json").read_text())
    for shard in index["shards"]:
        del shard["members_sha256"]
    (bad / "index.json").write_text(json.dumps(index))


def read_shards(folder: Path) -> None:
    _read_samples(folder)


def _read_samples(folder: Path) -> None:
    """Every sample; one that is refused does not keep the others from being read."""
    from glioma_dist.data.shards.reader import ShardReader
    from glioma_dist.errors import RunError

    reader = ShardReader(folder)
    reader.keys()
    refused: RunError | None = None
    for shard, size in enumerate(reader.shard_sizes):
        for place in range(min(size, 100)):
            try:
                reader.read(shard, place)
            except RunError as error:
                refused = error
    if refused is not None:
        raise refused


# Images


def write_tiffs(folder: Path) -> None:
    made = 0

    def write(pixels: np.ndarray, **how: Any) -> None:
        nonlocal made
        tifffile.imwrite(folder / f"{made:02d}.tif", pixels, **how)
        made += 1

    for compression in (None, "lzw", "zlib", "packbits", "jpeg", "lzma", "zstd"):
        write(_picture(made), compression=compression)
    write(_picture(made, dtype=np.uint16), compression="zlib", predictor=True)
    write(_picture(made, (24, 32, 3)), photometric="rgb", compression="lzw")
    write(_picture(made, (24, 32, 4)), photometric="rgb", extrasamples=["unassalpha"])
    write(_picture(made, (64, 64)), tile=(16, 16), compression="zlib")
    write(_picture(made), photometric="palette", colormap=_picture(made, (3, 256), np.uint16))
    write(_picture(made), byteorder=">", bigtiff=True)
    write(_picture(made), imagej=True)
    write(_picture(made, (2, 24, 32)), photometric="minisblack")
    write(_picture(made), rowsperstrip=5, compression="lzw")
    for path in _cases((".tif", ".tiff")):
        shutil.copyfile(path, folder / f"{made:02d}-{path.name}")
        made += 1


def write_pngs(folder: Path) -> None:
    shapes = ((24, 32), (24, 32, 3), (24, 32, 4))
    for number, shape in enumerate(shapes):
        for dtype in (np.uint8, np.uint16):
            data = cv2.imencode(".png", _picture(number, shape, dtype))[1].tobytes()
            (folder / f"{number}-{np.dtype(dtype).name}.png").write_bytes(data)
    from glioma_dist.data.sample import encode_mask

    (folder / "mask.png").write_bytes(encode_mask(_picture(9) % 2))
    from PIL import Image

    image = Image.fromarray(_picture(7)).convert("P")
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x112] = 6
    image.save(buffer, "png", exif=exif, transparency=3)
    (folder / "palette.png").write_bytes(buffer.getvalue())
    for path in _cases((".png",)):
        if path.stat().st_size < 2**20:
            shutil.copyfile(path, folder / f"case-{path.parent.name}-{path.name}")


def change_image(rng: random.Random, good: Path, bad: Path) -> None:
    path = rng.choice(sorted(good.iterdir()))
    data = path.read_bytes()
    bad.mkdir()
    (bad / path.name).write_bytes(change_png(rng, data) if path.suffix == ".png" else change_bytes(rng, data))


def change_png(rng: random.Random, data: bytes) -> bytes:
    """A changed PNG: its chunks, with lengths and checksums that are right (half of all); or any of its bytes."""
    kind = rng.random()
    if kind < 0.5:
        return _change_png_chunks(rng, data)
    data = change_bytes(rng, data)
    return _with_png_checksums(data) if kind < 0.8 else data


def _change_png_chunks(rng: random.Random, data: bytes) -> bytes:
    """Some chunks changed, removed, doubled or moved. Pixels are changed before they are compressed, so that they
    reach the decoder's filters."""
    chunks, start = [], 8
    while start < len(data):
        (length,) = struct.unpack_from(">I", data, start)
        chunks.append((data[start + 4 : start + 8], data[start + 8 : start + 8 + length]))
        start += 12 + length
    for _ in range(rng.randint(1, 2)):
        place = rng.randrange(len(chunks))
        name, content = chunks[place]
        action = rng.random()
        if action < 0.7 and name == b"IDAT" and sum(other == b"IDAT" for other, _ in chunks) == 1:
            chunks[place] = (name, zlib.compress(change_bytes(rng, zlib.decompress(content)), 1))
        elif action < 0.7:
            chunks[place] = (name, change_bytes(rng, content))
        elif action < 0.8:
            chunks.insert(rng.randrange(len(chunks)), chunks[place])
        elif action < 0.9 and len(chunks) > 1:
            del chunks[place]
        else:
            chunks[place] = (rng.choice((b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"acTL", b"sBIT", b"zzZz")), content)
    out = [data[:8]]
    for name, content in chunks:
        out.append(struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content)))
    return b"".join(out)


def _with_png_checksums(data: bytes) -> bytes:
    """A PNG whose chunks all have the right checksum, as far as it can be walked."""
    content, start = bytearray(data), 8
    while start + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, start)
        end = start + 8 + length
        if end + 4 > len(content):
            break
        struct.pack_into(">I", content, end, zlib.crc32(content[start + 4 : end]))
        start = end + 4
    return bytes(content)


def read_image(folder: Path) -> None:
    """As predict.py and conversions read it."""
    global _reader
    from glioma_dist.data.images.reader import ImageReader

    _reader = _reader or ImageReader(seconds=READ_SECONDS)
    (path,) = folder.iterdir()
    _reader.read(path)


READ_SECONDS = 15.0
_reader: Any = None


def read_png_bytes(folder: Path) -> None:
    """As it is decoded out of a shard: as an image, and as a mask."""
    from glioma_dist.data.sample import decode_image, decode_mask

    (path,) = folder.iterdir()
    data = path.read_bytes()
    try:
        decode_mask(data, "mask")
    finally:
        decode_image(data, "image")


# Checkpoints and runs


def write_run(folder: Path) -> None:
    """A run of two steps, as train.py leaves it."""
    shutil.copytree(os.environ["FUZZ_RUN"], folder / "run")


def change_checkpoint(rng: random.Random, good: Path, bad: Path) -> None:
    """One file of last/; half of the time the manifest knows the changed one."""
    shutil.copytree(good / "run" / "last", bad)
    name = rng.choice(sorted(path.name for path in bad.iterdir()))
    _change_file(rng, bad / name)
    manifest = bad / "manifest.json"
    if name != manifest.name and rng.random() < 0.5:
        content = json.loads(manifest.read_text())
        data = (bad / name).read_bytes()
        content["files"][name] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest.write_text(json.dumps(content))


def read_checkpoint(folder: Path) -> None:
    """As evaluate.py and predict.py load it, and as train.py resumes."""
    from glioma_dist.model.checkpoint import Checkpoint
    from glioma_dist.model.unet import load_model
    from glioma_dist.training.state import read_train_state

    load_model(folder)
    checkpoint = Checkpoint.read(folder)
    checkpoint.check()
    read_train_state(checkpoint)


def change_weights(rng: random.Random, good: Path, bad: Path) -> None:
    """A file for --model.init, whose header is changed as JSON half of the time."""
    data = (good / "run" / "last" / "model.safetensors").read_bytes()
    if rng.random() < 0.5:
        (size,) = struct.unpack_from("<Q", data)
        header = dump(change_json(rng, json.loads(data[8 : 8 + size])))
        data = struct.pack("<Q", len(header)) + header + data[8 + size :]
    else:
        data = change_bytes(rng, data)
    bad.mkdir()
    (bad / "weights.safetensors").write_bytes(data)


def read_weights(folder: Path) -> None:
    from glioma_dist.model.pretrained.weight_files import read_weights

    read_weights(folder / "weights.safetensors")


def change_run(rng: random.Random, good: Path, bad: Path) -> None:
    """One of the JSON files of a run."""
    shutil.copytree(good / "run", bad)
    names = ["config.json", "metrics.jsonl", "status.json", "last/state.json", "last/manifest.json", "best/state.json"]
    path = bad / rng.choice(names)
    if path.suffix == ".jsonl":
        lines = path.read_bytes().splitlines()
        place = rng.randrange(len(lines))
        changed = dump(change_json(rng, json.loads(lines[place])))
        lines[place] = change_bytes(rng, lines[place]) if rng.random() < 0.4 else changed
        path.write_bytes(b"\n".join(lines) + b"\n")
    else:
        _change_file(rng, path)


def read_run(folder: Path) -> None:
    """As train.py takes its settings from config.json, and looks at a folder that it may resume from."""
    from dataclasses import replace

    from glioma_dist.config import TrainConfig
    from glioma_dist.config.file import read_config
    from glioma_dist.errors import RunError
    from glioma_dist.training.metrics_file import MetricsFile
    from glioma_dist.training.resume import holds_run, look

    refused: RunError | None = None
    config = None
    for path in (folder / "config.json", Path(os.environ["FUZZ_RUN"]) / "config.json"):
        try:
            config = read_config(TrainConfig, path)
            config.validate()
            break
        except RunError as error:
            refused = error
    config = replace(config, out=folder)
    if holds_run(config):
        look(config)
    with MetricsFile(folder / "metrics.jsonl", 1):
        pass
    if refused is not None:
        raise refused


# Annotations


def write_coco(folder: Path) -> None:
    images = folder / "source" / "images" / "default"
    images.mkdir(parents=True)
    names = [f"field_{number}.png" for number in range(2)]
    for number, name in enumerate(names):
        (images / name).write_bytes(cv2.imencode(".png", _picture(number))[1].tobytes())
    square = [4, 4, 14, 4, 14, 14, 4, 14]
    runs = {"counts": [50, 20, 698], "size": [24, 32]}
    text = {"counts": "R1d02N2N", "size": [24, 32]}
    labels = [(0, 1, [square], 0), (1, 1, runs, 1), (1, 2, text, 1), (0, 1, [], 0)]
    content = {
        "info": {"year": 2024},
        "licenses": [{"id": 1, "name": "CC0"}],
        "images": [{"id": n, "file_name": name, "width": 32, "height": 24} for n, name in enumerate(names)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": crowd}
            for n, (image, category, segmentation, crowd) in enumerate(labels)
        ],
        "categories": [{"id": 1, "name": "cell", "supercategory": ""}, {"id": 2, "name": "soma"}],
    }
    (folder / "source" / "annotations").mkdir()
    (folder / "source" / "annotations" / "instances_default.json").write_text(json.dumps(content))


def change_coco(rng: random.Random, good: Path, bad: Path) -> None:
    shutil.copytree(good / "source", bad / "source")
    _change_file(rng, bad / "source" / "annotations" / "instances_default.json", as_bytes=0.1)


def convert_coco(folder: Path) -> None:
    from rich.console import Console

    from glioma_dist.data.convert.conversion import convert
    from glioma_dist.data.convert.sources import find_glioma_c6

    quiet = Console(file=io.StringIO())
    convert(find_glioma_c6(folder / "source"), folder / "out", "d", console=quiet)


def change_labels(rng: random.Random, good: Path, bad: Path) -> None:
    """One of the files of labels; bytes of a ZIP's members as often as those of the ZIP."""
    shutil.copytree(good, bad)
    path = rng.choice([path for path in sorted(bad.rglob("*")) if path.suffix in (".zip", ".npy", ".xml", ".tif")])
    if path.suffix == ".zip" and rng.random() < 0.5:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, change_bytes(rng, data))
    else:
        path.write_bytes(change_bytes(rng, path.read_bytes()))


def write_labels(name: str) -> Callable[[Path], None]:
    """Two drawn images with labels in the format of a source."""

    def write(folder: Path) -> None:
        from test_labelled_sources import laid_out, two_images

        laid_out(name, folder, two_images())

    return write


def convert_labels(name: str) -> Callable[[Path], None]:
    """Convert such a folder."""

    def read(folder: Path) -> None:
        from rich.console import Console

        from glioma_dist.data.convert.conversion import convert
        from glioma_dist.registry import sources

        convert(sources.load(name)(folder, None), folder / "out", "d", console=Console(file=io.StringIO()))

    return read


def _change_file(rng: random.Random, path: Path, as_bytes: float = 0.3) -> None:
    """A file, as JSON where it is such, or its bytes."""
    data = path.read_bytes()
    if path.suffix == ".json" and rng.random() >= as_bytes:
        path.write_bytes(dump(change_json(rng, json.loads(data))))
    else:
        path.write_bytes(change_bytes(rng, data))


TARGETS = {
    "tar": Target(draw_shards, change_tar, read_tar),
    "index.json": Target(draw_shards, change_index, read_shards),
    "members table": Target(draw_shards, change_members, read_shards),
    "sample in a shard": Target(draw_shards, change_sample, read_shards),
    "TIFF": Target(write_tiffs, change_image, read_image),
    "PNG": Target(write_pngs, change_image, read_image),
    "PNG bytes": Target(write_pngs, change_image, read_png_bytes),
    "checkpoint": Target(write_run, change_checkpoint, read_checkpoint),
    "weights": Target(write_run, change_weights, read_weights),
    "run folder": Target(write_run, change_run, read_run),
    "COCO": Target(write_coco, change_coco, convert_coco),
    **{name: Target(write_labels(name), change_labels, convert_labels(name)) for name in LABELS},
}
