"""The layouts in which data sets come, and names that lead out of them."""

import pytest
from data_helpers import annotation, draw_image, image_record, square, write_coco, write_livecell, write_tiff

from glioma_dist.data.convert.coco import load_coco
from glioma_dist.data.convert.sources import (
    LIVECELL_LICENCE,
    UNKNOWN_LICENCE,
    describe,
    find_glioma_c6,
    find_livecell,
    licence_of,
)
from glioma_dist.errors import InputError


def write_labels(path, name="a.tif"):
    return write_coco(path, [image_record(1, name)], [annotation(1, 1, square(2, 2, 9))])


def place_names(source):
    return {split.name: (split.annotations, split.images.root) for split in source.splits}


def test_livecell_flat_by_cell_type_and_as_published(tmp_path):
    for name, folder in [
        ("flat", "images"),
        ("types", "images/A172"),
        ("test", "images/livecell_test_images/A172"),
    ]:
        root = tmp_path / name
        path = write_tiff(root / folder / "A172_Phase_A1_1_00d00h00m_1.tif", draw_image(1))
        labels = write_labels(root / "annotations" / "LIVECell" / "livecell_coco_test.json", path.name)
        write_labels(root / "annotations" / "LIVECell_single_cells" / "a172" / "livecell_coco_test.json")
        write_labels(root / "annotations" / "LIVECell_single_cells" / "a172" / "a172_test.json")
        source = find_livecell(root)
        assert place_names(source) == {"test": (labels, root / "images")}
        assert source.splits[0].images.locate(path.name, is_only_one=True) == [path]
        assert licence_of(source, load_coco(labels)) == LIVECELL_LICENCE


def test_livecell_takes_the_splits_that_are_there(tmp_path):
    source = find_livecell(write_livecell(tmp_path, {"train": 1, "val": 1}))
    assert [split.name for split in source.splits] == ["train", "val"]
    # The splits share one folder of images, listed once.
    assert source.splits[0].images is source.splits[1].images


@pytest.mark.parametrize("json_folder", ["spec/{}", "spec"])
def test_published_archive(tmp_path, json_folder):
    expected = {}
    for subset, split in [("test", "test"), ("train", "train"), ("valid", "val")]:
        write_tiff(tmp_path / "dataset" / "spec" / subset / "images" / "a.tif", draw_image(1))
        labels = write_labels(tmp_path / "dataset" / json_folder.format(subset) / f"anno_{subset}.json")
        expected[split] = (labels, tmp_path / "dataset" / "spec" / subset / "images")
    write_tiff(tmp_path / "dataset" / "gen" / "images" / "a.tif", draw_image(2))
    labels = write_labels(tmp_path / "dataset" / "gen" / "anno_gen.json")
    expected["gen"] = (labels, tmp_path / "dataset" / "gen" / "images")
    for folder in (tmp_path, tmp_path / "dataset"):
        source = find_glioma_c6(folder)
        assert place_names(source) == expected
        assert [split.name for split in source.splits] == ["train", "val", "test", "gen"]
        assert source.has_own_splits
    assert place_names(find_glioma_c6(tmp_path / "dataset" / "gen")) == {"gen": expected["gen"]}


def test_cvat_export_without_and_with_subsets(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    write_tiff(one / "images" / "default" / "a.tif", draw_image(1))
    labels = write_labels(one / "annotations" / "instances_default.json")
    source = find_glioma_c6(one)
    assert place_names(source) == {"all": (labels, one / "images" / "default")}
    assert not source.has_own_splits
    for subset in ("Train", "Validation"):
        write_tiff(two / "images" / subset / "a.tif", draw_image(1))
        write_labels(two / "annotations" / f"instances_{subset}.json")
    source = find_glioma_c6(two)
    assert [split.name for split in source.splits] == ["train", "val"]
    assert source.has_own_splits
    assert source.splits[1].images.root == two / "images" / "Validation"


def test_what_is_no_such_data_set_is_told_in_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "images").mkdir()
    with pytest.raises(
        InputError, match=r"no LIVECell .* livecell_coco_train\.json.* found images/, notes\.txt"
    ) as one:
        find_livecell(tmp_path)
    with pytest.raises(InputError, match=r"no Glioma C6 .*anno_train\.json.*instances_\*\.json.* found images/") as two:
        find_glioma_c6(tmp_path)
    assert "\n" not in str(one.value) + str(two.value)
    with pytest.raises(InputError, match="found nothing"):
        find_livecell(tmp_path / "images")
    with pytest.raises(InputError, match="no such folder"):
        find_glioma_c6(tmp_path / "none")
    write_labels(tmp_path / "livecell_coco_val.json")
    with pytest.raises(InputError, match="no TIFF or PNG"):
        find_livecell(tmp_path)


