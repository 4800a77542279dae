"""Stacks: `convert folder` unrolls them page by page, with time, position and the size of a pixel."""

import json
import random

import numpy as np
import pytest
import tifffile
from data_helpers import draw_image
from test_convert_folder import LABELS, SHAPE, convert, draw_labels, phase, samples, write_png, write_tiff
from test_mask_kinds import IMAGES, MASKS

from glioma_dist.data.images.decoding import decode_page
from glioma_dist.data.images.tiff_planes import find_planes
from glioma_dist.errors import InputError

IMAGEJ = {"imagej": True, "resolution": (2.0, 2.0)}
STACKS = {
    "pages": ((3,), {"photometric": "minisblack", "metadata": None}, ["p001", "p002", "p003"]),
    "tifffile": ((3,), {"photometric": "minisblack"}, ["p001", "p002", "p003"]),
    "tifffile time": ((3,), {"photometric": "minisblack", "metadata": {"axes": "TYX"}}, ["t001", "t002", "t003"]),
    "imagej time": (
        (3,),
        IMAGEJ | {"metadata": {"axes": "TYX", "unit": "um", "finterval": 1800.0}},
        ["t001", "t002", "t003"],
    ),
    "imagej depth": ((2,), IMAGEJ | {"metadata": {"axes": "ZYX", "unit": "micron"}}, ["p001", "p002"]),
    "imagej both": (
        (2, 3),
        IMAGEJ | {"metadata": {"axes": "TZYX", "unit": "um", "finterval": 1800.0}},
        [f"t00{t}-p00{z}" for t in (1, 2) for z in (1, 2, 3)],
    ),
    "ome time": (
        (3,),
        {"metadata": {"axes": "TYX", "PhysicalSizeX": 0.5, "TimeIncrement": 30, "TimeIncrementUnit": "min"}},
        ["t001", "t002", "t003"],
    ),
    "ome depth first": (
        (3, 2),
        {"metadata": {"axes": "ZTYX", "PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm"}},
        [f"t00{t}-p00{z}" for z in (1, 2, 3) for t in (1, 2)],
    ),
    "big tiff": ((2,), {"photometric": "minisblack", "bigtiff": True, "compression": "zlib"}, ["p001", "p002"]),
}


@pytest.mark.parametrize("kind", STACKS)
def test_a_stack_is_unrolled_page_by_page_with_its_mask(tmp_path, kind):
    shape, how, endings = STACKS[kind]
    ending = ".ome.tif" if kind.startswith("ome") else ".tif"
    image = phase(*shape)
    labels = np.stack([draw_labels(number) for number in range(len(endings))]).astype(np.uint16)
    write_tiff(tmp_path / f"images/well_A{ending}", image, **how)
    mask_how = how if kind.startswith("imagej") else {"photometric": "minisblack"}
    write_tiff(tmp_path / "masks/well_A_cp_masks.tif", labels.reshape(*shape, *SHAPE), **mask_how)
    write_png(tmp_path / "images/single.png", draw_image(7))
    write_png(tmp_path / "masks/single_cp_masks.png", draw_labels(6).astype(np.uint8))
    screen = convert(tmp_path / "images", tmp_path / "masks", tmp_path / "out")
    found = samples(tmp_path / "out/all")
    assert found.keys() == {"single"} | {f"well_A-{each}" for each in endings}, screen
    pages = image.reshape(-1, *SHAPE)
    for number, each in enumerate(endings):
        sample = found[f"well_A-{each}"]
        np.testing.assert_array_equal(sample.image, pages[number])
        np.testing.assert_array_equal(sample.mask, labels[number] > 0)
        told = sample.metadata
        assert told["group"] == "well_A"
        places = {part[0]: int(part[1:]) for part in each.split("-")}
        assert (told.get("frame"), told.get("position")) == (places.get("t"), places.get("p"))
        has_clock = kind in ("imagej time", "imagej both", "ome time")
        assert told["time"] == ((places["t"] - 1) * 0.5 if has_clock else None)
        assert told.get("pixel_size_um") == (0.5 if kind.startswith(("imagej", "ome")) else None)
    assert "frame" not in found["single"].metadata
    assert "position" not in found["single"].metadata


