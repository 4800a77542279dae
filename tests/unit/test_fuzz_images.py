"""Images with bytes changed at random, of every format and codec: an image or one line each, in bounded memory."""

import io
import struct
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from glioma_dist.data.images.reader import ImageReader
from glioma_dist.errors import InputError

CODECS = ("lzw", "zlib", "packbits", "jpeg", "zstd", "lzma", "jpeg2000", "webp", "jpegxl", "lerc", "png", None)
MAX_MEBIBYTES = 600


def whole_files(generator: np.random.Generator) -> list[tuple[str, bytes]]:
    """(suffix, bytes) of images of many kinds."""
    grey = generator.integers(0, 256, (40, 60), dtype=np.uint8)
    colours = generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    kinds = [(colours, {"compression": codec, "photometric": "rgb"}) for codec in CODECS]
    kinds += [(colours, {"compression": codec, "photometric": "rgb", "rowsperstrip": 8}) for codec in CODECS[:3]]
    kinds += [
        (grey, {"compression": "lzw", "predictor": True}),
        (grey, {"compression": "zlib", "tile": (16, 16)}),
        (grey & 15, {"photometric": "palette", "colormap": np.arange(768, dtype=np.uint16).reshape(3, 256)}),
        (grey.astype(np.uint16), {"bitspersample": 12}),
        *((grey, how) for how in ({"bigtiff": True}, {"byteorder": ">"}, {"imagej": True}, {"ome": True})),
        (grey > 90, {"photometric": "miniswhite"}),
    ]
    found = []
    for pixels, how in kinds:
        try:
            tifffile.imwrite(file := io.BytesIO(), pixels, **how)
        except NotImplementedError:  # imagecodecs before 2026 reads 12 bits and does not write them
            assert how == {"bitspersample": 12}
            continue
        found.append((".tif", file.getvalue()))
    exif = Image.Exif()
    exif[274] = 6
    for image in (Image.fromarray(grey), Image.fromarray(colours), Image.fromarray(colours).quantize(9)):
        image.save(file := io.BytesIO(), "png", exif=exif)
        found.append((".png", file.getvalue()))
    return found


def change(data: bytes, suffix: str, generator: np.random.Generator) -> bytes:
    """Up to five bytes changed, more often in the header; now and then cut; most PNGs with right checksums again."""
    changed = bytearray(data)
    for _ in range(generator.integers(1, 6)):
        place = generator.integers(len(changed) if generator.random() < 0.6 else min(len(changed), 400))
        values = [0, 255, generator.integers(256), changed[place] ^ (1 << generator.integers(8))]
        changed[place] = generator.choice(values)
    if generator.random() < 0.1:
        del changed[generator.integers(len(changed)) :]
    start = 8
    while suffix == ".png" and generator.random() < 0.95 and start + 12 <= len(changed):
        end = start + 8 + struct.unpack_from(">I", changed, start)[0]
        if end + 4 > len(changed):
            break
        struct.pack_into(">I", changed, end, zlib.crc32(bytes(changed[start + 4 : end])))
        start = end + 4
    return bytes(changed)


def fuzz(folder: Path, num_images: int, seed: int) -> Counter:
    """Read so many changed images. Returns how many were read, refused, and crashed the decoder."""
    generator = np.random.default_rng(seed)
    files, outcomes = whole_files(generator), Counter()
    with ImageReader() as reader:
        for _ in range(num_images):
            suffix, data = files[generator.integers(len(files))]
            path = folder / f"a{suffix}"
            path.write_bytes(change(data, suffix, generator))
            start = time.monotonic()
            (found,) = reader.read_each([path])
            if isinstance(found, InputError):
                message = str(found)
                assert message.startswith(f"{path}: ")
                assert "\n" not in message
                assert len(message) < 500 + len(str(path))
                outcomes["crashed" if "crashed" in message else "refused"] += 1
            else:
                assert found.pixels.ndim in (2, 3)
                outcomes["read"] += 1
            assert time.monotonic() - start < 60
            status = Path(f"/proc/{reader._process.pid}/status") if reader._process else None
            if status is not None and status.exists():
                peak = int(status.read_text().split("VmHWM:")[1].split()[0]) >> 10
                assert peak < MAX_MEBIBYTES
    return outcomes


def test_a_few_hundred_changed_images(tmp_path):
    outcomes = fuzz(tmp_path, 300, seed=0)
    assert outcomes["read"] > 30
    assert outcomes["refused"] > 30


@pytest.mark.slow
def test_ten_thousand_changed_images(tmp_path):
    print(fuzz(tmp_path, 10_000, seed=1))
