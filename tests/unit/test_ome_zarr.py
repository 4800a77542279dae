"""OME-Zarr as the library zarr writes it, in both formats: planes, regions and metadata are those of the arrays that
were written; what is damaged or hostile costs one line."""

import copy
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_pictures import NAMES, H, W, check, choice_of, draw, expected, read_all

from glioma_dist.data.images import zarr_arrays
from glioma_dist.data.images.choice import ChannelError
from glioma_dist.data.images.numbers import to_16_bit
from glioma_dist.data.images.ome_zarr import open_ome_zarr
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.errors import InputError
from glioma_dist.inference.images import find_images
from glioma_dist.inference.pictures import find_pictures
from glioma_dist.inference.reading import PictureReader

zarr = pytest.importorskip("zarr", reason="the extra formats is not installed")


@pytest.fixture(scope="module")
def decoder():
    with ImageReader() as reader:
        yield reader


CODECS = {"zstd": (2, 3), "blosc": (2, 3), "gzip": (2, 3), "none": (2, 3), "sharded": (3,), "nested": (2,)}


def write_zarr(
    path: Path,
    array: np.ndarray,
    axes: str = "TCZ",
    zarr_format: int = 2,
    codec: str = "zstd",
    chunks: tuple[int, ...] = (16, 32),
    group: str = "",
) -> Path:
    """An image as the library zarr writes it, with the metadata of OME-Zarr 0.4 or 0.5."""
    outer = (1,) * len(axes)
    how: dict = {"chunks": outer + chunks}
    if codec in ("blosc", "gzip", "none"):
        names = {"blosc": "BloscCodec", "gzip": "GzipCodec"}
        if zarr_format == 3:
            how["compressors"] = None if codec == "none" else [getattr(zarr.codecs, names[codec])()]
        else:
            import numcodecs

            how["compressors"] = {"blosc": numcodecs.Blosc(), "gzip": numcodecs.GZip(), "none": None}[codec]
    if codec == "sharded":
        how["shards"] = (*outer, 2 * chunks[0], 2 * chunks[1])
    if codec == "nested":
        how["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
    root = zarr.open_group(str(path), mode="a", zarr_format=zarr_format)
    image = root.require_group(group) if group else root
    image.create_array("0", shape=array.shape, dtype=array.dtype, **how)[:] = array
    kinds = {"T": ("time", "minute", 30.0), "C": ("channel", None, 1.0), "Z": ("space", None, 1.0)}
    listed, scale = [], []
    for axis in (*axes, "Y", "X"):
        kind, unit, size = kinds.get(axis, ("space", "micrometer", 0.65))
        listed.append({"name": axis.lower(), "type": kind} | ({"unit": unit} if unit else {}))
        scale.append(size)
    transformation = [{"type": "scale", "scale": scale}]
    told = {"multiscales": [{"axes": listed, "datasets": [{"path": "0", "coordinateTransformations": transformation}]}]}
    told["omero"] = {"channels": [{"label": name} for name in NAMES]}
    image.attrs.update(told if zarr_format == 2 else {"ome": told | {"version": "0.5"}})
    return path


@pytest.mark.parametrize(
    ("codec", "zarr_format"), [(codec, number) for codec, formats in CODECS.items() for number in formats]
)
def test_each_plane_of_an_ome_zarr_is_the_array_s(tmp_path, decoder, codec, zarr_format):
    array = draw(2, 2, 3)
    path = write_zarr(tmp_path / "a.ome.zarr", array, zarr_format=zarr_format, codec=codec)
    for channel, name in ((1, "Phase"), (2, "2")):
        check(read_all(decoder, path, channel=name), expected(array, "TCZ", channel))
    (picture,) = find_pictures([path], choice_of("GFP", "-1", "3"))
    assert picture.name == "a-t002-p003-c2"
    assert (picture.metadata.hours, picture.metadata.pixel_size_um) == (0.5, 0.65)
    image = open_ome_zarr(path)
    assert (image.shape, image.axes, image.channels, image.times_h) == ((2, 2, 3, H, W), "tczyx", NAMES, (0.0, 0.5))
    region = image.read(1, 0, 2, slice(5, 31), slice(20, 52))
    np.testing.assert_array_equal(region, array[1, 0, 2, 5:31, 20:52])
    with pytest.raises(ChannelError, match=r"2 channels \(1 Phase, 2 GFP\)"):
        find_pictures([path], choice_of())


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "int16", "float32"])
def test_an_ome_zarr_of_one_plane_and_any_numbers(tmp_path, decoder, dtype):
    array = draw(dtype="uint8").astype(dtype)
    path = write_zarr(tmp_path / "a.zarr", array, axes="", chunks=(H, W))
    (found,) = read_all(decoder, path).values()
    np.testing.assert_array_equal(found, to_16_bit(array, "")[0])
    assert found.dtype == (np.uint8 if dtype == "uint8" else np.uint16)


