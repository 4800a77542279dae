"""`convert folder`: images with masks of every kind, stacks, pairs by name, splits by group, what cannot be used."""

import io
import json
import random
import re
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from data_helpers import draw_image
from helpers import command, draw_sample
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from glioma_dist.cli import program
from glioma_dist.data.convert import mask_pairs
from glioma_dist.data.convert.folder import Division, convert_folder
from glioma_dist.data.convert.pages import check_pattern, find_groups
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.splits import draw_shares
from glioma_dist.errors import InputError, one_line

SHAPE = (36, 48)
NAMES = ("train", "val", "test")


def draw_labels(number: int = 0, cells: int = 5) -> np.ndarray:
    """A label image, int64: rectangles that do not touch, numbered from 1."""
    labels = np.zeros(SHAPE, np.int64)
    for cell in range(cells):
        labels[2 + cell * 6 : 6 + cell * 6, 3 + number % 7 : 9 + cell + number % 7] = cell + 1
    return labels


LABELS = draw_labels()


def phase(*shape: int) -> np.ndarray:
    """A stack of noise images, uint8 (*shape, H, W)."""
    return np.random.default_rng(0).integers(0, 256, (*shape, *SHAPE), dtype=np.uint8)


def write_png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_tiff(path: Path, pixels: np.ndarray, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels, **how)
    return path


def lab(root: Path, names, suffix: str = "", mask_ending: str = ".png") -> tuple[Path, Path]:
    """Folders of noise images and label images with these names."""
    for number, name in enumerate(names):
        write_png(root / "images" / f"{name}.png", draw_image(number))
        write = write_png if mask_ending == ".png" else write_tiff
        write(root / "masks" / f"{name}{suffix}{mask_ending}", draw_labels(number).astype(np.uint8))
    return root / "images", root / "masks"


def convert(images: Path, masks: Path, out: Path, **how) -> str:
    """Convert; what would have been on the screen."""
    screen = io.StringIO()
    convert_folder(images, masks, out, "lab", console=Console(file=screen, width=80), **how)
    return screen.getvalue()


def samples(folder: Path) -> dict:
    reader = ShardReader(folder)
    places = [(shard, place) for shard, count in enumerate(reader.shard_sizes) for place in range(count)]
    return {sample.key: sample for sample in (reader.read(*place) for place in places)}


def defects(out: Path) -> list[tuple[str, str, bool]]:
    found = json.loads((out / "audit.json").read_text())["defects"]
    return [(each["kind"], each["where"], each["left_out"]) for each in found]


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_picture_twice_is_told_and_its_bytes_in_another_shape_are_not(tmp_path):
    """Blank fields of two sizes may have the same bytes."""
    for name, shape in {"a": SHAPE, "b": SHAPE, "c": SHAPE[::-1]}.items():
        write_png(tmp_path / "images" / f"{name}.png", np.full(shape, 9, np.uint8))
        write_png(tmp_path / "masks" / f"{name}.png", np.eye(*shape, dtype=np.uint8))
    convert(tmp_path / "images", tmp_path / "masks", tmp_path / "out", division=Division(counts={"train": 3}))
    ((kind, where, left_out),) = defects(tmp_path / "out")
    assert (kind, left_out) == ("doubled-name", False)
    assert where in ("a.png", "b.png")  # whichever is drawn second


# Pairs


@pytest.mark.parametrize("suffix", mask_pairs.KNOWN_SUFFIXES)
def test_what_programs_write_after_a_name_is_found_without_a_flag(tmp_path, suffix):
    images, masks = lab(tmp_path, ["a", "b_mask", "p/q.c"], suffix)
    pairs = mask_pairs.find_pairs(images, masks, None)
    assert [pair.name for pair in pairs.pairs] == ["a.png", "b_mask.png", "p/q.c.png"]
    assert pairs.suffix == suffix
    if suffix:
        for path in [path for path in masks.rglob("*.png") if "b_mask" not in path.name]:
            path.rename(images / path.relative_to(masks))
        pairs = mask_pairs.find_pairs(images, images, suffix)
        assert [pair.name for pair in pairs.pairs] == ["a.png", "p/q.c.png"]