def test_two_data_sets_in_one_folder_are_refused(tmp_path):
    for name in "ab":
        write_tiff(tmp_path / name / "images" / "a.tif", draw_image(1))
        write_labels(tmp_path / name / "anno_train.json")
        write_labels(tmp_path / name / "livecell_coco_train.json")
    with pytest.raises(InputError, match="both are the split train"):
        find_glioma_c6(tmp_path)
    with pytest.raises(InputError, match="which one is meant"):
        find_livecell(tmp_path)
    write_labels(tmp_path / "annotations" / "instances_default.json")
    with pytest.raises(InputError, match="two layouts"):
        find_glioma_c6(tmp_path)


@pytest.fixture
def export(tmp_path):
    root = tmp_path / "export"
    for name in ("a.tif", "well1/a.tif", "well2/a.tif", "well2/b.tif"):
        write_tiff(root / "images" / "default" / name, draw_image(len(name)))
    write_labels(root / "annotations" / "instances_default.json")
    return root


def test_names_may_hold_folders(export):
    images = find_glioma_c6(export).splits[0].images
    for name, expected in [
        ("a.tif", ["a.tif"]),
        ("well1/a.tif", ["well1/a.tif"]),
        ("well2/b.tif", ["well2/b.tif"]),
        ("default/well2/a.tif", ["well2/a.tif"]),
        ("b.tif", ["well2/b.tif"]),
        ("elsewhere/a.tif", []),
        ("c.tif", []),
        ("", []),
    ]:
        assert images.locate(name, is_only_one=True) == [images.root / path for path in expected], name
    # A file in another folder than named is taken only where no other image can be meant.
    assert images.locate("elsewhere/b.tif", is_only_one=True) == [images.root / "well2/b.tif"]
    assert images.locate("elsewhere/b.tif", is_only_one=False) == []
    (images.root / "a.tif").unlink()
    images = find_glioma_c6(export).splits[0].images
    assert images.locate("a.tif", is_only_one=True) == [
        images.root / "well1/a.tif",
        images.root / "well2/a.tif",
    ]


@pytest.mark.parametrize("name", ["/etc/a.tif", "../a.tif", "well1/../../a.tif", "C:/a.tif", "linked.tif", "out/a.tif"])
def test_names_that_lead_out_are_refused(export, tmp_path, name):
    outside = write_tiff(tmp_path / "secret" / "a.tif", draw_image(1))
    (export / "images" / "default" / "linked.tif").symlink_to(outside)
    (export / "images" / "default" / "out").symlink_to(outside.parent)
    images = find_glioma_c6(export).splits[0].images
    with pytest.raises(InputError, match="leads outside"):
        images.locate(name, is_only_one=True)


def test_names_that_no_file_can_have(export):
    images = find_glioma_c6(export).splits[0].images
    assert images.locate("a" * 5000 + ".tif", is_only_one=True) == []
    with pytest.raises(InputError, match="cannot be the name"):
        images.locate("a\0.tif", is_only_one=True)


def test_an_image_folder_that_is_a_link_out_is_refused(tmp_path):
    write_tiff(tmp_path / "secret" / "a.tif", draw_image(1))
    write_labels(tmp_path / "source" / "anno_train.json")
    (tmp_path / "source" / "images").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="leads outside"):
        find_glioma_c6(tmp_path / "source")


def test_licences(export):
    source = find_glioma_c6(export)
    coco = load_coco(source.splits[0].annotations)
    assert licence_of(source, coco) == UNKNOWN_LICENCE
    (export / "LICENSE.txt").write_text("\n  MIT License\n\nCopyright")
    assert licence_of(source, coco) == "MIT License (LICENSE.txt of the source)"
    coco.licences.append("CC BY 4.0")
    assert licence_of(source, coco) == "CC BY 4.0"


def test_what_names_tell():
    assert describe("A172_Phase_B7_2_01d04h30m_2.tif") == ("A172_B7", 28.5)
    assert describe("SkBr3_Phase_H3_2_00d00h00m_4.tif") == ("SkBr3_H3", 0.0)
    assert describe("folder/field.7.png") == ("field.7", None)
