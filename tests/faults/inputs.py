"""Faults: images, tables and settings that are not what they should be, for predict.py, evaluate.py and conversions."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import tifffile
from contract import FINISHED, USER_ERROR, Fault
from forks import Ended
from inflict import SECONDS_TO_END
from stage import Stage

PARTIAL = 1
DEEP = 10**5


def picture(number: int = 0) -> np.ndarray:
    """uint8 (H, W), noise on a slope."""
    generator = np.random.default_rng(number)
    return (np.linspace(40, 200, 96)[None] + generator.normal(0, 9, (80, 96))).clip(0, 255).astype(np.uint8)


def png_of(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb() -> bytes:
    """1.5 MB that claim 40000 x 40000 pixels."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(40001)) for _ in range(40000)) + packer.flush()
    header = struct.pack(">IIBBBBB", 40000, 40000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiff_loop() -> bytes:
    """A directory that points to itself."""
    return b"II*\0" + struct.pack("<IHI", 8, 0, 8)


def tiff_chain(count: int = 300_000) -> bytes:
    """So many directories, each of nothing."""
    parts = [struct.pack("<HI", 0, 8 + 6 * (number + 1)) for number in range(count - 1)]
    return b"II*\0" + struct.pack("<I", 8) + b"".join(parts) + struct.pack("<HI", 0, 0)


def write_corpus(folder: Path, cases: Path | None = None) -> list[str]:
    """Damaged TIFFs and PNGs, each of another kind, and one good one of each. Returns the good ones' names."""
    folder.mkdir(parents=True)
    good_png = png_of(picture())
    (folder / "good.png").write_bytes(good_png)
    tifffile.imwrite(folder / "good.tif", picture(1))
    for name in ("lzw", "zlib", "jpeg", "packbits"):
        tifffile.imwrite(folder / f"{name}.tif", picture(2), compression=name)
        data = bytearray((folder / f"{name}.tif").read_bytes())
        start = len(data) // 3
        data[start : start + 60] = bytes((byte * 7 + 13) % 256 for byte in range(60))
        (folder / f"{name}.tif").write_bytes(data)
    plain = (folder / "good.tif").read_bytes()
    damaged = {
        "cut.png": good_png[: len(good_png) // 2],
        "flipped.png": good_png[:200] + bytes([good_png[200] ^ 1]) + good_png[201:],
        "empty.png": b"",
        "text.png": b"no picture" * 50,
        "bomb.png": png_bomb(),
        "cut.tif": plain[: len(plain) // 2],
        "empty.tif": b"",
        "header.tif": b"II*\0",
        "loop.tif": tiff_loop(),
        "chain.tif": tiff_chain(),
        "png.tif": good_png,
    }
    for name, data in damaged.items():
        (folder / name).write_bytes(data)
    tifffile.imwrite(folder / "float.tif", np.zeros((4096, 4096)), compression="zlib")
    tifffile.imwrite(
        folder / "channels.tif", np.zeros((40, 1024, 1024), np.uint8), compression="zlib", planarconfig="separate"
    )
    tifffile.imwrite(folder / "stack.tif", np.zeros((3, 64, 64), np.uint8), photometric="minisblack")
    return ["good.png", "good.tif"]


def predict(stage: Stage, images: object, checkpoint: Path | None = None, **job: object) -> Sequence[Ended]:
    best = checkpoint or stage.shared.one / "best"
    arguments = ["--checkpoint", best, "--images", images, "--out", stage.out]
    return stage.launch("predict.py", arguments, **job).wait(SECONDS_TO_END)


def predict_corpus(stage: Stage) -> Sequence[Ended]:
    folder = stage.make("images")
    write_corpus(folder)
    return predict(stage, folder)


def good_ones_done(stage: Stage) -> None:
    done = {path.name for path in stage.out.glob("*.mask.png")}
    assert {"good.png.mask.png", "good.tif.mask.png"} <= done or len(done) >= 2, done


def convert_corpus(stage: Stage) -> Sequence[Ended]:
    """Every damaged file of the corpus is in the audit, and the good ones are samples."""
    source = stage.make("source")
    write_corpus(source / "images" / "default")
    names = sorted(path.name for path in (source / "images" / "default").iterdir())
    square = [10, 10, 40, 10, 40, 40, 10, 40]
    (source / "annotations").mkdir()
    (source / "annotations" / "instances_default.json").write_text(
        json.dumps(
            {
                "images": [
                    {"id": number, "file_name": name, "width": 96, "height": 80} for number, name in enumerate(names)
                ],
                "annotations": [
                    {"id": number, "image_id": number, "category_id": 1, "segmentation": [square], "iscrowd": 0}
                    for number in range(len(names))
                ],
                "categories": [{"id": 1, "name": "cell"}],
            }
        )
    )
    arguments = ["--source", source, "--out", stage.out]
    return stage.launch("tools/convert_glioma_c6.py", arguments).wait(SECONDS_TO_END)


def audit_names_all(stage: Stage) -> None:
    audit = (stage.out / "audit.json").read_text()
    names = {path.name for path in (stage.folder / "source" / "images" / "default").iterdir()}
    # A stream whose decoder makes something of it is a picture.
    missing = {name for name in names if name not in audit} - {"good.png", "good.tif", "lzw.tif", "zlib.tif"}
    assert not missing - {"jpeg.tif", "packbits.tif"}, missing
    index = json.loads((stage.out / "all" / "index.json").read_text())
    assert index["num_samples"] >= 2


def special_images(stage: Stage) -> Sequence[Ended]:
    """A pipe, a device, a link to one, and a link that leads nowhere, beside a good image."""
    folder = stage.make("images")
    folder.mkdir()
    (folder / "good.png").write_bytes(png_of(picture()))
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.tif").symlink_to("/dev/zero")
    (folder / "nowhere.tif").symlink_to("/nowhere.tif")
    (folder / "loop.tif").symlink_to("loop.tif")
    return predict(stage, folder)


def one_good(stage: Stage) -> None:
    assert len(list(stage.out.glob("*.mask.png"))) == 1


def in_place_of(name: str, make: Callable[[Path], None]) -> Callable[[Stage], Sequence[Ended]]:
    """A training whose `name`, below its data, is something else."""

    def inflict(stage: Stage) -> Sequence[Ended]:
        data = stage.make("data")
        shutil.copytree(stage.shared.data, data)
        (data / name).unlink()
        make(data / name)
        return stage.train(data=data).wait(SECONDS_TO_END)

    return inflict


def checkpoint_with(name: str, make: Callable[[Path], None]) -> Callable[[Stage], Sequence[Ended]]:
    """predict.py with a checkpoint of which one file is something else."""

    def inflict(stage: Stage) -> Sequence[Ended]:
        folder = stage.make("images")
        folder.mkdir()
        (folder / "good.png").write_bytes(png_of(picture()))
        checkpoint = stage.make("checkpoint")
        shutil.copytree(stage.shared.one / "best", checkpoint)
        (checkpoint / name).unlink()
        make(checkpoint / name)
        return predict(stage, folder, checkpoint)

    return inflict


def deep(path: Path) -> None:
    path.write_text("[" * DEEP + "]" * DEEP)


def large(path: Path) -> None:
    """Some 200 MB of JSON, which would take gigabytes as objects."""
    with open(path, "w") as file:
        file.write("[0")
        for _ in range(100):
            file.write(",0" * 10**6)
        file.write("]")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def config_file(make: Callable[[Path], None]) -> Callable[[Stage], Sequence[Ended]]:
    def inflict(stage: Stage) -> Sequence[Ended]:
        path = stage.make("config.json")
        make(path)
        return stage.train(config=path).wait(SECONDS_TO_END)

    return inflict


def _faults() -> list[Fault]:
    predicts = {"kind": "Input", "trains": False}
    refused = {"codes": (USER_ERROR,), "kind": "Input", "mebibytes": 1000}
    trained = {**refused, "telling": False, "resumes": False}
    faults = [
        Fault(
            "corpus of damaged images: predict.py",
            inflict=predict_corpus,
            codes=(PARTIAL,),
            says="of 20 images",
            check=good_ones_done,
            mebibytes=1400,
            **predicts,
        ),
        Fault(
            "corpus of damaged images: conversion",
            inflict=convert_corpus,
            codes=(FINISHED,),
            check=audit_names_all,
            mebibytes=1400,
            quiet=False,
            **predicts,
        ),
        Fault(
            "pipes, devices and links among images",
            inflict=special_images,
            codes=((FINISHED, PARTIAL),),
            check=one_good,
            **predicts,
        ),
    ]
    makes = {"pipe": pipe, "link to /dev/zero": device, "deeply nested JSON": deep, "200 MB of JSON": large}
    for what, make in makes.items():
        faults += [
            Fault(f"{what} as --config", inflict=config_file(make), says="config.json", **trained),
            Fault(f"{what} as index.json", inflict=in_place_of("train/index.json", make), says="index.json", **trained),
            Fault(
                f"{what} as state.json",
                inflict=checkpoint_with("state.json", make),
                says="state.json",
                trains=False,
                **refused,
            ),
        ]
    for what in ("pipe", "link to /dev/zero"):
        faults.append(
            Fault(
                f"{what} as a shard", inflict=in_place_of("train/00001.tar", makes[what]), says="00001.tar", **trained
            )
        )
        faults.append(
            Fault(
                f"{what} as weights",
                inflict=checkpoint_with("model.safetensors", makes[what]),
                says="model.safetensors",
                trains=False,
                **refused,
            )
        )
    return faults


FAULTS = _faults()
