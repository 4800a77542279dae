"""Draw the small data sets that the demo works on: phase-contrast cells, drawn, not photographed.

`livecell/` (grey) and `glioma_c6/` (RGB) come in the published layouts, for the converters to take them like
the real sets. The outline in the JSON is the one painted. A cell is a sheet of optical thickness; phase
contrast shows thickness dark and throws the light it takes around it, the bright halo. Each picture has its
own generator, seeded by (seed, set, split, number): how many are drawn changes none of them.
"""

import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy import ndarray
from numpy.random import Generator
from pycocotools import mask as coco_mask

from glioma_dist.errors import InputError
from glioma_dist.files import make_folder, write_atomically, write_json_atomically

README_TITLE = "Demo data of glioma-dist: drawn, not photographed"
README = f"""{README_TITLE}

Made by glioma-dist demo. No microscope, no culture, no cell line: names and folders follow LIVECell
and Glioma C6 so that the converters run as on the real data. Scores on these pictures say that the toolkit
works, and nothing about biology. Polygons are the outlines that were painted, and overlap where cells do.
Bright dots with a dark rim, dark specks and shreds are debris. In glioma_c6, Type A are spread cells, Type B
rounded ones, soma (a part, no whole cell) the bodies of a few Type A cells. Seed: """


@dataclass(frozen=True)
class Look:
    """One microscope with its camera and culture: what a data set looks like. Greys are of 0 to 255."""

    width: int
    height: int
    gain: float  # greys that a thickness of one takes away
    rim_px: float  # sigma of the thin bright rim, and of the dark line within
    shading: float  # greys between the brightest and the darkest end of the illumination, about
    noise: float  # sigma of the camera's noise, in greys
    grain: float  # texture of the cytoplasm, in thickness
    half_length_px: float  # of a usual cell's body
    num_cells: tuple[int, int]  # in the youngest and in the oldest culture
    num_debris: int


LIVECELL = Look(352, 260, 14, 0.9, 4, 1.4, 1.3, 19, (12, 38), 9)
GLIOMA = Look(648, 486, 23, 1.5, 26, 2.2, 0.7, 27, (24, 58), 60)


@dataclass(frozen=True)
class Cell:
    """One drawn cell. `outline` and `soma` are (points, 2), x and y in COCO's pixels, inside the image."""

    outline: ndarray
    soma: ndarray
    centre: ndarray
    rounded: bool
    contrast: float

    def window(self, margin_px: int) -> tuple[slice, slice]:
        """Rows and columns of the image around the cell."""
        left, top = np.maximum(self.outline.min(0).astype(int) - margin_px, 0)
        right, bottom = self.outline.max(0).astype(int) + margin_px + 1
        return slice(top, bottom), slice(left, right)


def close_outline(points: ndarray, look: Look) -> ndarray:
    """A point about every 1.2 px along the closed curve `points` (N, 2), cut just within the image."""
    loop = np.vstack([points, points[:1]])
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(loop, axis=0).T))])
    steps = np.linspace(0, along[-1], max(8, int(along[-1] / 1.2)), endpoint=False)
    dense = np.stack([np.interp(steps, along, loop[:, axis]) for axis in (0, 1)], axis=1)
    return np.round(np.clip(dense, 0, (look.width - 0.05, look.height - 0.05)), 2)


