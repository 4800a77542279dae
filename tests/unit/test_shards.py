"""Shards: what is written is read back, by us and by webdataset; what is broken is refused."""

import gc
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from glioma_dist.data.sample import Sample, encode_mask
from glioma_dist.data.shards.inspection import index_folder, verify
from glioma_dist.data.shards.reader import ShardReader, ShardWriter
from glioma_dist.errors import InputError, UnavailableError


def draw_samples(num_samples: int) -> list[Sample]:
    samples = []
    for number in range(num_samples):
        generator = np.random.default_rng(number)
        shape = (20 + number, 30) if number % 2 else (20, 31, 3)
        image = generator.integers(0, 256, shape).astype(np.uint16 if number % 3 == 0 else np.uint8)
        mask = generator.integers(0, 2, shape[:2]).astype(np.uint8)
        samples.append(Sample(f"k-{number}", image, mask, {"file_name": f"{number}.tif", "time": None, "n": number}))
    return samples


def write(folder: Path, samples: Iterable[Sample], samples_per_shard: int = 3) -> Path:
    with ShardWriter(folder, "drawn", "train", "CC0", samples_per_shard=samples_per_shard) as writer:
        for sample in samples:
            writer.write(sample)
    return folder


@pytest.mark.parametrize("way", ["written", "indexed"])
def test_what_is_said_of_all_samples_is_what_readers_take(tmp_path, way):
    def make(dataset: str) -> None:
        if way == "written":
            with ShardWriter(folder, dataset, "train", "CC0") as writer:
                writer.write(draw_samples(1)[0])
        else:
            index_folder(folder, dataset, "train", "CC0")

    folder = tmp_path / "train"
    if way == "indexed":
        write(folder, draw_samples(1))
        (folder / "index.json").unlink()
    for unreadable in ("", "x" * 10_001):
        with pytest.raises(InputError, match=r"train: the dataset is .*, not a text of 1 to 10000 .* --dataset$"):
            make(unreadable)
    make(os.fsdecode(b"caf\xe9"))  # the name of a folder, in Latin-1
    assert ShardReader(folder).lineage[0]["data"] == r"caf\xe9"


def test_samples_come_back_in_order(tmp_path):
    samples = draw_samples(7)
    reader = ShardReader(write(tmp_path / "a" / "train", samples))
    assert reader.shard_sizes == [3, 3, 1]
    assert len(reader) == 7
    assert reader.keys() == [sample.key for sample in samples]
    assert {key: reader.index[key] for key in ("dataset", "split", "licence")} == {
        "dataset": "drawn",
        "split": "train",
        "licence": "CC0",
    }
    for copy in (reader, pickle.loads(pickle.dumps(reader))):
        for number, sample in enumerate(samples):
            found = copy.read(number // 3, number % 3)
            assert (found.key, found.metadata, found.image.dtype) == (
                sample.key,
                sample.metadata,
                sample.image.dtype,
            )
            np.testing.assert_array_equal(found.image, sample.image)
            np.testing.assert_array_equal(found.mask, sample.mask)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_webdataset_alone_reads_them(tmp_path):
    samples = draw_samples(5)
    folder = write(tmp_path / "train", samples, samples_per_shard=2)
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in found] == [sample.key for sample in samples]
    for theirs, ours in zip(found, samples, strict=True):
        assert theirs["json"] == ours.metadata
        assert theirs["png"].size == ours.image.shape[1::-1]
        np.testing.assert_array_equal(np.asarray(theirs["mask.png"].convert("L")) > 0, ours.mask == 1)
        if ours.image.dtype == np.uint8 and ours.image.ndim == 3:
            np.testing.assert_array_equal(np.asarray(theirs["png"]), ours.image)
    # webdataset leaves its files to the garbage collector, which would complain in some later test.
    gc.collect()


def test_members_table_points_at_the_members(tmp_path):
    folder = write(tmp_path / "train", draw_samples(4))
    for path in sorted(folder.glob("*.tar")):
        data = path.read_bytes()
        table = json.loads(path.with_name(path.name.replace(".tar", ".members.json")).read_text())
        with tarfile.open(path) as tar:
            expected = {info.name: tar.extractfile(info).read() for info in tar}
        found = {}
        for member in table:
            key, digest = member.pop("key"), member.pop("sha256")
            start = min(offset for offset, _ in member.values())
            end = max(offset + size for offset, size in member.values())
            assert hashlib.sha256(data[start:end]).hexdigest() == digest
            found |= {
                f"{key}.{extension}": data[offset : offset + size] for extension, (offset, size) in member.items()
            }
        assert found == expected