def test_one_folder_may_be_named_in_two_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "a_mask", "b_mask"):
        write_png(tmp_path / "data" / f"{name}.png", draw_labels().astype(np.uint8))
    (tmp_path / "link").symlink_to("data")
    for masks in (Path("data"), tmp_path / "data", Path("link")):
        pairs = mask_pairs.find_pairs(Path("data"), masks, None)
        assert ([pair.name for pair in pairs.pairs], pairs.lonely_masks) == (["a.png"], ["b_mask.png"])


def test_a_suffix_that_is_given_is_the_only_one(tmp_path):
    images, masks = lab(tmp_path, ["a", "b"], "_mask")
    write_png(masks / "a_nuclei.png", LABELS.astype(np.uint8))
    pairs = mask_pairs.find_pairs(images, masks, "_nuclei")
    assert [(pair.name, pair.mask.name) for pair in pairs.pairs] == [("a.png", "a_nuclei.png")]
    assert (pairs.lonely_images, pairs.lonely_masks) == (["b.png"], ["a_mask.png", "b_mask.png"])


@pytest.mark.parametrize("above", ["images", "masks"])
def test_one_folder_may_lie_in_the_other(tmp_path, above):
    images, masks = lab(tmp_path, ["a", "b"])
    if above == "images":
        masks = masks.rename(images / "masks")
    else:
        images = images.rename(masks / "images")
    pairs = mask_pairs.find_pairs(images, masks, None)
    assert [pair.name for pair in pairs.pairs] == ["a.png", "b.png"]
    assert (pairs.lonely_images, pairs.lonely_masks) == ([], [])


def test_who_has_no_partner_is_listed_and_left_out(tmp_path):
    images, masks = lab(tmp_path, [f"f{number:02d}" for number in range(12)], "_mask")
    for number in range(8):
        (masks / f"f{number:02d}_mask.png").unlink()
    write_png(masks / "other_mask.png", LABELS.astype(np.uint8))
    for name in ("._f11.png", ".DS_Store", "notes.txt"):
        (images / name).write_bytes(b"x")
    (images / "LICENSE").write_text("CC0\n")
    screen = convert(images, masks, tmp_path / "out")
    assert "4 images with a mask (masks have the image's name and _mask)" in screen
    assert "8 images without a mask, left out: f00.png, f01.png, f02.png, f03.png, f04.png and 3 more" in screen
    assert "1 mask without an image, left out: other_mask.png" in screen
    lonely = [("image-without-labels", f"f{number:02d}.png", True) for number in range(8)]
    assert defects(tmp_path / "out") == [*lonely, ("labels-without-image", "other_mask.png", True)]
    not_read = json.loads((tmp_path / "out/audit.json").read_text())["files_not_read"]
    assert {ending: entry["files"] for ending, entry in not_read.items()} == {"(no suffix)": 1, ".png": 1, ".txt": 1}
    assert ShardReader(tmp_path / "out/all").index["licence"] == "CC0 (LICENSE of the source)"


# Splits


def test_the_groups_that_a_pattern_finds_are_printed(tmp_path):
    images, masks = lab(tmp_path, [f"{well}_f{field}" for well in "ABCDEFG" for field in range(1 + (well == "A"))])
    screen = convert(images, masks, tmp_path / "out", group_pattern="^([A-Z])_")
    assert "7 groups: A (2 samples), B (1 sample), C (1 sample), D (1 sample), E (1 sample) and 2 more\n" in screen


def test_a_picture_that_is_there_twice_is_told_of(tmp_path):
    images, masks = lab(tmp_path, ["a", "b", "c", "d"])
    write_tiff(images / "copy.tif", draw_image(1))
    write_png(masks / "copy.png", LABELS.astype(np.uint8))
    convert(images, masks, tmp_path / "out", division=Division(0))
    (defect,) = json.loads((tmp_path / "out/audit.json").read_text())["defects"]
    assert (defect["kind"], {defect["where"], *re.findall(r"as (.*);", defect["detail"])}) == (
        "doubled-name",
        {"b.png", "copy.tif"},
    )
    assert sum(len(samples(tmp_path / "out" / name)) for name in NAMES) == 5