def draw_shape(rng: Generator, look: Look, rounded: bool) -> list[ndarray]:
    """Outlines of a cell and of its soma around (0, 0), each (360, 2): a ruffled ellipse with processes.

    A process is a peak of the radius over the angle; a glioma cell has one at each pole and a few more. No
    radius over the angle crosses itself, nor does its bent copy: every outline is a simple polygon.
    """
    angle = np.linspace(-np.pi, np.pi, 360, endpoint=False)
    length = look.half_length_px * (rng.uniform(0.3, 0.5) if rounded else rng.uniform(0.65, 1.2))
    width = length * (rng.uniform(0.85, 1.0) if rounded else rng.uniform(0.26, 0.7))
    order = np.arange(2, 24)[:, None]
    waves = np.cos(order * angle + rng.uniform(0, 2 * np.pi, order.shape))
    ruffles = (rng.normal(0, 0.05 if rounded else 0.2, order.shape) / order**1.2 * waves).sum(0)
    body = np.maximum((1 + ruffles) / np.hypot(np.cos(angle) / length, np.sin(angle) / width), 0.22 * length)
    reach = np.zeros_like(angle)
    if not rounded:
        for direction in [*rng.normal((0, np.pi), 0.25), *rng.uniform(-np.pi, np.pi, rng.integers(0, 5))]:
            turn = np.abs((angle - direction + np.pi) % (2 * np.pi) - np.pi)
            process = np.exp(-((turn / rng.uniform(0.1, 0.32)) ** rng.uniform(0.9, 1.6)))
            reach = np.maximum(reach, length * rng.uniform(0.2, 1.2) * process)
    bend, twist = rng.normal(0, 0 if rounded else 0.2, 2)
    turned = length * np.exp(1j * rng.uniform(0, 2 * np.pi))
    outlines = []
    for radius in (body + reach, body * 0.62):
        point = radius / length * np.exp(1j * angle)  # x + iy
        point = turned * (point + 1j * (bend * point.real**2 + 0.5 * twist * point.real**3))
        outlines.append(np.stack([point.real, point.imag], axis=1))
    return outlines


def place_cells(rng: Generator, look: Look, age: float) -> list[Cell]:
    """A culture, aged from 0 (just seeded) to 1 (dense). Half of its cells touch or overlap another."""
    cells: list[Cell] = []
    size, reach = np.array([look.width, look.height]), look.half_length_px
    for _ in range(round(np.interp(age, (0, 1), look.num_cells) + rng.uniform(-3, 3))):
        rounded = bool(rng.random() < 0.12)
        shape = draw_shape(rng, look, rounded)
        for _ in range(20):
            centre = rng.uniform(0, size)
            if cells and rng.random() < 0.5:
                turn = rng.uniform(0, 2 * np.pi)
                away = reach * rng.uniform(1.1, 2.0) * np.array([np.cos(turn), np.sin(turn)])
                centre = cells[rng.integers(len(cells))].centre + away
            nearest = min((float(np.hypot(*(centre - cell.centre))) for cell in cells), default=np.inf)
            if nearest > 1.05 * reach and np.all((centre > 0) & (centre < size)):
                outline, soma = (close_outline(points + centre, look) for points in shape)
                if cv2.contourArea(np.float32(outline)) >= 40:  # of less the border leaves nothing to see
                    cells.append(Cell(outline, soma, centre, rounded, contrast=rng.uniform(0.5, 1.2)))
                break
    return cells


def cell_mask(outline: ndarray, look: Look) -> ndarray:
    """(height, width) uint8, 1 inside the outline: by pycocotools, so each pixel is the converters' own."""
    return coco_mask.decode(coco_mask.frPyObjects([outline.ravel().tolist()], look.height, look.width)[0])


def soft(layer: ndarray, sigma_px: float) -> ndarray:
    """`layer` out of focus."""
    return cv2.GaussianBlur(layer, (0, 0), sigma_px)


def dots(rng: Generator, layer: ndarray, where: ndarray, radius_px: tuple[float, float]) -> ndarray:
    """Float32 like `layer` (height, width), from 0 to 1: a disc at each of `where` (dots, 2), as x and y."""
    discs = np.zeros(layer.shape, np.uint8)
    for centre in where:
        at, radius = np.round(16 * centre).astype(int).tolist(), round(16 * rng.uniform(*radius_px))
        cv2.circle(discs, at, radius, 255, cv2.FILLED, cv2.LINE_AA, shift=4)
    return soft(discs.astype(np.float32) / 255, 0.6)


