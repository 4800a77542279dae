"""glioma-dist shards: what it lists, what it finds, and somebody else's shards."""

import io
import json
import os
import shutil
import tarfile
import warnings

import cv2
import numpy as np
import pytest
import webdataset
from faulty_server import files_of, serve
from helpers import damage_sample, draw_sample

from glioma_dist.cli.arguments import parse
from glioma_dist.cli.shards import INDEX, INSPECT, VERIFY
from glioma_dist.data.sample import Sample, encode_image, encode_mask
from glioma_dist.data.shards.inspection import index_folder
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.errors import InputError


@pytest.fixture
def copy(shards, tmp_path):
    return shutil.copytree(shards / "train", tmp_path / "train")


def inspect(folder, index: bool = False, verify: bool = False, **flags) -> None:
    """`shards index`, then `shards verify`, as asked for; else `shards inspect`."""
    commands = [(INDEX, flags)] if index else []
    commands += [(VERIFY, {})] if verify else []
    for command, own in commands or [(INSPECT, flags)]:
        config = command.config(str(folder), **own)
        if hasattr(config, "validate"):
            config.validate()
        command.check(config)
        command.run(config)


def test_it_lists_what_the_index_says(shards, capsys):
    inspect(shards / "train")
    printed = capsys.readouterr().out
    assert "drawn, split train, licence CC0" in printed
    assert "10 samples in 4 shards" in printed
    for shard in ShardReader(shards / "train").index["shards"]:
        number = shard["num_samples"]
        assert f"{shard['name']}  {number} sample{'s' * (number > 1)}  {shard['bytes']} bytes" in printed


def test_undamaged_shards_are_said_to_be_ok(shards, capsys):
    inspect(shards / "train", verify=True)
    assert capsys.readouterr().out.count("  ok\n") == 4


def test_shards_at_a_url_are_verified_too(copy, capsys):
    pytest.importorskip("aiohttp", reason="needs the extra cloud")
    with serve(files_of(copy.parent)) as server:
        inspect(f"{server.url}/train", verify=True)
        assert "all checksums match" in capsys.readouterr().out


def test_damage_is_named_and_the_other_shards_looked_at(copy, capsys):
    damage_sample(copy, "cell-004")
    path = copy / "00003.tar"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\1")  # in the padding, where no sample is
    with pytest.raises(InputError, match=r"2 of 4 shards are damaged; the first: .*cell-004.png"):
        inspect(copy, verify=True)
    printed = capsys.readouterr().out
    assert "00000.tar  ok" in printed
    assert "00003.tar  " + str(path) + ": its SHA-256 is" in printed


def test_a_table_of_members_that_was_changed_is_noticed(copy):
    path = copy / "00001.members.json"
    path.write_text(path.read_text().replace("cell-003", "cell-300"))
    with pytest.raises(InputError, match=r"1 of 4 .*00001.members.json: is not the file that index.json"):
        inspect(copy, verify=True)


def test_the_contact_sheet_shows_each_image_with_its_outline(shards, tmp_path, capsys):
    inspect(shards / "train", sheet=tmp_path / "new" / "sheet.png", num_images=4)
    sheet = cv2.imread(str(tmp_path / "new" / "sheet.png"))[..., ::-1]
    assert sheet.shape == (2 * 380, 2 * 360, 3)
    outlined = (sheet == (255, 200, 0)).all(axis=-1)
    for top in (0, 380):
        for left in (0, 360):
            picture = outlined[top : top + 300, left : left + 360]
            assert 300 < picture.sum() < 20_000
            assert np.ptp(sheet[top : top + 300, left : left + 360]) > 150
    assert "wrote 4 images to" in capsys.readouterr().out