@given(
    st.lists(st.integers(0, 9), min_size=3, max_size=60).filter(lambda wells: len(set(wells)) >= 3),
    st.tuples(*[st.floats(0.5, 90)] * 3),
    st.integers(0, 1000),
    st.randoms(),
)
@settings(max_examples=150, deadline=None)
def test_groups_never_straddle_splits(wells, shares, seed, shuffler):
    groups = {f"key{number}": f"well{well}" for number, well in enumerate(wells)}
    named = dict(zip(NAMES, shares, strict=True))
    drawn = draw_shares(groups, named, seed)
    assert sorted(key for keys in drawn.values() for key in keys) == sorted(groups)
    of_split = {name: {groups[key] for key in keys} for name, keys in drawn.items()}
    assert sum(map(len, of_split.values())) == len(set(groups.values()))
    assert all(of_split.values())
    for name, found in of_split.items():
        exact = named[name] / sum(shares) * len(set(wells))
        assert len(found) == 1 or len(found) < exact + 1
    items = list(groups.items())
    shuffler.shuffle(items)
    assert draw_shares(dict(items), named, seed) == drawn


@pytest.mark.parametrize(
    ("number", "expected"), [(3, (1, 1, 1)), (7, (5, 1, 1)), (16, (11, 3, 2)), (100, (70, 15, 15))]
)
def test_shares_of_usual_numbers(number, expected):
    drawn = draw_shares({str(key): str(key) for key in range(number)}, dict(zip(NAMES, (70, 15, 15), strict=True)), 0)
    assert tuple(map(len, drawn.values())) == expected


@pytest.mark.parametrize("how", [{}, {"counts": (5, 2, 3)}])
def test_wells_stay_together_and_the_seed_decides(tmp_path, how):
    names = [f"{well}_f{field}" for well in ("A1", "A2", "B7", "C3", "C4") for field in (1, 2)]
    images, masks = lab(tmp_path, names)
    drawn = {}
    for seed in (0, 1, 2):
        out = tmp_path / f"out{seed}"
        convert(images, masks, out, division=Division(seed, **how), group_pattern="^([A-H][0-9]+)_")
        drawn[seed] = {name: samples(out / name) for name in NAMES}
        wells = defaultdict(set)
        for name, found in drawn[seed].items():
            for key, sample in found.items():
                assert sample.metadata["group"] == key[:2]
                wells[key[:2]].add(name)
        assert all(len(splits) == 1 for splits in wells.values())
        assert sum(map(len, drawn[seed].values())) == (10 if not how else 8)
    assert len({tuple(sorted(found["train"])) for found in drawn.values()}) > 1


def test_pages_of_a_stack_stay_together(tmp_path):
    for number in range(4):
        write_tiff(tmp_path / f"images/s{number}.tif", phase(3), photometric="minisblack")
        write_tiff(tmp_path / f"masks/s{number}.tif", np.stack([LABELS] * 3).astype(np.uint8), photometric="minisblack")
    convert(tmp_path / "images", tmp_path / "masks", tmp_path / "out", division=Division(0))
    sets = [{key[:2] for key in samples(tmp_path / "out" / name)} for name in NAMES]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 4


def test_two_runs_and_any_order_of_the_folder_give_the_same_bytes(tmp_path, monkeypatch):
    images, masks = lab(tmp_path, [f"plate{n % 2}/f{n}" for n in range(9)], "_cp_masks", ".tif")
    convert(images, masks, tmp_path / "one" / "x", division=Division(3))
    walk = mask_pairs.walk_files

    def shuffled(root):
        found = walk(root)
        random.Random(5).shuffle(found)
        return found

    monkeypatch.setattr(mask_pairs, "walk_files", shuffled)
    convert(images, masks, tmp_path / "two" / "x", division=Division(3))
    assert file_bytes(tmp_path / "one") == file_bytes(tmp_path / "two")


