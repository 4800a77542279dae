"""The demo's drawn data: same bytes for a seed, the published layouts, outlines that are what was painted."""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from pycocotools import mask as coco_mask

from glioma_dist.cli.arguments import parse
from glioma_dist.cli.demo import DEMO
from glioma_dist.demo import drawing
from glioma_dist.errors import InputError

FEW = ("--livecell", "2", "1", "1", "--glioma", "2", "1", "1")


def draw(out: Path, *flags: str) -> Path:
    """Draws as the command line would. Returns the folder of the drawn data."""
    config = parse(DEMO.config, ["--draw-only", "--out", str(out.parent), *(flags or FEW)])
    drawing.draw_sets(out, config.seed, config.livecell, config.glioma)
    return out


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A few images of each set."""
    return draw(tmp_path_factory.mktemp("demo") / "source")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file, by its path inside `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def coco_files(source: Path) -> list[tuple[dict, Path]]:
    """Each COCO file with the folder of its images."""
    livecell, spec = source / "livecell", source / "glioma_c6" / "dataset" / "spec"
    images = livecell / "images"
    found = [
        (livecell / f"livecell_coco_{part}.json", images / "livecell_train_val_images") for part in ("train", "val")
    ]
    found.append((livecell / "livecell_coco_test.json", images / "livecell_test_images"))
    found += [(spec / part / f"anno_{part}.json", spec / part / "images") for part in ("train", "valid", "test")]
    return [(json.loads(path.read_text()), folder) for path, folder in found]


def rasterise(annotations: list[dict], image: dict) -> np.ndarray:
    """(height, width) bool: the union of the annotations, over the whole image."""
    size = image["height"], image["width"]
    runs = [run for one in annotations for run in coco_mask.frPyObjects(one["segmentation"], *size)]
    return coco_mask.decode(coco_mask.merge(runs)).astype(bool)


def test_same_seed_same_bytes_and_more_images_change_none(source, tmp_path):
    again = digests(draw(tmp_path / "again"))
    assert again == digests(source)
    other = digests(draw(tmp_path / "other", *FEW, "--seed", "1"))
    assert all(other[name] != again[name] for name in again)
    more = digests(draw(tmp_path / "more", "--livecell", "3", "1", "1", "--glioma", "3", "1", "1"))
    images = [name for name in again if name.endswith(".tif")]
    assert len(images) == 8
    assert all(more[name] == again[name] for name in images)


def test_published_layouts(source):
    files = coco_files(source)
    listed = {
        str((folder / image["file_name"]).relative_to(source)) for coco, folder in files for image in coco["images"]
    }
    assert listed == {name for name in digests(source) if name.endswith(".tif")}
    assert [len(coco["images"]) for coco, _ in files] == [2, 1, 1] * 2
    ids = [image["id"] for coco, _ in files[:3] for image in coco["images"]]
    assert len(set(ids)) == len(ids)
    assert (source / "livecell/images/livecell_train_val_images/A172_Phase_A7_1_00d00h00m_1.tif").is_file()
    for coco, folder in files:
        shape = (260, 352) if "livecell" in str(folder) else (486, 648, 3)
        for image in coco["images"]:
            pixels = tifffile.imread(folder / image["file_name"])
            assert pixels.dtype == np.uint8
            assert pixels.shape == shape
            assert (image["height"], image["width"]) == shape[:2]
    kinds = {(one["name"], one["supercategory"]) for one in files[3][0]["categories"]}
    assert kinds == {("Type A", "cell"), ("Type B", "cell"), ("soma", "cell_part")}


def test_outlines_lie_inside_and_describe_what_is_seen(source):
    for coco, folder in coco_files(source):
        for image in coco["images"]:
            own = [one for one in coco["annotations"] if one["image_id"] == image["id"]]
            cells = [one for one in own if one["category_id"] != 3]
            parts = [one for one in own if one["category_id"] == 3]
            assert len(cells) >= 5
            assert all(len(one["segmentation"]) == 1 for one in own)
            points = np.concatenate([one["segmentation"][0] for one in own]).reshape(-1, 2)
            assert points.min() >= 0
            assert np.all(points <= (image["width"], image["height"]))
            union = rasterise(cells, image)
            assert 0.03 < union.mean() < 0.6
            outside = sum(np.sum(rasterise([part], image) & ~union) for part in parts)
            assert outside <= len(parts)  # rasterising may differ from the outline by a pixel
            grey = tifffile.imread(folder / image["file_name"]).reshape(*union.shape, -1)[..., 0].astype(np.float32)
            texture = np.abs(grey - cv2.GaussianBlur(grey, (0, 0), 3))
            far = cv2.dilate(union.astype(np.uint8), np.ones((15, 15))) == 0
            assert texture[union].mean() > 2.5 * texture[far].mean()


def test_painted_pixels_are_the_outlines_pixels():
    rng = np.random.default_rng(3)
    image = {"height": drawing.GLIOMA.height, "width": drawing.GLIOMA.width}
    cells = [cell for cell in drawing.place_cells(rng, drawing.GLIOMA, age=1.0) if not cell.rounded]
    differing = 0
    for cell in cells:
        sheet, fine = np.zeros((2, image["height"], image["width"]), np.float32)
        drawing.paint_spread_cell(rng, drawing.GLIOMA, cell, sheet, fine)
        mask = rasterise([{"segmentation": [cell.outline.ravel().tolist()]}], image)
        differing += np.sum((sheet > 0) != mask)
        filled = np.zeros(sheet.shape, np.uint8)
        cv2.fillPoly(filled, [np.round((cell.outline - 0.5) * 16).astype(np.int32)], 1, shift=4)
        rim = cv2.dilate(filled, np.ones((3, 3))) - cv2.erode(filled, np.ones((3, 3)))
        # Another filler differs at the rim's pixels, and at the tips of processes.
        assert np.sum((mask != (filled > 0)) & (rim == 0)) <= 3
    assert len(cells) > 30
    assert differing == 0


def test_says_that_it_is_drawn(tmp_path, capsys):
    out = draw(tmp_path / "new")
    assert "drawn, not photographed" in capsys.readouterr().out.splitlines()[-1]
    readme = (out / "README.txt").read_text()
    assert "drawn, not photographed" in readme.splitlines()[0]
    assert "Seed: 0" in readme


def test_replaces_its_own_work_only(source, tmp_path):
    out = draw(tmp_path / "out", "--livecell", "3", "1", "1", "--glioma", "2", "1", "1")
    assert digests(draw(out)) == digests(source)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "README.txt").write_text("my microscope\n")
    for refused in (foreign, foreign / "README.txt"):
        with pytest.raises(InputError, match="not made by the demo") as caught:
            draw(refused)
        assert "\n" not in str(caught.value)
    assert digests(foreign).keys() == {"README.txt"}


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (("--seed", str(2**64)), "18446744073709551616: give a whole number"),
        (("--seed", "-1"), "from 0 to"),
        (("--livecell", "0", "1", "1"), "1 image or more"),
    ],
)
def test_refuses_what_cannot_be_drawn(tmp_path, flags, fragment):
    with pytest.raises(InputError, match=fragment):
        draw(tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()
