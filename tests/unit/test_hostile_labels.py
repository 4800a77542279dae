"""Files of labels that are damaged or made to harm: each costs one line, soon, and nothing of them is run."""

import io
import os
import pickle
import struct
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pytest
import roifile
import tifffile
from test_labelled_sources import HEIGHT, WIDTH, converted

from glioma_dist.data.convert import imagej_rois
from glioma_dist.data.convert.plain_pickle import as_array, read_npy_object
from glioma_dist.errors import InputError, one_line

IMAGE = f'<image name="a.png" width="{WIDTH}" height="{HEIGHT}">'
SQUARE = '<polygon label="cell" points="1,1;9,1;9,9;1,9"/>'


class Harm:
    """Pickled as a call that would leave a file behind."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def npy(content, protocol: int = 4) -> bytes:
    """What np.save writes of an object, at a protocol of pickle."""
    buffer = io.BytesIO()
    array = np.array(content, dtype=object)
    np.lib.format.write_array_header_1_0(buffer, np.lib.format.header_data_from_array_1_0(array))
    pickle.dump(array, buffer, protocol)
    return buffer.getvalue()


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), data)
    return buffer.getvalue()


def polygon() -> bytes:
    return roifile.ImagejRoi.frompoints(np.array([[2, 2], [9, 2], [9, 9], [2, 9]])).tobytes()


def with_coordinate(value: float) -> bytes:
    """A ROI with fractions of a pixel, one coordinate of which is `value`."""
    good = roifile.ImagejRoi.frompoints(np.array([[7.25, 2], [9, 2], [9, 9]], np.float32)).tobytes()
    return good.replace(struct.pack(">f", 7.25), struct.pack(">f", value))


def nested_tuples() -> bytes:
    """A key whose hash takes 2^64 steps: each tuple holds the one before twice."""
    parts = [pickle.PROTO, b"\x04", pickle.EMPTY_DICT, pickle.EMPTY_TUPLE]
    for _ in range(64):
        parts += [pickle.DUP, pickle.TUPLE2]
    return b"".join([*parts, pickle.NONE, pickle.SETITEM, pickle.STOP])


HARMED = Path(tempfile.gettempdir(), f"glioma-dist-harmed-{os.getpid()}")
"""What a program in a pickle would leave behind."""
HEAD = npy({})[: npy({}).index(b"\n") + 1]
MASKS = np.zeros((HEIGHT, WIDTH), np.uint16)
SEG = {
    "empty": b"",
    "cut short": npy({"masks": MASKS})[:-900],
    "no npy": b"PK\3\4" + bytes(99),
    "an array of numbers": HEAD.replace(b"|O", b"u1") + bytes(99),
    "a call": npy({"masks": Harm(str(HARMED))}),
    "nested keys": HEAD + nested_tuples(),
    "no masks": npy({"outlines": MASKS}),
    "masks of another size": npy({"masks": MASKS[1:]}),
    "a volume": npy({"masks": np.zeros((3, HEIGHT, WIDTH), np.uint16)}),
    "fractions": npy({"masks": MASKS + 0.5}),
    "below 0": npy({"masks": MASKS.astype(np.int32) - 1}),
    "objects in masks": npy({"masks": np.array([None, {}], object)}),
    "a memo far away": HEAD + b"\x80\x04}r\xff\xff\xff\x7f.",
    "a huge text": HEAD + b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "another object": npy([1, 2]),
}
ROIS = {
    "empty": b"",
    "cut short": zipped(a_roi=polygon())[:-30],
    "no ROI": zipped(a_roi=b"hello" * 30),
    "a bomb": zipped(a_roi=bytes(imagej_rois.MAX_ROI_BYTES + 1)),
    "a ROI cut short": zipped(a_roi=polygon()[:70]),
    "two slices": zipped(
        a_roi=roifile.ImagejRoi.frompoints([[2, 2], [9, 2], [9, 9]], position=1).tobytes(),
        b_roi=roifile.ImagejRoi.frompoints([[2, 2], [9, 2], [9, 9]], position=2).tobytes(),
    ),
    "no member": zipped(readme_txt=b"x"),
    "not a number": zipped(a_roi=with_coordinate(float("nan"))),
    "far away": zipped(a_roi=with_coordinate(1e30)),
}
XML = {
    "empty": "",
    "cut short": f"<annotations>{IMAGE}",
    "not UTF-8": f"<annotations>{IMAGE}\udcff</image></annotations>",
    "entities": '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]><annotations>&c;</annotations>',
    "an external entity": '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotations>&b;</annotations>',
    "a video": '<annotations><track id="0" label="cell"/></annotations>',
    "no image": "<annotations/>",
    "a name that leads out": f'<annotations><image name="../a.png">{SQUARE}</image></annotations>',
    "no points": f'<annotations>{IMAGE}<polygon label="c"/></image></annotations>',
    "no numbers": f'<annotations>{IMAGE}<polygon label="c" points="a,b;c,d;e,f"/></image></annotations>',
    "huge numbers": f'<annotations>{IMAGE}<polygon label="c" points="1e999,1;9,1;9,9"/></image></annotations>',
    "a huge ellipse": f'<annotations>{IMAGE}<ellipse cx="9" cy="9" rx="1e300" ry="9"/></image></annotations>',
    "a huge mask": f'<annotations>{IMAGE}<mask rle="1,{10**18}" left="0" top="0" width="{10**9}" height="{10**9}"/>'
    "</image></annotations>",
    "run lengths too short": f'<annotations>{IMAGE}<mask rle="1,2" left="0" top="0" width="3" height="3"/></image>'
    "</annotations>",
    "an unknown encoding": '<?xml version="1.0" encoding="klingon"?><annotations/>',
}


def refused(source: str, folder, out) -> str:
    """What is said of a source of one image that cannot be converted; its audit, where it got that far."""
    with pytest.raises(InputError) as caught:
        converted(source, folder, out)
    assert len(one_line(caught.value)) <= 500
    assert "\n" not in str(caught.value)
    told = (out / "audit.json").read_text() if (out / "audit.json").exists() else ""
    return str(caught.value) + told


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), np.uint8))
    return tmp_path / "in"


@pytest.mark.parametrize("fault", SEG)
def test_hostile_files_of_cellpose_are_one_line(fault, folder, tmp_path):
    (folder / "a_seg.npy").write_bytes(SEG[fault])
    refused("cellpose", folder, tmp_path / "out")
    assert not HARMED.exists()


@pytest.mark.parametrize("fault", ROIS)
def test_hostile_rois_are_one_line(fault, folder, tmp_path):
    (folder / "a.zip").write_bytes(ROIS[fault])
    refused("imagej", folder, tmp_path / "out")


@pytest.mark.parametrize("fault", XML)
def test_hostile_xml_is_one_line(fault, folder, tmp_path):
    (folder / "annotations.xml").write_bytes(XML[fault].encode("utf-8", "surrogateescape"))
    refused("cvat", folder, tmp_path / "out")


@pytest.mark.parametrize("fault", ["empty", "cut short", "fractions", "another size", "a volume", "a slice"])
def test_hostile_tracking_folders_are_one_line(fault, folder, tmp_path):
    (folder / "01").mkdir()
    (folder / "a.png").rename(folder / "01" / "t000.png")
    tifffile.imwrite(folder / "01" / "t000.tif", MASKS.astype(np.uint8))
    labels = folder / "01_GT" / "SEG" / ("man_seg_000_001.tif" if fault == "a slice" else "man_seg000.tif")
    labels.parent.mkdir(parents=True)
    values = {
        "fractions": MASKS + 0.5,
        "another size": MASKS[1:] + 1,
        "a volume": np.ones((5, HEIGHT, WIDTH), np.uint16),
    }
    tifffile.imwrite(labels, values.get(fault, MASKS + 1))
    if fault in ("empty", "cut short"):
        labels.write_bytes(labels.read_bytes()[: 0 if fault == "empty" else 200])
    refused("ctc", folder, tmp_path / "out")


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<i4", ">i8", "<f4", "?"])
def test_arrays_come_back_at_every_protocol(protocol, dtype):
    values = (np.arange(60).reshape(5, 12) % 7).astype(dtype)
    content = {"masks": values, "same": values, "columns": np.asfortranarray(values), "scalar": np.float64(2.5)}
    content |= {"list": [None, True, -3, 2**70, 1.5, "ä", b"x"], "n": 5, "nested": {"a": [values[0]]}}
    found = read_npy_object(io.BytesIO(npy(content, protocol)), "x")
    for name in ("masks", "same", "columns"):
        np.testing.assert_array_equal(as_array(found[name]), values)
    np.testing.assert_array_equal(as_array(found["nested"]["a"][0]), values[0])
    assert found["list"] == content["list"]
    assert (found["n"], found["scalar"]) == (5, 2.5)


@pytest.mark.parametrize("source", ["cellpose", "imagej"])
def test_labels_of_two_images_or_none_are_said(source, folder, tmp_path):
    name = "a_seg.npy" if source == "cellpose" else "a.zip"
    with pytest.raises(InputError, match="give the folder that holds them"):
        converted(source, folder, tmp_path / "out")
    (folder / name.replace("a", "b", 1)).write_bytes(b"")
    assert "no such file" in refused(source, folder, tmp_path / "out")
    (folder / name).write_bytes(b"")
    (folder / "a.tif").write_bytes(b"")
    assert "Keep one of them" in refused(source, folder, tmp_path / "out2")


def test_what_a_library_logs_of_a_file_does_not_reach_the_user(tmp_path, caplog):
    cut = bytearray(roifile.ImagejRoi.frompoints(np.array([[2, 2], [9, 2], [9, 9]]), name="x" * 20).tobytes())
    path = tmp_path / "a.roi"
    path.write_bytes(cut[:-4])  # the name goes on after the end
    roifile.ImagejRoi.fromfile(path)
    if not caplog.records:  # 2025.5
        pytest.skip(f"roifile {version('roifile')} logs nothing of such a file")
    assert [record.name for record in caplog.records] == ["roifile"]
    caplog.clear()
    assert len(imagej_rois.read_cells(path, 20, 20)) == 1
    assert caplog.records == []
    roifile.ImagejRoi.fromfile(path)
    assert len(caplog.records) == 1, "the library logs for others"
