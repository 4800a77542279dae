"""Files of microscopes' own programs: every plane is the array that was written, with its pixel size, time and channel;
what is damaged costs one line. Each format of `FORMATS` is tested, where its library is installed."""

import io
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tifffile
from microscope_files import INTERVAL_S, NAMES, PIXEL_UM, WRITERS, draw_planes, write_lif, write_nd2
from rich.console import Console

from glioma_dist.config.inference import PredictConfig
from glioma_dist.config.paths import Url
from glioma_dist.config.places import Places
from glioma_dist.data.convert.folder import convert_folder
from glioma_dist.data.images import microscope
from glioma_dist.data.images.choice import ChannelError, Choice
from glioma_dist.data.images.microscope import FORMATS, Scene, planes_of
from glioma_dist.data.images.reader import ImageReader
from glioma_dist.data.images.worker import Wanted
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.errors import InputError
from glioma_dist.inference.images import find_images
from glioma_dist.inference.large.memory import resident_bytes
from glioma_dist.inference.large.reading import open_large
from glioma_dist.inference.pictures import find_pictures
from glioma_dist.inference.predict import predict

INSTALLED = [
    pytest.param(
        suffix,
        marks=pytest.mark.skipif(
            find_spec(kind.library) is None, reason=f"{kind.library} of the extra microscope is not installed"
        ),
    )
    for suffix, kind in FORMATS.items()
]
UNTIMED = (".czi",)
"""Formats whose writer tells no times."""


@pytest.fixture(scope="module")
def decoder():
    with ImageReader() as reader:
        yield reader


def choice_of(channel=None, time="all", page="all") -> Choice:
    return Choice(channel, Places.parse("--time", time), Places.parse("--page", page))


def write(folder: Path, suffix: str, *shape: int, name: str = "x") -> tuple[Path, np.ndarray]:
    path, planes = folder / f"{name}{suffix}", draw_planes(*shape)
    WRITERS[suffix](path, planes)
    return path, planes


def test_each_format_has_a_file_to_test_it_with():
    assert WRITERS.keys() == FORMATS.keys()


@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (1, 1, 1, 1), (3, 1, 1, 4)])
@pytest.mark.parametrize("suffix", INSTALLED)
def test_each_plane_is_the_array_s(suffix, shape, tmp_path, decoder):
    path, planes = write(tmp_path, suffix, *shape)
    scenes, times, channels, pages = shape
    for channel in range(channels):
        found = find_pictures([path], choice_of(str(channel + 1) if channels > 1 else None))
        assert len(found) == scenes * times * pages
        for picture, (scene, time, page) in zip(found, np.ndindex(scenes, times, pages), strict=True):
            assert picture.error is None
            decoded = decoder.read(picture.wanted)
            np.testing.assert_array_equal(decoded.pixels, planes[scene, time, channel, page])
            assert decoded.pixels.dtype == np.uint16
            assert picture.metadata.pixel_size_um == pytest.approx(PIXEL_UM, rel=1e-9)
            told = times > 1 and suffix not in UNTIMED
            assert picture.metadata.hours == (pytest.approx(time * INTERVAL_S / 3600) if told else None)
            numbers = [("s", scene, scenes), ("t", time, times), ("p", page, pages)]
            parts = [f"{letter}{number + 1:03d}" for letter, number, count in numbers if count > 1]
            parts += [f"c{channel + 1}"] if channels > 1 else []
            assert picture.metadata.plane == "-".join(parts)
            assert picture.name == "-".join(["x", *parts])
    assert decoder.describe(path)[0].channels == NAMES[:channels]


