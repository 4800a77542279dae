"""PNGs in bands of rows: any library reads them whole, the reader reads any rows, and batches stay the same."""

import io
import struct
import zlib
from dataclasses import replace
from itertools import islice
from typing import get_args

import cv2
import numpy as np
import pytest
from helpers import draw_sample, tiny_config, write_shards
from PIL import Image

from glioma_dist.config import DataConfig
from glioma_dist.data.images import grey_png
from glioma_dist.data.images.grey_png import BANDS, ROWS_OF_BAND, bands_of, encode_in_bands
from glioma_dist.data.images.png_chunks import PNG_SIGNATURE
from glioma_dist.data.images.value_range import find_range
from glioma_dist.data.loader import training_batches
from glioma_dist.data.sample import decode_image, encode_image
from glioma_dist.data.sampler import DeterministicSampler
from glioma_dist.data.shards import writer
from glioma_dist.data.shards.inspection import verify
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.transforms import IntensityNormalization
from glioma_dist.size import Size

DTYPES = (np.uint8, np.uint16)
HEIGHTS = (1, ROWS_OF_BAND - 1, ROWS_OF_BAND, ROWS_OF_BAND + 1, 3 * ROWS_OF_BAND + 7)


def draw_image(height: int, width: int, dtype: type) -> np.ndarray:
    generator = np.random.default_rng(height * width)
    return generator.normal(100, 30, (height, width)).clip(0, 255).astype(dtype) * (np.iinfo(dtype).max // 255)


def with_chunk(data: bytes, content: bytes) -> bytes:
    """The PNG with another content of the private chunk."""
    start = data.index(BANDS) - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    chunk = struct.pack(">I", len(content)) + BANDS + content + struct.pack(">I", zlib.crc32(BANDS + content))
    return data[:start] + chunk + data[end:]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("height", HEIGHTS)
@pytest.mark.parametrize("width", [1, 7, 200])
def test_every_library_reads_the_whole(height, width, dtype):
    image = draw_image(height, width, dtype)
    data = encode_in_bands(image)
    assert data == encode_in_bands(np.asfortranarray(image))
    with Image.open(io.BytesIO(data)) as picture:
        picture.verify()
    with Image.open(io.BytesIO(data)) as picture:
        np.testing.assert_array_equal(np.asarray(picture), image)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), image)
    np.testing.assert_array_equal(decode_image(data, "x"), image)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("height", HEIGHTS)
def test_any_rows_are_read(height, dtype):
    image = draw_image(height, 40, dtype)
    data = encode_in_bands(image)
    drawn = np.random.default_rng(0).integers(0, height + 1, (20, 2))
    for start, stop in [(0, height), (0, 0), (height - 1, height), *np.sort(drawn).tolist()]:
        rows = decode_image(data, "x", lambda *size, rows=slice(start, stop): rows)
        assert rows.shape == image.shape
        assert rows.dtype == dtype
        np.testing.assert_array_equal(rows[start:stop], image[start:stop])


@pytest.mark.parametrize(
    "rows", [slice(None), slice(100, None), slice(None, 20), slice(-5, None), slice(0, 10**6), slice(150, 10, -3)]
)
def test_rows_are_given_as_any_slice(rows):
    image = draw_image(3 * ROWS_OF_BAND + 7, 40, np.uint8)
    read = decode_image(encode_in_bands(image), "x", lambda height, width: rows)
    np.testing.assert_array_equal(read[rows], image[rows])


def test_other_bands_are_not_inflated(monkeypatch):
    image, inflated = draw_image(10 * ROWS_OF_BAND, 40, np.uint8), []
    inflate = grey_png._inflate_to
    monkeypatch.setattr(
        grey_png, "_inflate_to", lambda lines, *a, **k: inflated.append(lines) or inflate(lines, *a, **k)
    )
    decode_image(encode_in_bands(image), "x", lambda height, width: slice(3 * ROWS_OF_BAND - 1, 5 * ROWS_OF_BAND))
    assert [len(lines) for lines in inflated] == [ROWS_OF_BAND] * 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_range_is_that_of_numpys_percentiles(dtype):
    for number in range(20):
        generator = np.random.default_rng(number)
        image = generator.gamma(2, np.iinfo(dtype).max / 9, (31, 1 + number)).clip(0, np.iinfo(dtype).max).astype(dtype)
        expected = np.percentile(image, (0.5, 99.5), method="inverted_cdf")
        assert find_range(image) == bands_of(encode_in_bands(image)).value_range == tuple(expected)


