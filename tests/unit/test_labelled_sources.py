"""Every source of labelled data: drawn cells written in its format come back pixel for pixel, and T98G, too."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import roifile
import tifffile
from data_helpers import expected_masks, real_data
from pycocotools import mask as coco_mask
from rich.console import Console
from test_convert import read_all

from glioma_dist.data.convert.cells import Rle, as_segmentation
from glioma_dist.data.convert.coco import CocoImage, load_coco
from glioma_dist.data.convert.conversion import convert
from glioma_dist.data.convert.cvat import find_cvat, load_cvat
from glioma_dist.data.convert.folder import convert_folder
from glioma_dist.data.convert.labelling import Labelling
from glioma_dist.registry import sources

HEIGHT, WIDTH = 40, 56
POLYGONS = [
    [[3.0, 4.0, 20.35, 6.1, 18.7, 17.93, 6.05, 15.5]],
    [[30.5, 2.25, 50.7, 3.1, 55.95, 12.3, 41.33, 20.1, 31.1, 14.7]],
    [[5.1, 22.3, 14.9, 24.7, 9.3, 38.9], [17.7, 25.3, 28.1, 26.5, 22.9, 37.7]],
    [[40.1, 25.7, 54.3, 27.9, 50.7, 39.3, 38.9, 35.1]],
]


def pixels_of(cell, height: int, width: int) -> np.ndarray:
    """A cell by pycocotools alone, bool (H, W)."""
    if isinstance(cell, Rle):
        return (
            coco_mask.decode(
                coco_mask.frPyObjects(
                    {"size": [height, width], "counts": cell.counts.astype(int).tolist()}, height, width
                )
            )
            > 0
        )
    parts = [part.tolist() for part in cell if part.size >= 6]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, height, width))) > 0


def label_image(image: CocoImage, height: int, width: int) -> np.ndarray:
    """A number for each cell, uint16; where cells overlap, that of the later one. The union is that of the cells."""
    labels = np.zeros((height, width), np.uint16)
    for number, cell in enumerate(image.cells, 1):
        labels[pixels_of(cell, height, width)] = number
    return labels


def write_folder(folder: Path, image: CocoImage, pixels: np.ndarray) -> None:
    cv2.imwrite(str(folder / f"{image.file_name}_labels.png"), label_image(image, *pixels.shape))


def write_alpha(folder: Path, image: CocoImage, pixels: np.ndarray) -> None:
    mask = (label_image(image, *pixels.shape) > 0) * np.uint8(255)
    cv2.imwrite(str(folder / f"{image.file_name}.png"), np.dstack([pixels] * 3 + [mask]))


def write_cvat(folder: Path, image: CocoImage, pixels: np.ndarray) -> None:
    height, width = pixels.shape
    path = folder / "annotations.xml"
    lines = path.read_text().splitlines()[:-1] if path.exists() else ["<annotations><version>1.1</version>"]
    lines.append(f'<image id="0" name="{image.file_name}.png" width="{width}" height="{height}">')
    for cell in image.cells:
        if isinstance(cell, Rle):
            found = pixels_of(cell, height, width)
            rows, columns = (np.flatnonzero(found.any(axis)) for axis in (1, 0))
            top, left = rows[0], columns[0]
            box = found[top : rows[-1] + 1, left : columns[-1] + 1]
            edges = np.flatnonzero(np.diff(box.ravel().astype(int), prepend=0)).tolist()
            counts = np.diff([0, *edges, box.size])
            lines.append(
                f'<mask label="cell" left="{left}" top="{top}" width="{box.shape[1]}" height="{box.shape[0]}" '
                f'rle="{", ".join(map(str, counts))}"/>'
            )
            continue
        for part in cell:
            points = ";".join(f"{x!r},{y!r}" for x, y in part.reshape(-1, 2).tolist())
            lines.append(f'<polygon label="cell" points="{points}"/>')
    path.write_text(
        "\n".join([*lines, "</image>", "</annotations>"]).replace(
            "</image>\n</annotations>", "</image>\n</annotations>"
        )
    )


def write_imagej(folder: Path, image: CocoImage, pixels: np.ndarray) -> None:
    """Polygons with fractions of a pixel, and what is no polygon as the outlines that predict writes."""
    from glioma_dist.inference.components import Components
    from glioma_dist.inference.outlines import outlines
    from glioma_dist.inference.writers.imagej import _roi

    height, width = pixels.shape
    with zipfile.ZipFile(folder / f"{image.file_name}_RoiSet.zip", "w") as archive:
        number = 0
        for cell in image.cells:
            rois = []
            if isinstance(cell, Rle):
                found = pixels_of(cell, height, width)
                rows = lambda start, stop, found=found: found[start:stop]  # noqa: E731
                rois = [_roi("cell", each) for each in outlines(rows, Components(rows, height, width))]
            else:
                for part in cell:
                    roi = roifile.ImagejRoi.frompoints(part.reshape(-1, 2).astype(np.float32))
                    roi.roitype = roifile.ROI_TYPE.FREEHAND
                    rois.append(roi)
            for roi in rois:
                number += 1
                archive.writestr(f"{number:04d}.roi", roi.tobytes())


def write_cellpose(folder: Path, image: CocoImage, pixels: np.ndarray) -> None:
    """What Cellpose's io.masks_flows_to_seg saves."""
    masks = label_image(image, *pixels.shape)
    content = {
        **{"outlines": masks * 0, "masks": masks, "chan_choose": [0, 0], "ismanual": np.zeros(masks.max(), bool)},
        **{"filename": f"C:\\plates\\{image.file_name}.png", "flows": [pixels, None, np.zeros((2, 3), np.float32)]},
        **{"diameter": np.float64(30.5), "est_diam": 17.3, "zdraw": [None] * int(masks.max()), "model_path": 0},
    }
    np.save(folder / f"{image.file_name}_seg.npy", content)


