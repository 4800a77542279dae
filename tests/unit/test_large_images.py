"""Images larger than the memory: strips equal the whole, tiles join without seams, files in place of arrays."""

import gc
import itertools
import math
import re
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from helpers import run
from torch import nn
from torch.nn import functional

import glioma_dist.inference.large.memory as memory
import glioma_dist.inference.large.picture as picture
import glioma_dist.inference.large.reading as reading
import glioma_dist.inference.segmenting as segmenting
from glioma_dist.config import ModelConfig, PredictConfig
from glioma_dist.config.scale import SPATIAL_LAYERS_ENCODERS
from glioma_dist.data.images.worker import Wanted
from glioma_dist.data.loader import image_tensor
from glioma_dist.data.transforms import normalize_intensity
from glioma_dist.distributed import cgroups
from glioma_dist.errors import InputError
from glioma_dist.evaluation.network import Network
from glioma_dist.inference.large.reading import open_large, read_large
from glioma_dist.inference.large.scaled import scaled_rows
from glioma_dist.inference.large.scratch import RowFile
from glioma_dist.inference.large.strips import compute_in_strips
from glioma_dist.inference.large.tiles import blend_weights, compute_in_tiles, least_side, tile_spans
from glioma_dist.inference.segmenting import Plan, choose, segment, segment_by_parts
from glioma_dist.model.unet import build_model, normalise
from glioma_dist.scale import device_memory
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.size import Size

GIB = 2**30
SMALL = (32, 24, 16, 16, 8)
FAMILIES = ("mit_tiny", "mit_b2", "resnet50", "vgg19")
"""mit_b2 has segments of two layers each."""


def draw(height: int, width: int, channels: int = 1) -> np.ndarray:
    """A picture with structure at every scale: differences of a pixel show in every layer."""
    rows, columns = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    phase = np.arange(channels)[None, None, :]
    waves = np.sin(columns * 0.05 + phase) * np.cos(rows * 0.031 + columns * 0.01) + np.sin(rows * 0.7) * 0.3
    noise = np.random.default_rng(0).random((height, width, channels))
    values = ((waves + noise + 1.5) * 60).clip(0, 255).astype(np.uint8)
    return values[..., 0] if channels == 1 else values


def make_network(encoder: str, norm: str = "batch", dtype: torch.dtype = torch.float32) -> Network:
    model, _ = build_model(ModelConfig(encoder=encoder, norm=norm, decoder_channels=SMALL), 0)
    model = model.eval().to(dtype)
    checkpoint_activations(model, "none")
    return Network(model, torch.device("cpu"), encoder=encoder)


@torch.inference_mode()
def whole_of(network: Network, image: np.ndarray) -> np.ndarray:
    kind = next(network.model.parameters()).dtype
    return network.model(normalise(image_tensor(image)[None]).to(kind)).sigmoid()[0, 0].numpy()


def strips_of(network: Network, image: np.ndarray, num_strips: int, spill: bool, folder: Path) -> tuple:
    found = np.full(image.shape[:2], np.nan, next(network.model.parameters()).cpu().detach().numpy().dtype)
    starts = []

    def write(first: int, rows: np.ndarray) -> None:
        starts.append(first)
        found[first : first + len(rows)] = rows

    lazy = picture.ArrayPicture(image)
    spilled = compute_in_strips(network, lazy, num_strips, lambda: spill, folder, write)
    assert starts == sorted(starts)
    return found, spilled


def test_the_families_are_all_that_can_be_split():
    assert {name[:3] for name in SPATIAL_LAYERS_ENCODERS} == {name[:3] for name in FAMILIES}


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("encoder", FAMILIES)
def test_strips_give_what_the_whole_image_gives_in_fp64(encoder, norm, tmp_path):
    network, image = make_network(encoder, norm, torch.float64), draw(203, 70, 3)
    if encoder != "mit_tiny":
        image = image[:100]
    expected = whole_of(network, image)
    found, spilled = strips_of(network, image, math.ceil(len(image) / 32), norm == "group", tmp_path)
    assert np.abs(found - expected).max() < 1e-9
    assert (spilled > 0) == (norm == "group")
    assert expected.std() > 1e-4  # a constant image would prove nothing


@pytest.mark.parametrize("num_strips", [2, 3, 8])
@pytest.mark.parametrize("spill", [False, True])
def test_strips_of_any_number_are_equal_in_fp32(num_strips, spill, tmp_path):
    network, image = make_network("mit_tiny"), draw(256, 100)
    found, _ = strips_of(network, image, num_strips, spill, tmp_path)
    assert np.abs(found - whole_of(network, image)).max() < 1e-5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoder", ["resnet50", "vgg19"])