def test_wells_of_a_plate_and_series_of_a_collection_are_images(tmp_path, decoder):
    array = draw(2, dtype="uint8")
    for group in ("A/1/0", "B/2/0", "B/2/1"):
        write_zarr(tmp_path / "plate.zarr", array, "T", group=group)
    root = zarr.open_group(str(tmp_path / "plate.zarr"), mode="a")
    root.attrs["plate"] = {"wells": [{"path": "A/1"}, {"path": "B/2"}]}
    root["A/1"].attrs["well"] = {"images": [{"path": "0"}]}
    root["B/2"].attrs["well"] = {"images": [{"path": "0"}, {"path": "1"}]}
    for group in ("0", "1"):
        write_zarr(tmp_path / "series.zarr", array, "T", group=group)
    zarr.open_group(str(tmp_path / "series.zarr"), mode="a").attrs["bioformats2raw.layout"] = 3
    found = find_images(str(tmp_path))
    assert [path.name for path in found.paths] == ["plate.zarr", "series.zarr"]
    pictures = find_pictures(found.paths, choice_of(time="2"))
    assert [picture.name for picture in pictures] == [
        *("plate-A-1-0-t002", "plate-B-2-0-t002", "plate-B-2-1-t002", "series-0-t002", "series-1-t002")
    ]
    with PictureReader(decoder) as reader:
        for picture in pictures:
            np.testing.assert_array_equal(reader.read(picture), array[1])
    inside = [path.name for path in find_images(str(tmp_path / "**")).paths]
    assert inside == ["plate.zarr", "series.zarr"]
    assert [path.name for path in find_images(str(tmp_path / "plate.zarr")).paths] == ["plate.zarr"]


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _lost_chunks(path: Path) -> None:
    for chunk in path.glob("0/0.*"):
        chunk.unlink()


def _link(path: Path, to: str) -> None:
    chunk = next(path.glob("0/0.*"))
    chunk.unlink()
    chunk.symlink_to(to)


def _bomb(path: Path) -> None:
    """A chunk that unpacks to 600 MiB: a gzip file may hold several, one after another."""
    edit(path / "0/.zarray", compressor={"id": "gzip", "level": 1}, chunks=[1, H, W])
    (path / "0/0.0.0").write_bytes(gzip.compress(bytes(2**22)) * 150)