def write_tar(path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_shards_that_webdataset_wrote_are_indexed_and_read(tmp_path, capsys):
    samples = [draw_sample(number) for number in range(5)]
    folder = tmp_path / "theirs"
    folder.mkdir()
    with (
        warnings.catch_warnings(),
        webdataset.ShardWriter(str(folder / "cells-%06d.tar"), maxcount=2, verbose=0) as writer,
    ):
        for sample in samples:
            parts = {"png": encode_image(sample.image), "mask.png": encode_mask(sample.mask), "json": sample.metadata}
            writer.write({"__key__": sample.key, **parts})
    inspect(folder, index=True, verify=True, dataset="theirs", licence="MIT")
    assert "theirs, split all, licence MIT" in capsys.readouterr().out
    reader = ShardReader(folder)
    assert reader.shard_sizes == [2, 2, 1]
    for number, sample in enumerate(samples):
        found = reader.read(*divmod(number, 2))
        assert (found.key, found.metadata) == (sample.key, sample.metadata)
        np.testing.assert_array_equal(found.image, sample.image)
        np.testing.assert_array_equal(found.mask, sample.mask)
    with pytest.raises(InputError, match=r"holds an index.json already"):
        inspect(folder, index=True)


def test_other_endings_folders_in_names_and_missing_facts(tmp_path):
    sample = draw_sample(1)
    folder = tmp_path / "theirs"
    folder.mkdir()
    image, mask = encode_image(sample.image), encode_mask(sample.mask)
    members = [("a/b.c1.txt", b"?"), ("a/x.input.png", image), ("a/x.cls", b"7"), ("a/x.target.png", mask)]
    write_tar(folder / "s.tar", [*members, ("../../etc/y.input.png", image), ("../../etc/y.target.png", mask)])
    inspect(folder, index=True, image="input.png", mask="target.png", verify=True)
    reader = ShardReader(folder)
    assert reader.keys() == ["a_x", "etc_y"]
    for place in range(2):
        found = reader.read(0, place)
        assert found.metadata == {}
        np.testing.assert_array_equal(found.image, sample.image)


def test_names_that_become_one_key_stay_samples_of_their_own(tmp_path):
    samples = [draw_sample(number) for number in range(3)]
    members = []
    for name, sample in zip(("x/1", "x_1", "клетка"), samples, strict=True):
        members += [(f"{name}.png", encode_image(sample.image)), (f"{name}.mask.png", encode_mask(sample.mask))]
    write_tar(tmp_path / "s.tar", members)
    inspect(tmp_path, index=True, verify=True)
    reader = ShardReader(tmp_path)
    assert len(set(reader.keys())) == 3
    for place, sample in enumerate(samples):
        np.testing.assert_array_equal(reader.read(0, place).mask, sample.mask)


def test_names_that_differ_in_bytes_that_are_not_utf8_stay_samples_of_their_own(tmp_path):
    names = [os.fsdecode(name) for name in (b"\xe8", b"\xe9", b"\xea")]  # in Latin-1
    write_tar(tmp_path / "a.tar", [member for number, name in enumerate(names) for member in parts(name, number)])
    inspect(tmp_path, index=True)
    assert len(set(ShardReader(tmp_path).keys())) == 3


def test_a_key_in_two_tars_and_facts_that_are_none_are_refused(tmp_path):
    image, mask = encode_image(draw_sample(0).image), encode_mask(draw_sample(0).mask)
    members = [("x.png", image), ("x.mask.png", mask), ("x.json", b"[1]")]
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(InputError, match=r"x\.json: is no JSON object"):
        inspect(tmp_path, index=True, verify=True)
    (tmp_path / "index.json").unlink()
    write_tar(tmp_path / "b.tar", members)
    with pytest.raises(InputError, match=r"b\.tar: sample x is in a\.tar, too"):
        inspect(tmp_path, index=True)


@pytest.mark.parametrize(
    ("members", "fragment"),
    [
        ([("x/1.png", b"1"), ("x_1.mask.png", b"2")], "has no x_1.mask.png"),
        ([("x.png", b"1"), ("y.png", b"1"), ("x.mask.png", b"2")], "does not stand with the rest"),
        ([], "holds no sample with png and mask.png"),
        ([("x.txt", b"?")], "holds no sample with png and mask.png"),
        ([("x.png", b"1")], "has no x.mask.png"),
        ([("x.json", b"{}")], "has no x.png and no x.mask.png"),
        ([("x.png", b"1"), ("x.png", b"2"), ("x.mask.png", b"3")], "comes twice in one sample"),
        ([("k" * 91 + ".png", b"1"), ("k" * 91 + ".mask.png", b"1")], "empty or too long"),
    ],
)
def test_tars_that_are_no_shards_are_refused(tmp_path, members, fragment):
    write_tar(tmp_path / "s.tar", members)
    with pytest.raises(InputError, match=fragment):
        inspect(tmp_path, index=True)
    assert not (tmp_path / "index.json").exists()


def test_flags_that_cannot_be_are_refused(tmp_path):
    for command, flags, fragment in (
        (INDEX, ["s3://a/b"], "is not supported by this flag; give a path of this machine"),
        (INDEX, ["x", "--image", "jpg"], "is not PNG, the only supported format"),
        (INSPECT, ["x", "--num-images", "0"], "1 or more"),
        (INSPECT, ["x", "--sheet", str(tmp_path / "x.jpg")], "give a file name that ends with .png"),
        (INSPECT, ["x", "--sheet", "s3://bucket/x.png"], "is not supported by this flag"),
    ):
        with pytest.raises(InputError, match=fragment):
            parse(command.config, flags)
    with pytest.raises(InputError, match=r"no \.tar"):
        inspect(tmp_path, index=True)
    write_tar(tmp_path / "a b.tar", [])
    with pytest.raises(InputError, match="rename it"):
        inspect(tmp_path, index=True)


def test_tars_without_an_index_say_how_to_make_one(tmp_path):
    sample: Sample = draw_sample(0)
    write_tar(tmp_path / "s.tar", [("x.png", encode_image(sample.image)), ("x.mask.png", encode_mask(sample.mask))])
    with pytest.raises(InputError, match=r"glioma-dist shards index "):
        ShardReader(tmp_path)


def parts(name: str, number: int = 0) -> list[tuple[str, bytes]]:
    sample = draw_sample(number)
    return [(f"{name}.png", encode_image(sample.image)), (f"{name}.mask.png", encode_mask(sample.mask))]


def test_names_with_dots_are_samples_of_their_own(tmp_path, capsys):
    """WebDataset ends a name at its first dot, which would make one sample of two."""
    names = ["w1", "w2_0.5um", "w2_0.7um", "sub.folder/w3.1", "w2"]
    write_tar(tmp_path / "s.tar", [part for number, name in enumerate(names) for part in parts(name, number)])
    inspect(tmp_path, index=True, verify=True)
    assert "belong" not in capsys.readouterr().out
    reader = ShardReader(tmp_path)
    assert reader.keys() == ["w1", "w2_0_5um", "w2_0_7um", "sub_folder_w3_1", "w2"]
    for place in range(5):
        np.testing.assert_array_equal(reader.read(0, place).image, draw_sample(place).image)


def test_the_endings_of_the_flags_are_found_behind_dots(tmp_path):
    sample = draw_sample(3)
    image, mask = encode_image(sample.image), encode_mask(sample.mask)
    write_tar(tmp_path / "s.tar", [("a.b.input.PNG", image), ("a.b.target.png", mask), ("a.b.Json", b'{"n": 1}')])
    inspect(tmp_path, index=True, verify=True, image="input.png", mask="target.png")
    assert ShardReader(tmp_path).keys() == ["a_b"]
    assert ShardReader(tmp_path).read(0, 0).metadata == {"n": 1}


def test_members_that_no_sample_took_are_counted_and_named(tmp_path, capsys):
    """At `shards index` and whenever the folder is looked at later; folders and PAX headers are no members."""
    members = [*parts("x"), ("x.cls", b"7"), ("x.jpg", b"?"), ("x.overlay.png", b"?"), ("y.0.5.png", b"?")]
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in [*members, ("._x.png", b"?"), ("._x.mask.png", b"?"), ("README", b"?")]:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), {"comment": "c"}
            tar.addfile(info, io.BytesIO(data))
        for kind, name in ((tarfile.DIRTYPE, "folder"), (tarfile.SYMTYPE, "z.png"), (tarfile.LNKTYPE, "z.mask.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "x.png"
            tar.addfile(info)
    inspect(tmp_path, index=True)
    expected = (
        "9 members belong to no sample and are not read: s.tar: x.cls, s.tar: x.jpg, s.tar: x.overlay.png and 6 more"
    )
    assert expected in capsys.readouterr().out
    inspect(tmp_path, verify=True)
    assert expected in capsys.readouterr().out
    assert ShardReader(tmp_path).keys() == ["x"]
    # An index of an older version says nothing of them.
    index = json.loads((tmp_path / "index.json").read_text())
    assert index.pop("unused_members")["count"] == 9
    (tmp_path / "index.json").write_text(json.dumps(index))
    inspect(tmp_path, verify=True)
    assert expected in capsys.readouterr().out


def test_names_that_are_not_utf8_are_printed_as_escapes(tmp_path, capsys):
    write_tar(tmp_path / "s.tar", [*parts("x"), ("k\udcf6ln.txt", b"?"), ("line\nbreak.txt", b"?"), *parts("m\udcf6")])
    inspect(tmp_path, index=True, verify=True)
    printed = capsys.readouterr().out
    assert "2 members belong to no sample and are not read: s.tar: k\\xf6ln.txt, s.tar: line\\x0abreak.txt" in printed
    printed.encode("ascii")
    assert ShardReader(tmp_path).keys() == ["x", "m_"]


@pytest.mark.parametrize("name", ["k\udcf6ln.png", "äöü.png"])
def test_a_sheet_may_have_any_name(shards, tmp_path, name, capsys):
    inspect(shards / "train", sheet=tmp_path / name, num_images=1)
    assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"its folder is gone|cannot be written"):
        inspect(shards / "train", sheet=shards / "train" / "index.json" / "x.png", num_images=1)


def test_our_own_shards_have_no_such_members(copy, capsys):
    inspect(copy, verify=True)
    assert "belong" not in capsys.readouterr().out


def test_a_sample_that_two_shards_have_is_named(tmp_path):
    """Each shard is whole, and so is the index; only together they are not."""
    for name, number in (("a", 0), ("b", 1)):
        write_tar(tmp_path / f"{name}.tar", parts("x" if name == "a" else "y", number))
    index_folder(tmp_path, "d", "s", "l")
    index = json.loads((tmp_path / "index.json").read_text())
    table = json.loads((tmp_path / "b.members.json").read_text())
    table[0]["key"] = "x"
    (tmp_path / "b.members.json").write_text(json.dumps(table))
    del index["shards"][1]["members_sha256"]
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"1 of 2 .*b.tar: sample x is in a.tar, too"):
        inspect(tmp_path, verify=True)