@pytest.mark.parametrize("suffix", INSTALLED)
def test_channels_times_and_pages_are_chosen(suffix, tmp_path):
    path, _ = write(tmp_path, suffix, 2, 3, 2, 4)
    with pytest.raises(ChannelError, match=r"2 channels \(1 Phase, 2 GFP\); choose one by number or name"):
        find_pictures([path], choice_of())
    found = find_pictures([path], choice_of("gfp", time="-1", page="1:4:3"))
    assert [picture.metadata.plane for picture in found] == [
        f"s{scene:03d}-t003-p{page:03d}-c2" for scene in (1, 2) for page in (1, 4)
    ]
    (failed,) = find_pictures([path], choice_of("3"))
    assert "no channel 3 among its 2 (1 Phase, 2 GFP)" in str(failed.error)
    (failed,) = find_pictures([path], choice_of("1", time="9"))
    assert "--time means none of its 3 times" in str(failed.error)


@pytest.mark.parametrize("suffix", INSTALLED)
def test_a_damaged_file_costs_one_line_and_the_next_is_read(suffix, tmp_path):
    path, planes = write(tmp_path, suffix, 1, 2, 1, 1)
    data = path.read_bytes()
    cuts = {f"cut {share}": data[: int(share * len(data))] for share in (0.02, 0.3, 0.6, 0.9, 0.999)}
    noise = bytearray(data)
    noise[64:4000] = np.random.default_rng(1).bytes(3936)
    damaged = {"empty": b"", "noise": bytes(noise), "other": b"\x89PNG\r\n\x1a\n" + bytes(99), **cuts}
    for name, content in damaged.items():
        (tmp_path / f"{name}{suffix}").write_bytes(content)
    paths = [tmp_path / f"{name}{suffix}" for name in damaged]
    errors: dict[Path, list[InputError]] = {each: [] for each in paths}
    with ImageReader() as reader:
        for picture in find_pictures([*paths, path], choice_of()):
            if picture.error is not None:
                errors[picture.path].append(picture.error)
                continue
            try:  # what is damaged is not looked at before the pixels are read
                pixels = reader.read(picture.wanted).pixels
            except InputError as error:
                errors[picture.path].append(error)
            else:
                np.testing.assert_array_equal(pixels, planes[0, picture.wanted.microscope.time, 0, 0])
    for broken, found in errors.items():
        assert found, broken
        for error in found:
            assert str(broken) in str(error)
            assert "\n" not in str(error)
            assert len(str(error)) <= 500 + len(str(tmp_path))


def test_a_microscope_s_file_under_another_name_is_named(tmp_path):
    with ImageReader() as reader:
        for suffix, kind in FORMATS.items():
            path = tmp_path / f"{suffix[1:]}.tif"
            path.write_bytes(kind.signatures[0].ljust(64, b"\0"))
            with pytest.raises(InputError, match=rf"is {kind.name}.*rename it to end in \{suffix}"):
                reader.read(path)
            mask = path.rename(path.with_suffix(suffix))
            with pytest.raises(InputError, match=rf"is {kind.name}.*; save it as TIFF or PNG$"):
                reader.read(Wanted(mask, is_mask=True))


@pytest.mark.skipif(find_spec("nd2") is None, reason="nd2 of the extra microscope is not installed")
def test_an_nd2_whose_metadata_its_library_cannot_read_is_read(tmp_path, decoder):
    planes = draw_planes(1, 2, 1, 1)
    write_nd2(tmp_path / "x.nd2", planes, probe=False)
    first, second = find_pictures([tmp_path / "x.nd2"], choice_of())
    assert first.metadata.pixel_size_um is None
    np.testing.assert_array_equal(decoder.read(second.wanted).pixels, planes[0, 1, 0, 0])


@pytest.mark.skipif(find_spec("nd2") is None, reason="nd2 of the extra microscope is not installed")
def test_a_frame_that_an_nd2_does_not_have_is_no_black_picture(tmp_path, decoder):
    write_nd2(tmp_path / "x.nd2", draw_planes(1, 3, 1, 1))
    data = (tmp_path / "x.nd2").read_bytes().replace(b"ImageDataSeq|2!", b"ImageLostSeq|2!")
    (tmp_path / "x.nd2").write_bytes(data)
    *_, last = find_pictures([tmp_path / "x.nd2"], choice_of())
    with pytest.raises(InputError, match="frame 3 is not in the file"):
        decoder.read(last.wanted)