def write_ctc(folder: Path, image: CocoImage, pixels: np.ndarray, kind: str = "GT") -> None:
    number = len(list((folder / "01").glob("*.tif"))) if (folder / "01").exists() else 0
    labels = label_image(image, *pixels.shape)
    for name, values in ((f"01/t{number:03d}", pixels), (f"01_{kind}/SEG/man_seg{number:03d}", labels)):
        path = folder / f"{name}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, values, compression="zlib")


def write_silver(folder: Path, image: CocoImage, pixels: np.ndarray) -> None:
    write_ctc(folder, image, pixels, "ST")


WRITERS = {
    **{"folder": write_folder, "alpha": write_alpha, "cvat": write_cvat, "imagej": write_imagej},
    **{"cellpose": write_cellpose, "ctc": write_ctc, "ctc-silver": write_silver},
}
"""Name of a source, or a way of convert folder -> a function that writes an image's labels in its format."""
PUBLISHED = ("livecell", "glioma-c6")
"""Sources with a layout of one publisher, which test_sources.py and test_convert.py read."""


def test_every_source_is_written_here():
    assert {*WRITERS} - {"folder", "alpha"} == {*sources.names()} - {*PUBLISHED}


def converted(name: str, folder: Path, out: Path) -> dict[str, np.ndarray]:
    """Masks by the images' names, without endings. The screen must not say that nothing is a cell."""
    quiet = Console(file=io.StringIO())
    if name in ("folder", "alpha"):
        convert_folder(folder, folder, out, "d", console=quiet, from_alpha=name == "alpha")
    else:
        convert(sources.load(name)(folder, None), out, "d", console=quiet)
    assert "taken as cells: nothing" not in quiet.file.getvalue()
    return {Path(each.metadata["file_name"]).stem: each.mask for each in read_all(out / "all").values()}


def laid_out(name: str, folder: Path, images: list[tuple[CocoImage, np.ndarray]]) -> dict[str, str]:
    """Write images and labels; returns each image's name in the source by its own."""
    names = {}
    for number, (image, pixels) in enumerate(images):
        plain = Path(image.file_name).stem.replace(" ", "_")
        if not name.startswith("ctc") and name != "alpha":
            cv2.imwrite(str(folder / f"{plain}.png"), pixels)
        WRITERS[name](folder, replace(image, file_name=plain), pixels)
        names[image.file_name] = f"t{number:03d}" if name.startswith("ctc") else plain
    return names


@pytest.fixture
def drawn():
    return two_images()