DAMAGE = {
    "no array": (lambda path: (path / "0/.zarray").unlink(), "no such file"),
    "no JSON": (lambda path: (path / "0/.zarray").write_text("{"), "no JSON"),
    "metadata of 17 MiB": (lambda path: (path / "0/.zarray").write_text(" " * (17 << 20)), "bytes, more than"),
    "deep JSON": (lambda path: (path / ".zattrs").write_text('{"multiscales":' + "[" * 100_000), "JSON"),
    "not OME": (lambda path: (path / ".zattrs").write_text("{}"), "without an image of OME-Zarr"),
    "a huge shape": (
        lambda path: edit(path / "0/.zarray", shape=[1, 2**20, 2**20], chunks=[1, 64, 64]),
        "pixels, more",
    ),
    "huge chunks": (lambda path: edit(path / "0/.zarray", chunks=[1, 2**20, 2**20]), "chunks of"),
    "no chunks": (lambda path: edit(path / "0/.zarray", chunks=[1, 0, 9]), "its shape"),
    "a million frames": (lambda path: edit(path / "0/.zarray", shape=[10**6, H, W]), "--time"),
    "pickled values": (lambda path: edit(path / "0/.zarray", filters=[{"id": "pickle"}]), "packed by pickle"),
    "objects": (lambda path: edit(path / "0/.zarray", dtype="|O"), "values of kind"),
    "another level outside": (
        lambda path: (path / ".zattrs").write_text(
            (path / ".zattrs").read_text().replace('"path": "0"', '"path": "../b.zarr/0"')
        ),
        "leads out of the folder",
    ),
    "lost chunks": (_lost_chunks, "none of its 6 chunks are there"),
    "a chunk that leads outside": (lambda path: _link(path, "/etc/passwd"), "leads out of the folder"),
    "a chunk without end": (lambda path: _link(path, "/dev/zero"), "leads out of the folder|pipe"),
    "a damaged chunk": (lambda path: next(path.glob("0/0.*")).write_bytes(b"damaged"), "chunks cannot be decoded"),
    "a chunk that is too large": (
        lambda path: os.truncate(next(path.glob("0/0.*")), 2**30),
        "1073741824 bytes, and its chunk",
    ),
    "a chunk that unpacks to more than it says": (_bomb, "far more memory"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_or_hostile_zarr_costs_one_line(tmp_path, decoder, how):
    damage, words = DAMAGE[how]
    path = write_zarr(tmp_path / "a.zarr", draw(1), "T", 2)
    array = path / "0"
    assert (array / "0.0.0").exists()
    damage(path)
    (picture, *_) = find_pictures([path], choice_of())
    with pytest.raises(InputError, match=words) as refused, PictureReader(decoder) as reader:
        reader.read(picture)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)
    whole = write_zarr(tmp_path / "whole.zarr", draw(1), "T", 2)
    assert len(read_all(decoder, whole)) == 1


def test_missing_chunks_are_counted_in_a_remark(tmp_path, decoder):
    array = draw(1)
    path = write_zarr(tmp_path / "a.zarr", array, "T")
    (path / "0/0.0.0").unlink()
    lines: list[str] = []
    with PictureReader(decoder, lines.append) as reader:
        found = reader.read(find_pictures([path], choice_of())[0])
    np.testing.assert_array_equal(found[16:], array[0, 16:])
    assert not found[:16, :32].any()
    assert "1 of 6 chunks are not there" in lines[0]


def test_metadata_are_checked_before_the_library_sees_them():
    """What is refused by name is all that the library could run: its own list is longer."""
    import numcodecs.registry

    known = set(numcodecs.registry.codec_registry) | set(numcodecs.registry.entries)
    assert "pickle" in known
    assert not {"pickle", "json2", "msgpack2"} & {*zarr_arrays.CODECS_2, *zarr_arrays.FILTERS_2}


ODD = [None, -1, float("inf"), "", [], {}, "../x", 10**30, [[]], {"path": 5}]


def replaced(value: object, odd: object) -> Iterator[object]:
    """A JSON value with one part of it, each in its turn, replaced by another or missing."""
    yield odd
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        for inner in replaced(value[key], odd):
            changed = copy.copy(value)
            changed[key] = inner
            yield changed
        missing = copy.copy(value)
        del missing[key]
        yield missing


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_any_value_in_place_of_any_other_in_the_metadata_is_read_or_refused(tmp_path, zarr_format):
    path = write_zarr(tmp_path / "a.zarr", draw(2, 2, 1), "TCZ", zarr_format, "sharded" if zarr_format == 3 else "zstd")
    assert len(find_pictures([path], choice_of("1"))) == 2
    refused = 0
    for name in (".zattrs", ".zgroup", "0/.zarray") if zarr_format == 2 else ("zarr.json", "0/zarr.json"):
        whole = (path / name).read_text()
        for odd in ODD:
            for changed in replaced(json.loads(whole), odd):
                (path / name).write_text(json.dumps(changed))
                for picture in find_pictures([path], choice_of("1")):
                    refused += picture.error is not None
                    assert picture.error is None or "\n" not in str(picture.error)
        (path / name).write_text(whole)
    assert refused > 100