def test_of_a_convolutional_network_only_some_strips_are_under_way(encoder, tmp_path):
    network, image = make_network(encoder), draw(32 * 48, 32)
    most = 0

    def look() -> bool:
        nonlocal most
        most = max(most, sum(each.name.startswith("strip ") for each in threading.enumerate()))
        return False

    compute_in_strips(network, picture.ArrayPicture(image), 48, look, tmp_path, lambda *_: None)
    assert 5 < most <= segmenting.MOST_UNDER_WAY


@pytest.mark.parametrize(("norm", "way"), [("batch", "strips"), ("group", "tiles")])
def test_strips_that_are_not_under_way_take_no_memory(norm, way, monkeypatch):
    """With group norm all 625 are under way at once."""
    monkeypatch.setattr(segmenting, "image_bytes", lambda network, height, width, in_strips=False: 450 * height * width)
    network = make_network("resnet50", norm)
    plan = choose(Wide(20000, 20000), network, memory.resident_bytes() + 4 * GIB)
    assert plan.way == way
    assert plan.num_strips == (625 if way == "strips" else 1)


class Failing(nn.Module):
    def forward(self, *_):
        raise ValueError("a layer fails")


@pytest.mark.parametrize("where", ["layer", "reading", "writing"])
def test_an_error_ends_all_strips(where, tmp_path):
    network, image = make_network("mit_tiny"), draw(256, 64)
    lazy, before = picture.ArrayPicture(image), set(threading.enumerate())
    if where == "layer":
        network.model.encoder.segformer["stages"][3].blocks[0].mlp = Failing()
    if where == "reading":
        lazy.rows = lambda start, stop: image[start:stop] if start < 128 else Failing()(start)

    def write(*_):
        if where == "writing":
            raise ValueError("a layer fails")

    with pytest.raises((ValueError, InputError), match=r"a layer fails|not known to be exact"):
        compute_in_strips(network, lazy, 8, lambda: False, tmp_path, write)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("overlap", [64, 256])
def test_tiles_cover_every_pixel_with_a_weight_of_one(overlap):
    for side in (least_side(overlap), 1024, 2048):
        for length in [1, 31, 32, side - 1, side, side + 1, side + 32, 2 * side, 2 * side + 7, 5000, 6000, 20_000]:
            spans = tile_spans(length, side, overlap)
            assert spans[0][0] == 0
            assert spans[-1][1] == length
            assert all(start % 32 == 0 and 0 < stop - start <= side for start, stop in spans)
            for (_, stop), (start, _) in itertools.pairwise(spans):
                assert stop - start >= overlap
            total = np.zeros(length, np.float32)
            for (start, stop), (first, weights) in zip(spans, blend_weights(spans, overlap), strict=True):
                assert start <= first
                assert first + len(weights) <= stop
                total[first : first + len(weights)] += weights
                inner = weights[(start > 0) * overlap : len(weights) - (stop < length) * overlap]
                assert (inner == 1).all()
            assert np.abs(total - 1).max() < 2e-7


class Pointwise(nn.Module):
    """A network in which a pixel's result depends on that pixel alone: tiles must give exactly the whole."""

    def forward(self, images):
        return images.mean(1, keepdim=True)


@pytest.mark.parametrize("shape", [(1, 1), (300, 1000), (1000, 210), (700, 701)])
def test_tiles_of_a_pointwise_network_give_the_whole(shape):
    network, image = Network(Pointwise(), torch.device("cpu")), draw(*shape)
    found, told = np.full(shape, np.nan, np.float32), []

    def write(first, rows):
        assert np.isnan(found[first : first + len(rows)]).all()
        found[first : first + len(rows)] = rows

    number = compute_in_tiles(network, picture.ArrayPicture(image), 256, write, 64, lambda *done: told.append(done))
    expected = torch.sigmoid(normalise(image_tensor(image)[None]).mean(1))[0].numpy()
    assert np.abs(found - expected).max() < 1e-6
    assert told == [(place, number) for place in range(1, number + 1)]


def test_one_channel_of_three_is_a_picture():
    image = draw(20, 10, 3)
    found = picture.MappedPicture(picture.ArrayPicture(image), lambda rows: rows[..., 1])
    assert found.shape == (20, 10)
    assert np.array_equal(np.concatenate([*picture.blocks(found)]), image[..., 1])