def two_images() -> list[tuple[CocoImage, np.ndarray]]:
    """Two images, of polygons with fractions of a pixel and of a painted cell with a hole."""
    generator = np.random.default_rng(0)
    painted = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(painted, (40, 20), (13, 9), 20, 0, 360, 1, -1)
    cv2.circle(painted, (41, 21), 3, 0, -1)
    runs = coco_mask.encode(np.asfortranarray(painted))
    flat = painted.T.ravel().astype(int)
    counts = np.diff([0, *np.flatnonzero(np.diff(flat, prepend=0)), flat.size])
    assert np.array_equal(coco_mask.decode(runs), painted)
    cells = [as_segmentation(each) for each in POLYGONS]
    second = [cells[0], Rle((HEIGHT, WIDTH), counts)]
    return [
        (CocoImage(name, [(WIDTH, HEIGHT)], list(each)), generator.integers(0, 256, (HEIGHT, WIDTH), np.uint8))
        for name, each in (("a.png", cells), ("b.png", second))
    ]


@pytest.mark.parametrize("name", WRITERS)
def test_drawn_cells_come_back(name, drawn, tmp_path):
    (tmp_path / "source").mkdir()
    names = laid_out(name, tmp_path / "source", drawn)
    found = converted(name, tmp_path / "source", tmp_path / "out")
    assert found.keys() == set(names.values())
    for image, pixels in drawn:
        wanted = label_image(image, *pixels.shape) > 0
        np.testing.assert_array_equal(found[names[image.file_name]], wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_t98g_comes_back_through_every_source(name, tmp_path):
    root = real_data("t98g")
    path = root / "annotations" / "instances_default.json"
    coco = load_coco(path)
    images = [
        (image, cv2.imread(str(root / "images" / "default" / Path(image.file_name).name), 0)) for image in coco.images
    ]
    (tmp_path / "source").mkdir()
    names = laid_out(name, tmp_path / "source", images)
    found = converted(name, tmp_path / "source", tmp_path / "out")
    wanted = expected_masks(path)
    assert len(found) == len(wanted) == 30
    for file_name, mask in wanted.items():
        np.testing.assert_array_equal(found[names[file_name]], mask, err_msg=file_name)


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("folder", "alpha")])
def test_each_cell_gets_a_number_of_its_own(name, drawn, tmp_path):
    """--instances: cells that do not overlap have the pixels that they were drawn with, and their number."""
    (tmp_path / "source").mkdir()
    laid_out(name, tmp_path / "source", drawn[:1])
    labelling = Labelling(instances=True)
    quiet = Console(file=io.StringIO())
    convert(sources.load(name)(tmp_path / "source", None), tmp_path / "out", "d", console=quiet, labelling=labelling)
    (sample,) = read_all(tmp_path / "out" / "all").values()
    image = drawn[0][0]
    parts = [[part] for cell in image.cells for part in cell] if name in ("cvat", "imagej") else image.cells
    wanted = {pixels_of(part, HEIGHT, WIDTH).tobytes() for part in parts}
    found = {(sample.instances == number).tobytes() for number in range(1, int(sample.instances.max()) + 1)}
    assert found == wanted