def test_names_are_grouped_by_what_the_pattern_finds():
    pairs = {f"{stem}.tif": stem for stem in ("p1/A1_f1", "p1/A2_f1", "p2/A1_f2")}
    assert list(find_groups(pairs, "(p[0-9])/").values()) == ["p1", "p1", "p2"]
    assert list(find_groups(pairs, "(A[0-9])_").values()) == ["A1", "A2", "A1"]
    assert list(find_groups(pairs, None).values()) == list(pairs.values())
    with pytest.raises(InputError, match=r"finds no group in 1 of 3 names, for example p2/A1_f2\.tif"):
        find_groups(pairs, "(.*)_f1$")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("A[0-9", "no regular expression"), ("A[0-9]", "has 0 groups"), ("(A)(B)", "has 2 groups"), ("*", "no regular")],
)
def test_a_pattern_that_cannot_be_is_one_line(pattern, words):
    with pytest.raises(InputError, match=words) as caught:
        check_pattern(pattern)
    assert "\n" not in str(caught.value)


# The command


def no_partner(root: Path) -> None:
    for path in (root / "masks").iterdir():
        path.rename(path.with_name(f"m_{path.name}"))


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


BAD = {
    "no images": (
        lambda root: empty(root / "images"),
        (),
        "images: no image (TIFF, PNG, JPEG, nd2, czi or lif) there or below",
    ),
    "no masks": (lambda root: empty(root / "masks"), (), "masks: no mask (TIFF or PNG) there or below"),
    "only Cellpose's own": (
        lambda root: (empty(root / "masks"), (root / "masks/f0_seg.npy").touch()),
        (),
        "convert cellpose reads Cellpose's _seg.npy",
    ),
    "a file": (
        lambda root: (empty(root / "masks"), (root / "masks").rmdir(), (root / "masks").touch()),
        (),
        "is a file",
    ),
    "nothing": (lambda root: None, ("--masks", "nowhere"), "--masks nowhere: no such folder"),
    "no partner": (no_partner, (), "images are f0.png, f1.png; masks are m_f0.png, m_f1.png; give --suffix"),
    "another suffix": (lambda root: None, ("--suffix", "_x"), "no mask has the name of an image and '_x'"),
    "one folder": (
        lambda root: None,
        ("--masks", "images"),
        "no file of the folder is named as a mask: f0.png, f1.png",
    ),
    "a folder as suffix": (lambda root: None, ("--suffix", "masks/"), "give --masks for the folder"),
    "two images": (
        lambda root: write_tiff(root / "images/f1.tif", draw_image(0)),
        (),
        "two images for one mask; keep one",
    ),
    "two masks": (
        lambda root: write_tiff(root / "masks/f1.tif", LABELS.astype(np.uint8)),
        (),
        "two masks for one image; keep one",
    ),
    "few groups": (
        lambda root: None,
        ("--split-seed", 0, "--group-pattern", "(f)"),
        "1 group of images cannot be drawn",
    ),
    "many counts": (lambda root: None, ("--split-seed", 0, "--split-counts", 9, 9, 9), "need 27 samples, there are 4"),
    "two counts": (lambda root: None, ("--split-seed", 0, "--split-counts", 2, 1), "give three numbers"),
    "a share of 0": (lambda root: None, ("--split-seed", 0, "--split-shares", 1, 0, 1), "each share is above 0"),
    "a negative seed": (lambda root: None, ("--split-seed", -1), "--split-seed -1: give a whole number from 0"),
    "no group": (lambda root: None, ("--group-pattern", "f[0-9]"), "has 0 groups"),
    "no pattern": (lambda root: None, ("--group-pattern", "("), "no regular expression"),
    "no match": (lambda root: None, ("--group-pattern", "(x)"), "finds no group in 4 of 4 names"),
    "all damaged": (
        lambda root: [path.write_bytes(b"x") for path in (root / "images").iterdir()],
        (),
        "no sample could be converted",
    ),
    "all damaged, drawn": (
        lambda root: [path.write_bytes(b"x") for path in (root / "images").iterdir()],
        ("--split-seed", 0),
        "no sample could be converted: unreadable-file 4 (first: f0.png: ",
    ),
    "most of another size, drawn": (
        lambda root: [write_png(root / f"masks/f{each}.png", LABELS[:30].astype(np.uint8)) for each in (0, 1, 3)],
        ("--split-seed", 0),
        "too few samples could be converted: size-mismatch 3 (first: f0.png: the image is 48x36, its mask 48x30); all "
        "3 defects are in out/audit.json; 1 group of images cannot be drawn into 3 splits",
    ),
    "one of another size and one group, drawn": (
        lambda root: write_png(root / "masks/f1.png", LABELS[:30].astype(np.uint8)),
        ("--split-seed", 0, "--group-pattern", "(f)"),
        "or omit --split-seed to write one split; left out: size-mismatch 1 (first: f1.png: ",
    ),
    "strict": (lambda root: (root / "masks/f1.png").unlink(), ("--strict",), "f1.png: image-without-labels"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_converted_is_one_line(tmp_path, case, monkeypatch):
    change, flags, words = BAD[case]
    lab(tmp_path, [f"f{number}" for number in range(4)])
    change(tmp_path)
    base = {"--images": "images", "--masks": "masks", "--out": "out"}
    base.update(dict([flags[:2]]) if flags and flags[0] in base else {})
    rest = flags[2:] if flags and flags[0] in base else flags
    given = [word for pair in base.items() for word in pair] + [str(word) for word in rest]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        program.run(["convert", "folder", *given])
    line = one_line(error.value)
    assert words in line
    assert len(line) <= 500
    assert not list((tmp_path / "out").glob("*/index.json"))


def colours(root: Path) -> None:
    for path in (root / "masks").iterdir():
        write_png(path, np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8))


def one_cut(root: Path) -> None:
    write_png(root / "masks/f0.png", LABELS[:30].astype(np.uint8))
    (root / "masks/f1.png").write_bytes(b"x")
    (root / "masks/f2.png").write_bytes(b"x")


@pytest.mark.parametrize(("spoil", "words"), [(colours, "unreadable-file 3 (first: f0.png: "), (one_cut, "file 2 (")])
def test_a_folder_of_unusable_masks_is_told_alike_with_splits_and_without(tmp_path, spoil, words):
    """What spoils most, its first example, and where all are; the screen has the audit."""
    images, masks = lab(tmp_path, ["f0", "f1", "f2"])
    spoil(tmp_path)
    lines = []
    for division in (Division(), Division(0), Division(0, (1, 1, 1))):
        screen = io.StringIO()
        console = Console(file=screen, width=80)
        with pytest.raises(InputError) as error:
            convert_folder(images, masks, tmp_path / "out", "lab", division=division, console=console)
        lines.append(str(error.value).removeprefix(f"{images}: "))
        assert "audit: every defect is in " in screen.getvalue()
    assert len(set(lines)) == 1
    assert lines[0].startswith("no sample could be converted: unreadable-file")
    assert words in lines[0]
    assert "; all 3 defects are in" in lines[0]
    assert len(lines[0]) <= 450


def test_sixteen_images_with_label_pngs_become_shards_that_verify(tmp_path):
    """The way of docs/own_images.md, by its own command."""
    (tmp_path / "images").mkdir()
    for number in range(16):
        sample = draw_sample(number)
        cv2.imwrite(str(tmp_path / "images" / f"f{number}.png"), sample.image)
        labels = cv2.connectedComponents(sample.mask)[1].astype(np.uint16)
        write_png(tmp_path / "masks" / f"f{number}_cp_masks.png", labels)
    flags = ("--images", tmp_path / "images", "--masks", tmp_path / "masks", "--split-seed", 0)
    ended = command("convert folder", *flags, "--out", tmp_path / "plate", "--licence", "CC0", "--dataset", "my cells")
    assert ended.exit_code == 0, ended.stderr
    counts = {}
    for name in NAMES:
        verified = command("shards verify", tmp_path / "plate" / name)
        assert verified.exit_code == 0, verified.stderr
        reader = ShardReader(tmp_path / "plate" / name)
        assert (reader.index["dataset"], reader.index["licence"]) == ("my cells", "CC0")
        counts[name] = len(reader)
        for key, sample in samples(tmp_path / "plate" / name).items():
            np.testing.assert_array_equal(sample.mask, draw_sample(int(key[1:])).mask)
            np.testing.assert_array_equal(sample.image, draw_sample(int(key[1:])).image)
    assert counts == {"train": 11, "val": 3, "test": 2}