def test_a_row_file_is_read_as_an_array(tmp_path):
    values = np.random.default_rng(0).random((37, 11, 3)).astype(np.float32)
    file = RowFile(tmp_path, values.shape, np.float32)
    for start in range(0, 37, 10):
        file[start : start + 10] = values[start : start + 10]
    cuts = [np.s_[3:9], np.s_[:], np.s_[-5:], np.s_[30:99], np.s_[9:3], np.s_[::4], np.s_[::-1], 7, -1, ...]
    cuts += [np.s_[4:9, 2:5], np.s_[4:9, :, 1], np.s_[5, 3], np.s_[..., 0]]
    for cut in cuts:
        assert np.array_equal(file[cut], values[cut])
    assert np.array_equal(np.asarray(file), values)
    assert len(file) == 37
    assert file.nbytes == values.nbytes
    with pytest.raises(IndexError):
        file[37]
    with pytest.raises(ValueError, match="rows 0 to 2"):
        file[0:2] = values[:3]
    assert list(tmp_path.iterdir()) == []  # the file has no name: a kill leaves nothing


@pytest.mark.parametrize("how", ["percentile", "none"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_contrast_is_stretched_by_rows_as_for_the_whole(how, channels, kind, monkeypatch):
    monkeypatch.setattr(picture, "BLOCK_BYTES", 1000)
    image = draw(123, 57, channels).astype(kind) * (1 if kind == np.uint8 else 201)
    found = picture.stretched(picture.ArrayPicture(image), how, "x.tif")
    expected = normalize_intensity(image, how)
    assert np.array_equal(np.asarray(found), expected)
    assert found.shape == expected.shape
    assert np.array_equal(found[5:50:3, 4:9], expected[5:50:3, 4:9])
    assert np.array_equal(found[-2], expected[-2])
    with pytest.raises(InputError, match=r"x\.tif.*clahe"):
        picture.stretched(picture.ArrayPicture(image), "clahe", "x.tif")


@pytest.mark.parametrize(("small", "large"), [((16, 20), (100, 90)), ((7, 5), (7, 50)), ((40, 30), (11, 13))])
def test_probabilities_are_scaled_by_rows_as_a_whole(small, large):
    values = torch.rand(small)
    expected = functional.interpolate(values[None, None], size=large, mode="bilinear", align_corners=False)[0, 0]
    edges = [*range(0, large[0], 4), large[0]]
    found = torch.cat([scaled_rows(values, *large, *edge) for edge in itertools.pairwise(edges)])
    assert torch.allclose(found, expected, atol=1e-6)


LAYOUTS = {
    "one strip": {},
    "strips": {"rowsperstrip": 7},
    "strips, deflate": {"rowsperstrip": 7, "compression": "deflate"},
    "strips, lzw, predictor": {"rowsperstrip": 16, "compression": "lzw", "predictor": True},
    "tiles": {"tile": (32, 48)},
    "tiles, deflate": {"tile": (32, 48), "compression": "deflate"},
    "tiles, big-endian": {"tile": (16, 16), "byteorder": ">"},
    "one strip, big-endian": {"byteorder": ">"},
    "tiles, BigTIFF, zstd": {"tile": (64, 64), "compression": "zstd", "bigtiff": True},
}


def save_tiff(path: Path, image: np.ndarray, layout: dict) -> None:
    own = {key: value for key, value in layout.items() if key in ("byteorder", "bigtiff")}
    with tifffile.TiffWriter(path, **own) as writer:
        how = {key: value for key, value in layout.items() if key not in own}
        writer.write(image, photometric="rgb" if image.ndim == 3 else "minisblack", metadata=None, **how)


def test_tiffs_of_every_layout_are_read_by_rows(tmp_path, monkeypatch):
    """As tifffile wrote them; all in one process each, as users' pictures are."""
    from glioma_dist.data.images import tiff_rows

    monkeypatch.setattr(tiff_rows, "BAND_BYTES", 4000)
    for number, (layout, kind, channels) in enumerate(
        (layout, kind, channels) for layout in LAYOUTS for kind in (np.uint8, np.uint16) for channels in (1, 3)
    ):
        image = draw(103, 75, channels).astype(kind) * (1 if kind == np.uint8 else 199)
        path = tmp_path / f"{number}.tif"
        save_tiff(path, image, LAYOUTS[layout])
        with open(path, "rb") as file:
            rows = list(tiff_rows.TiffRows(file, path.stat().st_size, str(path)))
        assert np.array_equal(np.concatenate(rows), image), (layout, kind, channels)
        assert len(rows) > 1 or "one strip" not in layout


def test_a_large_picture_comes_from_a_process_of_its_own(tmp_path, monkeypatch):
    image = draw(150, 90, 3)
    save_tiff(tmp_path / "a.tif", image, LAYOUTS["tiles, deflate"])
    found = read_large(tmp_path / "a.tif", "a.tif", tmp_path)
    assert np.array_equal(np.asarray(found.pixels), image)
    assert found.remarks == []
    assert [each.name for each in tmp_path.iterdir()] == ["a.tif"]
    held = memory.resident_bytes()
    for name in ("a.tif", "missing.tif", "a.png"):  # as small a picture costs nothing; the reader tells of the others
        assert open_large(Wanted(tmp_path / name), name, held + 2**10, tmp_path) is None
    monkeypatch.setattr(reading, "MAX_PIXELS", 1000)
    found = open_large(Wanted(tmp_path / "a.tif"), "a.tif", held + 2**30, tmp_path)
    assert np.array_equal(np.asarray(found.pixels), image)


@pytest.mark.parametrize("layout", ["one strip", "strips, deflate", "tiles", "tiles, deflate"])
@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_a_damaged_large_picture_is_one_line(layout, damage, tmp_path):
    path = tmp_path / "a.tif"
    save_tiff(path, draw(300, 200), LAYOUTS[layout])
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        last = max(tiff.pages[0].dataoffsets)
    if damage == "cut":
        data = data[: last + 5]
    elif "deflate" in layout:
        data[last : last + 40] = b"\xff" * 40
    path.write_bytes(data)
    if damage == "overwritten" and "deflate" not in layout:
        assert read_large(path, "a.tif", tmp_path).pixels.shape == (300, 200)  # other pixels, no damage to be seen
        return
    with pytest.raises(InputError, match=r"^a\.tif: .*(cut short|cannot be decoded)") as found:
        read_large(path, "a.tif", tmp_path)
    assert len(str(found.value)) <= 500
    assert "\n" not in str(found.value)


class Wide:
    """A picture of which nothing is there but its shape."""

    dtype = np.dtype(np.uint8)

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.zeros((stop - start, *self.shape[1:]), np.uint8)


@pytest.mark.parametrize(
    ("encoder", "side", "gib", "way", "why"),
    [
        ("mit_tiny", 512, 1.0, "whole", ""),
        ("mit_tiny", 4096, 1.0, "strips", "beside the"),
        ("mit_tiny", 20_000, 3.5, "tiles", "attention would take too long"),
        ("resnet50", 20_000, 8.0, "strips", "beside the"),
    ],
)
def test_the_way_follows_from_size_memory_and_attention(encoder, side, gib, way, why, monkeypatch):
    # Of this process, which gives back what other tests have freed.
    for module in (memory, segmenting):
        monkeypatch.setattr(module, "resident_bytes", lambda: GIB)
    limit = GIB + int(gib * GIB)
    plan = choose(Wide(side, side), make_network(encoder), limit)
    assert plan.way == way
    assert why in plan.why
    if found := re.search(r"about ([\d.]+) GiB beside the ([\d.]+) .* and ([\d.]+) may be used", plan.why):
        needed, held, most = map(float, found.groups())
        assert needed + held > most
    if way == "strips":
        assert side / plan.num_strips >= 32
    if way == "tiles":
        assert plan.side % 32 == 0
        assert plan.side >= least_side()


@pytest.mark.parametrize("encoder", ["mit_tiny", "resnet50"])
def test_lines_of_a_gpu_speak_of_its_memory_and_not_of_the_hosts(encoder, monkeypatch):
    network = replace(make_network(encoder), device=torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(segmenting, "device_bytes", lambda *_: 11 * GIB)
    plan = choose(Wide(16_000, 16_000), network, 500 * GIB)  # the host has room for it as a whole
    assert plan.way != "whole"
    assert "and 11.0 of the GPU are free for it" in plan.why
    monkeypatch.setattr(segmenting, "device_bytes", lambda *_: 2**20)
    with pytest.raises(InputError, match=r"the GPU: .* GiB must be free, 0\.0 are; end other") as found:
        choose(Wide(16_000, 16_000), network, 500 * GIB)
    assert "--memory" not in str(found.value)


def test_a_large_picture_whose_scaled_one_does_not_fit_fails_by_itself(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("glioma_dist.inference.large.scaled.pixel_maps", full)
    with pytest.raises(InputError, match="64x96 pixels, scaled to 32x48, do not fit the memory"):
        segment(Wide(96, 64), make_network("mit_tiny"), Size(32, 48), memory.resident_bytes() + GIB, tmp_path)


@pytest.mark.parametrize("way", ["strips", "tiles"])
def test_a_gpu_that_fills_up_gets_advice_that_helps_there(way, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(segmenting, "compute_in_strips", full)
    monkeypatch.setattr(segmenting, "compute_in_tiles", full)
    plan = Plan(way, "", 100.0, num_strips=2, side=least_side())
    for device, advice in (("cuda", "end other programs on it"), ("cpu", "give a smaller --memory than")):
        network = replace(make_network("mit_tiny"), device=torch.device(device))
        with pytest.raises(InputError, match=advice):
            segment_by_parts(Wide(96, 64), network, plan, memory.resident_bytes() + GIB, tmp_path)


@pytest.mark.parametrize("shape", [(6000, 6000), (1, 1), (64, 64), (20, 9000), (9000, 1), (3000, 3000, 3)])
def test_memory_that_is_too_small_is_named_and_what_is_advised_is_enough(shape):
    network, wide = make_network("mit_tiny"), Wide(*shape)
    with pytest.raises(InputError, match=rf"^{shape[1]}x{shape[0]} .* give --memory ([\d.]+)GiB") as found:
        choose(wide, network, 2**20)
    assert len(str(found.value)) <= 500
    advised = re.search(r"--memory ([\d.]+GiB)", str(found.value))[1]
    limit = PredictConfig(checkpoint="x", images="x", out="y", memory=advised).memory_bytes
    assert choose(wide, network, limit).way in ("whole", "strips", "tiles")


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (33, 65), (257, 31)])
@pytest.mark.parametrize("way", ["strips", "tiles"])
def test_images_of_odd_shapes_go_every_way(shape, way, tmp_path):
    network, image = make_network("mit_tiny"), draw(*shape)
    limit = memory.resident_bytes() + GIB
    plan = Plan(way, "", 100.0, num_strips=-(-shape[0] // 32), side=least_side())
    found = segment_by_parts(picture.ArrayPicture(image), network, plan, limit, tmp_path)
    assert found.way == way
    assert np.abs(np.asarray(found.maps) - whole_of(network, image)).max() < 1e-5


def test_the_estimate_is_no_less_than_what_an_image_takes():
    (grew, estimated), *_ = run(measure_whole)
    assert grew < estimated < 2.5 * grew


def measure_whole() -> tuple[float, float]:
    network, image = make_network("mit_tiny"), draw(1024, 1024)
    estimated = memory.image_bytes(network, 1024, 1024)
    memory.hand_back_freed_memory()
    segment(image[:64, :64], network, None)
    Path("/proc/self/clear_refs").write_text("5")
    before = read_kib("VmRSS")
    segment(image, network, None, memory.resident_bytes() + 8 * GIB)
    return 1024 * (read_kib("VmHWM") - before), estimated


def read_kib(field: str) -> int:
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


@pytest.mark.parametrize("text", ["4GiB", "2.5 GiB", "500MB", "auto"])
def test_memory_is_given_as_bytes(text):
    config = PredictConfig(checkpoint="x", images="x", out="y", memory=text)
    config.validate()
    assert config.memory_bytes == {"4GiB": 4 * GIB, "2.5 GiB": 5 * GIB // 2, "500MB": 5 * 10**8, "auto": None}[text]


@pytest.mark.parametrize("text", ["", "4", "4 cows", "-1GiB", "0GiB", "x" * 1000])
def test_memory_that_is_no_number_of_bytes_is_refused(text):
    with pytest.raises(InputError, match=r"^--memory .*give a number with a unit") as found:
        PredictConfig(checkpoint="x", images="x", out="y", memory=text).validate()
    assert len(str(found.value)) <= 500


def test_an_estimate_is_counted_once_and_keeps_no_network_alive(monkeypatch):
    network, counted = make_network("mit_tiny"), []
    monkeypatch.setattr(memory, "_count", lambda model, *sides: counted.append(sides) or len(counted))
    assert [memory.image_bytes(network, *sides) for sides in ((64, 96), (64, 96), (96, 64))] == [1, 1, 2]
    assert counted == [(64, 96), (96, 64)]
    model = weakref.ref(network.model)
    del network
    gc.collect()
    assert model() is None


def test_processes_of_this_machine_share_its_memory_whoever_else_is_in_the_launch(monkeypatch):
    network, limits = make_network("mit_tiny"), []
    network.spatial_group.dp_size = 8  # eight machines of one process each

    def note(picture, network, limit, whole=True):
        limits.append(limit - memory.resident_bytes())
        return Plan("whole", "", 0.0)

    monkeypatch.setattr(segmenting, "choose", note)
    monkeypatch.setattr(memory, "free_in_cgroups", lambda: iter([10 * GIB]))
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=20 * GIB))
    for number, free in (("1", 9.0), ("4", 2.25)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", number)
        segment(draw(64, 64), network, None)
        assert limits.pop() / GIB == pytest.approx(free, abs=0.2)


@pytest.mark.parametrize("most", ["max", str(3 * GIB)])
def test_the_limit_of_a_control_group_counts(most, tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text(f"{most}\n")
    (tmp_path / "memory.current").write_text(f"{2 * GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {GIB // 2}\n")
    monkeypatch.setattr(cgroups, "_cgroups", lambda: iter([(tmp_path, "memory.max", "memory.current")]))
    whole = device_memory.device_memory(torch.device("cpu"), 1)
    assert whole > 0
    assert most == "max" or whole <= 3 * GIB
    free = [*cgroups.free_in_cgroups()]
    assert free == ([] if most == "max" else [3 * GIB // 2])
    for module in (memory, device_memory):
        monkeypatch.setattr(module, "free_in_cgroups", lambda: iter(free))
    for free_bytes in (device_memory.free_memory(torch.device("cpu"), 1), device_memory.free_host_memory(1)):
        assert free_bytes > 0
        assert most == "max" or free_bytes <= 3 * GIB // 2
    limit = memory.memory_limit(None) - memory.resident_bytes()
    assert limit > 0
    assert most == "max" or limit <= 3 * GIB // 2
    assert memory.memory_limit(GIB) == GIB


def measure_peak(encoder: str, height: int, width: int, room: int, folder: str) -> dict:
    """Peak of the process while an image is segmented with `room` bytes more than it holds."""
    network = make_network(encoder)
    segment(draw(64, 64), network, None)
    memory.hand_back_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")
    before = memory.resident_bytes()
    told = []
    found = segment(Drawn(height, width), network, None, before + room, Path(folder), lambda *each: told.append(each))
    grew = 1024 * read_kib("VmHWM") - before
    image = Drawn(height, width).rows(0, height)
    whole = whole_of(network, image)
    other = max(float(np.abs(found.maps[at : at + 64] - whole[at : at + 64]).max()) for at in range(0, height, 64))
    return {"grew": grew, "way": found.way, "told": told, "other": other}


class Drawn(Wide):
    """A picture that is drawn as it is read."""

    def rows(self, start: int, stop: int) -> np.ndarray:
        rows, columns = np.arange(start, stop)[:, None], np.arange(self.shape[1])[None]
        return ((np.sin(columns * 0.05) * np.cos(rows * 0.031 + columns * 0.01) + 1.2) * 100).astype(np.uint8)


def test_memory_stays_within_the_limit_in_strips(tmp_path):
    room = 260 * 2**20
    (found,) = run(measure_peak, "mit_tiny", 1536, 1024, room, str(tmp_path))
    assert found["way"] == "strips"
    ((kind, text),) = found["told"]
    assert kind == "strips"
    assert text.startswith("1024x1536 pixels in ")
    assert found["grew"] < room
    assert found["other"] < 1e-5


def measure_at_least(encoder: str, side: int, folder: str) -> dict:
    """Peak of a process that segments its first image with the least memory that a refusal advises."""
    network, image = make_network(encoder), Drawn(side, side)
    try:
        choose(image, network, memory.resident_bytes())
    except InputError as error:
        advised = re.search(r"--memory ([\d.]+GiB)", str(error))[1]
    limit = PredictConfig(checkpoint="x", images="x", out="y", memory=advised).memory_bytes
    Path("/proc/self/clear_refs").write_text("5")
    found = segment(image, network, None, limit, Path(folder))
    return {"peak": 1024 * read_kib("VmHWM"), "limit": limit, "way": found.way}


@pytest.mark.parametrize("encoder", ["mit_tiny", "mit_b0"])
def test_the_least_memory_that_is_advised_is_not_exceeded(tmp_path, encoder):
    (found,) = run(measure_at_least, encoder, 1280, str(tmp_path))
    print(found)
    assert found["peak"] < found["limit"]