def paint_spread_cell(rng: Generator, look: Look, cell: Cell, sheet: ndarray, fine: ndarray) -> None:
    """Add a flat, attached cell: thickness to `sheet`; nucleus, granules and vacuoles to `fine`.

    Where cells overlap the thicker one is seen, and a part of the other.
    """
    window = cell.window(0)
    mask = cell_mask(cell.outline, look)[window]
    depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    thickness = cell.contrast * mask * (1 - 0.25 * np.exp(-depth / (0.15 * look.half_length_px)))
    middle, length = cell.centre - (window[1].start, window[0].start), look.half_length_px
    nucleoli, granules, vacuoles = (
        middle + rng.normal(0, spread * length, (max(0, rng.integers(fewest, most)), 2))
        for spread, fewest, most in ((0.1, 1, 4), (0.3, 2, 14), (0.25, -12, 7))
    )
    nucleus = cell_mask(cell.centre + 0.8 * (cell.soma - cell.centre), look)[window].astype(np.float32)
    inner = 2.2 * dots(rng, mask, nucleoli, (0.8, 1.8)) - rng.uniform(0.1, 0.7) * soft(nucleus, 0.8)
    inner += 2.0 * dots(rng, mask, granules, (0.5, 1.2)) - 4.5 * dots(rng, mask, vacuoles, (0.7, 1.6))
    fine[window] += cell.contrast * mask * inner
    sheet[window] = np.maximum(sheet[window], thickness) + 0.35 * np.minimum(sheet[window], thickness)


def paint_rounded_cell(rng: Generator, look: Look, cell: Cell, glow: ndarray, grain: ndarray) -> None:
    """Add a rounded cell (dividing, dying) to `glow`: too thick to be dark, a lens with a bright ring."""
    window = cell.window(14)
    mask = cell_mask(cell.outline, look)[window]
    inside = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    outside = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
    height = inside / max(float(inside.max()), 1.0)
    ring = np.exp(-(((height - rng.uniform(0.15, 0.45)) / rng.uniform(0.2, 0.4)) ** 2))
    core = np.clip(height - 0.5, 0, 1) * rng.uniform(-20, 260)
    glow[window] += mask * (cell.contrast * 95 * ring - core + rng.uniform(3, 14) * grain[window])
    glow[window] += (1 - mask) * (45 * np.exp(-outside / 1.8) - 24 * np.exp(-(((outside - 4) / 2) ** 2)))


