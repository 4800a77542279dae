"""What a folder of somebody else's tars holds beside the samples that are read: it is counted and named."""

import shutil

import pytest
from helpers import draw_shards
from test_inspect_shards import inspect

from glioma_dist.data.shards.reader import ShardReader


@pytest.fixture
def tars(tmp_path):
    """A folder of two tars of three samples each, without an index."""
    drawn = draw_shards(tmp_path / "drawn", range(6))
    (tmp_path / "tars").mkdir()
    for name in ("00000.tar", "00001.tar"):
        shutil.copy(drawn / name, tmp_path / "tars" / name)
    return tmp_path / "tars"


def printed(folder, capsys, **flags) -> str:
    inspect(folder, **flags)
    return capsys.readouterr().out


def test_tars_joined_in_one_file_are_told(tars, capsys):
    """As `cat` makes them: whatever reads tars stops at the first one's end."""
    first, second = tars / "00000.tar", tars / "00001.tar"
    size = first.stat().st_size
    with open(first, "ab") as file:
        file.write(second.read_bytes())
    second.unlink()
    told = printed(tars, capsys, index=True)
    assert "1 member belongs to no sample and is not read: 00000.tar: (bytes behind the tar's end, " in told
    assert len(ShardReader(tars)) == 3
    # Zeros are how a tar ends, however many there are.
    with open(first, "r+b") as file:
        file.truncate(size)
        file.truncate(size + 3 * 2**20)
    (tars / "index.json").unlink()
    assert "belongs to no sample" not in printed(tars, capsys, index=True, verify=True)


def test_files_beside_the_tars_are_told(tars, capsys):
    shutil.copy(tars / "00001.tar", tars / "00002.TAR")
    (tars / "00003.tar.gz").write_bytes(b"x")
    (tars / "more").mkdir()
    (tars / "._00000.tar").write_bytes(b"AppleDouble")
    expected = "3 entries that index.json does not list are not read (1 .gz, 1 .tar, 1 folder)"
    assert expected in printed(tars, capsys, index=True)
    assert expected in printed(tars, capsys)
    assert len(ShardReader(tars)) == 6