@pytest.mark.skipif(find_spec("liffile") is None, reason="liffile of the extra microscope is not installed")
def test_a_lif_that_names_other_files_is_refused(tmp_path, monkeypatch):
    secret = tmp_path / "secret.tif"
    tifffile.imwrite(secret, np.zeros((8, 8), np.uint8))
    write_lif(tmp_path / "x.lif", draw_planes(1, 1, 1, 1))
    data = (tmp_path / "x.lif").read_bytes()
    text = data[13 : data.index("</LMSDataContainerHeader>".encode("utf-16-le"))].decode("utf-16-le")
    frame = f'<Memory><Frame File="{secret}" Offset="0" Size="64" UUID="a"/></Memory>'
    text = '<?xml version="1.0"?>' + text.replace("<Memory ", f"{frame}<Memory ", 1)
    (tmp_path / "x.lif").write_text(f"{text}</LMSDataContainerHeader>")
    monkeypatch.setattr(microscope, "_check_beginning", lambda *_: None)  # which refuses it, too
    with pytest.raises(InputError, match="is no LIF but a XL"):
        microscope.describe_file(tmp_path / "x.lif", "x.lif")


@pytest.mark.parametrize("suffix", INSTALLED)
def test_a_picture_larger_than_the_memory_is_read_by_rows_or_refused_by_name(suffix, tmp_path):
    path, planes = write(tmp_path, suffix, 2, 1, 2, 1, 2200, 2200)
    picture = find_pictures([path], choice_of("2"))[1]
    limit = resident_bytes() + 2**20  # of its 9 MiB
    if picture.wanted.microscope.by_rows:
        found = open_large(picture.wanted, str(picture.label), limit, tmp_path)
        assert found is not None
        np.testing.assert_array_equal(found.pixels[:], planes[1, 0, 1, 0])
    else:
        with pytest.raises(InputError, match=r"2200x2200 pixels, more than the memory.*give more --memory"):
            open_large(picture.wanted, str(picture.label), limit, tmp_path)
    assert open_large(picture.wanted, str(picture.label), limit + 2**30, tmp_path) is None