def paint_debris(rng: Generator, look: Look, fine: ndarray, glow: ndarray) -> None:
    """Add what is no cell and is not labelled: bright dots with a dark rim, dark specks, worm-like shreds."""
    places = rng.uniform(0, (look.width, look.height), (look.num_debris, 2))
    bright, dark, shreds = np.array_split(places, [look.num_debris // 4, look.num_debris // 2])
    spots = dots(rng, glow, bright, (0.8, 2.8))
    glow += 95 * spots - 70 * soft(spots, 2.2)
    fine += 2.5 * dots(rng, glow, dark, (0.6, 1.6))
    worms = np.zeros_like(glow)
    for start in shreds:
        walk = start + np.cumsum(rng.normal(0, 2.0, (rng.integers(2, 9), 2)), axis=0)
        cv2.polylines(worms, [np.round(walk).astype(np.int32)], False, float(rng.uniform(0.4, 1.0)), 2)
    fine += 4 * (soft(worms, 0.6) - soft(worms, 2.0))


def draw_image(rng: Generator, look: Look, cells: list[Cell], rgb: bool) -> ndarray:
    """(height, width[, 3]) uint8: uneven light, debris and cells in phase contrast, noise, in RGB a tint."""
    sheet, fine, glow = np.zeros((3, look.height, look.width), np.float32)
    noise = rng.standard_normal(sheet.shape, dtype=np.float32)
    grain = 3.1 * (soft(noise, 0.8) - soft(noise, 3.0))  # of spread one, about
    for cell in cells:
        if cell.rounded:
            paint_rounded_cell(rng, look, cell, glow, grain)
        else:
            paint_spread_cell(rng, look, cell, sheet, fine)
    fine += look.grain * grain * np.minimum(sheet, 1)
    paint_debris(rng, look, fine, glow)
    sheet = soft(sheet, 0.5)
    rim, halo = sheet - soft(sheet, look.rim_px), sheet - soft(sheet, 8 * look.rim_px)
    y, x = np.mgrid[-1 : 1 : look.height * 1j, -1 : 1 : look.width * 1j].astype(np.float32)
    slope_x, slope_y, vignette = rng.uniform((-0.3, -0.3, 0), 0.3).astype(np.float32)
    dish = 127 + look.shading * (slope_x * x + slope_y * y - vignette * (x**2 + y**2 - 0.66))
    image = dish - look.gain * (0.25 * sheet + 8 * rim + 0.75 * halo + soft(fine, 0.5)) + soft(glow, 0.6)
    if rgb:
        image = image[..., None] * (1 + rng.normal(0, 0.008, 3).astype(np.float32))
    image = image + look.noise * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def draw_split(look: Look, folder: Path, file: Path, names: list[str], seeds: tuple[int, int, int]) -> None:
    """Draw one split: images `names` in `folder`, COCO `file`. Six make a time lapse, from young to dense."""
    folder.mkdir(parents=True, exist_ok=True)
    rgb = look is GLIOMA
    kinds = [("Type A", "cell"), ("Type B", "cell"), ("soma", "cell_part")] if rgb else [("cell", "cell")]
    categories = [{"id": i, "name": name, "supercategory": above} for i, (name, above) in enumerate(kinds, 1)]
    images, annotations, first = [], [], 1_000_000 * seeds[2] + 1  # ids are unique over the splits
    for number, name in enumerate(names):
        rng = np.random.default_rng([*seeds, number])
        cells = place_cells(rng, look, age=number % 6 / 5)
        pixels = draw_image(rng, look, cells, rgb)
        tiff = io.BytesIO()
        tifffile.imwrite(tiff, pixels, photometric="rgb" if rgb else "minisblack", metadata=None)
        write_atomically(folder / name, tiff.getvalue())
        image = 10_000 * seeds[2] + number + 1
        images.append({"id": image, "width": look.width, "height": look.height, "file_name": name})
        outlines = [(cell.outline, 2 if rgb and cell.rounded else 1) for cell in cells]
        outlines += [(cell.soma, 3) for cell in cells if rgb and not cell.rounded and rng.random() < 0.15]
        for points, category in outlines:
            one = {"id": first + len(annotations), "image_id": image, "category_id": category, "iscrowd": 0}
            one["bbox"] = np.round([*points.min(0), *np.ptp(points, axis=0)], 2).tolist()
            one["area"], one["segmentation"] = cv2.contourArea(np.float32(points)), [points.ravel().tolist()]
            annotations.append(one)
    head = {"info": {"description": README_TITLE}, "licenses": [], "categories": categories}
    write_json_atomically(file, head | {"images": images, "annotations": annotations}, indent=None)
    print(f"{file}: {len(images)} images, {len(annotations)} outlines", flush=True)


def draw_sets(out: Path, seed: int, livecell: tuple[int, int, int], glioma: tuple[int, int, int]) -> None:
    """Draw both sets in their published layouts into `out`: a new folder, an empty one, or an earlier result.

    Each LIVECell-like split has a well of its own. livecell, glioma: images for training, validation and test.
    Raises InputError where `out` holds something else.
    """
    check_folder(out)
    make_folder(out)
    # First, because it marks a killed run's folder as ours.
    write_atomically(out / "README.txt", f"{README}{seed}\n")
    for earlier in filter(Path.exists, (out / "livecell", out / "glioma_c6")):
        shutil.rmtree(earlier)
    for split, (part, well) in enumerate((("train", "A7"), ("val", "B7"), ("test", "C7"))):
        root = out / "livecell"
        places = [(number // 6 + 1, number % 6 * 16) for number in range(livecell[split])]
        names = [f"A172_Phase_{well}_{i}_{hour // 24:02d}d{hour % 24:02d}h00m_1.tif" for i, hour in places]
        folder = root / "images" / f"livecell_{'test' if part == 'test' else 'train_val'}_images"
        draw_split(LIVECELL, folder, root / f"livecell_coco_{part}.json", names, (seed, 0, split))
    for split, part in enumerate(("train", "valid", "test")):
        root = out / "glioma_c6" / "dataset" / "spec" / part
        names = [f"drawn_{part}_{number + 1:02d}.tif" for number in range(glioma[split])]
        draw_split(GLIOMA, root / "images", root / f"anno_{part}.json", names, (seed, 1, split))
    print(f"{out}: drawn, not photographed")


def check_folder(out: Path) -> None:
    """Raises InputError where drawing into `out` would overwrite what is not the demo's."""
    readme = out / "README.txt"
    ours = readme.is_file() and readme.read_text(errors="replace").startswith(README_TITLE)
    if out.exists() and not ours and (out.is_file() or any(out.iterdir())):
        raise InputError(f"{out}: was not made by the demo, which would replace it; give another --out")