def test_shapes_of_cvat_and_imagej_that_are_no_polygons(tmp_path):
    """Ellipses and rectangles by their formulas in fp64; lines and boxes of CVAT enclose nothing."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    wanted = ((x - 20) / 10.5) ** 2 + ((y - 14) / 6) ** 2 < 1
    pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH), np.uint8)
    for source in ("cvat", "imagej"):
        (tmp_path / source).mkdir()
        cv2.imwrite(str(tmp_path / source / "a.png"), pixels)
    (tmp_path / "cvat" / "annotations.xml").write_text(
        f'<annotations><image name="a.png" width="{WIDTH}" height="{HEIGHT}"><ellipse label="c" cx="20" cy="14" rx="6" '
        'ry="10.5" rotation="90"/><box label="c" xtl="1" ytl="1" xbr="50" ybr="30"/><polyline label="c" '
        'points="1,1;40,30"/></image></annotations>'
    )
    oval = roifile.ImagejRoi(roitype=roifile.ROI_TYPE.OVAL)
    oval.left, oval.top, oval.right, oval.bottom = 9, 8, 31, 20
    line = roifile.ImagejRoi.frompoints([[1, 1], [40, 30]])
    line.roitype = roifile.ROI_TYPE.POLYLINE
    with zipfile.ZipFile(tmp_path / "imagej" / "RoiSet.zip", "w") as archive:
        archive.writestr("1.roi", oval.tobytes())
        archive.writestr("2.roi", line.tobytes())
    (tmp_path / "imagej" / "RoiSet.zip").rename(tmp_path / "imagej" / "a_RoiSet.zip")
    np.testing.assert_array_equal(converted("cvat", tmp_path / "cvat", tmp_path / "o1")["a"], wanted)
    wanted = ((x - 20) / 11) ** 2 + ((y - 14) / 6) ** 2 < 1
    np.testing.assert_array_equal(converted("imagej", tmp_path / "imagej", tmp_path / "o2")["a"], wanted)


def test_classes_and_ignored_labels_of_cvat(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((HEIGHT, WIDTH), np.uint8))
    shapes = [("live", 2, 2, 9), ("dead", 20, 2, 9), ("blurred", 2, 20, 9), ("background", 40, 20, 9)]
    lines = [
        f'<polygon label="{label}" points="{x},{y};{x + s},{y};{x + s},{y + s};{x},{y + s}"/>'
        for label, x, y, s in shapes
    ]
    head = f'<annotations><image name="a.png" width="{WIDTH}" height="{HEIGHT}">'
    (tmp_path / "annotations.xml").write_text(f"{head}{''.join(lines)}</image></annotations>")
    labelling = Labelling(("live", "dead"), ignored=("blurred",))
    quiet = Console(file=io.StringIO())
    convert(find_cvat(tmp_path), tmp_path / "out", "d", console=quiet, labelling=labelling)
    (sample,) = read_all(tmp_path / "out" / "all").values()
    wanted = np.zeros((HEIGHT, WIDTH), np.uint8)
    for (_, x, y, s), number in zip(shapes, (1, 2, 255, 0), strict=True):
        wanted[y : y + s, x : x + s] = number
    np.testing.assert_array_equal(sample.mask, wanted)


def test_frames_have_a_group_and_a_time(drawn, tmp_path):
    for image, pixels in drawn:
        write_ctc(tmp_path, image, pixels)
    quiet = Console(file=io.StringIO())
    convert(sources.load("ctc")(tmp_path, None), tmp_path / "out", "d", console=quiet, frame_minutes=30)
    found = sorted(
        (each.metadata["frame"], each.metadata["time"]) for each in read_all(tmp_path / "out" / "all").values()
    )
    assert found == [(1, 0.0), (2, 0.5)]
    assert {each.metadata["group"] for each in read_all(tmp_path / "out" / "all").values()} == {"01"}


def test_a_frame_with_cells_that_have_only_a_marker_is_left_out(drawn, tmp_path):
    for image, pixels in drawn:
        write_ctc(tmp_path, image, pixels)
    for number in range(2):
        markers = np.zeros((HEIGHT, WIDTH), np.uint16)
        markers[8, 10] = 1  # within the first cell
        markers[0, 0] = 2 * number
        (tmp_path / "01_GT" / "TRA").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "01_GT" / "TRA" / f"man_track{number:03d}.tif", markers)
    assert converted("ctc", tmp_path, tmp_path / "out").keys() == {"t000"}
    assert "1 cells have a marker in TRA and no outline" in (tmp_path / "out" / "audit.json").read_text()


@pytest.mark.parametrize("degrees", [0, 30, 75, 120, 330])
def test_ellipses_of_cvat_turn_clockwise(tmp_path, degrees):
    """As OpenCV draws them, whose angles are clockwise where y points down, but for pixels at the edge."""
    path = tmp_path / "annotations.xml"
    path.write_text(
        f'<annotations><image name="a.png" width="{WIDTH}" height="{HEIGHT}"><ellipse label="c" cx="28.5" cy="20.5" '
        f'rx="16" ry="5" rotation="{degrees}"/></image></annotations>'
    )
    (image,) = load_cvat(path).images
    (cell,) = image.cells_in(HEIGHT, WIDTH)
    drawn = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(drawn, (28, 20), (16, 5), degrees, 0, 360, 1, -1)
    edge = cv2.dilate(drawn, np.ones((3, 3))) != cv2.erode(drawn, np.ones((3, 3)))
    np.testing.assert_array_equal(pixels_of(cell, HEIGHT, WIDTH)[~edge], drawn[~edge] > 0)