WRONG_CHUNKS = {
    "another version": struct.pack(">BIHH", 2, ROWS_OF_BAND, 0, 9),
    "no rows": struct.pack(">BIHH", 1, 0, 0, 9),
    "more rows": struct.pack(">BIHH", 1, 2 * ROWS_OF_BAND, 0, 9),
    "fewer rows": struct.pack(">BIHH", 1, ROWS_OF_BAND - 1, 0, 9),
    "rows of another division into as many": struct.pack(">BIHH", 1, ROWS_OF_BAND + 1, 0, 9),
    "more rows than there are": struct.pack(">BIHH", 1, 2**32 - 1, 0, 9),
    "a range upside down": struct.pack(">BIHH", 1, ROWS_OF_BAND, 9, 0),
    "too short": b"\1",
    "nothing": b"",
    "too long": struct.pack(">BIHHB", 1, ROWS_OF_BAND, 0, 9, 0),
}


@pytest.mark.parametrize("name", WRONG_CHUNKS)
def test_where_the_chunk_is_wrong_the_whole_is_read(name):
    image = draw_image(4 * ROWS_OF_BAND, 40, np.uint8)
    data = with_chunk(encode_in_bands(image), WRONG_CHUNKS[name])
    rows = slice(100, 120)
    np.testing.assert_array_equal(decode_image(data, "x", lambda height, width: rows)[rows], image[rows])


def test_bands_that_need_the_one_above_are_read_as_a_whole():
    """As a program writes them that copies chunks it does not know, though this one's name forbids it."""
    image = draw_image(4 * ROWS_OF_BAND, 40, np.uint8)
    _, encoded = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP])
    theirs, ours = encoded.tobytes(), encode_in_bands(image)
    start, end = (len(PNG_SIGNATURE) + 25, ours.index(b"IDAT") - 4)
    data = theirs[:start] + ours[start:end] + theirs[start:]
    np.testing.assert_array_equal(
        decode_image(data, "x", lambda height, width: slice(100, 120))[100:120], image[100:120]
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", get_args(IntensityNormalization))
@pytest.mark.parametrize("transform", ["resize", "random-crop", "random-resized-crop"])
def test_batches_are_those_of_whole_images(monkeypatch, tmp_path, how, transform, dtype):
    samples = [draw_sample(number, 150, 200 + number, dtype=dtype) for number in range(6)]
    config = replace(
        tiny_config(tmp_path, tmp_path).data,
        **{"transform": transform, "intensity_normalization": how, "size": Size(64, 96), "augment": ("flips",)},
    )
    found = []
    for name in ("bands", "whole"):
        if name == "whole":
            monkeypatch.setattr(writer, "encode_in_bands", encode_image)
        reader = ShardReader(write_shards(tmp_path / name, samples))
        assert (reader.read(0, 0).value_range is None) == (name == "whole")
        batches = training_batches(reader, DeterministicSampler(reader.shard_sizes, 2, 0), config, 0, 0, 1)
        found.append(list(islice(batches, 6)))
        batches.close()
    for one, other in zip(*found, strict=True):
        assert one.keys == other.keys
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.masks, other.masks)


def test_a_range_that_is_not_the_images_is_found(monkeypatch, tmp_path):
    def encode(image: np.ndarray) -> bytes:
        return with_chunk(encode_in_bands(image), struct.pack(">BIHH", 1, ROWS_OF_BAND, 3, 4))

    reader = ShardReader(write_shards(tmp_path / "right", [draw_sample(0)]))
    assert [fault for _, fault in verify(reader)] == [None]
    monkeypatch.setattr(writer, "encode_in_bands", encode)
    reader = ShardReader(write_shards(tmp_path / "wrong", [draw_sample(0)]))
    ((_, fault),) = verify(reader)
    assert fault.endswith("its PNG states other percentiles than its pixels have; convert it again")


def test_a_crop_that_is_larger_than_the_image_is_refused_with_its_key(tmp_path):
    reader = ShardReader(write_shards(tmp_path / "few", [draw_sample(number) for number in range(2)]))
    config = DataConfig(train=("x",), val="x", size=Size(64, 96), transform="random-crop", workers=0)
    with pytest.raises(Exception, match=r"sample cell-00\d is 96x80, smaller than the crop 64x96"):
        next(training_batches(reader, DeterministicSampler(reader.shard_sizes, 1, 0), config, 0, 0, 1))