def test_a_page_that_is_damaged_costs_that_page(tmp_path):
    write_tiff(tmp_path / "images/a.tif", phase(3), photometric="minisblack", compression="zlib", metadata=None)
    write_tiff(
        tmp_path / "masks/a.tif", np.stack([LABELS] * 3).astype(np.float32), photometric="minisblack", metadata=None
    )
    with tifffile.TiffFile(tmp_path / "images/a.tif") as tiff:
        offset, count = tiff.pages[1].dataoffsets[0], tiff.pages[1].databytecounts[0]
    with open(tmp_path / "images/a.tif", "r+b") as file:
        file.seek(offset + count // 2)
        file.write(bytes(20))
    convert(tmp_path / "images", tmp_path / "masks", tmp_path / "out")
    assert samples(tmp_path / "out/all").keys() == {"a-p001", "a-p003"}
    (defect,) = json.loads((tmp_path / "out/audit.json").read_text())["defects"]
    assert (defect["kind"], defect["where"]) == ("unreadable-file", "a.tif (page 2)")
    assert "a.tif (page 2): the TIFF's pixels cannot be decoded" in defect["detail"]


def test_names_of_pages_and_files_do_not_collide(tmp_path):
    write_tiff(tmp_path / "images/a.tif", phase(2), photometric="minisblack")
    write_tiff(tmp_path / "masks/a.tif", np.stack([LABELS] * 2).astype(np.uint8), photometric="minisblack")
    for name in ("a-p001", "p/a", "b.c", "b_c"):
        write_png(tmp_path / f"images/{name}.tif.png", draw_image(1))
        write_png(tmp_path / f"images/{name}.png", draw_image(1))
        write_png(tmp_path / f"masks/{name}.png", LABELS.astype(np.uint8))
    convert(tmp_path / "images", tmp_path / "masks", tmp_path / "out")
    assert len(samples(tmp_path / "out/all")) == 6


@pytest.mark.parametrize(
    ("how", "shape", "words"),
    [
        (IMAGEJ | {"metadata": {"axes": "TCYX"}}, (2, 2), "2 channels; save the one to segment"),
        ({"metadata": {"axes": "CYX"}, "ome": True}, (2,), "2 channels; save the one to segment"),
        ({"metadata": {"axes": "CYX"}, "photometric": "minisblack"}, (2,), "2 channels; save the one to segment"),
    ],
)
def test_a_stack_of_channels_is_refused(tmp_path, how, shape, words):
    with pytest.raises(InputError, match=words):
        find_planes(write_tiff(tmp_path / "a.tif", phase(*shape), **how))


def test_a_stack_that_lists_fewer_pages_than_it_declares_is_refused(tmp_path):
    path = write_tiff(tmp_path / "a.tif", phase(4), imagej=True, metadata={"axes": "TYX"}, compression=None)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tag = tiff.pages[0].tags["ImageDescription"]
        tag.overwrite(tag.value.replace("images=4", "images=9").replace("frames=4", "frames=9"))
    with pytest.raises(InputError, match="ImageJ declares 9 planes, and the file lists 4"):
        find_planes(path)


@pytest.mark.parametrize(
    "description",
    [
        '<OME><Pixels SizeZ="0" SizeT="999999999" SizeC="1"/></OME>',
        "<OME>" + '<Pixels SizeZ="0" SizeT="9" SizeC="0"/>' * 3 + "</OME>",
        "ImageJ=1.54\nslices=-2\nframes=-2\nfinterval=-1\nunit=um\n",
        '{"shape": [0, 4], "axes": "TYXTYX"}',
        '{"shape": [4, 36, 48], "axes": 7}',
    ],
)
def test_metadata_that_make_no_sense_leave_pages_in_their_order(tmp_path, description):
    path = write_tiff(
        tmp_path / "a.tif",
        phase(4),
        photometric="minisblack",
        metadata=None,
        description=description,
        resolution=(2, 2),
    )
    assert [(plane.frame, plane.position) for plane in find_planes(path).planes] == [(None, n) for n in (1, 2, 3, 4)]
    assert find_planes(path).seconds is None


@pytest.mark.parametrize("seed", range(4))
def test_changed_bytes_are_an_input_error_or_a_picture(tmp_path, seed):
    """What the decoders of masks, of stacks' pages and of JPEG say of 60 damaged files each."""
    rng = random.Random(seed)
    files = [(tmp_path / f"m{number}{ending}", write) for number, (ending, write) in enumerate(MASKS.values())]
    files += [
        (tmp_path / f"i{number}.jpg", write)
        for number, (ending, write) in enumerate(IMAGES.values())
        if "j" in ending.lower()
    ]
    for path, write in files:
        write(path, LABELS if path.name.startswith("m") else draw_image(seed))
    for number, (shape, how, _) in enumerate(STACKS.values()):
        path = tmp_path / f"s{number}{'.ome' if 'TimeIncrement' in str(how) else ''}.tif"
        files.append((write_tiff(path, phase(*shape), **how), None))
    messages: list[str] = []
    for _ in range(60):
        path = rng.choice(files)[0]
        data = bytearray(path.read_bytes())
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(min(len(data), 400))] = rng.randrange(256)
        changed = tmp_path / f"changed{''.join(path.suffixes)}"
        changed.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        try:
            for page, plane in enumerate(find_planes(changed).planes[:2], 1):
                number = None if plane.directory is None else page
                found = decode_page(changed, str(changed), lambda _: None, plane.directory, number, path.name[0] == "m")
                assert found.pixels.size
        except InputError as error:
            messages.append(str(error))
    assert messages
    assert not [message for message in messages if "\n" in message or len(message) > 600]