@pytest.mark.parametrize("suffix", INSTALLED)
def test_predict_segments_each_plane(suffix, tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in", suffix, 1, 2, 2, 1, 64, 96)
    (tmp_path / "in" / f"broken{suffix}").write_bytes(FORMATS[suffix].signatures[0] + bytes(100))
    found = predict(PredictConfig("t98g-small", tmp_path / "in", tmp_path / "out", channel="Phase", write=("mask",)))
    assert [picture.plane for picture in found.images] == ["t001-c1", "t002-c1"]
    assert all((tmp_path / "out" / f"x-{picture.plane}.mask.png").is_file() for picture in found.images)
    assert len(found.failed) == 1
    assert f"broken{suffix}" in str(found.failed[0])


@pytest.mark.parametrize("suffix", INSTALLED)
def test_convert_folder_takes_the_chosen_planes_as_images(suffix, tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    path, planes = write(tmp_path / "images", suffix, 2, 3, 2, 1, name="a")
    labels = (planes[:, 1:, 0, 0] > 2000).astype(np.uint8).reshape(4, *planes.shape[-2:])
    tifffile.imwrite(tmp_path / "masks" / "a_mask.tif", labels, photometric="minisblack")
    convert_folder(
        path.parent,
        tmp_path / "masks",
        tmp_path / "out",
        "lab",
        console=Console(file=io.StringIO()),
        choice=choice_of("GFP", time="2:3"),
    )
    reader = ShardReader(tmp_path / "out" / "all")
    samples = [reader.read(0, place) for place in range(len(reader))]
    found = {(sample.metadata["scene"], sample.metadata["frame"]): sample for sample in samples}
    assert found.keys() == {(1, 2), (1, 3), (2, 2), (2, 3)}
    for number, (scene, frame) in enumerate(sorted(found)):
        sample = found[scene, frame]
        np.testing.assert_array_equal(sample.image, planes[scene - 1, frame - 1, 1, 0])
        np.testing.assert_array_equal(sample.mask, labels[number])
        assert sample.key == f"a-s{scene:03d}-t{frame:03d}"
        assert sample.metadata["channel"] == "GFP"
        assert sample.metadata["group"] == "a"
        assert sample.metadata["pixel_size_um"] == pytest.approx(PIXEL_UM)
        told = suffix not in UNTIMED
        assert sample.metadata["time"] == (pytest.approx((frame - 1) * INTERVAL_S / 3600) if told else None)


@pytest.mark.parametrize("suffix", FORMATS)
def test_beside_tiffs_they_are_not_read_and_before_jpegs_they_are(suffix, tmp_path):
    for name in (f"a{suffix}", "a.jpg"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in find_images(str(tmp_path)).paths] == [f"a{suffix}"]
    (tmp_path / "b.tif").write_bytes(b"x")
    found = find_images(str(tmp_path))
    assert [path.name for path in found.paths] == ["b.tif"]
    assert found.not_read == {suffix: 1, ".jpg": 1}
    assert [path.name for path in find_images(str(tmp_path / f"*{suffix}")).paths] == [f"a{suffix}"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_without_its_library_one_line_names_the_command(suffix, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, FORMATS[suffix].library, None)  # which Python takes for missing
    (tmp_path / f"a{suffix}").write_bytes(FORMATS[suffix].signatures[0])
    with pytest.raises(
        InputError, match=rf"{FORMATS[suffix].library} not installed; run pip install '.*\[microscope\]'"
    ):
        predict(PredictConfig("t98g-small", tmp_path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", FORMATS)
def test_one_at_a_url_is_refused(suffix):
    (picture,) = find_pictures([Url(f"memory://bucket/a{suffix}")], choice_of())
    assert "at a URL is not read; copy the file to this machine" in str(picture.error)


def test_numbers_of_a_file_are_checked(tmp_path, monkeypatch):
    usual = Scene(2, 3, 4, 10, 20, "uint16", channels=("a", "b", "c"), pixel_size_um=0.5, hours=2.0)
    planes = planes_of([usual, usual._replace(num_channels=1)], "x")
    assert len(planes.planes) == 2 * 3 * 4 + 2 * 4
    assert planes.num_channels == 3
    with pytest.raises(InputError, match=r"x: 400000 planes, more than 100000"):
        planes_of([usual._replace(num_times=100_000, num_channels=1)], "x")
    checked = microscope._checked
    assert checked(usual, "x") == usual
    assert checked(usual._replace(pixel_size_um=-1.0, hours=float("inf"), channels=("a",)), "x")[7:10] == (
        (),
        None,
        None,
    )
    dated = [checked(usual._replace(acquired=date), "x") for date in ("2024-03-01T10:00:00", "at 9 o'clock, 1 March")]
    assert [planes_of([scene], "x").planes[-1].acquired for scene in dated] == ["2024-03-01T12:00:00", None]
    for wrong in ({"height": 0}, {"num_times": -1}, {"dtype": "complex64"}, {"num_samples": 2}):
        with pytest.raises(InputError, match="x: damaged: an image of"):
            checked(usual._replace(**wrong), "x")


def test_nothing_of_it_is_imported_before_it_is_used():
    libraries = {kind.library for kind in FORMATS.values()}
    modules = "glioma_dist.data.images.worker, glioma_dist.data.images.decoding, glioma_dist.cli.predict"
    code = f"import sys, {modules}; assert not {libraries} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", code], check=True)