def test_same_samples_same_bytes(tmp_path):
    first, second = (write(tmp_path / name / "train", draw_samples(5)) for name in "ab")
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}
    assert ShardReader(first).fingerprint == ShardReader(second).fingerprint
    other = write(tmp_path / "c" / "train", draw_samples(6))
    assert ShardReader(first).fingerprint != ShardReader(other).fingerprint


def test_an_exception_leaves_the_older_shards_and_nothing_else(tmp_path):
    folder = write(tmp_path / "train", draw_samples(2))
    before = ShardReader(folder).fingerprint

    def interrupted():
        yield draw_samples(1)[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write(folder, interrupted())
    assert ShardReader(folder).fingerprint == before
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_a_killed_writer_leaves_nothing_that_looks_whole_and_the_next_one_finishes(tmp_path):
    folder = tmp_path / "train"
    program = textwrap.dedent(f"""
        import os, signal
        import numpy as np
        from glioma_dist.data.sample import Sample
        from glioma_dist.data.shards.reader import ShardWriter
        with ShardWriter({str(folder)!r}, "drawn", "train", "CC0", samples_per_shard=2) as writer:
            for number in range(5):
                writer.write(Sample(f"k{{number}}", np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)))
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / ".train.partial" / "00001.tar").is_file()
    assert not list(tmp_path.rglob("index.json"))
    with pytest.raises(InputError, match="no such folder; make shards first"):
        ShardReader(folder)
    assert len(ShardReader(write(folder, draw_samples(3)))) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_a_second_writer_of_the_same_folder_is_refused_and_disturbs_nothing(tmp_path):
    folder, (first, *others) = tmp_path / "train", draw_samples(4)
    with ShardWriter(folder, "drawn", "train", "CC0", samples_per_shard=3) as writer:
        writer.write(first)
        with pytest.raises(UnavailableError, match="train: another process writes shards there; wait until it has"):
            write(folder, draw_samples(1))
        for sample in others:
            writer.write(sample)
    assert [reason for _, reason in verify(ShardReader(folder))] == [None, None]


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_what_a_later_writer_has_begun_stays(tmp_path, ends):
    """A folder that a writer renamed away at its end, or somebody else did, is no longer its own to remove."""
    theirs = tmp_path / ".train.partial" / "00000.tar"
    writer = ShardWriter(tmp_path / "train", "drawn", "train", "CC0").__enter__()
    writer.write(draw_samples(1)[0])
    if ends == "well":
        writer._finish_shard()
        writer._finish_folder()
    else:
        writer._partial.rename(tmp_path / "away")
    theirs.parent.mkdir()
    theirs.touch()
    writer.__exit__(RuntimeError, None, None)
    assert theirs.is_file()


def test_only_a_folder_of_shards_is_replaced(tmp_path):
    precious = tmp_path / "train" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(InputError, match="holds no shards"):
        write(tmp_path / "train", draw_samples(1))
    assert precious.read_text() == "years of work"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        write(tmp_path / "file" / "train", draw_samples(1))
    write(tmp_path / "val", draw_samples(4))
    assert len(ShardReader(write(tmp_path / "val", draw_samples(2)))) == 2


@pytest.mark.parametrize("key", ["a.b", "a/b", "", "ä", "k" * 91, "k-0"])
def test_keys_of_wrong_form_or_seen_before_are_refused(tmp_path, key):
    first = draw_samples(1)[0]
    with pytest.raises(InputError, match="key"):
        write(tmp_path / "t", [first, Sample(key, first.image, first.mask)])


def test_a_mask_of_another_size_is_not_written(tmp_path):
    sample = Sample("odd-one", np.zeros((4, 6), np.uint8), np.zeros((6, 4), np.uint8))
    with pytest.raises(InputError, match="odd-one: the image is 6x4, its mask 4x6"):
        write(tmp_path / "t", [sample])


def test_a_missing_folder_and_a_folder_without_index_say_convert(tmp_path):
    with pytest.raises(InputError, match=r"no such folder; make shards first: glioma-dist convert"):
        ShardReader(tmp_path / "none")
    with pytest.raises(InputError, match=r"no index.json.*make shards first"):
        ShardReader(tmp_path)
    write(tmp_path / "val", draw_samples(1))
    with pytest.raises(InputError, match="name one of its splits: val"):
        ShardReader(tmp_path)


def test_a_truncated_tar_is_refused_with_both_lengths(tmp_path):
    folder = write(tmp_path / "train", draw_samples(4))
    whole = ShardReader(folder)
    path = folder / "00001.tar"
    size = path.stat().st_size
    os.truncate(path, 700)
    with pytest.raises(
        InputError, match=rf"00001.tar: 700 bytes found, {size} expected; copy the folder again, or convert again"
    ):
        ShardReader(folder)
    with pytest.raises(
        InputError, match=r"00001.tar: 700 bytes found.*truncated; copy the folder again, or convert again"
    ):
        whole.read(1, 0)
    path.unlink()
    with pytest.raises(InputError, match=r"00001.tar: no such file; copy the folder again"):
        ShardReader(folder)
    with pytest.raises(InputError, match=r"00001.tar: no such file"):
        whole.read(1, 0)


def replace_member(folder: Path, extension: str, data: bytes) -> None:
    """Overwrite a member of the only sample of the only shard and correct what the index says of it."""
    table_path, tar_path = folder / "00000.members.json", folder / "00000.tar"
    table = json.loads(table_path.read_text())
    offset, size = table[0][extension]
    assert len(data) <= size
    content = tar_path.read_bytes()
    tar_path.write_bytes(content[:offset] + data + content[offset + len(data) :])
    table[0][extension] = [offset, len(data)]
    table_path.write_text(json.dumps(table))
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["members_sha256"] = hashlib.sha256(table_path.read_bytes()).hexdigest()
    (folder / "index.json").write_text(json.dumps(index))


def test_a_mask_of_another_size_in_a_shard_names_the_sample(tmp_path):
    generator = np.random.default_rng(0)
    mask = generator.integers(0, 2, (40, 50)).astype(np.uint8)
    folder = write(tmp_path / "t", [Sample("k-7", generator.integers(0, 9, (40, 50), np.uint8), mask)])
    replace_member(folder, "mask.png", encode_mask(np.ones((4, 6), np.uint8)))
    with pytest.raises(InputError, match=r"00000\.tar: sample k-7: the image is 50x40, its mask 6x4"):
        ShardReader(folder).read(0, 0)


@pytest.mark.parametrize("extension", ["png", "mask.png", "json"])
def test_a_corrupt_member_names_the_sample(tmp_path, extension):
    folder = write(tmp_path / "t", draw_samples(1))
    (offset, size) = json.loads((folder / "00000.members.json").read_text())[0][extension]
    content = (folder / "00000.tar").read_bytes()
    replace_member(folder, extension, content[offset : offset + size // 2] + b"\0" * (size - size // 2))
    with pytest.raises(InputError, match=rf"00000.tar: k-0.{extension}"):
        ShardReader(folder).read(0, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", "../../etc/passwd.tar"),
        ("name", "/etc/passwd"),
        ("name", "a/b.tar"),
        ("name", ".tar"),
        ("name", 5),
        ("bytes", -1),
        ("bytes", 2**60),
        ("bytes", "12"),
        ("bytes", None),
        ("num_samples", 10**12),
        ("num_samples", True),
        ("num_samples", 1.5),
        ("sha256", None),
    ],
)
def test_an_index_is_not_trusted(tmp_path, name, value):
    folder = write(tmp_path / "t", draw_samples(1))
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0][name] = value
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="cannot be"):
        ShardReader(folder)


@pytest.mark.parametrize(
    "content",
    ["", "[1]", "{}", '{"format_version": 2}', '{"format_version": 1, "shards": []}', "[" * 100_000, "\0"],
)
def test_an_index_that_is_none_is_refused(tmp_path, content):
    folder = write(tmp_path / "t", draw_samples(1))
    (folder / "index.json").write_text(content)
    with pytest.raises(InputError, match=r"index.json: .*convert again"):
        ShardReader(folder)


@pytest.mark.parametrize("pair", [[0, 10**9], [-5, 10], [10**7, 1], [0], "ab", None, [0.5, 2], [True, 1]])
def test_a_table_of_members_is_not_trusted(tmp_path, pair):
    folder = write(tmp_path / "t", draw_samples(1))
    path = folder / "00000.members.json"
    table = json.loads(path.read_text())
    table[0]["png"] = pair
    path.write_text(json.dumps(table))
    with pytest.raises(InputError, match="cannot be"):
        ShardReader(folder).read(0, 0)
    path.write_text("[]")
    with pytest.raises(InputError, match="does not list 1 samples"):
        ShardReader(folder).read(0, 0)
